"""Heads, losses, attribution methods and metrics mix no tensors of two devices: shown without an accelerator.

torch's FakeTensorMode computes shapes, types and devices, but no values, and refuses an operation on tensors of two
devices, as a real one would. The device that stands for the accelerator is "meta": a build of torch without CUDA can
make fake CUDA tensors, but neither copy nor differentiate them. Three things need help:

- "meta" has no autocast: here it does nothing, but notes for which device it was asked;
- FakeTensorMode lets indices on the accelerator into a tensor on the CPU, which a real accelerator refuses;
- what looks at values has none to look at: the seeds are real tensors, and attribution_maps' check of the labels'
  values (tests/wsol/test_attribution.py tests it) is left out.
"""
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError
from torch.utils._python_dispatch import TorchDispatchMode

from data_loaders import SeededBatches
from experiment import training
from wsol import HEADS, build_model, metrics
from wsol.annotations import superclasses
from wsol.attribution import maps as attribution
from wsol.attribution.registry import METHODS, SamplingSettings
from wsol.maps import NORM_TYPES, normalise, ranks, resize

FAR, CPU = torch.device('meta'), torch.device('cpu')
CLASSES = 5
FEW = SamplingSettings(2, integrated_grad_nr_iter=2, rise_nr_masks=2)
SEEDS = torch.arange(2)  # real: methods that draw at random read them
MIXED = (FakeTensorDeviceMismatchError, RuntimeError)


class StrictIndexing(TorchDispatchMode):
    """Refuses what a real accelerator refuses, too: its own indices into a tensor on the CPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
            for index in args[1]:
                if index is not None and index.device not in (CPU, args[0].device):
                    raise RuntimeError(f'indices on {index.device} into a tensor on {args[0].device}')
        return function(*args, **(kwargs or {}))


@pytest.fixture
def far_away(monkeypatch):
    """A world in which tensors have a device and no values. Gives the devices for which autocast was asked."""
    asked = []

    def autocast(device_type, *_, **__):
        asked.append(device_type)
        return nullcontext()
    monkeypatch.setattr(torch, 'autocast', autocast)
    monkeypatch.setattr(attribution, 'check_classes', lambda *_: None)
    with FakeTensorMode(allow_non_fake_inputs=True), StrictIndexing():
        yield asked


def send_away(model):
    """Put a network's parameters and buffers on the accelerator."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(torch.empty(value.shape, dtype=value.dtype, device=FAR))
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=FAR)
    return model


def small_network(head, prior='relu'):
    stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    backbone = nn.Sequential()
    backbone.add_module('stem', stem)
    return send_away(HEADS[head](backbone, 6, CLASSES, prior))


KINDS = [('CAM', 'relu'), ('CALM_EM', 'relu'), ('CALM_EM', 'softplus'), ('CALM_ML', 'relu'), ('CALM_ML', 'softplus')]
QUESTIONS = [(head, method) for head in HEADS for method, entry in METHODS.items()
             if issubclass(HEADS[head], entry.head)]


@pytest.mark.parametrize('mix', [
    lambda far, near: far + near, lambda far, near: torch.stack([far, near]),
    lambda far, near: torch.einsum('ab,ac->bc', far, near), lambda far, near: torch.where(far > 0, far, near),
    lambda far, near: far.gather(1, near.long()), lambda far, near: near.gather(1, far.long()),
    lambda far, near: near[far.long()], lambda far, near: nn.functional.linear(near, far)])
def test_the_oracle_refuses_what_an_accelerator_refuses(far_away, mix):
    """And only that: numbers, tensors without dimensions and indices may come from the CPU."""
    far, near = torch.zeros(2, 2, device=FAR), torch.zeros(2, 2)
    with pytest.raises(MIXED):
        mix(far, near)
    assert mix(far, near.to(FAR)).device == FAR
    assert (far + near.sum()).device == far[near.long()].device == FAR


@pytest.mark.parametrize('head, prior', KINDS)
@pytest.mark.parametrize('training', [True, False])
def test_heads_and_losses(far_away, head, prior, training):
    model = small_network(head, prior).train(training)
    images, labels = torch.zeros(2, 3, 8, 8, device=FAR), torch.zeros(2, dtype=torch.int64, device=FAR)
    computed = [model(images), *(part for part in model.activations(images) if part is not None), *model.loss(images, labels)]
    assert {tensor.device for tensor in computed} == {FAR}
    model.loss(images, labels)[0].backward()
    assert {parameter.grad.device for parameter in model.parameters()} == {FAR}
    assert set(far_away) == {FAR.type}
    with pytest.raises(MIXED):  # what a caller mixes is seen
        model(images.to(CPU))


@pytest.mark.parametrize('head, method', QUESTIONS)
def test_every_attribution_method(far_away, head, method):
    """Labels and superclasses may come from the CPU, as data sets give them."""
    model, images = small_network(head).eval(), torch.zeros(2, 3, 28, 28, device=FAR)
    members = superclasses.membership({0: [0, 1], 3: [2, 3, 4]}, CLASSES)
    one, several = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)
    for labels, contrast, where, shape in (
            (None, None, CPU, (2, CLASSES)), (one, one, CPU, (2,)), (several, None, CPU, (2, 3)), (several, several, FAR, (2, 3))):
        labels, contrast = (None if asked is None else asked.to(where) for asked in (labels, contrast))
        maps = attribution.attribution_maps(model, images, labels, method, contrast, SEEDS, members.to(where), FEW)
        assert maps.device == FAR and maps.shape[:-2] == shape
    assert set(far_away) <= {FAR.type}


