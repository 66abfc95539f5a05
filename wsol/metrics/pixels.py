"""Pixel average precision (PxAP): the maps' values as scores of a detector of the true pixels.

Scores are counted in histograms, whose bins lie between thresholds. Source: Choe et al., CVPR 2020 (arXiv 2001.07437);
log thresholds and cue localization: Kim et al., ICCV 2021, section 5.
"""
import numpy as np
import torch

from wsol.metrics.statistics import ratio

RECALLS = np.arange(1, 21) / 20
THRESHOLD_TYPES = {'even': lambda step: np.arange(0, 1, step),  # 0, .001, ..., .999
                   'log': lambda step: 10.0 ** (-7 * np.arange(0, 1, step)[::-1])}  # 10^-6.993, ..., 1


def bin_edges(threshold_type='even', interval=0.001):
    """The edges of the bins (T+3,), float64: the thresholds of a type, then 1, 2, 3. interval: their step."""
    return np.concatenate([THRESHOLD_TYPES[threshold_type](interval), [1.0, 2.0, 3.0]])


def bin_scores(scores, edges):
    """The bin of each score: 0 for those under the first edge (underflow), i for [edge i-1, edge i).

    scores: any shape, in [0,1], on any device. edges: float64. Returns int64 of the same shape, on the same device.
    The edges are rounded up to the scores' precision: no score lies between an edge and its rounded value, so the bins
    are those of the exact edges.
    """
    exact = torch.as_tensor(edges, dtype=torch.float64)
    near = exact.to(scores.dtype)
    up = torch.where(near.double() < exact, near.nextafter(torch.full_like(near, torch.inf)), near)
    return torch.bucketize(scores, up.to(scores.device), right=True)


def count_scores(bins, truth, num_bins, rows=None, num_rows=1):
    """Histograms of the scores over true and false pixels.

    bins: (N,P) int64 of N maps; truth: (N,P) bool; rows: (N,) int64, the histogram that each map adds to (None: all to
    the first); all on one device. Returns an array (num_rows,2,num_bins) int64: [:,0] false, [:,1] true pixels.
    """
    counts = bins.new_zeros(num_rows, 2, num_bins)
    return add_scores(counts, bins, truth, bins.new_zeros(len(bins)) if rows is None else rows).cpu().numpy()


def add_scores(counts, bins, truth, rows):
    """Add to the histograms (num_rows,2,num_bins) int64 of count_scores, in place; the host does not wait for it."""
    index = ((2 * rows[:, None] + truth.long()) * counts.shape[2] + bins).flatten()
    counts.view(-1).index_add_(0, index, index.new_ones(()).expand_as(index))
    return counts


def mass_inside(maps, truth):
    """The share of each map's positive part that lies on true pixels: the energy-based pointing game (Score-CAM, Wang
    et al., CVPR Workshops 2020). maps: (N,P); truth: (N,P) bool. Returns (N,) float32, NaN where no value is positive.
    """
    positive = maps.float().clamp(min=0)  # MPS has no float64
    return (positive * truth).sum(1) / positive.sum(1)


def precision_recall(counts, underflow=True):
    """Precision and recall at every threshold, from the highest down.

    counts: (...,2,num_bins) of count_scores. underflow=False leaves bin 0 out of both, as the published code does.
    Returns two arrays (...,num_bins or one less); NaN where nothing is predicted, or nothing is true.
    """
    descending = np.cumsum(counts[..., ::-1] if underflow else counts[..., :0:-1], axis=-1).astype(np.float64)
    false, true = descending[..., 0, :], descending[..., 1, :]
    return ratio(true, true + false), ratio(true, true[..., -1:])


def pixel_average_precision(counts, underflow=True):
    """PxAP in percent: the sum of precision * (growth of recall). counts: (...,2,num_bins). Returns (...)."""
    precision, recall = precision_recall(counts, underflow)
    growth = np.diff(recall, axis=-1, prepend=0)
    # where nothing is predicted yet, the recall is 0 and does not grow: the precision is not needed
    return 100 * (np.where(growth == 0, 0, precision) * growth).sum(-1)


def running_pxaps(counts, draws):
    """PxAP in percent of the published protocol, where each class pair is added to the histograms of all before it.

    counts: (P,2,bins) of count_scores, for each pair alone; draws: (D,K) int64, K pairs in their order, some of them
    perhaps more than once. Yields D arrays (2,K): with the underflow dropped, as published, and with it counted; NaN
    where nothing is true.
    """
    descending = np.cumsum(counts[..., ::-1], axis=-1)
    for draw in draws:
        false, true = np.cumsum(descending[draw], axis=0).astype(np.float64).swapaxes(0, 1)  # (K,bins) each
        growth = np.diff(true, axis=-1, prepend=0)
        gained = np.where(growth > 0, ratio(true, true + false), 0) * growth
        yield 100 * np.stack([ratio(gained[:, :-1].sum(-1), true[:, -2]), ratio(gained.sum(-1), true[:, -1])])


def precision_at_recall(counts, recalls=RECALLS):
    """Precision at the highest threshold that reaches each recall: (...,2,num_bins) -> (...,R).

    All pixels count. NaN where nothing is true.
    """
    precision, recall = precision_recall(counts)
    first = (recall[..., None, :] >= np.asarray(recalls)[:, None] - 1e-12).argmax(-1)  # (...,R)
    return np.where(np.isfinite(recall[..., -1:]), np.take_along_axis(precision, first, -1), np.nan)
