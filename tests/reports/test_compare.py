"""compare.py: intervals against theory, differences paired on the same images alone, tables that parse back."""
import csv
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from conftest import ROOT, read_result, refused, run_main

import compare
import config
import eval_cue_location
from evaluation import pxap
from reports import figures, intervals, paper, table_files
from reports.intervals import Sample
from reports.table_files import Cell, Table
from wsol import metrics
from wsol.errors import UserError


def accuracy_sample(correct, images='a'):
    return Sample((images,), np.asarray(correct, float), np.ones(len(correct)))


# --- intervals ---------------------------------------------------------------------------------------------------


def test_units_drawn_again_are_a_binomial():
    """Of two units, one of which counts, 0, 1 or 2 are drawn with probabilities 1/4, 1/2, 1/4."""
    draws = metrics.bootstrap_sums(np.array([[0], [1]]), seed=0, draws=40000)[:, 0]
    assert np.bincount(draws) / 40000 == pytest.approx([0.25, 0.5, 0.25], abs=0.01)


def test_columns_of_a_draw_are_of_the_same_units():
    values = np.random.default_rng(0).normal(size=(30, 1))
    first, second = metrics.bootstrap_sums(np.hstack([values, 3 * values]), seed=1).T
    np.testing.assert_allclose(second, 3 * first)
    assert first.std() == pytest.approx(values.std() * 30 ** 0.5, rel=0.1)


def test_the_interval_of_a_share_is_the_normal_one():
    correct = np.arange(4000) % 10 < 3
    low, high = accuracy_sample(correct).interval()
    half = 1.96 * (0.3 * 0.7 / 4000) ** 0.5
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.1 * half)


def test_the_interval_of_a_paired_difference_is_mcnemars():
    """Both right, only the first, only the second, none: 1000, 300, 200, 500 images."""
    first, second = (np.repeat(values, [1000, 300, 200, 500]) for values in ([1, 1, 0, 0], [1, 0, 1, 0]))
    value, low, high = accuracy_sample(first).difference(accuracy_sample(second))
    half = 1.96 * ((500 - 100 ** 2 / 2000) / 2000 ** 2) ** 0.5
    assert value == pytest.approx(0.05) and (low, high) == pytest.approx((0.05 - half, 0.05 + half), abs=0.1 * half)
    assert accuracy_sample(first).difference(accuracy_sample(first)) == (0, 0, 0)


def test_a_pair_without_a_value_is_left_out_of_both():
    first, second = (accuracy_sample(values) for values in ([1, np.nan, 5], [2, 100, np.nan]))
    assert first.difference(second) == (-1, None, None)  # the first pair alone has both, and one has no interval
    assert 1 <= first.interval()[0] <= first.interval()[1] <= 5


def test_samples_of_other_images_are_not_paired():
    with pytest.raises(ValueError, match='not paired'):
        accuracy_sample([0, 1]).difference(accuracy_sample([0, 1], 'b'))


# --- what the evaluations record -----------------------------------------------------------------------------------


def test_precision_at_recall_by_hand():
    """From the top: 1 true; 1 false; 1 true and 2 false; and under all thresholds 2 true, 1 false."""
    counts = np.array([[1, 2, 1, 0], [2, 1, 0, 1]])
    expected = {0.25: 1, 0.5: 2 / 5, 1.0: 4 / 8}
    np.testing.assert_allclose(metrics.precision_at_recall(counts, list(expected)), list(expected.values()))
    nothing = np.array([[1, 2, 1, 0], [0, 0, 0, 0]])
    assert np.isnan(metrics.precision_at_recall(nothing)).all()
    assert eval_cue_location.dropped_shares(counts[None]) == {'true': 50, 'false': 25, 'all': 37.5}


@pytest.fixture(scope='module')
def measured_once(tiny_birds, trained, tmp_path_factory):
    save = tmp_path_factory.mktemp('measured') / 'save'
    shutil.copytree(trained, save)
    for name in ('CAM', 'CALM_EM'):
        for evaluation in ('eval_cue_location', 'eval_pixel_perturb'):
            run_main(evaluation, *tiny_birds, f'--save_root={save}', f'--experiment_name={name}')
    return save


@pytest.fixture
def measured(script, measured_once, tmp_path):
    """The folder `save` of the test's own working folder, with a copy of two experiments and their results."""
    return Path(shutil.copytree(measured_once, tmp_path / 'save'))


