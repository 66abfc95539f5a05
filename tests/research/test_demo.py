"""demo.py and ablation.py, run for real at a tiny size: their tables hold the figures of the results, to the digit."""
import json
import re

import numpy as np
import pytest
from conftest import ROOT, SIZE, refused, without
from PIL import Image

from research import ablation, commands, demo
from wsol.errors import UserError

# the demo's settings, but for the sizes and the number of epochs
TINY = [flag for flag in demo.TRAIN if 'size' not in flag] + [f'--crop_size={SIZE}', '--resize_size=64', '--workers=0',
                                                             '--device=cpu']


def results_of(folder):
    """{(metric, process): result} of an experiment, read from its files; the training's under 'results'."""
    found = {'results': json.loads((folder / 'results.json').read_text())}
    for path in folder.glob('*_*.json'):
        result = json.loads(path.read_text())
        key = result['metric'], result['settings']['score_map_process']
        assert key not in found
        found[key] = result
    return found


def rows_of(path):
    """{name of the row: its cells} of a table."""
    _, line, *rows = path.read_text().rstrip('\n').split('\n')
    assert set(line) == {'-'}
    cells = [re.split(r'  +', row.strip()) for row in rows]
    return {name: values for name, *values in cells}


def one_decimal(value):
    return '-' if value is None else f'{value:.1f}'


def test_the_demos_table_holds_the_figures_of_its_results(script, at_home, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, 'TRAIN', TINY)
    monkeypatch.setattr(demo, 'CROP_SIZE', SIZE)
    monkeypatch.setattr(demo, 'TRAININGS', {name: [*flags, '--epochs=1'] for name, flags in demo.TRAININGS.items()})
    code, out, err = script('research.demo')
    assert code == 0, err
    folder = tmp_path / 'save/demo'
    printed = [line for line in out.splitlines() if line.startswith('$ python ')]
    assert printed == ['$ python ' + ' '.join(command) for command in at_home]  # what is shown is what is run
    assert sum(command[0] == 'main.py' for command in at_home) == 3

    rows, results = rows_of(folder / 'table.txt'), {name: results_of(folder / name) for name in ('CAM', 'CALM_EM')}
    assert list(rows) == list(demo.MEASURED)
    expected_rows = {'CAM': ('CAM', 'vanilla'), 'CALM_EM': ('CALM_EM', 'jointll'), 'control: prior of CALM_EM': ('CALM_EM', 'saliency'),
                     "control: the bird's mask": ('CAM', 'object_mask'), 'control: random maps': ('CAM', 'random')}
    for name, (experiment, process) in expected_rows.items():
        cue, erased = (results[experiment][metric, process] for metric in ('cue_location', 'pixel_perturb'))
        assert cue['weights_sha256'] == erased['weights_sha256'] == results[experiment]['results']['weights_sha256']
        pxap = cue['pxap']
        expected = ['-' if name.startswith('control') else one_decimal(results[experiment]['results']['test_accuracy'])]
        for values in (pxap['parts']['published'], pxap['parts']['per pair, all pixels'],
                       pxap['exact']['per pair, all pixels']):
            expected += [one_decimal(values[k]) for k in ('1', '2', '3')]
        expected.insert(4, one_decimal(cue['dropped']['parts']['all']))
        expected += ['-' if record['R'] is None else f'{record["R"]:.2f}' for record in erased['ratios']]
        assert rows[name] == expected, name
    table = (folder / 'table.txt').read_text()
    assert table in out + '\n'
    assert results['CALM_EM']['results']['settings']['prior'] == 'softplus'
    with Image.open(folder / 'contact_sheet.png') as sheet:
        assert sheet.format == 'PNG' and min(sheet.size) > 500
        pixels = np.asarray(sheet.convert('RGB'))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000  # photos and maps, not a blank page


def test_the_demo_measures_the_network_that_is_there(script, tiny_birds, save, monkeypatch):
    """A result of an earlier network is not taken for the present one's."""
    monkeypatch.setattr(demo, 'FOLDER', save)
    monkeypatch.setattr(demo, 'MEASURED', {'CAM': ('CAM', 'vanilla')})
    for name in ('eval_cue_location', 'eval_pixel_perturb'):
        assert script(name, *without(tiny_birds, 'seed'), '--experiment_name=CAM', commands.PRECISION)[0] == 0
    assert 'CAM' in demo.table()
    results = json.loads((save / 'CAM/results.json').read_text())
    (save / 'CAM/results.json').write_text(json.dumps(results | {'weights_sha256': 'of another network'}))
    with pytest.raises(UserError, match='no result of cue_location'):
        demo.table()


