"""A training that is stopped, killed, or robbed of its files goes on to the bit; what cannot be written is said first."""
import json
import os
import resource
import signal
import subprocess
import sys

import pytest
import several
import torch
from conftest import OWN_FLAGS, ROOT, content_of, paint_folder, refused, same_training, without

from experiment import checkpoint_files, training, weights
from wsol import networks

LOG = 'save/result/log.jsonl'


@pytest.fixture
def failing(monkeypatch):
    """Have trainings fail before a step, as several.fail_at; failing(None, None): no more. Ctrl-C is heard, which a shell
    switches off for what it runs in the background."""
    usual, before = training.Training.take_step, signal.signal(signal.SIGINT, signal.default_int_handler)

    def fail(step, kind):
        monkeypatch.setattr(training.Training, 'take_step', usual)
        if step is not None:
            monkeypatch.setattr(training.Training, 'take_step', several.fail_at(step, kind))
    yield fail
    signal.signal(signal.SIGINT, before)


def same_to_the_end(first, second):
    """Whether two finished trainings left the same network, log, optimiser and results."""
    results = [json.loads((folder / 'results.json').read_text()) for folder in (first, second)]
    keys = ('weights_sha256', 'val_accuracy', 'test_accuracy')
    return same_training(first, second) and all(results[0][key] == results[1][key] for key in keys)


@pytest.mark.parametrize('workers, flags', [(0, []), (1, []), (2, []), (0, ['--prior_training=entropy:-1'])])
def test_a_training_stopped_at_any_step_goes_on_to_the_bit(script, pets, tiny_random_network, tmp_path, failing, workers,
                                                           flags):
    """Three epochs of three steps: stopped in the first step, at an epoch's end, and within the next ones."""
    base = [*without(pets, 'workers'), f'--workers={workers}', '--epochs=3', '--attribution_method=CALM_EM',
            '--lr_schedule=one_cycle', *flags]
    assert script('main', *base, '--experiment_name=straight')[0] == 0
    for step, done in ((1, (0, 1)), (2, (0, 3)), (2, (1, 2)), (3, (2, 2))):
        failing(step, 'stop')
        code, _, err = script('main', *base, '--experiment_name=stopped')
        assert code == 143 and 'the same command goes on' in err and 'Traceback' not in err
        content = content_of(tmp_path / 'save/stopped')
        assert (content['epoch'], content['step']) == done
    failing(None, None)
    assert script('main', *base, '--experiment_name=stopped')[0] == 0
    assert same_to_the_end(tmp_path / 'save/straight', tmp_path / 'save/stopped')


def test_sigusr1_is_the_schedulers_other_word(script, pets, tmp_path, failing):
    failing(2, 'warn')
    code, _, err = script('main', *pets, '--epochs=2')
    assert code == 138 and 'stopped by SIGUSR1 after 0 epochs and 2 steps' in err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # as it was


@pytest.mark.parametrize('step', [1, 3, 5])
def test_a_killed_training_goes_on_from_its_last_save_to_the_bit(script, pets, tiny_random_network, tmp_path, failing, step):
    """--checkpoint_minutes=0 saves after every step. The end comes between two of them, without a word."""
    base = [*pets, '--epochs=2', '--checkpoint_minutes=0']
    assert script('main', *base, '--experiment_name=straight')[0] == 0
    failing(step, 'interrupt')
    assert script('main', *base, '--experiment_name=killed')[0] == 130
    failing(None, None)
    code, out, _ = script('main', *base, '--experiment_name=killed')
    assert code == 0 and step == 1 or f'{(step - 1) // 3} finished epochs' in out
    assert same_to_the_end(tmp_path / 'save/straight', tmp_path / 'save/killed')


def test_a_requeued_command_with_override_cache_starts_afresh_once(script, pets, tmp_path, failing):
    assert script('main', *pets, '--epochs=1')[0] == 0
    again = [*pets, '--epochs=2', '--override_cache']
    for done in ((0, 2), (1, 1)):
        failing(2, 'stop')
        assert script('main', *again)[0] == 143
        content = content_of(tmp_path / 'save/result')
        assert (content['epoch'], content['step']) == done
    failing(None, None)
    assert script('main', *again)[0] == 0
    assert content_of(tmp_path / 'save/result')['epoch'] == 2
    failing(2, 'stop')
    assert script('main', *again)[0] == 143  # finished: asked for once more, it starts afresh once more
    assert content_of(tmp_path / 'save/result')['epoch'] == 0


@pytest.mark.parametrize('parts', [2, 3, 5, 9])
def test_accumulated_parts_give_the_update_of_the_large_batch(script, pets, tmp_path, monkeypatch, parts):
    """On a network without BatchNorm, to the rounding of float32; batches of 5 and 2 are cut into unequal parts."""
    monkeypatch.setitem(networks.ARCHITECTURES, 'resnet34', several.PLAIN['resnet34'])
    base = [*without(pets, 'architecture'), '--architecture=resnet34', '--epochs=3', '--attribution_method=CALM_EM']
    for name, flags in (('whole', []), ('parts', [f'--accumulate={parts}'])):
        assert script('main', *base, *flags, f'--experiment_name={name}')[0] == 0
    whole, cut = (content_of(tmp_path / 'save' / name) for name in ('whole', 'parts'))
    for name, value in whole['state_dict'].items():
        torch.testing.assert_close(cut['state_dict'][name], value, rtol=1e-4, atol=1e-6)
    assert [line['train_accuracy'] for line in whole['log']] == [line['train_accuracy'] for line in cut['log']]


