"""A likely mistake gets one clear line on stderr and exit code 2; nothing is lost or overwritten."""
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SMALL

import util
from wsol import build_model


@pytest.fixture
def birds(tiny_birds, tmp_path):
    """A copy of the tiny ToyBirds that a test may break: (flags, data folder, metadata folder)."""
    data, meta = (Path(flag.split('=')[1]) for flag in tiny_birds if '_root' in flag)
    shutil.copytree(data, tmp_path / 'data')
    shutil.copytree(meta, tmp_path / 'meta')
    others = [flag for flag in tiny_birds if '_root' not in flag]
    roots = [f'--data_root={tmp_path / "data"}', f'--metadata_root={tmp_path / "meta"}']
    return [*others, *roots, *SMALL, '--epochs=1'], tmp_path / 'data/ToyBirds', tmp_path / 'meta/ToyBirds'


def refused(result, *words):
    code, _, err = result
    message = [line for line in err.splitlines() if line.startswith('error: ')]
    assert code == 2 and len(message) == 1 and 'Traceback' not in err, err
    for word in words:
        assert word in message[0], err


@pytest.mark.parametrize('flag, words', [
    ('--epoch=3', ['--epoch', 'did you mean --epochs?']), ('--dataset=CUBS', ['CUBS', 'did you mean CUB?']),
    ('--epochs=0', ['--epochs', '"0"', '[1, inf)']), ('--epochs=ten', ['"ten"', 'an integer']),
    ('--lr=-1', ['--lr', '"-1"']), ('--lr=nan', ['--lr', '"nan"']), ('--use_bn=maybe', ['"maybe"', 'True nor False']),
    ('--attribution_method=CALM', ['CALM_EM', 'CALM_ML']),
    ('--crop_size=300', ['--crop_size=300', '--resize_size=256']),
    ('--momentum=1.5', ['--momentum']), ('extra', ['extra']),
])
@pytest.mark.parametrize('name', ['main', 'eval_pixel_perturb'])
def test_flags(script, name, flag, words):
    refused(script(name, flag), *words)


def test_help_explains_every_flag(script, capsys):
    code, out, _ = script('main', '--help')
    assert code == 0
    import config
    for flags in config.FLAGS.values():
        for flag, _, _, text in flags:
            assert f'--{flag}' in out and len(text) > 1


def test_missing_data_set(script):
    refused(script('main', '--dataset=CUB', '--pretrained=False'), 'CUB train', 'metadata/CUB/train/image_ids.txt',
            'prepare')


def test_missing_and_unreadable_checkpoints(script, tiny_birds, tmp_path):
    refused(script('eval_pixel_perturb', *tiny_birds), 'no checkpoint', 'save/result', 'main.py')
    refused(script('eval_pixel_perturb', *tiny_birds, '--load_checkpoint=nowhere'), 'nowhere', '--load_checkpoint')
    for content in (b'', b'<html>quota exceeded</html>', torch.serialization.MAGIC_NUMBER.to_bytes(10, 'little')):
        (tmp_path / 'broken.pth').write_bytes(content)
        refused(script('eval_pixel_perturb', *tiny_birds, '--load_checkpoint=broken.pth'), 'broken.pth cannot be read')
    torch.save([1, 2], tmp_path / 'list.pth')
    refused(script('eval_pixel_perturb', *tiny_birds, '--load_checkpoint=list.pth'), 'holds a list')


def test_a_checkpoint_that_would_run_code_is_refused(script, tiny_birds, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / 'ran',)
    torch.save({'state_dict': Evil()}, tmp_path / 'evil.pth')
    refused(script('eval_pixel_perturb', *tiny_birds, '--load_checkpoint=evil.pth'), 'evil.pth cannot be read')
    assert not (tmp_path / 'ran').exists()


