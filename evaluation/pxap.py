"""The PxAP of class pairs: four ways to count, and how the published counts vary with the class pairs.

'published' adds pair after pair to the same histograms, as the published code does, and leaves out the pixels under the
lowest threshold; 'per pair' resets the histograms between pairs; 'all pixels' leaves none out.
A published value accumulates all earlier pairs, so values are not independent and cannot be resampled one by one. So
the pairs are resampled: each draw takes as many of them with replacement, in the order of the list, and accumulates
them anew. Results hold the figures of all draws, so that two results of the same pairs are compared draw by draw.
"""
import hashlib

import numpy as np

from experiment.result_files import as_text
from runtime import screen
from wsol import metrics
from wsol.annotations.cub import UNION_PARTS

COUNTS = ('published', 'published, all pixels', 'per pair', 'per pair, all pixels')
DROPPING = ('published', 'per pair')  # the counts that leave out the pixels under the lowest threshold
KEYS = ('1', '2', '3', 'mean')        # pairs with this number of differing parts, and all pairs
SEED, DRAWS = 0, 1000
LARGEST = 4_000_000  # numbers in the histograms: 40 times those of a hundred pairs at the usual thresholds


def summarise(counts, pairs, evaluations):
    """The four counts of PxAP in percent. counts: (P,2,bins). evaluations: (P,), 0 for pairs that are left out.

    Returns {name of COUNTS: {key of KEYS: PxAP, 'pairs': how many pairs have a value}}, and the values of each pair,
    {name of COUNTS: (P,)}. A pair has no value where all its true pixels lie under the lowest threshold.
    """
    running, summary, values = np.cumsum(counts, axis=0), {}, {}
    for name in COUNTS:
        histograms = running if name.startswith('published') else counts
        values[name] = metrics.pixel_average_precision(histograms, underflow=name not in DROPPING)  # (P,)
        usable = (evaluations > 0) & np.isfinite(values[name])
        summary[name] = _means_by_key(values[name], usable, pairs) | {'pairs': int(usable.sum())}
    return summary, values


def summarise_masses(masses, pairs):
    """The share of the maps' mass inside the truth, in percent: {key of KEYS: mean over the pairs, or None}, and (P,),
    the mean over each pair's images, or NaN. masses: (P,2), the sum in millionths and the number of images."""
    values = metrics.ratio(masses[:, 0] / 1e4, masses[:, 1])  # (P,)
    return _means_by_key(values, np.isfinite(values), pairs), values


def _means_by_key(values, usable, pairs):
    """{key of KEYS: the mean of the usable values (P,), or None if there are none}."""
    groups = _groups(np.array([len(pair.parts) for pair in pairs]))
    return {key: float(values[usable & group].mean()) if (usable & group).any() else None
            for key, group in groups.items()}


def pair_records(pairs, evaluations, pxaps, masses, counts):
    """What the result file says of each evaluated pair. pxaps: {truth: {name of COUNTS: (P,)}}. masses: {truth:
    (P,)}. counts: (P,2,bins), for precision by recall."""
    records, precision = [], metrics.precision_at_recall(counts)
    for index in np.flatnonzero(evaluations):
        pair = pairs[index]
        values = {truth: {name: _known(pxap[index]) for name, pxap in by.items()} for truth, by in pxaps.items()}
        records.append({'classes': [pair.first + 1, pair.second + 1], 'images': int(evaluations[index]),
                        'parts': [UNION_PARTS[part] for part in pair.parts], 'pxap': values,
                        'mass': {truth: _known(mass[index]) for truth, mass in masses.items()},
                        'precision': as_text(100 * precision[index], 1)})
    return records


def _known(value):
    return float(value) if np.isfinite(value) else None


def _groups(number):
    """{key of KEYS: bool array}: which pairs belong to the key. number: how many parts differ, for each pair."""
    return {key: number > 0 if key == 'mean' else number == int(key) for key in KEYS}


def dropped_shares(counts):
    """{'true', 'false', 'all'}: how many percent of the true, the false and all pixels lie under the lowest threshold.
    counts: (P,2,bins)."""
    below, total = counts[..., 0].sum(0), counts.sum((0, 2))
    shares = {name: 100 * float(below[side] / total[side]) if total[side] else None
              for name, side in (('true', 1), ('false', 0))}
    return shares | {'all': 100 * float(below.sum() / total.sum())}


def resample_pairs(counts, pairs, evaluations):
    """The published PxAP over resampled class pairs. The arguments are those of summarise.

    Returns {'pairs_sha256': SHA-256 of the draws, 'published' and 'published, all pixels': {key of KEYS: DRAWS numbers
    in percent as text, nan for a draw without such a pair}}; None if so many thresholds would take too long.
    """
    evaluated = np.flatnonzero(evaluations)
    counts = counts[evaluated]
    if counts.size > LARGEST:
        return None
    draws = np.sort(np.random.default_rng(SEED).integers(len(evaluated), size=(DRAWS, len(evaluated))), axis=1)
    running = metrics.running_pxaps(counts, draws)
    values = np.stack(list(screen.progress(running, 'class pairs resampled', 'draw', total=DRAWS, leave=False)), 1)
    groups = _groups(np.array([len(pairs[index].parts) for index in evaluated])[draws])  # (D,K) each
    return {'pairs_sha256': hashlib.sha256(draws.astype('<i8').tobytes()).hexdigest()} | {
        name: {key: as_text(_means(of_draws, group), 2) for key, group in groups.items()}
        for name, of_draws in zip(COUNTS[:2], values, strict=True)}


def _means(values, group):
    """The mean of each draw's finite values in a group. Both: (D,K) -> (D,)."""
    usable = group & np.isfinite(values)
    return metrics.ratio(np.where(usable, values, 0).sum(1), usable.sum(1))
