"""Figures with 95 % intervals: percentile bootstraps over images or class pairs, Student's t over trainings.

Differences are paired: where two figures were measured on the same units, each draw takes the same units for both.
"""
from typing import NamedTuple

import numpy as np

from experiment.result_files import from_text
from wsol import metrics

SEED = 0  # of the bootstraps


class Estimate(NamedTuple):
    """A figure of a result, with what its interval is computed from, or with the interval that the result states.

    units: what is drawn again, images or class pairs; estimates of equal units are paired.
    terms: (U,2), a numerator and a denominator of each unit: the figure is the ratio of their sums. NaN for a unit
        without a value.
    draws: (D,), in place of terms: the figure over units drawn again, `number` of which have a part in it.
    bounds: (low, high) as the result states it.
    truth: SHA-256 of what the maps were compared with, if the metric compares them with something.
    """
    value: float | None
    units: tuple | None = None
    terms: np.ndarray | None = None
    draws: np.ndarray | None = None
    number: int = 0
    bounds: tuple = (None, None)
    truth: str | None = None

    def interval(self):
        """(low, high); None, None if there is none."""
        return self.bounds if self.units is None else mean_interval([self])[1:]


def mean_terms(values):
    """The terms (U,2) of a mean over units: values (U,), NaN for a unit without a value."""
    return np.stack([values, np.ones(len(values))], 1)


def _difference(estimates, minus):
    """The mean of `estimates` minus that of `minus`, its bootstrap values (D,), and the number of units; None in place
    of the values if the units are not the same.

    Every draw takes the same units for all estimates. A unit without a value in one of them is left out of all.
    """
    every = [*estimates, *minus]
    units = {one.units for one in every}
    if len(units) > 1 or None in units:
        means = [float(np.mean([one.value for one in side])) if side else 0.0 for side in (estimates, minus)]
        return means[0] - means[1], None, 0
    weights = np.array([1 / len(estimates)] * len(estimates) + [-1 / len(minus) for _ in minus])
    if every[0].draws is not None:
        values, number = [one.value for one in every], every[0].number
        draws = np.stack([one.draws for one in every], 1)  # (D,E)
    else:
        terms = np.stack([one.terms for one in every], 1)  # (U,E,2)
        terms = terms[np.isfinite(terms).all((1, 2))]
        sums = metrics.bootstrap_sums(terms.reshape(len(terms), -1), SEED).reshape(-1, len(every), 2)
        values, draws, number = metrics.ratio(*terms.sum(0).T), metrics.ratio(sums[..., 0], sums[..., 1]), len(terms)
    return float((weights * values).sum()), (weights * draws).sum(-1), number


def mean_interval(estimates, minus=()):
    """(value, low, high) of the mean of Estimates of several networks, minus the mean of others. The interval is None,
    None for different units, and for one unit alone."""
    value, draws, number = _difference(estimates, minus)
    return value, *(metrics.interval(draws) if number > 1 else (None, None))


def interval_over_trainings(estimates, minus):
    """(value, low, high) of the mean of Estimates of several networks minus that of others, over other trainings too;
    None, None, None if there is no interval.

    The variance is the sum of three: of the difference over units drawn again, where the estimates are paired, and of
    each mean over its networks. All networks are taken as independent. What units and networks vary together is
    counted twice, which widens the interval. With two networks it may be too narrow. One network or one unit alone
    gives none, nor do figures that do not vary.
    """
    if min(len(estimates), len(minus)) < 2:
        return None, None, None
    variances = [(np.var([one.value for one in side], ddof=1) / len(side), len(side) - 1)
                 for side in (estimates, minus)]
    value, draws, number = _difference(estimates, minus)
    if draws is not None:
        if number < 2 or not np.isfinite(draws).any():
            return None, None, None
        variances.append((np.nanvar(draws) * number / (number - 1), number - 1))
    half = metrics.half_width(variances)
    return (None, None, None) if half is None else (value, value - half, value + half)


def precision_band(result):
    """(mean precision, recalls, low, high) over the class pairs of a cue_location result, (R,) each, in shares."""
    values = np.array([from_text(pair['precision']) for pair in result['pairs']]) / 100  # (P,R)
    values = values[np.isfinite(values).all(1)]
    draws = metrics.bootstrap_sums(values, SEED) / len(values)  # (D,R)
    return values.mean(0), from_text(result['recalls']) / 100, *np.array([metrics.interval(part) for part in draws.T]).T
