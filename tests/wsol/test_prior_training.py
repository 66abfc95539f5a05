"""wsol.prior_training: the entropy of p(z|x) is added to CALM's loss in training, and nowhere else."""
import math

import pytest
import torch
from conftest import flags_of, refused
from test_heads import calm

from experiment.settings import changed_settings
from wsol.prior_training import parse

LABELS = torch.tensor([0, 3, 4])


def random_features():
    return torch.randn(3, 6, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def attention(seed=0, batch=6, height=4, width=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, height, width, dtype=torch.float64, generator=generator)


def test_in_eval_mode_and_in_predictions_and_maps_it_has_no_part():
    model, features = calm('CALM_EM', 'softplus'), random_features()
    plain, in_training = model.eval().loss(features, LABELS)[0], model.train().loss(features, LABELS)[0]
    before = model.activations(features)
    model.prior_training = parse('entropy:0.3')
    assert model.loss(features, LABELS)[0] != in_training
    assert torch.equal(model.eval().loss(features, LABELS)[0], plain)
    for tensor, reference in zip(model.train().activations(features), before, strict=True):
        assert torch.equal(tensor, reference)


def test_entropy_is_weight_times_the_mean_entropy():
    assert parse('entropy:2')(torch.full((3, 4, 5), 0.7)).item() == pytest.approx(2 * math.log(20))
    one = torch.zeros(2, 4, 5)
    one[:, 1, 2] = 3
    assert parse('entropy:2')(one).item() == 0
    expected = torch.distributions.Categorical(attention().flatten(1)).entropy().mean()
    torch.testing.assert_close(parse('entropy:-0.5')(attention()), -0.5 * expected)


@pytest.mark.parametrize('prior', ['relu', 'softplus'])
def test_entropys_gradient_is_the_whole_one_with_both_priors(prior):
    """Also where the loss holds the attention's sum constant."""
    assert torch.autograd.gradcheck(parse('entropy:0.3'), attention().requires_grad_())
    model, features = calm('CALM_ML', prior), random_features()
    with torch.no_grad():
        model.attention[0].bias.fill_(3)  # away from the ReLU's kink
    gradients = []
    for text in ('entropy:0', 'entropy:1'):
        model.prior_training = parse(text)
        gradients.append(torch.autograd.grad(model.loss(features, LABELS)[0], model.attention[0].weight)[0])

    def entropy(weight):
        logits = (weight[:, :, 0, 0] @ features.flatten(2))[:, 0] + 3
        return torch.distributions.Categorical(model.attention[1](logits)).entropy().mean()
    expected, = torch.autograd.grad(entropy(model.attention[0].weight), model.attention[0].weight)
    torch.testing.assert_close(gradients[1] - gradients[0], expected)


def test_entropy_of_locations_without_attention_has_a_finite_gradient():
    leaf = attention().masked_fill(attention(1) < 0.5, 0).requires_grad_()
    gradient, = torch.autograd.grad(parse('entropy:1')(leaf), leaf)
    assert gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize('text', ['entropie:0.5', '', 'entropy', 'entropy:x', 'entropy:inf', 'entropy:nan', 'entropy:1,entropy:2'])
def test_what_is_no_term_is_refused_in_one_line(script, text):
    refused(script('main', '--attribution_method=CALM_EM', f'--prior_training={text}'), '--prior_training',
            f'"{text}" is not entropy:WEIGHT')


def test_it_is_calms_alone(script):
    refused(script('main', '--prior_training=entropy:1'), 'CAM has no p(z|x), so --prior_training cannot be used',
            '--attribution_method=CALM_EM')


def test_a_training_that_goes_on_keeps_it():
    before = dict(flags_of('main', ['--attribution_method=CALM_EM', '--prior_training=entropy:-1']))
    now = flags_of('main', ['--attribution_method=CALM_EM'])
    assert changed_settings(now, before) == ['prior_training was entropy:-1, is None']
