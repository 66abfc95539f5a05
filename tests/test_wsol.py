"""eval_wsol.py and maps made elsewhere: real masks, a naive loop, the same results from files."""
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, shared
from munch import Munch

import config
import data_loaders
import eval_wsol
from checkpoints import loading
from dataset.metadata import read_boxes
from wsol import metrics
from wsol.attribution import attribution_maps

# --- OpenImages' real masks (the WSOL evaluation's unit tests give the pixel counts) --------------------------

REAL = {'val/0bt_c3/1cd9ac0169ec7df0.jpg': (43031, 7145), 'val/0bt_c3/3a29f0b33894d4a6.jpg': (833, 49342),
        'val/0bt_c3/3b3b9931325d65c9.jpg': (347, 13909)}


def mask_counts(tmp_path, image_id):
    (tmp_path / 'OpenImages').symlink_to(shared('openimages_masks'))
    args = Munch(dataset='OpenImages', metadata_root=str(shared('metadata')), mask_root=str(tmp_path), crop_size=224,
                 cam_curve_interval=0.01, norm_type='clipping')
    return eval_wsol.MaskCounts(args, 'val', np.array([image_id.encode()]))


@pytest.mark.parametrize('image_id', REAL)
def test_constant_maps_on_real_masks_score_the_share_of_the_object(tmp_path, image_id):
    counts, (true, false) = mask_counts(tmp_path, image_id), REAL[image_id]
    counts.add(counts.measure(np.full((224, 224), 0.5, np.float32), 0), None)
    assert metrics.pixel_average_precision(counts.counts) == pytest.approx(100 * true / (true + false), abs=0.1)


@pytest.mark.parametrize('image_id', REAL)
@pytest.mark.parametrize('ignored', [0.0, 1.0])
def test_perfect_maps_on_real_masks_score_100_whatever_the_ignored_pixels(tmp_path, image_id, ignored):
    counts = mask_counts(tmp_path, image_id)
    thing, counted = counts.truth(0)
    counts.add(counts.measure(np.where(counted, thing, ignored).astype(np.float32), 0), None)
    assert metrics.pixel_average_precision(counts.counts) == 100


# --- boxes: the script against a naive loop --------------------------------------------------------------------

@pytest.fixture(scope='module')
def trained(tiny_birds, tmp_path_factory):
    import sys

    import main
    save, before = tmp_path_factory.mktemp('save'), sys.argv
    sys.argv = ['main.py', *tiny_birds, *SMALL, f'--save_root={save}', '--attribution_method=CALM_EM', '--epochs=1']
    main.main()
    sys.argv = before
    return save


def load(tiny_birds, trained):
    args = config.parse('', [*tiny_birds, f'--save_root={trained}', '--batch_size=1', '--score_map_process=jointll',
                             '--seed=0'])
    return loading.load_model(args, torch.device('cpu'))


def test_wsol_agrees_with_a_naive_loop(script, tiny_birds, trained):
    code, out, err = script('eval_wsol', *tiny_birds, f'--save_root={trained}', '--score_map_process=jointll',
                            '--batch_size=1', '--cam_curve_interval=0.05', '--iou_thresholds', '20', '50')
    assert code == 0, err
    result = json.loads((trained / 'result/wsol_CALM_EM_jointll_minmax.json').read_text())['results']
    model, _, args = load(tiny_birds, trained)
    thresholds, hits = np.arange(0, 1, 0.05), {}
    for split in ('val', 'test'):
        dataset = data_loaders.open_split(args, split)
        boxes = read_boxes(data_loaders.metadata_folder(args, split), dataset.image_ids)
        rows = {name: [] for name in ('20', '50', 'largest', 'top1')}
        for index, label in enumerate(dataset.labels):
            image = dataset[index][0][None]
            with torch.no_grad():
                maps = attribution_maps(model, image, torch.tensor([label]), 'jointll')
                right = int(model(image).argmax()) == label
            score_map = eval_wsol.prepared(maps[0].numpy(), 56, 'minmax')
            truth = metrics.scale_boxes(boxes.of(index), boxes.sizes[index], (56, 56))
            every, largest = metrics.best_ious(score_map, truth, thresholds)
            for name, row in (('20', every >= .2), ('50', every >= .5), ('largest', largest >= .5),
                              ('top1', (largest >= .5) & right)):
                rows[name].append(row)
        hits[split] = {name: 100 * np.mean(row, 0) for name, row in rows.items()}
    for name, key, chooser in (('MaxBoxAccV2@20', '20', '20'), ('MaxBoxAccV2@50', '50', '50'),
                               ('MaxBoxAcc', 'largest', 'largest'), ('Top-1 Loc', 'top1', 'largest')):
        best = hits['val'][chooser].argmax()
        assert result[name] == pytest.approx({
            'val': hits['val'][key][best], 'test': hits['test'][key][best], 'oracle': hits['test'][key].max(),
            'threshold': thresholds[best]})
    mean = (result['MaxBoxAccV2@20']['test'] + result['MaxBoxAccV2@50']['test']) / 2
    assert result['MaxBoxAccV2']['test'] == pytest.approx(mean)
    assert result['GT-known Loc'] == result['MaxBoxAcc'] and result['Top-1 Loc']['test'] <= result['MaxBoxAcc']['test']


