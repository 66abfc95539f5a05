"""Results: each knows what it was measured on, none takes another's place, and the defaults are the head's."""
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
    open_birds,
    paint_folder,
    read_result,
    refused,
    result_paths,
    roots_of,
    without,
)
from PIL import Image

from dataset import toybirds
from experiment import checkpoint_files, result_files, weights
from research import commands
from wsol import build_model
from wsol.errors import UserError

EVALUATIONS = {'eval_pixel_perturb': 'pixel_perturb', 'eval_cue_location': 'cue_location', 'eval_wsol': 'wsol'}
WITH_NORM = {'eval_pixel_perturb': 0, 'eval_wsol': 1, 'eval_cue_location': 2}  # how many of norm, thresholds are in the name


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- defaults by head -------------------------------------------------------------------------------------------

@pytest.mark.parametrize('method, process, norm, thresholds', [
    ('CAM', 'vanilla', 'minmax', 'even'), ('CALM_EM', 'jointll', 'clipping', 'log'), ('CALM_ML', 'jointll', 'clipping', 'log')])
@pytest.mark.parametrize('name', EVALUATIONS)
def test_an_evaluations_defaults_are_the_heads(script, tiny_birds, save, name, method, process, norm, thresholds):
    if name == 'eval_wsol':
        norm = 'minmax'  # its thresholds are shares of a map's range
    code, out, err = script(name, *tiny_birds, f'--experiment_name={method}', '--cam_curve_interval=0.02')
    assert code == 0, err
    assert f'maps: {method}_{process}' in out
    path, = result_paths(save / method, EVALUATIONS[name])
    chosen = [norm, thresholds][:WITH_NORM[name]]
    assert path.name.split('.')[0] == '_'.join([EVALUATIONS[name], 'ToyBirds', method, process, *chosen])
    settings = json.loads(path.read_text())['settings']
    assert settings['score_map_process'] == process
    for flag, word, value in (('norm_type', 'norm', norm), ('threshold_type', 'thresholds', thresholds)):
        if flag in settings:
            assert settings[flag] == value and f'{word} {value}' in out
    assert 'norm_type' in settings or name == 'eval_pixel_perturb'
    assert ('threshold_type' in settings) == (name == 'eval_cue_location')


def test_defaults_are_the_flags_stated(script, tiny_birds, save):
    """Stating what is the default gives the same result; another norm or other thresholds another file."""
    base = [*tiny_birds, '--experiment_name=CALM_EM']
    stated = ['--score_map_process=jointll', '--norm_type=clipping', '--threshold_type=log']
    results = []
    for flags in ([], stated, ['--norm_type=minmax'], ['--threshold_type=even']):
        before = set(result_paths(save / 'CALM_EM', 'cue_location'))
        assert script('eval_cue_location', *base, *flags)[0] == 0
        results.append((read_result(save / 'CALM_EM', 'cue_location', 'clipping_log'),
                        set(result_paths(save / 'CALM_EM', 'cue_location')) - before))
    assert results[0][0]['pxap'] == results[1][0]['pxap'] and not results[1][1]
    assert len(results[2][1]) == len(results[3][1]) == 1


@pytest.mark.parametrize('process, norm, thresholds', [
    ('gtcond', 'clipping', 'log'), ('saliency', 'clipping', 'log'), ('vanilla', 'minmax', 'even'),
    ('random', 'minmax', 'even'), ('object_mask', 'minmax', 'even')])
def test_the_defaults_follow_the_maps_and_not_the_head_alone(script, tiny_birds, save, process, norm, thresholds):
    code, out, err = script('eval_cue_location', *tiny_birds, '--experiment_name=CALM_EM', f'--score_map_process={process}')
    assert code == 0, err
    assert f'maps: CALM_EM_{process}, norm {norm}, thresholds {thresholds}' in out


