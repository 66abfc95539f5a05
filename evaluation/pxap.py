"""The PxAP of class pairs: four ways to count, and how the published counts would move with other class pairs.

'published' adds pair after pair to the same histograms, as the published code does, and leaves out the pixels under the
lowest threshold; 'per pair' resets the histograms between pairs; 'all pixels' leaves none out.
A published value is over all pairs before it, so it is no sample of pairs, and the values cannot be drawn again one by
one. The pairs can: each draw takes as many of them with replacement, in the order of the list, and adds them up anew.
Results hold the figures of all draws, so that two results of the same pairs are compared draw by draw.
"""
import hashlib

import numpy as np

from experiment.result_files import as_text
from runtime import screen
from wsol import metrics

COUNTS = ('published', 'published, all pixels', 'per pair', 'per pair, all pixels')
DROPPING = ('published', 'per pair')  # those that leave out the pixels under the lowest threshold
KEYS = ('1', '2', '3', 'mean')        # pairs of so many differing parts, and all pairs
SEED, DRAWS = 0, 1000
LARGEST = 4_000_000  # numbers in the histograms: 40 times those of a hundred pairs at the usual thresholds


def pxap_counts(counts):
    """The PxAP of every class pair in percent, {name of COUNTS: (P,)}. counts: (P,2,bins)."""
    histograms = np.cumsum(counts, axis=0), np.cumsum(counts, axis=0), counts, counts
    return {name: metrics.pixel_average_precision(histogram, underflow=name not in DROPPING)
            for name, histogram in zip(COUNTS, histograms, strict=True)}


def summarise(counts, pairs, evaluations):
    """The four counts of PxAP. counts: (P,2,bins).

    Returns {name of COUNTS: {key of KEYS: PxAP in percent, 'pairs': the number of pairs that have a value}}, and the
    values of each pair, {name of COUNTS: (P,)}. A pair whose true pixels all lie under the lowest threshold has none.
    """
    number = np.array([len(pair.parts) for pair in pairs])
    summary, values = {}, pxap_counts(counts)
    for name, value in values.items():
        usable = (evaluations > 0) & np.isfinite(value)
        groups = {str(k): usable & (number == k) for k in (1, 2, 3)} | {'mean': usable}
        summary[name] = {key: float(value[group].mean()) if group.any() else None for key, group in groups.items()}
        summary[name]['pairs'] = int(usable.sum())
    return summary, values


def dropped_shares(counts):
    """{'true', 'false', 'all'}: the percent of true, of false and of all pixels under the lowest threshold. counts:
    (P,2,bins)."""
    below, total = counts[..., 0].sum(0), counts.sum((0, 2))
    shares = {name: 100 * float(below[side] / total[side]) if total[side] else None
              for name, side in (('true', 1), ('false', 0))}
    return shares | {'all': 100 * float(below.sum() / total.sum())}


def draw_pairs_again(counts, pairs, evaluations):
    """The published PxAP over class pairs drawn again. counts: (P,2,bins); pairs: P of the annotations; evaluations:
    (P,), those of 0 are not measured.

    Returns {'pairs_sha256': of what was drawn, 'published' and 'published, all pixels': {key of KEYS: DRAWS numbers in
    percent as text, nan for a draw without such a pair}}; None where the many thresholds asked for would take too long.
    """
    measured = np.flatnonzero(evaluations)
    counts = counts[measured]
    if counts.size > LARGEST:
        return None
    draws = np.sort(np.random.default_rng(SEED).integers(len(measured), size=(DRAWS, len(measured))), axis=1)
    running = metrics.running_pxaps(counts, draws)
    values = np.stack(list(screen.progress(running, 'class pairs drawn again', 'draw', total=DRAWS, leave=False)), 1)
    number = np.array([len(pairs[index].parts) for index in measured])[draws]  # (D,K)
    groups = {key: number == int(key) if key != 'mean' else number > 0 for key in KEYS}
    return {'pairs_sha256': hashlib.sha256(draws.astype('<i8').tobytes()).hexdigest()} | {
        name: {key: as_text(_means(own, group), 2) for key, group in groups.items()}
        for name, own in zip(COUNTS[:2], values, strict=True)}


def _means(values, group):
    """The mean of each draw's values that are in a group and are numbers. Both: (D,K) -> (D,)."""
    usable = group & np.isfinite(values)
    with np.errstate(invalid='ignore'):
        return np.where(usable, values, 0).sum(1) / usable.sum(1)
