"""Attribution by activations: maps that are read off one forward.

Source: Kim et al., ICCV 2021, for CALM's maps; the published code for the names. CAM knows logits only; CALM also
p(y,z|x) and its marginals.
"""
from functools import partial

import torch

from wsol import heads
from wsol.attribution.registry import register
from wsol.heads import CALM
from wsol.maps import normalise

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