@pytest.mark.parametrize('method, process', [('CAM', 'vanilla'), ('CALM_EM', 'jointll')])
def test_inferences_default_is_the_heads_too(script, tiny_birds, save, tmp_path, method, process):
    photo = next((roots_of(tiny_birds)[0] / 'ToyBirds/images').rglob('*_test_*.jpg'))
    code, out, err = script('inference', photo, *tiny_birds, f'--experiment_name={method}', '--output=out')
    assert code == 0, err
    assert f'maps: {method}_{process}' in out
    manifest = json.loads((tmp_path / 'out/manifest.json').read_text())
    assert list(manifest['methods']) == [process] == manifest['settings']['score_map_process']
    entry, = manifest['images']
    model, checkpoint = weights.load_model(save / method)
    assert manifest['weights_sha256'] == checkpoint.sha256
    images, _ = open_birds(tiny_birds)
    index = images.image_ids.tolist().index(f'{photo.parent.name}/{photo.name}'.encode())
    with torch.no_grad():
        logits = model.activations(images[index][0][None]).logits[0]
        expected = logits[entry['class']]
        if process == 'jointll':
            expected = logits.softmax(0)[entry['class']] * model.activations(images[index][0][None]).prior[0]
    np.testing.assert_allclose(np.load(tmp_path / 'out' / entry['maps'][process]), expected, rtol=1e-4, atol=1e-7)


# --- what a result says of itself, and where it goes --------------------------------------------------------------

@pytest.mark.parametrize('name', EVALUATIONS)
def test_a_result_records_what_it_was_measured_on(script, tiny_birds, save, name):
    assert script(name, *tiny_birds, '--experiment_name=CALM_EM')[0] == 0
    result = read_result(save / 'CALM_EM', EVALUATIONS[name])
    checkpoint = torch.load(save / 'CALM_EM' / weights.FILE, weights_only=True)
    images, _ = open_birds(tiny_birds)
    assert result['metric'] == EVALUATIONS[name] and result['dataset'] == 'ToyBirds' and result['split'] == 'test'
    assert result['images'] == 36 and result['images_sha256'] == images.fingerprint()
    assert result['checkpoint'] == f'save/CALM_EM/{weights.FILE}' and result['epoch'] == checkpoint['epoch'] == 3
    assert result['weights_sha256'] == weights.weights_sha256(checkpoint['state_dict'])
    settings = result['settings']
    assert settings['seed'] == 3 and settings['crop_size'] == SIZE and settings['architecture'] == 'resnet18'
    assert settings['last_stage'] == 'layer1' and settings['attribution_method'] == 'CALM_EM'
    assert not {'epochs', 'lr', 'given', 'momentum', 'output'} & settings.keys()  # what no evaluation reads
    assert result['versions']['torch'] == torch.__version__ and result['versions']['numpy'] == np.__version__
    assert result['command'][0] == f'{name}.py' and '--experiment_name=CALM_EM' in result['command']


def test_a_trainings_result_records_the_same(tiny_birds, trained):
    checkpoint = torch.load(trained / 'CALM_ML' / weights.FILE, weights_only=True)
    result = json.loads((trained / 'CALM_ML/results.json').read_text())
    assert result['dataset'] == 'ToyBirds' and result['images'] == 36 and result['epoch'] == 3
    assert result['weights_sha256'] == weights.weights_sha256(checkpoint['state_dict'])
    assert result['settings']['seed'] == 3 and result['settings']['lr'] == 0.01


def test_the_hash_of_the_weights_sees_every_value_name_and_type():
    state = {'a': torch.arange(6.).view(2, 3), 'b': torch.tensor(3)}
    known = weights.weights_sha256(state)
    assert known == weights.weights_sha256(dict(reversed(state.items())))
    changed = [{'a': state['a'].view(3, 2)}, {'a': state['a'].double()}, {'b': torch.tensor(4)},
               {'a': state['a'].index_fill(0, torch.tensor([1]), -1)}, {'c': state['b']}]
    assert len({known, *(weights.weights_sha256(state | change) for change in changed)}) == 6
    assert known == weights.weights_sha256({'a': state['a'].T.contiguous().T, 'b': state['b']})  # the layout is not a value


def test_the_same_command_twice_gives_the_same_bytes(script, tiny_birds, save):
    commands = [('eval_pixel_perturb', '--score_map_process=random'), ('eval_cue_location',), ('eval_wsol',),
                ('eval_pixel_perturb', '--score_map_process=smooth_grad', '--smooth_grad_nr_iter=2'),
                ('main', '--is_train=False')]
    states = []
    for _ in range(2):
        for name, *flags in commands:
            code, out, err = script(name, *tiny_birds, '--experiment_name=CALM_EM', *flags)
            assert code == 0 and 'replaces' not in out, err
        states.append(contents(save / 'CALM_EM'))
    assert states[0] == states[1] and sum(name.endswith('.json') for name in states[0]) == 6


