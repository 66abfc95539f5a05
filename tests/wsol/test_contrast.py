"""wsol.attribution.contrast: what each contrast must add up to, against independent formulas."""
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wsol import HEADS, METHODS, UserError, attribution_maps, build_model
from wsol.attribution.contrast import CONTRASTS, contrast_maps
from wsol.attribution.registry import SamplingSettings

FEW = SamplingSettings(3, integrated_grad_nr_iter=3, rise_nr_masks=3)
FIRST, SECOND = torch.tensor([0, 1]), torch.tensor([2, 4])


@pytest.fixture(scope='module')
def networks():
    """Networks in float64 whose scores are far apart, as a trained one's."""
    torch.manual_seed(0)
    made = {}
    for name in HEADS:
        model = build_model('resnet18', name, 5, last_stage='layer1').eval()
        model.conv_last.weight.data.mul_(4)
        if name != 'CAM':
            torch.nn.init.constant_(model.attention[0].bias, 0.05)
        made[name] = model.double()
    return made


@pytest.fixture(scope='module')
def images():
    return torch.randn(2, 3, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def log_odds(model, images):
    scores = model(images).log_softmax(1)
    return (scores.gather(1, FIRST[:, None]) - scores.gather(1, SECOND[:, None]))[:, 0].detach()


CASES = [(head, name) for head in ('CAM', 'CALM_EM') for name, contrast in CONTRASTS.items()
         if issubclass(HEADS[head], contrast.head)]


@pytest.mark.parametrize('head, name', CASES)
def test_a_contrast_is_one_finite_map_per_image_which_changes_sign_with_the_classes_if_signed(networks, images, head, name):
    one, opposite = (contrast_maps(networks[head], images, *pair, name, settings=FEW) for pair in ((FIRST, SECOND), (SECOND, FIRST)))
    assert one.ndim == 3 and len(one) == 2 and torch.isfinite(one).all() and one.abs().max() > 0
    assert torch.allclose(one, -opposite, rtol=1e-6, atol=1e-9) == CONTRASTS[name].signed
    alone = contrast_maps(networks[head], images[1:], FIRST[1:], SECOND[1:], name, seeds=torch.tensor([1]), settings=FEW)
    torch.testing.assert_close(alone[0], one[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('name', HEADS)
def test_the_evidence_sums_to_the_log_odds(networks, images, name):
    model = networks[name]
    maps = contrast_maps(model, images, FIRST, SECOND, 'evidence')
    torch.testing.assert_close(maps.sum((1, 2)), log_odds(model, images), rtol=1e-9, atol=1e-9)


def test_the_evidence_is_the_integral_of_its_definition(networks, images):
    """A Riemann sum over t of q_t(z) l(z), written out location by location."""
    model = networks['CALM_EM']
    with torch.no_grad():
        _, logits, prior = model.activations(images)
    log_conditional = F.log_softmax(logits, 1)[0].flatten(1).numpy()  # (C,Z)
    first, second, weight = log_conditional[0], log_conditional[2], prior[0].flatten().numpy()
    total, steps = np.zeros_like(first), 4000
    for t in (np.arange(steps) + 0.5) / steps:
        q = weight * np.exp(t * first + (1 - t) * second)
        total += q / q.sum() * (first - second) / steps
    ours = contrast_maps(model, images, FIRST, SECOND, 'evidence')[0].flatten()
    np.testing.assert_allclose(ours, total, rtol=1e-5, atol=1e-8 * np.abs(total).max())


def test_the_differences_are_those_of_the_maps(networks, images):
    """There is one way to subtract maps."""
    for method in (method for method in METHODS.values() if method.per_class and not method.needs_superclasses):
        maps = contrast_maps(networks['CALM_EM'], images, FIRST, SECOND, method.difference or f'{method.name}-difference', settings=FEW)
        assert torch.equal(maps, attribution_maps(networks['CALM_EM'], images, FIRST, method.name, contrast=SECOND, settings=FEW))


@pytest.mark.parametrize('name', ['CAM', 'CALM_EM'])
def test_integrated_gradients_of_the_log_odds_are_complete(networks, images, name):
    """Up to the quadrature, which a network of ReLUs leaves an error of some percent."""
    model = networks[name]
    settings = SamplingSettings(integrated_grad_nr_iter=100)
    maps = contrast_maps(model, images, FIRST, SECOND, 'integrated_gradients', settings=settings)
    change = log_odds(model, images) - log_odds(model, torch.zeros_like(images))
    torch.testing.assert_close(maps.sum((1, 2)), change, rtol=0.06, atol=0.02)


@pytest.mark.parametrize('name', HEADS)
def test_gradients_explain_the_difference_of_the_scores_not_of_the_maps(networks, images, name):
    model = networks[name]
    leaf = images.clone().requires_grad_()
    scores = model(leaf)
    gradient, = torch.autograd.grad(scores[[0, 1], FIRST].sum() - scores[[0, 1], SECOND].sum(), leaf)
    torch.testing.assert_close(contrast_maps(model, images, FIRST, SECOND, 'backprop'), gradient.abs().amax(1))
    difference = attribution_maps(model, images, FIRST, 'backprop', contrast=SECOND)
    assert not torch.allclose(difference.abs(), gradient.abs().amax(1))


def test_occlusion_of_the_log_odds_is_what_covering_costs(networks, images):
    """One square, by hand: all of it lies in one pixel's average at the picture's corner."""
    model = networks['CALM_ML']
    maps = contrast_maps(model, images, FIRST, SECOND, 'occlusion')
    covered = images.clone()
    covered[..., :4, :4] = 0  # a seventh of 28 pixels
    expected = log_odds(model, images) - log_odds(model, covered)
    torch.testing.assert_close(maps[:, 0, 0], expected)


def test_what_cannot_be_contrasted_is_refused(networks, images):
    with pytest.raises(UserError, match='no contrast method "x"'):
        contrast_maps(networks['CAM'], images, FIRST, SECOND, 'x')
    with pytest.raises(UserError, match='CAM does not define joint-difference, which needs'):
        contrast_maps(networks['CAM'], images, FIRST, SECOND, 'joint-difference')
    with pytest.raises(UserError, match='contrast= goes from 2 to 7'):
        contrast_maps(networks['CAM'], images, FIRST, torch.tensor([2, 7]))
    with pytest.raises(UserError, match='one class for each image'):
        contrast_maps(networks['CAM'], images, FIRST[:, None], SECOND[:, None])


@pytest.mark.parametrize('name, method', [('CAM', 'log-odds'), ('CALM_EM', 'prior-log-odds')])
def test_each_head_has_a_contrast_of_its_own(networks, images, name, method):
    by_default, named = (contrast_maps(networks[name], images, FIRST, SECOND, *asked) for asked in ([], [method]))
    assert torch.equal(by_default, named)
