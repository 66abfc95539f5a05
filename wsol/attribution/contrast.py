"""Contrast methods: two classes in, one map out that says why the first and not the second.

A difference of two attribution maps is one way to contrast two classes. The others explain one score, the log-odds
log p(A|x) / p(B|x) = s_A - s_B, s the class scores. Source: Kim et al., ICCV 2021, for the difference of maps;
Finer-CAM, Zhang et al., CVPR 2025, for Grad-CAM of a difference of scores (here with the whole of the other class taken
off, its alpha = 1).

    maps = contrast_maps(model, images, first, second, 'evidence')      # (B,h,w), in nats
"""
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from wsol import heads
from wsol.attribution.maps import check_classes
from wsol.attribution.registry import PROCESSES, Query, SamplingSettings
from wsol.contexts import evaluating
from wsol.errors import UserError
from wsol.heads import CALM, CAM

CONTRASTS = {}
NODES = 32  # of the quadrature of `evidence`: exact to rounding for log-odds of tens of nats


@dataclass(frozen=True)
class Contrast:
    """A contrast method: compute(query) -> (B,h,w), the query's classes (B,1) against its contrast (B,1).

    unit: what a cell's value is measured in. total: what the cells of a map sum to; None: nothing in particular.
    """
    compute: Callable
    head: type = CAM            # CAM: every head has it; CALM: only those with a prior
    unit: str = ''
    total: str | None = None


def register_contrast(name, head=CAM, unit='', total=None):
    """Make a function the contrast method `name`."""
    def enter(compute):
        CONTRASTS[name] = Contrast(compute, head, unit, total)
        return compute
    return enter


def _rows(query, maps):
    """The maps of both classes: (B,C,h,w) -> two (B,h,w)."""
    both = torch.cat([query.classes, query.contrast], 1)  # (B,2)
    return maps.gather(1, both[..., None, None].expand(-1, -1, *maps.shape[2:])).unbind(1)


def _logit_difference(query):
    """log p(A|x,z) / p(B|x,z) for CALM (B,h,w): its normaliser over the classes is the same for both."""
    first, second = _rows(query, query.activations.logits)
    return first - second


def _joints(query):
    _, logits, prior = query.activations
    normaliser = logits.logsumexp(1)  # (B,h,w)
    return [(row - normaliser).exp() * prior for row in _rows(query, logits)]


@register_contrast('joint-difference', CALM, 'probability', total='p(A|x) - p(B|x)')
def joint_difference(query):
    """p(A,z|x) - p(B,z|x), the paper's contrast. Where p(A|x) is near 1 the second term is near 0."""
    first, second = _joints(query)
    return first - second


@register_contrast('posterior-difference', CALM, 'probability', total='0')
def posterior_difference(query):
    """p(z|x,A) - p(z|x,B): where each class looks, whatever its probability."""
    first, second = (heads.posterior(own) for own in _joints(query))
    return first - second


@register_contrast('log-odds', unit='nats')
def log_odds(query):
    """log p(A|x,z) / p(B|x,z), what each location says; for CAM the difference of the logits."""
    return _logit_difference(query)


@register_contrast('prior-log-odds', CALM, 'nats')
def prior_log_odds(query):
    """p(z|x) log p(A|x,z) / p(B|x,z)."""
    return query.activations.prior * _logit_difference(query)


@register_contrast('evidence', unit='nats', total='log p(A|x) / p(B|x)')
def evidence(query):
    """What each location adds to log p(A|x) / p(B|x), exactly.

    CALM: l(z) times the integral over t in 0..1 of q_t(z), l the log-odds at z and q_t(z) proportional to
    p(z|x) p(A|x,z)^t p(B|x,z)^(1-t). For the logarithm of the sum over z of that product has the derivative
    sum_z q_t(z) l(z) in t, and goes from log p(B|x) to log p(A|x). Gauss-Legendre quadrature with NODES nodes.
    CAM: the difference of the logits over the number of locations.
    """
    _, logits, prior = query.activations
    difference = _logit_difference(query)  # (B,h,w)
    if prior is None:
        return difference / difference[0].numel()
    first, second = (row - logits.logsumexp(1) for row in _rows(query, logits))  # (B,h,w), log p(y|x,z)
    points, weights = np.polynomial.legendre.leggauss(NODES)
    share = torch.zeros_like(prior)
    for point, weight in zip((1 + points) / 2, weights / 2, strict=True):
        path = prior.log() + float(point) * first + float(1 - point) * second
        share += float(weight) * path.flatten(1).softmax(1).view_as(prior)
    return difference * share


def _explain_log_odds(process):
    """An attribution method, of the difference of the two scores instead of one."""
    def compute(query):
        maps = PROCESSES[process].compute(query)
        return maps[:, 0] if maps.ndim == 4 else maps
    compute.__doc__ = PROCESSES[process].compute.__doc__
    return compute


def _difference_of_maps(process):
    """The published contrast of any method: its map of the first class less its map of the second."""
    def compute(query):
        both = replace(query, classes=torch.cat([query.classes, query.contrast], 1), contrast=None)
        first, second = PROCESSES[process].compute(both).unbind(1)
        return first - second
    compute.__doc__ = f'The difference of the two maps of {process}.'
    return compute


COMPLETE = {'integrated_gradients': 'log p(A|x) / p(B|x), less that of the zero image'}
OWN_NAMES = {'vanilla', 'jointll', 'gtcond'}  # whose differences are log-odds, joint-difference, posterior-difference
ALIASES = {'input_grad'}  # another name of backprop
for _name, _process in ((name, entry) for name, entry in PROCESSES.items() if name not in ALIASES):
    if not _process.one_forward:  # methods that ask for the score, by gradients or by hiding parts of the image
        _total = COMPLETE.get(_name)
        register_contrast(_name, unit='nats' if _total else '', total=_total)(_explain_log_odds(_name))
    if _process.per_class and _name not in OWN_NAMES and 'superclass' not in _name:
        register_contrast(f'{_name}-difference', _process.head)(_difference_of_maps(_name))


def check_contrast(name, head):
    """Raise UserError unless the contrast method `name` is defined for a head (a class, of HEADS)."""
    if name not in CONTRASTS:
        raise UserError(f'no contrast method "{name}"; there are {", ".join(CONTRASTS)}')
    if not issubclass(head, CONTRASTS[name].head):
        defined = ', '.join(key for key, value in CONTRASTS.items() if issubclass(head, value.head))
        raise UserError(f'{head.__name__} does not define {name}, which needs p(z|x); it defines {defined}')


def contrast_maps(model, images, labels, contrast, method=None, seeds=None, settings=None, activations=None):
    """Signed maps (B,h,w) of why the classes `labels` (B,) and not `contrast` (B,).

    method: a key of CONTRASTS; its unit and what its cells sum to stand there. None is the head's own: prior-log-odds
    for CALM, log-odds for CAM, for the reasons that docs/findings_painted_birds.md gives. The other arguments are those
    of attribution_maps. Raises UserError.
    """
    method = method or model.default_contrast
    check_contrast(method, type(model))
    check_classes(model, images, labels, contrast)
    first, second = (chosen[:, None].to(images.device) for chosen in (labels, contrast))
    seeds = torch.arange(len(images)) if seeds is None else seeds
    query = Query(model, images, first, seeds, None, settings or SamplingSettings(), second)
    if activations is not None:
        query.activations = activations
    with evaluating(model):
        return CONTRASTS[method].compute(query)