def test_checkpoints_of_another_network(script, birds, tmp_path):
    flags, *_ = birds
    assert script('main', *flags)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / 'save/result').iterdir()}
    evaluate = [flag for flag in flags if not flag.startswith(('--architecture', '--last_stage'))]
    refused(script('eval_pixel_perturb', *evaluate, '--architecture=resnet50'), '--architecture=resnet18', 'resnet50')
    refused(script('eval_pixel_perturb', *evaluate, '--attribution_method=CALM_EM'), '--attribution_method=CAM')
    refused(script('eval_pixel_perturb', *evaluate, '--score_map_process=jointll'), 'CAM does not define jointll',
            'vanilla')
    refused(script('eval_pixel_perturb', *evaluate, '--dataset=CUB'), '18 classes', 'CUB has 200')
    # weights without a record, as the published ones are
    bare = build_model('resnet18', 'CALM_EM', 200, last_stage='layer1').state_dict()
    torch.save({'state_dict': bare}, tmp_path / 'bare.pth')
    refused(script('eval_pixel_perturb', *flags, '--load_checkpoint=bare.pth'), 'bare.pth does not fit',
            '(200, 64, 1, 1)', '--attribution_method')
    assert {path.name: path.read_bytes() for path in (tmp_path / 'save/result').iterdir()} == before


@pytest.mark.parametrize('file, line, words', [
    ('train/class_labels.txt', '001.Toy_A1/x.jpg', ['class_labels.txt, line 3', 'path,integer']),
    ('train/class_labels.txt', '001.Toy_A1/x.jpg,18', ['class_labels.txt, line 3', 'label 18', '0 to 17']),
    ('val/image_ids.txt', '001.Toy_A1/unknown.jpg', ['image_ids.txt, line 3', 'unknown.jpg']),
])
def test_metadata(script, birds, file, line, words):
    flags, _, meta = birds
    lines = (meta / file).read_text().splitlines()
    lines[2] = line
    (meta / file).write_text('\n'.join(lines) + '\n')
    refused(script('main', *flags), *words)


@pytest.mark.parametrize('workers', [0, 2])
def test_an_image_that_does_not_open(script, birds, workers, tmp_path):
    flags, data, _ = birds
    path = next((data / 'images').rglob('*_train_*.jpg'))
    path.write_bytes(path.read_bytes()[:200])
    refused(script('main', *flags, f'--workers={workers}'), str(path), 'does not open')
    assert not (tmp_path / 'save/result' / util.CHECKPOINT).exists()


def test_no_test_images(script, birds):
    flags, _, meta = birds
    script('main', *flags)
    for name in ('image_ids.txt', 'class_labels.txt'):
        (meta / 'test' / name).write_text('')
    refused(script('eval_cue_location', *flags), 'test/image_ids.txt is empty')


def test_no_class_pair_with_images(script, birds):
    flags, _, meta = birds
    script('main', *flags)
    for name in ('image_ids.txt', 'class_labels.txt'):
        path = meta / 'test' / name
        path.write_text(path.read_text().splitlines()[0] + '\n')
    refused(script('eval_cue_location', *flags), 'no class pair to evaluate', '32 pairs')


def test_cue_location_needs_parts(script, birds, tmp_path):
    flags, data, _ = birds
    script('main', *flags)
    shutil.rmtree(data / 'segmentations')
    refused(script('eval_cue_location', *flags), 'segmentations')


def test_a_loss_that_is_no_number_stops_training_and_keeps_the_checkpoint(script, birds, tmp_path):
    flags, *_ = birds
    script('main', *flags)
    before = (tmp_path / 'save/result' / util.CHECKPOINT).read_bytes()
    refused(script('main', *flags, '--override_cache', '--lr=1e30'), 'the loss is', 'epoch 1, step', '--lr')
    assert (tmp_path / 'save/result' / util.CHECKPOINT).read_bytes() == before


def test_a_folder_that_cannot_be_written(script, birds, tmp_path):
    flags, *_ = birds
    (tmp_path / 'blocked').write_text('')
    refused(script('main', *flags, '--save_root=blocked'), 'cannot make the folder', 'blocked')


def test_a_network_that_diverges_in_its_last_step_is_not_saved(script, birds):
    flags, *_ = birds
    refused(script('main', *flags, '--lr=1e30', '--batch_size=72'), 'diverged', '--lr')
    assert not Path('save/result', util.CHECKPOINT).exists()


@pytest.fixture
def checkpoint(script, birds):
    """A trained checkpoint that a test may break: (flags, its dict, a function that puts a changed one in its place)."""
    flags, *_ = birds
    assert script('main', *flags)[0] == 0
    path = Path('save/result', util.CHECKPOINT)
    content = torch.load(path, weights_only=True)
    return flags, content, lambda changed: torch.save(changed, path)


