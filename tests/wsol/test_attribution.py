"""wsol.attribution: the published maps, and what maps must add up to."""
import pytest
import torch
from conftest import assert_close, golden
from test_heads import head_on_features

from wsol import HEADS, build_model
from wsol.annotations import superclasses
from wsol.attribution.maps import attribution_maps
from wsol.attribution.registry import METHODS, SamplingSettings
from wsol.errors import UserError

HEAD_NAMES = list(HEADS)
FEW = {'settings': SamplingSettings(smooth_grad_nr_iter=3, integrated_grad_nr_iter=3),
       'superclasses': superclasses.membership({0: [0, 1], 3: [2, 3, 4]}, 5)}


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
    return torch.randn(3, 3, 40, 40, generator=torch.Generator().manual_seed(1))


def defined_for(name):
    return [process for process, entry in METHODS.items() if issubclass(HEADS[name], entry.head)]


@pytest.mark.parametrize('method', ['CALM_EM', 'CALM_ML'])
@pytest.mark.parametrize('process', [name for name in METHODS if name.startswith((
    'vanilla', 'saliency', 'jointll', 'gtcond'))])
def test_maps_are_the_published_ones(method, process):
    reference = golden('maps')
    model = head_on_features(method, reference)
    groups = {label: [member for member in row if member >= 0] for label, row in enumerate(reference['superclass'])}
    maps = attribution_maps(model, torch.tensor(reference['f_former']), torch.tensor(reference['labels']), process,
                            superclasses=superclasses.membership(groups, 7))
    assert_close(maps, reference[process.replace('-', '_')])


def test_joint_maps_sum_to_the_probabilities(networks, images):
    model = networks['CALM_EM']
    maps = attribution_maps(model, images, None, 'jointll')
    torch.testing.assert_close(maps.sum((2, 3)), model(images).softmax(1))
    torch.testing.assert_close(maps.sum(1), attribution_maps(model, images, torch.tensor([0, 0, 0]), 'saliency'))
    posterior = attribution_maps(model, images, None, 'gtcond')
    torch.testing.assert_close(posterior.sum((2, 3)), torch.ones(3, 5))


def test_the_contrast_map_sums_to_the_difference_of_the_probabilities(networks, images):
    model, first, second = networks['CALM_EM'], torch.tensor([0, 1, 2]), torch.tensor([3, 3, 4])
    contrast = attribution_maps(model, images, first, 'jointll', contrast=second)
    probs = model(images).softmax(1)
    rows = torch.arange(3)
    torch.testing.assert_close(contrast.sum((1, 2)), probs[rows, first] - probs[rows, second])
    swapped = attribution_maps(model, images, second, 'jointll', contrast=first)
    assert torch.equal(contrast, -swapped)


@pytest.mark.parametrize('method', HEAD_NAMES)
def test_one_label_several_labels_and_all_labels_agree(networks, images, method):
    labels = torch.tensor([[1, 4], [0, 2], [3, 3]])
    for process in defined_for(method):
        everything, several, single = (attribution_maps(networks[method], images, asked, process, **FEW)
                                       for asked in (None, labels, labels[:, 1]))
        assert everything.shape[:2] == (3, 5) and several.shape[:2] == (3, 2) and single.ndim == 3
        torch.testing.assert_close(several, everything[torch.arange(3)[:, None], labels])
        torch.testing.assert_close(single, several[:, 1])


def test_random_maps_depend_on_the_images_seed_alone(networks, images):
    def draw(batch, seeds):
        return attribution_maps(networks['CAM'], batch, torch.zeros(len(batch), dtype=torch.int64), 'random',
                                seeds=torch.tensor(seeds))
    together = draw(images, [7, 8, 9])
    torch.testing.assert_close(draw(images[1:2], [8])[0], together[1])
    assert not torch.equal(together[0], together[1])


def test_what_a_head_does_not_define_is_refused_by_name(networks, images):
    with pytest.raises(UserError, match='CAM does not define jointll.*vanilla'):
        attribution_maps(networks['CAM'], images, torch.zeros(3, dtype=torch.int64), 'jointll')
    with pytest.raises(UserError, match='no attribution method "jointl"'):
        attribution_maps(networks['CAM'], images, None, 'jointl')
    with pytest.raises(UserError, match='labels='):
        attribution_maps(networks['CALM_EM'], images, None, 'jointll', contrast=torch.zeros(3, dtype=torch.int64))


def test_the_model_and_the_callers_tensors_are_left_alone(networks, images):
    for method in HEAD_NAMES:
        before = images.clone()
        for process in defined_for(method):
            maps = attribution_maps(networks[method], images, torch.tensor([0, 1, 2]), process, **FEW)
            assert not maps.requires_grad
        assert torch.equal(images, before) and not images.requires_grad
        assert all(parameter.grad is None for parameter in networks[method].parameters())


def test_superclass_maps_sum_to_the_superclasss_probability(networks, images):
    model, labels = networks['CALM_ML'], torch.tensor([0, 3, 2])
    maps = attribution_maps(model, images, labels, 'jointll-superclass', superclasses=FEW['superclasses'])
    probs = model(images).softmax(1)
    expected = torch.stack([probs[0, :2].sum(), probs[1, 2:].sum(), probs[2, 2]])
    torch.testing.assert_close(maps.sum((1, 2)), expected)
    mean = attribution_maps(model, images, labels, 'jointll-superclass-mean', superclasses=FEW['superclasses'])
    torch.testing.assert_close(mean * torch.tensor([2., 3., 1.])[:, None, None], maps)
    with pytest.raises(UserError, match='need superclasses='):
        attribution_maps(model, images, labels, 'jointll-superclass')


