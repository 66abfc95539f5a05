"""demo.py and the commands that studies run, at a tiny size: the table holds the figures of the results, to the digit."""
import json
import re

import numpy as np
import pytest
from conftest import SIZE, accepted, without
from PIL import Image

from research import commands, demo
from wsol.errors import UserError

TINY = [f'--crop_size={SIZE}', '--resize_size=64', '--batch_size=32', '--device=cpu']
ROWS = {'CAM': ('CAM', 'vanilla'), 'CALM_EM': ('CALM_EM', 'jointll'), "control: the bird's mask": ('CAM', 'object_mask'),
        'control: random maps': ('CAM', 'random'), 'control: prior of CALM_EM': ('CALM_EM', 'saliency')}


def results_of(folder):
    """{(metric, method): result} of an experiment, read from its files; the training's under 'results'."""
    by_metric = {'results': json.loads((folder / 'results.json').read_text())}
    for path in folder.glob('*_*.json'):
        result = json.loads(path.read_text())
        key = result['metric'], result['settings']['score_map_process']
        assert key not in by_metric
        by_metric[key] = result
    return by_metric


def rows_of(text):
    """{name of the row: its cells} of a table."""
    _, line, *rows = text.rstrip('\n').split('\n')
    assert set(line) <= {'-', ' '}
    cells = [re.split(r'  +', row.strip()) for row in rows]
    return {name: values for name, *values in cells}


def one_decimal(value):
    return '-' if value is None else f'{value:.1f}'


def test_the_demos_table_holds_the_figures_of_its_results(script, at_home, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, 'RECIPES', {folder: ([*TINY, '--last_stage=layer1'], ['--epochs=1'], ['--is_different_checkpoint', '--epochs=1'])
                                          for folder in demo.RECIPES})
    out = accepted(script('research.demo'))
    folder = tmp_path / 'save/demo'
    printed = [line for line in out.splitlines() if line.startswith('$ python ')]
    assert [line.split()[2] for line in printed] == [f'{command[0]}.py' for command in at_home]
    assert sum(command[0] == 'main' for command in at_home) == 3
    rows, results = rows_of((folder / 'table.txt').read_text()), {name: results_of(folder / name) for name in ('CAM', 'CALM_EM')}
    assert list(rows) == list(ROWS)
    for name, (experiment, method) in ROWS.items():
        cue, erased = (results[experiment][metric, method] for metric in ('cue_location', 'pixel_perturb'))
        assert cue['weights_sha256'] == erased['weights_sha256'] == results[experiment]['results']['weights_sha256']
        pxap = cue['pxap']
        expected = ['-' if name.startswith('control') else one_decimal(results[experiment]['results']['test_accuracy'])]
        for values in (pxap['parts']['published'], pxap['parts']['per pair, all pixels'], pxap['exact']['per pair, all pixels']):
            expected += [one_decimal(values[k]) for k in ('1', '2', '3')]
        expected.insert(4, one_decimal(cue['dropped']['parts']['all']))
        expected += ['-' if record['R'] is None else f'{record["R"]:.2f}' for record in erased['ratios']]
        assert rows[name] == expected, name
    assert (folder / 'table.txt').read_text() in out + '\n'
    assert results['CALM_EM']['results']['settings']['prior'] == 'softplus'
    with Image.open(folder / 'contact_sheet.png') as sheet:
        assert sheet.format == 'PNG' and min(sheet.size) > 500
        pixels = np.asarray(sheet.convert('RGB'))[::4, ::4]
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000  # photos and maps, not a blank page


def test_a_result_of_an_earlier_network_is_not_taken_for_the_present_ones(script, tiny_birds, save):
    assert script('eval_cue_location', *without(tiny_birds, 'seed'), '--experiment_name=CAM', commands.PRECISION)[0] == 0
    assert commands.result(save / 'CAM', 'cue_location', 'vanilla', commands.PRECISION)['pxap']
    results = json.loads((save / 'CAM/results.json').read_text())
    (save / 'CAM/results.json').write_text(json.dumps(results | {'weights_sha256': 'of another network'}))
    with pytest.raises(UserError, match='no result of cue_location'):
        commands.result(save / 'CAM', 'cue_location', 'vanilla', commands.PRECISION)


def test_a_command_that_fails_stops_the_demo(capfd):
    with pytest.raises(UserError, match='unknown flag --no_such_flag'):
        commands.run('save', 'main', '--no_such_flag')
    assert '$ python main.py --no_such_flag --save_root=save' in capfd.readouterr().out


def test_a_study_wants_one_process(monkeypatch):
    for name, value in (('RANK', '0'), ('WORLD_SIZE', '2'), ('MASTER_ADDR', '127.0.0.1')):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match='without torchrun'):
        commands.run('save', 'main')
