"""Training: the schedule's formulas, the optimiser's arithmetic by hand, and runs that go on as if uninterrupted."""
import copy
import json
import math

import numpy as np
import pytest
import several
import torch
from conftest import (
    SMALL,
    accepted,
    content_of,
    files_below,
    open_birds,
    read_result,
    refused,
    result_paths,
    roots_of,
    same,
    same_training,
    without,
)

import util
from dataset.images import ImageDataset
from experiment import training, weights
from wsol import build_model, networks
from wsol.errors import UserError
from wsol.heads import CAM

# --- the schedule -------------------------------------------------------------------------------------------------

def test_step_divides_by_ten_at_the_start_of_every_so_manieth_epoch():
    """Epochs are counted from 1, as published: with 30, the epochs 30, 60, ... are the first of the lower rates."""
    for frequency in (1, 2, 30):
        for number in range(1, 91):
            expected = 0.1 ** sum(number >= start for start in range(frequency, 91, frequency))
            for within in (0, 0.5, 0.99):
                factor = training.lr_factor(number - 1 + within, 'step', 90, frequency)
                assert factor == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize('epochs', [1, 7, 40])
def test_one_cycle_rises_for_three_tenths_and_falls_to_nothing(epochs):
    def factor(share):
        return training.lr_factor(share * epochs, 'one_cycle', epochs, None)
    for share in np.linspace(0, 0.3, 31):
        assert factor(share) == pytest.approx(share / 0.3, abs=1e-9)  # a straight line
    for turned in np.linspace(0, math.pi, 31):
        assert factor(0.3 + 0.7 * turned / math.pi) == pytest.approx(0.5 + 0.5 * math.cos(turned), abs=1e-9)


@pytest.fixture
def rates(monkeypatch):
    """The learning rates of the optimiser's groups, step by step."""
    seen, step = [], torch.optim.SGD.step

    def record(optimiser, *inputs):
        seen.append([group['lr'] for group in optimiser.param_groups])
        return step(optimiser, *inputs)
    monkeypatch.setattr(torch.optim.SGD, 'step', record)
    return seen


@pytest.mark.parametrize('schedule, epochs, expected', [
    (['--lr_decay_frequency=2'], 4, [[1, 1, 1], [.1, .1, .1], [.1, .1, .1], [.01, .01, .01]]),
    (['--lr_schedule=one_cycle'], 2, [[0, (1 / 6) / 0.3, 0.5 + 0.5 * math.cos(math.pi * (2 / 6 - 0.3) / 0.7)],
                                      [0.5 + 0.5 * math.cos(math.pi * (share / 6 - 0.3) / 0.7) for share in (3, 4, 5)]])])
def test_a_training_follows_its_schedule_step_by_step(script, pets, rates, tmp_path, schedule, epochs, expected):
    accepted(script('main', *pets, *schedule, f'--epochs={epochs}', '--lr=0.02', '--lr_classifier_ratio=3'))
    np.testing.assert_allclose(rates, [[0.02 * factor, 0.06 * factor] for row in expected for factor in row], rtol=1e-9)
    log = [json.loads(line) for line in (tmp_path / 'save/result/log.jsonl').read_text().splitlines()]
    assert [line['epoch'] for line in log] == list(range(1, epochs + 1))
    np.testing.assert_allclose([line['lr'] for line in log], [0.02 * row[0] for row in expected], rtol=1e-9)


