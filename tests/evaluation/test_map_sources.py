"""map_sources: maps made elsewhere score as the network's own; bad ones are found before the first image; none is NaN."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SIZE, accepted, change_checkpoint, open_birds, read_result, refused, result_paths, roots_of

from evaluation.map_sources import FolderMaps, NetworkMaps, folder_name
from experiment import weights
from wsol.attribution.maps import attribution_maps
from wsol.attribution.registry import METHODS
from wsol.errors import UserError

EVALUATIONS = {'eval_wsol': 'wsol', 'eval_cue_location': 'cue_location', 'eval_pixel_perturb': 'pixel_perturb'}


@pytest.fixture(scope='module')
def network_files(tiny_birds, trained, tmp_path_factory):
    """The network's own maps as files: <root>/<split>/<image_id>.npy, and per class for cue localization."""
    root = tmp_path_factory.mktemp('maps') / 'files'
    model, _ = weights.load_model(trained / 'CALM_EM')
    for split in ('val', 'test'):
        images, _ = open_birds(tiny_birds, split)
        for index, label in enumerate(images.labels):
            with torch.no_grad():
                maps = attribution_maps(model, images[index][0][None], None, 'jointll')[0].numpy()
            name = f'{images.image_id(index)}.npy'
            for path, values in ((root / split / name, maps[label]), *(
                    (root / split / str(label_of_map) / name, values) for label_of_map, values in enumerate(maps))):
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, values)
    return root


@pytest.fixture
def map_files(network_files, tmp_path):
    """A folder of maps whose files a test may replace: links to the network's."""
    for path in network_files.rglob('*.npy'):
        target = tmp_path / 'files' / path.relative_to(network_files)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    return tmp_path / 'files'


def last_map(map_files, name):
    """The file of the last test image that an evaluation will ask for."""
    return sorted(map_files.glob('test/17/*.Toy*/*.npy' if name == 'eval_cue_location' else 'test/*.Toy*/*.npy'))[-1]


@pytest.mark.parametrize('name, needs_model', [('eval_wsol', False), ('eval_cue_location', False), ('eval_pixel_perturb', True)])
def test_maps_from_files_score_as_those_of_the_network(script, tiny_birds, save, network_files, name, needs_model, forwards):
    base, metric = [*tiny_birds, '--batch_size=1', '--cam_curve_interval=0.02'], EVALUATIONS[name]
    assert script(name, *base, '--experiment_name=CALM_EM', '--norm_type=minmax', '--threshold_type=even')[0] == 0
    from_network = read_result(save / 'CALM_EM', metric)
    forwards.clear()
    folder = 'CALM_EM' if needs_model else 'elsewhere'
    accepted(script(name, *base, f'--scoremap_root={network_files}',
                    f'--{"load_checkpoint" if needs_model else "experiment_name"}={folder}'), 'maps: maps-files-')
    assert len(forwards) == (36 * 22 if needs_model else 0)
    read = read_result(save / folder, metric, 'maps-files-')
    if name == 'eval_wsol':
        from_network['results'].pop('Top-1 Loc')  # without a network there is no class
    key = {'wsol': 'results', 'cue_location': 'pxap', 'pixel_perturb': 'ratios'}[metric]
    assert read[key] == from_network[key]
    assert read['images_sha256'] == from_network['images_sha256']
    assert read['weights_sha256'] == (from_network['weights_sha256'] if needs_model else None)


def test_a_named_network_gives_the_classes_of_maps_from_files(script, tiny_birds, save, network_files):
    for flags in (['--experiment_name=CALM_EM'], ['--load_checkpoint=CALM_EM', f'--scoremap_root={network_files}']):
        assert script('eval_wsol', *tiny_birds, *flags, '--batch_size=1', '--cam_curve_interval=0.02')[0] == 0
    from_network, read = (read_result(save / 'CALM_EM', 'wsol', named) for named in ('jointll', 'maps-files'))
    assert from_network['results'] == read['results'] and 'Top-1 Loc' in from_network['results']


def test_folders_of_maps_of_one_name_have_different_names_in_results(network_files, tmp_path):
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other/files').symlink_to(network_files)
    (tmp_path / 'again/files').mkdir(parents=True)
    names = [folder_name(root) for root in (network_files, tmp_path / 'again/files', tmp_path / 'other/files')]
    assert names[0] == names[2] != names[1] and all(name.startswith('maps-files-') for name in names)  # a link is its folder


