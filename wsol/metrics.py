"""What attribution maps are measured by: pure functions of arrays.

Source: SPEC names are the field's. PxAP and the thresholds: Choe et al., CVPR 2020 (arXiv
2001.07437); cue localization and remove-and-classify: Kim et al., ICCV 2021, section 5.
"""
import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F

ERASE_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
RECALLS = np.arange(1, 21) / 20

# --- maps: resize, normalise -----------------------------------------------------------------


def resize(maps, size):
    """(N,h,w) -> (N,*size), bilinear with pixel centres aligned at half pixels, no anti-aliasing."""
    return F.interpolate(maps[:, None], size=size, mode='bilinear', align_corners=False)[:, 0]


def _by_max(maps, low, high):
    return maps / high


def _by_range(maps, low, high):
    return (maps - low) / (high - low)


def _as_is(maps, low, high):
    return maps


def _by_rank(maps, low, high):
    flat = maps.flatten(-2).contiguous()
    ordered = flat.sort(-1).values
    below, up_to = (torch.searchsorted(ordered, flat, right=right) for right in (False, True))
    return ((below + up_to) / (2 * flat.shape[-1])).to(maps).view_as(maps)


NORM_TYPES = {'max': _by_max, 'minmax': _by_range, 'clipping': _as_is, 'rank': _by_rank}


def normalise(maps, norm_type):
    """Each map (...,H,W) on its own to [0,1]; a constant map or one with a NaN becomes zeros.

    norm_type: 'max' m / max, 'minmax' (m - min) / (max - min), 'clipping' m; then clamped to [0,1]. 'rank' is the share
    of the map's pixels that are lower, of equal ones the half: nothing but the order of the pixels is left.
    """
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    usable = low < high  # False for constant maps, and for NaN, which amin and amax hand on
    scaled = NORM_TYPES[norm_type](maps, low, high).nan_to_num(0).clamp(0, 1)  # 0 / 0: a maximum of 0
    return torch.where(usable, scaled, torch.zeros_like(scaled))


# --- pixel average precision -------------------------------------------------------------------

def _even(interval):
    return np.arange(0, 1, interval)


def _log(interval):
    return 10.0 ** (-7 * np.arange(0, 1, interval)[::-1])


THRESHOLD_TYPES = {'even': _even, 'log': _log}


def bin_edges(threshold_type='even', interval=0.001):
    """(T+3,) float64: the thresholds, then 1, 2, 3. even: 0, .001, ...; log: 10^-6.993, ..., 1."""
    return np.concatenate([THRESHOLD_TYPES[threshold_type](interval), [1.0, 2.0, 3.0]])


def bin_scores(scores, edges):
    """The bin of each score: 0 for those under the first edge (underflow), i for [edge i-1, edge i).

    scores: any shape, in [0,1], on any device. edges: float64, rounded up to the scores' precision: no score lies
    between an edge and what it is rounded up to, so that the bins are those of the edges themselves. Returns int64 of
    the same shape, where the scores are.
    """
    exact = torch.as_tensor(edges, dtype=torch.float64)
    near = exact.to(scores.dtype)
    up = torch.where(near.double() < exact, near.nextafter(torch.full_like(near, torch.inf)), near)
    return torch.bucketize(scores, up.to(scores.device), right=True)


def count_scores(bins, truth, num_bins, rows=None, num_rows=1):
    """Histograms of the scores over true and false pixels.

    bins: (N,P) int64; truth: (N,P) bool; rows: (N,) int64, which of the histograms each map adds to (None: all to the
    first); all on one device. Returns an array (num_rows,2,num_bins) int64: [:,0] false, [:,1] true pixels.
    """
    rows = bins.new_zeros(len(bins)) if rows is None else rows
    index = (2 * rows[:, None] + truth.long()) * num_bins + bins
    counts = torch.bincount(index.flatten(), minlength=num_rows * 2 * num_bins).view(num_rows, 2, num_bins)
    return counts.cpu().numpy()


def precision_recall(counts, underflow=True):
    """Precision and recall at every threshold, from the highest down.

    counts: (...,2,num_bins) of count_scores. underflow=False leaves bin 0 out of both, as the
    published code does. Returns two arrays (...,num_bins or one less); NaN where nothing is
    predicted, or nothing is true.
    """
    descending = np.cumsum(counts[..., ::-1] if underflow else counts[..., :0:-1], axis=-1).astype(np.float64)
    false, true = descending[..., 0, :], descending[..., 1, :]
    with np.errstate(invalid='ignore'):
        return true / (true + false), true / true[..., -1:]


