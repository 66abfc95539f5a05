"""Contrast methods: two classes in, one map out that says why the first and not the second.

A difference of two attribution maps is one way to contrast two classes. The others explain one score, the log-odds
log p(A|x) / p(B|x) = s_A - s_B, s the class scores. (If each label has a probability of its own, this is the
difference of the two logits.) Source: Kim et al., ICCV 2021, for the difference of maps;
Finer-CAM, Zhang et al., CVPR 2025, for Grad-CAM of a difference of scores (here with alpha = 1: the whole score of the
other class is subtracted).

    maps = contrast_maps(model, images, first, second, 'evidence')      # (B,h,w), in nats
"""
import re
from collections import ChainMap
from functools import partial

import numpy as np
import torch

from wsol.attribution.maps import pose
from wsol.attribution.registry import DERIVED, LOG_ODDS, METHODS, find_method, register
from wsol.contexts import evaluating
from wsol.errors import UserError
from wsol.heads import CALM

NODES = 32  # of the quadrature of `evidence`: exact to rounding for log-odds of tens of nats
REGISTERED = {}
register_contrast = partial(register, table=REGISTERED, signed=True)


@register_contrast('joint-difference', head=CALM, unit='probability', bounded=True,
                   label='p(A, z | x) − p(B, z | x)', total='p(A|x) − p(B|x)')
def joint_difference(query):
    """p(A,z|x) − p(B,z|x), the paper's contrast. Where p(A|x) is near 1 the second term is near 0."""
    return METHODS['jointll'].difference_of_maps(query)


@register_contrast('posterior-difference', head=CALM, unit='probability', bounded=True,
                   label='p(z | x, A) − p(z | x, B)', total='0')
def posterior_difference(query):
    """p(z|x,A) − p(z|x,B): where each class looks, whatever its probability."""
    return METHODS['gtcond'].difference_of_maps(query)


@register_contrast('log-odds', unit='nats', label='log p(A | x, z) / p(B | x, z), nats', per='')
def log_odds(query):
    """log p(A|x,z) / p(B|x,z), what each location says; for CAM the difference of the logits."""
    difference = METHODS['vanilla'].difference_of_maps(query)
    return query.model.odds(difference)  # for CALM: its normaliser is the same for both classes


@register_contrast('prior-log-odds', head=CALM, unit='nats', label='p(z | x) log p(A | x, z) / p(B | x, z), nats',
                   per='')
def prior_log_odds(query):
    """p(z|x) log p(A|x,z) / p(B|x,z)."""
    return query.activations.prior[:, None] * log_odds(query)


@register_contrast('evidence', unit='nats', label=f'part of {LOG_ODDS}, nats', total='log p(A|x) / p(B|x)')
def evidence(query):
    """What each location adds to log p(A|x) / p(B|x), exactly.

    CALM: l(z) times the integral over t in 0..1 of q_t(z), l the log-odds at z and q_t(z) proportional to
    p(z|x) p(A|x,z)^t p(B|x,z)^(1-t). For the logarithm of the sum over z of that product has the derivative
    sum_z q_t(z) l(z) in t, and goes from log p(B|x) to log p(A|x). Gauss-Legendre quadrature with NODES nodes.
    CAM: the difference of the logits over the number of locations.
    """
    _, logits, prior = query.activations
    difference = log_odds(query)  # (B,K,h,w)
    if prior is None:
        return difference / difference[0, 0].numel()
    log_probs = query.both().rows(logits) - logits.logsumexp(1, keepdim=True)  # (B,2K,h,w), log p(y|x,z)
    first, second = log_probs.chunk(2, dim=1)
    points, weights = np.polynomial.legendre.leggauss(NODES)
    share = torch.zeros_like(difference)
    for point, weight in zip((1 + points) / 2, weights / 2, strict=True):
        path = prior.log()[:, None] + float(point) * first + float(1 - point) * second
        share += float(weight) * path.flatten(2).softmax(2).view_as(path)
    return difference * share


CONTRASTS = ChainMap(DERIVED, REGISTERED)  # a view: a method that is registered later has its contrasts too
find_contrast = partial(find_method, table=CONTRASTS, kind='contrast')  # (name, head) -> Method, or UserError


def label_of(method, scores='softmax'):
    """The label of a contrast method's colour bar. scores: the head's; by sigmoid a class score is log p / (1 - p)."""
    log_odds, logits = r'log (p\(A \| x.*?\)) / (p\(B \| x.*?\))', r'logit \1 − logit \2'
    return re.sub(log_odds, logits, method.label_of()) if scores == 'sigmoid' else method.label_of()


def default_scale(method, contrast=None):
    """The default (norm type, threshold type) for the maps of an attribution method, or of a contrast method in its
    place. Maps of no registered method, such as masks, are scaled to 0..1 with even thresholds."""
    known = CONTRASTS.get(contrast) or METHODS.get(method)
    return known.scale if known else ('minmax', 'even')


def contrast_maps(model, images, labels, contrast, method=None, seeds=None, settings=None, activations=None):
    """Signed maps (B,h,w) of why the classes `labels` (B,) and not `contrast` (B,).

    method: a key of CONTRASTS, which says its unit and what its cells sum to. The default is the head's own:
    prior-log-odds for CALM, log-odds for CAM (docs/findings.md gives the reasons). The other arguments
    are those of attribution_maps. Raises UserError.
    """
    if getattr(labels, 'ndim', 1) != 1:
        raise UserError(f'labels= has the shape {tuple(labels.shape)}: a contrast takes one class for each image')
    query = pose(model, images, labels, contrast, seeds, None, settings, activations)
    method = find_contrast(method or query.model.default_contrast, type(query.model))
    with evaluating(query.model):
        return method.maps(query)[:, 0]
