"""research.worth: each figure is that of its own command, and what is said of the figures holds where it is known."""
import csv
from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from scipy import stats

from experiment import result_files
from research import grid, worth

METHODS = ('vanilla', 'grad_cam', 'layer_cam', 'backprop', 'hires_cam')


def made_up(figure, truth, after=None):
    """Rows of three networks, whose METHODS have these figures (3,5) and this truth; after: the figures once blurred."""
    def row(network, method, blurred, values):
        return dict.fromkeys((*worth.FIGURES, *worth.TRUTHS), '') | {
            'network': 'CAM', 'seeds': str(network), 'map': METHODS[method], 'blurred': blurred, 'R_k': str(values[network, method]),
            'insertion': str(-values[network, method]), 'PxAP exact': str(truth[network, method])}
    return [row(network, method, *kind) for network in range(3) for method in range(5)
            for kind in (('', figure), ('yes', figure if after is None else after))]


def test_a_figure_that_orders_as_the_truth_agrees_fully_and_its_opposite_not_at_all():
    truth = np.random.default_rng(0).normal(size=(3, 5))
    same, opposite = made_up(-3 * truth, truth), made_up(truth, truth)  # R_k is better where it is lower
    for name in ('R_k', 'insertion'):
        assert list(worth.agreement(same, name, 'PxAP exact').values()) == pytest.approx([1, 1, 1])
        assert list(worth.agreement(opposite, name, 'PxAP exact').values()) == pytest.approx([-1, -1, -1])
    other = np.random.default_rng(1).normal(size=(3, 5))
    by_network = [stats.spearmanr(-first, second).statistic for first, second in zip(other, truth, strict=True)]
    expected = {'value': np.mean(by_network), 'low': min(by_network), 'high': max(by_network)}
    assert worth.agreement(made_up(other, truth), 'R_k', 'PxAP exact') == pytest.approx(expected)
    assert worth.agreement(made_up(other, truth), 'R_k', 'rank corr.') is None


def test_the_table_says_how_many_maps_are_better_once_blurred():
    before = np.tile(np.arange(5.0), (3, 1))
    header, rows = worth.table(made_up(before, -before, before - 1))
    assert header[1:3] == ['PxAP exact', 'better if blurred, %'] and [row[0] for row in rows] == ['R_k', 'insertion', 'PxAP exact']
    assert [row[2] for row in rows[:2]] == ['100 (100 .. 100)'] * 2 and rows[0][1] == '1.00 (1.00 .. 1.00)'
    assert rows[0][3:] == ['0 (0 .. 0)', '']
    after = before + np.array([[1, -1, 0, 0, 0], [1, 1, 1, -1, 0], [-1, -1, 0, 0, 0]])  # R_k is better where it is lower
    assert [row[2] for row in worth.table(made_up(before, before, after))[1][:2]] == ['50 (30 .. 70)'] * 2


def test_each_figure_is_that_of_its_own_command(script, save, few_birds, monkeypatch):
    """On a test set that is measured whole; the second run measures nothing again."""
    monkeypatch.setattr(grid, 'make_grids', lambda p, labels, seed: np.arange(16).reshape(4, 4))
    small = [*few_birds, '--cam_curve_interval=0.02']
    command = ['research.worth', 'save/CALM_EM', '--methods=jointll,object_mask,random_weights', '--images=1', '--road=6', *small]
    code, out, err = script(*command)
    assert code == 0, err
    rows = {(row['map'], row['blurred']): row for row in csv.DictReader(Path('worth/worth.csv').read_text().splitlines())}
    assert len(rows) == 6 and {row['network'] for row in rows.values()} == {'CALM_EM, relu'}

    def result(name, *more):
        before = set((save / 'CALM_EM').glob('*.json'))
        code, _, err = script(name, *small, '--experiment_name=CALM_EM', *more)
        assert code == 0, err
        path, = set((save / 'CALM_EM').glob('*.json')) - before
        return result_files.read_result(path)
    erased, wsol, grids, cue = map(result, ('eval_pixel_perturb', 'eval_wsol', 'research.grid', 'eval_cue_location'))
    by_rank = result('eval_cue_location', '--norm_type=rank', '--threshold_type=even')
    effects = result('research.interventions', '--contrast_method=joint-difference')['methods']['joint-difference']
    expected = {
        'deletion': erased['areas']['deletion'][0], 'insertion': erased['areas']['insertion'][0],
        'R_k': np.divide(*(sum(one[f'correct_{order}'] for one in erased['ratios']) for order in ('top', 'random'))),
        'grid pointing': grids['share'][0], 'MaxBoxAcc': wsol['results']['MaxBoxAcc']['oracle'],
        'PxAP published': cue['pxap']['parts']['published']['mean'],
        'PxAP by rank': by_rank['pxap']['parts']['per pair, all pixels']['mean'],
        'PxAP exact': by_rank['pxap']['exact']['per pair, all pixels']['mean'],
        **{name: effects[name][0] for name in ('rank corr.', 'deletion corr.')}}
    assert {name: float(rows['jointll', ''][name]) for name in expected} == pytest.approx(expected, abs=1e-3, rel=1e-3)
    assert rows['jointll', '']['deletion'] not in (rows['jointll', 'yes']['deletion'], rows['random_weights', '']['deletion'])
    assert float(rows['object_mask', '']['mass in mask']) == 100 and float(rows['object_mask', '']['MaxBoxAcc']) == 100
    monkeypatch.setattr(worth, 'Bench', None)
    text = Path('worth/worth.csv').read_text()
    code, again, err = script(*command)
    assert code == 0 and 'better if blurred' in again and Path('worth/worth.csv').read_text() == text, err


def test_what_cannot_be_measured_is_refused(script, save, tiny_birds):
    refused(script('research.worth', 'save/nothing', *tiny_birds), 'nothing')
    refused(script('research.worth', 'save/CAM', '--load_checkpoint=CAM', *tiny_birds), 'chooses --load_checkpoint itself')
    refused(script('research.worth', 'save/CAM', '--methods=jointl', *tiny_birds), 'did you mean jointll?')
    refused(script('research.worth', 'save/CAM', '--methods=vanilla,jointll', *tiny_birds), 'CAM does not define jointll')
