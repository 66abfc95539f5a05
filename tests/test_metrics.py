"""wsol.metrics: the published code's numbers, scikit-learn's average precision, properties."""
import numpy as np
import pytest
import torch
from conftest import assert_close, golden
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score

from wsol import metrics


@pytest.mark.parametrize('size, name', [((56, 56), 'large'), ((33, 50), 'odd')])
def test_resize_is_the_published_one(size, name):
    reference = golden('resize')
    assert_close(metrics.resize(torch.tensor(reference['small'])[None], size)[0], reference[name])


@pytest.mark.parametrize('norm_type', metrics.NORM_TYPES)
def test_normalise_is_the_published_one(norm_type):
    reference = golden('normalize')
    ours = metrics.normalise(torch.tensor(reference['maps']), norm_type)
    np.testing.assert_array_equal(ours, reference[f'out_{norm_type}'])


@given(hnp.arrays(np.float64, (3, 4), elements=st.floats(-1e6, 1e6)), st.sampled_from(list(metrics.NORM_TYPES)))
def test_normalised_maps_are_in_range_and_minmax_is_idempotent(values, norm_type):
    once = metrics.normalise(torch.tensor(values)[None], norm_type)
    assert (once >= 0).all() and (once <= 1).all()
    if norm_type == 'minmax':
        torch.testing.assert_close(metrics.normalise(once, norm_type), once)


@pytest.mark.parametrize('threshold_type', metrics.THRESHOLD_TYPES)
@pytest.mark.parametrize('interval', [0.001, 0.01, 0.1])
def test_thresholds_are_the_published_ones(threshold_type, interval):
    reference = golden('thresholds')
    name = f'{threshold_type}_{interval}'
    *thresholds, one, two, three = metrics.bin_edges(threshold_type, interval)
    assert (one, two, three) == (1, 2, 3)
    assert len(thresholds) == reference[f'{name}_len']
    np.testing.assert_allclose(thresholds[:5], reference[f'{name}_head'], rtol=1e-12)
    np.testing.assert_allclose(thresholds[-5:], reference[f'{name}_tail'], rtol=1e-12)


@pytest.mark.parametrize('threshold_type', metrics.THRESHOLD_TYPES)
@pytest.mark.parametrize('interval', [0.001, 0.01])
def test_running_pxap_is_the_published_one(threshold_type, interval):
    reference = golden('pxap')
    edges = metrics.bin_edges(threshold_type, interval)
    total, name = 0, f'{threshold_type}_{interval}'
    running = zip(reference['scores'], reference['masks'], reference[f'{name}_running_pxap'], strict=True)
    for scores, mask, expected in running:
        kept = torch.tensor(mask != 255)
        bins = metrics.bin_scores(torch.tensor(scores), edges)[kept]
        total += metrics.count_scores(bins[None], torch.tensor(mask == 1)[kept][None], len(edges) + 1)[0]
        assert metrics.pixel_average_precision(total, underflow=False) == pytest.approx(expected, rel=1e-12)
    if interval == 0.01:
        np.testing.assert_array_equal(total[0, 1:-1], reference[f'{name}_hist_false'])
        np.testing.assert_array_equal(total[1, 1:-1], reference[f'{name}_hist_true'])
        precision, recall = metrics.precision_recall(total, underflow=False)
        np.testing.assert_array_equal(precision[1:], reference[f'{name}_precision'])
        np.testing.assert_array_equal(recall[1:], reference[f'{name}_recall'])


def pxap(scores, truth, edges=None, underflow=True):
    edges = metrics.bin_edges() if edges is None else edges
    bins = metrics.bin_scores(torch.as_tensor(scores), edges).flatten()[None]
    counts = metrics.count_scores(bins, torch.as_tensor(truth).flatten()[None], len(edges) + 1)
    return metrics.pixel_average_precision(counts[0], underflow)


@given(hnp.arrays(np.int64, 60, elements=st.integers(0, 1000)), hnp.arrays(bool, 60))
def test_pxap_is_average_precision(thousandths, truth):
    """On scores that the bins tell apart, PxAP is scikit-learn's average precision."""
    truth[0] = True
    edges = metrics.bin_edges()
    scores = edges[thousandths]
    assert pxap(scores, truth, edges) == pytest.approx(100 * average_precision_score(truth, scores), rel=1e-12)