def test_a_result_of_another_seed_stands_beside_the_first(script, tiny_birds, save):
    flags = [*without(tiny_birds, 'seed'), '--experiment_name=CALM_ML', '--score_map_process=random']
    for seed in (1, 2, 1):
        code, out, err = script('eval_pixel_perturb', *flags, f'--seed={seed}')
        assert code == 0 and 'replaces' not in out, err
    results = [json.loads(path.read_text()) for path in result_paths(save / 'CALM_ML', 'pixel_perturb')]
    assert sorted(result['settings']['seed'] for result in results) == [1, 2]
    assert results[0]['ratios'] != results[1]['ratios']


def test_a_rerun_that_differs_in_nothing_that_is_measured_says_what_it_replaces(script, tiny_birds, save):
    flags = [*tiny_birds, '--experiment_name=CALM_ML', '--score_map_process=random']
    for size in (7, 9):
        code, out, err = script('eval_pixel_perturb', *flags, f'--batch_size={size}')
        assert code == 0 and ('replaces an earlier result (batch_size was 7, is 9)' in out) == (size == 9), err
    assert len(result_paths(save / 'CALM_ML', 'pixel_perturb')) == 1


def test_flags_that_a_method_does_not_read_make_no_other_result(script, tiny_birds, save):
    for flags in ([], ['--smooth_grad_nr_iter=3', '--integrated_grad_nr_iter=2', '--smooth_grad_sigma=2']):
        assert script('eval_pixel_perturb', *tiny_birds, '--experiment_name=CALM_ML', *flags)[0] == 0
    path, = result_paths(save / 'CALM_ML', 'pixel_perturb')
    assert commands.result(save / 'CALM_ML', 'pixel_perturb', 'jointll', '--seed=3') == json.loads(path.read_text())
    for copies in (2, 3):
        assert script('eval_pixel_perturb', *tiny_birds, '--experiment_name=CALM_ML', '--score_map_process=smooth_grad',
                      f'--smooth_grad_nr_iter={copies}')[0] == 0
    assert len(result_paths(save / 'CALM_ML', 'pixel_perturb')) == 3


def test_an_evaluation_replaces_only_its_own_result(script, tiny_birds, save):
    """Another process, norm or metric leaves every file as it was; the same one with another batch changes its own two."""
    base = [*tiny_birds, '--experiment_name=CALM_ML']
    runs = [('eval_pixel_perturb', '--score_map_process=saliency'), ('eval_pixel_perturb', '--score_map_process=gtcond'),
            ('eval_wsol', '--score_map_process=gtcond'), ('eval_wsol', '--score_map_process=gtcond', '--norm_type=max')]
    before = contents(save / 'CALM_ML')
    for number, (name, *flags) in enumerate(runs):
        code, out, err = script(name, *base, *flags)
        assert code == 0 and 'replaces' not in out, err
        after = contents(save / 'CALM_ML')
        assert len(after) == len(before) + 2, number  # the figures as JSON and as a picture
        assert all(after[file] == content for file, content in before.items())
        before = after
    code, out, err = script('eval_pixel_perturb', *base, '--batch_size=9', '--score_map_process=saliency')
    assert code == 0 and 'is 9' in out, err
    after = contents(save / 'CALM_ML')
    changed = {file for file in after if after[file] != before.get(file)}
    assert after.keys() == before.keys() and all('saliency' in file for file in changed)
    assert len([file for file in changed if file.endswith('.json')]) == 1


def test_two_lists_of_images_give_two_results(script, tiny_birds, save, tmp_path):
    """The same network on two paintings of other sizes, both named ToyBirds."""
    toybirds.paint_dataset(tmp_path / 'data', tmp_path / 'meta', {'train': 1, 'val': 1, 'test': 1}, seed=6)
    other = [*without(tiny_birds, 'data_root', 'metadata_root'), f'--data_root={tmp_path / "data"}', f'--metadata_root={tmp_path / "meta"}']
    for flags in (tiny_birds, other):
        for name in ('eval_pixel_perturb', 'eval_wsol'):
            code, out, err = script(name, *flags, '--experiment_name=CAM')
            assert code == 0 and 'replaces' not in out, err
    for metric in ('pixel_perturb', 'wsol'):
        results = [json.loads(path.read_text()) for path in result_paths(save / 'CAM', metric)]
        assert sorted(result['images'] for result in results) == [18, 36]
        assert len({result['weights_sha256'] for result in results}) == 1
        assert len({result['images_sha256'] for result in results}) == 2


