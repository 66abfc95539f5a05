"""A likely mistake gets one clear line on stderr and exit code 2; nothing is lost or overwritten."""
import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SMALL, accepted, change_checkpoint, refused, roots_of, without

from experiment import weights
from wsol import build_model


@pytest.fixture
def birds(own_birds):
    """(flags, data folder, metadata folder) of a ToyBirds that a test may break."""
    return [*own_birds, *SMALL, '--epochs=3'], *(root / 'ToyBirds' for root in roots_of(own_birds))


@pytest.fixture
def checkpoint(trained, tmp_path):
    """The path of a trained checkpoint of CAM in the experiment `result`, with its results."""
    shutil.copytree(trained / 'CAM', tmp_path / 'save/result')
    return tmp_path / 'save/result' / weights.FILE


def data_flags(flags):
    return [flag for flag in flags if flag.startswith(('--dataset', '--data_root', '--metadata_root', '--workers'))]


@pytest.mark.parametrize('flag, words', [
    ('--epoch=3', ['unknown flag --epoch', 'did you mean --epochs?']), ('--experiment=x', ['unknown flag --experiment']),
    ('--nothing_like_it=1', ['unknown flag --nothing_like_it', '--help lists all']), ('--score_map_process=jointl', ['did you mean jointll?']),
    ('--architecture=resnet5', ['"resnet5" is not one of', 'did you mean resnet']),
    ('--dataset=CUBS', ['CUBS', 'did you mean CUB?']), ('--dataset=cub', ['"cub"', 'did you mean CUB?']),
    ('--dataset=toybirds', ['did you mean ToyBirds?']), ('--dataset=imagenet', ['did you mean ImageNet?']),
    ('--epochs=0', ['--epochs', '"0"', '[1, inf)']), ('--epochs=ten', ['"ten"', 'an integer']),
    ('--epochs=2_0', ['"2_0"', 'an integer']), ('--lr=1_0', ['"1_0"', 'a number']), ('--batch_size=\u0663', ['an integer']),
    ('--lr=-1', ['--lr', '"-1"']), ('--lr=nan', ['--lr', '"nan"']), ('--use_bn=maybe', ['"maybe"', 'True nor False']),
    ('--attribution_method=CALM', ['CALM_EM', 'CALM_ML']), ('--attribution_method=calm_em', ['did you mean CALM_EM?']),
    ('--momentum=1.5', ['--momentum']), ('extra', ['extra']),
])
@pytest.mark.parametrize('name', ['main', 'eval_pixel_perturb'])
def test_flags(script, name, flag, words):
    refused(script(name, flag), *words)


def test_a_photo_named_like_a_flag(script, tmp_path):
    (tmp_path / '-a.png').touch()
    refused(script('inference', '-a.png'), 'write ./-a.png')


def test_missing_and_unreadable_checkpoints(script, tiny_birds, tmp_path):
    refused(script('eval_pixel_perturb', *tiny_birds), 'no checkpoint', 'save/result', 'main.py')
    refused(script('eval_pixel_perturb', *tiny_birds, '--load_checkpoint=nowhere'), 'nowhere', '--load_checkpoint')
    for content in (b'', b'<html>quota exceeded</html>', torch.serialization.MAGIC_NUMBER.to_bytes(10, 'little')):
        (tmp_path / 'broken.pth').write_bytes(content)
        refused(script('eval_pixel_perturb', *tiny_birds, '--load_checkpoint=broken.pth'), 'broken.pth cannot be read')
    torch.save([1, 2], tmp_path / 'list.pth')
    refused(script('eval_pixel_perturb', *tiny_birds, '--load_checkpoint=list.pth'), 'holds no state dict')


def test_checkpoints_of_another_network(script, birds, checkpoint, tmp_path):
    flags, *_ = birds
    before = {path.name: path.read_bytes() for path in checkpoint.parent.iterdir()}
    evaluate = without(flags, 'architecture', 'last_stage')
    refused(script('eval_pixel_perturb', *evaluate, '--architecture=resnet50'), '--architecture=resnet18', 'resnet50')
    refused(script('eval_pixel_perturb', *evaluate, '--attribution_method=CALM_EM'), '--attribution_method=CAM')
    refused(script('eval_pixel_perturb', *evaluate, '--score_map_process=jointll'), 'CAM does not define jointll',
            'vanilla')
    refused(script('eval_pixel_perturb', *evaluate, '--dataset=CUB'), '18 classes', 'data set 200')
    # weights without a record, as the published ones are
    bare = build_model('resnet18', 'CALM_EM', 200, last_stage='layer1').state_dict()
    torch.save({'state_dict': bare}, tmp_path / 'bare.pth')
    result = script('eval_pixel_perturb', *flags, '--load_checkpoint=bare.pth')
    refused(result, 'bare.pth does not fit', '(200, 64, 1, 1)', '--attribution_method')
    assert '14x14 is assumed' in result[1] and 'add --large_feature_map' in result[1]
    assert {path.name: path.read_bytes() for path in checkpoint.parent.iterdir()} == before


@pytest.mark.parametrize('workers', [0, 2])
def test_an_image_that_does_not_open(script, birds, workers, tmp_path):
    flags, data, _ = birds
    path = next((data / 'images').rglob('*_train_*.jpg'))
    path.write_bytes(path.read_bytes()[:200])
    refused(script('main', *flags, f'--workers={workers}'), str(path), 'does not open')
    assert not multiprocessing.active_children()  # Python would wait for them for ever
    assert not (tmp_path / 'save/result' / weights.FILE).exists()


