"""wsol.heads: the published code's numbers, and the identities of probability."""
import copy
from collections import OrderedDict

import pytest
import torch
from conftest import assert_close, golden
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from wsol import HEADS, heads


def head_on_features(method, arrays, prior='relu', case=''):
    """A network whose images are its features, with the weights of a golden file."""
    backbone = nn.Sequential()
    backbone.add_module('identity', nn.Identity())
    model = HEADS[method](backbone, 16, 7, prior)
    model.conv_last.weight.data = torch.tensor(arrays['conv_weight'])
    model.conv_last.bias.data = torch.tensor(arrays[f'{case}conv_bias'])
    if method != 'CAM':
        model.attention[0].weight.data = torch.tensor(arrays['attention_weight'])
        model.attention[0].bias.data = torch.tensor(arrays[f'{case}attention_bias'])
    return model


def loss_and_gradients(model, features, labels):
    features = torch.tensor(features, requires_grad=True)
    loss, scores = model.loss(features, torch.tensor(labels))
    loss.backward()
    gradients = {'conv_weight': model.conv_last.weight, 'conv_bias': model.conv_last.bias, 'f_former': features}
    if hasattr(model, 'attention'):
        gradients |= {'attention_weight': model.attention[0].weight, 'attention_bias': model.attention[0].bias}
    return loss, scores, {name: parameter.grad for name, parameter in gradients.items()}


@pytest.mark.parametrize('method, file', [
    ('CAM', 'head_cam'), ('CALM_EM', 'head_calm_em'), ('CALM_ML', 'head_calm_ml')])
def test_loss_probabilities_and_gradients_are_the_published_ones(method, file):
    reference = golden(file)
    model = head_on_features(method, reference)
    loss, scores, gradients = loss_and_gradients(model, reference['f_former'], reference['labels'])
    assert_close(loss, reference['loss'])
    assert_close(scores.softmax(1), reference['probs'])
    for name, gradient in gradients.items():
        assert_close(gradient, reference[f'grad_{name}'])


@pytest.mark.parametrize('method, key', [('CALM_EM', 'em'), ('CALM_ML', 'ml')])
def test_a_label_far_from_the_prediction_behaves_as_published(method, key):
    """EM's epsilon silences it, ML's gradient stays: where the two part."""
    features = golden('head_calm_em')
    edge = golden('edge_cases')
    model = head_on_features(method, features | edge, case='far_')
    loss, _, gradients = loss_and_gradients(model, features['f_former'], features['labels'])
    assert_close(loss, edge[f'far_{key}_loss'])
    for name, gradient in gradients.items():
        assert_close(gradient, edge[f'far_{key}_grad_{name}'])


@pytest.mark.parametrize('case', ['dead_', 'further_'])
@pytest.mark.parametrize('method', ['CALM_EM', 'CALM_ML'])
def test_where_the_published_code_gives_nan_or_infinity_ours_is_finite(method, case):
    features, edge = golden('head_calm_em'), golden('edge_cases')
    model = head_on_features(method, features | edge, case=case)
    loss, scores, gradients = loss_and_gradients(model, features['f_former'], features['labels'])
    assert torch.isfinite(loss) and torch.isfinite(scores).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


def test_an_attention_that_is_zero_everywhere_gives_the_uniform_prior():
    attention = torch.zeros(2, 3, 4)
    attention[1, 0, 0] = 5
    prior = heads.spatial_prior(attention)
    assert torch.equal(prior[0], torch.full((3, 4), 1 / 12))
    assert prior[1, 0, 0] == 1


def random_parts(seed=0, batch=4, classes=5, height=6, width=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, height, width, generator=generator, dtype=dtype)
    attention = torch.randn(batch, height, width, generator=generator, dtype=dtype).relu()
    return logits, attention