def test_other_images_under_the_same_names_give_a_result_of_their_own(script, tiny_birds, save, tmp_path):
    """Two roots whose images have one list of names, as CUB and CUB with the background painted over."""
    for root, copy in zip(roots_of(tiny_birds), ('data', 'meta'), strict=True):
        shutil.copytree(root, tmp_path / copy)
    for path in (tmp_path / 'data/ToyBirds/images').rglob('*_test_*.jpg'):
        with Image.open(path) as image:
            image.convert('L').convert('RGB').save(path)
    other = [*without(tiny_birds, 'data_root', 'metadata_root'), f'--data_root={tmp_path / "data"}', f'--metadata_root={tmp_path / "meta"}']
    for flags in (tiny_birds, other):
        assert script('eval_pixel_perturb', *flags, '--experiment_name=CAM')[0] == 0
    assert len(result_paths(save / 'CAM', 'pixel_perturb')) == 2


def test_two_folders_of_one_name_give_two_results(script, tmp_path):
    folders = [paint_folder(tmp_path / where / 'pets', counts=(2, 1, count)) for where, count in (('a', 1), ('b', 1))]
    assert script('main', *OWN_FLAGS, f'--dataset={folders[0]}')[0] == 0
    for folder in folders:
        code, out, err = script('eval_pixel_perturb', f'--dataset={folder}', '--workers=0')
        assert code == 0 and 'replaces' not in out, err
    assert len(result_paths(tmp_path / 'save/result', 'pixel_perturb')) == 2


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
    for name in ('CAM', 'other'):
        for evaluated in ('eval_pixel_perturb', 'eval_wsol'):
            code, out, err = script(evaluated, *tiny_birds, f'--load_checkpoint={name}', '--experiment_name=both')
            assert code == 0 and 'replaces' not in out, err
    own = {name: weights.read_checkpoint(save / name / weights.FILE).sha256 for name in ('CAM', 'other')}
    for metric in ('pixel_perturb', 'wsol'):
        results = {json.loads(path.read_text())['weights_sha256']: json.loads(path.read_text())
                   for path in result_paths(save / 'both', metric)}
        assert results.keys() == set(own.values())
        found = result_files.find_result(save / 'both', metric, 'vanilla', own['other'], seed=3)
        assert found == results[own['other']] != results[own['CAM']]


@pytest.mark.parametrize('flag', ['--cam_curve_interval=0.1', '--precision=bfloat16', '--seed=9', '--crop_size=48',
                                  '--threshold_type=log', '--drop_lowest=10', '--norm_type=max'])
def test_a_result_of_other_settings_is_not_the_one_that_is_asked_for(script, tiny_birds, save, flag):
    """Neither takes the other's place: commands that print tables measure again, and mix nothing."""
    own, name = [*without(tiny_birds, 'seed', 'crop_size'), '--experiment_name=CAM'], flag.partition('=')[0].strip('-')
    assert script('eval_cue_location', *own, flag)[0] == 0
    with pytest.raises(UserError, match='no result of cue_location with --score_map_process=vanilla'):
        commands.result(save / 'CAM', 'cue_location', 'vanilla')
    code, out, _ = script('eval_cue_location', *own)
    assert code == 0 and 'replaces' not in out
    standard, found = (commands.result(save / 'CAM', 'cue_location', 'vanilla', *flags) for flags in ([], [flag]))
    assert standard['settings'][name] != found['settings'][name]


def test_a_result_on_other_images_is_not_the_one_that_is_asked_for(script, tiny_birds, save, tmp_path):
    """As of a data set that was painted anew, or a part of it: the latest result is of these."""
    toybirds.paint_dataset(tmp_path / 'data', tmp_path / 'meta', {'train': 1, 'val': 1, 'test': 1}, seed=6)
    roots = [f'--data_root={tmp_path / "data"}', f'--metadata_root={tmp_path / "meta"}']
    own = [*without(tiny_birds, 'seed'), '--experiment_name=CAM', '--score_map_process=random']
    for flags in (own, [*own, *roots]):
        assert script('eval_pixel_perturb', *flags)[0] == 0
    trained = result_files.read_result(save / 'CAM' / 'results.json')
    assert commands.result(save / 'CAM', 'pixel_perturb', 'random')['images_sha256'] == trained['images_sha256']
    stated = {'data_root': str(tmp_path / 'data'), 'metadata_root': str(tmp_path / 'meta')}
    assert commands.result(save / 'CAM', 'pixel_perturb', 'random', **stated)['images'] == 18


