"""Results: each knows what it was measured on, none takes another's place, and each is found again by its settings.

Most tests ask where the result of a command goes, and write one there, without the evaluation itself.
"""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    OWN_FLAGS,
    SIZE,
    change_checkpoint,
    flags_of,
    open_birds,
    paint_folder,
    read_result,
    refused,
    result_paths,
    roots_of,
    without,
)
from PIL import Image

import eval_cue_location
from dataset import toybirds
from evaluation import session
from experiment import checkpoint_files, result_files, weights
from research import commands
from wsol.errors import UserError

METRICS = {'eval_pixel_perturb': 'pixel_perturb', 'eval_cue_location': 'cue_location', 'eval_wsol': 'wsol'}


def open_maps(name, *flags):
    """What an evaluation opens for a command line: (Network, DataSet, Maps)."""
    args = flags_of(name, [*map(str, flags)])
    if name == 'eval_cue_location':
        network, data, (maps,) = eval_cue_location.open_maps(args)
        return network, data, maps
    network = session.open_network(args)
    data = session.open_data(network)
    return network, data, session.choose_maps(network, data, METRICS[name])


def result_file(name, *flags):
    """The ResultFile of a command line."""
    network, data, maps = open_maps(name, *flags)
    return maps.result_file(network.open_split(data, 'test'))


def write(name, *flags):
    """Write a result as an evaluation with these flags would; returns its path."""
    result = result_file(name, *flags)
    result.write({'measured': 1})
    return result.path


# --- defaults by head -------------------------------------------------------------------------------------------

@pytest.mark.parametrize('head, method, norm, thresholds', [
    ('CAM', 'vanilla', 'minmax', 'even'), ('CALM_EM', 'jointll', 'clipping', 'log'), ('CALM_ML', 'jointll', 'clipping', 'log')])
def test_an_evaluations_defaults_are_the_heads(script, tiny_birds, save, head, method, norm, thresholds):
    expected = {'eval_pixel_perturb': [], 'eval_wsol': ['minmax'], 'eval_cue_location': [norm, thresholds]}
    for name, scale in expected.items():
        network, data, maps = open_maps(name, *tiny_birds, f'--experiment_name={head}')
        words = [f'{word} {value}' for word, value in zip(('norm', 'thresholds'), scale, strict=False)]
        assert maps.describe() == ', '.join([f'maps: {head}_{method}', *words, 'float32'])
        result = maps.result_file(network.open_split(data, 'test'))
        assert result.path.name.split('.')[0] == '_'.join([METRICS[name], 'ToyBirds', head, method, *scale])
        settings = result.identity['settings']
        assert settings['score_map_process'] == method
        assert [settings[flag] for flag in ('norm_type', 'threshold_type') if flag in settings] == scale


# --- what a result says of itself, and where it goes --------------------------------------------------------------

def test_a_result_records_what_it_was_measured_on(script, tiny_birds, save):
    checkpoint = torch.load(save / 'CALM_EM' / weights.FILE, weights_only=True)
    images, _ = open_birds(tiny_birds)
    assert script('eval_pixel_perturb', *tiny_birds, '--experiment_name=CALM_EM')[0] == 0
    for name, metric in METRICS.items():
        result = read_result(save / 'CALM_EM', metric) if metric == 'pixel_perturb' else result_file(
            name, *tiny_birds, '--experiment_name=CALM_EM').identity
        assert result['metric'] == metric and result['dataset'] == 'ToyBirds' and result['split'] == 'test'
        assert result['images'] == 36 and result['images_sha256'] == images.fingerprint()
        assert result['checkpoint'] == f'save/CALM_EM/{weights.FILE}' and result['epoch'] == checkpoint['epoch'] == 3
        assert result['weights_sha256'] == weights.weights_sha256(checkpoint['state_dict'])
        settings = result['settings']
        assert settings['seed'] == 3 and settings['crop_size'] == SIZE and settings['architecture'] == 'resnet18'
        assert settings['last_stage'] == 'layer1' and settings['attribution_method'] == 'CALM_EM'
        assert not {'epochs', 'lr', 'given', 'momentum', 'output'} & settings.keys()  # what no evaluation reads
    result = read_result(save / 'CALM_EM', 'pixel_perturb')
    assert result['versions']['torch'] == torch.__version__ and result['versions']['numpy'] == np.__version__
    assert result['command'][0] == 'eval_pixel_perturb.py' and '--experiment_name=CALM_EM' in result['command']


