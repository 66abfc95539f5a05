"""wsol.fused: CALM's loss in one step is that of the equations in wsol.heads, in values, scores and gradients."""
import copy

import pytest
import torch
from conftest import golden
from test_heads import LAYOUTS, Operations, head_on_features, plain_head
from torch import nn

from wsol import HEADS
from wsol.speed import fused

KINDS = [(method, prior) for method in ('CALM_EM', 'CALM_ML') for prior in ('relu', 'softplus')]


def calm(method, prior, channels=6, classes=5, dtype=torch.float64):
    torch.manual_seed(0)
    return HEADS[method](nn.Sequential(), channels, classes, prior).to(dtype)


def random_features(batch=3, channels=6, height=4, width=5, dtype=torch.float64):
    return torch.randn(batch, channels, height, width, dtype=dtype, generator=torch.Generator().manual_seed(1))


def outcome(model, loss, features, labels):
    """Loss, scores, and the gradients by the features and all parameters."""
    leaf = features.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value, scores = loss(leaf, labels)
    gradients = torch.autograd.grad(value, [leaf, *model.parameters()])
    return [value.detach(), scores, *gradients]


def assert_same(model, features, labels, tolerance):
    """Each within `tolerance` of the equations', relative to its largest entry."""
    fast = outcome(model, model.loss, features, labels)
    plain = outcome(model, model.plain_loss, features, labels)
    for own, reference in zip(fast, plain, strict=True):
        assert own.shape == reference.shape and own.dtype == reference.dtype and own.isfinite().all()
        assert (own - reference).abs().max() <= tolerance * reference.abs().max()


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('classes', [2, 5, 14, 15, 16, 40])  # rows of the product: fewer, as many, more than its multiple
@pytest.mark.parametrize('method, prior', KINDS)
def test_the_loss_is_the_equations(method, prior, classes, training):
    model, labels = calm(method, prior, classes=classes).train(training), torch.tensor([0, 1, classes - 1])
    assert_same(model, random_features(), labels, 1e-12)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('method, prior', KINDS)