# --- the optimiser ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('method', ['CAM', 'CALM_EM', 'CALM_ML'])
def test_an_epoch_is_nesterovs_momentum_by_hand(script, resnet_pets, tmp_path, monkeypatch, method):
    """The network after an epoch is that of ten lines of arithmetic on the same batches, from the same start."""
    start, batches = [], []
    loss_class = networks.HEADS[method]
    loss_of = loss_class.loss

    def record(model, images, labels):
        if not start:
            start.append(copy.deepcopy(model))
        batches.append((images.clone(), labels.clone()))
        return loss_of(model, images, labels)
    monkeypatch.setattr(loss_class, 'loss', record)
    lr, ratio, momentum, decay = 0.05, 10, 0.8, 0.1
    accepted(script('main', *resnet_pets, '--epochs=1', f'--attribution_method={method}', f'--lr={lr}',
                    f'--momentum={momentum}', f'--weight_decay={decay}'))
    assert [len(labels) for _, labels in batches] == [5, 5, 2]

    model, velocity = start[0].train(), {}
    initial = copy.deepcopy(model.state_dict())
    for images, labels in batches:
        loss, _ = loss_of(model, images, labels)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for (name, value), gradient in zip(model.named_parameters(), gradients, strict=True):
                slow = any(part in name for part in ('layer1', 'layer2', 'layer3', 'conv1'))
                gradient = gradient + decay * value
                velocity[name] = momentum * velocity[name] + gradient if name in velocity else gradient
                value -= lr * (1 if slow else ratio) * (gradient + momentum * velocity[name])
    trained, moved = content_of(tmp_path / 'save/result')['state_dict'], 0
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-4, atol=1e-5, msg=name)
        moved += not torch.allclose(value.double(), initial[name].double(), rtol=1e-2)
    assert moved > len(trained) * 0.8 and 'bn1.weight' in trained


# --- what a training leaves, and how it goes on ---------------------------------------------------------------------

def test_training_leaves_a_checkpoint_a_log_and_results(trained):
    for method in ('CAM', 'CALM_EM', 'CALM_ML'):
        checkpoint = content_of(trained / method)
        assert checkpoint['epoch'] == 3 and checkpoint['architecture'] == 'resnet18'
        assert checkpoint['model']['attribution_method'] == method
        assert checkpoint['class_names'][0] == '001.Toy_A1'
        lines = [json.loads(text) for text in (trained / method / 'log.jsonl').read_text().splitlines()]
        assert [line['epoch'] for line in lines] == [1, 2, 3]
        assert lines[2]['train_loss'] < lines[0]['train_loss']  # it learns
        results = json.loads((trained / method / 'results.json').read_text())
        assert results['val_accuracy'] == lines[-1]['val_accuracy'] and results['settings']['seed'] == 3
        assert results['dataset'] == 'ToyBirds' and results['images'] == 36 and results['epoch'] == 3
        assert results['weights_sha256'] == weights.weights_sha256(checkpoint['state_dict']) and results['settings']['lr'] == 0.01


def test_the_accuracies_are_those_of_the_networks_predictions(script, tiny_birds, save):
    model, _ = weights.load_model(save / 'CALM_ML')
    results = json.loads((save / 'CALM_ML/results.json').read_text())
    assert script('main', *tiny_birds, '--experiment_name=CALM_ML', '--is_train=False', '--batch_size=7')[0] == 0
    again = read_result(save / 'CALM_ML', 'accuracy')
    for split in ('val', 'test'):
        images, _ = open_birds(tiny_birds, split)
        with torch.no_grad():
            right = [int(model(image[None]).argmax()) == label for image, label, _ in images]
        assert results[f'{split}_accuracy'] == again[f'{split}_accuracy'] == pytest.approx(100 * np.mean(right))
    assert again['weights_sha256'] == results['weights_sha256']


def test_the_same_seed_trains_the_same_network_and_another_another(script, pets, tmp_path):
    base = [*without(pets, 'seed'), '--attribution_method=CALM_ML', '--epochs=2']
    for name, seed in (('first', 1), ('again', 1), ('other', 2)):
        assert script('main', *base, f'--seed={seed}', f'--experiment_name={name}')[0] == 0
    first, again, different = (tmp_path / 'save' / name for name in ('first', 'again', 'other'))
    assert same_training(first, again) and not same_training(first, different)
    assert not same(content_of(first)['state_dict'], content_of(different)['state_dict'])


def test_a_longer_training_goes_on_where_the_shorter_ended(script, pets, tmp_path):
    base = [*pets, '--lr_decay_frequency=2']
    assert script('main', *base, '--epochs=2', '--experiment_name=straight')[0] == 0
    assert script('main', *base, '--epochs=1', '--experiment_name=resumed')[0] == 0
    accepted(script('main', *base, '--epochs=2', '--experiment_name=resumed'), '1 finished epochs')
    assert same_training(tmp_path / 'save/straight', tmp_path / 'save/resumed')


