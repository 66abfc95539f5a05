"""search.py: trials are experiments that go on, the best on val is printed as a command, mistakes stop the search."""
import json
import re
import shlex
import sys
import time

import optuna
import pytest
from conftest import SMALL
from munch import Munch

from research import search
from runtime import screen


@pytest.fixture
def study(script, tiny_birds, monkeypatch):
    """Call search.py with its trainings in this process: (exit code, stdout, stderr), and the commands that it ran."""
    import subprocess

    import main
    ran, run = [], subprocess.run

    def train(command, **options):
        if command[0] != sys.executable:  # git, which is asked for the commit
            return run(command, **options)
        ran.append([str(word) for word in command[1:]])
        monkeypatch.setattr('sys.argv', ran[-1])
        try:
            screen.run(main.main)
        except SystemExit as stop:
            return subprocess.CompletedProcess(command, stop.code)
        return subprocess.CompletedProcess(command, 0)
    monkeypatch.setattr(subprocess, 'run', train)
    flags = [*tiny_birds, *SMALL, '--epochs=1']
    return lambda *own: (script('research.search', *own, *flags), ran)


def test_trials_are_drawn_log_uniformly_and_the_best_is_a_command(study, tmp_path):
    (code, out, err), ran = study('--trials=3', '--study=birds', '--lr_low=1e-5', '--lr_high=1e-1')
    assert code == 0, err
    trials = json.loads((tmp_path / 'save/birds/trials.json').read_text())
    assert len(trials) == len(ran) == 3 and [trial['val_accuracy'] for trial in trials] == sorted(
        (trial['val_accuracy'] for trial in trials), reverse=True)
    for trial in trials:
        results = json.loads((tmp_path / 'save' / trial['experiment'] / 'results.json').read_text())
        assert results['val_accuracy'] == trial['val_accuracy'] and results['test_accuracy'] == trial['test_accuracy']
        assert results['settings']['lr'] == pytest.approx(trial['lr'], rel=0.01)
    command = shlex.split(re.search(r'^python (main\.py .*)$', out, re.M)[1])
    assert f'--experiment_name={trials[0]["experiment"]}' in command  # which it finds again, and its seed
    assert float(command[-1].removeprefix('--lr=')) == pytest.approx(trials[0]['lr'], rel=0.01)
    assert (tmp_path / 'save/birds/search.png').stat().st_size > 1000
    study('--trials=4', '--study=birds', '--lr_low=1e-5', '--lr_high=1e-1')
    assert len(ran) == 4 and len({trial['lr'] for trial in json.loads((tmp_path / 'save/birds/trials.json').read_text())}) == 4


@pytest.mark.filterwarnings('ignore:Heartbeat of storage', 'ignore::optuna.exceptions.ExperimentalWarning')
def test_a_trial_whose_process_died_goes_on_with_its_own_settings(study, tmp_path, monkeypatch):
    monkeypatch.setattr(search, 'HEARTBEAT', 1)
    (code, _, err), ran = study('--trials=1', '--study=birds')
    assert code == 0, err
    storage = optuna.storages.RDBStorage(f'sqlite:///{tmp_path / "save/birds/study.db"}', heartbeat_interval=1)
    lost = optuna.load_study(study_name='birds', storage=storage).ask()
    lost.set_user_attr('experiment', 'birds/trial_0001')
    rate = lost.suggest_float('lr', 1e-4, 1e-1, log=True)
    storage.record_heartbeat(lost._trial_id)
    time.sleep(3.5)  # longer than its signs of life may stay away
    (code, _, err), ran = study('--trials=2', '--study=birds')
    assert code == 0 and len(ran) == 2, err
    assert '--experiment_name=birds/trial_0001' in ran[-1] and f'--lr={rate:.3g}' in ran[-1]