def test_maps_of_any_size_type_and_place_are_taken(script, tiny_birds, save, map_files):
    """Also <root>/<image_id>.npy, without the split; half floats, integers, and Fortran order."""
    paths = sorted(map_files.glob('test/*.Toy*/*.npy'))
    rng = np.random.default_rng(0)
    for path, values in zip(paths, (rng.random((13, 29)), rng.random((5, 7)).astype(np.float16), rng.integers(0, 9, (4, 4)),
                                    np.asfortranarray(rng.random((6, 3))), rng.random((SIZE, SIZE)) > 0.5), strict=False):
        path.unlink()
        np.save(path, values)
    target = map_files / paths[7].relative_to(map_files / 'test')
    target.parent.mkdir()
    paths[7].rename(target)
    for name in ('eval_wsol', 'eval_pixel_perturb'):
        accepted(script(name, *tiny_birds, '--load_checkpoint=CALM_EM', f'--scoremap_root={map_files}'))


def test_the_map_of_a_class_is_read_from_the_folder_of_that_class(tiny_birds, network_files):
    images, _ = open_birds(tiny_birds)
    source = FolderMaps(network_files, 'test', images, lambda index: [3, 5])
    index = 7
    batch = source(images[index][0][None], torch.tensor([index]), torch.tensor([[5, 3]]))
    for place, label in enumerate((5, 3)):
        expected = np.load(network_files / 'test' / str(label) / f'{images.image_id(index)}.npy')
        assert np.array_equal(batch.maps[0][place].numpy(), expected)
    assert batch.probs is None and not torch.equal(*batch.maps[0])


# --- bad files, found before the first image ---------------------------------------------------------------------

def truncated(path):
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:-20])


def saved(values, **options):
    def save(path):
        path.unlink()
        np.save(path, values, **options)
    return save


def written(content):
    def write(path):
        path.unlink()
        path.write_bytes(content)
    return write


def zipped(path):
    path.unlink()
    np.savez(path.with_suffix('.npz'), a=np.ones((3, 3)))
    path.with_suffix('.npz').rename(path)


BAD = {
    'missing': (lambda path: path.unlink(), ['no score map', 'looked for']), 'truncated': (truncated, ['is no score map']),
    'three axes': (saved(np.zeros((2, 2, 2))), ['two-dimensional', '(2, 2, 2)']),
    'one axis': (saved(np.zeros(4)), ['two-dimensional', '(4,)']), 'empty': (saved(np.zeros((0, 3))), ['is no score map']),
    'objects': (saved(np.array([[{}, 1]], object), allow_pickle=True), ['is no score map']),
    'complex': (saved(np.ones((3, 3), complex)), ['real numbers', 'complex128']),
    'text': (saved(np.array([['a']])), ['real numbers', '<U1']), 'no array': (written(b'no array'), ['is no score map']),
    'nothing': (written(b''), ['is no score map']), 'no zip': (written(b'PK\x03\x04 no zip'), ['is no score map']),
    'a zip of arrays': (zipped, ['is no score map']),
}


@pytest.mark.parametrize('kind', BAD)
def test_bad_maps_are_refused_by_their_header(tiny_birds, map_files, kind):
    images, _ = open_birds(tiny_birds)
    spoil, words = BAD[kind]
    for name, classes_of in (('eval_wsol', None), ('eval_cue_location', lambda index: [1, 17])):
        path = last_map(map_files, name)
        spoil(path)
        with pytest.raises(UserError) as error:
            FolderMaps(map_files, 'test', images, classes_of)
        assert all(word in str(error.value) for word in [path.name, *words]), error.value
        if classes_of is None:
            path.unlink(missing_ok=True)
            path.symlink_to(map_files / 'test/0' / path.relative_to(map_files / 'test'))


@pytest.mark.parametrize('name', EVALUATIONS)
def test_bad_maps_are_found_before_the_first_image(script, tiny_birds, save, map_files, forwards, name):
    path = last_map(map_files, name)
    path.unlink()
    refused(script(name, *tiny_birds, '--load_checkpoint=CALM_EM', f'--scoremap_root={map_files}', '--batch_size=4'),
            path.name, 'no score map', 'looked for')
    assert forwards == [] and not result_paths(save / 'CALM_EM', EVALUATIONS[name])


def test_maps_of_different_sizes_for_different_classes_are_refused(tiny_birds, map_files):
    images, _ = open_birds(tiny_birds)
    path = last_map(map_files, 'eval_cue_location')
    saved(np.ones((3, 9)))(path)
    with pytest.raises(UserError, match=f'{path.stem} have different sizes for different classes'):
        FolderMaps(map_files, 'test', images, lambda index: [1, 17])
    with pytest.raises(UserError, match='no score map: looked for nowhere/test/'):
        FolderMaps('nowhere', 'test', images)


