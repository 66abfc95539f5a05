"""wsol.metrics: the published code's numbers, scikit-learn's average precision, properties of histograms and erasure."""
import numpy as np
import pytest
import torch
from conftest import generators, golden
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score

from wsol import metrics
from wsol.maps import ranks


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


def test_running_pxaps_are_those_of_the_running_histograms():
    """In any order, with pairs that come twice, and of which one has no true pixel."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, (5, 2, 13))
    counts[2, 1] = counts[4, 1, 1:] = 0  # nothing is true; all that is true underflows
    draws = np.array([[0, 1, 2, 3, 4], [2, 2, 4, 0, 0], [4, 4, 2, 1, 3]])
    for draw, own in zip(draws, metrics.running_pxaps(counts, draws), strict=True):
        running = np.cumsum(counts[draw], axis=0)
        expected = [metrics.pixel_average_precision(running, underflow) for underflow in (False, True)]
        np.testing.assert_allclose(own, expected, rtol=1e-12)
    assert np.isnan(own[0, :3]).all() and np.isfinite(own[1]).all()


def test_underflow_is_dropped_as_published_or_counted():
    edges = metrics.bin_edges('log')
    scores, truth = np.array([0.5, 1e-9, 1e-9, 1e-9]), np.array([True, True, False, False])
    assert pxap(scores, truth, edges, underflow=False) == 100  # the second true pixel is counted nowhere
    assert pxap(scores, truth, edges, underflow=True) == pytest.approx(100 * (0.5 * 1 + 0.5 * 2 / 4))


def test_precision_at_recall_by_hand():
    """From the top: 1 true; 1 false; 1 true and 2 false; and under all thresholds 2 true, 1 false."""
    counts = np.array([[1, 2, 1, 0], [2, 1, 0, 1]])
    expected = {0.25: 1, 0.5: 2 / 5, 1.0: 4 / 8}
    np.testing.assert_allclose(metrics.precision_at_recall(counts, list(expected)), list(expected.values()))
    nothing = np.array([[1, 2, 1, 0], [0, 0, 0, 0]])
    assert np.isnan(metrics.precision_at_recall(nothing)).all()


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


EDGES = st.one_of(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.sampled_from(list(metrics.THRESHOLD_TYPES)).map(metrics.bin_edges))


@given(EDGES, st.lists(st.floats(0, 1, width=32), max_size=30), st.booleans())
def test_scores_fall_into_the_bins_as_doubles_would(edges, scores, half):
    """In single precision and in half of it, at every edge and at the numbers beside it: the reference compares doubles."""
    edges = np.sort(edges)
    near = edges.astype(np.float32)
    scores = torch.tensor(np.concatenate([np.array(scores, np.float32), near, *(np.nextafter(near, np.float32(end)) for end in (9, -9))]))
    scores = scores.bfloat16() if half else scores
    expected = (scores.double().numpy()[:, None] >= edges).sum(1)
    np.testing.assert_array_equal(metrics.bin_scores(scores, edges), expected)


def test_erased_pixels_are_the_published_ones():
    reference = golden('erase_masks')
    rank, random = ranks(torch.tensor(reference['scores'])[:, 0], generators(3))
    ones = torch.ones(3, 1, 6, 6)
    for ratio, top, published in zip(reference['k'], reference['topk'], reference['random_seed0'], strict=True):
        np.testing.assert_array_equal(metrics.erase(ones, rank, ratio), top)
        drawn = metrics.erase(ones, random, ratio).flatten(1)
        np.testing.assert_array_equal((drawn == 0).sum(1), (published.reshape(3, -1) == 0).sum(1))


def test_erase_counts_and_keeps_the_rest():
    images = torch.rand(2, 3, 10, 10) + 0.1
    rank, _ = ranks(torch.rand(2, 10, 10), generators(2))
    for ratio in metrics.ERASE_RATIOS:
        erased = metrics.erase(images, rank, ratio)
        gone = (erased == 0).all(1)
        assert (gone.sum((1, 2)) == int(ratio * 100)).all()
        assert torch.equal(erased[:, 0][~gone], images[:, 0][~gone])


def test_the_mass_inside_is_a_share_of_the_positive_part():
    """A constant map has the share of the area, the truth itself all of it; negative values and scale change nothing."""
    rng = np.random.default_rng(3)
    truth = torch.from_numpy(rng.random((4, 60)) < 0.3)
    maps = torch.from_numpy(rng.normal(size=(4, 60))).float()
    torch.testing.assert_close(metrics.mass_inside(torch.full((4, 60), 0.7), truth), truth.float().mean(1))
    assert (metrics.mass_inside(truth.float(), truth) == 1).all() and (metrics.mass_inside((~truth).float(), truth) == 0).all()
    shares = metrics.mass_inside(maps, truth)
    torch.testing.assert_close(metrics.mass_inside(8 * maps, truth), shares)
    torch.testing.assert_close(metrics.mass_inside(torch.where(maps < 0, -99.0, maps), truth), shares)
    torch.testing.assert_close(shares + metrics.mass_inside(maps, ~truth), torch.ones(4))
    assert metrics.mass_inside(-maps.abs(), truth).isnan().all()