def test_a_finished_training_is_not_repeated_and_override_starts_afresh(script, pets, tmp_path):
    path = tmp_path / 'save/result' / weights.FILE
    script('main', *pets, '--epochs=1')
    before = path.stat().st_mtime_ns
    accepted(script('main', *pets, '--epochs=1'), 'override_cache')
    assert path.stat().st_mtime_ns == before
    assert script('main', *pets, '--epochs=1', '--override_cache', '--lr=0.02')[0] == 0
    assert path.stat().st_mtime_ns != before
    assert len((tmp_path / 'save/result/log.jsonl').read_text().splitlines()) == 1


def test_other_settings_in_the_same_experiment_are_refused(script, pets, tmp_path):
    assert script('main', *pets, '--epochs=2')[0] == 0
    before = files_below(tmp_path / 'save/result')
    for flags, words in [
            (['--attribution_method=CALM_EM'], ['attribution_method was CAM, is CALM_EM']), (['--seed=1'], ['seed was 0, is 1']),
            (['--lr=0.5', '--batch_size=4'], ['lr was 0.01, is 0.5', 'batch_size was 5, is 4']),
            (['--epochs=1'], ['2 epochs are done, --epochs=1 asks for fewer']), (['--last_stage=layer2'], ['last_stage was layer1']),
            (['--lr_schedule=one_cycle'], ['lr_schedule was step, is one_cycle']), (['--precision=bfloat16'], ['precision was float32'])]:
        names = [flag.split('=')[0][2:] for flag in flags]
        refused(script('main', *without([*pets, '--epochs=3'], *names), *flags), *words, '--override_cache')
        # nothing is relabelled: the checkpoint still says two epochs, and so does its result
        assert files_below(tmp_path / 'save/result') == before


def test_one_cycle_plans_all_epochs_ahead(script, pets):
    assert script('main', *pets, '--epochs=1', '--lr_schedule=one_cycle')[0] == 0
    refused(script('main', *pets, '--epochs=2', '--lr_schedule=one_cycle'), 'epochs was 1, is 2', 'plans all epochs ahead')


def test_a_drawn_seed_is_recorded_and_kept(script, pets, tmp_path):
    base = without(pets, 'seed')
    assert script('main', *base, '--epochs=1')[0] == 0
    seed = content_of(tmp_path / 'save/result')['args']['seed']
    assert isinstance(seed, int)
    assert script('main', *base, '--epochs=2')[0] == 0  # goes on with the drawn one
    assert content_of(tmp_path / 'save/result')['args']['seed'] == seed
    assert script('main', *base, '--epochs=2', f'--seed={seed}', '--experiment_name=stated')[0] == 0
    assert same_training(tmp_path / 'save/result', tmp_path / 'save/stated')
    assert script('main', *base, '--epochs=1', '--experiment_name=fresh')[0] == 0
    assert content_of(tmp_path / 'save/fresh')['args']['seed'] != seed


def test_training_can_start_from_another_experiments_weights(script, tiny_birds, save):
    start = [*tiny_birds, *SMALL, '--attribution_method=CALM_EM', '--epochs=1', '--lr=0']
    accepted(script('main', *start, '--experiment_name=started', '--load_checkpoint=CALM_ML'))
    source, target = (content_of(save / name)['state_dict'] for name in ('CALM_ML', 'started'))
    learned = [name for name in source if 'running' not in name and 'num_batches' not in name]
    assert all(torch.equal(source[name], target[name]) for name in learned)


def test_fine_tuning_on_another_label_set_keeps_all_but_the_classifier(script, resnet_pets, save, tmp_path):
    flags = ['--epochs=1', '--lr=0', '--load_checkpoint=CALM_ML', '--attribution_method=CALM_ML', '--experiment_name=tuned']
    refused(script('main', *resnet_pets, *flags), 'has 18 classes, the data set has 3', '--is_different_checkpoint')
    accepted(script('main', *resnet_pets, *flags, '--is_different_checkpoint'))
    source, target = (content_of(save / name)['state_dict'] for name in ('CALM_ML', 'tuned'))
    learned = [name for name in source if not any(word in name for word in ('running', 'num_batches', 'conv_last'))]
    assert all(torch.equal(source[name], target[name]) for name in learned)
    assert target['conv_last.weight'].shape == (3, 64, 1, 1)


# --- a network that needs two images at a step -----------------------------------------------------------------------

