"""wsol.heads: the published code's numbers, and the identities of probability."""
import numpy as np
import pytest
import torch
from conftest import assert_close, golden
from torch import nn

from wsol import METHODS, heads


def head_on_features(method, arrays, prior='relu', case=''):
    """A network whose images are its features, with the weights of a golden file."""
    backbone = nn.Sequential()
    backbone.add_module('identity', nn.Identity())
    model = METHODS[method](backbone, 16, 7, prior)
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
    log_conditional = torch.full((1, 1, 2, 2), -500.0)
    log_conditional[0, 0, 0, 0] = 0  # likely there, but no prior: it must not count
    prior = torch.tensor([[[0.0, 0.5], [0.25, 0.25]]])
    assert heads.log_marginal(log_conditional, prior).item() == pytest.approx(-500)


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
    model = METHODS['CALM_EM'](nn.Sequential(), 6, 5, 'relu').double()
    nn.init.constant_(model.attention[0].bias, 3.0)  # away from the ReLU's kink
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2, 6, 4, 4, dtype=torch.float64, generator=generator, requires_grad=True)

    def score(features):
        return model.class_scores(model.head(features))[:, 2]
    model.eval()
    assert torch.autograd.gradcheck(score, features)
    model.train()
    assert not torch.autograd.gradcheck(score, features, raise_exception=False)


def test_loss_keeps_no_class_map_beyond_what_its_gradient_needs():
    """Of all that autograd holds for the backward pass, one tensor has the size of the logits: log_softmax's."""
    logits = torch.randn(2, 50, 8, 8, requires_grad=True)
    prior = heads.spatial_prior(torch.rand(2, 8, 8))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    class Fixed(heads.CALM_ML):
        def activations(self, images):
            return heads.Activations(images, logits, prior)

    model = Fixed(nn.Sequential(), 1, 50, 'relu')
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(None, torch.tensor([1, 2]))
    assert sum(size == logits.numel() for size in kept.values()) == 1


def test_heads_stay_in_float32_under_autocast():
    backbone = nn.Sequential()
    backbone.add_module('conv1', nn.Conv2d(3, 4, 3, padding=1))
    model = METHODS['CALM_EM'](backbone, 4, 5, 'relu')
    with torch.autocast('cpu', torch.bfloat16):
        features, logits, prior = model.activations(torch.randn(2, 3, 8, 8))
        loss, scores = model.loss(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))
    assert {tensor.dtype for tensor in (features, logits, prior, loss, scores)} == {torch.float32}
    np.testing.assert_allclose(prior.detach().sum((1, 2)), 1, rtol=1e-6)
