"""research.reproduce: the plan names what is missing, a tiny run ends in the paper's tables, goes on, and tells what failed."""
import csv
import json
import re

import numpy as np
import pytest
import torch
from conftest import ROOT, SIZE, explained_columns, refused

from reports import columns, intervals, paper
from reports.intervals import Estimate
from research import commands, paper_tables, reproduce

TINY = ['--epochs=1', f'--crop_size={SIZE}', '--resize_size=64', '--workers=0', '--device=cpu', '--precision=float32',
        '--last_stage=layer1', '--smooth_grad_nr_iter=2']
FEW = {method: name for method, name in paper.METHODS.items() if name in ('CAM', 'CALM_EM')}


def cells_of(path):
    """{(first word of the table, row, column): its line of a CSV of tables}."""
    with open(path) as file:
        return {(line['table'].split()[0], line['row'], line['column']): line for line in csv.DictReader(file)}


def test_the_plan_names_what_is_missing_and_how_to_get_it(script, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    code, out, err = script('research.reproduce', '--plan')
    assert code == 0, err
    for name in paper.METHODS.values():
        assert f'remove-and-classify: {name}' in out and f'cue localization: {name}' in out
    assert re.search(r'^train CAM +1 +missing: CUB train, CUB val, CUB test, ImageNet', out, re.M)
    assert re.search(r'^missing: .*CUB test, CUB parts, attributes and segmentations. To get it: python dataset/prepare.py cub$', out, re.M)
    for dataset in ('CUB', 'ImageNet', 'OpenImages'):
        assert f'weights CALM_EM-{dataset}. To get it: python main.py --is_train=False --load_checkpoint=CALM_EM-{dataset}' in out
    assert f'resnet50-0676ba61.pth to {tmp_path}/hub/checkpoints' in out
    assert not list(tmp_path.iterdir())
    # what is there is not missing: the lists and images of the test split
    (tmp_path / 'metadata/OpenImages/test').mkdir(parents=True)
    (tmp_path / 'metadata/OpenImages/test/image_ids.txt').touch()
    (tmp_path / 'dataset/OpenImages').mkdir(parents=True)
    _, out, _ = script('research.reproduce', '--plan', '--dataset=OpenImages')
    assert 'OpenImages test' not in out and 'weights CALM_ML-OpenImages' in out
    # CALM of one's own needs no published weights
    _, out, _ = script('research.reproduce', '--plan', '--dataset=CUB', '--train', '--seeds=2')
    assert 'weights CALM' not in out and re.search(r'^train CALM_EM +2 ', out, re.M)


def test_toybirds_from_nothing_to_the_papers_tables(script, at_home, tmp_path, monkeypatch):
    monkeypatch.setattr(paper, 'METHODS', FEW)
    code, out, err = script('research.reproduce', '--dataset=ToyBirds', '--seeds=2', *TINY)
    assert code == 0, err
    root = tmp_path / 'save/reproduce/ToyBirds'
    trained = [command for command in at_home if command[0] == 'main']
    assert len(trained) == 2 * 3 and len(at_home) == 2 * (3 + 2 * len(FEW))  # start, CAM, CALM_EM; two measurements each
    cells = cells_of(root / 'tables.csv')
    for (head, method), name in FEW.items():
        results = [commands.result(root / f'seed{seed}' / head, 'cue_location', method, *TINY) for seed in (0, 1)]
        assert cells['Cue', name, 'paper: mean']['value'] == str(paper.PXAP[head, method][-1])
        published = [result['pxap']['parts']['published']['mean'] for result in results]
        alone = [result['pxap']['parts']['per pair, all pixels']['mean'] for result in results]
        cell = cells['Cue', name, 'published: mean']
        draws = np.mean([np.array(result['published_draws']['published']['mean'].split(), float) for result in results], 0)
        assert [float(cell[side]) for side in ('value', 'low', 'high')] == pytest.approx(
            [np.mean(published), *np.quantile(draws - draws.mean() + np.mean(published), [0.025, 0.975])])
        cell = cells['Cue', name, 'per pair, all pixels: mean']
        assert float(cell['value']) == pytest.approx(np.mean(alone)) and float(cell['low']) < np.mean(alone) < float(cell['high'])
        assert float(cells['Cue', name, 'over seeds ±']['value']) == pytest.approx(abs(alone[0] - alone[1]) / 2 ** 0.5)
        assert float(cells['Cue', name, 'dropped true']['value']) == pytest.approx(np.mean([result['dropped']['parts']['true'] for result in results]))
        erased = [commands.result(root / f'seed{seed}' / head, 'pixel_perturb', method, *TINY)['ratios'][0] for seed in (0, 1)]
        mean = np.mean([record['correct_top'] / record['correct_random'] for record in erased])
        assert float(cells['Remove-and-classify', name, 'R_10']['value']) == pytest.approx(mean)
    assert cells['Cue', 'CAM', 'verdict']['value'] == 'the reference'
    assert 'compare only the order' in out and (root / 'ratios.png').stat().st_size > 5000
    assert (root / 'tables.tex').is_file() and (root / 'tables.md').is_file()
    before = len(at_home)
    code, out, _ = script('research.reproduce', '--dataset=ToyBirds', '--seeds=2', *TINY)
    assert code == 0 and len(at_home) == before and '2 of 2 done' in out  # nothing is run again
    others = ['--epochs=2', '--lr=0.5', '--precision=bfloat16']  # their figures would be mistaken for those of this command
    refused(script('research.reproduce', '--dataset=ToyBirds', '--seeds=2', *TINY, *others), 'seed0/start was trained with other settings',
            'epochs was 1, is 2', 'lr was', 'precision was float32, is bfloat16', 'another --save_root')
    check_that_a_failure_does_not_stop_the_rest(script, tmp_path, root / 'seed0/CAM')


def check_that_a_failure_does_not_stop_the_rest(script, tmp_path, folder):
    for path in folder.glob('*_*.json'):
        path.unlink()
    parts = tmp_path / 'dataset/ToyBirds/parts'
    hidden = parts.rename(parts.with_name('hidden'))
    try:
        result = script('research.reproduce', '--dataset=ToyBirds', '--seeds=1', *TINY)
    finally:
        hidden.rename(parts)
    assert result[0] == 2 and 'error: 1 steps failed: cue localization: CAM' in result[2]
    assert [json.loads(path.read_text())['metric'] for path in folder.glob('*_*.json')] == ['pixel_perturb']
    assert 'Remove-and-classify on ToyBirds' in result[1]


def test_weights_that_the_user_has_are_not_missing(script, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    for flags, is_missing in (([], True), (['--pretrained=False'], False), (['--architecture=resnet18'], False)):
        _, out, _ = script('research.reproduce', '--plan', '--dataset=CUB', *flags)
        assert ('ImageNet' in out) == is_missing


def result_of(method, values):
    units = ('images', *range(len(values)))
    estimate = Estimate(float(np.mean(values)), units, intervals.mean_terms(np.array(values, float)))
    return paper_tables.MethodResult(method, {f'{columns.COMPARED}: mean': [estimate]})


def test_verdicts():
    """In the paper CALM_EM is above CAM, and VarGrad below it."""
    cam = result_of(('CAM', 'vanilla'), [30, 40, 50, 60])
    verdicts = {shift: paper_tables.verdict(result_of(('CALM_EM', 'jointll'), np.array([30, 40, 50, 60]) + shift), cam)
                for shift in (5, -5)}
    assert verdicts == {5: 'as in the paper: above CAM', -5: 'contrary to the paper: below CAM'}
    mixed = result_of(('CALM_EM', 'jointll'), [20, 50, 40, 72])
    assert paper_tables.verdict(mixed, cam) == 'undecided: CAM lies within the interval'
    var_grad = result_of(('CAM', 'var_grad'), [1, 2, 3, 4])
    assert paper_tables.verdict(var_grad, cam) == 'as in the paper: below CAM'
    assert paper_tables.verdict(var_grad, None) == 'CAM has no result'
    var_grad.estimates['published: mean'] = [Estimate(21), Estimate(23)]  # of two seeds; the paper has 21.4
    (row,) = paper_tables.cue_table('CUB', [var_grad]).rows
    assert row[-1] == '+0.6 from the paper; CAM has no result'


@pytest.mark.parametrize('right, verdict', [(718, 'as published, within the interval'), (600, '-11.8')])
def test_an_accuracy_is_held_against_the_published_one(right, verdict):
    terms = intervals.mean_terms(100.0 * (np.arange(1000) < right))
    result = paper_tables.MethodResult(('CALM_EM', 'jointll'), {'accuracy': [Estimate(right / 10, ('images',), terms)]})
    row, = paper_tables.accuracy_table('CUB', [result]).rows
    assert str(row[1]) == '71.8' and row[-1] == verdict


def test_every_column_and_flag_has_a_sentence():
    text = (ROOT / 'docs/paper.md').read_text()
    explained = explained_columns(text)
    for column in paper_tables.cue_table('CUB', []).header[1:]:
        assert column in explained, column
    for flag in set(re.findall(r'--(\w+)', reproduce.make_parser().format_usage())) - {'save_root'}:
        assert f'`--{flag}' in text


def test_mistakes(script):
    refused(script('research.reproduce', '--dataset=Cub'), 'did you mean CUB?')
    refused(script('research.reproduce', '--seeds=0'), '--seeds')
    refused(script('research.reproduce', '--epoch=3'), 'did you mean --epochs?')
    refused(script('research.reproduce', '--attribution_method=CAM'), 'research.reproduce chooses --attribution_method itself')
    refused(script('research.reproduce', '--override_cache'), '--override_cache')