def test_a_perfect_map_finds_every_box(tiny_birds, trained):
    """The box itself as a map: found at every IoU and threshold but the rounding of x + w."""
    _, _, args = load(tiny_birds, trained)
    dataset = data_loaders.open_split(args, 'test')
    counts = eval_wsol.BoxCounts(args, 'test', dataset.image_ids)
    for index in range(len(dataset)):
        (x0, y0, x1, y1), = metrics.scale_boxes(counts.boxes.of(index), counts.boxes.sizes[index], (56, 56)).tolist()
        score_map = np.zeros((56, 56), np.float32)
        score_map[y0:y1 + 1, x0:x1 + 1] = 1
        counts.add(counts.measure(score_map, index), True)
    assert all((curve == 100).all() for name, curve in counts.curves().items() if name != 'MaxBoxAccV2@70')


def test_nothing_is_kept_per_image(tiny_birds, trained):
    _, _, args = load(tiny_birds, trained)
    dataset = data_loaders.open_split(args, 'test')
    counts = eval_wsol.BoxCounts(args, 'test', dataset.image_ids)

    def held():
        return len(pickle.dumps(counts))  # everything in it, arrays and lists alike
    counts.images = 1000  # a number of the size that it will have
    before = held()
    counts.images = 0
    for index in range(len(dataset)):
        counts.add(counts.measure(np.random.default_rng(index).random((56, 56)).astype(np.float32), index), True)
    assert counts.images == len(dataset)
    counts.images = 1000
    assert held() == before


# --- maps made elsewhere -----------------------------------------------------------------------------------------

@pytest.fixture
def map_files(tiny_birds, trained, tmp_path):
    """The network's own maps as files: <root>/<split>/<image_id>.npy, and per class for cue localization."""
    model, _, args = load(tiny_birds, trained)
    for split in ('val', 'test'):
        dataset = data_loaders.open_split(args, split)
        for index, label in enumerate(dataset.labels):
            image = dataset[index][0][None]
            with torch.no_grad():
                maps = attribution_maps(model, image, None, 'jointll')[0].numpy()
            name = f'{dataset.image_id(index)}.npy'
            for path, values in ((tmp_path / 'files' / split / name, maps[label]), *(
                    (tmp_path / 'files' / split / str(other) / name, values) for other, values in enumerate(maps))):
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, values)
    return tmp_path / 'files'


@pytest.mark.parametrize('evaluation, kind, needs_model', [
    ('eval_wsol', 'wsol', False), ('eval_cue_location', 'cue_location', False), ('eval_pixel_perturb', 'pixel_perturb', True)])
def test_maps_from_files_score_as_those_of_the_network(script, tiny_birds, trained, map_files, tmp_path, evaluation, kind,
                                                       needs_model):
    base = [*tiny_birds, f'--save_root={trained}', '--batch_size=1', '--norm_type=minmax']
    assert script(evaluation, *base, '--score_map_process=jointll', '--experiment_name=result')[0] == 0
    files = [*base, f'--scoremap_root={map_files}']
    model = ['--load_checkpoint=result'] if needs_model else ['--experiment_name=elsewhere']
    code, out, err = script(evaluation, *files, *model)
    assert code == 0, err
    suffix = '_even' if kind == 'cue_location' else ''
    own = json.loads((trained / f'result/{kind}_CALM_EM_jointll_minmax{suffix}.json').read_text())
    folder = trained / ('result' if needs_model else 'elsewhere')
    (path,) = folder.glob(f'{kind}_maps-files-*_minmax{suffix}.json')
    read = json.loads(path.read_text())
    if kind == 'wsol':
        own['results'].pop('Top-1 Loc')  # without a network there is no class
    key = {'wsol': 'results', 'cue_location': 'pxap', 'pixel_perturb': 'ratios'}[kind]
    assert read[key] == own[key]


def test_maps_of_any_size_are_taken(script, tiny_birds, trained, map_files):
    path = next(map_files.glob('test/*.Toy*/*.npy'))
    np.save(path, np.random.default_rng(0).random((13, 29)))
    code, _, err = script('eval_wsol', *tiny_birds, f'--save_root={trained}', f'--scoremap_root={map_files}')
    assert code == 0, err


@pytest.mark.parametrize('content, words', [
    (None, ['no score map', 'looked for']), (np.zeros((2, 2, 2)), ['two-dimensional', '(2, 2, 2)']),
    (np.full((3, 3), np.nan), ['infinite or no number']), (np.full((3, 3), 1e300), ['float32']), (b'no array', ['is no score map']),
    (b'PK\x03\x04 no zip', ['is no score map']), (np.ones((3, 3), complex), ['real numbers', 'complex128']),
    ({'a': np.ones(3)}, ['NpzFile'])])
def test_bad_maps_are_named(script, tiny_birds, trained, map_files, content, words):
    path = next(map_files.glob('test/*.Toy*/*.npy'))
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path.with_suffix('.npz'), **content)
        path.with_suffix('.npz').rename(path)
    elif content is not None:
        np.save(path, content)
    code, _, err = script('eval_wsol', *tiny_birds, f'--save_root={trained}', f'--scoremap_root={map_files}')
    assert code == 2 and all(word in err for word in (Path(path).name, *words)), err


def test_metadata_without_boxes_is_one_clear_error(script, tiny_birds, trained, tmp_path):
    import shutil
    meta = Path(next(flag.split('=')[1] for flag in tiny_birds if 'metadata' in flag))
    shutil.copytree(meta, tmp_path / 'meta')
    (tmp_path / 'meta/ToyBirds/val/localization.txt').write_text('')
    others = [flag for flag in tiny_birds if 'metadata' not in flag]
    code, _, err = script('eval_wsol', *others, f'--metadata_root={tmp_path / "meta"}', f'--save_root={trained}',
                          '--load_checkpoint=result')
    assert code == 2 and 'localization.txt is empty' in err
