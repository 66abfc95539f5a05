"""ablation.py: its table holds means and deviations of the results' figures."""
import pytest
from conftest import accepted, refused
from test_demo import TINY, results_of, rows_of

from research import ablation, commands

COUNT = 'per pair, all pixels'


@pytest.fixture
def tiny(few_birds, at_home, monkeypatch):
    """Trainings of one epoch, and three rows up to layer1. Returns the commands that are run."""
    monkeypatch.setattr(commands, 'SIZES', [*TINY, '--workers=0'])
    monkeypatch.setattr(ablation, 'FROM_RANDOM', ['--epochs=1'])
    monkeypatch.setattr(ablation, 'ROWS', ('CAM, layer1', 'CALM_EM, softplus, layer1'))
    return at_home


def test_the_table(script, tiny, tmp_path, monkeypatch):
    folder = tmp_path / 'save/ablation'
    results = check_the_table(script, folder)
    before = len(tiny)
    assert script('research.ablation', '1', '--rows', 'CAM, layer1', '--epochs=1')[0] == 0
    table = rows_of((folder / 'table.txt').read_text())
    assert tiny[before:] == [] and list(table) == ['CAM, layer1']
    assert table['CAM, layer1'][0] == f'{results["CAM, layer1"][0]["results"]["test_accuracy"]:.1f}'  # one seed has no deviation
    # a network with other settings is not taken for it; the precision is the machine's
    monkeypatch.setattr(commands, 'SIZES', [*commands.SIZES, '--batch_size=16'])
    refused(script('research.ablation', '1', '--rows', 'CAM, layer1', '--epochs=1'),
            'seed0/start_layer1 was trained with other settings (batch_size was 32, is 16)', 'Move that folder away')
    other_precision = '--precision=' + ('float32' if commands.PRECISION.endswith('bfloat16') else 'bfloat16')
    monkeypatch.setattr(commands, 'SIZES', commands.SIZES[:-1])
    monkeypatch.setattr(commands, 'TRAIN', [other_precision if flag == commands.PRECISION else flag for flag in commands.TRAIN])
    monkeypatch.setattr(commands, 'PRECISION', other_precision)
    ablation.train(folder / 'seed0', 'CAM, layer1', 0, '--epochs=1')
    assert tiny[before:] == []


def check_the_table(script, folder):
    out = accepted(script('research.ablation', '2', '--epochs=1'))
    text = (folder / 'table.txt').read_text()
    rows, matching = rows_of(text), {}
    assert list(rows) == list(ablation.ROWS) and text in out + '\n'
    for name in ablation.ROWS:
        head = name.split(',')[0]
        results = matching[name] = [results_of(folder / f'seed{seed}' / name.replace(', ', '_')) for seed in (0, 1)]
        columns = [[result['results']['test_accuracy'] for result in results]]
        for method in ['vanilla'] if head == 'CAM' else ['jointll', 'saliency']:
            columns += [[result['cue_location', method]['pxap']['exact'][COUNT][k] for result in results] for k in ('1', '2', '3')]
        expected = [f'{(a + b) / 2:.1f} ± {abs(a - b) / 2 ** 0.5:.1f}' for a, b in columns]
        assert rows[name] == expected + ['-'] * (7 - len(expected)), name
        for seed, result in enumerate(results):
            settings = result['results']['settings']
            assert settings['seed'] == seed and settings['attribution_method'] == head and settings['epochs'] == 1
            assert settings['prior'] == ('softplus' if 'softplus' in name else 'relu')
    return matching


def test_from_random_weights_there_is_no_start(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(commands, 'run', lambda folder, *command: ran.append(command))
    ablation.train(tmp_path, 'CALM_ML, relu, from random weights', 0, '--epochs=8')
    (command,) = ran
    assert '--epochs=40' in command and '--epochs=8' not in command and not any('checkpoint' in flag for flag in command)


def test_mistakes(script):
    refused(script('research.ablation', 'three'), 'SEEDS', '"three"')
    refused(script('research.ablation', '1', '--rows', 'CALM_EM, rely'), 'did you mean CALM_EM, relu?')
    refused(script('research.ablation', '--seed=3'), 'research.ablation chooses --seed itself')