def test_the_hash_of_the_weights_sees_every_value_name_and_type():
    state = {'a': torch.arange(6.).view(2, 3), 'b': torch.tensor(3)}
    known = weights.weights_sha256(state)
    assert known == weights.weights_sha256(dict(reversed(state.items())))
    changed = [{'a': state['a'].view(3, 2)}, {'a': state['a'].double()}, {'b': torch.tensor(4)},
               {'a': state['a'].index_fill(0, torch.tensor([1]), -1)}, {'c': state['b']}]
    assert len({known, *(weights.weights_sha256(state | change) for change in changed)}) == 6
    assert known == weights.weights_sha256({'a': state['a'].T.contiguous().T, 'b': state['b']})  # the layout is not a value


@pytest.mark.parametrize('command', [
    ('eval_pixel_perturb', '--score_map_process=smooth_grad', '--smooth_grad_nr_iter=2'),
    ('eval_cue_location', '--cam_curve_interval=0.02'), ('eval_wsol', '--score_map_process=random', '--cam_curve_interval=0.02'),
    ('main', '--is_train=False')], ids=lambda command: command[0])
def test_the_same_command_twice_gives_the_same_bytes(script, tiny_birds, save, command):
    states = []
    for _ in range(2):
        code, out, err = script(command[0], *tiny_birds, '--experiment_name=CALM_EM', *command[1:])
        assert code == 0 and 'replaces' not in out, err
        states.append({path.name: path.read_bytes() for path in (save / 'CALM_EM').iterdir()})
    assert states[0] == states[1] and sum(name.endswith('.json') for name in states[0]) == 2


SAME, ANOTHER = True, False


@pytest.mark.parametrize('name, flags, kind', [
    *(('eval_cue_location', flag, ANOTHER) for flag in (
        '--cam_curve_interval=0.1', '--precision=bfloat16', '--seed=9', '--crop_size=48', '--threshold_type=log',
        '--drop_lowest=10', '--norm_type=max', '--contrast_method=log-odds', '--score_map_process=random', '--skip_broken')),
    *(('eval_cue_location', flag, SAME) for flag in (
        '--score_map_process=vanilla', '--norm_type=minmax', '--threshold_type=even', '--contrast_method=difference',
        '--batch_size=9', '--smooth_grad_nr_iter=3', '--integrated_grad_nr_iter=2', '--smooth_grad_sigma=2')),
    ('eval_pixel_perturb', '--norm_type=max', SAME), ('eval_wsol', '--norm_type=max', ANOTHER),
    ('eval_wsol', '--iou_thresholds=50', ANOTHER), ('eval_wsol', '--threshold_type=log', SAME)])
def test_a_result_of_settings_that_bear_on_it_has_a_file_of_its_own(script, tiny_birds, save, name, flags, kind):
    base = [*without(tiny_birds, 'seed', 'crop_size'), '--experiment_name=CAM']
    assert (result_file(name, *base).path == result_file(name, *base, flags).path) == kind


def test_samples_count_where_a_method_draws_them(script, tiny_birds, save):
    base = ['eval_pixel_perturb', *tiny_birds, '--experiment_name=CAM', '--score_map_process=smooth_grad']
    assert len({result_file(*base, f'--smooth_grad_nr_iter={copies}').path for copies in (2, 3)}) == 2
    assert result_file(*base, '--integrated_grad_nr_iter=2').path == result_file(*base).path


