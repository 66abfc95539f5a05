"""How the published protocol's figures would move with other class pairs.

Its histograms run on from pair to pair, so that its values are no sample of pairs: they cannot be drawn again one by
one. The pairs can: each draw takes as many of them with replacement, in the order of the list, and adds them up anew.
Results hold the figures of all draws, so that two results of the same pairs are compared draw by draw.
"""
import hashlib

import numpy as np

from experiment.result_files import as_text
from reports import paper
from runtime import screen
from wsol import metrics

SEED, DRAWS = 0, 1000
LARGEST = 4_000_000  # numbers in the histograms: 40 times those of a hundred pairs at the usual thresholds


def draw_pairs_again(counts, pairs, evaluations):
    """The published PxAP over class pairs drawn again. counts: (P,2,bins); pairs: P of the annotations; evaluations:
    (P,), those of 0 are not measured.

    Returns {'pairs_sha256': of what was drawn, 'dropped' | 'counted': {'1' | '2' | '3' | 'mean': DRAWS numbers in
    percent as text, nan of a draw that has no such pair}}; None where so many thresholds were asked for that it would
    take long.
    """
    measured = np.flatnonzero(evaluations)
    counts = counts[measured]
    if counts.size > LARGEST:
        return None
    draws = np.sort(np.random.default_rng(SEED).integers(len(measured), size=(DRAWS, len(measured))), axis=1)
    running = metrics.running_pxaps(counts, draws)
    values = np.stack(list(screen.progress(running, 'class pairs drawn again', 'draw', total=DRAWS, leave=False)), 1)
    number = np.array([len(pairs[index].parts) for index in measured])[draws]  # (D,K)
    groups = {key: number == int(key) if key != 'mean' else number > 0 for key in paper.KEYS}
    return {'pairs_sha256': hashlib.sha256(draws.astype('<i8').tobytes()).hexdigest()} | {
        name: {key: as_text(_means(own, group), 2) for key, group in groups.items()}
        for name, own in zip(('dropped', 'counted'), values, strict=True)}


def _means(values, group):
    """The mean of each draw's values that are in a group and are numbers. Both: (D,K) -> (D,)."""
    usable = group & np.isfinite(values)
    with np.errstate(invalid='ignore'):
        return np.where(usable, values, 0).sum(1) / usable.sum(1)