@pytest.fixture
def pooled(monkeypatch):
    """resnet18 stands for a tiny network whose channels are weighted by BatchNorm of their means, as in timm's skresnet18."""
    from torch import nn

    class Pooled(nn.Sequential):
        def forward(self, features):
            return features * super().forward(features).sigmoid()

    def build(weights=None, **options):
        stages = nn.Sequential()
        stages.add_module('conv1', nn.Conv2d(3, 4, 3, 4))
        stages.add_module('layer1', Pooled(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4)))
        return stages, 4
    usual = networks.ARCHITECTURES['resnet18']
    monkeypatch.setitem(networks.ARCHITECTURES, 'resnet18', networks.Architecture(build, usual.slow, usual.backbone, usual.options))


@pytest.mark.parametrize('flags, sizes', [
    ([], [4, 5, 3]), (['--batch_size=11'], [12]), (['--batch_size=4', '--accumulate=3'], [2, 2, 2, 2, 2, 2]),
    (['--batch_size=3', '--accumulate=2'], [3, 3, 3, 3]), (['--batch_size=1'], 'needs 2 images at a step')])
def test_batchnorm_after_pooling_never_sees_one_image(script, pets, pooled, tmp_path, monkeypatch, flags, sizes):
    """12 training images, or 9 of 13 in the first case, whose last batch would have one."""
    folder, seen, loss = tmp_path / 'pets', [], CAM.loss
    monkeypatch.setattr(CAM, 'loss', lambda model, images, labels: seen.append(len(images)) or loss(model, images, labels))
    if not flags:
        flags, sizes = ['--batch_size=4'], [4, 5]
        for path in sorted((folder / 'train').rglob('*.*'))[:3]:
            path.unlink()
    result = script('main', *without(pets, 'batch_size'), '--epochs=1', *flags)
    if isinstance(sizes, str):
        refused(result, sizes)
        assert not files_below(tmp_path / 'save/result')
    else:
        assert result[0] == 0, result[2]
        assert seen == sizes


def test_a_training_stopped_before_or_after_a_joined_batch_goes_on_to_the_bit(script, pets, pooled, tmp_path, monkeypatch):
    """9 images in two batches, of 4 and 5."""
    flags = [*without(pets, 'batch_size'), '--batch_size=4', '--epochs=2']
    for path in sorted((tmp_path / 'pets/train').rglob('*.*'))[:3]:
        path.unlink()
    assert script('main', *flags, '--experiment_name=straight')[0] == 0
    for step in (2, 3):
        with monkeypatch.context() as stopping:
            stopping.setattr(training.Training, 'take_step', several.fail_at(step, 'stop'))
            assert script('main', *flags, f'--experiment_name={step}')[0] == 143
        accepted(script('main', *flags, f'--experiment_name={step}'))
        assert same_training(tmp_path / 'save/straight', tmp_path / 'save' / str(step))


def test_training_on_one_image_is_refused_where_the_network_needs_two(script, pets, pooled, tmp_path):
    for path in sorted((tmp_path / 'pets/train').rglob('*.*'))[1:]:
        path.unlink()
    refused(script('main', *pets, '--epochs=1'), 'needs 2 images at a step', '1 training images')
    code, _, err = script('main', *pets, '--epochs=1', '--freeze')  # BatchNorm keeps its statistics
    assert code == 0, err


def test_the_fewest_images_of_a_step(pooled):
    from torch import nn
    model = build_model('resnet18', 'CAM', 3)
    before, draws = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    assert networks.fewest_images(model, 32) == 2
    assert same(model.state_dict(), before) and torch.equal(torch.get_rng_state(), draws)
    assert [module.training for module in model.modules()] == modes
    model.layer1[1] = nn.Conv2d(4, 4, 1)
    assert networks.fewest_images(model, 32) == 1
    model.layer1[1] = nn.GroupNorm(4, 4)
    assert networks.fewest_images(model, 32) == 2
    model.layer1[1] = nn.InstanceNorm2d(4)
    with pytest.raises(UserError, match='images of 32x32 are too small to train this network'):
        networks.fewest_images(model, 32)


