"""Attribution methods by name, and the one call that gives maps: attribution_maps.

Source: Kim et al., ICCV 2021, for CALM's maps; the published code for the names. Heads: CAM knows
logits only; CALM also p(y,z|x) and its marginals. Letters: B images, K asked classes, C classes.
"""
from functools import partial

import torch

from . import gradients, heads, perturbation  # noqa: F401  the other methods register themselves
from .errors import UserError
from .heads import CALM, evaluating
from .metrics import normalise
from .query import PROCESSES, Query, SamplingSettings, check_process, register

activation_method = partial(register, one_forward=True)


@activation_method('vanilla')
def vanilla(query):
    """CAM: the class's logits (Zhou et al. 2016)."""
    return query.rows(query.activations.logits)


@activation_method('vanilla-saliency', per_class=False)
def vanilla_saliency(query):
    """The sum over all classes of their logits, each scaled to 0..1."""
    return normalise(query.activations.logits, 'minmax').sum(1)


@activation_method('vanilla-superclass')
def vanilla_superclass(query):
    """The sum over the class's superclass of the logits, each class's scaled to 0..1."""
    return query.superclass_sums(normalise(query.activations.logits, 'minmax'))


@activation_method('jointll', CALM)
def jointll(query):
    """CALM: p(y=class, z|x); it sums to p(class|x)."""
    _, logits, prior = query.activations
    return heads.joint(query.rows(logits) - logits.logsumexp(1, keepdim=True), prior)


@activation_method('jointll-superclass', CALM)
def jointll_superclass(query):
    """Aggregated CALM: p(y in the superclass, z|x); it sums to the superclass's probability."""
    _, logits, prior = query.activations
    return query.superclass_sums(heads.joint(logits.log_softmax(1), prior))


@activation_method('jointll-superclass-mean', CALM)
def jointll_superclass_mean(query):
    """The same, divided by the number of classes in the superclass."""
    return jointll_superclass(query) / query.superclass_sizes()


@activation_method('gtcond', CALM)
def gtcond(query):
    """The posterior p(z|x, y=class)."""
    return heads.posterior(jointll(query))


@activation_method('gtcond-superclass', CALM)
def gtcond_superclass(query):
    """The sum of the posteriors of the superclass's classes."""
    _, logits, prior = query.activations
    return query.superclass_sums(heads.posterior(heads.joint(logits.log_softmax(1), prior)))


@activation_method('gtcond-superclass-mean', CALM)
def gtcond_superclass_mean(query):
    """The same, divided by the number of classes in the superclass."""
    return gtcond_superclass(query) / query.superclass_sizes()


@activation_method('saliency', CALM, per_class=False)
def saliency(query):
    """The prior p(z|x): where the cue is, whatever the class."""
    return query.activations.prior


@activation_method('random', per_class=False)
def random_map(query):
    """Uniform noise on the grid: the control that shows what chance gives."""
    grid = query.activations.logits.shape[2:]
    maps = [torch.rand(grid, generator=torch.Generator().manual_seed(seed)) for seed in query.seeds.tolist()]
    return torch.stack(maps).to(query.images.device)


def check_classes(model, images, labels, contrast):
    """Raise UserError unless these are classes for a batch: else maps could come out that are not those asked."""
    if contrast is not None and labels is None:
        raise UserError('contrast= asks "why this class and not that one": say which one in labels=')
    for name, chosen in (('labels', labels), ('contrast', contrast)):
        if chosen is not None:
            _check_classes(name, chosen, labels, len(images), model.conv_last.out_channels)


def _check_classes(name, chosen, labels, batch, num_classes):
    if not isinstance(chosen, torch.Tensor) or chosen.dtype != torch.int64:
        raise UserError(f'{name}= should be an int64 tensor, it is {getattr(chosen, "dtype", type(chosen).__name__)}')
    if chosen.ndim not in (1, 2) or len(chosen) != batch or chosen.shape != labels.shape:
        raise UserError(f'{name}= has the shape {tuple(chosen.shape)}: it should be ({batch},) or ({batch},K), and '
                        'that of contrast= that of labels=')
    if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < num_classes:
        raise UserError(f'{name}= goes from {int(chosen.min())} to {int(chosen.max())}, classes are 0 to '
                        f'{num_classes - 1}')


def attribution_maps(model, images, labels=None, process=None, contrast=None, seeds=None, superclasses=None,
                     settings=None, activations=None):
    """Attribution maps of a batch, in the method's own units: nothing is normalised.

    model: of build_model; it explains in eval mode and is left in the mode it came in. images: (B,3,H,W),
    ImageNet-normalised. process: a key of PROCESSES; by default the head's own maps, logits for CAM and p(y,z|x) for
    CALM. labels: (B,) int64 -> maps (B,h,w); (B,K) -> (B,K,h,w); None: all classes, (B,C,h,w).
    contrast: classes in the shape of labels; the result is signed, map(label) - map(contrast):
    why this class and not that one. For jointll it sums to p(label|x) - p(contrast|x).
    seeds: (B,) int64 for the methods that draw at random (default 0..B-1). superclasses: (C,C) bool, row
    c the classes of c's superclass (wsol.superclasses). settings: SamplingSettings of the gradient methods.
    activations: model.activations(images), computed in eval mode, where the caller has them already, to save the
    forward. Activation methods take one forward whatever the classes; gradient methods one backward per class and
    step, with maps of the image's size, or of the last map's (Grad-CAM and its kin). Methods that are not per_class
    give one map, repeated. Raises UserError for a method that the head does not define, and for labels of another
    shape or range.
    """
    process = process or model.own_maps
    check_process(process, type(model))
    check_classes(model, images, labels, contrast)
    seeds = torch.arange(len(images)) if seeds is None else seeds
    chosen = [chosen if chosen.ndim == 2 else chosen[:, None] for chosen in (labels, contrast) if chosen is not None]
    asked = torch.cat(chosen, 1).to(images.device) if chosen else None  # (B,K or 2K)
    query = Query(model, images, asked, seeds, superclasses, settings or SamplingSettings())
    if activations is not None:
        query.activations = activations
    with evaluating(model):
        maps = PROCESSES[process].compute(query)  # (B,K,h,w) or (B,h,w)
    if maps.ndim == 3:
        maps = maps[:, None].expand(-1, query.asked.shape[1], -1, -1)
    if contrast is not None:
        positive, negative = maps.chunk(2, dim=1)
        maps = positive - negative
    return maps[:, 0] if labels is not None and labels.ndim == 1 else maps
