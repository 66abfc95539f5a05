"""reproduce.py: the plan names what is missing, a tiny run ends in the paper's tables, goes on, and tells what failed."""
import csv
import json
import re

import numpy as np
import pytest
import torch
from conftest import ROOT, SIZE, explained_columns, refused

from dataset.registry import DATASETS
from reports import columns, intervals, paper
from reports.intervals import Estimate
from research import commands, plan, reproduce
from wsol import build_model

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
    assert f'resnet50-0676ba61.pth to {tmp_path}/hub/checkpoints' in out and 'estimated from operation counts' in out
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


def test_operations_are_counted_as_they_are_run():
    """A forward: a multiplication and an addition for each weight and place of a convolution. A training: three forwards
    an image and epoch, and the tests."""
    network = plan.Network('ToyBirds', 'CAM', 'CAM', None, ('--architecture=resnet18', '--last_stage=layer1', '--crop_size=56'))
    total = 0

    def count(module, inputs, output):
        nonlocal total
        total += 2 * module.weight.numel() * output[0, 0].numel()
    model = build_model('resnet18', 'CAM', 200, last_stage='layer1')
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    model(torch.zeros(1, 3, 56, 56))
    total += 2 * model.conv_last.weight.numel() * 14 * 14  # which the head applies itself
    assert plan.forward_operations(network.training)[0] == total
    train, val, test = DATASETS['ToyBirds'].images
    assert plan.operations(plan.Step(network), ['--epochs=2']) == total * (2 * (3 * train + val) + val + test)
    erased = plan.operations(plan.Step(network, 'pixel_perturb', 'smooth_grad'), [])
    assert erased == total * test * (50 + 2 * 50 + 10)


def test_toybirds_from_nothing_to_the_papers_tables(script, at_home, tmp_path, monkeypatch):
    monkeypatch.setattr(paper, 'METHODS', FEW)
    code, out, err = script('research.reproduce', '--dataset=ToyBirds', '--seeds=2', *TINY)
    assert code == 0, err
    root = tmp_path / 'save/reproduce/ToyBirds'
    trained = [command for command in at_home if command[0] == 'main.py']
    assert len(trained) == 2 * 3 and len(at_home) == 2 * (3 + 2 * len(FEW))  # start, CAM, CALM_EM; two measurements each
    cells = cells_of(root / 'tables.csv')
    for (head, process), name in FEW.items():
        own = [commands.result(root / f'seed{seed}' / head, 'cue_location', process, *TINY) for seed in (0, 1)]
        assert cells['Cue', name, 'paper: mean']['value'] == str(paper.PXAP[head, process][-1])
        published = [result['pxap']['parts']['published']['mean'] for result in own]
        alone = [result['pxap']['parts']['per pair, all pixels']['mean'] for result in own]
        cell = cells['Cue', name, 'published: mean']
        draws = np.mean([np.array(result['published_draws']['published']['mean'].split(), float) for result in own], 0)
        assert [float(cell[side]) for side in ('value', 'low', 'high')] == pytest.approx(
            [np.mean(published), *np.quantile(draws - draws.mean() + np.mean(published), [0.025, 0.975])])
        cell = cells['Cue', name, 'per pair, all pixels: mean']
        assert float(cell['value']) == pytest.approx(np.mean(alone)) and float(cell['low']) < np.mean(alone) < float(cell['high'])
        assert float(cells['Cue', name, 'over seeds ±']['value']) == pytest.approx(abs(alone[0] - alone[1]) / 2 ** 0.5)
        assert float(cells['Cue', name, 'dropped true']['value']) == pytest.approx(np.mean([result['dropped']['parts']['true'] for result in own]))
        erased = [commands.result(root / f'seed{seed}' / head, 'pixel_perturb', process, *TINY)['ratios'][0] for seed in (0, 1)]
        mean = np.mean([record['correct_top'] / record['correct_random'] for record in erased])
        assert float(cells['Remove-and-classify', name, 'R_10']['value']) == pytest.approx(mean)
    assert cells['Cue', 'CAM', 'verdict']['value'] == 'the reference'
    assert 'the paper is of CUB' in out and (root / 'ratios.png').stat().st_size > 5000
    assert (root / 'tables.tex').is_file() and (root / 'tables.md').is_file()
    before = len(at_home)
    code, out, _ = script('research.reproduce', '--dataset=ToyBirds', '--seeds=2', *TINY)
    assert code == 0 and len(at_home) == before and '2 of 2 done' in out  # nothing is run again
    others = ['--epochs=2', '--lr=0.5', '--precision=bfloat16']  # whose figures would pass for those of this command
    refused(script('research.reproduce', '--dataset=ToyBirds', '--seeds=2', *TINY, *others), 'seed0/start was trained with other settings',
            'epochs was 1, is 2', 'lr was', 'precision was float32, is bfloat16', 'another --save_root')
    refused(script('research.reproduce', '--dataset=ToyBirds', '--seeds=2', *TINY, '--override_cache'), 'another --save_root')