@pytest.mark.skipif(not Path('/proc/self/fd').is_dir(), reason='counts open files as Linux lists them')
def test_files_are_not_held_open(tiny_birds, network_files):
    images, _ = open_birds(tiny_birds)
    before = len(list(Path('/proc/self/fd').iterdir()))
    source = FolderMaps(network_files, 'test', images)
    assert len(list(Path('/proc/self/fd').iterdir())) == before and source.by_class is False


# --- maps that are no numbers ------------------------------------------------------------------------------------

@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e300])
def test_maps_from_files_that_are_no_numbers_are_refused(tiny_birds, map_files, value):
    images, _ = open_birds(tiny_birds)
    path = last_map(map_files, 'eval_wsol')
    values = np.random.default_rng(0).random((14, 14))
    values[3, 4] = value
    saved(values)(path)
    source, index = FolderMaps(map_files, 'test', images), len(images) - 1
    source(torch.zeros(1, 3, 8, 8), torch.tensor([0]), torch.tensor([[0]]))
    with pytest.raises(UserError, match=f'{path.stem} holds values that are infinite or no number'):
        source(torch.zeros(1, 3, 8, 8), torch.tensor([index]), torch.tensor([[0]]))


@pytest.mark.parametrize('name', [*EVALUATIONS, 'inference'])
def test_maps_of_a_network_that_are_no_numbers_are_refused(script, tiny_birds, save, tmp_path, monkeypatch, name):
    """One cell of one image's map: the third of its batch."""
    compute, batches = METHODS['jointll'].compute, []

    def overflow(query):
        maps = compute(query).clone()
        batches.append(len(maps))
        maps[2, :, 1, 1] = torch.nan
        return maps
    monkeypatch.setitem(METHODS, 'jointll', replace(METHODS['jointll'], compute=overflow))
    photos = sorted((roots_of(tiny_birds)[0] / 'ToyBirds/images/001.Toy_A1').glob('*_test_*.jpg'))
    photos += sorted((roots_of(tiny_birds)[0] / 'ToyBirds/images/002.Toy_A2').glob('*_test_*.jpg'))
    images = photos if name == 'inference' else []
    split = 'val' if name == 'eval_wsol' else 'test'
    third = photos[2].name if name == 'inference' else open_birds(tiny_birds, split)[0].image_id(2)
    refused(script(name, *images, *tiny_birds, '--experiment_name=CALM_EM', *(['--output=out'] if images else [])),
            third, 'infinite or no number')
    assert len(batches) == 1 and not (tmp_path / 'out').exists()
    assert not any(result_paths(save / 'CALM_EM', metric) for metric in EVALUATIONS.values())


@pytest.mark.parametrize('name', EVALUATIONS)
def test_maps_that_show_nothing_are_counted_and_said_once(script, tiny_birds, save, name):
    def forget(content):
        content['state_dict']['conv_last.weight'] *= 0
    change_checkpoint(save / 'CAM' / weights.FILE, forget)
    images, _ = open_birds(tiny_birds)
    code, _, err = script(name, *tiny_birds, '--experiment_name=CAM')
    assert code == 0 and f'images have a map with one value everywhere, which shows no place; the first: {images.image_id(0)}' in err
    assert (f'for all {len(images)} images: no map can say' in err) == (name != 'eval_cue_location')  # it asks no probabilities


# --- the sources themselves ----------------------------------------------------------------------------------------

def test_a_networks_source_gives_the_librarys_maps_and_the_probabilities_of_the_same_forward(tiny_birds, trained, forwards):
    images, data = open_birds(tiny_birds)
    model, _ = weights.load_model(trained / 'CALM_EM')
    batch, indices = torch.stack([images[index][0] for index in (4, 9)]), torch.tensor([4, 9])
    classes = torch.tensor([[1, 2, 3], [5, 2, 0]])
    for process in ('jointll', 'gtcond', 'saliency', 'random', 'jointll-superclass'):
        members = data.superclasses(images.class_names, None, data.num_classes)
        source = NetworkMaps(images, model, process, seed=2, superclasses=members)
        forwards.clear()
        answer = source(batch, indices, classes)
        assert forwards == [2]
        expected = attribution_maps(model, batch, classes, process, seeds=2 * 1_000_003 + indices, superclasses=members)
        assert torch.equal(answer.maps, expected)
        torch.testing.assert_close(answer.probs.sum(1), torch.ones(2))
        assert source.per_class == (process in ('jointll', 'gtcond', 'jointll-superclass'))
        if process == 'jointll':
            torch.testing.assert_close(answer.maps.sum((2, 3)), answer.probs.gather(1, classes))