def test_joint_posterior_and_prior_are_marginals_of_one_tensor():
    logits, attention = random_parts()
    prior = heads.spatial_prior(attention)
    joint = heads.joint(logits.log_softmax(1), prior)
    torch.testing.assert_close(joint.sum((1, 2, 3)), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(joint.sum(1), prior)
    torch.testing.assert_close(joint.sum((2, 3)), heads.log_marginal(logits.log_softmax(1), prior).exp())
    torch.testing.assert_close(heads.posterior(joint).sum((2, 3)), torch.ones(4, 5, dtype=torch.float64))


def test_log_marginal_survives_underflow():
    log_probs = torch.full((1, 1, 2, 2), -500.0)
    log_probs[0, 0, 0, 0] = 0  # likely there, but no prior: it must not count
    prior = torch.tensor([[[0.0, 0.5], [0.25, 0.25]]])
    assert heads.log_marginal(log_probs, prior).item() == pytest.approx(-500)


@pytest.mark.parametrize('detach', [True, False])
def test_fishers_identity_em_and_ml_have_the_same_gradient(detach):
    """Up to EM's epsilons: the posterior is taken at the current parameters."""
    gradients = {}
    for name, criterion in (('em', heads.calm_em_loss), ('ml', heads.calm_ml_loss)):
        logits, attention = (part.requires_grad_() for part in random_parts())
        prior = heads.spatial_prior(attention, detach)
        row = logits.log_softmax(1)[torch.arange(4), torch.tensor([0, 3, 1, 4])]
        gradients[name] = torch.autograd.grad(criterion(row, prior), (logits, attention))
    for em, ml in zip(gradients['em'], gradients['ml'], strict=True):
        # 1e-10 in the posterior's denominator, against probabilities of about 0.2; where the attention is
        # exactly 0, ML has the gradient of growing it and EM has none, and the ReLU before it blocks both
        where = slice(None) if em.ndim == 4 else random_parts()[1] > 0
        torch.testing.assert_close(em[where], ml[where], rtol=1e-7, atol=1e-12)


def test_the_detached_sum_never_lets_attention_shrink():
    """Published: the gradient of the loss pulls every location's attention up. With the sum's gradient it need not."""
    logits, attention = random_parts(1)
    attention = attention + 0.1
    signs = {}
    for detach in (True, False):
        leaf = attention.clone().requires_grad_()
        row = logits.log_softmax(1)[:, 0]
        gradient, = torch.autograd.grad(heads.calm_ml_loss(row, heads.spatial_prior(leaf, detach)), leaf)
        signs[detach] = gradient
    assert (signs[True] < 0).all()
    assert (signs[False] > 0).any()
    # with its gradient, the prior does not depend on the attention's scale
    torch.testing.assert_close((signs[False] * attention).sum((1, 2)), torch.zeros(4, dtype=torch.float64))


def test_in_eval_mode_the_gradient_is_that_of_the_probability():
    model = HEADS['CALM_EM'](nn.Sequential(), 6, 5, 'relu').double()
    nn.init.constant_(model.attention[0].bias, 3.0)  # away from the ReLU's kink
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2, 6, 4, 4, dtype=torch.float64, generator=generator, requires_grad=True)

    def score(features):
        return model.class_scores(model.head(features))[:, 2]
    model.eval()
    assert torch.autograd.gradcheck(score, features)
    model.train()
    assert not torch.autograd.gradcheck(score, features, raise_exception=False)


@pytest.mark.parametrize('method', ['CALM_EM', 'CALM_ML'])
def test_loss_keeps_no_class_map_beyond_what_its_gradient_needs(method):
    """Of all that autograd holds for the backward pass, one tensor has a value for each class and location: p(y|x,z)."""
    model, features = plain_head(method, 3, 50), torch.rand(2, 3, 8, 8)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(features, torch.tensor([1, 2]))
    assert sum(size >= 2 * 50 * 8 * 8 for size in kept.values()) == 1


# --- the heads' arithmetic is float32's ----------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Records (name, shape of the result) of every operation that torch runs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.seen.append((function.name(), getattr(result, 'shape', None)))
        return result

    def named(self, *parts):
        return [name for name, _ in self.seen if any(part in name for part in parts)]


LAYOUTS = [torch.contiguous_format, torch.channels_last]


def random_features(layout, batch=3, channels=256, side=9):
    features = torch.rand(batch, channels, side, side + 2, generator=torch.Generator().manual_seed(0))
    return features.contiguous(memory_format=layout)