def test_the_parts_of_a_step():
    for count in range(1, 30):
        for parts in range(1, 12):
            assert training.part_sizes(count, parts, 1) == [len(part) for part in torch.zeros(count).chunk(parts)]
            sizes = training.part_sizes(count, parts, 2)
            assert sum(sizes) == count and len(sizes) <= parts and (count == 1 or min(sizes) >= 2)


# --- precision, proxy training set, prior -----------------------------------------------------------------------------

@pytest.fixture
def dtypes(monkeypatch):
    """The types of all features, as the backbone gives them."""
    seen, extract = set(), CAM.extract_features

    def record(model, images):
        features = extract(model, images)
        if type(features) is torch.Tensor:  # and no FakeTensor
            seen.add(features.dtype)
        return features
    monkeypatch.setattr(CAM, 'extract_features', record)
    return seen


def test_bfloat16_trains_nearly_the_same_network(script, resnet_pets, tmp_path, dtypes):
    for precision in ('float32', 'bfloat16'):
        dtypes.clear()
        accepted(script('main', *resnet_pets, '--epochs=1', f'--precision={precision}', f'--experiment_name={precision}'))
        assert dtypes == {getattr(torch, precision)}
        assert json.loads((tmp_path / f'save/{precision}/results.json').read_text())['settings']['precision'] == precision
    full, half = (content_of(tmp_path / 'save' / name)['state_dict'] for name in ('float32', 'bfloat16'))
    assert all(value.dtype == half[name].dtype for name, value in full.items())  # the weights themselves are float32
    lines = [json.loads((tmp_path / 'save' / name / 'log.jsonl').read_text()) for name in ('float32', 'bfloat16')]
    assert lines[0]['train_loss'] != lines[1]['train_loss'] == pytest.approx(lines[0]['train_loss'], rel=0.05)


@pytest.mark.parametrize('computes', [True, False])
def test_auto_trains_in_bfloat16_where_the_hardware_computes_in_it(script, resnet_pets, tmp_path, dtypes, monkeypatch,
                                                                   computes):
    monkeypatch.setattr(util, 'computes_in_bfloat16', lambda device: computes)
    flags, chosen = without(resnet_pets, 'precision'), 'bfloat16' if computes else 'float32'
    accepted(script('main', *flags, '--epochs=1'), f'trains in {chosen} on cpu, evaluates in float32')
    assert dtypes == ({torch.bfloat16, torch.float32} if computes else {torch.float32})
    result = json.loads((tmp_path / 'save/result/results.json').read_text())
    assert result['settings']['precision'] == content_of(tmp_path / 'save/result')['args']['precision'] == chosen
    monkeypatch.setattr(util, 'computes_in_bfloat16', lambda device: not computes)  # as on another machine
    accepted(script('main', *flags, '--epochs=2'), f'trains in {chosen} on cpu')
    refused(script('main', *flags, '--epochs=2', '--precision=auto'), f'precision was {chosen}')


def test_auto_evaluates_in_float32_and_bfloat16_evaluates_nearly_the_same(script, tiny_birds, save, tmp_path, dtypes, monkeypatch):
    monkeypatch.setattr(util, 'computes_in_bfloat16', lambda device: True)
    photo = sorted((roots_of(tiny_birds)[0] / 'ToyBirds/images').rglob('*_test_*.jpg'))[5]
    results, maps = [], []
    for asked, precision in (('auto', 'float32'), ('bfloat16', 'bfloat16')):
        dtypes.clear()
        flags = [*without(tiny_birds, 'precision'), '--experiment_name=CALM_EM', f'--precision={asked}']
        accepted(script('eval_wsol', *flags), f'norm minmax, {precision}')
        assert dtypes == {getattr(torch, precision)}
        contents = [json.loads(path.read_text()) for path in result_paths(save / 'CALM_EM', 'wsol')]
        results += [result['results'] for result in contents if result['settings']['precision'] == precision]
        accepted(script('inference', photo, *flags, '--target=3', f'--output={precision}'))
        maps.append(np.load(tmp_path / precision / f'{photo.stem}_jointll.npy'))
        assert maps[-1].dtype == np.float32
    first, second = results
    for name in ('MaxBoxAccV2', 'MaxBoxAcc'):
        assert first[name]['oracle'] == pytest.approx(second[name]['oracle'], abs=6)  # % of 36 images
    error = np.abs(maps[0] - maps[1]).max() / maps[0].max()
    assert 1e-5 < error < 0.1  # the rounding shows, and is no more than that


