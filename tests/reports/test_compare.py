"""compare.py: results become rows that are told apart, differences on the same images alone, tables that parse back."""
import csv
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, accepted, explained_columns, read_result, refused, run_main

import compare
from experiment.settings import usual_settings
from reports import columns, comparison, figures, intervals, paper, rows
from reports.columns import COMPARED, EXACT
from reports.intervals import Estimate, mean_terms
from reports.rows import Row
from wsol.errors import UserError

ALL = 'All results'


def lines_of(folder='comparison'):
    with open(Path(folder) / 'table.csv') as file:
        return list(csv.DictReader(file))


def cells_of(folder='comparison'):
    """{(table, row, column): its line of the CSV}."""
    return {(line['table'], line['row'], line['column']): line for line in lines_of(folder)}


def rows_in(folder='comparison'):
    """The names in the table of all that was measured, each once, in order."""
    return list(dict.fromkeys(line['row'] for line in lines_of(folder) if line['table'] == ALL))


def table_with(column):
    return next(title for title, names in columns.TABLES.items() if column in names)


# --- experiments that were evaluated -----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def evaluated_once(tiny_birds, trained, tmp_path_factory):
    save = tmp_path_factory.mktemp('evaluated') / 'save'
    shutil.copytree(trained, save)
    for name in ('CAM', 'CALM_EM'):
        for evaluation in ('eval_cue_location', 'eval_pixel_perturb'):
            run_main(evaluation, *tiny_birds, f'--save_root={save}', f'--experiment_name={name}')
    return save


@pytest.fixture
def evaluated(script, evaluated_once, tmp_path):
    """The folder `save` of the test's own working folder, with a copy of two experiments and their results."""
    return Path(shutil.copytree(evaluated_once, tmp_path / 'save'))


def test_two_experiments_in_one_table(script, drawn, evaluated):
    out = accepted(script('compare', 'save/CAM', 'save/CALM_EM', '--paper'))
    cue, erased = (read_result(evaluated / 'CALM_EM', metric) for metric in ('cue_location', 'pixel_perturb'))
    for record in erased['ratios']:  # what is recorded by image is what was counted
        digits = {side: erased['outcomes'][side][str(record['erased_percent'])] for side in ('top', 'random')}
        assert [digits[side].count('1') for side in digits] == [record['correct_top'], record['correct_random']]
        assert len(digits['top']) == erased['images'] == 36
    assert erased['outcomes']['intact'].count('1') / 36 == pytest.approx(erased['accuracy'] / 100)

    cells, (first, second) = cells_of(), ('CAM', 'CALM_EM')
    values = {name: {tuple(pair['classes']): pair['pxap']['parts']['per pair, all pixels']
                     for pair in read_result(evaluated / name, 'cue_location')['pairs']} for name in (first, second)}
    mean, topic = {name: np.mean(list(own.values())) for name, own in values.items()}, table_with(f'{COMPARED}: mean')
    for name in (first, second):
        cell = cells[topic, name, 'mean']
        assert float(cell['value']) == pytest.approx(mean[name]) and float(cell['low']) < mean[name] < float(cell['high'])
    cell = cells[topic, f'{second} − {first}', 'mean']
    apart = np.array([values[second][pair] - values[first][pair] for pair in values[first]])
    half = 1.96 * apart.std() / len(apart) ** 0.5
    assert float(cell['value']) == pytest.approx(apart.mean())
    assert [float(cell['low']), float(cell['high'])] == pytest.approx([apart.mean() - half, apart.mean() + half], abs=half / 4)
    assert cells[ALL, 'the paper (CUB): CALM_EM', 'published: mean']['value'] == '34.3'
    for count in ('published', 'published, all pixels', 'per pair', EXACT):
        truth, name = columns.PXAP[count]
        assert float(cells[ALL, second, f'{count}: mean']['value']) == pytest.approx(cue['pxap'][truth][name]['mean'])
    for count in ('published', 'published, all pixels'):  # paired, draw by draw
        draws = [np.array(read_result(evaluated / name, 'cue_location')['published_draws'][count]['mean'].split(), float)
                 for name in (first, second)]
        for name, own in ((second, draws[1]), (f'{second} − {first}', draws[1] - draws[0])):
            cell = cells[table_with(f'{count}: mean'), name, 'mean']
            moved = own - own.mean() + float(cell['value'])
            assert [float(cell['low']), float(cell['high'])] == pytest.approx([*np.quantile(moved, [0.025, 0.975])])
            assert float(cell['low']) < float(cell['value']) < float(cell['high'])
    for side in ('true', 'false'):
        assert float(cells[ALL, second, f'dropped {side}']['value']) == pytest.approx(cue['dropped']['parts'][side])
    assert f'{mean[first]:.1f} [' in out and 'docs/comparing.md' in out
    for name in ('ratios', 'precision_recall'):
        assert Path(f'comparison/{name}.png').stat().st_size > 5000
    precision, recalls, low, high = intervals.precision_band(cue)
    assert len(recalls) == 20 and (low <= precision).all() and (precision <= high).all()