def pixel_average_precision(counts, underflow=True):
    """PxAP in percent: the sum of precision * (growth of recall). counts: (...,2,num_bins). Returns (...)."""
    precision, recall = precision_recall(counts, underflow)
    growth = np.diff(recall, axis=-1, prepend=0)
    # where nothing is predicted yet, the recall is 0 and does not grow: the precision is not needed
    return 100 * (np.where(growth == 0, 0, precision) * growth).sum(-1)


def running_pxaps(counts, draws):
    """PxAP in percent as the published protocol has it: of each class pair added to the histograms of all before it.

    counts: (P,2,bins) of count_scores, one pair each; draws: (D,K) int64, in each row the pairs in their order, of
    which some may be there more than once. Yields D arrays (2,K): with the underflow dropped as published, and counted;
    NaN where nothing is true.
    """
    descending = np.cumsum(counts[..., ::-1], axis=-1)
    for draw in draws:
        false, true = np.cumsum(descending[draw], axis=0).astype(np.float64).swapaxes(0, 1)  # (K,bins) each
        growth = np.diff(true, axis=-1, prepend=0)
        with np.errstate(invalid='ignore'):
            gained = np.where(growth > 0, true / (true + false), 0) * growth
            pxaps = 100 * np.stack([gained[:, :-1].sum(-1) / true[:, -2], gained.sum(-1) / true[:, -1]])
        yield pxaps


def precision_at_recall(counts, recalls=RECALLS):
    """Precision at the highest threshold that reaches each recall, all pixels counted: (...,2,num_bins) -> (...,R); NaN
    where nothing is true."""
    precision, recall = precision_recall(counts)
    first = (recall[..., None, :] >= np.asarray(recalls)[:, None] - 1e-12).argmax(-1)  # (...,R)
    return np.where(np.isfinite(recall[..., -1:]), np.take_along_axis(precision, first, -1), np.nan)


# --- remove-and-classify --------------------------------------------------------------------------

def ranks(maps, generators):
    """Each pixel's place in the order from the highest value down; ties fall at random.

    maps: (N,H,W); generators: N torch.Generator, one per image. CUDA's own draw where the maps are, and draw another
    order than the CPU's of the same seed. Returns two (N,H*W) int64 tensors where the maps are: the ranks by value, and
    those of a random order.
    (A ReLU prior makes many exact ties; in reading order they would erase the picture from its top.)
    """
    flat = maps.flatten(1)
    random = torch.stack([torch.randperm(flat.shape[1], generator=g, device=g.device) for g in generators])
    random = random.to(maps.device)  # (N,P)
    order = flat.gather(1, random).argsort(dim=1, descending=True, stable=True)
    order = random.gather(1, order)  # the pixels from the highest value down
    place = torch.arange(flat.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, place), random


def erase(images, rank, ratio):
    """Set the int(ratio*H*W) first-ranked pixels to zero. images: (N,3,H,W); rank: (N,H*W); ratio: a number, or N."""
    limits = [int(own * rank.shape[1]) for own in np.atleast_1d(ratio)]
    kept = rank >= torch.tensor(limits, device=rank.device)[:, None]
    return images * kept.view(len(images), 1, *images.shape[2:]).to(images)


def resampled_sums(values, seed, draws=2000):
    """Sums over units drawn again with replacement: (U,K) numbers of U units -> (draws,K).

    The columns of one draw are sums over the same units: what is computed from two of them is paired. Units that are
    alike are one kind, so that U units drawn again are one draw of a multinomial: memory grows with the kinds alone.
    """
    kinds, numbers = np.unique(values, axis=0, return_counts=True)
    if not len(kinds):
        return np.zeros((draws, values.shape[1]))
    return np.random.default_rng(seed).multinomial(len(values), numbers / len(values), size=draws) @ kinds


def interval(draws, level=0.95):
    """The percentile interval (low, high) of a statistic's draws (draws,), those without a value left out; None, None
    where none has one."""
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return None, None
    return tuple(float(value) for value in np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]))


T_975 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23, 12: 2.18, 15: 2.13,
         20: 2.09, 30: 2.04, 60: 2.00, math.inf: 1.96}  # degrees of freedom -> t