def test_the_proxy_training_set_is_what_is_trained_on(script, own_birds, tmp_path, monkeypatch):
    flags, folder = [*own_birds, *SMALL, '--epochs=2'], roots_of(own_birds)[1] / 'ToyBirds/train'
    listed = (folder / 'image_ids.txt').read_text().splitlines()[1::4]
    refused(script('main', *flags, '--proxy_training_set'), 'image_ids_proxy.txt is not there')
    (folder / 'image_ids_proxy.txt').write_text('\n'.join(listed) + '\n')
    seen, get = [], ImageDataset.read

    def record(images, key):
        if isinstance(key, tuple):  # (index, seed): an image that is trained on
            seen.append((images.image_id(key[0]), int(images.labels[key[0]])))
        return get(images, key)
    monkeypatch.setattr(ImageDataset, 'read', record)
    accepted(script('main', *flags, '--proxy_training_set=True'))
    # twice each, in two orders, with the labels of their own lines
    assert sorted(seen[:len(listed)]) == sorted(seen[len(listed):]) == [(name, int(name[:3]) - 1) for name in sorted(listed)]
    assert seen[:len(listed)] != seen[len(listed):]
    assert content_of(tmp_path / 'save/result')['args']['proxy_training_set'] is True
    refused(script('main', *flags, '--epochs=3'), 'proxy_training_set was True, is False')


def test_a_training_from_the_cache_is_the_same_training(script, pets, tmp_path):
    seen = []
    for name, flags in (('plain', []), ('cached', ['--cache'])):
        code, out, err = script('main', *pets, f'--experiment_name={name}', '--epochs=2', *flags)
        assert code == 0 and out.count('pixels will take') == 3 * bool(flags), err
        lines = [json.loads(line) for line in (tmp_path / 'save' / name / 'log.jsonl').read_text().splitlines()]
        for line in lines:
            del line['train_images_per_second']
        seen.append((lines, json.loads((tmp_path / 'save' / name / 'results.json').read_text())['weights_sha256']))
    assert seen[0] == seen[1]
    kept = sorted(path.name.split('.')[0] for path in (tmp_path / 'save/cache').glob('*.pixels'))
    assert [name.rsplit('_', 3)[1::2] for name in kept] == [['test', '32'], ['train', '36'], ['val', '32']]
    code, out, err = script('main', *pets, '--experiment_name=cached', '--is_train=False', '--cache')
    assert code == 0 and 'pixels will take' not in out, err  # the test images are those of the training's cache


def test_a_training_that_cannot_write_its_cache_has_not_begun(script, pets, tmp_path):
    folder = tmp_path / 'save/result'
    folder.mkdir(parents=True)
    (folder / 'results.json').write_text('of an earlier network')
    (tmp_path / 'save/cache').write_text('a file where the folder should be')
    refused(script('main', *pets, '--epochs=1', '--cache'), 'save/cache')
    assert (folder / 'results.json').read_text() == 'of an earlier network' and not (folder / 'log.jsonl').exists()


def test_the_softplus_prior_is_recorded_and_used(script, pets, tmp_path):
    base = [*pets, '--attribution_method=CALM_EM', '--epochs=1']
    for prior in ('relu', 'softplus'):
        assert script('main', *base, f'--prior={prior}', f'--experiment_name={prior}')[0] == 0
        assert content_of(tmp_path / 'save' / prior)['model']['prior'] == prior
        assert weights.load_model(prior)[0].detach_normaliser == (prior == 'relu')  # softplus has its sum's gradient
    # an evaluation uses the network as it was trained, and contradicts another prior
    assert script('eval_pixel_perturb', '--experiment_name=softplus', '--workers=0')[0] == 0
    assert read_result(tmp_path / 'save/softplus', 'pixel_perturb')['settings']['prior'] == 'softplus'
    refused(script('eval_pixel_perturb', '--experiment_name=softplus', '--prior=relu'), '--prior=softplus, not --prior=relu')
    assert not same(content_of(tmp_path / 'save/relu')['state_dict'], content_of(tmp_path / 'save/softplus')['state_dict'])