def test_no_class_pair_with_images(script, birds, checkpoint):
    flags, _, meta = birds
    for name in ('image_ids.txt', 'class_labels.txt'):
        path = meta / 'test' / name
        path.write_text(path.read_text().splitlines()[0] + '\n')
    refused(script('eval_cue_location', *flags), 'no class pair to evaluate', '32 pairs')


def test_cue_location_needs_parts(script, birds, checkpoint):
    flags, data, _ = birds
    shutil.rmtree(data / 'segmentations')
    refused(script('eval_cue_location', *flags), 'segmentations')


def test_a_loss_that_is_no_number_stops_training_and_keeps_the_checkpoint(script, birds, checkpoint):
    flags, *_ = birds
    before = checkpoint.read_bytes()
    refused(script('main', *flags, '--override_cache', '--lr=1e30'), 'the loss is', 'epoch 1, step', '--lr')
    assert checkpoint.read_bytes() == before


def test_a_network_that_diverges_in_its_last_step_is_not_saved(script, birds):
    flags, *_ = birds
    refused(script('main', *flags, '--lr=1e30', '--batch_size=72'), 'diverged', '--lr')
    assert not Path('save/result', weights.FILE).exists()


def test_weights_without_an_optimiser_are_no_training_to_resume(script, birds, checkpoint):
    flags, *_ = birds
    change_checkpoint(checkpoint, lambda content: {key: value for key, value in content.items() if key != 'optimizer'})
    refused(script('main', *flags), 'no training to resume')


def test_calm_weights_without_a_record_are_not_silently_cam(script, birds):
    flags, *_ = birds
    model = build_model('resnet18', 'CALM_EM', 18, last_stage='layer1')
    wrapped = {f'model._orig_mod.{name}': value for name, value in model.state_dict().items() if 'num_batches' not in name}
    for state, words in ((model.state_dict(), ''), (wrapped | {'loss.weight': torch.ones(2)}, 'loss.weight: left out')):
        torch.save({'state_dict': state}, 'bare.pth')
        code, _, err = script('eval_pixel_perturb', *flags, '--load_checkpoint=bare.pth')
        assert code == 0 and 'has an attention layer' in err and '--attribution_method=CALM_EM' in err and words in err
    code, _, err = script('main', *flags, '--load_checkpoint=bare.pth', '--is_different_checkpoint', '--experiment_name=cam')
    assert code == 0 and 'has an attention layer' in err


def test_going_on_needs_no_imagenet_weights(script, birds, checkpoint, monkeypatch):
    """As when the network is gone: the checkpoint replaces them anyway."""
    flags, *_ = birds
    monkeypatch.setattr('torch.hub.download_url_to_file', lambda *_, **__: pytest.fail('downloads'))
    accepted(script('main', *without(flags, 'pretrained', 'epochs'), '--epochs=4'))
    assert torch.load(checkpoint, weights_only=True)['epoch'] == 4


def test_evaluating_keeps_the_trainings_results(script, birds, checkpoint):
    flags, *_ = birds
    before = {path.name: path.read_bytes() for path in checkpoint.parent.iterdir()}
    accepted(script('main', '--is_train=False', *data_flags(flags)))
    after = {path.name: path.read_bytes() for path in checkpoint.parent.iterdir()}
    added = sorted(after.keys() - before.keys())
    assert [Path(name).suffix for name in added] == ['.json', '.png'] and len({Path(name).stem for name in added}) == 1
    assert added[0].startswith('accuracy_ToyBirds_CAM.') and before == {name: after[name] for name in before}


def test_images_too_small_for_the_network(script, birds):
    flags, *_ = birds
    flags = without(flags, 'architecture', 'last_stage', 'crop_size')
    refused(script('main', *flags, '--architecture=vgg16', '--crop_size=8'), 'crop_size=8 does not suit')
    refused(script('main', *flags, '--architecture=resnet18', '--crop_size=16'), 'crop_size=16', 'one cell')


def test_nothing_to_localise(script, birds, checkpoint):
    flags, data, _ = birds
    locations = data / 'parts' / 'part_locs.txt'
    lines = locations.read_text().splitlines()
    locations.write_text(''.join(f'{line.rsplit(" ", 1)[0]} 0\n' for line in lines))
    refused(script('eval_cue_location', *data_flags(flags)), 'no image to evaluate', 'part_locs.txt')
    locations.write_text('\n'.join(lines) + '\n')
    attributes = data / 'attributes' / 'class_attribute_labels_continuous.txt'
    attributes.write_text(''.join(attributes.read_text().splitlines(keepends=True)[:5]))
    refused(script('eval_cue_location', *data_flags(flags)), 'attributes of 5 classes', 'label 17')


@pytest.mark.parametrize('flag, words', [
    ('--seed=5000000000', ['--seed']), ('--experiment_name=../../x', ['leads out of --save_root']),
    ('--is_different_checkpoint', ['--load_checkpoint']), ('--large_feature_map', ['large_feature_map', 'last_stage=layer1'])])
def test_flags_that_make_no_sense(script, birds, flag, words):
    refused(script('main', *birds[0], flag), *words)
