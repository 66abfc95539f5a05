"""wsol.attribution.registry: what a method's registration says is so, and everything else reads it from there."""
import csv
import json
import re
import shutil
from dataclasses import fields, replace

import pytest
import torch
from conftest import ROOT, accepted, read_result, refused, roots_of, without

from wsol import METHODS, attribution_maps, build_model
from wsol.annotations import superclasses
from wsol.attribution.contrast import CONTRASTS, REGISTERED, contrast_maps, default_scale
from wsol.attribution.registry import DERIVED, SamplingSettings, register
from wsol.errors import UserError
from wsol.heads import CALM, CAM

CLASSES = torch.tensor([[0, 3]])
FEW = SamplingSettings(2, integrated_grad_nr_iter=2, finer_cam_references=1, rise_nr_masks=2)
ON_THE_LAST_MAP = {'grad_cam', 'grad_cam_pp', 'layer_cam', 'finer_cam', 'xgrad_cam', 'hires_cam', 'ablation_cam'}
GROUPS = superclasses.membership({0: [0, 1, 2], 3: [3, 4]}, 5)
EACH = {method.name: method for method in METHODS.values()}  # the second name of a method left out


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(7)  # with it no class's map by gradients is zero everywhere
    model = build_model('resnet18', 'CALM_EM', 5, last_stage='layer1').eval()
    torch.nn.init.constant_(model.attention[0].bias, 0.1)
    return model


@pytest.fixture(scope='module')
def image():
    return torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def counted(model, monkeypatch):
    """{'F': forwards, 'B': backwards} of images, as they happen."""
    counts, backward = {'F': 0, 'B': 0}, torch.autograd.grad

    def count_backward(*args, **options):
        counts['B'] += len(args[1])
        return backward(*args, **options)

    def count_forward(module, inputs, output):
        counts['F'] += len(output)
    monkeypatch.setattr(torch.autograd, 'grad', count_backward)
    handle = model.conv1.register_forward_hook(count_forward)
    yield counts
    handle.remove()


# --- a registration is true ------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', EACH)
def test_a_registration_is_true(model, image, counted, name):
    method = METHODS[name]

    def maps(labels=CLASSES[:, :1], seed=0, groups=GROUPS, **settings):
        return attribution_maps(model, image, labels, name, None, torch.tensor([seed]), groups, replace(FEW, **settings))
    one = maps()
    cost = (1, 0) if name == 'ablation_cam' else method.cost_of(FEW, num_features=64)  # its other forwards are of the head
    assert counted == dict(zip('FB', cost, strict=True))
    assert (counted == {'F': 1, 'B': 0}) == (method.one_forward or name == 'ablation_cam')
    with torch.no_grad():
        activations = model.activations(image)
    counted.update(F=0)
    attribution_maps(model, image, CLASSES, name, settings=FEW, superclasses=GROUPS, activations=activations)
    assert (counted['F'] == 0) == (method.one_forward or name in ON_THE_LAST_MAP)
    both = maps(CLASSES)
    torch.testing.assert_close(both[:, :1], one)
    assert torch.equal(both[:, 0], both[:, 1]) != method.per_class
    if method.bounded:
        assert both.min() >= 0 and both.max() <= 1 + 1e-6
    if method.explains_score:
        assert (both < 0).any() == method.signed
    assert torch.equal(maps(seed=1), one) != method.random
    for field in fields(SamplingSettings):
        assert torch.equal(maps(**{field.name: 3}), one) != (field.name in method.settings), field.name
    if method.needs_superclasses:
        with pytest.raises(UserError, match='need superclasses='):
            maps(groups=None)
    else:
        assert torch.equal(maps(groups=None), one)


def test_a_sum_of_posteriors_is_no_probability():
    """It may exceed 1, so that it must not be cut at 1; each other map of CALM's own is a probability."""
    assert [name for name, method in METHODS.items() if method.scale == ('clipping', 'log')] == [
        'jointll', 'jointll-superclass', 'jointll-superclass-mean', 'gtcond', 'gtcond-superclass-mean', 'saliency']
    assert [name for name, contrast in CONTRASTS.items() if contrast.scale == ('clipping', 'log')] == [
        'joint-difference', 'posterior-difference']
    assert METHODS['gtcond-superclass'].unit == 'probability'
    assert default_scale('jointll', 'evidence') == default_scale('object_mask') == default_scale(None) == ('minmax', 'even')


def test_methods_of_many_forwards_are_slow():
    slow = {'integrated_grad', 'smooth_grad', 'smooth_grad_square', 'var_grad', 'integrated_gradients', 'score_cam', 'occlusion',
            'ablation_cam', 'rise'}
    assert {name for name, method in METHODS.items() if method.slow} == slow
    of_log_odds = {name for name in slow if METHODS[name].explains_score}
    assert {name for name, contrast in CONTRASTS.items() if contrast.slow} == of_log_odds | {f'{name}-difference' for name in slow}


def test_every_method_and_contrast_has_a_label_in_words():
    for method in METHODS.values():
        assert ('{c}' in method.label or '{score}' in method.label) == method.per_class
    for method in (*METHODS.values(), *CONTRASTS.values()):
        assert method.label and not re.search('[{}]', method.label_of() + method.difference_label())
    assert METHODS['jointll'].difference_label() == CONTRASTS['joint-difference'].label_of() == 'p(A, z | x) − p(B, z | x) per cell'
    assert METHODS['backprop'].label_of() == 'gradient of the score of A largest over colours'
    assert CONTRASTS['backprop'].label_of() == 'gradient of log p(A | x) / p(B | x) largest over colours'
    assert CONTRASTS['backprop-difference'].label_of() == 'gradient of the score of A − the same of B largest over colours'