@pytest.mark.parametrize('head, method', [question for question in QUESTIONS if METHODS[question[1]].one_forward])
def test_activations_that_the_caller_has_already(far_away, head, method):
    model, images = small_network(head).eval(), torch.zeros(2, 3, 28, 28, device=FAR)
    maps = attribution.attribution_maps(model, images, torch.zeros(2, 3, dtype=torch.int64), method, seeds=SEEDS,
                                        superclasses=torch.eye(CLASSES, dtype=torch.bool),
                                        activations=model.activations(images))
    assert maps.device == FAR and maps.shape[:2] == (2, 3)


@pytest.fixture(params=['resnet18', 'vgg16', 'inception_v3', 'swin_t', 'convnext_tiny'])
def backbone(request):
    """A network, built on the CPU as usual."""
    return build_model(request.param, 'CALM_EM', CLASSES).eval()


def test_backbones_carry_no_tensor_of_the_cpu_along(backbone, far_away):
    """A traced network could: what it makes while it is traced is made on the CPU."""
    model, images = send_away(backbone), torch.zeros(1, 3, 64, 64, device=FAR)
    assert model.extract_features(images).device == model(images).device == FAR


class SinglePrecision(TorchDispatchMode):
    """Refuses double precision on the accelerator, which Apple's has not."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device == FAR and result.dtype == torch.float64:
            raise TypeError(f'{function} gives double precision on {FAR}')
        return result


@pytest.mark.parametrize('threshold_type', metrics.THRESHOLD_TYPES)
def test_scores_are_binned_without_double_precision_on_the_device(far_away, threshold_type):
    scores, edges = torch.zeros(2, 7, 7, device=FAR), metrics.bin_edges(threshold_type)
    with SinglePrecision():
        assert metrics.bin_scores(scores, edges).device == FAR
        with pytest.raises(TypeError, match='double precision'):
            metrics.bin_scores(scores.double(), edges)


@pytest.mark.parametrize('norm_type', NORM_TYPES)
def test_maps_are_resized_and_normalised_where_they_are(far_away, norm_type):
    maps = torch.zeros(2, 7, 7, device=FAR)
    resized = resize(maps, (28, 28))
    assert resized.device == normalise(resized, norm_type).device == FAR
    bins = metrics.bin_scores(resized, metrics.bin_edges())
    assert bins.device == FAR and bins.shape == (2, 28, 28)


def test_images_are_ranked_and_erased_where_they_are(far_away):
    images, maps = torch.zeros(2, 3, 8, 8, device=FAR), torch.zeros(2, 8, 8, device=FAR)
    for order in ranks(maps, [torch.Generator().manual_seed(seed) for seed in range(2)]):
        assert order.device == FAR
        erased = metrics.erase(images, order, (0.3, 0.5))
        assert erased.device == FAR and erased.shape == images.shape


class Waits(TorchDispatchMode):
    """Counts the operations for which the host waits until the device has done its work: those that hand a number or a
    tensor back to it."""
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        devices = {value.device for value in args if isinstance(value, torch.Tensor)}
        back = isinstance(result, torch.Tensor) and result.device == CPU and FAR in devices
        self.count += back or function is torch.ops.aten._local_scalar_dense.default
        return result


@pytest.mark.parametrize('wait', [lambda far: far.cpu(), lambda far: far.to(CPU), lambda far: torch.zeros(2).copy_(far)])
def test_what_comes_back_from_the_device_is_counted(far_away, wait):
    with Waits() as waits:
        wait(torch.zeros(2, device=FAR) + 1)
    assert waits.count == 1


@pytest.mark.parametrize('look', [lambda far: far.item(), lambda far: far.nonzero(), lambda far: bool(far > 0), float])
def test_what_looks_at_numbers_fails_where_there_are_none(far_away, look):
    with pytest.raises((RuntimeError, NotImplementedError)):
        look(torch.zeros((), device=FAR))


@pytest.mark.parametrize('accumulate', [1, 2])
@pytest.mark.parametrize('head, prior', KINDS)
def test_a_training_step_never_waits_for_the_device(far_away, monkeypatch, head, prior, accumulate):
    """Seven steps, looked at every three of them and at the end."""
    looks = []
    monkeypatch.setattr(training, 'CHECK_EVERY', 3)
    monkeypatch.setattr(FakeTensor, 'tolist', lambda unread: looks.append(len(unread)) or [[2.0, 1.0]] * len(unread))
    model = small_network(head, prior)
    optimiser = torch.optim.SGD([{'params': model.parameters(), 'initial_lr': 0.1}], lr=0.1, momentum=0.9, nesterov=True)
    trained = training.Training(model, training.Loss(model), optimiser, lambda _: 1.0, 1, 0, FAR, 'bfloat16', accumulate,
                                SimpleNamespace(number=0), None, float('inf'), {}, None)
    batch = torch.zeros(2, 3, 8, 8, device=FAR), torch.zeros(2, dtype=torch.int64, device=FAR), torch.arange(2)

    class Loader(list):
        dataset, batch_sampler = range(14), SeededBatches(14, 2, 0)
    with Waits() as waits:
        (losses, correct, seen, _), = trained.train_epoch(Loader([batch] * 7), 0)
    assert waits.count == 0 and looks == [3, 3, 1]
    assert (losses, correct, seen) == (14, 7, 14)
    assert optimiser.state and {state['momentum_buffer'].device for state in optimiser.state.values()} == {FAR}