def test_a_rerun_says_what_it_replaces(script, tiny_birds, save, capsys):
    base = ['eval_pixel_perturb', *tiny_birds, '--experiment_name=CALM_ML', '--score_map_process=random']
    before = write(*base, '--batch_size=7').read_bytes()
    for size, says in ((7, False), (9, True)):
        capsys.readouterr()
        write(*base, f'--batch_size={size}')
        assert ('replaces an earlier result (batch_size was 7, is 9)' in capsys.readouterr().out) == says
    path, = result_paths(save / 'CALM_ML', 'pixel_perturb')
    assert path.read_bytes() != before


def test_other_images_give_a_result_of_their_own(script, tiny_birds, save, tmp_path):
    """A painting of another size, and other content under the same names, as CUB with the background painted over."""
    toybirds.paint_dataset(tmp_path / 'data', tmp_path / 'meta', {'train': 1, 'val': 1, 'test': 1}, seed=6)
    for root, copy in zip(roots_of(tiny_birds), ('same_data', 'same_meta'), strict=True):
        shutil.copytree(root, tmp_path / copy)
    for path in (tmp_path / 'same_data/ToyBirds/images').rglob('*_test_*.jpg'):
        with Image.open(path) as image:
            image.convert('L').convert('RGB').save(path)
    base = without(tiny_birds, 'data_root', 'metadata_root')
    roots = [roots_of(tiny_birds), ('data', 'meta'), ('same_data', 'same_meta')]
    results = [result_file(name, *base, f'--data_root={data}', f'--metadata_root={meta}', '--experiment_name=CAM')
               for name in ('eval_pixel_perturb', 'eval_wsol') for data, meta in roots]
    assert len({result.path for result in results}) == 6 and len({result.identity['weights_sha256'] for result in results}) == 1
    assert [result.identity['images'] for result in results] == 2 * [36, 18, 36]


def test_two_folders_of_one_name_give_two_results(script, tmp_path):
    folders = [paint_folder(tmp_path / where / 'pets', counts=(2, 1, count)) for where, count in (('a', 1), ('b', 1))]
    assert script('main', *OWN_FLAGS, f'--dataset={folders[0]}')[0] == 0
    assert len({result_file('eval_pixel_perturb', f'--dataset={folder}').path for folder in folders}) == 2


@pytest.fixture
def another_cam(save):
    """A second experiment of CAM with other weights."""
    shutil.copytree(save / 'CAM', save / 'other')
    for path in (save / 'other').glob('*.json'):
        path.unlink()

    def shift(content):
        content['state_dict']['conv_last.bias'] += torch.linspace(0, 2, 18)
    change_checkpoint(save / 'other' / weights.FILE, shift)
    return save / 'other'


def test_two_checkpoints_evaluated_into_one_experiment_give_two_results(script, tiny_birds, save, another_cam):
    sha256 = {name: weights.read_checkpoint(save / name / weights.FILE).sha256 for name in ('CAM', 'other')}
    for evaluation, metric in METRICS.items():
        paths = {name: write(evaluation, *tiny_birds, f'--load_checkpoint={name}', '--experiment_name=both') for name in sha256}
        assert len(set(paths.values())) == 2
        for name, path in paths.items():
            content = result_files.find_result(save / 'both', metric, 'vanilla', sha256[name], seed=3)
            assert content == result_files.read_result(save.parent / path) and content['weights_sha256'] == sha256[name]


