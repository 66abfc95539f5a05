"""--no_cue: with the location that is nowhere in the picture, all of CALM is still one distribution."""
import pytest
import torch
from test_fused import random_features
from torch import nn

from experiment import weights
from export import SelfExplaining
from wsol import HEADS, attribution_maps, build_model
from wsol.attribution.contrast import contrast_maps
from wsol.heads import joint
from wsol.prior_training import parse

LABELS = torch.tensor([0, 3, 4])
KINDS = [(method, prior) for method in ('CALM_EM', 'CALM_ML') for prior in ('relu', 'softplus')]


def head(method='CALM_EM', prior='softplus', no_cue=True, attention=0.7):
    """A head on features, in float64, whose no-cue location prefers some classes."""
    torch.manual_seed(0)
    model = HEADS[method](nn.Sequential(), 6, 5, prior, no_cue).double()
    with torch.no_grad():
        model.attention[0].bias.fill_(1)
        if no_cue:
            model.attention.no_cue.fill_(attention)
            model.conv_last.no_cue.copy_(torch.tensor([1, 0, -1, 0.5, 2]))
    return model


def parts(model, features):
    """p(y|x,z) (B,C,Z), its attention (B,Z), p(y|none) (C,) and its attention (), in plain words."""
    logits = torch.einsum('cd,bdhw->bchw', model.conv_last.weight[:, :, 0, 0], features) + model.conv_last.bias[:, None, None]
    attention = torch.einsum('d,bdhw->bhw', model.attention[0].weight[0, :, 0, 0], features) + model.attention[0].bias
    return (logits.softmax(1).flatten(2), model.attention[1](attention).flatten(1), model.conv_last.no_cue.softmax(0),
            model.attention[1](model.attention.no_cue))


def probabilities(model, features, detach=False):
    """p(y|x) (B,C) by the formula."""
    conditional, attention, of_none, none = parts(model, features)
    total = attention.sum(1) + none
    total = total.detach() if detach else total
    return torch.einsum('bcz,bz->bc', conditional, attention / total[:, None]) + of_none * (none / total)[:, None]


@pytest.mark.parametrize('method, prior', KINDS)
def test_loss_scores_and_gradients_are_the_formulas(method, prior):
    """EM's gradient is ML's (Fisher's identity), so one formula serves both; with ReLU the sum is held constant."""
    model, features = head(method, prior), random_features().requires_grad_()
    inputs = [features, *model.parameters()]
    assert any(parameter is model.attention.no_cue for parameter in inputs)
    loss, scores = model.loss(features, LABELS)
    probs = probabilities(model, features, detach=prior == 'relu')
    expected = -probs[torch.arange(3), LABELS].log().mean()
    torch.testing.assert_close(scores.exp(), probs.detach())
    torch.testing.assert_close(model.eval()(features).exp(), probs)
    torch.testing.assert_close(probs.sum(1), torch.ones(3, dtype=torch.float64))
    if method == 'CALM_ML':
        torch.testing.assert_close(loss, expected)
    for own, reference in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(own, reference, rtol=1e-7, atol=1e-9)
        assert own.any()


def test_the_score_in_eval_mode_has_the_gradient_of_finite_differences():
    model = head(prior='relu').eval()
    assert torch.autograd.gradcheck(lambda features: model(features)[:, 2], random_features().requires_grad_())


def test_prior_and_joint_lack_what_is_nowhere():
    model, features = head().eval(), random_features()
    _, attention, of_none, none = parts(model, features)
    share = none / (attention.sum(1) + none)
    _, logits, prior = model.activations(features)
    torch.testing.assert_close(prior.sum((1, 2)), 1 - share)
    own, probs = joint(logits.log_softmax(1), prior), model(features).exp()
    torch.testing.assert_close(own.sum((2, 3)), probs - of_none * share[:, None])
    torch.testing.assert_close(attribution_maps(model, features, process='jointll'), own)
    posterior = attribution_maps(model, features, process='gtcond')
    torch.testing.assert_close(posterior.sum((2, 3)), torch.ones_like(probs))  # of a cue that is in the picture