def student(freedom):
    """Student's t: half of a 95 % interval's width, in standard errors. freedom: its degrees, 1 or more, whole or not.

    Between the table's entries its logarithm is taken as linear in the inverse of the degrees, which is right to 3 %.
    """
    inverse, logs = [1 / own for own in T_975], np.log([*T_975.values()])
    return float(np.exp(np.interp(1 / freedom, inverse[::-1], logs[::-1])))


def half_width(variances):
    """Half of a 95 % interval's width, of a sum of independent estimates; None where nothing varies.

    variances: (variance, its degrees of freedom) of each. Student's t with the degrees of Welch and Satterthwaite
    (Welch 1947).
    """
    total = sum(variance for variance, _ in variances)
    if not total > 0:
        return None
    return student(total**2 / sum(variance**2 / freedom for variance, freedom in variances)) * float(total)**0.5


def bootstrap_ratio(numerator, denominator, seed, draws=2000, level=0.95):
    """Interval of sum(numerator) / sum(denominator) over images drawn again with replacement.

    numerator, denominator: (N,) bool of the same images, the second not all False. Returns (low, high), the percentile
    interval of the draws that have a ratio.
    """
    above, below = resampled_sums(np.stack([numerator, denominator], 1).astype(np.int64), seed, draws).T
    return interval(above[below > 0] / below[below > 0], level)


def bootstrap_ratio_of_sums(numerator, denominator, seed, draws=2000, level=0.95):
    """Interval of sum(numerator) / sum(denominator) over images drawn again with replacement, of any numbers (N,).

    Returns (low, high), the percentile interval of the draws whose denominator is not 0; None, None if there is none.
    """
    rng, total = np.random.default_rng(seed), len(numerator)
    ratios = []
    for _ in range(draws):
        weights = np.bincount(rng.integers(total, size=total), minlength=total)
        below = weights @ denominator
        if below:
            ratios.append(weights @ numerator / below)
    if not ratios:
        return None, None
    return tuple(float(value) for value in np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2]))


def mean_ranks(values):
    """The ranks of values (N,), from 1; those of equal values are their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


# --- boxes -------------------------------------------------------------------------------------------

def box_iou(first, second):
    """Intersection over union of inclusive boxes x0, y0, x1, y1: (A,4), (B,4) -> (A,B).

    As published, a box spans x1 - x0 + 1 pixels.
    """
    first, second = np.asarray(first)[:, None], np.asarray(second)[None]  # (A,1,4), (1,B,4)
    low, high = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    intersection = np.maximum(0, high - low + 1).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2] + 1).prod(-1) for boxes in (first, second)]
    return intersection / (areas[0] + areas[1] - intersection)


def scale_boxes(boxes, size, new_size):
    """Boxes (K,4) of an image of size (width, height) in one of new_size, truncated to integers as published."""
    scale = np.tile(np.asarray(new_size, np.float64), 2)
    return (np.asarray(boxes, np.float64) * scale / np.tile(size, 2)).astype(np.int64)


def boxes_above(image, level):
    """Boxes of the contours of image > level, the largest contour's first.

    image: (H,W) uint8. All contours count, those of holes too (cv2.RETR_TREE). Published conventions: x1 and y1 are
    one beyond the contour, but at most size - 1; without a contour the box is 0, 0, 0, 0. Returns (K,4) int64.
    """
    _, binary = cv2.threshold(image, int(level), 255, cv2.THRESH_BINARY)
    contours, _ = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return np.zeros((1, 4), np.int64)
    largest = max(range(len(contours)), key=lambda index: cv2.contourArea(contours[index]))
    rects = np.array([cv2.boundingRect(contour) for contour in (contours[largest], *contours)], np.int64)
    rects[:, 2:] += rects[:, :2]
    return np.minimum(rects, np.array(image.shape[1::-1] * 2) - [0, 0, 1, 1])


def best_ious(score_map, truth, thresholds):
    """The best overlap that a map's boxes reach with any true box, at every threshold.

    score_map: (H,W) in 0..1; truth: (G,4) boxes on the same grid; thresholds: (T,). Returns two (T,) arrays: over all
    contours (MaxBoxAccV2) and for the largest one (MaxBoxAcc).
    """
    image = (score_map * 255).astype(np.uint8)
    # the map has at most 256 levels: the boxes of a level serve all thresholds that fall on it
    levels, back = np.unique((np.asarray(thresholds) * image.max()).astype(np.int64), return_inverse=True)
    overlaps = [box_iou(boxes_above(image, level), truth).max(1) for level in levels]
    return np.array([one.max() for one in overlaps])[back], np.array([one[0] for one in overlaps])[back]