def test_both_fills_of_an_experiment_stand_in_one_row(script, evaluated):
    """And only equal fills are compared: here the second experiment has no result of road."""
    path, = (evaluated / 'CAM').glob('pixel_perturb_*.json')
    result = json.loads(path.read_text())
    result['settings']['fill'], result['ratios'][0]['R'] = 'road', 0.125
    path.with_name('pixel_perturb_road.json').write_text(json.dumps(result))
    accepted(script('compare', 'save/CAM', 'save/CALM_EM'))
    cells = cells_of()
    assert [row for row in rows_in() if 'CAM' in row] == ['CAM'] and cells[ALL, 'CAM', 'road: R_10']['value'] == '0.125'
    assert float(cells[ALL, 'CAM', 'R_10']['value']) != 0.125 and (table_with('road: R_10'), 'CALM_EM − CAM', 'R_10') not in cells
    values = [np.array(read_result(evaluated / name, 'pixel_perturb', '.')['areas_by_image']['deletion'].split(), float)
              for name in ('CALM_EM',)] + [np.array(result['areas_by_image']['deletion'].split(), float)]
    cell = cells[table_with('area: deletion'), 'CALM_EM − CAM', 'deletion']
    assert float(cell['value']) == pytest.approx((values[0] - values[1]).mean())
    half = 1.96 * (values[0] - values[1]).std() / 6
    assert float(cell['high']) - float(cell['low']) == pytest.approx(2 * half, rel=0.25)  # paired by image
    assert float(cells[ALL, 'CAM', 'coarse noise: R_30']['value']) == result['coarse'][1]['R']


def variant(folder, metric, **settings):
    """Write one more result of a metric in a folder: as that of other settings would be."""
    content = read_result(folder, metric)
    (folder / f'variant_{len(list(folder.glob("*.json")))}.json').write_text(
        json.dumps(content | {'settings': content['settings'] | settings}))


def test_rows_are_told_apart_by_what_differs(script, evaluated):
    """Another contrast, or pixels that are dropped, never pass for the method itself."""
    folder, even = evaluated / 'CALM_EM', {'norm_type': 'minmax', 'threshold_type': 'even'}
    for settings in ({'norm_type': 'minmax'}, {'drop_lowest': 80.0}, {'contrast_method': 'evidence', **even},
                     {'score_map_process': 'backprop', **even}, {'contrast_method': 'backprop', **even}):
        variant(folder, 'cue_location', **settings)
    variant(folder, 'pixel_perturb', score_map_process='saliency')
    variant(folder, 'pixel_perturb', crop_size=48)  # the latest: the one before it is named by its size
    variant(evaluated / 'CAM', 'cue_location', norm_type='rank', cam_curve_interval=0.01)
    assert script('compare', 'save/CALM_EM', 'save/CAM', '--format=csv', '--output=out')[0] == 0
    assert sorted(path.name for path in Path('out').iterdir()) == ['precision_recall.png', 'ratios.png', 'table.csv']
    assert set(rows_in('out')) == {'CALM_EM', 'CAM', 'CAM: CAM, norm rank, step 0.01', *(f'CALM_EM: CALM_EM, {words}' for words in (
        'norm minmax', 'lowest 80 % dropped', 'evidence', 'backprop', 'backprop-of-log-odds', 'saliency', 'size 56'))}
    plain = read_result(evaluated / 'CALM_EM', 'cue_location')['pxap']['parts']['per pair, all pixels']['mean']
    assert float(cells_of('out')[ALL, 'CALM_EM', f'{COMPARED}: mean']['value']) == pytest.approx(plain)


