"""research.reproduce: the plan names what is missing, a tiny run ends in the paper's tables, goes on, and tells what failed."""
import csv
import json
import re

import numpy as np
import pytest
import torch
from conftest import ROOT, SIZE, accepted, explained_columns, refused

from reports import columns, intervals, paper
from reports.intervals import Estimate
from reports.rows import Row
from research import commands, reproduce
from research.reproduce import PUBLISHED
from wsol.errors import UserError

TINY = ['--epochs=1', f'--crop_size={SIZE}', '--resize_size=64', '--workers=0', '--device=cpu', '--precision=float32',
        '--last_stage=layer1', '--smooth_grad_nr_iter=2']
FEW = {method: name for method, name in paper.METHODS.items() if name in ('CAM', 'CALM_EM')}


def cells_of(path):
    """{(beginning of the table's title, row, column): its line of a CSV of tables}."""
    with open(path) as file:
        return {(line['table'].split(',')[0], line['row'], line['column']): line for line in csv.DictReader(file)}


def test_the_plan_names_what_is_missing_and_how_to_get_it(script, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    out = accepted(script('research.reproduce', '--plan'))
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


def test_toybirds_from_nothing_to_the_papers_tables(script, drawn, few_birds, at_home, tmp_path, monkeypatch):
    monkeypatch.setattr(paper, 'METHODS', FEW)
    out = accepted(script('research.reproduce', '--dataset=ToyBirds', '--seeds=2', *TINY))
    root = tmp_path / 'save/reproduce/ToyBirds'
    trained = [command for command in at_home if command[0] == 'main']
    # start, CAM, CALM_EM; three measurements of each map, and WSOL of CALM_EM's superclass map
    assert len(trained) == 2 * 3 and len(at_home) == 2 * (3 + 3 * len(FEW) + 1)
    cells = cells_of(root / 'tables.csv')
    for (head, method), name in FEW.items():
        results = [commands.result(root / f'seed{seed}' / head, 'cue_location', method, *TINY) for seed in (0, 1)]
        line = {column: cells['Cue localization on ToyBirds', name, column]
                for column in (f'paper: {PUBLISHED}', f'ours: {PUBLISHED}', 'verdict')}
        assert line[f'paper: {PUBLISHED}']['value'] == str(paper.PXAP[head, method][-1])
        published = [result['pxap']['parts']['published']['mean'] for result in results]
        draws = np.mean([np.array(result['published_draws']['published']['mean'].split(), float) for result in results], 0)
        assert [float(line[f'ours: {PUBLISHED}'][side]) for side in ('value', 'low', 'high')] == pytest.approx(
            [np.mean(published), *np.quantile(draws - draws.mean() + np.mean(published), [0.025, 0.975])])
        assert (line['verdict']['value'] == 'the reference') == (name == 'CAM')
        assert cells['Accuracy on ToyBirds', name, 'verdict']['value'] == 'not published'
    alone = [np.mean([commands.result(root / f'seed{seed}' / head, 'cue_location', method, *TINY)['pxap']['parts'][columns.COMPARED]['mean']
                      for seed in (0, 1)]) for head, method in FEW]
    difference = cells['Cue localization on ToyBirds', 'CALM_EM', 'above CAM']
    assert float(difference['value']) == pytest.approx(alone[1] - alone[0]) and float(difference['low']) < float(difference['high'])
    names = {row for table, row, _ in cells if table == 'All results'}
    assert {'seed0/CAM: CAM', 'seed1/CALM_EM: CALM_EM, jointll-superclass', 'the paper (CUB): CALM_EM'} <= {
        name.split('ToyBirds/')[-1] for name in names}
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
    assert 'Remove-and-classify: R_k' in result[1]
    (folder / 'cue_location_x.json').write_text('{"metric": "cue_location", "settings": {}}')
    refused(script('research.reproduce', '--dataset=ToyBirds', '--seeds=1', *TINY), '1 steps failed: tables of ToyBirds', 'cue_location_x.json')


def test_weights_that_the_user_has_are_not_missing(script, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    for flags, is_missing in (([], True), (['--pretrained=False'], False), (['--architecture=resnet18'], False)):
        _, out, _ = script('research.reproduce', '--plan', '--dataset=CUB', *flags)
        assert ('ImageNet' in out) == is_missing


def rows_of(name, values, **more):
    """[Row] of a method whose class pairs have these values."""
    units, terms = ('images', *range(len(values))), intervals.mean_terms(np.array(values, float))
    estimate = Estimate(float(np.mean(values)), units, terms)
    return [Row('x', name, {}, {PUBLISHED: estimate, f'{columns.COMPARED}: mean': estimate, **more}, plain_method=name)]


def test_verdicts():
    """In the paper CALM_EM is above CAM, and VarGrad below it."""
    values = np.array([30, 40, 50, 60])
    cam = rows_of('CAM', values)

    def words(rows, reference=cam):
        return {line[0]: line[-1] for line in reproduce.verdicts('CUB', [*reference, *rows])[-1].rows}
    for shift, expected in ((5, 'as in the paper: above CAM'), (-5, 'contrary to the paper: below CAM')):
        assert words(rows_of('CALM_EM', values + shift)) == {'CAM': 'the reference', 'CALM_EM': expected}
    assert words(rows_of('CALM_EM', [20, 50, 40, 72]))['CALM_EM'] == 'undecided: CAM lies within the interval'
    assert words(rows_of('VarGrad', [1, 2, 3, 4]))['VarGrad'] == 'as in the paper: below CAM'
    assert words(rows_of('VarGrad', [1, 2, 3, 4]), []) == {'VarGrad': 'no CAM to compare with'}
    (other,) = rows_of('VarGrad', [1, 2, 3, 4])
    other.about['images_sha256'] = 'b'
    assert words([other])['VarGrad'] == 'CAM has no figure on the same images and truth'
    assert words(rows_of('VarGrad', [9]), rows_of('CAM', [1]))['VarGrad'] == 'undecided: the difference has no interval'
    for seed, row in enumerate(seeds := rows_of('CALM_EM', values) + rows_of('CALM_EM', values)):
        row.experiment, row.results = seed, {'wsol': {'metric': 'wsol', 'images_sha256': seed, 'path': f'seed{seed}'}}
    with pytest.raises(UserError, match='seed0 and seed1 were measured on different images'):
        reproduce.verdicts('CUB', seeds)
    (line,) = reproduce.verdicts('CUB', rows_of('VarGrad', [20, 24]))[0].rows  # the paper has 21.4
    assert str(line[3]) == '+0.6'


@pytest.mark.parametrize('right, verdict', [(718, 'as published, within the interval'), (600, '-11.8')])
def test_an_accuracy_is_held_against_the_published_one(right, verdict):
    terms = intervals.mean_terms(100.0 * (np.arange(1000) < right))
    rows = rows_of('CALM_EM', [1, 2], accuracy=Estimate(right / 10, ('images',), terms))
    line, = reproduce.verdicts('CUB', rows)[0].rows
    assert str(line[1]) == '71.8' and line[-1] == verdict


def test_networks_that_are_there_do_not_wait_for_a_training(monkeypatch, tmp_path):
    monkeypatch.setattr(reproduce, 'lacks', lambda step, flags: [])
    monkeypatch.setattr(reproduce.Step, 'is_done', lambda step: False)
    monkeypatch.setattr(reproduce.PlannedNetwork, 'trained', lambda network: {'weights_sha256': 'some'})
    ran = []
    monkeypatch.setattr(reproduce.Step, 'run', lambda step: ran.append(step))
    steps = sum((reproduce.steps_of(reproduce.networks_of(name, 1, tmp_path, False, ())) for name in ('CUB', 'ILSVRC')), [])
    assert reproduce.run_all(steps, None) == ([], []) and sorted(map(repr, ran)) == sorted(map(repr, steps))
    first = next(index for index, step in enumerate(ran) if step.network.training)
    assert {step.network.dataset for step in ran[:first]} == {'CUB', 'ILSVRC'}
    assert all(step.network.training for step in ran[first:]) and not ran[first].metric


def test_every_column_and_flag_has_a_sentence():
    text = (ROOT / 'docs/paper.md').read_text()
    explained = explained_columns(text)
    for table in reproduce.verdicts('CUB', rows_of('CAM', [1, 2], accuracy=Estimate(1.0))):
        assert set(table.header[1:]) <= explained
    for flag in set(re.findall(r'--(\w+)', reproduce.make_parser().format_usage())) - {'save_root'}:
        assert f'`--{flag}' in text


def test_mistakes(script):
    refused(script('research.reproduce', '--dataset=Cub'), 'did you mean CUB?')
    refused(script('research.reproduce', '--seeds=0'), '--seeds')
    refused(script('research.reproduce', '--epoch=3'), 'did you mean --epochs?')
    refused(script('research.reproduce', '--attribution_method=CAM'), 'research.reproduce chooses --attribution_method itself')
    refused(script('research.reproduce', '--override_cache'), '--override_cache')