@pytest.mark.parametrize('method', HEAD_NAMES)
def test_autocast_rounds_no_map(networks, images, method):
    """A bfloat16 backbone changes the features; maps made of them stay in float32, and sum up as they should."""
    model = networks[method]
    for process in defined_for(method):
        with torch.autocast('cpu', torch.bfloat16):
            maps = attribution_maps(model, images, torch.tensor([0, 3, 3]), process, **FEW)
        assert maps.dtype == torch.float32, process
        if process not in ('backprop', 'input_grad'):  # which may well come out of the first layer as bfloat16
            assert not torch.equal(maps, maps.bfloat16().float()), process
    if method != 'CAM':
        with torch.autocast('cpu', torch.bfloat16):
            probs = model(images).softmax(1)
            maps = attribution_maps(model, images, torch.tensor([3, 3, 3]), 'jointll-superclass', **FEW)
        torch.testing.assert_close(maps.sum((1, 2)), probs[:, [2, 3, 4]].sum(1))


@pytest.mark.parametrize('labels, contrast, words', [
    ([0, 1], None, r'shape \(2,\)'), ([0, 1, 5], None, 'from 0 to 5, classes are 0 to 4'), ([0, 1, -1], None, 'from -1'),
    ([0, 1, 2], [[1, 2], [1, 2], [1, 2]], 'contrast= has the shape'), ([[0], [1], [2]], [1, 2, 3], 'contrast= has the shape'),
    ([0.0, 1.0, 2.0], None, 'int64')])
def test_labels_of_another_shape_or_range_are_refused(networks, images, labels, contrast, words):
    labels, contrast = torch.tensor(labels), None if contrast is None else torch.tensor(contrast)
    with pytest.raises(UserError, match=words):
        attribution_maps(networks['CALM_EM'], images, labels, 'jointll', contrast=contrast)
    with pytest.raises(UserError, match='int64 tensor, it is list'):
        attribution_maps(networks['CALM_EM'], images, [0, 1, 2], 'jointll')


def flags(model):
    return {name: module.training for name, module in model.named_modules()}


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


@pytest.mark.parametrize('method', HEAD_NAMES)
def test_a_network_in_training_explains_as_in_eval_mode_and_goes_on_as_it_was(networks, images, training_network, method):
    """BatchNorm's statistics stay as they are, and with them what the network says afterwards."""
    labels = torch.tensor([0, 3, 1])
    expected = {process: attribution_maps(networks[method], images, labels, process, **FEW)
                for process in defined_for(method)}
    model = training_network(method)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for process, maps in expected.items():
        assert torch.equal(attribution_maps(model, images, labels, process, **FEW), maps), process
        assert all(flags(model).values()), process
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), process
    assert any('running_mean' in key for key in before)


@pytest.mark.parametrize('frozen', ['BatchNorm', 'at random'])
def test_every_modules_own_mode_is_given_back(images, training_network, frozen):
    """BatchNorm is often frozen in a network that trains."""
    model = training_network('CALM_EM')
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if frozen == 'BatchNorm':
            module.training = not isinstance(module, torch.nn.BatchNorm2d)
        else:
            module.training = bool(torch.rand((), generator=generator) < 0.5)
    before = flags(model)
    assert {True, False} == set(before.values())
    attribution_maps(model, images, torch.tensor([0, 1, 2]), 'jointll')
    assert flags(model) == before
    with pytest.raises(UserError, match='superclass'):  # raised in the method, with the network in eval mode
        attribution_maps(model, images, torch.tensor([0, 1, 2]), 'jointll-superclass')
    assert flags(model) == before


def test_the_modes_are_given_back_where_the_network_itself_fails(images, training_network):
    model = training_network('CAM')
    model.layer1.eval()
    before = flags(model)

    def fail(*_):
        assert not model.training  # the failure happens within
        raise FloatingPointError('the network failed')
    handle = model.layer1.register_forward_hook(fail)
    try:
        for process in ('vanilla', 'backprop', 'occlusion'):
            with pytest.raises(FloatingPointError, match='the network failed'):
                attribution_maps(model, images, torch.tensor([0, 1, 2]), process)
            assert flags(model) == before
    finally:
        handle.remove()


@pytest.mark.parametrize('method, own', [('CAM', 'vanilla'), ('CALM_EM', 'jointll'), ('CALM_ML', 'jointll')])
def test_without_a_process_a_head_gives_its_own_maps(networks, images, method, own):
    labels = torch.tensor([0, 1, 2])
    assert torch.equal(attribution_maps(networks[method], images, labels),
                       attribution_maps(networks[method], images, labels, own))


@pytest.mark.parametrize('method', HEAD_NAMES)
def test_what_is_said_to_take_one_forward_takes_one_and_no_gradient(networks, images, method):
    """However many classes are asked; and none where the caller has the activations."""
    model, forwards = networks[method], []
    with torch.no_grad():
        activations = model.activations(images)
    handle = model.layer1.register_forward_hook(lambda *_: forwards.append(torch.is_grad_enabled()))
    try:
        for process in defined_for(method):
            if METHODS[process].one_forward:
                several = attribution_maps(model, images, torch.tensor([[0, 1], [2, 3], [4, 4]]), process, **FEW)
                assert forwards == [False], process
                again = attribution_maps(model, images, torch.tensor([[0, 1], [2, 3], [4, 4]]), process,
                                         activations=activations, **FEW)
                assert forwards == [False] and torch.equal(several, again), process
                forwards.clear()
    finally:
        handle.remove()
    gradients_or_more = {'backprop', 'integrated_gradients', 'grad_cam', 'score_cam', 'occlusion'}
    assert not any(METHODS[process].one_forward for process in gradients_or_more)