def test_every_setting_that_makes_another_result_is_named():
    """But for those that the method's name and scale hold already, and what the images say."""
    named = {*rows.NAMED_BY, 'fit', 'score_map_process', 'score_map_method', 'contrast_method', 'scoremap_root', 'drop_lowest', 'skip_broken', 'fill',
             'control'}
    assert {*usual_settings(), 'crop_size'} <= named
    for maps in ({'scoremap_root': 'x'}, {'attribution_method': 'CAM', 'score_map_process': 'vanilla'}):
        assert rows.plain_method(maps | {'control': 'blurred'}) == f'{rows.CONTROL}blurred, {rows.plain_method(maps)}'


def test_other_images_are_not_compared(script, evaluated):
    for path in (evaluated / 'CALM_EM').glob('*_*.json'):
        path.write_text(json.dumps(json.loads(path.read_text()) | {'images_sha256': 'others'}))
    (evaluated / 'CALM_EM/results.json').unlink()
    accepted(script('compare', 'save/CAM', 'save/CALM_EM', '--format=csv'), 'measured on other images than CAM, so no difference is given')
    assert not [line['row'] for line in lines_of() if '−' in line['row'] or line['column'] == 'difference']


# --- results by hand ---------------------------------------------------------------------------------------------------


def write_result(path, **content):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {'dataset': 'ToyBirds', 'images': 4, 'images_sha256': 'abc', 'weights_sha256': 'def', 'epoch': 1,
             'calibration': {'error': None, 'low': None, 'high': None}}
    path.write_text(json.dumps(about | {'settings': {'attribution_method': 'CAM', 'score_map_process': 'random'}} | content))


def write_interventions(path, seed=None, distractors=None, **methods):
    network = {'turns': [80, 70, 90], 'shapes_that_distract': distractors}
    write_result(path, metric='interventions', format=2, network=network, settings={'attribution_method': 'CAM', 'seed': seed},
                 methods={name: {'rank corr.': rank, 'mass on cue': [10, None, None], 'questions': 40} for name, rank in methods.items()})


def test_a_result_on_another_scale_is_named_so_even_alone_and_metrics_of_one_scale_share_a_row(evaluated):
    content = read_result(evaluated / 'CAM', 'cue_location')
    content['settings']['norm_type'] = 'rank'
    write_result('x/1.json', **content)
    about = {key: content[key] for key in (*rows.ABOUT, 'settings')}
    write_result('x/2.json', **about, metric='wsol', results={'MaxBoxAcc': {'test': 50.0}})
    assert [(row.method, set(row.results)) for row in rows.read_experiments(['x'])] == [('CAM, norm rank', {'cue_location', 'wsol'})]


def test_interventions_and_experiments_of_one_name(script):
    """A row for each contrast, with the interval that its result has; accuracies in rows named by the folders."""
    for name, accuracy in (('a/x', 50.0), ('b/x', 75.0)):
        for file in ('results', 'accuracy_ToyBirds'):  # measured twice, one row
            write_result(f'{name}/{file}.json', metric='accuracy', val_accuracy=1.0, test_accuracy=accuracy)
    write_interventions('a/x/interventions.json', distractors=60, **{'log-odds': [0.5, 0.4, 0.6]})
    accepted(script('compare', 'a/x', 'b/x', '--format=csv'))
    cells = {(line['row'], line['column']): line for line in lines_of() if line['table'] != ALL}
    assert {key: cell['value'] for key, cell in cells.items()} == {
        ('a/x: CAM', 'accuracy'): '50.0', ('b/x: CAM', 'accuracy'): '75.0', ('b/x: CAM − a/x: CAM', 'accuracy'): '25.0',
        ('a/x: log-odds', 'rank corr.'): '0.5', ('a/x: log-odds', 'mass on cue'): '10',
        ('a/x: log-odds', 'turns'): '80', ('a/x: log-odds', 'shapes that distract'): '60', ('a/x: log-odds', 'questions'): '40',
        ('x: CAM', 'networks'): '2', ('x: CAM', 'accuracy'): '62.5 ± 17.7'}
    assert [cells['a/x: log-odds', 'rank corr.'][side] for side in ('low', 'high')] == ['0.4', '0.6']
    assert [cells['a/x: log-odds', 'turns'][side] for side in ('low', 'high')] == ['70', '90']
    assert rows_in() == ['a/x: CAM', 'a/x: log-odds', 'b/x: CAM']


