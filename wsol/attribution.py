"""Attribution methods by name, and the one call that gives maps: attribution_maps.

Source: Kim et al., ICCV 2021, for CALM's maps; the published code for the names. Heads: CAM knows
logits only; CALM also p(y,z|x) and its marginals. Letters: B images, K asked classes, C classes.
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from util import UserError

from . import heads
from .heads import CALM, CAM

PROCESSES = {}


@dataclass(frozen=True)
class Process:
    """An attribution method: what computes it and which heads define it.

    function(query) -> (B,K,h,w); where not per_class, (B,h,w), the same map for every class.
    """
    function: Callable
    head: type = CAM  # CAM: every head has it; CALM: only those with a prior
    per_class: bool = True


def process(name, head=CAM, per_class=True):
    """Register a function as the attribution method `name`."""
    def register(function):
        PROCESSES[name] = Process(function, head, per_class)
        return function
    return register


@dataclass
class Query:
    """What an attribution method is asked."""
    model: nn.Module
    images: torch.Tensor            # (B,3,H,W)
    classes: torch.Tensor | None    # (B,K) int64; None: all
    seeds: torch.Tensor             # (B,) int64, one per image, for methods that draw at random

    @cached_property
    def activations(self):
        """The one forward that all activation methods share."""
        with torch.no_grad():
            return self.model.activations(self.images)

    def rows(self, maps):
        """The maps of the asked classes: (B,C,h,w) -> (B,K,h,w)."""
        if self.classes is None:
            return maps
        return maps.gather(1, self.classes[..., None, None].expand(-1, -1, *maps.shape[2:]))


@process('vanilla')
def vanilla(query):
    """CAM: the class's logits (Zhou et al. 2016)."""
    return query.rows(query.activations.logits)


@process('jointll', CALM)
def jointll(query):
    """CALM: p(y=class, z|x); it sums to p(class|x)."""
    _, logits, prior = query.activations
    return heads.joint(query.rows(logits) - logits.logsumexp(1, keepdim=True), prior)


@process('gtcond', CALM)
def gtcond(query):
    """The posterior p(z|x, y=class)."""
    return heads.posterior(jointll(query))


@process('saliency', CALM, per_class=False)
def saliency(query):
    """The prior p(z|x): where the cue is, whatever the class."""
    return query.activations.prior


@process('random', per_class=False)
def random(query):
    """Uniform noise on the grid: the control that shows what chance gives."""
    grid = query.activations.logits.shape[2:]
    maps = [torch.rand(grid, generator=torch.Generator().manual_seed(seed)) for seed in query.seeds.tolist()]
    return torch.stack(maps).to(query.images.device)


def check_process(name, method):
    """Raise UserError unless `name` is defined for a head. method: the head's class (METHODS)."""
    if name not in PROCESSES:
        raise UserError(f'no attribution method "{name}"; there are {", ".join(PROCESSES)}')
    if not issubclass(method, PROCESSES[name].head):
        defined = ', '.join(key for key, value in PROCESSES.items() if issubclass(method, value.head))
        raise UserError(f'{method.__name__} does not define {name}, which needs p(z|x); it defines {defined}')


def attribution_maps(model, images, labels=None, process='jointll', contrast=None, seeds=None):
    """Attribution maps of a batch, in the method's own units: nothing is normalised.

    model: of build_model, in eval mode. images: (B,3,H,W), ImageNet-normalised. process: a key of
    PROCESSES. labels: (B,) int64 -> maps (B,h,w); (B,K) -> (B,K,h,w); None: all classes, (B,C,h,w).
    contrast: classes in the shape of labels; the result is signed, map(label) - map(contrast):
    why this class and not that one. For jointll it sums to p(label|x) - p(contrast|x).
    seeds: (B,) int64 for the methods that draw at random (default 0..B-1).
    Methods that are not per_class give one map (B,h,w) for labels (B,), repeated for more.
    Raises UserError for a method that the head does not define.
    """
    check_process(process, type(model))
    if contrast is not None and labels is None:
        raise UserError('contrast= asks "why this class and not that one": say which one in labels=')
    seeds = torch.arange(len(images)) if seeds is None else seeds
    chosen = [chosen if chosen.ndim == 2 else chosen[:, None] for chosen in (labels, contrast) if chosen is not None]
    asked = torch.cat(chosen, 1).to(images.device) if chosen else None  # (B,K or 2K)
    query = Query(model, images, asked, seeds)
    maps = PROCESSES[process].function(query)  # (B,K,h,w) or (B,h,w)
    if maps.ndim == 3:
        count = query.activations.logits.shape[1] if asked is None else asked.shape[1]
        maps = maps[:, None].expand(-1, count, -1, -1)
    if contrast is not None:
        positive, negative = maps.chunk(2, dim=1)
        maps = positive - negative
    return maps[:, 0] if labels is not None and labels.ndim == 1 else maps