def test_in_float32_it_is_as_near_to_the_exact_values_as_the_equations_are(method, prior, layout):
    """Within 1e-6, or twice as far as the equations, which round too."""
    model, labels = plain_head(method, 256, 200, prior), torch.tensor([0, 77, 199])
    features = torch.rand(3, 256, 9, 11, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    double = copy.deepcopy(model).double()
    exact = outcome(double, double.plain_loss, features.double(), labels)

    scales = [value.abs().max() for value in exact]
    # the softplus prior's gradients by the attention's weight and bias are sums of terms that cancel: what is left of
    # them hangs on the order in which a processor adds, so that it is held against the terms
    attention = []
    double.attention[1].register_forward_pre_hook(lambda _, inputs: attention.append(inputs[0]))
    value, _ = double.plain_loss(features.double(), labels)
    terms, = torch.autograd.grad(value, attention[-1])
    scales[-2:] = [terms.abs().sum()] * 2  # the features are 1 at most

    def errors(loss):
        return [((own - value).abs().max() / scale).item()
                for own, value, scale in zip(outcome(model, loss, features, labels), exact, scales, strict=True)]
    for fast, plain in zip(errors(model.loss), errors(model.plain_loss), strict=True):
        assert fast <= max(1e-6, 2 * plain)


@pytest.mark.parametrize('case', ['', 'far_', 'further_', 'dead_'])
@pytest.mark.parametrize('method', ['CALM_EM', 'CALM_ML'])
def test_at_the_edges_of_floats(method, case):
    """The golden files: labels far from the prediction, beyond the smallest float, attention that is zero everywhere."""
    arrays = golden(f'head_{method.lower()}')
    model = head_on_features(method, arrays | golden('edge_cases') if case else arrays, case=case)
    features, labels = (torch.tensor(arrays[name]) for name in ('f_former', 'labels'))
    fast = outcome(model, model.loss, features, labels)
    plain = outcome(model, model.plain_loss, features, labels)
    smallest = torch.tensor(torch.finfo(torch.float32).tiny).log()
    plain[1] = plain[1].clamp_min(smallest)  # as the scores are said to be
    for own, reference in zip(fast, plain, strict=True):
        assert own.isfinite().all()
        assert (own - reference).abs().max() <= 1e-6 * reference.abs().max()
        assert own.any() == reference.any()  # and where the equations give nothing, so does it


@pytest.mark.parametrize('prior', ['relu', 'softplus'])
def test_the_gradient_agrees_with_finite_differences(prior):
    """CALM_ML in eval mode: no part of it is held constant."""
    model, labels = calm('CALM_ML', prior).eval(), torch.tensor([0, 3, 4])
    with torch.no_grad():
        model.attention[0].bias.fill_(3)  # away from the ReLU's kink
    parameters = [model.conv_last.weight, model.conv_last.bias, model.attention[0].weight, model.attention[0].bias]

    def loss(features, *_):
        return model.loss(features, labels)[0]
    assert torch.autograd.gradcheck(loss, [random_features().requires_grad_(), *parameters])


def test_it_may_be_differentiated_again_through_the_same_graph():
    """Nothing that the backward pass needs is overwritten by it."""
    model, features = calm('CALM_EM', 'relu'), random_features().requires_grad_()
    loss, _ = model.loss(features, torch.tensor([0, 3, 4]))
    first, = torch.autograd.grad(loss, features, retain_graph=True)
    second, = torch.autograd.grad(2 * loss, features)
    torch.testing.assert_close(second, 2 * first)


@pytest.mark.parametrize('context', [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_switched_off(context):
    model, features, labels = calm('CALM_EM', 'relu'), random_features(), torch.tensor([0, 3, 4])
    expected = model.loss(features, labels)
    with context():
        loss, scores = model.loss(features.clone(), labels)
    assert not loss.requires_grad and torch.equal(loss, expected[0]) and torch.equal(scores, expected[1])


def test_a_frozen_backbone_costs_no_gradient_by_its_features():
    model, features = calm('CALM_EM', 'relu'), random_features()
    for learns in (False, True):
        with Operations() as operations:
            model.loss(features.clone().requires_grad_(learns), torch.tensor([0, 3, 4]))[0].backward()
        assert all(parameter.grad.any() for parameter in model.parameters())
        assert any('mm' in name and shape == (3 * 4 * 5, 6) for name, shape in operations.seen) == learns


def test_the_state_dict_is_the_published_one():
    assert [*calm('CALM_EM', 'relu').state_dict()] == ['conv_last.weight', 'conv_last.bias', 'attention.0.weight',
                                                       'attention.0.bias']


def test_the_scores_rank_as_the_probabilities():
    model, features = calm('CALM_ML', 'softplus', dtype=torch.float32), random_features(dtype=torch.float32)
    _, scores = model.loss(features, torch.tensor([0, 3, 4]))
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(3))
    assert torch.equal(scores.argmax(1), model(features).argmax(1)) and not scores.requires_grad


def test_one_matrix_product_forward_and_two_backward(monkeypatch):
    """Of a whole number of vector registers: prediction and attention together."""
    products, linear = [], torch.nn.functional.linear

    def counted(rows, weight, bias):
        products.append(tuple(weight.shape))
        return linear(rows, weight, bias)
    monkeypatch.setattr(fused.F, 'linear', counted)
    for classes, padded in ((15, 16), (16, 32), (200, 208)):
        plain_head('CALM_EM', 6, classes).loss(random_features(dtype=torch.float32), torch.tensor([0, 1, 2]))
        assert products.pop() == (padded, 6) and not products


def test_cams_loss_is_that_of_the_mean_of_the_logits():
    model, features, labels = plain_head('CAM', 6, 5).double(), random_features(), torch.tensor([0, 3, 4])

    def plain(features, labels):
        scores = model.class_scores(model.activations(features))
        return nn.functional.cross_entropy(scores, labels), scores.detach()
    for own, reference in zip(outcome(model, model.loss, features, labels), outcome(model, plain, features, labels), strict=True):
        torch.testing.assert_close(own, reference)