def test_a_command_that_fails_stops_the_demo(monkeypatch, capfd):
    """A process of its own, as the user's."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match='main.py ended with exit code 2'):
        commands.run('save', 'main.py', '--no_such_flag')
    out, err = capfd.readouterr()
    assert '$ python main.py --no_such_flag --save_root=save' in out and 'unknown flag --no_such_flag' in err


def test_the_ablations_table_holds_mean_and_deviation_over_the_seeds(script, at_home, tmp_path, monkeypatch):
    quick = '--epochs=1'
    rows_to_run = {'CAM': ('CAM', 'layer1', True), 'CALM_EM, softplus': ('CALM_EM', 'layer1', True, '--prior=softplus'),
                   'CALM_ML, relu, from random weights': ('CALM_ML', 'layer1', False)}
    assert all(name in ablation.ROWS and ablation.ROWS[name][::2] == settings[::2] for name, settings in rows_to_run.items())
    monkeypatch.setattr(commands, 'TRAIN', TINY)
    monkeypatch.setattr(commands, 'FROM_RANDOM', [*commands.FROM_RANDOM, quick])
    monkeypatch.setattr(ablation, 'ROWS', {name: (*settings, quick) for name, settings in rows_to_run.items()})
    code, out, err = script('research.ablation', '2')
    assert code == 0, err
    folder = tmp_path / 'save/ablation'
    rows = rows_of(folder / 'table.txt')
    assert list(rows) == list(rows_to_run)
    for name, (method, *_) in rows_to_run.items():
        experiment = name.replace(', ', '_').replace(' ', '_')
        results = [results_of(folder / f'seed{seed}' / experiment) for seed in (0, 1)]
        columns = [[own['results']['test_accuracy'] for own in results]]
        for process in ['vanilla'] if method == 'CAM' else ['jointll', 'saliency']:
            columns += [[own['cue_location', process]['pxap']['exact']['per pair, all pixels'][k] for own in results]
                        for k in ('1', '2', '3')]
        expected = [f'{(a + b) / 2:.1f} ± {abs(a - b) / 2 ** 0.5:.1f}' for a, b in columns]
        assert rows[name] == expected + ['-'] * (7 - len(expected)), name
        for seed, own in enumerate(results):
            settings = own['results']['settings']
            assert settings['seed'] == seed and settings['attribution_method'] == method
            assert settings['prior'] == ('softplus' if 'softplus' in name else 'relu')
            assert (settings['load_checkpoint'] is None) == ('random' in name)
    assert (folder / 'table.txt').read_text() in out + '\n'
    # what is trained and measured is not run again
    before = len(at_home)
    assert script('research.ablation', '1', '--rows', 'CAM')[0] == 0
    assert at_home[before:] == []
    assert list(rows_of(folder / 'table.txt')) == ['CAM']
    accuracy = json.loads((folder / 'seed0/CAM/results.json').read_text())['test_accuracy']
    assert rows_of(folder / 'table.txt')['CAM'][0] == f'{accuracy:.1f}'  # one seed has no deviation
    # nor is what was trained otherwise taken for it; the precision is the machine's
    monkeypatch.setattr(commands, 'TRAIN', [*TINY, '--batch_size=16'])
    refused(script('research.ablation', '1', '--rows', 'CAM'), 'seed0/start_layer1 was trained with other settings (batch_size was 64, is 16)',
            'Move that folder away')
    other = '--precision=' + ('float32' if commands.PRECISION.endswith('bfloat16') else 'bfloat16')
    monkeypatch.setattr(commands, 'PRECISION', other)
    monkeypatch.setattr(commands, 'TRAIN', [other if flag.startswith('--precision') else flag for flag in TINY])
    commands.train_row(folder / 'seed0', 'CAM', 0, 'CAM', 'layer1', True, quick)
    assert at_home[before:] == []


def test_the_ablations_number_of_seeds_and_rows(script):
    refused(script('research.ablation', 'three'), 'SEEDS', '"three"')
    refused(script('research.ablation', '1', '--rows', 'CALM_EM, rely'), 'did you mean CALM_EM, relu?')
