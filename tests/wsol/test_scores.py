"""Class scores to probabilities: softmax, sigmoid for several labels, and one logit, whose classes are no and yes."""
import numpy as np
import pytest
import torch
from torch import nn

from wsol import UserError, attribution_maps, from_module
from wsol.attribution.contrast import CONTRASTS, contrast_maps
from wsol.attribution.registry import METHODS, SamplingSettings
from wsol.networks import build_model

SCORE_METHODS = [name for name in METHODS if name in CONTRASTS and METHODS[name].explains_score]
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
NO, YES = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)


def classifier(outputs, *end, bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, outputs, bias=bias), *end).eval()


def cam(outputs, *end, scores=None, **options):
    return from_module(classifier(outputs, *end, **options), '1', 'CAM', image_size=32, scores=scores)


# --- one logit ------------------------------------------------------------------------------------------

@pytest.mark.parametrize('end, scores', [((), None), ((), 'sigmoid'), ((nn.Sigmoid(),), None), ((nn.Flatten(0),), None)])
def test_one_logit_says_yes_by_its_sigmoid_and_no_by_the_rest(end, scores):
    logit, model = classifier(1)(IMAGES)[:, 0], cam(1, *end, scores=scores)
    class_scores = model(IMAGES)
    expected = torch.stack([1 - logit.sigmoid(), logit.sigmoid()], 1)
    torch.testing.assert_close(model.probabilities(class_scores), expected)
    torch.testing.assert_close(model.log_probabilities(class_scores), expected.log())
    assert model.scores == 'one_logit' and class_scores.argmax(1).tolist() == (logit > 0).long().tolist()


def test_the_map_of_yes_is_the_logits_and_that_of_no_its_negative():
    for model in (cam(1), cam(1, bias=False)):
        logit = -model(IMAGES)[:, 0]
        maps = attribution_maps(model, IMAGES)
        torch.testing.assert_close(maps[:, 1].mean((1, 2)), logit)
        assert torch.equal(maps[:, 0], -maps[:, 1])
        for name, total in (('log-odds', 'mean'), ('evidence', 'sum')):
            contrast = contrast_maps(model, IMAGES, YES, NO, name)
            torch.testing.assert_close(getattr(contrast, total)((1, 2)), logit)
            assert torch.equal(contrast, -contrast_maps(model, IMAGES, NO, YES, name))
        assert torch.equal(contrast_maps(model, IMAGES, YES, NO), maps[:, 1])


@pytest.mark.parametrize('name', SCORE_METHODS)
def test_the_contrast_of_yes_and_no_is_the_map_of_the_logit_by_every_method_of_scores(name):
    model, settings = cam(1), None
    if 'smooth_grad_nr_iter' in METHODS[name].settings:
        settings = SamplingSettings(2)
    seeds = torch.arange(3)
    expected = attribution_maps(model, IMAGES, YES, name, seeds=seeds, settings=settings)
    assert expected.abs().max() > 0
    torch.testing.assert_close(contrast_maps(model, IMAGES, YES, NO, name, seeds=seeds, settings=settings), expected)


def test_softmax_of_one_number_is_refused():
    for options in ({'scores': 'softmax'}, {'end': nn.Softmax(1)}):
        with pytest.raises(UserError, match='one number is 1'):
            cam(1, *filter(None, [options.pop('end', None)]), **options)


# --- several labels -------------------------------------------------------------------------------------

@pytest.mark.parametrize('end, scores, kind', [
    ((), None, 'softmax'), ((), 'softmax', 'softmax'), ((), 'sigmoid', 'sigmoid'), ((nn.Softmax(1),), None, 'softmax'),
    ((nn.LogSoftmax(1),), None, 'softmax'), ((nn.Sigmoid(),), None, 'sigmoid'), ((nn.Sigmoid(),), 'sigmoid', 'sigmoid')])
def test_probabilities_are_what_the_network_ends_in_or_what_is_said(end, scores, kind):
    logits, model = classifier(4)(IMAGES), cam(4, *end, scores=scores)
    assert model.scores == kind
    torch.testing.assert_close(model(IMAGES), logits)
    expected = logits.softmax(1) if kind == 'softmax' else logits.sigmoid()
    torch.testing.assert_close(model.probabilities(model(IMAGES)), expected)
    torch.testing.assert_close(model.log_probabilities(model(IMAGES)), expected.log())


def test_maps_and_contrasts_of_labels_are_of_their_logits():
    labels, softmax = cam(4, scores='sigmoid'), cam(4)
    for name in ('vanilla', 'grad_cam', 'backprop'):
        assert torch.equal(*(attribution_maps(model, IMAGES, YES, name) for model in (labels, softmax)))
    for name in ('log-odds', 'evidence', 'grad_cam'):
        assert torch.equal(*(contrast_maps(model, IMAGES, YES, NO, name) for model in (labels, softmax)))
    logits = labels(IMAGES)
    torch.testing.assert_close(contrast_maps(labels, IMAGES, YES, NO, 'evidence').sum((1, 2)), logits[:, 1] - logits[:, 0])


def test_a_head_for_several_labels_is_trained_by_each_labels_own_likelihood():
    model = from_module(classifier(4), '1', 'CAM', num_classes=3, image_size=32, scores='sigmoid')
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1]])
    loss, scores = model.loss(IMAGES, labels)
    p = scores.sigmoid()
    torch.testing.assert_close(loss, -torch.where(labels == 1, p, 1 - p).log().mean())


@pytest.mark.parametrize('head', ['CALM_EM', 'CALM_ML'])
def test_calm_has_probabilities_by_construction(head):
    with pytest.raises(UserError, match=f'scores=sigmoid does not suit {head}'):
        from_module(classifier(4), '1', head, num_classes=3, image_size=32, scores='sigmoid')
    model = from_module(classifier(4), '1', head, num_classes=3, image_size=32)
    torch.testing.assert_close(model.log_probabilities(model(IMAGES)), model(IMAGES))


def test_what_contradicts_the_network_or_is_unknown_is_refused():
    for outputs, end, scores, words in ((4, (nn.Sigmoid(),), 'softmax', 'ends in a sigmoid'), (4, (), 'tanh', 'no scores "tanh"'),
                                        (4, (nn.Tanh(),), None, 'does not end in average pooling')):
        with pytest.raises(UserError, match=words):
            cam(outputs, *end, scores=scores)
    for head in ('CAM', 'CALM_EM'):
        with pytest.raises(UserError, match='a single class is always 1'):
            from_module(classifier(4), '1', head, num_classes=1, image_size=32)
    assert build_model('resnet18', 'CAM', 2).conv_last.out_channels == 2  # a network of two classes is trained as before
    np.testing.assert_equal(cam(2).scores, 'softmax')