def test_interventions_with_other_draws_are_told_apart_and_equal_controls_stand_once(script):
    for seed, rank in ((0, 0.5), (1, 0.7)):
        write_interventions(f'x/{seed}.json', seed, **{'control: random': [rank, None, None], 'log-odds': [0.2, None, None]})
        os.utime(f'x/{seed}.json', (seed, seed))
    assert script('compare', 'x', '--reference=log-odds')[0] == 0
    assert rows_in()[0] == 'x: log-odds' and set(rows_in()) == {'x: control: random', 'x: control: random, seed 0', 'x: log-odds'}


def test_any_row_of_the_first_folder_can_be_the_reference():
    compared = [Row('a', 'CALM_EM', {}), Row('a', 'CALM_EM, saliency', {}), Row('b', 'CALM_EM, saliency', {})]
    assert rows.put_first(compared, 'saliency') == [compared[1], compared[0], compared[2]]
    assert rows.put_first(compared, 'CALM_EM, saliency')[0] is compared[1] and rows.put_first(compared, 'CALM_EM') == compared
    controls = [Row('a', 'control: random weights, log-odds', {}), Row('a', 'log-odds', {})]
    for one in controls:  # the row of that name comes before one that ends in it
        assert rows.put_first(controls, one.method)[0] is one
    with pytest.raises(UserError, match='--reference=evidence: a has no such row; it has CALM_EM; CALM_EM, saliency'):
        rows.put_first(compared, 'evidence')


def test_a_cue_that_no_mask_shows_has_no_figure_and_no_curve(script):
    counts = ('published', 'published, all pixels', 'per pair', 'per pair, all pixels')
    pair = {'classes': [1, 2], 'images': 2, 'parts': ['head'], 'precision': 'nan nan', 'pxap': {'parts': dict.fromkeys(counts)}}
    write_result('x/cue_location.json', metric='cue_location', recalls='50 100', pairs=[pair], published_draws=None, mass={}, pxap={
        'parts': dict.fromkeys(counts, dict.fromkeys(paper.KEYS))}, dropped={'parts': {'true': None, 'false': None}})
    accepted(script('compare', 'x', '--format=csv'))
    assert not Path('comparison/precision_recall.png').exists()
    figures.ratio_curve('x', {'x': [{'erased_percent': 90, 'R': float('nan'), 'R_low': None, 'R_high': None}]})


def test_mistakes(script, tmp_path):
    write_result('save/CAM/results.json', metric='accuracy', test_accuracy=50.0)
    refused(script('compare', 'save/nothing'), 'save/nothing is no folder')
    (tmp_path / 'save/empty').mkdir()
    (tmp_path / 'save/empty/notes.json').write_text('[1]')
    refused(script('compare', 'save/CAM', 'save/empty'), 'save/empty holds no results', '--experiment_name=empty')
    for metric, missing in (('pixel_perturb', 'outcomes'), ('interventions', 'network'), ('cue_location', 'pxap')):
        write_result('save/empty/x.json', metric=metric, methods={})
        refused(script('compare', 'save/empty'), 'save/empty/x.json is not as the evaluations', missing)
    refused(script('compare', 'save/CAM', '--format=word'), '"word" is not one of markdown, csv, latex')


# --- means over networks of one name -----------------------------------------------------------------------------------


def row(experiment, method='x', about=None, **estimates):
    return Row(experiment, method, about or {}, {
        column: value if isinstance(value, Estimate) else Estimate(value) for column, value in estimates.items()})


def means(compared):
    """The tables of means over networks of one name."""
    for one in compared:
        one.name = f'{one.experiment} {one.method} {one.about}'
    return [table for table in comparison.make_tables(compared) if 'deviation' in table.title]


