"""precision.py: each figure in both precisions, and the accuracy of trainings by seed."""
import sys

import numpy as np
import pytest
from conftest import SMALL, without

import experiments
import precision
from result_files import read_result
from util import UserError
from whole_files import write_json

FOLDER = precision.FOLDER


@pytest.fixture
def runs(script, monkeypatch):
    """The scripts' command lines; each runs in this process."""
    seen = []

    def run(folder, name, *flags):
        seen.append((name, flags))
        code, _, err = script(name.removesuffix('.py'), *flags, f'--save_root={folder}')
        assert code == 0, err
    monkeypatch.setattr(experiments, 'run', run)
    return seen


def test_every_figure_stands_in_both_precisions(script, runs, tiny_birds, save, capsys, monkeypatch):
    flags = [*without(tiny_birds, 'precision'), f'--load_checkpoint={save / "CALM_EM"}']
    monkeypatch.setattr(sys, 'argv', ['precision.py', 'evaluations', *flags])
    precision.main()
    table = (FOLDER / 'evaluations.txt').read_text()
    assert [name for name, _ in runs] == [script for script in precision.SCRIPTS.values() for _ in range(2)]
    lines = {line.split('  ')[0]: line.split()[-3:] for line in table.splitlines()[2:]}
    assert {'MaxBoxAccV2', 'MaxBoxAcc', 'accuracy', 'R_10', 'R_90', 'PxAP, parts, published', 'PxAP, exact, per_pair'} <= lines.keys()
    path, = (FOLDER / 'bfloat16').glob('pixel_perturb_*.json')
    assert read_result(path)['settings']['precision'] == 'bfloat16'
    assert lines['R_50'][1] == f'{100 * read_result(path)["ratios"][2]["R"]:.2f}'
    for one, other, difference in lines.values():
        assert float(difference) == pytest.approx(float(other) - float(one), abs=0.0101)


def test_trainings_differ_in_nothing_but_the_precision(runs, tiny_birds, capsys, monkeypatch):
    flags = [*without(tiny_birds, 'precision', 'seed'), *SMALL, '--epochs=1']
    text = precision.trainings(flags, 2)
    accuracy = np.array([[read_result(FOLDER / f'seed{seed}_{kind}' / 'results.json')['test_accuracy'] for kind in precision.PRECISIONS]
                         for seed in range(2)])
    for seed, own in enumerate(accuracy):
        assert f'seed {seed}' in text and all(f'{value:.1f}' in text for value in own)
    assert f'{(accuracy[:, 1] - accuracy[:, 0]).mean():+.2f}' in text
    settings = [read_result(FOLDER / f'seed1_{kind}' / 'results.json')['settings'] for kind in precision.PRECISIONS]
    assert {key for key in settings[0] if settings[0][key] != settings[1][key]} <= {'precision', 'experiment_name', 'given'}
    assert [own['precision'] for own in settings] == ['float32', 'bfloat16']


def test_main_decides_whether_a_training_is_done(tmp_path, monkeypatch):
    """It finishes at once, or refuses other settings by name: what an earlier command left is not averaged unseen."""
    seen = []

    def run(folder, name, *flags):
        seen.append((name, flags))
        if '--epochs=25' in flags:
            raise UserError('epochs was 1, is 25')
        experiment = dict(flag.split('=') for flag in flags)['--experiment_name']
        write_json(folder / experiment / 'results.json', {'test_accuracy': 50.0})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, 'run', run)
    assert precision.trainings(['--epochs=1'], 1) == precision.trainings(['--epochs=1'], 1)
    assert seen[:2] == seen[2:] and {name for name, _ in seen} == {'main.py'}
    with pytest.raises(UserError, match='epochs was 1, is 25'):
        precision.trainings(['--epochs=25'], 5)