def plain_head(method, channels=256, classes=7, prior='relu'):
    torch.manual_seed(0)
    backbone = nn.Sequential()
    backbone.add_module('identity', nn.Identity())
    return HEADS[method](backbone, channels, classes, prior)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_the_1x1_convolution_is_exact_to_float32s_rounding(layout):
    """TF32, which keeps 10 bits of the inputs, would miss by 5e-4, bfloat16 by 4e-3."""
    features, convolution = random_features(layout), plain_head('CAM').conv_last
    ours = heads.pointwise(features, convolution)
    weight, bias = convolution.weight[:, :, 0, 0].double(), convolution.bias.double()
    reference = torch.einsum('cd,bdhw->bchw', weight, features.double()) + bias[:, None, None]
    size = torch.einsum('cd,bdhw->bchw', weight.abs(), features.double().abs()) + bias.abs()[:, None, None]
    assert ours.dtype == torch.float32 and ours.shape == reference.shape
    assert ((ours.double() - reference).abs() / size).max() < 1e-6
    torch.testing.assert_close(ours, convolution(features), rtol=1e-5, atol=1e-6)  # and it is that convolution


@pytest.mark.parametrize('layout', LAYOUTS)
def test_the_1x1_convolutions_gradients_are_the_convolutions(layout):
    convolution = nn.Conv2d(6, 4, 1, dtype=torch.float64)
    features = random_features(layout, channels=6).double().requires_grad_()
    inputs = (features, convolution.weight, convolution.bias)
    cotangent = torch.rand(3, 4, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad(heads.pointwise(features, convolution), inputs, cotangent)
    for gradient, reference in zip(ours, torch.autograd.grad(convolution(features), inputs, cotangent), strict=True):
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('method', HEADS)
def test_no_convolution_runs_in_a_head(method, layout):
    """So that cuDNN, which rounds a float32 convolution's inputs to TF32, has no part in it; nor in its gradient."""
    model, features = plain_head(method), random_features(layout).requires_grad_()
    with Operations() as head:
        activations = model.head(features)
    assert not head.named('convolution', 'conv2d') and head.named('mm', 'linear', 'matmul')
    if layout is torch.channels_last:  # such features are not copied
        assert not [name for name, shape in head.seen if shape == features.shape and ('clone' in name or 'copy' in name)]
    with Operations() as backward:
        model.class_scores(activations).sum().backward()
    assert not backward.named('convolution', 'conv2d')
    with Operations() as loss:
        model.loss(features, torch.tensor([0, 1, 2]))[0].backward()
    assert not loss.named('convolution', 'conv2d')
    with Operations() as oracle:  # which would notice one
        model.conv_last(features)
    assert oracle.named('convolution')


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('method, prior', [('CAM', 'relu'), ('CALM_EM', 'relu'), ('CALM_ML', 'softplus')])
def test_autocast_changes_nothing_of_a_head(method, prior, layout):
    model, features = plain_head(method, prior=prior), random_features(layout)
    outside = model.head(features)
    with torch.autocast('cpu', torch.bfloat16):
        inside = model.head(features)
        low = model.head(features.bfloat16())
        scores = model.class_scores(inside)
        loss, of_loss = model.loss(features.bfloat16(), torch.tensor([0, 1, 2]))
        with Operations() as operations:
            rounded = model.conv_last(features)
    assert rounded.dtype == torch.bfloat16 and operations.seen  # autocast does round, but for the head
    for value, reference in zip(inside, outside, strict=True):
        assert value is reference is None or (value.dtype == torch.float32 and torch.equal(value, reference))
    assert scores.dtype == loss.dtype == of_loss.dtype == torch.float32 and torch.equal(scores, model.class_scores(outside))
    # features that come in bfloat16 are worked on in float32
    for value, reference in zip(low, model.head(features.bfloat16().float()), strict=True):
        assert value is reference is None or (value.dtype == torch.float32 and torch.equal(value, reference))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('method, prior', [('CAM', 'relu'), ('CALM_EM', 'relu'), ('CALM_ML', 'relu'), ('CALM_EM', 'softplus')])
def test_a_head_of_a_half_precision_network_computes_in_float32(method, prior, dtype):
    """Of features in half precision, and with weights in it: what a float32 head makes of the same numbers. In float16
    1e-8 and 1e-10 are 0, and the loss was NaN wherever the prior was."""
    labels = torch.tensor([0, 1, 2])
    for seed in range(5):
        torch.manual_seed(seed)
        half = HEADS[method](nn.Sequential(OrderedDict(identity=nn.Identity())), 16, 7, prior).to(dtype)
        full, features = copy.deepcopy(half).float(), torch.randn(3, 16, 14, 14).to(dtype)
        loss, scores = half.loss(features, labels)
        reference, expected = full.loss(features.float(), labels)
        assert loss.dtype == scores.dtype == torch.float32 and torch.isfinite(loss)
        assert torch.equal(loss, reference) and torch.equal(scores, expected)
        loss.backward(), reference.backward()
        for parameter, exact in zip(half.parameters(), full.parameters(), strict=True):
            assert torch.equal(parameter.grad, exact.grad.to(dtype))


# --- the prior of the paper's text: softplus, then its share of the sum -------------------------------------


def calm(method='CALM_ML', prior='softplus'):
    torch.manual_seed(0)
    return HEADS[method](nn.Sequential(), 6, 5, prior).double()


def plain_softplus_prior(features, weight, bias):
    """ln(1 + exp(w f + b)) over its sum, in plain words."""
    attention = torch.log1p(torch.exp((weight * features).sum(1) + bias))
    return attention / attention.sum((1, 2))[:, None, None]


@pytest.mark.parametrize('training', [True, False])
def test_the_softplus_prior_and_its_gradient_are_the_plain_formulas(training):
    """The sum's gradient is part of it, in training too."""
    model = calm().train(training)
    features = torch.randn(2, 6, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    features.requires_grad_()
    weight, bias = model.attention[0].weight, model.attention[0].bias
    ours, reference = model.head(features).prior, plain_softplus_prior(features, weight, bias)
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(ours.sum((1, 2)), torch.ones(2, dtype=torch.float64))
    cotangent = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    inputs = (features, weight, bias)
    gradients = torch.autograd.grad(ours, inputs, cotangent)
    for gradient, expected in zip(gradients, torch.autograd.grad(reference, inputs, cotangent), strict=True):
        torch.testing.assert_close(gradient, expected)
    assert torch.autograd.gradcheck(lambda features: model.head(features).prior, features)  # finite differences
    # what the published detached sum would give is another gradient
    attention = nn.functional.softplus(model.attention[0](features))[:, 0]
    detached, = torch.autograd.grad(heads.spatial_prior(attention, detach_normaliser=True), features, cotangent)
    assert (detached - gradients[0]).abs().max() > 0.1 * gradients[0].abs().max()


def test_the_losss_gradient_through_the_softplus_prior_agrees_with_finite_differences():
    """CALM_ML's: no part of it is held constant. CALM_EM's gradient is the same (Fisher's identity, above)."""
    model, labels = calm('CALM_ML'), torch.tensor([1, 4])
    features = torch.randn(2, 6, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(features, *_):
        return model.loss(features, labels)[0]
    assert torch.autograd.gradcheck(loss, [features.requires_grad_(), *model.parameters()])


# --- losses and predictions --------------------------------------------------------------------------------------


def test_cams_loss_is_that_of_the_mean_of_the_logits():
    model, labels = plain_head('CAM', 6, 5).double(), torch.tensor([0, 3, 4])
    features = random_features(LAYOUTS[0], channels=6).double().requires_grad_()
    inputs = [features, *model.parameters()]
    loss, scores = model.loss(features, labels)
    expected = nn.functional.cross_entropy(model(features), labels)
    torch.testing.assert_close(scores, model(features).detach())
    torch.testing.assert_close(loss, expected)
    for gradient, reference in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize('method', ['CALM_EM', 'CALM_ML'])
def test_the_scores_beside_calms_loss_are_its_predictions(method):
    model, features = calm(method), random_features(LAYOUTS[0], channels=6).double()
    loss, scores = model.loss(features, torch.tensor([0, 3, 4]))
    assert loss.requires_grad and not scores.requires_grad and torch.equal(scores, model(features).detach())
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(3, dtype=torch.float64))
    assert [*model.state_dict()] == ['conv_last.weight', 'conv_last.bias', 'attention.0.weight', 'attention.0.bias']