def test_results_go_to_the_checkpoints_experiment_unless_one_is_named(script, tiny_birds, save):
    base = [*tiny_birds, '--score_map_process=random']
    assert script('eval_pixel_perturb', *base, '--load_checkpoint=CALM_ML')[0] == 0
    assert len(result_paths(save / 'CALM_ML', 'pixel_perturb')) == 1
    assert script('eval_pixel_perturb', *base, f'--load_checkpoint={save / "CALM_ML"}', '--experiment_name=elsewhere')[0] == 0
    assert len(result_paths(save / 'elsewhere', 'pixel_perturb')) == 1
    assert not (save / 'result').exists()
    (save / 'nested/deep').mkdir(parents=True)
    shutil.copy(save / 'CAM' / weights.FILE, save / 'nested/deep')
    assert script('eval_pixel_perturb', *base, '--load_checkpoint=nested/deep')[0] == 0
    assert len(result_paths(save / 'nested/deep', 'pixel_perturb')) == 1


def test_the_results_of_a_network_that_was_trained_over_are_not_taken_for_the_new_ones(script, tmp_path):
    folder = paint_folder(tmp_path / 'pets', counts=(2, 1, 1))
    flags, own = [*without(OWN_FLAGS, 'seed'), f'--dataset={folder}'], tmp_path / 'save/result'

    def trained():
        return weights.read_checkpoint(own / weights.FILE).sha256
    assert script('main', *flags, '--seed=0')[0] == 0
    assert script('eval_pixel_perturb', '--workers=0')[0] == 0
    old = trained()
    assert result_files.find_result(own, 'pixel_perturb', 'vanilla', old)['weights_sha256'] == old
    assert result_files.read_result(own / 'results.json')['weights_sha256'] == old
    refused(script('main', *flags, '--seed=1', '--override_cache', '--lr=1e30'), '--lr')
    assert trained() == old  # which nothing has replaced: the results go on being those of the network that is there
    assert result_files.read_result(own / 'results.json')['weights_sha256'] == old

    code, out, err = script('main', *flags, '--seed=1', '--override_cache')
    assert code == 0 and 'replaces' not in out, err
    new = trained()
    assert new != old and result_files.read_result(own / 'results.json')['weights_sha256'] == new
    with pytest.raises(UserError, match='no result of pixel_perturb'):
        result_files.find_result(own, 'pixel_perturb', 'vanilla', new)
    assert script('eval_pixel_perturb', '--workers=0')[0] == 0
    assert result_files.find_result(own, 'pixel_perturb', 'vanilla', new)['weights_sha256'] == new
    with pytest.raises(UserError, match='no result of wsol'):
        result_files.find_result(own, 'wsol', 'vanilla', new)
    with pytest.raises(UserError, match='score_map_process=random'):
        result_files.find_result(own, 'pixel_perturb', 'random', new)


def test_results_json_goes_with_the_network_that_is_replaced(script, tmp_path, monkeypatch):
    folder = paint_folder(tmp_path / 'pets', counts=(2, 1, 1))
    flags, own = [*OWN_FLAGS, f'--dataset={folder}'], tmp_path / 'save/result'
    assert script('main', *flags)[0] == 0
    there, save = [], checkpoint_files.save

    def watch(*inputs, **options):
        before = (own / 'results.json').exists()
        save(*inputs, **options)
        there.append((before, (own / 'results.json').exists()))
    monkeypatch.setattr(checkpoint_files, 'save', watch)
    assert script('main', *flags, '--override_cache')[0] == 0
    assert there == [(True, False)] and (own / 'results.json').exists()


