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
    for name in ('CAM', 'CALM_ML', 'CALM_EM', 'CALM_ML, jointll-superclass', 'CALM_EM, jointll-superclass'):
        # on CUB, ImageNet and OpenImages, which has no superclasses
        assert len(re.findall(f'^WSOL: {name}  +1 ', out, re.M)) == (2 if 'superclass' in name else 3)
    assert 'WSOL: vanilla gradient' not in out and len(re.findall('^train CAM ', out, re.M)) == 3  # the reference everywhere
    assert re.search(r'^WSOL: CAM +1 +missing: CUB val, CUB test$', out, re.M)
    assert re.search(r'^WSOL: CAM +1 +missing: OpenImages val, OpenImages test, masks of OpenImages$', out, re.M)
    assert re.search(r'^WSOL: CALM_EM, .*ILSVRC val, ILSVRC test, superclasses of ILSVRC, weights CALM_EM-ImageNet$', out, re.M)
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
    assert 'OpenImages test' not in out and 'weights CALM_ML-OpenImages' in out and 'masks of OpenImages' in out
    for split in ('val', 'test'):
        (tmp_path / 'dataset/OpenImages' / split / 'm').mkdir(parents=True)
        (tmp_path / 'dataset/OpenImages' / split / 'm/mask.png').touch()
    _, out, _ = script('research.reproduce', '--plan', '--dataset=OpenImages')
    assert 'masks of OpenImages' not in out
    # CALM of one's own needs no published weights
    _, out, _ = script('research.reproduce', '--plan', '--dataset=CUB', '--train', '--seeds=2')
    assert 'weights CALM' not in out and re.search(r'^train CALM_EM +2 ', out, re.M)


def test_toybirds_from_nothing_to_the_papers_tables(script, at_home, tmp_path, monkeypatch):
    monkeypatch.setattr(paper, 'METHODS', FEW)
    code, out, err = script('research.reproduce', '--dataset=ToyBirds', '--seeds=2', *TINY)
    assert code == 0, err
    root = tmp_path / 'save/reproduce/ToyBirds'
    trained = [command for command in at_home if command[0] == 'main']
    # start, CAM, CALM_EM; three measurements of each map, and WSOL of CALM_EM's superclass map
    assert len(trained) == 2 * 3 and len(at_home) == 2 * (3 + 3 * len(FEW) + 1)
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
    boxes = {}
    for (head, method), name in [*FEW.items(), (('CALM_EM', 'jointll-superclass'), 'CALM_EM, jointll-superclass')]:
        results = [commands.result(root / f'seed{seed}' / head, 'wsol', method, *TINY)['results'] for seed in (0, 1)]
        for column in ('MaxBoxAccV2', 'MaxBoxAcc', 'Top-1 Loc', 'mass in box'):
            mean = np.mean([result[column]['test'] for result in results])
            assert float(cells['WSOL', name, column]['value']) == pytest.approx(mean, abs=0.01)
        boxes[name] = np.mean([result['MaxBoxAccV2']['test'] for result in results])
    assert ('WSOL', 'CAM', 'minus CAM') not in cells
    for name in ('CALM_EM', 'CALM_EM, jointll-superclass'):
        difference = cells['WSOL', name, 'minus CAM']
        assert float(difference['value']) == pytest.approx(boxes[name] - boxes['CAM'])
        assert float(difference['low']) <= float(difference['value']) <= float(difference['high'])
    assert ('Remove-and-classify', 'CALM_EM, jointll-superclass', 'R_10') not in cells
    assert "the paper's figures are not at hand" in out
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
    assert {json.loads(path.read_text())['metric'] for path in folder.glob('*_*.json')} == {'pixel_perturb', 'wsol'}
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


def test_networks_that_are_there_do_not_wait_for_a_training(monkeypatch, tmp_path):
    """Nor are masks, whose result has no interval, left without a difference."""
    monkeypatch.setattr(reproduce, 'lacks', lambda step, flags: [])
    monkeypatch.setattr(reproduce.Step, 'is_done', lambda step: False)
    monkeypatch.setattr(reproduce.PlannedNetwork, 'weights_sha256', lambda network: 'some')
    ran = []
    monkeypatch.setattr(reproduce.Step, 'run', lambda step: ran.append(step))
    steps = sum((reproduce.steps_of(reproduce.networks_of(name, 1, tmp_path, False, ())) for name in ('CUB', 'ILSVRC')), [])
    assert reproduce.run_all(steps, None) == ([], []) and sorted(map(repr, ran)) == sorted(map(repr, steps))
    first = next(index for index, step in enumerate(ran) if step.network.training)
    assert {step.network.dataset for step in ran[:first]} == {'CUB', 'ILSVRC'}
    assert all(step.network.training for step in ran[first:]) and not ran[first].metric
    rows = [paper_tables.MethodResult(method, {'mask PxAP': [Estimate(value)]})
            for method, value in ((('CAM', 'vanilla'), 50.0), (('CALM_EM', 'jointll'), 53.0))]
    assert [row[-1] and str(row[-1]) for row in paper_tables.wsol_table('OpenImages', rows).rows] == [None, '+3.0']


def test_masks_are_looked_for_beside_the_images(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(commands, 'run', lambda folder, script, *flags: ran.append((script, flags)))
    network, = reproduce.networks_of('OpenImages', 1, tmp_path, False, ('--data_root=/photos',))[:1]
    for metric in ('wsol', 'pixel_perturb'):
        reproduce.Step(network, metric, 'jointll').run()
    (script, flags), (_, without) = ran
    assert script == 'eval_wsol' and not any('mask_root' in flag for flag in without)
    assert commands.parse('eval_wsol', flags).mask_root == commands.parse('main', ['--data_root=/photos']).data_root


def test_every_column_and_flag_has_a_sentence():
    text = (ROOT / 'docs/paper.md').read_text()
    explained = explained_columns(text)
    for column in paper_tables.cue_table('CUB', []).header[1:]:
        assert column in explained, column
    row = paper_tables.MethodResult(('CAM', 'vanilla'), dict.fromkeys(columns.WSOL, [Estimate(1.0)]))
    assert set(paper_tables.wsol_table('CUB', [row]).header[1:]) <= explained
    for flag in set(re.findall(r'--(\w+)', reproduce.make_parser().format_usage())) - {'save_root'}:
        assert f'`--{flag}' in text


def test_mistakes(script):
    refused(script('research.reproduce', '--dataset=Cub'), 'did you mean CUB?')
    refused(script('research.reproduce', '--seeds=0'), '--seeds')
    refused(script('research.reproduce', '--epoch=3'), 'did you mean --epochs?')
    refused(script('research.reproduce', '--attribution_method=CAM'), 'research.reproduce chooses --attribution_method itself')
    refused(script('research.reproduce', '--override_cache'), '--override_cache')
