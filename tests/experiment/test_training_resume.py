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
from conftest import OWN_FLAGS, ROOT, accepted, content_of, paint_folder, refused, same_training, without

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


STOPS = [(1, (0, 1)), (2, (0, 3)), (2, (1, 2)), (3, (2, 2))]  # before which step of a run; the epochs and steps done then


@pytest.mark.parametrize('schedule, stops_of', [
    ('--lr_schedule=one_cycle', {0: STOPS, 1: STOPS[:2], 2: [(1, (0, 1)), (5, (1, 3))]}), ('--lr_decay_frequency=2', {0: STOPS})])
def test_a_training_stopped_at_any_step_goes_on_to_the_bit_with_any_number_of_workers(
        script, pets, tmp_path, failing, schedule, stops_of):
    """Three epochs of three steps: stopped in the first step, at an epoch's end, and within the next ones. The network
    draws at random in training."""
    flags = [*without(pets, 'workers'), '--epochs=3', '--attribution_method=CALM_EM', schedule]
    assert script('main', *flags, '--workers=0', '--experiment_name=straight')[0] == 0
    for workers, stops in stops_of.items():
        again, folder = [*flags, f'--workers={workers}', f'--experiment_name={workers}'], tmp_path / 'save' / str(workers)
        for step, done in stops:
            failing(step, 'stop')
            code, _, err = script('main', *again)
            assert code == 143 and 'the same command goes on' in err and 'Traceback' not in err
            content = content_of(folder)
            assert (content['epoch'], content['step']) == done
        failing(None, None)
        assert script('main', *again)[0] == 0
        assert same_to_the_end(tmp_path / 'save/straight', folder)


def test_sigusr1_is_the_schedulers_other_word(script, pets, tmp_path, failing):
    failing(2, 'warn')
    code, _, err = script('main', *pets, '--epochs=2')
    assert code == 138 and 'stopped by SIGUSR1 after 0 epochs and 2 steps' in err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # as it was


def test_a_killed_training_goes_on_from_its_last_save_to_the_bit(script, pets, tmp_path, failing):
    """--checkpoint_minutes=0 saves after every step. The end comes between two of them, without a word."""
    flags = [*pets, '--epochs=2', '--checkpoint_minutes=0']
    assert script('main', *flags, '--experiment_name=straight')[0] == 0
    for step in (1, 3, 5):
        failing(step, 'interrupt')
        assert script('main', *flags, f'--experiment_name=killed{step}')[0] == 130
        failing(None, None)
        code, out, _ = script('main', *flags, f'--experiment_name=killed{step}')
        assert code == 0 and (step == 1 or f'{(step - 1) // 3} finished epochs' in out)
        assert same_to_the_end(tmp_path / 'save/straight', tmp_path / f'save/killed{step}')


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


def test_accumulated_parts_give_the_update_of_the_large_batch(script, pets, tmp_path, monkeypatch):
    """On a network without BatchNorm, to the rounding of float32; batches of 5 and 2 are cut into unequal parts."""
    monkeypatch.setitem(networks.ARCHITECTURES, 'resnet34', several.PLAIN['resnet34'])
    flags = [*without(pets, 'architecture'), '--architecture=resnet34', '--epochs=2', '--attribution_method=CALM_EM']
    for parts in (1, 2, 3, 9):
        assert script('main', *flags, f'--accumulate={parts}', f'--experiment_name={parts}')[0] == 0
        whole, cut = (content_of(tmp_path / 'save' / str(number)) for number in (1, parts))
        for name, value in whole['state_dict'].items():
            torch.testing.assert_close(cut['state_dict'][name], value, rtol=1e-4, atol=1e-6)
        assert [line['train_accuracy'] for line in whole['log']] == [line['train_accuracy'] for line in cut['log']]