def test_two_experiments_in_one_table(script, measured, tmp_path):
    code, out, err = script('compare', 'save/CAM', 'save/CALM_EM', '--paper')
    assert code == 0, err
    cue, erased = (read_result(measured / 'CALM_EM', metric) for metric in ('cue_location', 'pixel_perturb'))
    for record in erased['ratios']:  # what is recorded by image is what was counted
        digits = {side: erased['outcomes'][side][str(record['erased_percent'])] for side in ('top', 'random')}
        assert [digits[side].count('1') for side in digits] == [record['correct_top'], record['correct_random']]
        assert len(digits['top']) == erased['images'] == 36
    assert erased['outcomes']['intact'].count('1') / 36 == pytest.approx(erased['accuracy'] / 100)

    with open(tmp_path / 'comparison/table.csv') as file:
        cells = {(row['table'], row['row'], row['column']): row for row in csv.DictReader(file)}
    first, second = 'CAM', 'CALM_EM'
    topic = next(title for title in intervals.TOPICS if 'corrected' in title)
    values = {name: {pair['classes'][0] * 99 + pair['classes'][1]: pair['pxap']['parts']['per pair, all pixels']
                     for pair in read_result(measured / name, 'cue_location')['pairs']} for name in (first, second)}
    mean = {name: np.mean(list(own.values())) for name, own in values.items()}
    for name in (first, second):
        cell = cells[topic, name, 'mean']
        assert float(cell['value']) == pytest.approx(mean[name])
        assert float(cell['low']) < mean[name] < float(cell['high'])
    cell = cells[topic, f'{second} − {first}', 'mean']
    apart = np.array([values[second][pair] - values[first][pair] for pair in values[first]])
    half = 1.96 * apart.std() / len(apart) ** 0.5
    assert float(cell['value']) == pytest.approx(apart.mean())
    assert [float(cell['low']), float(cell['high'])] == pytest.approx([apart.mean() - half, apart.mean() + half], abs=half / 4)
    assert cell['value'] and cells['All that was measured', 'the paper (CUB): CALM_EM', 'published mean']['value'] == '34.3'
    for column, count in (('published counted', 'published, all pixels'), ('alone dropped', 'per pair')):
        own = cue['pxap']['parts'][count]['mean']
        assert float(cells['All that was measured', second, f'{column} mean']['value']) == pytest.approx(own)
    for column, count in (('published', 'published'), ('published counted', 'published, all pixels')):  # paired, draw by draw
        draws = [np.array(read_result(measured / name, 'cue_location')['published_draws'][count]['mean'].split(), float)
                 for name in (first, second)]
        topic = next(title for title, columns in intervals.TOPICS.items() if f'{column} mean' in columns)
        for name, own in ((second, draws[1]), (f'{second} − {first}', draws[1] - draws[0])):
            cell = cells[topic, name, 'mean']
            moved = own - own.mean() + float(cell['value'])
            assert [float(cell['low']), float(cell['high'])] == pytest.approx([*np.quantile(moved, [0.025, 0.975])])
            assert float(cell['low']) < float(cell['value']) < float(cell['high'])
    for side in ('true', 'false'):
        share = cue['dropped']['parts'][side]
        assert float(cells['All that was measured', second, f'dropped {side}']['value']) == pytest.approx(share)
    assert f'{mean[first]:.1f} [' in out and 'docs/comparing.md' in out
    for name in ('ratios', 'precision_recall'):
        assert (tmp_path / f'comparison/{name}.png').stat().st_size > 5000
    recalls, precision, low, high = intervals.precision_band(cue)
    assert len(recalls) == 20 and (low <= precision).all() and (precision <= high).all()


def test_the_summary_has_the_figures_of_the_other_tables(script, measured, tmp_path):
    """Alone on the screen, and in the files beside the others: a line for each, that of the reference first."""
    code, out, err = script('compare', 'save/CALM_EM', 'save/CAM', '--summary')
    assert code == 0 and 'Accuracy, %' not in out, err
    with open(tmp_path / 'comparison/table.csv') as file:
        lines = list(csv.DictReader(file))
    title, = {line['table'] for line in lines if line['table'].startswith('Summary')}
    assert title in out and title.endswith('that of CALM_EM: CALM_EM')
    summary = {(line['row'], line['column']): line for line in lines if line['table'] == title}
    assert list(dict.fromkeys(row for row, _ in summary)) == ['CALM_EM: CALM_EM', 'CAM: CAM']
    for name in ('CALM_EM', 'CAM'):
        for column in intervals.SUMMARY:
            value, = (line['value'] for line in lines if (line['table'], line['row'], line['column']) == ('All that was measured', name, column))
            assert summary[f'{name}: {name}', column]['value'] == f'{float(value):.1f}'
    own = summary['CAM: CAM', 'difference']
    difference, = (line for line in lines if 'corrected' in line['table'] and (line['row'], line['column']) == ('CAM − CALM_EM', 'mean'))
    assert [own[key] for key in ('value', 'low', 'high')] == [difference[key] for key in ('value', 'low', 'high')]
    assert ('CALM_EM: CALM_EM', 'difference') not in summary and ('CAM: CAM', 'other trainings too') not in summary