def test_networks_of_one_name_have_a_mean_and_a_deviation():
    compared = [row('save/seed0/CAM', 'CAM', accuracy=90.0), row('save/seed1/CAM', 'CAM', accuracy=94.0),
           row('save/seed0/EM', 'CALM_EM', accuracy=50.0), row('save/seed1/EM', 'CALM_EM', accuracy=51.0, R_10=0.5),
           row('save/seed0/alone', 'CAM', accuracy=1.0)]
    table, = means(compared)
    deviations = [np.std([90, 94], ddof=1), np.std([50, 51], ddof=1)]
    assert table.header == ['', 'networks', 'accuracy']  # R_10 is that of one network alone
    assert table.rows[:2] == [['CAM: CAM', 2, f'92.0 ± {deviations[0]:.1f}'], ['EM: CALM_EM', 2, f'50.5 ± {deviations[1]:.1f}']]
    assert [(line[0], line[2].value) for line in table.rows[2:]] == [
        ('EM: CALM_EM − CAM: CAM', -41.5), ('EM: CALM_EM − CAM: CAM, other trainings too', -41.5)]
    assert table.rows[2][2].low is None and table.rows[3][2].low < -41.5 < table.rows[3][2].high
    assert means(compared[::2]) == []


@pytest.mark.parametrize('kind', ['pairs', 'draws'])
def test_the_means_of_two_names_differ_by_a_paired_interval(kind):
    """Of networks whose figures differ by one number in every pair, or draw, the interval has no width."""
    values = np.arange(6.0)

    def one(experiment, offset):
        value, about = float(values.mean() + offset), {'units': tuple('abcdef')}
        about |= {'terms': mean_terms(values + offset)} if kind == 'pairs' else {'draws': values + offset, 'number': 6}
        return row(experiment, **{f'{EXACT}: mean': Estimate(value, **about)})
    compared = [one(f'seed{seed}/{name}', offset + seed) for seed in (0, 1) for name, offset in (('A', 0), ('B', 10))]
    table, = means(compared)
    assert [line[0] for line in table.rows] == ['A: x', 'B: x', 'B: x − A: x', 'B: x − A: x, other trainings too']
    width = 4.303 * 0.5**0.5  # two networks each, of variance 1/2: the mean's standard error is sqrt(1/4 + 1/4), by Welch with 2 degrees
    assert [str(line[-1]) for line in table.rows[2:]] == ['+10.0 [+10.0, +10.0]', f'+10.0 [{10 - width:+.1f}, {10 + width:+.1f}]']
    compared[3].estimates[f'{EXACT}: mean'] = Estimate(13.5)  # a result without its draws: trainings alone are left
    table, = means(compared)
    assert table.rows[2][-1].low is None and table.rows[3][-1].low is not None


def test_a_mean_of_which_one_figure_is_missing_is_none():
    """R_90 has none where no image survives the random erasure."""
    compared = [row(f's{seed}/{name}', R_90=0.5, accuracy=1.0) for name in 'AB' for seed in (0, 1)]
    compared[3].estimates['R_90'] = Estimate(None)
    table = next(table for table in means(compared) if 'R_90' in table.header)
    assert [line[0] for line in table.rows] == ['A: x']


def test_networks_are_counted_once_and_only_with_others_on_the_same_images():
    """Two checkpoints of one experiment are one network here, and what was measured on other images is apart."""
    def one(experiment, images, accuracy, weights='w'):
        return row(experiment, 'CAM', {'dataset': 'CUB', 'images_sha256': images, 'weights_sha256': weights}, accuracy=accuracy)
    compared = [one('seed0/x', 'aaaaaaaaa', 90.0), one('seed0/x', 'aaaaaaaaa', 10.0, 'older'), one('seed1/x', 'aaaaaaaaa', 92.0)]
    table, = means(compared)
    assert table.rows == [['x: CAM', 2, '91.0 ± 1.4']]
    compared += [one('seed0/x', 'b', 50.0), one('seed1/x', 'b', 52.0), one('seed2/x', 'c', 0.0)]
    table, = means(compared)
    assert table.rows == [['x: CAM, CUB, images aaaaaaaa', 2, '91.0 ± 1.4'], ['x: CAM, CUB, images b', 2, '51.0 ± 1.4']]
    assert means(compared[:2]) == []


def test_every_column_and_flag_has_a_sentence():
    text = (ROOT / 'docs/comparing.md').read_text()
    assert {column for names in columns.TABLES.values() for column in names} <= explained_columns(text)
    for flag in re.findall(r'--(\w+)', compare.make_parser().format_usage()):
        assert f'`--{flag}' in text
    assert 'comparing.md' in (ROOT / 'mkdocs.yml').read_text()
