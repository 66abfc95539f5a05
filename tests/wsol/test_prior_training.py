"""wsol.prior_training: what is done to p(z|x) in training does what it says, there and nowhere else."""
import math

import pytest
import torch
from conftest import refused
from test_fused import KINDS, assert_same, calm, outcome, random_features

import config
from wsol import heads
from wsol.prior_training import MEASURES, parse

LABELS = torch.tensor([0, 3, 4])
NUMBERS = {'entropy': (0.3, -0.3), 'drop': (0.5,), 'drop_top': (0.7,), 'top': (3,)}
ALL = [f'{name}:{number}' for name, numbers in NUMBERS.items() for number in numbers] + ['drop:0.3,top:4,entropy:-0.1']
NOTHING = ['entropy:0', 'drop:0', 'drop_top:0', 'top:20', 'top:1000']  # of 4 x 5 locations


def attention(seed=0, batch=6, height=4, width=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, height, width, dtype=torch.float64, generator=generator)


def seeded(loss):
    """The loss, with the same draws each time."""
    def run(*args):
        torch.manual_seed(5)
        return loss(*args)
    return run


def test_every_measure_is_tried_here():
    assert NUMBERS.keys() == MEASURES.keys()


@pytest.mark.parametrize('text', ALL)
@pytest.mark.parametrize('method, prior', KINDS)
def test_the_loss_in_one_step_is_the_plain_one(method, prior, text):
    model = calm(method, prior)
    before = model.loss(random_features(), LABELS)[0]
    model.prior_training = parse(text)
    model.loss, model.plain_loss = seeded(model.loss), seeded(model.plain_loss)
    assert_same(model, random_features(), LABELS, 1e-12)
    assert model.loss(random_features(), LABELS)[0] != before  # and it does something


@pytest.mark.parametrize('text', NOTHING)
@pytest.mark.parametrize('method, prior', KINDS)
def test_what_asks_for_nothing_changes_nothing(method, prior, text):
    model = calm(method, prior)
    before = outcome(model, model.loss, random_features(), LABELS)
    model.prior_training = parse(text)
    for own, reference in zip(outcome(model, model.loss, random_features(), LABELS), before, strict=True):
        assert torch.equal(own, reference)


@pytest.mark.parametrize('text', ALL)
def test_in_eval_mode_and_in_predictions_and_maps_it_has_no_part(text):
    model, features = calm('CALM_EM', 'softplus'), random_features()
    plain = model.eval().loss(features, LABELS)[0]
    before = model.train().activations(features)
    model.prior_training = parse(text)
    assert torch.equal(model.eval().loss(features, LABELS)[0], plain)
    for own, reference in zip(model.train().activations(features), before, strict=True):
        assert torch.equal(own, reference)


@pytest.mark.parametrize('text', ALL)
def test_the_prior_stays_a_distribution(text):
    torch.manual_seed(1)  # other numbers than the attention's
    own, _ = parse(text)(attention())
    prior = heads.spatial_prior(own)
    assert (own >= 0).all() and (own <= attention()).all()
    torch.testing.assert_close(prior.sum((1, 2)), torch.ones(6, dtype=torch.float64))


def test_entropy_is_weight_times_the_mean_entropy():
    same, uniform = parse('entropy:2')(torch.full((3, 4, 5), 0.7))
    assert uniform.item() == pytest.approx(2 * math.log(20))
    assert torch.equal(same, torch.full((3, 4, 5), 0.7))
    one = torch.zeros(2, 4, 5)
    one[:, 1, 2] = 3
    assert parse('entropy:2')(one)[1].item() == 0
    own = attention()
    expected = torch.distributions.Categorical(own.flatten(1)).entropy().mean()
    torch.testing.assert_close(parse('entropy:-0.5')(own)[1], -0.5 * expected)