def test_a_damaged_log_is_written_again(script, pets, tmp_path):
    """Missing, or no text: the checkpoint holds the lines."""
    path = tmp_path / LOG
    assert script('main', *pets, '--epochs=1')[0] == 0
    for epochs, damage in enumerate([None, b'\xff\xfe\0'], 2):
        lines = path.read_bytes()
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        accepted(script('main', *pets, f'--epochs={epochs}'))
        assert path.read_bytes().startswith(lines)
        assert [json.loads(line)['epoch'] for line in path.read_text().splitlines()] == list(range(1, epochs + 1))


# --- where nothing can be written -----------------------------------------------------------------------------------


@pytest.fixture
def largest_file(monkeypatch):
    """Let no file be written beyond so many bytes, as on a full disk: the system refuses, with its own error."""
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)  # Python does not notice that its own files are cut off
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


def test_a_disk_that_fills_later_leaves_the_old_files_whole(script, resnet_pets, tmp_path, monkeypatch, largest_file):
    """Full from the second epoch on: one line, and what the first epoch left is what it was; then it goes on."""
    assert script('main', *resnet_pets, '--epochs=2', '--experiment_name=straight')[0] == 0
    take_step, before = training.Training.take_step, {}

    def fill(*inputs):
        if not before and (tmp_path / LOG).read_bytes():
            before.update({path.name: path.read_bytes() for path in (tmp_path / 'save/result').glob('[!.]*')})
            largest_file(200_000)
        return take_step(*inputs)
    with monkeypatch.context() as patch:
        patch.setattr(training.Training, 'take_step', fill)
        refused(script('main', *resnet_pets, '--epochs=2'), f'cannot write save/result/{weights.FILE}', 'File too large')
    largest_file(resource.RLIM_INFINITY)
    assert {path.name: path.read_bytes() for path in (tmp_path / 'save/result').iterdir()} == before
    assert script('main', *resnet_pets, '--epochs=2')[0] == 0
    assert same_training(tmp_path / 'save/straight', tmp_path / 'save/result')


# --- streams and children -----------------------------------------------------------------------------------------------


def test_a_closed_screen_and_a_full_one_cost_no_work(resnet_pets, tmp_path):
    """Standard output closed, standard error full: the training is finished and saved. `| head` gives no traceback."""
    (tmp_path / 'talk.py').write_text('from runtime import screen\nscreen.run(lambda: [screen.say(i) for i in range(99999)])\n')
    train = subprocess.Popen(['sh', '-c', f'exec {sys.executable} {ROOT / "main.py"} {" ".join(resnet_pets)} --epochs=1 >&- 2>/dev/full'],
                             cwd=tmp_path)
    shown = subprocess.Popen(['sh', '-c', f'{sys.executable} talk.py | head -n 1'], cwd=tmp_path, text=True,
                             env=os.environ | {'PYTHONPATH': str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert shown.communicate(timeout=several.LIMIT) == ('0\n', '')
    assert train.wait(timeout=several.LIMIT) == 0
    assert json.loads((tmp_path / 'save/result/results.json').read_text())['epoch'] == 1


def interrupted(*_):
    """As Ctrl-C does; a signal would not: shells let the processes they start in the background ignore it."""
    raise KeyboardInterrupt


def test_a_training_that_starts_afresh_and_ends_before_its_first_save_starts_afresh_again(script, tmp_path, monkeypatch):
    """The same command, three times: the network of the first is not taken for that of the third."""
    folder = paint_folder(tmp_path / 'pets', counts=(2, 1, 1))
    flags, saved, save = [*OWN_FLAGS, f'--dataset={folder}', '--override_cache'], [], checkpoint_files.save
    assert script('main', *flags)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(training.Training, 'run', interrupted)
        assert script('main', *flags)[0] == 130

    def watch(*inputs, **options):
        saved.append(save(*inputs, **options))
    monkeypatch.setattr(checkpoint_files, 'save', watch)
    code, _, err = script('main', *flags)
    assert code == 0 and len(saved) == 1, err
