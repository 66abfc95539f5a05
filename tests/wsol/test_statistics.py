"""wsol.metrics.statistics: bootstraps against drawing one by one, against theory, and in how often they cover the truth."""
import tracemalloc

import numpy as np
import pytest

from wsol import metrics


def test_units_drawn_again_are_a_binomial_and_columns_are_of_the_same_units():
    """Of two units, one of which counts, 0, 1 or 2 are drawn with probabilities 1/4, 1/2, 1/4."""
    draws = metrics.bootstrap_sums(np.array([[0], [1]]), seed=0, draws=40000)[:, 0]
    assert np.bincount(draws) / 40000 == pytest.approx([0.25, 0.5, 0.25], abs=0.01)
    values = np.random.default_rng(0).normal(size=(30, 1))
    first, second = metrics.bootstrap_sums(np.hstack([values, 3 * values]), seed=1).T
    np.testing.assert_allclose(second, 3 * first)
    assert first.std() == pytest.approx(values.std() * 30 ** 0.5, rel=0.1)


def hits_and_base(rng, count, both=0.5, only_hits=0.1, only_base=0.25):
    """(count,) bool each, of images that are correct after both erasures, after top-k alone, after random alone."""
    kind = rng.choice(4, size=count, p=[both, only_hits, only_base, 1 - both - only_hits - only_base])
    return np.isin(kind, (0, 1)), np.isin(kind, (0, 2))


def naive_ratios(hits, base, seed, draws):
    """The ratios of data sets whose images are drawn again one by one."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(hits), size=(draws, len(hits)))
    above, below = hits[drawn].sum(1), base[drawn].sum(1)
    return above[below > 0] / below[below > 0]


@pytest.mark.parametrize('count', [12, 300])
def test_the_interval_is_that_of_drawing_the_images_again_one_by_one(count):
    hits, base = hits_and_base(np.random.default_rng(0), count)
    naive = naive_ratios(hits, base, seed=1, draws=20000)
    for level in (0.5, 0.9, 0.95):
        low, high = metrics.bootstrap_ratio(hits, base, seed=2, draws=20000, level=level)
        # in units of probability: what share of the naive draws lies below, or at, each end
        for end, share in ((low, (1 - level) / 2), (high, (1 + level) / 2)):
            slack = 4 * (2 * share * (1 - share) / 20000) ** 0.5  # both are drawn
            assert (naive < end - 1e-12).mean() <= share + slack and (naive <= end + 1e-12).mean() >= share - slack


def test_images_are_counted_as_pairs_and_not_one_side_alone():
    """Where the two answers always agree the ratio is 1 in every draw; where they are independent it spreads."""
    rng = np.random.default_rng(0)
    base = rng.random(200) < 0.5
    assert metrics.bootstrap_ratio(base, base, seed=0) == (1, 1)
    low, high = metrics.bootstrap_ratio(rng.permutation(base), base, seed=0)
    assert low < 0.9 and high > 1.1
    assert metrics.bootstrap_ratio(np.zeros(200, bool), base, seed=0) == (0, 0)


def test_draws_without_a_base_are_left_out():
    few = np.arange(10) == 0  # one image in ten: a third of the draws has none to divide by
    assert metrics.bootstrap_ratio(few, few, seed=0) == (1, 1)
    interval = metrics.bootstrap_ratio(np.ones(10, bool), few, seed=0, draws=500)
    assert interval[0] > 1 and np.isfinite(interval).all()  # 10 over the number drawn, 1 to 5
    assert metrics.bootstrap_ratio(few, np.zeros(10), seed=0) == (None, None)


def test_intervals_cover_the_true_ratio_as_often_as_their_level_says():
    """Over data sets drawn from a population whose ratio is known."""
    rng, trials, level = np.random.default_rng(5), 500, 0.9
    truth = (0.5 + 0.1) / (0.5 + 0.25)
    intervals = [metrics.bootstrap_ratio(*hits_and_base(rng, 400), seed=trial, draws=500, level=level) for trial in range(trials)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    # four standard errors, and the percent or two that a bootstrap of 400 images and 500 draws is off
    assert covered == pytest.approx(level, abs=4 * (level * (1 - level) / trials) ** 0.5 + 0.015)


@pytest.mark.parametrize('count, level, deviations', [(1000, 0.5, 0.6745), (16000, 0.95, 1.9600)])
def test_the_intervals_width_is_the_delta_methods(count, level, deviations):
    """The variance of a ratio of means A / B is that of (a - R b) / B, over N."""
    hits, base = hits_and_base(np.random.default_rng(3), count)
    rng = np.random.default_rng(1)
    weights = rng.uniform(1, 3, 400)
    for above, below in ((hits, base), (0.4 * weights + rng.normal(0, 0.5, 400), weights)):  # outcomes, and any numbers
        ratio = above.sum() / below.sum()
        error = (above - ratio * below).std() / below.mean() / len(above) ** 0.5
        low, high = metrics.bootstrap_ratio(above, below, seed=1, draws=10000, level=level)
        assert low < ratio < high and high - low == pytest.approx(2 * deviations * error, rel=0.05)
        assert (low + high) / 2 == pytest.approx(ratio, abs=0.1 * error)


def test_the_intervals_memory_does_not_grow_with_the_images():
    """Weights for each image in each draw would be 0.8 GB."""
    hits, base = hits_and_base(np.random.default_rng(0), 50_000)
    tracemalloc.start()
    try:
        low, high = metrics.bootstrap_ratio(hits, base, seed=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6e6
    assert low < hits.sum() / base.sum() < high < low + 0.02


def test_the_interval_is_the_seeds():
    hits, base = hits_and_base(np.random.default_rng(0), 200)
    first, again, by_seed_2 = (metrics.bootstrap_ratio(hits, base, seed=seed, draws=50) for seed in (1, 1, 2))
    assert first == again != by_seed_2