@pytest.mark.parametrize('damage', [
    lambda path: path.unlink(), lambda path: path.write_bytes(b''), lambda path: path.write_bytes(b'\xff\xfe\0'),
    lambda path: path.write_bytes(path.read_bytes()[:20]), lambda path: path.write_text('[1]\nnull\n'),
    lambda path: path.write_bytes(path.read_bytes() + b'{"epoch": 7}\n[')], ids=[
        'missing', 'empty', 'no text', 'cut off', 'other lines', 'lines of nobody'])
def test_a_damaged_log_is_written_again(script, pets, tmp_path, damage):
    assert script('main', *pets, '--epochs=2')[0] == 0
    lines = (tmp_path / LOG).read_bytes()
    damage(tmp_path / LOG)
    code, _, err = script('main', *pets, '--epochs=3')
    assert code == 0, err
    assert (tmp_path / LOG).read_bytes().startswith(lines)
    assert [json.loads(line)['epoch'] for line in (tmp_path / LOG).read_text().splitlines()] == [1, 2, 3]


# --- where nothing can be written -----------------------------------------------------------------------------------


@pytest.fixture
def largest_file(monkeypatch):
    """Let no file be written beyond so many bytes, as on a full disk: the system refuses, with its own error."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def test_a_disk_without_space_for_a_checkpoint_is_found_before_the_first_step(script, pets, tmp_path, failing, largest_file):
    failing(1, 'error')
    largest_file(500_000)
    refused(script('main', *pets, '--epochs=1'), 'cannot write', 'save/result')
    assert not (tmp_path / 'save').exists()


def test_a_folder_that_takes_no_file_is_found_before_the_first_step(script, pets, tmp_path, failing):
    failing(1, 'error')
    (tmp_path / 'file').touch()
    refused(script('main', *pets, '--epochs=1', '--save_root=file/below'), 'cannot make the folder')
    refused(script('main', *pets, '--epochs=1', '--save_root=/proc'), '/proc/result')


@pytest.mark.parametrize('name', ['eval_wsol', 'eval_pixel_perturb', 'main'])
def test_a_full_disk_is_found_before_an_evaluations_first_image(script, tiny_birds, save, forwards, largest_file, name):
    largest_file(1000)
    forwards.clear()
    refused(script(name, *tiny_birds, '--experiment_name=CAM', *(['--is_train=False'] if name == 'main' else [])),
            'cannot write', 'save/CAM')
    assert forwards == []


def test_a_disk_that_fills_later_leaves_the_old_files_whole(script, pets, tmp_path, monkeypatch, largest_file):
    """Full from the second epoch on: one line, and what the first epoch left is what it was; then it goes on."""
    assert script('main', *pets, '--epochs=2', '--experiment_name=straight')[0] == 0
    take_step, before = training.Training.take_step, {}

    def fill(*inputs):
        if not before and (tmp_path / LOG).read_bytes():
            before.update({path.name: path.read_bytes() for path in (tmp_path / 'save/result').glob('[!.]*')})
            largest_file(200_000)
        return take_step(*inputs)
    with monkeypatch.context() as patch:
        patch.setattr(training.Training, 'take_step', fill)
        refused(script('main', *pets, '--epochs=2'), f'cannot write save/result/{weights.FILE}', 'File too large')
    largest_file(resource.RLIM_INFINITY)
    assert {path.name: path.read_bytes() for path in (tmp_path / 'save/result').iterdir()} == before
    assert script('main', *pets, '--epochs=2')[0] == 0
    assert same_training(tmp_path / 'save/straight', tmp_path / 'save/result')


# --- streams and children -----------------------------------------------------------------------------------------------


def test_a_closed_screen_and_a_full_one_cost_no_work(pets, tmp_path):
    """Standard output closed, standard error full: the training is finished and saved. --help | head has no traceback."""
    main = f'{sys.executable} {ROOT / "main.py"}'
    train = subprocess.Popen(['sh', '-c', f'exec {main} {" ".join(pets)} --epochs=1 >&- 2>/dev/full'], cwd=tmp_path)
    shown = subprocess.Popen(['sh', '-c', f'{main} --help | head -n 1'], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
    out, err = shown.communicate(timeout=several.LIMIT)
    assert out.startswith('usage: main.py') and err == ''
    assert train.wait(timeout=several.LIMIT) == 0
    assert json.loads((tmp_path / 'save/result/results.json').read_text())['epoch'] == 1


def test_a_training_that_starts_afresh_and_ends_before_its_first_save_starts_afresh_again(script, tmp_path, monkeypatch):
    """The same command, three times: the network of the first is not taken for that of the third."""
    folder = paint_folder(tmp_path / 'pets', counts=(2, 1, 1))
    flags, saved, save = [*OWN_FLAGS, f'--dataset={folder}', '--override_cache'], [], checkpoint_files.save
    assert script('main', *flags)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(training.Training, 'run', lambda *_: os.kill(os.getpid(), signal.SIGINT))
        assert script('main', *flags)[0] == 130

    def watch(*inputs, **options):
        saved.append(save(*inputs, **options))
    monkeypatch.setattr(checkpoint_files, 'save', watch)
    code, _, err = script('main', *flags)
    assert code == 0 and len(saved) == 1, err


def test_a_training_does_not_go_on_with_other_class_folders(script, tmp_path):
    folder = paint_folder(tmp_path / 'pets', counts=(2, 1, 1))
    flags = [*OWN_FLAGS, f'--dataset={folder}']
    assert script('main', *flags)[0] == 0
    names = sorted(path.name for path in (folder / 'train').iterdir())
    for split in ('train', 'val', 'test'):
        (folder / split / names[0]).rename(folder / split / 'zebra')
    refused(script('main', *flags, '--epochs=2'), 'was trained on other class folders', 'last_checkpoint')
