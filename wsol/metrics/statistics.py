"""Intervals: bootstraps over units, and Student's t."""
import math

import numpy as np


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