def test_weights_alone_with_another_prior_are_another_network(script, tiny_birds, save):
    """Which the weights do not tell: each network has a file of its own."""
    content = torch.load(save / 'CALM_EM' / weights.FILE, weights_only=True)
    torch.save({'state_dict': content['state_dict']}, 'alone.pth')
    for prior in ('relu', 'softplus'):
        code, out, err = script('eval_wsol', *tiny_birds, '--architecture=resnet18', '--last_stage=layer1', f'--prior={prior}',
                                '--attribution_method=CALM_EM', '--load_checkpoint=alone.pth')
        assert code == 0 and 'replaces' not in out, err
    found = [json.loads(path.read_text())['settings']['prior'] for path in result_paths(Path('save/result'), 'wsol')]
    assert sorted(found) == ['relu', 'softplus']


# --- published weights --------------------------------------------------------------------------------------------

def test_a_published_weights_results_go_to_a_folder_of_its_name(script, tiny_birds, save, tmp_path, monkeypatch):
    """A small network in the place of the published one."""
    content = torch.load(save / 'CALM_EM' / weights.FILE, weights_only=True)
    monkeypatch.setattr(weights, '_published_record', lambda name: {key: content[key] for key in ('model', 'args')})
    monkeypatch.setattr(weights.download, 'urllib', None)  # nothing is fetched
    (tmp_path / 'checkpoints').mkdir()
    torch.save({'state_dict': content['state_dict']}, tmp_path / 'checkpoints/CALM_EM-CUB.pth.tar')
    for name in ('CALM_EM-CUB', 'CALM-EM-CUB'):
        code, out, err = script('eval_pixel_perturb', *tiny_birds, f'--load_checkpoint={name}')
        assert code == 0 and 'maps: CALM_EM_jointll' in out, err
        result = read_result(tmp_path / 'save/CALM_EM-CUB', 'pixel_perturb')
        assert result['checkpoint'] == 'checkpoints/CALM_EM-CUB.pth.tar' and result['epoch'] is None
        assert result['weights_sha256'] == weights.weights_sha256(content['state_dict'])
    assert not (tmp_path / 'save/result').exists()
    own = read_result(save / 'CALM_EM-CUB', 'pixel_perturb')
    assert script('eval_pixel_perturb', *tiny_birds, '--load_checkpoint=CALM_EM')[0] == 0
    assert read_result(save / 'CALM_EM', 'pixel_perturb')['ratios'] == own['ratios']
    # a file that is no longer the one first seen is not evaluated
    torch.save({'state_dict': content['state_dict'], 'more': 1}, tmp_path / 'checkpoints/CALM_EM-CUB.pth.tar')
    refused(script('eval_pixel_perturb', *tiny_birds, '--load_checkpoint=CALM_EM-CUB'), 'CALM_EM-CUB.pth.tar', 'published.lock.json')


def test_the_published_record_is_the_published_network(script, tiny_birds, tmp_path):
    """ResNet-50 with 28x28 maps of 200 classes, its weights under the names of the published file."""
    torch.manual_seed(0)
    state = build_model('resnet50', 'CALM_EM', 200, large_feature_map=True).state_dict()
    (tmp_path / 'checkpoints').mkdir()
    torch.save({'state_dict': {f'module.{name}': value for name, value in state.items()}},
               tmp_path / 'checkpoints/CALM_EM-CUB.pth.tar')
    photo = next((roots_of(tiny_birds)[0] / 'ToyBirds/images').rglob('*_test_*.jpg'))
    code, out, err = script('inference', photo, '--load_checkpoint=CALM_EM-CUB', '--output=out', '--device=cpu')
    assert code == 0 and 'maps: CALM_EM_jointll' in out, err
    entry, = json.loads((tmp_path / 'out/manifest.json').read_text())['images']
    values = np.load(tmp_path / 'out' / entry['maps']['jointll'])
    assert values.shape == (28, 28) and values.sum() == pytest.approx(entry['probability'], rel=1e-4)
    assert entry['class_name'] == f'class {entry["class"]}'


def test_every_published_name_has_a_record():
    for name in weights.PUBLISHED:
        record = weights._published_record(name)
        method, dataset = name.split('-')
        assert record['model']['attribution_method'] == method
        assert record['model']['num_classes'] == {'CUB': 200, 'OpenImages': 100, 'ImageNet': 1000}[dataset]
        assert record['args']['dataset'] == {'ImageNet': 'ILSVRC'}.get(dataset, dataset)
        assert weights.published_name(name.replace('_', '-').replace('ImageNet', 'ILSVRC') + '/') == name
    assert weights.published_name('CALM_EM') is None