def test_rows_are_told_apart_by_what_differs(script, tiny_birds, measured, tmp_path):
    assert script('eval_cue_location', *tiny_birds, '--experiment_name=CALM_EM', '--norm_type=minmax')[0] == 0
    assert script('eval_pixel_perturb', *tiny_birds, '--experiment_name=CALM_EM', '--score_map_process=saliency')[0] == 0
    assert script('compare', 'save/CALM_EM', '--format=csv', '--output=out')[0] == 0
    assert [path.name for path in sorted((tmp_path / 'out').iterdir())] == [
        'precision_recall.png', 'ratios.png', 'table.csv']
    with open(tmp_path / 'out/table.csv') as file:
        names = {row['row'] for row in csv.DictReader(file) if row['table'] == 'All that was measured'}
    assert names == {'CALM_EM', 'CALM_EM: CALM_EM, norm minmax', 'CALM_EM: CALM_EM, saliency'}


def test_another_contrast_or_dropped_pixels_never_pass_for_the_method_itself(script, tiny_birds, measured, tmp_path):
    own = read_result(measured / 'CALM_EM', 'cue_location')['pxap']['parts']['per pair, all pixels']['mean']
    for flag in ('--contrast_method=evidence', '--drop_lowest=80', '--contrast_method=difference', '--score_map_process=backprop',
                 '--contrast_method=backprop'):
        assert script('eval_cue_location', *tiny_birds, '--experiment_name=CALM_EM', flag)[0] == 0
    assert script('compare', 'save/CALM_EM', '--format=csv', '--output=out')[0] == 0
    with open(tmp_path / 'out/table.csv') as file:
        cells = {row['row']: row for row in csv.DictReader(file)
                 if (row['table'], row['column']) == ('All that was measured', 'corrected mean')}
    assert cells.keys() == {'CALM_EM', 'CALM_EM: CALM_EM, evidence', 'CALM_EM: CALM_EM, lowest 80 % dropped',
                            'CALM_EM: CALM_EM, backprop', 'CALM_EM: CALM_EM, backprop-of-log-odds'}  # files of their own
    assert float(cells['CALM_EM']['value']) == pytest.approx(own)


def test_other_images_are_not_compared(script, measured, tmp_path):
    for path in (measured / 'CALM_EM').glob('*_*.json'):
        path.write_text(json.dumps(json.loads(path.read_text()) | {'images_sha256': 'others'}))
    (measured / 'CALM_EM/results.json').unlink()
    code, out, _ = script('compare', 'save/CAM', 'save/CALM_EM', '--format=csv')
    assert code == 0 and 'measured on other images than CAM: no difference is given.' in out
    with open(tmp_path / 'comparison/table.csv') as file:
        assert not [row['row'] for row in csv.DictReader(file) if '−' in row['row'] or row['column'] == 'difference']


def test_older_results_have_values_and_say_why_no_intervals(script, measured, tmp_path):
    for metric, added in (('pixel_perturb', 'outcomes'), ('cue_location', 'published_draws')):
        path = next((measured / 'CAM').glob(f'{metric}_*.json'))
        content = json.loads(path.read_text())
        del content[added]
        path.write_text(json.dumps(content))
    code, out, _ = script('compare', 'save/CAM', 'save/CALM_EM')
    assert code == 0 and 'CAM was measured before outcomes by image were kept: run eval_pixel_perturb.py again' in out
    assert 'CAM was measured before the published protocol had intervals over the class pairs: run eval_cue_location.py again' in out


