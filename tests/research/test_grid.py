"""research.grid: which photos stand in a grid, and the shares of maps that are exactly right, or know no class."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import OWN_FLAGS, SIZE, flags_of, open_birds, paint_folder, read_result, refused, result_paths
from hypothesis import given
from hypothesis import strategies as st
from torchvision.utils import make_grid

from evaluation import session
from research import grid
from wsol.attribution.maps import attribution_maps
from wsol.errors import UserError


@given(counts=st.lists(st.integers(0, 6), min_size=4, max_size=9).filter(lambda counts: sum(map(bool, counts)) >= 4), seed=st.integers(0, 9))
def test_a_grid_has_four_classes_and_a_photo_stands_in_one(counts, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), np.array(counts) + 1))
    p = np.random.default_rng(seed + 1).uniform(0.2, 1, len(labels)).astype(np.float32)
    for label in range(len(counts)):  # one of each class is wrong
        p[np.flatnonzero(labels == label)[0]] = 0
    grids = grid.make_grids(p, labels, seed)
    assert grids.shape == (len(grids), 4) and len(np.unique(grids)) == grids.size and (p[grids] > 0).all()
    assert all(len(set(labels[row])) == 4 for row in grids)
    first = [p[labels == label].max() for label in range(len(counts)) if counts[label]]
    assert set(p[grids[:len(first) // 4]].flatten()) <= set(first)  # the most confident ones come first
    np.testing.assert_array_equal(grids, grid.make_grids(p, labels, seed))


def test_three_classes_make_no_grid():
    with pytest.raises(UserError, match='images of 4 classes; this network classifies some of 3'):
        grid.make_grids(np.array([0.5, 0.9, 0.8, 0.0]), np.arange(4), 0)


def test_photos_lie_where_their_cells_are():
    image = make_grid(torch.arange(4.0).view(4, 1, 1, 1).expand(-1, 3, 5, 5), nrow=2, padding=0)
    assert image.shape == (3, 10, 10)
    for place, (y, x) in enumerate([(0, 0), (0, 5), (5, 0), (5, 5)]):
        assert (image[:, y:y + 5, x:x + 5] == place).all()
    right = torch.stack([(image[0] == place).float() for place in range(4)])
    assert (grid.cell_shares(right, 5) == 1).all() and (grid.cell_shares(right.roll(1, 0), 5) == 0).all()
    torch.testing.assert_close(grid.cell_shares(2 * right - 1, 5), torch.ones(4))  # negative elsewhere
    assert grid.cell_shares(-right, 5).isnan().all()


@given(st.integers(0, 99))
def test_a_map_that_knows_no_class_has_a_quarter(seed):
    values = torch.rand(6, 8, generator=torch.Generator().manual_seed(seed))
    assert grid.cell_shares(values.expand(4, -1, -1), 7).mean().item() == pytest.approx(0.25)


@pytest.fixture
def confident(monkeypatch):
    """As if the network classified every photo correctly, with a confidence of its own."""
    monkeypatch.setattr(grid, 'classify', lambda model, loader, *_: (np.concatenate(
        [0.3 + labels.numpy() / 100 + indices.numpy() / 1000 for _, labels, indices in loader]), True))


def test_the_study_agrees_with_a_naive_loop(script, tiny_birds, save, confident):
    code, out, err = script('research.grid', *tiny_birds, '--experiment_name=CALM_EM', '--score_map_process=jointll,random', '--batch_size=12')
    assert code == 0, err
    assert len(result_paths(save / 'CALM_EM', 'grid')) == 2 and 'chance is 25 %' in out
    control, result = (read_result(save / 'CALM_EM', 'grid', f'_{method}.') for method in ('random', 'jointll'))
    assert control['share'][0] == pytest.approx(25, abs=1e-6) and control['grids'] == result['grids'] == 8  # of 18 classes
    network = session.open_network(flags_of('research.grid', [*tiny_birds, '--experiment_name=CALM_EM', f'--save_root={save}']))
    images, _ = open_birds(tiny_birds)
    p = 0.3 + images.labels / 100 + np.arange(36) / 1000
    shares = []
    for row in grid.make_grids(p, images.labels, 3):
        a, b, c, d = (images[index][0] for index in row.tolist())
        image = torch.cat([torch.cat([a, b], 2), torch.cat([c, d], 2)], 1)[None]
        maps = attribution_maps(network.model, image, torch.from_numpy(images.labels[row])[None], 'jointll')[0]
        large = torch.nn.functional.interpolate(maps[None], (2 * SIZE, 2 * SIZE), mode='bilinear')[0].clamp(min=0)
        inside = [large[place, y:y + SIZE, x:x + SIZE].sum() / large[place].sum()
                  for place, (y, x) in enumerate([(0, 0), (0, SIZE), (SIZE, 0), (SIZE, SIZE)])]
        shares.append(100 * float(sum(inside)) / 4)
    assert [float(text) for text in result['share_by_grid'].split()] == pytest.approx(shares, abs=0.02)
    value, low, high = result['share']
    assert value == pytest.approx(np.mean(shares), abs=0.01) and low < value < high
    code, out, err = script('compare', 'save/CALM_EM')
    assert code == 0 and f'{value:.1f} [' in out, err


def test_each_process_gives_what_one_gives(tiny_birds, save, monkeypatch):
    network = session.open_network(flags_of('research.grid', [*tiny_birds, '--experiment_name=CAM', f'--save_root={save}', '--batch_size=8']))
    images, data = open_birds(tiny_birds)
    source = session.choose_maps(network, data, 'grid').source(images)
    grids = np.arange(20).reshape(5, 4)
    _, (whole,) = grid.measure(network, images, grids, [source])
    shares = np.empty(5)
    monkeypatch.setattr('runtime.processes.size', lambda: 2)
    monkeypatch.setattr('runtime.processes.gather', lambda value: [value])
    for rank, rows in ((0, [0, 1, 4]), (1, [2, 3])):
        monkeypatch.setattr('runtime.processes.rank', lambda rank=rank: rank)
        _, (shares[rows],) = grid.measure(network, images, grids, [source])
    np.testing.assert_array_equal(shares, whole)


def test_a_network_of_one_size_gets_a_smaller_grid(script, tiny_birds, save, confident, monkeypatch):
    def refuse(model, size):
        if size != SIZE:
            raise UserError('too large')
    monkeypatch.setattr(grid, 'check_image_size', refuse)
    seen, resize = [], grid.F.interpolate
    monkeypatch.setattr(grid, 'F', SimpleNamespace(interpolate=lambda *args, **options: seen.append(resize(*args, **options)) or seen[-1]))
    code, out, err = script('research.grid', *tiny_birds, '--experiment_name=CAM')
    assert code == 0 and f'resized to {SIZE} pixels' in out, err
    assert read_result(save / 'CAM', 'grid')['is_resized'] and {tuple(one.shape[2:]) for one in seen} == {(SIZE, SIZE)}


def test_what_cannot_be_evaluated_is_refused(script, tiny_birds, save, tmp_path):
    refused(script('research.grid', *tiny_birds, '--experiment_name=CAM', '--score_map_process=object_mask'), 'no segmentation')
    refused(script('research.grid', *tiny_birds, '--experiment_name=CAM', '--score_map_process=jointll'), 'jointll')
    folder = paint_folder(tmp_path / 'pets')
    script('main', *OWN_FLAGS, f'--dataset={folder}', '--experiment_name=pets')
    refused(script('research.grid', '--workers=0', '--device=cpu', f'--dataset={folder}', '--experiment_name=pets'), '4 classes')
