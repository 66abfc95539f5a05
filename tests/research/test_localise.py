"""localise.py: its table holds the figures of the results, and its verdict is what the goal says."""
import json

import numpy as np
import pytest
from conftest import refused
from test_demo import TINY, rows_of

from research import commands, localise
from research.localise import COLUMNS

CONTROLS = {"the bird's mask": 20.0, 'random maps': 5.0}


def exact(folder, process, contrast):
    """PxAP in the one result of a method."""
    found = [result for path in folder.glob('cue_location_*.json') if (result := json.loads(path.read_text()))['settings'][
        'score_map_process'] == process and result['settings']['contrast_method'] == contrast]
    assert len(found) == 1 and found[0]['settings']['norm_type'] == 'rank'
    return found[0]['pxap']['exact']['per pair, all pixels']['mean']


def test_the_table_holds_mean_deviation_and_differences_over_the_seeds(script, at_home, tmp_path, monkeypatch):
    quick = '--epochs=1'
    calm = ('CALM_EM', 'layer1', '--prior=softplus')
    rows = {'CAM': ('CAM', 'layer1', quick), 'CALM_EM, entropy -1': (*calm, '--prior_training=entropy:-1', quick),
            'CALM_EM, frozen backbone': (*calm, '--freeze', quick)}
    assert rows.keys() <= localise.ROWS.keys()
    monkeypatch.setattr(commands, 'TRAIN', TINY)
    monkeypatch.setattr(commands, 'FROM_RANDOM', [*commands.FROM_RANDOM, quick])
    monkeypatch.setattr(localise, 'ROWS', rows)
    code, out, err = script('research.localise', '--seeds=2', '--rows', *rows)
    assert code == 0, err
    folder = tmp_path / 'save/localise'
    text = (folder / 'table.txt').read_text()
    assert text in out + '\n'
    values = {}
    for row in rows:
        own = [folder / f'seed{seed}' / row.replace(', ', '_').replace(' ', '_') for seed in (0, 1)]
        columns = [[json.loads((one / 'results.json').read_text())['test_accuracy'] for one in own]]
        for contrast in localise.CONTRASTS:
            columns.append([exact(one, None, contrast) if row != 'CAM' or contrast == 'log-odds' else np.nan for one in own])
        columns.append([np.nan if row == 'CAM' else exact(one, 'saliency', None) for one in own])
        values[row] = np.array(columns).T
    paths = tmp_path / 'own.txt', tmp_path / 'compared.txt'
    blocks = [block for block in text.split('\n\n') if '---' in block]
    for path, block in zip(paths, blocks, strict=True):
        path.write_text(block)
    shown = rows_of(paths[0])
    for row, own in values.items():
        assert shown[row] == ['2', *('-' if np.isnan(column).any() else f'{column.mean():.1f} ± {column.std(ddof=1):.1f}'
                                     for column in own.T)]
    compared = rows_of(paths[1])
    assert list(compared) == list(rows)[1:]
    for row, cells in compared.items():
        gain = values[row][:, 3] - values['CAM'][:, 3]
        half = 12.706 * abs(gain[0] - gain[1]) / 2  # of two values
        assert cells[4] == f'{gain.mean():+.1f} [{gain.mean() - half:+.1f}, {gain.mean() + half:+.1f}]'
    settings = json.loads((folder / 'seed1/CALM_EM_entropy_-1/results.json').read_text())['settings']
    assert settings['prior_training'] == 'entropy:-1' and settings['seed'] == 1
    before = len(at_home)  # what is trained and measured is not run again
    assert script('research.localise', '--seeds=1', '--rows', 'CALM_EM, entropy -1')[0] == 0
    assert at_home[before:] == []


def measured(accuracy, joint, prior_log_odds, log_odds, prior, spread=0.1):
    """(3,5): three seeds around these figures."""
    return np.array([accuracy, joint, prior_log_odds, log_odds, prior], float) + spread * np.array([[-1], [0], [1.5]])


CAM = measured(90, np.nan, np.nan, 40, np.nan)


@pytest.mark.parametrize('calm, contrast', [
    (measured(89, 30, 45, 35, 30, 0.2), 'prior-log-odds'), (measured(88.5, 30, 35, 41, 30, 0.2), 'log-odds'),
    (measured(87, 30, 45, 35, 30, 0.2), None),   # too much accuracy is lost
    (measured(89, 30, 45, 35, 45, 0.2), None),   # no more than its prior
    (measured(89, 30, 42, 35, 30, 5), None)])    # within the interval
def test_the_verdict_is_the_goals(calm, contrast):
    said = localise.verdict({'CAM': CAM, 'CALM_EM': calm}, CONTROLS)
    assert said.startswith('Of 3 maps of CALM ' + (f'these reach the goal: CALM_EM, {contrast}.' if contrast else
                                                  "none reaches the goal. Highest against CAM's A - B is CALM_EM, prior"))


def test_a_control_that_is_as_good_prevents_it():
    calm = measured(89, 30, 45, 35, 30, 0.2)
    assert 'none reaches' in localise.verdict({'CAM': CAM, 'CALM_EM': calm}, CONTROLS | {'another': 45.0})


def test_one_seed_has_no_interval_and_proves_nothing():
    assert localise.mean_and_interval([3.0]) == (3.0, None, None)
    values = {'CAM': CAM[:1], 'CALM_EM': measured(89, 30, 45, 35, 30)[:1]}
    assert 'none reaches the goal' in localise.verdict(values, CONTROLS)


def test_the_interval_covers_the_mean_of_normal_values_in_95_of_100_draws():
    draws = np.random.default_rng(0).normal(2, 3, (4000, 3))
    covered = np.mean([low < 2 < high for _, low, high in map(localise.mean_and_interval, draws)])
    assert abs(covered - 0.95) < 0.015


def test_differences_are_taken_seed_by_seed():
    values = {'CAM': CAM, 'CALM_EM': measured(89, 30, 45, 35, 30)[:2]}
    assert dict(zip(COLUMNS, localise.less_cam(values, 'CALM_EM').T.round(9).tolist(), strict=True)) == {
        'accuracy': [-1, -1], 'joint-difference': [-10, -10], 'prior-log-odds': [5, 5], 'log-odds': [-5, -5], 'prior': [-10, -10]}


def test_rows_and_seeds_are_checked(script):
    refused(script('research.localise', '--seeds=0'), '--seeds', '"0"')
    refused(script('research.localise', '--rows', 'CALM_EM, entrpy -1'), 'did you mean CALM_EM, entropy -1?')
