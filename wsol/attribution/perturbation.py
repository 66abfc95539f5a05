"""Attribution by perturbation: what happens to a class's score when parts of the image are hidden.

The score s is CAM's logit, or log p(class|x) for CALM. Images (B,3,H,W) -> maps (B,K,h,w) or (B,K,H,W).
"""
from itertools import islice

import numpy as np
import torch

from wsol.attribution.registry import image_by_image, register, versions_at_a_time
from wsol.contexts import full_precision
from wsol.maps import normalise, resize

RISE_GRID = 7  # cells on a side of a mask
OCCLUSION_SIDE, OCCLUSION_STRIDE = 1 / 7, 1 / 14  # of the image's side
MASKS_AT_A_TIME = 32  # masked images per forward (CUDA takes more)
NUMBERS_KEPT = 120    # per pixel of a masked image, in a forward of ResNet-50 with 28x28 maps, without gradients


def _scores_of_masked(query, masks):
    """Class scores (M,K) of one image under each mask. query: about one image. masks: (M,1,H,W) in 0..1."""
    at_a_time = versions_at_a_time(query, MASKS_AT_A_TIME, NUMBERS_KEPT)
    with torch.no_grad():
        chunks = [query.model(query.images * part.to(query.images.dtype)) for part in masks.split(at_a_time)]
    return query.explained(torch.cat(chunks))


@register('score_cam', explains_score=True, cost=lambda _, num_features: (num_features + 2, 0),
          label='score-weighted features for {c}')
@image_by_image
def score_cam(query):
    """Score-CAM: relu(Σ_d softmax_d(s(x ⊙ A_d) − s(0)) A_d) (Wang et al. 2020)."""
    channels = query.activations.features[0]  # (D,h,w)
    masks = normalise(resize(channels, query.images.shape[2:]), 'minmax')[:, None]
    baseline = _scores_of_masked(query, torch.zeros_like(masks[:1]))  # (1,K)
    weights = (_scores_of_masked(query, masks) - baseline).softmax(0)  # (D,K)
    with full_precision(channels):
        return torch.einsum('dk,dhw->khw', weights, channels).relu()


@register('ablation_cam', explains_score=True, cost=lambda _, num_features: (1 + num_features // 12, 0),
          label='features weighted by their ablation, for {c}')
@image_by_image
def ablation_cam(query):
    """Ablation-CAM: relu(Σ_d (s − s_d) / |s| A_d), s_d the score without A_d (Desai and Ramaswamy 2020)."""
    features = query.activations.features  # (1,D,h,w); each s_d costs one head, about a twelfth of a forward
    with torch.no_grad(), full_precision(features):
        def explained(versions):
            return query.explained(query.model.class_scores(query.model.head(versions)))
        intact, drops = explained(features), []
        for channels in torch.arange(features.shape[1], device=features.device).split(MASKS_AT_A_TIME):
            ablated = features.repeat(len(channels), 1, 1, 1)
            ablated[torch.arange(len(channels)), channels] = 0
            drops.append(intact - explained(ablated))
        weights = torch.cat(drops) / intact.abs().clamp_min(torch.finfo(intact.dtype).tiny)  # (D,K)
        return torch.einsum('dk,dhw->khw', weights, features[0]).relu()


def rise_masks(count, size, seed):
    """Yield the masks (1,H,W) in 0..1 of RISE: random 7x7 grids of zeros and ones, enlarged, and shifted at random."""
    generator, cell = np.random.default_rng(seed), [-(-side // RISE_GRID) for side in size]
    for _ in range(count):
        grid = torch.from_numpy(generator.integers(2, size=(1, RISE_GRID, RISE_GRID)).astype(np.float32))
        top, left = generator.integers(cell)
        yield resize(grid, [(RISE_GRID + 1) * side for side in cell])[:, top:top + size[0], left:left + size[1]]


@register('rise', random=True, settings=('rise_nr_masks',), unit='probability',
          cost=lambda settings, _: (settings.rise_nr_masks, 0), label='p({c} | masked image), mean over masks', per='')
@image_by_image
def rise(query):
    """RISE: Σ_i p(class | x ⊙ M_i) M_i / (N E[M]) over N random masks (Petsiuk et al. 2018)."""
    (seed,), size, total = query.seeds, query.images.shape[2:], 0
    masks = rise_masks(query.settings.rise_nr_masks, size, seed)
    at_a_time = versions_at_a_time(query, MASKS_AT_A_TIME, NUMBERS_KEPT)
    while part := list(islice(masks, at_a_time)):
        part = torch.stack(part).to(query.images)
        with torch.no_grad():
            probs = query.model.probabilities(query.model(query.images * part))  # (N,C)
        with full_precision(part):
            total = total + torch.einsum('nk,nhw->khw', probs[:, query.classes[0]].float(), part[:, 0].float())
    return total / (0.5 * query.settings.rise_nr_masks)


@register('occlusion', explains_score=True, cost=(170, 0), signed=True, label='{score} lost when hidden',
          per='per pixel')
@image_by_image
def occlusion(query):
    """Occlusion: the score that is lost when a square is set to zero, averaged over the squares that cover a pixel
    (Zeiler and Fergus 2014)."""
    height, width = query.images.shape[2:]
    side = [max(1, round(length * OCCLUSION_SIDE)) for length in (height, width)]
    stride = [max(1, round(length * OCCLUSION_STRIDE)) for length in (height, width)]
    # the last square is moved back to the border, so that every pixel is covered
    tops, lefts = ([*range(0, length - span, step), length - span]
                   for length, span, step in zip((height, width), side, stride, strict=True))
    squares = query.images.new_zeros(len(tops) * len(lefts), height, width)
    for index, (top, left) in enumerate((top, left) for top in tops for left in lefts):
        squares[index, top:top + side[0], left:left + side[1]] = 1
    intact = _scores_of_masked(query, torch.ones_like(squares[:1, None]))
    lost = intact - _scores_of_masked(query, 1 - squares[:, None])  # (M,K)
    with full_precision(squares):
        return torch.einsum('mk,mhw->khw', lost, squares.to(lost.dtype)) / squares.sum(0)