def test_a_result_of_other_settings_is_not_the_one_that_is_asked_for(script, tiny_birds, save):
    """Commands that print tables measure again, and mix nothing."""
    base = ['eval_cue_location', *without(tiny_birds, 'seed', 'crop_size'), '--experiment_name=CAM']
    flags = ['--cam_curve_interval=0.1', '--precision=bfloat16', '--seed=9', '--crop_size=48', '--threshold_type=log',
             '--norm_type=max']
    for flag in (*flags, '--drop_lowest=10'):
        write(*base, flag)
    with pytest.raises(UserError, match='no result of cue_location with --score_map_process=vanilla'):
        commands.result(save / 'CAM', 'cue_location', 'vanilla')
    write(*base)
    usual = commands.result(save / 'CAM', 'cue_location', 'vanilla')['settings']
    assert usual['drop_lowest'] == 0
    dropped = commands.result(save / 'CAM', 'cue_location', 'vanilla', drop_lowest=10.0)  # as abstention asks for it
    assert dropped['settings'] == usual | {'drop_lowest': 10.0}
    for flag in flags:
        name = flag.partition('=')[0].strip('-')
        assert commands.result(save / 'CAM', 'cue_location', 'vanilla', flag)['settings'][name] != usual[name]


def test_a_result_of_an_earlier_layout_is_not_found(script, tiny_birds, save):
    """The counts of PxAP had other names: readers of the new ones would fail on it."""
    path = write('eval_cue_location', *without(tiny_birds, 'seed'), '--experiment_name=CAM')
    commands.result(save / 'CAM', 'cue_location', 'vanilla')
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != 'format'}))
    with pytest.raises(UserError, match='no result of cue_location'):
        commands.result(save / 'CAM', 'cue_location', 'vanilla')


def test_a_result_on_other_images_is_not_the_one_that_is_asked_for(script, tiny_birds, save, tmp_path):
    """As of a data set that was painted anew, or a part of it: the latest result is of these."""
    toybirds.paint_dataset(tmp_path / 'data', tmp_path / 'meta', {'train': 1, 'val': 1, 'test': 1}, seed=6)
    base = ['eval_pixel_perturb', *without(tiny_birds, 'seed'), '--experiment_name=CAM', '--score_map_process=random']
    write(*base)
    write(*base, f'--data_root={tmp_path / "data"}', f'--metadata_root={tmp_path / "meta"}')
    trained = result_files.read_result(save / 'CAM' / 'results.json')
    assert commands.result(save / 'CAM', 'pixel_perturb', 'random')['images_sha256'] == trained['images_sha256']
    stated = {'data_root': str(tmp_path / 'data'), 'metadata_root': str(tmp_path / 'meta')}
    assert commands.result(save / 'CAM', 'pixel_perturb', 'random', **stated)['images'] == 18


def test_results_go_to_the_checkpoints_experiment_unless_one_is_named(script, tiny_birds, save):
    def folder(*flags):
        return result_file('eval_pixel_perturb', *tiny_birds, *flags).path.parent
    assert folder('--load_checkpoint=CALM_ML') == Path('save/CALM_ML')
    assert folder(f'--load_checkpoint={save / "CALM_ML"}', '--experiment_name=elsewhere') == Path('save/elsewhere')
    (save / 'nested/deep').mkdir(parents=True)
    shutil.copy(save / 'CAM' / weights.FILE, save / 'nested/deep')
    assert folder('--load_checkpoint=nested/deep') == Path('save/nested/deep')


