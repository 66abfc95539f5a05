"""The scripts, end to end on a tiny ToyBirds: what they write, that it is right, that they can be interrupted."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL

import config
import util
from checkpoints import loading
from data_loaders import open_split
from wsol import metrics
from wsol.attribution import attribution_maps
from wsol.cub import CueAnnotations


@pytest.fixture(scope='module')
def trained(tiny_birds, tmp_path_factory):
    """A save_root with one experiment per method, trained for an epoch, and its flags."""
    import sys

    import main
    save = tmp_path_factory.mktemp('save')
    before = sys.argv
    for method in ('CAM', 'CALM_EM', 'CALM_ML'):
        sys.argv = ['main.py', *tiny_birds, *SMALL, f'--save_root={save}', f'--experiment_name={method}',
                    f'--attribution_method={method}', '--epochs=1']
        main.main()
    sys.argv = before
    return save


def flags(tiny_birds, save, method):
    return [*tiny_birds, f'--save_root={save}', f'--experiment_name={method}']


def weights(path):
    return torch.load(path / util.CHECKPOINT, weights_only=True)['state_dict']


def same(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_training_leaves_a_checkpoint_a_log_and_results(trained):
    for method in ('CAM', 'CALM_EM', 'CALM_ML'):
        checkpoint = torch.load(trained / method / util.CHECKPOINT, weights_only=True)
        assert checkpoint['epoch'] == 1 and checkpoint['architecture'] == 'resnet18'
        assert checkpoint['model']['attribution_method'] == method
        assert checkpoint['class_names'][0] == '001.Toy_A1'
        line, = (json.loads(text) for text in (trained / method / 'log.jsonl').read_text().splitlines())
        assert line['epoch'] == 1 and line['train_loss'] > 0 and 0 <= line['val_accuracy'] <= 100
        results = json.loads((trained / method / 'results.json').read_text())
        assert 0 <= results['test_accuracy'] <= 100 and results['settings']['seed'] == 3


def test_the_same_seed_trains_the_same_network_also_when_interrupted(script, tiny_birds, tmp_path):
    base = [*tiny_birds, *SMALL, '--attribution_method=CALM_EM', '--lr_decay_frequency=2']
    assert script('main', *base, '--epochs=2', '--experiment_name=straight')[0] == 0
    assert script('main', *base, '--epochs=1', '--experiment_name=resumed')[0] == 0
    code, out, _ = script('main', *base, '--epochs=2', '--experiment_name=resumed')
    assert code == 0 and '1 finished epochs' in out
    assert same(weights(tmp_path / 'save/straight'), weights(tmp_path / 'save/resumed'))
    logs = [(tmp_path / 'save' / name / 'log.jsonl').read_text().splitlines() for name in ('straight', 'resumed')]
    assert [len(log) for log in logs] == [2, 2]
    assert json.loads(logs[0][1])['lr'] == pytest.approx(0.001)  # divided at the start of epoch 2


def test_a_finished_training_is_not_repeated_and_override_starts_afresh(script, tiny_birds, tmp_path):
    base = [*tiny_birds, *SMALL, '--epochs=1']
    script('main', *base)
    before = (tmp_path / 'save/result' / util.CHECKPOINT).stat().st_mtime_ns
    code, out, _ = script('main', *base)
    assert code == 0 and 'override_cache' in out
    assert (tmp_path / 'save/result' / util.CHECKPOINT).stat().st_mtime_ns == before
    assert script('main', *base, '--override_cache', '--lr=0.02')[0] == 0
    assert (tmp_path / 'save/result' / util.CHECKPOINT).stat().st_mtime_ns != before
    assert len((tmp_path / 'save/result/log.jsonl').read_text().splitlines()) == 1


def test_other_settings_in_the_same_experiment_are_refused(script, tiny_birds, tmp_path):
    base = [*tiny_birds, *SMALL, '--epochs=1']
    script('main', *base)
    before = weights(tmp_path / 'save/result')
    code, _, err = script('main', *base, '--attribution_method=CALM_EM')
    assert code == 2 and 'attribution_method was CAM, is CALM_EM' in err and err.count('\n') == 1
    assert same(before, weights(tmp_path / 'save/result'))


def test_is_train_false_only_evaluates(script, tiny_birds, trained):
    before = (trained / 'CAM' / util.CHECKPOINT).read_bytes()
    code, out, _ = script('main', *flags(tiny_birds, trained, 'CAM'), '--is_train=False')
    assert code == 0 and 'accuracy' in out
    assert (trained / 'CAM' / util.CHECKPOINT).read_bytes() == before


def test_training_can_start_from_another_experiments_weights(script, tiny_birds, trained):
    start = [*tiny_birds, *SMALL, '--attribution_method=CALM_EM', '--epochs=1', '--lr=0', f'--save_root={trained}']
    code, _, _ = script('main', *start, '--experiment_name=started', '--load_checkpoint=CALM_ML')
    assert code == 0
    source, target = weights(trained / 'CALM_ML'), weights(trained / 'started')
    learned = [name for name in source if 'running' not in name and 'num_batches' not in name]
    assert all(torch.equal(source[name], target[name]) for name in learned)


@pytest.mark.parametrize('method, process, norm, thresholds', [
    ('CAM', 'vanilla', 'minmax', 'even'), ('CALM_EM', 'jointll', 'clipping', 'log')])
def test_cue_location_agrees_with_a_naive_loop(script, tiny_birds, trained, method, process, norm, thresholds):
    code, out, err = script('eval_cue_location', *flags(tiny_birds, trained, method), f'--score_map_process={process}',
                            f'--norm_type={norm}', f'--threshold_type={thresholds}', '--batch_size=1')
    assert code == 0, err
    assert 'exact part masks, each pair alone' in out and 'the paper' not in out
    stem = trained / method / f'cue_location_{method}_{process}_{norm}_{thresholds}'
    result = json.loads(stem.with_suffix('.json').read_text())
    assert stem.with_suffix('.png').stat().st_size > 1000

    args = config.parse('', flags(tiny_birds, trained, method))
    model, _, args = loading.load_model(args, torch.device('cpu'))
    test_set = open_split(args, 'test')
    annotations = CueAnnotations(Path(args.data_root) / 'ToyBirds')
    edges = metrics.bin_edges(thresholds)
    running = np.zeros((2, len(edges) - 1))
    values = {'published': [], 'per_pair': []}
    for pair in annotations.pairs:
        alone = np.zeros_like(running)
        for index, label in enumerate(test_set.labels):
            image_id = test_set.image_id(index)
            if label not in pair[:2] or annotations.pairs.index(pair) not in annotations.evaluated(image_id, label):
                continue
            with torch.no_grad():
                image = test_set[index][0][None]
                contrast = attribution_maps(model, image, torch.tensor([pair.first]), process,
                                            contrast=torch.tensor([pair.second])).abs()
            scores = metrics.normalise(metrics.resize(contrast, (56, 56)), norm)[0].numpy().astype(np.float64)
            truth = np.isin(annotations.partition(image_id, 56), pair.parts) & annotations.object_mask(image_id, 56)
            alone += [np.histogram(scores[truth == side], edges)[0] for side in (False, True)]
        running += alone
        for name, counts in (('published', running), ('per_pair', alone)):
            true = np.cumsum(counts[1, ::-1])
            false = np.cumsum(counts[0, ::-1])
            precision = np.divide(true, true + false, out=np.zeros_like(true), where=true + false > 0)
            values[name].append(100 * (precision[1:] * np.diff(true / true[-1])).sum())
    number = np.array([len(pair.parts) for pair in annotations.pairs])
    for protocol, by_pair in values.items():
        for k in (1, 2, 3):
            ours = result['pxap']['parts'][protocol]['dropped'][str(k)]
            assert ours == pytest.approx(np.array(by_pair)[number == k].mean(), rel=1e-6)
        assert result['pxap']['parts'][protocol]['dropped']['mean'] == pytest.approx(np.mean(by_pair), rel=1e-6)


def test_every_image_goes_through_the_network_once(script, tiny_birds, trained, monkeypatch):
    from wsol.heads import CAM
    seen, features = [], CAM.extract_features
    monkeypatch.setattr(CAM, 'extract_features', lambda net, batch: seen.append(len(batch)) or features(net, batch))
    script('eval_cue_location', *flags(tiny_birds, trained, 'CALM_EM'), '--score_map_process=jointll', '--batch_size=7')
    assert seen[0] == 1 and sum(seen[1:]) == 36  # a blank, to see the map's size; 18 classes, 2 test images each


def test_remove_and_classify_agrees_with_a_naive_loop(script, tiny_birds, trained):
    code, out, err = script('eval_pixel_perturb', *flags(tiny_birds, trained, 'CALM_EM'), '--score_map_process=jointll',
                            '--norm_type=clipping', '--batch_size=7')
    assert code == 0, err
    stem = trained / 'CALM_EM' / 'pixel_perturb_CALM_EM_jointll_clipping'
    result = json.loads(stem.with_suffix('.json').read_text())
    assert stem.with_suffix('.png').stat().st_size > 1000 and result['images'] == 36
    args = config.parse('', flags(tiny_birds, trained, 'CALM_EM'))
    model, _, args = loading.load_model(args, torch.device('cpu'))
    test_set = open_split(args, 'test')
    for record in result['ratios']:
        correct = 0
        for index, label in enumerate(test_set.labels):
            image = test_set[index][0][None]
            with torch.no_grad():
                maps = attribution_maps(model, image, torch.tensor([label]), 'jointll')
            scores = metrics.resize(maps, (56, 56)).flatten()
            order = scores.argsort(descending=True)[:int(record['erased_percent'] / 100 * 56 * 56)]
            erased = image.flatten(2).clone()
            erased[..., order] = 0
            with torch.no_grad():
                correct += int(model(erased.view_as(image)).argmax()) == label
        assert abs(correct - record['correct_top']) <= 1  # zeros tie: the order among them is drawn
        assert record['R'] is None or record['R'] == record['correct_top'] / record['correct_random']


def test_random_maps_are_like_random_erasure_and_repeat_with_the_seed(script, tiny_birds, trained):
    results = []
    for _ in range(2):
        script('eval_pixel_perturb', *flags(tiny_birds, trained, 'CAM'), '--score_map_process=random')
        results.append(json.loads((trained / 'CAM/pixel_perturb_CAM_random_minmax.json').read_text())['ratios'])
    assert results[0] == results[1]


def test_the_control_of_the_object_mask_scores_the_share_of_the_cue(script, tiny_birds, trained):
    """A map that is 1 on the bird and 0 off it finds the cue at the precision of its share of the bird."""
    script('eval_cue_location', *flags(tiny_birds, trained, 'CAM'), '--score_map_process=object_mask',
           '--norm_type=clipping')
    result = json.loads((trained / 'CAM/cue_location_CAM_object_mask_clipping_even.json').read_text())
    args = config.parse('', flags(tiny_birds, trained, 'CAM'))
    test_set = open_split(args, 'test')
    annotations = CueAnnotations(Path(args.data_root) / 'ToyBirds')
    shares = []
    for number, pair in enumerate(annotations.pairs):
        ids = [test_set.image_id(index) for index, label in enumerate(test_set.labels)
               if number in annotations.evaluated(test_set.image_id(index), label)]
        birds = [annotations.object_mask(image_id, 56) for image_id in ids]
        cues = [np.isin(annotations.partition(image_id, 56), pair.parts) & bird
                for image_id, bird in zip(ids, birds, strict=True)]
        shares.append(100 * np.sum(cues) / np.sum(birds))
    assert result['pxap']['parts']['per_pair']['counted']['mean'] == pytest.approx(np.mean(shares), rel=1e-6)


def test_a_rerun_replaces_only_its_own_results(script, tiny_birds, trained):
    base = flags(tiny_birds, trained, 'CALM_ML')
    script('eval_pixel_perturb', *base, '--score_map_process=saliency')
    before = {path.name: path.read_bytes() for path in (trained / 'CALM_ML').iterdir()}
    script('eval_pixel_perturb', *base, '--score_map_process=gtcond')
    after = {path.name: path.read_bytes() for path in (trained / 'CALM_ML').iterdir()}
    assert set(after) - set(before) == {f'pixel_perturb_CALM_ML_gtcond_minmax.{suffix}' for suffix in ('json', 'png')}
    assert all(after[name] == content for name, content in before.items())


def test_results_go_to_the_checkpoints_experiment_unless_one_is_named(script, tiny_birds, trained, tmp_path):
    base = [*tiny_birds, f'--save_root={trained}', '--score_map_process=random']
    script('eval_pixel_perturb', *base, '--load_checkpoint=CALM_ML')
    assert (trained / 'CALM_ML/pixel_perturb_CALM_ML_random_minmax.json').is_file()
    script('eval_pixel_perturb', *base, f'--load_checkpoint={trained / "CALM_ML"}', '--experiment_name=elsewhere')
    assert (trained / 'elsewhere/pixel_perturb_CALM_ML_random_minmax.json').is_file()


@pytest.fixture
def tiny_cub(tiny_birds, tmp_path):
    """A folder in CUB's layout and under CUB's names, with a handful of images."""
    data, meta = (Path(flag.split('=')[1]) for flag in tiny_birds if '_root' in flag)
    shutil.copytree(data / 'ToyBirds', tmp_path / 'data' / 'CUB')
    (tmp_path / 'data' / 'CUBV2').symlink_to(data / 'ToyBirds' / 'images')
    for split, count in (('train', 4), ('val', 2), ('test', 8)):
        for name in ('image_ids.txt', 'class_labels.txt'):
            target = tmp_path / 'meta' / 'CUB' / split / name
            target.parent.mkdir(parents=True, exist_ok=True)
            lines = (meta / 'ToyBirds' / split / name).read_text().splitlines()[:count]
            target.write_text('\n'.join(lines) + '\n')
    return [f'--data_root={tmp_path / "data"}', f'--metadata_root={tmp_path / "meta"}']


def test_the_three_published_commands_run_as_written(script, tiny_cub, tmp_path):
    added = [*tiny_cub, '--pretrained=False', '--epochs=1']
    train = ['--experiment_name=experiment_name/', '--architecture=resnet50', '--attribution_method=CALM_EM',
             '--dataset=CUB', '--use_bn=True', '--large_feature_map=True']
    evaluate = [*train, '--use_load_checkpoint=True', '--load_checkpoint=checkpoint_name/',
                '--score_map_process=jointll', '--norm_type=clipping']
    assert script('main', *train, *added)[0] == 0
    assert script('eval_pixel_perturb', *evaluate, *added)[0] == 0
    code, out, err = script('eval_cue_location', *evaluate, '--threshold_type=log', *added)
    assert code == 0
    assert 'the paper (CUB, ResNet-50)' in out and '30.4' in out
    assert 'class pairs have a class without test images and are left out: ' in err and '9-10' in err
    names = {path.name for path in (tmp_path / 'save/experiment_name').iterdir()}
    assert {util.CHECKPOINT, 'results.json', 'pixel_perturb_CALM_EM_jointll_clipping.json',
            'cue_location_CALM_EM_jointll_clipping_log.json'} <= names