@pytest.mark.parametrize('method, prior', KINDS)
def test_without_attention_the_no_cue_location_is_not_there(method, prior):
    model, plain = head(method, prior, attention=-1000.0), head(method, prior, no_cue=False)
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if not name.endswith('no_cue')})
    features = random_features()
    for own, reference in zip((*model.loss(features, LABELS), model(features)),
                              (*plain.loss(features, LABELS), plain(features)), strict=True):
        torch.testing.assert_close(own, reference)
    for method in ('evidence', 'joint-difference'):
        torch.testing.assert_close(*(contrast_maps(own, features, LABELS, LABELS.flip(0).roll(1), method)
                                     for own in (model, plain)))


def test_the_evidence_sums_to_the_log_odds_with_what_the_no_cue_location_adds():
    model, features, first, second = head().eval(), random_features(), torch.tensor([0, 3, 4]), torch.tensor([2, 1, 0])
    maps = contrast_maps(model, features, first, second, 'evidence')
    assert maps.shape == (3, 4, 5)
    conditional, attention, of_none, none = parts(model, features)
    rows, times = torch.arange(3), torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    def path(of_first, of_second, weight):
        return weight * of_first ** times[..., None] * of_second ** (1 - times[..., None])
    at_grid = path(conditional[rows, first], conditional[rows, second], attention).sum(-1)  # (T,B)
    at_none = path(of_none[first][:, None], of_none[second][:, None], none)[..., 0]
    share = torch.trapezoid(at_none / (at_grid + at_none), times[:, 0], dim=0)
    scores = model(features)
    expected = scores[rows, first] - scores[rows, second] - (of_none[first] / of_none[second]).log() * share
    torch.testing.assert_close(maps.sum((1, 2)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('text', ['entropy:0', 'drop:0', 'top:20'])
def test_what_is_asked_of_the_prior_is_asked_of_the_picture(text):
    model, features = head(), random_features()
    before = model.loss(features, LABELS)
    model.prior_training = parse(text)
    assert all(map(torch.equal, model.loss(features, LABELS), before))


def test_an_exported_network_says_the_same():
    torch.manual_seed(0)
    model = build_model('resnet18', 'CALM_EM', 3, last_stage='layer1', no_cue=True).eval()
    images = torch.rand(2, 3, 32, 32)
    network = SelfExplaining(model, ((0.0,) * 3, (1.0,) * 3)).eval()
    dynamic = ({0: torch.export.Dim('batch')},)
    exported = torch.export.export(network, (images,), dynamic_shapes=dynamic).module()
    with torch.no_grad():
        for own, reference in zip(exported(images), network(images), strict=True):
            torch.testing.assert_close(own, reference)
        torch.testing.assert_close(network(images)[0], model(images).exp())


@pytest.mark.parametrize('freeze', [[], ['--freeze']])
def test_it_is_trained_and_measured_from_a_cam_classifier(script, tiny_birds, trained, freeze):
    flags = [*tiny_birds, '--experiment_name=none']
    code, _, err = script('main', *flags, '--architecture=resnet18', '--last_stage=layer1', '--attribution_method=CALM_EM',
                          '--prior=softplus', '--no_cue', '--is_different_checkpoint', f'--load_checkpoint={trained / "CAM"}',
                          '--epochs=1', '--batch_size=20', *freeze)
    assert code == 0, err
    model, checkpoint = weights.load_model('none')
    assert model.no_cue and checkpoint.network['no_cue'] is True
    assert model.attention.no_cue != 1 and model.conv_last.no_cue.any()  # they have learned
    code, _, err = script('eval_cue_location', *flags, '--contrast_method=evidence')
    assert code == 0, err
