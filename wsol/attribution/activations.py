"""Attribution by activations: maps that are read off one forward.

Source: Kim et al., ICCV 2021, for CALM's maps; the published code for the names. CAM knows logits only; CALM also
p(y,z|x) and its marginals.
"""
from functools import partial

import torch

from wsol import heads
from wsol.attribution.registry import register
from wsol.contexts import full_precision
from wsol.heads import CALM
from wsol.maps import normalise

probabilities = partial(register, head=CALM, unit='probability', bounded=True)


@register('vanilla', unit='logit', label='logit of {c}', difference='log-odds')
def vanilla(query):
    """CAM: the logits of the class (Zhou et al. 2016)."""
    return query.rows(query.activations.logits)


@register('vanilla-saliency', per_class=False, label='sum over all classes of their logits, each scaled to 0..1')
def vanilla_saliency(query):
    """The sum of the logits of all classes, each class scaled to 0..1 (published code)."""
    return normalise(query.activations.logits, 'minmax').sum(1)


@register('vanilla-superclass', needs_superclasses=True,
          label='logits scaled to 0..1, summed over the superclass of {c}')
def vanilla_superclass(query):
    """The sum of the logits of the superclass's classes, each class scaled to 0..1 (published code)."""
    return query.superclass_sums(normalise(query.activations.logits, 'minmax'))


@probabilities('jointll', label='p({c}, z | x)', total='p({c}|x)', difference='joint-difference')
def jointll(query):
    """CALM: the joint p(y=class, z|x); it sums to p(class|x) (Kim et al. 2021)."""
    _, logits, prior = query.activations
    log_probs = query.rows(logits) - logits.logsumexp(1, keepdim=True)  # log_conditional, of the asked classes alone
    return heads.joint(log_probs, prior)


def _joints(query):
    """p(y,z|x) of all classes: (B,C,h,w)."""
    _, logits, prior = query.activations
    return heads.joint(heads.log_conditional(logits), prior)


@probabilities('jointll-superclass', needs_superclasses=True, label='p(superclass of {c}, z | x)')
def jointll_superclass(query):
    """Aggregated CALM: p(y in the superclass, z|x); it sums to the superclass's probability (Kim et al. 2021)."""
    return query.superclass_sums(_joints(query))


@probabilities('jointll-superclass-mean', needs_superclasses=True,
               label='mean of p(y, z | x) over the superclass of {c}')
def jointll_superclass_mean(query):
    """The mean of the joint over the superclass's classes (Kim et al. 2021)."""
    return query.superclass_means(_joints(query))


@probabilities('gtcond', label='p(z | x, {c})', total='1', difference='posterior-difference')
def gtcond(query):
    """The posterior p(z|x, y=class) (Kim et al. 2021)."""
    return heads.posterior(jointll(query))


@probabilities('gtcond-superclass', needs_superclasses=True, bounded=False,
               label='sum of p(z | x, y) over the superclass of {c}')
def gtcond_superclass(query):
    """The sum of the posteriors p(z|x, y) of the superclass's classes (published code)."""
    return query.superclass_sums(heads.posterior(_joints(query)))


@probabilities('gtcond-superclass-mean', needs_superclasses=True,
               label='mean of p(z | x, y) over the superclass of {c}')
def gtcond_superclass_mean(query):
    """The mean of the posteriors p(z|x, y) of the superclass's classes (published code)."""
    return query.superclass_means(heads.posterior(_joints(query)))


@probabilities('saliency', per_class=False, label='p(z | x)', total='1')
def saliency(query):
    """The prior p(z|x): where the cue is, whatever the class (Kim et al. 2021)."""
    return query.activations.prior


@register('eigen_cam', per_class=False, label='first principal component of the features')
def eigen_cam(query):
    """Eigen-CAM: the features projected on their first principal component; it knows no class, so it is a control
    (Muhammad and Yeasin 2020)."""
    features = query.activations.features.flatten(2).mT  # (B,hw,D)
    with full_precision(features):
        component = torch.linalg.svd(features, full_matrices=False)[2][:, :1].mT  # (B,D,1)
        maps = (features @ component)[..., 0]
    maps = maps * torch.where(maps.sum(1, keepdim=True) < 0, -1.0, 1.0)  # a component has no sign of its own
    return maps.view(len(maps), *query.activations.features.shape[2:])


@register('random', per_class=False, random=True, bounded=True, label='uniform noise', per='')
def random_map(query):
    """Uniform noise on the grid: the control that shows what chance gives."""
    grid = query.activations.logits.shape[2:]
    maps = [torch.rand(grid, generator=torch.Generator().manual_seed(seed)) for seed in query.seeds]
    return torch.stack(maps).to(query.images.device)