def test_weights_that_the_user_has_are_not_missing(script, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    for flags, is_missing in (([], True), (['--pretrained=False'], False), (['--architecture=resnet18'], False)):
        _, out, _ = script('research.reproduce', '--plan', '--dataset=CUB', *flags)
        assert ('ImageNet' in out) == is_missing


def found(method, values):
    units = ('images', *range(len(values)))
    estimate = Estimate(float(np.mean(values)), units, intervals.mean_terms(np.array(values, float)))
    return reproduce.Found(method, {f'{columns.COMPARED}: mean': [estimate]})


def test_verdicts():
    """In the paper CALM_EM is above CAM, and VarGrad below it."""
    cam = found(('CAM', 'vanilla'), [30, 40, 50, 60])
    verdicts = {shift: reproduce.order_verdict(found(('CALM_EM', 'jointll'), np.array([30, 40, 50, 60]) + shift), cam, f'{columns.COMPARED}: mean')
                for shift in (5, -5)}
    assert verdicts == {5: 'as in the paper: above CAM', -5: 'contrary to the paper: below CAM'}
    mixed = found(('CALM_EM', 'jointll'), [20, 50, 40, 72])
    assert reproduce.order_verdict(mixed, cam, f'{columns.COMPARED}: mean') == 'undecided: CAM lies within the interval'
    var_grad = found(('CAM', 'var_grad'), [1, 2, 3, 4])
    assert reproduce.order_verdict(var_grad, cam, f'{columns.COMPARED}: mean') == 'as in the paper: below CAM'
    var_grad.estimates['published: mean'] = [Estimate(21), Estimate(23)]  # of two seeds; the paper has 21.4
    assert reproduce.verdict('CUB', var_grad, cam) == '+0.6 from the paper; as in the paper: below CAM'
    assert reproduce.verdict('ToyBirds', var_grad, None) == 'CAM is not measured'


@pytest.mark.parametrize('right, verdict', [(718, 'as published, within the interval'), (600, '-11.8')])
def test_an_accuracy_is_held_against_the_published_one(right, verdict):
    terms = intervals.mean_terms(100.0 * (np.arange(1000) < right))
    own = reproduce.Found(('CALM_EM', 'jointll'), {'accuracy': [Estimate(right / 10, ('images',), terms)]})
    row, = reproduce.accuracy_table('CUB', [own]).rows
    assert str(row[1]) == '71.8' and row[-1] == verdict


def test_what_fails_is_told_and_the_rest_goes_on(script, at_home, tmp_path, monkeypatch):
    monkeypatch.setattr(paper, 'METHODS', {('CAM', 'vanilla'): 'CAM'})
    tiny = [*TINY, '--smooth_grad_nr_iter=1']
    assert script('research.reproduce', '--dataset=ToyBirds', '--seeds=1', *tiny)[0] == 0
    folder = tmp_path / 'save/reproduce/ToyBirds/seed0/CAM'
    for path in folder.glob('*_*.json'):
        path.unlink()
    parts = tmp_path / 'dataset/ToyBirds/parts'
    hidden = parts.rename(parts.with_name('hidden'))
    try:
        result = script('research.reproduce', '--dataset=ToyBirds', '--seeds=1', *tiny)
    finally:
        hidden.rename(parts)
    assert result[0] == 2 and 'error: 1 steps failed: cue localization: CAM' in result[2]
    assert [json.loads(path.read_text())['metric'] for path in folder.glob('*_*.json')] == ['pixel_perturb']
    assert 'Remove-and-classify on ToyBirds' in result[1]


def test_every_column_and_flag_has_a_sentence():
    text = (ROOT / 'docs/comparing.md').read_text().split('## reproduce.py')[1]
    explained = explained_columns(text)
    for column in reproduce.cue_table('CUB', []).header[1:]:
        assert column in explained, column
    for flag in set(re.findall(r'--(\w+)', reproduce.make_parser().format_usage())) - {'save_root'}:
        assert f'`--{flag}' in text


def test_mistakes(script):
    refused(script('research.reproduce', '--dataset=Cub'), 'did you mean CUB?')
    refused(script('research.reproduce', '--seeds=0'), '--seeds')
    refused(script('research.reproduce', '--epoch=3'), 'did you mean --epochs?')
    refused(script('research.reproduce', '--attribution_method=CAM'), '--attribution_method is what reproduce.py chooses itself')


def test_the_memory_of_a_training_grows_with_the_batch():
    """A part that the weights take, three times over, and one that each image takes: its own maps at least."""
    def memory(batch_size):
        return plan.training_memory(('--architecture=resnet18', '--attribution_method=CALM_EM', f'--batch_size={batch_size}'))
    model = build_model('resnet18', 'CALM_EM', 200)
    weights = 3 * 4 * sum(weight.numel() for weight in model.parameters())
    image = memory(9) - memory(8)
    assert memory(8) == pytest.approx(weights + 8 * image, rel=1e-3)
    assert image > 2 * 2 * (64 * 112 * 112 + 4 * 64 * 56 * 56)  # two bytes a value, of the stem and of the first stage
