"""wsol.attribution: the published maps, what maps must add up to, and what every method keeps to."""
import copy

import pytest
import torch
from conftest import assert_close, golden
from test_heads import head_on_features

from wsol import HEADS, METHODS, attribution_maps, build_model
from wsol.annotations import superclasses
from wsol.attribution.registry import SamplingSettings
from wsol.errors import UserError

GROUPS = superclasses.membership({0: [0, 1], 3: [2, 3, 4]}, 5)
FEW = {'settings': SamplingSettings(3, integrated_grad_nr_iter=3, rise_nr_masks=3), 'superclasses': GROUPS}
LABELS = torch.tensor([0, 3, 1])
EVERY = [(head, name) for head in ('CAM', 'CALM_EM') for name, method in METHODS.items()
         if issubclass(HEADS[head], method.head)]


@pytest.fixture(scope='module')
def networks():
    torch.manual_seed(4)  # of no class all gradient maps are zero
    networks = {name: build_model('resnet18', name, 5, last_stage='layer1').eval() for name in HEADS}
    for model in networks.values():
        if hasattr(model, 'attention'):
            torch.nn.init.constant_(model.attention[0].bias, 0.1)
    return networks


@pytest.fixture(scope='module')
def images():
    return torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(1))


# --- what maps are ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('head', ['CALM_EM', 'CALM_ML'])
@pytest.mark.parametrize('name', [name for name in METHODS if METHODS[name].one_forward and name not in ('random', 'eigen_cam')])
def test_maps_are_the_published_ones(head, name):
    reference = golden('maps')
    model = head_on_features(head, reference)
    groups = {label: [member for member in row if member >= 0] for label, row in enumerate(reference['superclass'])}
    maps = attribution_maps(model, torch.tensor(reference['f_former']), torch.tensor(reference['labels']), name,
                            superclasses=superclasses.membership(groups, 7))
    assert_close(maps, reference[name.replace('-', '_')])


def test_joint_maps_sum_to_the_probabilities(networks, images):
    model = networks['CALM_EM']
    maps = attribution_maps(model, images, None, 'jointll')
    torch.testing.assert_close(maps.sum((2, 3)), model(images).softmax(1))
    torch.testing.assert_close(maps.sum(1), attribution_maps(model, images, LABELS, 'saliency'))
    posterior = attribution_maps(model, images, None, 'gtcond')
    torch.testing.assert_close(posterior.sum((2, 3)), torch.ones(3, 5))


def test_the_contrast_map_sums_to_the_difference_of_the_probabilities(networks, images):
    model, first, second = networks['CALM_EM'], torch.tensor([0, 1, 2]), torch.tensor([3, 3, 4])
    contrast = attribution_maps(model, images, first, 'jointll', contrast=second)
    probs = model(images).softmax(1)
    rows = torch.arange(3)
    torch.testing.assert_close(contrast.sum((1, 2)), probs[rows, first] - probs[rows, second])
    assert torch.equal(contrast, -attribution_maps(model, images, second, 'jointll', contrast=first))


def test_superclass_maps_sum_to_the_superclasss_probability(networks, images):
    model, labels = networks['CALM_ML'], torch.tensor([0, 3, 2])
    with torch.autocast('cpu', torch.bfloat16):  # which rounds features, but no sum of maps
        maps = attribution_maps(model, images, labels, 'jointll-superclass', **FEW)
        mean = attribution_maps(model, images, labels, 'jointll-superclass-mean', **FEW)
        probs = model(images).softmax(1)
    torch.testing.assert_close(maps.sum((1, 2)), torch.stack([probs[0, :2].sum(), probs[1, 2:].sum(), probs[2, 2]]))
    torch.testing.assert_close(mean * torch.tensor([2., 3., 1.])[:, None, None], maps)
    everything = attribution_maps(model, images, labels, 'jointll-superclass', superclasses=torch.ones(5, 5) > 0)
    torch.testing.assert_close(everything, attribution_maps(model, images, labels, 'saliency'))  # of probability one


@pytest.mark.parametrize('head, name', [('CAM', 'vanilla'), ('CALM_EM', 'jointll'), ('CALM_ML', 'jointll')])
def test_each_head_has_a_method_of_its_own(networks, images, head, name):
    assert torch.equal(*(attribution_maps(networks[head], images, LABELS, *named) for named in ([], [name])))


# --- what every method keeps to ----------------------------------------------------------------------------------

@pytest.mark.parametrize('head, name', EVERY)
def test_a_map_depends_on_its_image_class_and_seed_alone(networks, images, head, name):
    labels, model = torch.tensor([[1, 4], [0, 2], [3, 3]]), copy.deepcopy(networks[head]).double()

    def maps(labels, rows=slice(3)):
        return attribution_maps(model, images[rows].double(), labels, name, seeds=torch.tensor([7, 8, 9])[rows], **FEW)
    everything, several, single = maps(None), maps(labels), maps(labels[:, 1])
    assert everything.shape[:2] == (3, 5) and several.shape[:2] == (3, 2) and single.ndim == 3
    torch.testing.assert_close(several, everything[torch.arange(3)[:, None], labels])
    torch.testing.assert_close(single, several[:, 1])
    torch.testing.assert_close(maps(labels[1:2], slice(1, 2))[0], several[1])


