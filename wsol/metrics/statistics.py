"""Intervals: bootstraps over units such as images or class pairs, and Student's t over trainings."""
import numpy as np


def bootstrap_sums(values, seed, draws=2000):
    """Sums over units drawn again with replacement: values (U,K) of U units -> (draws,K).

    The columns of one draw are sums over the same units, so that what is computed from two columns is paired. Equal
    units are drawn together, by one multinomial: memory grows with the number of different units, not with U.
    """
    different, repeats = np.unique(values, axis=0, return_counts=True)
    if not len(different):
        return np.zeros((draws, values.shape[1]))
    return np.random.default_rng(seed).multinomial(len(values), repeats / len(values), size=draws) @ different


def ratio(numerator, denominator):
    """numerator / denominator, NaN where the denominator is 0."""
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def interval(draws, level=0.95):
    """(low, high): the percentile interval of a bootstrap's draws (draws,) that are not NaN; None, None if all are."""
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return None, None
    return tuple(float(value) for value in np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]))


def bootstrap_ratio(numerator, denominator, seed, draws=2000, level=0.95):
    """Interval of sum(numerator) / sum(denominator) over units drawn again with replacement.

    numerator, denominator: (U,) numbers or bool of the same units, the second not negative. Returns (low, high) over
    the draws that have a ratio; None, None if there is none.
    """
    columns = np.stack([numerator, denominator], 1).astype(np.float64)  # (U,2)
    return interval(ratio(*bootstrap_sums(columns, seed, draws).T), level)


def bootstrap_mean(values, seed):
    """[mean, low, high] of the values (U,) that are not NaN, with their interval; [None, None, None] if all are."""
    known = np.isfinite(values)
    mean = float(values[known].mean()) if known.any() else None
    return [mean, *bootstrap_ratio(np.nan_to_num(values), known, seed)]


def half_width(variances):
    """Half the width of a 95 % interval of a sum of independent estimates; None if nothing varies.

    variances: [(variance, degrees of freedom)], one for each estimate. Student's t with the degrees of freedom of Welch
    and Satterthwaite (Welch 1947).
    """
    from scipy.special import stdtrit  # takes half a second: only comparisons need it
    total = sum(variance for variance, _ in variances)
    if not total > 0:
        return None
    freedom = total**2 / sum(variance**2 / freedom for variance, freedom in variances)
    return float(stdtrit(freedom, 0.975) * total**0.5)