# --- what is read from it ----------------------------------------------------------------------------------------

def first_paragraph(method):
    return ' '.join(method.compute.__doc__.split('\n\n')[0].split()).replace('|', r'\|')


def test_the_documentations_tables_are_the_registry():
    text = (ROOT / 'docs/attribution.md').read_text()
    for method in EACH.values():
        names = ', '.join(f'`{name}`' for name, entry in METHODS.items() if entry is method)
        cost = ', '.join(f'{count} {kind}' for count, kind in zip(method.cost_of(), 'FB', strict=True) if count)
        reads = [*method.settings, *['seed'] * method.random, *['superclass_file'] * method.needs_superclasses]
        row = [names, first_paragraph(method), 'all' if method.head is CAM else 'CALM', method.unit, cost,
               ', '.join(f'`{name}`' for name in reads)]
        assert f'| {" | ".join(row)} |\n' in text
    for name, method in REGISTERED.items():
        head = '' if method.head is CAM else ' (CALM)'
        row = [f'`{name}`{head}', first_paragraph(method), method.unit, method.total.replace('|', r'\|')]
        assert f'| {" | ".join(row)} |\n' in text
    assert len(re.findall(r'^\| `', text, re.M)) == len(EACH) + len(REGISTERED)


@pytest.fixture
def registered():
    """Two methods that nothing else has heard of: a probability, and what explains a score and takes its time."""
    @register('mine', head=CALM, unit='probability', bounded=True)
    def mine(query):
        """p(y=class, z|x) under another name."""
        return METHODS['jointll'].compute(query)

    @register('slow', label='slow {score}', per='', cost=(20, 0), explains_score=True, signed=True)
    def slow(query):
        """Each class's score, everywhere."""
        return query.explained(query.model(query.images))[..., None, None] * query.images[:, :1]
    yield
    for table, names in ((METHODS, ('mine', 'slow')), (DERIVED, ('mine-difference', 'slow', 'slow-difference'))):
        for name in names:
            del table[name]


def test_a_registered_method_has_its_contrasts(model, image, registered):
    first, second = CLASSES.T
    for name in ('mine', 'slow'):
        torch.testing.assert_close(contrast_maps(model, image, first, second, f'{name}-difference'),
                                   attribution_maps(model, image, first, name, contrast=second), rtol=0, atol=0)
    assert CONTRASTS['mine-difference'].scale == ('clipping', 'log') and 'mine' not in CONTRASTS
    scores = model(image)[0]
    torch.testing.assert_close(contrast_maps(model, image, first, second, 'slow'), (scores[0] - scores[3]) * image[:, 0])
    assert CONTRASTS['slow'].label_of() == 'slow log p(A | x) / p(B | x)'


def test_a_method_that_is_registered_again_has_the_contrasts_of_its_new_self_alone(registered):
    register('slow', head=CALM, per_class=False)(METHODS['slow'].compute)
    assert not {'slow', 'slow-difference'} & CONTRASTS.keys() and 'mine-difference' in CONTRASTS
    register('slow', head=CALM, explains_score=True)(METHODS['slow'].compute)
    assert {'slow', 'slow-difference'} <= CONTRASTS.keys() and CONTRASTS['slow'].head is CALM


def few_images(flags, folder, count=4):
    """The flags, with lists in a folder that name a few test images alone."""
    shutil.copytree(roots_of(flags)[1], folder)
    for path in (folder / 'ToyBirds/test').iterdir():
        path.write_text(''.join(path.read_text().splitlines(True)[:count]))
    return [*without(flags, 'metadata_root'), f'--metadata_root={folder}', '--cam_curve_interval=0.02']


def test_a_registered_method_runs_everywhere(script, tiny_birds, save, tmp_path, registered):
    flags = few_images(tiny_birds, tmp_path / 'lists')
    on_experiment = [*flags, '--experiment_name=CALM_EM']
    photo = next((roots_of(tiny_birds)[0] / 'ToyBirds/images').rglob('*_test_*.jpg'))
    accepted(script('inference', photo, *on_experiment, '--output=out', '--score_map_process=mine,slow', '--contrast'))
    manifest = json.loads((tmp_path / 'out/manifest.json').read_text())
    assert manifest['methods'] == {'mine': 'mine of A per cell', 'slow': 'slow the score of A'}

    code, out, err = script('eval_cue_location', *on_experiment, '--score_map_process=mine,jointll')
    assert code == 0 and 'maps: CALM_EM_mine, norm clipping, thresholds log' in out, err
    mine, same = (read_result(save / 'CALM_EM', 'cue_location', f'_{name}_clipping_log') for name in ('mine', 'jointll'))
    assert mine['pxap'] == same['pxap']
    accepted(script('eval_wsol', *on_experiment, '--score_map_process=mine'), 'maps: CALM_EM_mine, norm minmax')
    refused(script('eval_wsol', *flags, '--experiment_name=CAM', '--score_map_process=mine'), 'CAM does not define mine')

    accepted(script('research.interventions', *on_experiment, '--contrast_method=mine-difference,slow', '--slow_questions=2'))
    rows = read_result(save / 'CALM_EM', 'interventions')['methods']
    assert rows['slow']['questions'] == 2 < rows['mine-difference']['questions']
    assert rows['mine-difference']['unit'] == 'probability' and 'control: random weights, mine-difference' in rows

    assert script('compare', 'save/CALM_EM', '--format=csv', '--output=table')[0] == 0
    with open(tmp_path / 'table/table.csv') as file:
        assert {'CALM_EM: CALM_EM, mine, step 0.02', 'CALM_EM: mine-difference'} <= {row['row'] for row in csv.DictReader(file)}
