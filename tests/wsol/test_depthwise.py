"""wsol.contexts: depthwise convolutions compute in float32 under autocast, and nothing else of the network changes."""
import copy

import pytest
import torch
from conftest import accepted, without
from torch import nn

import main
from wsol import build_model
from wsol.contexts import keep_depthwise_in_float32


def is_depthwise(layer):
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1


def network():
    torch.manual_seed(0)
    return build_model('mobilenet_v3_small', 'CALM_EM', 5).train()


def in_bfloat16(layer, images, dtype=torch.bfloat16):
    """The output and the gradient of the layer's weights under autocast, for images of the precision that comes in."""
    layer.zero_grad()
    with torch.autocast('cpu', torch.bfloat16):
        output = layer(images.to(dtype))
    output.float().square().sum().backward()
    return output, layer.weight.grad


@pytest.mark.parametrize('kernel, stride', [(5, 1), (3, 2)])
def test_forward_and_gradient_are_those_of_float32(kernel, stride):
    layer = nn.Conv2d(8, 8, kernel, stride, kernel // 2, groups=8)
    images = torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    plain, _ = in_bfloat16(layer, images)
    assert keep_depthwise_in_float32(layer) == 1
    output, gradient = in_bfloat16(layer, images)
    exact = layer(images)
    assert output.dtype == plain.dtype == torch.bfloat16 and torch.equal(output, exact.bfloat16())
    layer.zero_grad()
    layer(images).bfloat16().float().square().sum().backward()
    torch.testing.assert_close(gradient, layer.weight.grad, rtol=1e-5, atol=1e-4)
    assert in_bfloat16(layer, images, torch.float32)[0].dtype == torch.float32


def test_only_depthwise_layers_change_and_all_names_stay():
    model, plain = network(), network()
    layers = [layer for layer in plain.modules() if is_depthwise(layer)]
    assert keep_depthwise_in_float32(model) == len(layers) == 11
    changed = [layer for layer in model.modules() if 'forward' in vars(layer)]
    assert len(changed) == 11 and all(is_depthwise(layer) for layer in changed)
    assert list(model.state_dict()) == list(plain.state_dict())
    images, labels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 4, 2])
    for each in (model, plain):
        each.loss(images, labels)[0].backward()
    for (name, ours), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, expected.grad), name  # without autocast it is the same network


def test_a_copy_has_weights_of_its_own():
    model = network()
    keep_depthwise_in_float32(model)
    copy_of_model = copy.deepcopy(model)
    original, copied = ([layer for layer in each.modules() if is_depthwise(layer)][0] for each in (model, copy_of_model))
    with torch.no_grad():
        copied.weight.zero_()
    images = torch.ones(1, original.in_channels, 5, 5)
    assert not copied(images).any() and original(images).any()


@pytest.mark.parametrize('precision, kept', [('bfloat16', [11]), ('float32', [])])
def test_trainings_in_bfloat16_on_a_cpu_do_so(script, tiny_birds, monkeypatch, precision, kept):
    counts = []
    monkeypatch.setattr(main, 'keep_depthwise_in_float32', lambda model: counts.append(keep_depthwise_in_float32(model)))
    accepted(script('main', *without(tiny_birds, 'precision'), '--architecture=mobilenet_v3_small', '--pretrained=False',
                    '--epochs=1', '--batch_size=50', f'--precision={precision}'))
    assert counts == kept