def test_pxap_of_perfect_inverted_and_constant_maps():
    truth = np.zeros((10, 10), bool)
    truth[2:5, 3:7] = True
    assert pxap(truth.astype(float), truth) == 100
    assert pxap(1.0 - truth, truth) == pytest.approx(12)  # the last to be found: the share of true pixels
    assert pxap(np.full((10, 10), 0.3), truth) == pytest.approx(12)


def test_underflow_is_dropped_as_published_or_counted():
    edges = metrics.bin_edges('log')
    scores, truth = np.array([0.5, 1e-9, 1e-9, 1e-9]), np.array([True, True, False, False])
    assert pxap(scores, truth, edges, underflow=False) == 100  # the second true pixel is counted nowhere
    assert pxap(scores, truth, edges, underflow=True) == pytest.approx(100 * (0.5 * 1 + 0.5 * 2 / 4))


def test_histograms_of_several_pairs_are_filled_in_one_call():
    generator = torch.Generator().manual_seed(0)
    bins = torch.randint(0, 9, (5, 40), generator=generator)
    truth = torch.rand(5, 40, generator=generator) < 0.3
    rows = torch.tensor([2, 0, 2, 1, 2])
    together = metrics.count_scores(bins, truth, 9, rows, 4)
    assert together.shape == (4, 2, 9)
    for row in range(4):
        alone = sum((metrics.count_scores(bins[i:i + 1], truth[i:i + 1], 9)[0] for i in range(5) if rows[i] == row),
                    start=np.zeros((2, 9), int))
        np.testing.assert_array_equal(together[row], alone)


def generators(count, seed=0):
    return [torch.Generator().manual_seed(seed + index) for index in range(count)]


def test_erased_pixels_are_the_published_ones():
    reference = golden('erase_masks')
    rank, random = metrics.ranks(torch.tensor(reference['scores'])[:, 0], generators(3))
    ones = torch.ones(3, 1, 6, 6)
    for ratio, top, published in zip(reference['k'], reference['topk'], reference['random_seed0'], strict=True):
        np.testing.assert_array_equal(metrics.erase(ones, rank, ratio), top)
        drawn = metrics.erase(ones, random, ratio).flatten(1)
        np.testing.assert_array_equal((drawn == 0).sum(1), (published.reshape(3, -1) == 0).sum(1))


@settings(deadline=None)
@given(hnp.arrays(np.float32, (2, 5, 6), elements=st.integers(0, 3)), st.integers(0, 99))
def test_ranks_order_the_pixels_and_break_ties_by_the_images_seed(values, seed):
    maps = torch.tensor(values)
    rank, random = metrics.ranks(maps, generators(2, seed))
    again, _ = metrics.ranks(maps, generators(2, seed))
    assert torch.equal(rank, again)
    for one in (rank, random):
        assert torch.equal(one.sort(1).values, torch.arange(30).expand(2, -1))
    ordered = maps.flatten(1).gather(1, rank.argsort(1))
    assert (ordered.diff(dim=1) <= 0).all()


def test_ties_do_not_fall_in_reading_order():
    rank, _ = metrics.ranks(torch.zeros(1, 40, 40), generators(1))
    first_half = rank[0, :800].double().mean()
    assert abs(first_half - 800) < 60  # reading order would give 400


def test_erase_counts_and_keeps_the_rest():
    images = torch.rand(2, 3, 10, 10) + 0.1
    rank, _ = metrics.ranks(torch.rand(2, 10, 10), generators(2))
    for ratio in metrics.ERASE_RATIOS:
        erased = metrics.erase(images, rank, ratio)
        gone = (erased == 0).all(1)
        assert (gone.sum((1, 2)) == int(ratio * 100)).all()
        assert torch.equal(erased[:, 0][~gone], images[:, 0][~gone])


def test_bootstrap_interval_covers_the_ratio_and_narrows_with_more_images():
    rng = np.random.default_rng(0)
    widths = []
    for count in (100, 10000):
        base, hits = rng.random(count) < 0.8, rng.random(count) < 0.4
        low, high = metrics.bootstrap_ratio(hits, base, seed=1, draws=400)
        assert low < hits.sum() / base.sum() < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 5
    few = np.arange(10) == 0  # most draws of a base of one image in ten have something to divide by, some not
    assert metrics.bootstrap_ratio(few, few, seed=0) == (1, 1)
    again = [metrics.bootstrap_ratio(hits, base, seed=1, draws=50) for _ in range(2)]
    assert again[0] == again[1]