@pytest.mark.parametrize('prior', ['relu', 'softplus'])
def test_entropys_gradient_is_its_own_in_both_priors(prior):
    """Also where the loss holds the attention's sum constant."""
    assert torch.autograd.gradcheck(lambda own: parse('entropy:0.3')(own)[1], attention().requires_grad_())
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
    gradient, = torch.autograd.grad(parse('entropy:1')(leaf)[1], leaf)
    assert gradient.isfinite().all() and gradient.any()


def test_drop_takes_each_location_with_its_probability():
    torch.manual_seed(1)  # other numbers than the attention's
    share = (parse('drop:0.3')(attention(batch=2000))[0] > 0).double().mean((0,))  # (h,w)
    assert (share - 0.7).abs().max() < 5 * math.sqrt(0.3 * 0.7 / 2000)


def test_drop_top_takes_of_the_strongest_tenth_alone():
    torch.manual_seed(1)  # other numbers than the attention's
    own = attention(batch=2000)
    gone = (parse('drop_top:0.3')(own)[0] == 0).flatten(1)
    is_top = own.flatten(1) >= own.flatten(1).topk(2, dim=1).values[:, 1:]  # 2 of 20
    assert not gone[~is_top].any()
    assert abs(gone[is_top].double().mean().item() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 4000)
    few = parse('drop_top:1')(attention(height=2, width=2))[0]  # at least one
    assert ((few == 0).sum((1, 2)) == 1).all()


def test_top_keeps_the_strongest():
    own = attention()
    kept = parse('top:3')(own)[0]
    assert ((kept > 0).sum((1, 2)) == 3).all()
    torch.testing.assert_close(kept.sum((1, 2)), own.flatten(1).topk(3).values.sum(1))


@pytest.mark.parametrize('text', ['drop:0.99', 'drop_top:1', 'top:1'])
def test_an_image_of_which_nothing_would_be_left_keeps_all(text):
    """Also one whose kept locations have no attention, as a ReLU leaves them."""
    torch.manual_seed(1)
    single = torch.zeros(50, 1, 1) + attention(batch=50, height=1, width=1)
    assert torch.equal(parse(text)(single)[0], single)
    one = torch.zeros(50, 4, 5)
    one[:, 1, 2] = 1
    assert torch.equal(parse(text)(one)[0], one)
    assert torch.equal(parse(text)(torch.zeros(2, 4, 5))[0], torch.zeros(2, 4, 5))


@pytest.mark.parametrize('text, words', [
    ('dropp:0.5', '"dropp:0.5" is not one of entropy:VALUE, drop:VALUE, drop_top:VALUE, top:VALUE'), ('', '"" is not'),
    ('drop', 'drop takes a probability in [0, 1), not ""'), ('drop:1', 'not "1"'), ('drop:-0.1', 'not "-0.1"'),
    ('drop:nan', 'not "nan"'), ('drop_top:1.1', 'drop_top takes a probability in [0, 1], not "1.1"'),
    ('top:0', 'top takes an integer from 1 up, not "0"'), ('top:2.5', 'not "2.5"'), ('entropy:inf', 'not "inf"'),
    ('drop:0.5,top:x', 'not "x"')])
def test_what_cannot_be_done_is_said_in_one_line(script, text, words):
    refused(script('main', '--attribution_method=CALM_EM', f'--prior_training={text}'), '--prior_training', words)


def test_it_is_calms_alone(script):
    refused(script('main', '--prior_training=drop:0.5'), '--prior_training is for p(z|x), which CAM has not',
            '--attribution_method=CALM_EM')


def test_a_training_that_goes_on_keeps_it():
    before = dict(config.parse('main', argv=['--attribution_method=CALM_EM', '--prior_training=drop:0.5']))
    now = config.parse('main', argv=['--attribution_method=CALM_EM'])
    assert config.changed_settings(now, before) == ['prior_training was drop:0.5, is None']
    del before['prior_training']  # of a checkpoint that was written before there was such a flag
    assert config.changed_settings(now, before) == []