@pytest.mark.parametrize('head, name', EVERY)
def test_autocast_rounds_no_map(networks, images, head, name):
    """A bfloat16 backbone changes the features; maps made of them stay in float32."""
    with torch.autocast('cpu', torch.bfloat16):
        maps = attribution_maps(networks[head], images, LABELS, name, **FEW)
    assert maps.dtype == torch.float32
    if name not in ('backprop', 'input_grad'):  # which may well come out of the first layer as bfloat16
        assert not torch.equal(maps, maps.bfloat16().float())


@pytest.mark.parametrize('name', [name for head, name in EVERY if head == 'CALM_EM'])
def test_a_network_in_half_precision_has_every_map_in_float32(networks, images, name):
    maps = attribution_maps(copy.deepcopy(networks['CALM_EM']).half(), images[:1, :, :16, :16].half(), LABELS[:1], name, **FEW)
    assert maps.dtype == torch.float32 and maps.isfinite().all()


@pytest.fixture
def training_network(networks):
    """A function (head's name) -> one of the networks, in training mode; its statistics are given back afterwards."""
    taken = []

    def take(name):
        model = networks[name]
        taken.append((model, {key: value.clone() for key, value in model.state_dict().items()}))
        return model.train()
    yield take
    for model, state in taken:
        model.load_state_dict(state)
        model.eval()


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize('head, name', EVERY)
def test_nothing_but_the_map_comes_of_it(networks, images, training_network, head, name):
    """A network in training explains as in eval mode and goes on as it was: its BatchNorm's statistics, its parameters'
    gradients and the caller's images stay as they are."""
    before = images.clone()
    expected = attribution_maps(networks[head], images, LABELS, name, **FEW)
    assert not expected.requires_grad
    model = training_network(head)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    assert torch.equal(attribution_maps(model, images, LABELS, name, **FEW), expected)
    assert all(modes(model).values())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(images, before) and not images.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def fail(*_):
    raise FloatingPointError('the network failed')


@pytest.mark.parametrize('frozen', ['BatchNorm', 'at random'])
def test_every_modules_own_mode_is_given_back(images, training_network, frozen):
    """BatchNorm is often frozen in a network that trains. The modes come back where a method or the network fails, too."""
    model = training_network('CALM_EM')
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        module.training = (not isinstance(module, torch.nn.BatchNorm2d) if frozen == 'BatchNorm'
                           else bool(torch.rand((), generator=generator) < 0.5))
    before = modes(model)
    assert {True, False} == set(before.values())
    attribution_maps(model, images, LABELS, 'jointll')
    assert modes(model) == before
    with pytest.raises(UserError, match='need superclasses='):
        attribution_maps(model, images, LABELS, 'jointll-superclass')
    assert modes(model) == before
    handle = model.layer1.register_forward_hook(fail)
    try:
        for name in ('vanilla', 'backprop', 'occlusion'):
            with pytest.raises(FloatingPointError):
                attribution_maps(model, images, LABELS, name)
            assert modes(model) == before
    finally:
        handle.remove()


# --- what is refused -----------------------------------------------------------------------------------------------

def test_what_a_head_does_not_define_is_refused_by_name(networks, images):
    with pytest.raises(UserError, match='CAM does not define jointll.*vanilla'):
        attribution_maps(networks['CAM'], images, LABELS, 'jointll')
    with pytest.raises(UserError, match='no attribution method "jointl"'):
        attribution_maps(networks['CAM'], images, None, 'jointl')


@pytest.mark.parametrize('labels, contrast, words', [
    ([0, 1], None, r'shape \(2,\)'), ([0, 1, 5], None, 'from 0 to 5, classes are 0 to 4'), ([0, 1, -1], None, 'from -1'),
    ([0, 1, 2], [[1, 2], [1, 2], [1, 2]], 'contrast= has the shape'), ([[0], [1], [2]], [1, 2, 3], 'contrast= has the shape'),
    ([0.0, 1.0, 2.0], None, 'int64'), (None, [0, 1, 2], 'labels=')])
def test_labels_of_another_shape_or_range_are_refused(networks, images, labels, contrast, words):
    labels, contrast = (None if classes is None else torch.tensor(classes) for classes in (labels, contrast))
    with pytest.raises(UserError, match=words):
        attribution_maps(networks['CALM_EM'], images, labels, 'jointll', contrast=contrast)
    with pytest.raises(UserError, match='int64 tensor, it is list'):
        attribution_maps(networks['CALM_EM'], images, [0, 1, 2], 'jointll')