@pytest.mark.parametrize('code', [-9, 143, 'interrupt'])
def test_an_interrupted_trial_goes_on_with_its_own_settings(code, study, monkeypatch):
    """Killed, stopped by a signal that the training heeds, or by Ctrl-C, which reaches the search too."""
    import subprocess
    train, ended = subprocess.run, []

    def end_the_first(command, **options):
        if command[0] != sys.executable or ended:
            return train(command, **options)
        ended.append([str(word) for word in command[1:]])
        if code == 'interrupt':
            raise KeyboardInterrupt
        return subprocess.CompletedProcess(command, code)
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, 'run', end_the_first)
        assert study('--trials=1', '--study=birds')[0][0] == 130
    (status, _, err), ran = study('--trials=1', '--study=birds')
    assert status == 0 and ran == ended, err


@pytest.mark.parametrize('code', [1, 2])
def test_a_training_that_fails_is_no_bad_rate(code, study, monkeypatch, tmp_path):
    """A full disk, say, after the first steps. Once that is mended the trial goes on."""
    from runtime import processes
    with monkeypatch.context() as patch:
        patch.setattr(processes, 'call', lambda command: (tmp_path / 'save/birds/trial_0000').mkdir(parents=True) or code)
        (status, _, err), _ = study('--trials=1', '--study=birds')
    assert status == 2 and f'main.py ended with exit code {code}' in err and not (tmp_path / 'save/birds/trials.json').exists()
    (status, _, err), ran = study('--trials=1', '--study=birds')
    (trial,) = json.loads((tmp_path / 'save/birds/trials.json').read_text())
    assert status == 0 and trial['experiment'] == 'birds/trial_0000' and trial['val_accuracy'] > 0, err
    assert ran[0][-1] == f'--lr={trial["lr"]:.3g}'


def test_a_divergence_of_an_earlier_search_does_not_count(study, monkeypatch, tmp_path):
    """study.db was deleted, and main.py refuses the folder of the trial that is there."""
    from runtime import processes
    (tmp_path / 'save/birds/trial_0000').mkdir(parents=True)
    (tmp_path / 'save/birds/trial_0000/diverged.txt').write_text('the loss is nan')
    monkeypatch.setattr(processes, 'call', lambda command: 2)
    assert study('--trials=1', '--study=birds')[0][0] == 2


def test_rates_hang_on_the_seed_and_the_trials_number_alone():
    """So that machines that start together do not draw the same ones."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def rates(seed, numbers):
        own = optuna.create_study()
        trials = [own.ask() for _ in range(max(numbers) + 1)]
        args = Munch(search_seed=seed, lr_low=1e-4, lr_high=1e-1)
        return [search.draw_rate(trials[number], args) for number in numbers]
    first = rates(4295, [0, 1, 2, 3])
    assert len(set(first)) == 4 and rates(4295, [3, 1]) == [first[3], first[1]] and rates(1, [0]) != first[:1]


def test_a_rate_at_which_training_diverges_is_the_worst_and_no_failure(study, tmp_path):
    (code, _, err), _ = study('--trials=1', '--lr_low=1e29', '--lr_high=1e30')
    assert code == 0, err
    (trial,) = json.loads((tmp_path / 'save/search/trials.json').read_text())
    assert trial['val_accuracy'] == 0 and trial['test_accuracy'] is None
    assert 'Lower --lr' in (tmp_path / 'save/search/trial_0000/diverged.txt').read_text()


@pytest.mark.parametrize('flags, words', [
    (['--lr=0.1'], "are the search's"), (['--is_train=False'], "are the search's"), (['--lr_low=0'], '(0, inf)'),
    (['--lr_low=1', '--lr_high=0.1'], 'lower than'), (['--storage=nonsense'], 'the study nonsense does not open'),
    (['--epoch=3'], 'did you mean --epochs?'), (['--trials=0'], '--trials')])
def test_mistakes(script, tiny_birds, flags, words):
    code, _, err = script('research.search', *tiny_birds, *flags)
    assert code == 2 and words in err and err.count('\n') == 1


def test_a_training_that_cannot_start_stops_the_search(study):
    (code, _, err), ran = study('--trials=5', '--load_checkpoint=nowhere')
    assert code == 2 and len(ran) == 1 and 'without a result' in err and 'nowhere' in err