def test_the_results_of_a_network_that_was_trained_over_are_not_taken_for_the_new_ones(script, tmp_path, monkeypatch):
    flags = [*without(OWN_FLAGS, 'seed'), f'--dataset={paint_folder(tmp_path / "pets", counts=(2, 1, 1))}']
    folder, exists, save = tmp_path / 'save/result', [], checkpoint_files.save

    def trained():
        return weights.read_checkpoint(folder / weights.FILE).sha256

    def watch(*inputs, **options):
        before = (folder / 'results.json').exists()
        save(*inputs, **options)
        exists.append((before, (folder / 'results.json').exists()))
    assert script('main', *flags, '--seed=0')[0] == 0
    write('eval_pixel_perturb')
    old = trained()
    assert result_files.find_result(folder, 'pixel_perturb', 'vanilla', old)['weights_sha256'] == old
    assert result_files.read_result(folder / 'results.json')['weights_sha256'] == old
    refused(script('main', *flags, '--seed=1', '--override_cache', '--lr=1e30'), '--lr')
    assert trained() == old  # which nothing has replaced: the results go on being those of the network that is there
    assert result_files.read_result(folder / 'results.json')['weights_sha256'] == old

    monkeypatch.setattr(checkpoint_files, 'save', watch)
    code, out, err = script('main', *flags, '--seed=1', '--override_cache')
    assert code == 0 and 'replaces' not in out, err
    assert exists == [(True, False)]  # results.json goes with the network that is replaced
    new = trained()
    assert new != old and result_files.read_result(folder / 'results.json')['weights_sha256'] == new
    for metric, method in (('pixel_perturb', 'vanilla'), ('wsol', 'vanilla')):
        with pytest.raises(UserError, match=f'no result of {metric}'):
            result_files.find_result(folder, metric, method, new)
    write('eval_pixel_perturb')
    assert result_files.find_result(folder, 'pixel_perturb', 'vanilla', new)['weights_sha256'] == new
    with pytest.raises(UserError, match='score_map_process=random'):
        result_files.find_result(folder, 'pixel_perturb', 'random', new)


def test_weights_alone_with_another_prior_are_another_network(script, tiny_birds, save):
    """Which the weights do not tell: each network has a file of its own."""
    content = torch.load(save / 'CALM_EM' / weights.FILE, weights_only=True)
    torch.save({'state_dict': content['state_dict']}, 'alone.pth')
    flags = [*tiny_birds, '--architecture=resnet18', '--last_stage=layer1', '--attribution_method=CALM_EM', '--load_checkpoint=alone.pth']
    results = [result_file('eval_wsol', *flags, f'--prior={prior}') for prior in ('relu', 'softplus')]
    assert results[0].path != results[1].path
    assert [result.identity['settings']['prior'] for result in results] == ['relu', 'softplus']


# --- published weights --------------------------------------------------------------------------------------------

def test_a_published_weights_results_go_to_a_folder_of_its_name(script, tiny_birds, save, tmp_path, monkeypatch):
    """A small network in the place of the published one."""
    content = torch.load(save / 'CALM_EM' / weights.FILE, weights_only=True)
    monkeypatch.setattr(weights, '_published_record', lambda name: {key: content[key] for key in ('model', 'args')})
    monkeypatch.setattr(weights.download, 'urllib', None)  # nothing is fetched
    (tmp_path / 'checkpoints').mkdir()
    file = tmp_path / 'checkpoints/CALM_EM-CUB.pth.tar'
    torch.save({'state_dict': content['state_dict']}, file)
    for name in ('CALM_EM-CUB', 'CALM-EM-CUB'):
        result = result_file('eval_pixel_perturb', *tiny_birds, f'--load_checkpoint={name}')
        assert result.path.parent == Path('save/CALM_EM-CUB')
        assert result.identity['checkpoint'] == 'checkpoints/CALM_EM-CUB.pth.tar' and result.identity['epoch'] is None
        assert result.identity['weights_sha256'] == weights.weights_sha256(content['state_dict'])
    # a file that is no longer the one first seen is not evaluated
    torch.save({'state_dict': content['state_dict'], 'more': 1}, file)
    refused(script('eval_pixel_perturb', *tiny_birds, '--load_checkpoint=CALM_EM-CUB'), 'CALM_EM-CUB.pth.tar', 'published.lock.json')


def test_every_published_name_has_a_record():
    for name in weights.PUBLISHED:
        record = weights._published_record(name)
        method, dataset = name.split('-')
        assert record['model']['attribution_method'] == method
        assert record['model']['num_classes'] == {'CUB': 200, 'OpenImages': 100, 'ImageNet': 1000}[dataset]
        assert record['args']['dataset'] == {'ImageNet': 'ILSVRC'}.get(dataset, dataset)
        assert weights.published_name(name.replace('_', '-').replace('ImageNet', 'ILSVRC') + '/') == name
    assert weights.published_name('CALM_EM') is None