def write_result(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {'dataset': 'ToyBirds', 'images': 4, 'images_sha256': 'abc', 'weights_sha256': 'def', 'epoch': 1}
    path.write_text(json.dumps(about | {'settings': {'attribution_method': 'CAM', 'score_map_process': 'random'}} | content))


def test_interventions_and_experiments_of_one_name(tmp_path, script):
    """A row for each contrast, with the interval that its result has; accuracies in rows named by the folders."""
    for name, accuracy in (('a/x', 50.0), ('b/x', 75.0)):
        write_result(tmp_path / name / 'results.json', metric='accuracy', val_accuracy=1.0, test_accuracy=accuracy)
    write_result(tmp_path / 'a/x/interventions.json', metric='interventions',
                 network={'turns': [80, 70, 90], 'shapes_that_distract': 60},
                 methods={'log-odds': {'rank': [0.5, 0.4, 0.6], 'share': [10, None, None], 'questions': 40}})
    code, out, err = script('compare', 'a/x', 'b/x', '--format=csv')
    assert code == 0, err
    with open(tmp_path / 'comparison/table.csv') as file:
        rows = list(csv.DictReader(file))
    cells = {(row['row'], row['column']): row for row in rows if row['table'] not in ('All that was measured',)}
    assert {key: cell['value'] for key, cell in cells.items()} == {
        ('a/x: CAM', 'accuracy'): '50.0', ('b/x: CAM', 'accuracy'): '75.0', ('b/x: CAM − a/x: CAM', 'accuracy'): '25.0',
        ('a/x: log-odds', 'rank corr.'): '0.5', ('a/x: log-odds', 'mass on cue'): '10',
        ('a/x: log-odds', 'turns'): '80', ('a/x: log-odds', 'distractors'): '60', ('a/x: log-odds', 'questions'): '40',
        ('x: CAM', 'networks'): '2', ('x: CAM', 'accuracy'): '62.5 ± 17.7'}
    assert [cells['a/x: log-odds', 'rank corr.'][side] for side in ('low', 'high')] == ['0.4', '0.6']
    assert [cells['a/x: log-odds', 'turns'][side] for side in ('low', 'high')] == ['70', '90']


def rows_in(folder):
    """The rows of the table of all that was measured."""
    with open(folder / 'comparison/table.csv') as file:
        return [line['row'] for line in csv.DictReader(file) if line['table'] == 'All that was measured']


def test_an_accuracy_that_was_measured_twice_is_one_row(tmp_path, script):
    for name in ('results', 'accuracy_ToyBirds'):
        write_result(tmp_path / f'x/{name}.json', metric='accuracy', val_accuracy=1.0, test_accuracy=50.0)
    assert script('compare', 'x')[0] == 0
    assert rows_in(tmp_path) == ['x: CAM']


def test_interventions_with_other_draws_are_told_apart_and_equal_controls_stand_once(tmp_path, script):
    for seed, rank in ((0, 0.5), (1, 0.7)):
        own = {name: {'rank': [value, None, None], 'share': [10, None, None], 'questions': 40}
               for name, value in (('control: random', rank), ('log-odds', 0.2))}
        write_result(tmp_path / f'x/{seed}.json', metric='interventions', network={'turns': [80, 70, 90]}, methods=own,
                     settings={'attribution_method': 'CAM', 'seed': seed})
        os.utime(tmp_path / f'x/{seed}.json', (seed, seed))
    assert script('compare', 'x')[0] == 0
    assert set(rows_in(tmp_path)) == {'x: control: random', 'x: control: random, seed 0', 'x: log-odds'}


def test_a_reference_is_the_row_of_that_name_before_one_that_ends_in_it(tmp_path, script):
    write_result(tmp_path / 'x/a.json', metric='interventions', network={'turns': [80, 70, 90]},
                 methods={name: {'rank': [0.5, 0.4, 0.6], 'questions': 40} for name in ('control: random weights, log-odds', 'log-odds')})
    for reference, first in (('log-odds', 'x: log-odds'), ('control: random weights, log-odds', 'x: control: random weights, log-odds')):
        assert script('compare', 'x', f'--reference={reference}')[0] == 0
        assert rows_in(tmp_path)[0] == first


def test_a_cue_that_no_mask_shows_has_no_figure_and_no_curve(tmp_path, script):
    pair = {'classes': [1, 2], 'images': 2, 'parts': ['head'], 'precision': 'nan nan'}
    pair['pxap'] = {'parts': dict.fromkeys(pxap.COUNTS)}
    nothing = dict.fromkeys(paper.KEYS)
    write_result(tmp_path / 'x/cue_location.json', metric='cue_location', recalls='50 100', pairs=[pair], pxap={
        'parts': dict.fromkeys(pxap.COUNTS, nothing)}, dropped={'parts': {'true': None}})
    code, out, err = script('compare', 'x', '--format=csv')
    assert code == 0, err
    assert not (tmp_path / 'comparison/precision_recall.png').exists()


def test_mistakes(script, save, tmp_path):
    refused(script('compare', 'save/nothing'), 'save/nothing is no folder')
    (tmp_path / 'save/empty').mkdir()
    (tmp_path / 'save/empty/notes.json').write_text('[1]')
    refused(script('compare', 'save/CAM', 'save/empty'), 'save/empty holds no results', '--experiment_name=empty')
    write_result(tmp_path / 'save/empty/x.json', metric='pixel_perturb')
    refused(script('compare', 'save/empty'), 'save/empty/x.json is not as the evaluations', 'ratios')
    write_result(tmp_path / 'save/empty/x.json', metric='interventions', methods={})
    refused(script('compare', 'save/empty'), 'save/empty/x.json is not as the evaluations', 'network')
    refused(script('compare', 'save/CAM', '--summary'), 'no experiment that is named has cue localization', 'eval_cue_location.py')
    refused(script('compare', 'save/CAM', '--format=word'), '"word" is not one of markdown, csv, latex')


# --- tables ----------------------------------------------------------------------------------------------------------

TABLES = [Table('A & B', ['', 'R_10', 'x'], [['a_1: 50 %', Cell(0.251, 0.1, 0.4, 2), 'words'],
                                             ['b|c', Cell(-1.26, None, None, 1, '+'), None]])]


def test_a_latex_table_parses_back():
    text = table_files.as_latex(TABLES)
    body = re.search(r'\\begin\{tabular\}\{lrr\}(.*)\\end\{tabular\}', text, re.S)[1]
    rows = [re.split(r' & ', line.removesuffix(r' \\')) for line in body.split('\n') if line.endswith(r'\\')]
    plain = [[re.sub(r'\\([&%$#_{}])', r'\1', cell) for cell in row] for row in rows]
    assert plain == TABLES[0].texts() == [['', 'R_10', 'x'], ['a_1: 50 %', '0.25 [0.10, 0.40]', 'words'], ['b|c', '-1.3', '-']]
    assert not re.search(r'(?<!\\)[%#_]', body)


def test_a_csv_table_keeps_the_numbers_and_a_markdown_table_the_cells():
    rows = list(csv.DictReader(table_files.as_csv(TABLES).splitlines()))
    assert [(row['row'], row['column'], row['value'], row['low']) for row in rows] == [
        ('a_1: 50 %', 'R_10', '0.251', '0.1'), ('a_1: 50 %', 'x', 'words', ''), ('b|c', 'R_10', '-1.26', '')]
    lines = table_files.as_markdown(TABLES).splitlines()
    cells = [[cell.strip().replace('\\|', '|') for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in lines[2:]]
    assert [row for row in cells if set(row[0]) != {'-'}] == TABLES[0].texts()


def test_every_column_and_flag_has_a_sentence():
    text = (ROOT / 'docs/comparing.md').read_text()
    explained = {name.strip() for cells in re.findall(r'^\| ([^|`]+) \| [A-Z].*\. \|$', text, re.M) for name in cells.split(',')}
    for columns in intervals.TOPICS.values():
        for column in columns:
            topic, _, key = column.rpartition(' ')
            assert column in explained or (key in paper.KEYS and f'{topic} 1' in explained), column
    for flag in re.findall(r'--(\w+)', compare.make_parser().format_usage()):
        assert f'`--{flag}' in text
    assert 'comparing.md' in (ROOT / 'mkdocs.yml').read_text()


def test_the_papers_figures_are_the_documents():
    """The table of docs/protocols.md and the module say the same."""
    rows = re.findall(r'^\| ([\w ]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$', (ROOT / 'docs/protocols.md').read_text(), re.M)
    assert {name: tuple(map(float, values)) for name, *values in rows} == {
        name: paper.PXAP[method] for method, name in paper.METHODS.items()}


def test_networks_of_one_name_have_a_mean_and_a_deviation():
    def row(experiment, method, accuracy, **columns):
        values = {'accuracy': accuracy, **columns}
        return compare.Row(experiment, method, {}, {name: intervals.Measured(value) for name, value in values.items()})
    rows = [row('save/seed0/CAM', 'CAM', 90.0), row('save/seed1/CAM', 'CAM', 94.0), row('save/seed0/EM', 'CALM_EM', 50.0),
            row('save/seed1/EM', 'CALM_EM', 51.0, R_10=0.5), row('save/seed0/alone', 'CAM', 1.0)]
    (table,) = intervals.over_networks(rows)
    deviations = [np.std([90, 94], ddof=1), np.std([50, 51], ddof=1)]
    assert table.header == ['', 'networks', 'accuracy']  # R_10 is that of one network alone
    assert table.rows[:2] == [['CAM: CAM', '2', f'92.0 ± {deviations[0]:.1f}'], ['EM: CALM_EM', '2', f'50.5 ± {deviations[1]:.1f}']]
    assert table.rows[2][0] == 'EM: CALM_EM − CAM: CAM, trainings alone' and table.rows[2][2].value == -41.5
    assert len(table.rows) == 3
    assert intervals.over_networks(rows[::2]) == []


def test_the_means_of_two_names_differ_by_a_paired_interval():
    """Of networks whose figures differ by one number in every pair, the interval has no width."""
    values = np.arange(6.0)

    def row(experiment, offset):
        sample = intervals.Sample(tuple('abcdef'), values + offset, np.ones(6))
        return compare.Row(experiment, 'x', {}, {'exact mean': intervals.Measured(sample.value(), sample)})
    rows = [row(f'seed{seed}/{name}', offset + seed) for seed in (0, 1) for name, offset in (('A', 0), ('B', 10))]
    (table,) = intervals.over_networks(rows)
    assert intervals.summary(rows) == []  # of cue localization by part points alone
    assert [line[0] for line in table.rows] == ['A: x', 'B: x', 'B: x − A: x', 'B: x − A: x, other trainings too']
    assert str(table.rows[2][table.header.index('mean')]) == '+10.0 [+10.0, +10.0]'
    width = 4.303 * 0.5**0.5  # two networks each, of variance 1/2: the mean's standard error is sqrt(1/4 + 1/4), by Welch with 2 degrees
    assert str(table.rows[3][table.header.index('mean')]) == f'+10.0 [{10 - width:+.1f}, {10 + width:+.1f}]'


def test_figures_with_draws_of_their_own_differ_draw_by_draw():
    """As those of the published protocol. Where one network's result is older than the draws, trainings alone are left."""
    rng = np.random.default_rng(0)
    draws, units = rng.normal(30, 2, 1000), ('images', *range(6))

    def row(experiment, value, drawn=True):
        sample = intervals.Drawn(units, 6, value, draws - 30 + value) if drawn else None
        return compare.Row(experiment, 'x', {}, {'published mean': intervals.Measured(value, sample)})
    rows = [row(f'seed{seed}/{name}', offset + seed) for seed in (0, 1) for name, offset in (('A', 20), ('B', 30))]
    (table,) = intervals.over_networks(rows)
    column = table.header.index('mean')
    assert [line[0] for line in table.rows] == ['A: x', 'B: x', 'B: x − A: x', 'B: x − A: x, other trainings too']
    assert str(table.rows[2][column]) == '+10.0 [+10.0, +10.0]'  # the same draws, less the same
    width = 4.303 * 0.5**0.5
    assert str(table.rows[3][column]) == f'+10.0 [{10 - width:+.1f}, {10 + width:+.1f}]'
    one, other = rows[1].columns['published mean'].sample, rows[3].columns['published mean'].sample
    assert one.interval() == pytest.approx([*np.quantile(draws, [0.025, 0.975])])
    together = intervals.pooled([one, other])
    assert together.value() == 30.5 and together.interval() == pytest.approx([bound + 0.5 for bound in one.interval()])
    with pytest.raises(ValueError, match='not paired'):  # other pairs were drawn
        one.difference(intervals.Drawn((*units, 'others'), 6, 1.0, draws))
    (table,) = intervals.over_networks([*rows[:3], row('seed1/B', 31, drawn=False)])
    assert [line[0] for line in table.rows] == ['A: x', 'B: x', 'B: x − A: x, trainings alone']


def test_figures_with_draws_vary_with_the_pairs_and_the_trainings():
    """The variance of the difference is that of its draws, as of so many pairs, and of either mean; some draws have none."""
    rng, units = np.random.default_rng(0), ('images',)

    def measured(*values, number=4):
        draws = [np.append(rng.normal(value, 3, 4000), np.nan) for value in values]
        return [intervals.Measured(value, intervals.Drawn(units, number, value, own)) for value, own in zip(values, draws, strict=True)]
    own, others = measured(5.0, 7.0), measured(1.0, 2.0)
    value, low, high = intervals.difference_with_trainings(own, others)
    draws = np.mean([figure.sample.draws for figure in own], 0) - np.mean([figure.sample.draws for figure in others], 0)
    variances = [(np.nanvar(draws) * 4 / 3, 3), (1.0, 1), (0.25, 1)]
    assert value == 4.5 and high - value == pytest.approx(metrics.half_width(variances)) == pytest.approx(value - low)
    assert intervals.mean_difference(*([figure.sample for figure in side] for side in (own, others)))[1:] == pytest.approx(
        [*np.nanquantile(draws, [0.025, 0.975])])
    alone = measured(5.0, 7.0, number=1)
    assert alone[0].sample.interval() == (None, None) and intervals.difference_with_trainings(alone, alone)[1:] == (None, None)


def test_the_draws_of_a_result_lie_about_its_value_and_one_pair_alone_has_none():
    def result(one_part, **published_draws):
        kinds = ['1'] * one_part + ['2'] * 3
        pair = {'pxap': {'parts': dict.fromkeys(pxap.COUNTS, 20.0)}}
        values = dict.fromkeys(pxap.COUNTS, dict.fromkeys(paper.KEYS, 20.0))
        return {'metric': 'cue_location', 'images_sha256': 'x', 'pxap': {'parts': values}, **published_draws,
                'pairs': [pair | {'classes': [1, number], 'parts': ['head'] * int(kind)} for number, kind in enumerate(kinds)]}
    by = dict.fromkeys(('published', 'published, all pixels'), dict.fromkeys(paper.KEYS, '22.00 23.00 nan 24.00'))
    drawn = {'published_draws': {'pairs_sha256': 'abc'} | by}
    columns = intervals.measured(result(1, **drawn))
    np.testing.assert_allclose(columns['published 2'].sample.draws, [19, 20, np.nan, 21])
    assert columns['published 1'].cell('published 1').low is None and columns['published 2'].cell('published 2').low > 19
    assert intervals.measured(result(2, **drawn))['published 1'].cell('published 1').low > 19
    for without in ({}, {'published_draws': None}):  # an older result, and one of very many thresholds
        assert intervals.measured(result(1, **without))['published 2'] == intervals.Measured(20.0)


def test_the_summary_of_several_networks_is_that_of_their_means():
    """With the intervals of the tables of means; a single network has none over trainings."""
    values = np.array([10.0, 30.0, 20.0, 50.0])

    def row(experiment, offset):
        sample = intervals.Sample(tuple('abcd'), values + offset * np.arange(4), np.ones(4))
        return compare.Row(experiment, 'x', {}, {'corrected mean': intervals.Measured(sample.value(), sample)})
    rows = [row('s0/B', 3), row('s1/B', 4), row('s0/A', 0), row('s1/A', 1), row('s0/C', 2)]
    (means,), (table,) = intervals.over_networks([*rows[2:4], *rows[:2]]), intervals.summary([*rows[2:], *rows[:2]])
    column = means.header.index('mean')
    lines = {line[0]: dict(zip(table.header, line, strict=True)) for line in table.rows}
    assert list(lines) == ['A: x', 'C: x', 'B: x'] and [line['networks'] for line in lines.values()] == ['2', '1', '2']
    assert [lines[name]['corrected mean'] for name in ('A: x', 'B: x')] == [line[column] for line in means.rows[:2]]
    assert [lines['B: x'][name] for name in table.header[-2:]] == [line[column] for line in means.rows[2:]]
    assert [lines['A: x'][name] for name in table.header[-2:]] == [None, None] and lines['C: x'][table.header[-1]] is None
    assert str(lines['C: x']['difference']).startswith('+2.2 [')  # 2 less the mean of 0 and 1, times the mean of 0, 1, 2, 3


@pytest.mark.parametrize(('networks', 'spreads'), [(3, (1, 1)), (2, (1, 1)), (2, (3, 0.5)), (5, (0.2, 2))])
def test_an_interval_with_trainings_covers_about_as_often_as_it_says(networks, spreads):
    """Figures of class pairs by networks, each with a part of its own: the true difference, 0, is seldom outside, where
    the interval over the pairs alone misses it far more often."""
    rng, outside, units = np.random.default_rng(0), np.zeros(2), tuple(range(25))

    def measured(pairs, spread):
        values = pairs + rng.normal(0, spread, (networks, 1)) + rng.normal(0, 1, (networks, len(pairs)))
        samples = [intervals.Sample(units, own, np.ones(len(own))) for own in values]
        return [intervals.Measured(sample.value(), sample) for sample in samples]
    for _ in range(400):
        pairs = rng.normal(0, 5, 25)
        own, others = (measured(pairs + rng.normal(0, 1.5, 25), spread) for spread in spreads)
        _, low, high = intervals.difference_with_trainings(own, others)
        _, *bounds = intervals.mean_difference(*([figure.sample for figure in side] for side in (own, others)))
        outside += [not low < 0 < high, not bounds[0] < 0 < bounds[1]]
    assert 0.005 < outside[0] / 400 < 0.12 and outside[1] / 400 > 0.15


def test_one_class_pair_has_no_interval_and_figures_that_do_not_vary_have_none():
    def measured(*values):
        return [intervals.Measured(value, intervals.Sample(('a',), np.array([value]), np.ones(1))) for value in values]
    assert measured(3.0)[0].sample.interval() == (None, None)
    assert intervals.mean_difference(*([own.sample for own in side] for side in (measured(3.0, 4.0), measured(1.0)))) == (2.5, None, None)
    assert intervals.difference_with_trainings(measured(3.0, 4.0), measured(1.0, 2.0)) == (2.0, None, None)
    same = [intervals.Measured(5.0)] * 2
    assert intervals.difference_with_trainings(same, same) == (0.0, None, None)


def test_figures_without_a_sample_differ_by_welch():
    own, others = ([intervals.Measured(value) for value in values] for values in ((1.0, 2.0, 4.0), (0.0, 0.5, 3.0, 3.5)))
    expected = scipy.stats.ttest_ind([1, 2, 4], [0, 0.5, 3, 3.5], equal_var=False).confidence_interval()
    value, *bounds = intervals.difference_with_trainings(own, others)
    assert value == pytest.approx(7 / 3 - 7 / 4) and bounds == pytest.approx([*expected])


def test_means_of_figures_of_which_one_is_missing():
    """R_90 has none where no image survives the random erasure."""
    def row(experiment, ratio):
        sample = intervals.Sample(tuple('ab'), np.array([1.0, 0.0]), np.array([1.0, 1.0]))
        return compare.Row(experiment, 'x', {}, {'R_90': intervals.Measured(ratio, sample)})
    rows = [row(f's{seed}/{name}', ratio) for name, ratio in (('A', 0.5), ('B', None)) for seed in (0, 1)]
    rows[3].columns['R_90'] = rows[0].columns['R_90']
    table, = intervals.over_networks(rows)
    assert [line[0] for line in table.rows if 'trainings' in line[0]] == [] and table.rows[0][:2] == ['A: x', '2']
    figures.ratio_curve('x', {'x': [{'erased_percent': 90, 'R': float('nan'), 'R_low': None, 'R_high': None}]})


def test_networks_are_counted_once_and_only_with_others_on_the_same_images():
    """Two checkpoints of one experiment are one network here, and what was measured on other images is apart."""
    def row(experiment, images, accuracy, weights='w'):
        about = {'dataset': 'CUB', 'images_sha256': images, 'weights_sha256': weights}
        return compare.Row(experiment, 'CAM', about, {'accuracy': intervals.Measured(accuracy)})
    rows = [row('seed0/x', 'aaaaaaaaa', 90.0), row('seed0/x', 'aaaaaaaaa', 10.0, 'older'), row('seed1/x', 'aaaaaaaaa', 92.0)]
    (table,) = intervals.over_networks(rows)
    assert table.rows == [['x: CAM', '2', '91.0 ± 1.4']]
    rows += [row('seed0/x', 'b', 50.0), row('seed1/x', 'b', 52.0), row('seed2/x', 'c', 0.0)]
    (table,) = intervals.over_networks(rows)
    assert table.rows == [['x: CAM, CUB, images aaaaaaaa', '2', '91.0 ± 1.4'], ['x: CAM, CUB, images b', '2', '51.0 ± 1.4']]
    assert intervals.over_networks(rows[:2]) == []


def test_a_difference_of_means_is_that_of_the_means_in_the_table():
    """R_k is a ratio: the mean of 1/2 and 1/4 is 3/8, and not the 2/6 of all counts together."""
    def sample(above, below):
        return intervals.Sample(('images',), np.array(above, float), np.array(below, float))
    samples, others = [sample([1, 0, 0], [1, 1, 0]), sample([1, 0, 0], [2, 1, 1])], [sample([1, 0, 0], [1, 0, 0])]
    value, low, high = intervals.mean_difference(samples, others)
    assert value == pytest.approx(3 / 8 - 1) and low <= value <= high


def test_a_result_on_another_scale_is_named_so_even_alone(script, tiny_birds, save, tmp_path):
    flags = [*tiny_birds, '--experiment_name=CAM', '--norm_type=rank', '--cam_curve_interval=0.01']
    assert script('eval_cue_location', *flags)[0] == 0
    assert script('compare', 'save/CAM', '--format=csv', '--output=out')[0] == 0
    with open(tmp_path / 'out/table.csv') as file:
        names = {row['row'] for row in csv.DictReader(file) if row['column'] == 'corrected mean'}
    assert names == {'CAM: CAM, norm rank, step 0.01'}


def test_every_setting_that_makes_another_result_is_named(script, tiny_birds, save):
    """But for those that the method's name and scale hold already, and what the images say."""
    named = {*compare.NAMED_BY, 'score_map_process', 'score_map_method', 'contrast_method', 'scoremap_root', 'drop_lowest',
             'skip_broken'}
    for evaluation in config.EVALUATIONS:
        assert {*config.usual_settings(evaluation), 'crop_size'} <= named
    for flags in ([], ['--crop_size=48'], ['--precision=bfloat16']):
        assert script('eval_pixel_perturb', *tiny_birds, '--experiment_name=CAM', *flags)[0] == 0
    names = [row.method for row in compare.rows_of(save / 'CAM', 'CAM') if row.results]
    assert len(names) == len(set(names)) == 3


def test_metrics_of_one_scale_share_a_row(script, tiny_birds, save, tmp_path):
    for name in ('eval_cue_location', 'eval_wsol'):
        assert script(name, *tiny_birds, '--experiment_name=CAM', '--norm_type=rank')[0] == 0
    rows = [row for row in compare.rows_of(save / 'CAM', 'CAM') if row.results]
    assert [(row.method, set(row.results)) for row in rows] == [('CAM, norm rank', {'cue_location', 'wsol'})]


def test_any_row_of_the_first_folder_can_be_the_reference():
    rows = [compare.Row('a', 'CALM_EM', {}), compare.Row('a', 'CALM_EM, saliency', {}), compare.Row('b', 'CALM_EM, saliency', {})]
    assert compare.put_first(rows, 'saliency') == [rows[1], rows[0], rows[2]]
    assert compare.put_first(rows, 'CALM_EM, saliency')[0] is rows[1]
    assert compare.put_first(rows, 'CALM_EM') == rows
    with pytest.raises(UserError, match='--reference=evidence: a has no such row; it has CALM_EM; CALM_EM, saliency'):
        compare.put_first(rows, 'evidence')