def test_checkpoints_of_odd_structure(script, checkpoint):
    flags, content, put = checkpoint
    data = [flag for flag in flags if flag.startswith(('--dataset', '--data_root', '--metadata_root'))]
    weights = content['state_dict']
    nan = {name: value * float('nan') if name == 'conv_last.weight' else value for name, value in weights.items()}
    for change, words in (({'state_dict': [1]}, 'state_dict is a list'), ({'model': 'resnet18'}, 'model is a str'),
                          ({'state_dict': {3: torch.ones(1)}}, '3 is no name'), ({'state_dict': nan}, 'diverged'),
                          ({'model': content['model'] | {'attribution_method': 'CALM'}}, 'no method "CALM"')):
        put(content | change)
        refused(script('eval_pixel_perturb', *data), words)
    put({key: value for key, value in content.items() if key != 'optimizer'})
    refused(script('main', *flags), 'no training to go on with')


def test_calm_weights_without_a_record_are_not_silently_cam(script, birds):
    flags, *_ = birds
    model = build_model('resnet18', 'CALM_EM', 18, last_stage='layer1')
    torch.save(model.state_dict(), 'bare.pth')
    code, _, err = script('eval_pixel_perturb', *flags, '--load_checkpoint=bare.pth')
    assert code == 0 and 'has an attention layer' in err and '--attribution_method=CALM_EM' in err


def test_going_on_needs_no_imagenet_weights(script, checkpoint, monkeypatch):
    """As when the network is gone: the checkpoint replaces them anyway."""
    flags, *_ = checkpoint
    monkeypatch.setattr('torch.hub.download_url_to_file', lambda *_, **__: pytest.fail('downloads'))
    again = [flag for flag in flags if not flag.startswith(('--pretrained', '--epochs'))]
    code, _, err = script('main', *again, '--epochs=2')
    assert code == 0, err


def test_evaluating_keeps_the_trainings_results(script, checkpoint):
    flags, *_ = checkpoint
    before = Path('save/result/results.json').read_text()
    data = [flag for flag in flags if flag.startswith(('--dataset', '--data_root', '--metadata_root'))]
    code, _, err = script('main', '--is_train=False', *data)
    assert code == 0, err
    assert Path('save/result/results.json').read_text() == before and Path('save/result/accuracy.json').is_file()


def test_images_too_small_for_the_network(script, birds):
    flags, *_ = birds
    flags = [flag for flag in flags if not flag.startswith(('--architecture', '--last_stage', '--crop_size'))]
    refused(script('main', *flags, '--architecture=vgg16', '--crop_size=8'), '--crop_size=8')
    refused(script('main', *flags, '--architecture=resnet18', '--crop_size=16'), '--crop_size=16', 'one cell')


def test_nothing_to_localise(script, checkpoint, birds):
    flags, *_ = checkpoint
    locations = birds[1] / 'parts' / 'part_locs.txt'
    lines = locations.read_text().splitlines()
    locations.write_text(''.join(f'{line.rsplit(" ", 1)[0]} 0\n' for line in lines))
    data = [flag for flag in flags if flag.startswith(('--dataset', '--data_root', '--metadata_root'))]
    refused(script('eval_cue_location', *data), 'no image to evaluate', 'part_locs.txt')
    locations.write_text('\n'.join(lines) + '\n')
    attributes = birds[1] / 'attributes' / 'class_attribute_labels_continuous.txt'
    attributes.write_text(''.join(attributes.read_text().splitlines(keepends=True)[:5]))
    refused(script('eval_cue_location', *data), 'attributes of 5 classes', 'label 17')


@pytest.mark.parametrize('flag, words', [
    ('--seed=5000000000', ['--seed']), ('--experiment_name=../../x', ['leads out of --save_root']),
    ('--is_different_checkpoint', ['--load_checkpoint'])])
def test_flags_that_make_no_sense(script, birds, flag, words):
    refused(script('main', *birds[0], flag), *words)


def test_ids_that_are_not_utf8(script, birds):
    flags, _, meta = birds
    ids = meta / 'train' / 'image_ids.txt'
    ids.write_bytes(ids.read_bytes().replace(b'Toy_A1', b'Toy_\xff1', 1))
    refused(script('main', *flags), 'image_ids.txt, line 1', 'expected')
