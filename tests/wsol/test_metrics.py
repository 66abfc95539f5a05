"""wsol.metrics: the published code's numbers, scikit-learn's average precision, properties; and the evaluations' order."""
from math import comb

import numpy as np
import pytest
import torch
from conftest import assert_close, golden
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score

import eval_cue_location
import eval_pixel_perturb
from evaluation import pxap as class_pairs
from evaluation.map_sources import MapBatch
from experiment.result_files import from_text
from reports import paper
from wsol import metrics
from wsol.annotations.cub import ClassPair
from wsol.maps import NORM_TYPES, normalise, ranks, resize


@pytest.mark.parametrize('size, name', [((56, 56), 'large'), ((33, 50), 'odd')])
def test_resize_is_the_published_one(size, name):
    reference = golden('resize')
    assert_close(resize(torch.tensor(reference['small'])[None], size)[0], reference[name])


PUBLISHED_NORMS = 'max', 'minmax', 'clipping'


@pytest.mark.parametrize('norm_type', PUBLISHED_NORMS)
def test_normalise_is_the_published_one(norm_type):
    reference = golden('normalize')
    ours = normalise(torch.tensor(reference['maps']), norm_type)
    np.testing.assert_array_equal(ours, reference[f'out_{norm_type}'])


@given(hnp.arrays(np.float64, (3, 4), elements=st.floats(-1e6, 1e6)), st.sampled_from(list(NORM_TYPES)))
def test_normalised_maps_are_in_range_and_minmax_is_idempotent(values, norm_type):
    once = normalise(torch.tensor(values)[None], norm_type)
    assert (once >= 0).all() and (once <= 1).all()
    if norm_type == 'minmax':
        torch.testing.assert_close(normalise(once, norm_type), once)


@given(hnp.arrays(np.float64, (3, 5), elements=st.integers(-4, 4)))
def test_ranks_are_the_share_that_is_lower_and_half_of_what_is_equal(values):
    expected = [[((values < value).sum() + (values == value).sum() / 2) / values.size for value in row] for row in values]
    if values.min() == values.max():
        expected = np.zeros_like(values)  # as for every constant map
    np.testing.assert_allclose(normalise(torch.tensor(values)[None], 'rank')[0], expected, rtol=1e-6)


def test_ranks_know_the_order_alone_so_that_pxap_is_the_same_on_any_scale():
    """Where the published scale has the same map once counted whole, and once mostly underflowed."""
    maps = torch.rand(2, 40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    truth = (maps * torch.rand(2, 40, 40, generator=torch.Generator().manual_seed(1)) > 0.5).flatten(1)

    def pxap(maps, norm_type, threshold_type):
        edges = metrics.bin_edges(threshold_type)
        bins = metrics.bin_scores(normalise(maps, norm_type), edges).flatten(1)
        return metrics.pixel_average_precision(metrics.count_scores(bins, truth, len(edges) + 1), underflow=True)
    steep = maps ** 40
    assert pxap(maps, 'rank', 'even') == pxap(steep, 'rank', 'even') == pxap(7 * steep, 'rank', 'even')
    assert abs(pxap(maps, 'clipping', 'log') - pxap(steep, 'clipping', 'log')) > 1


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


def test_draws_of_the_published_protocol_are_its_figures_for_the_pairs_drawn(monkeypatch):
    """Against the evaluation itself, asked for the drawn pairs; those without images are never drawn."""
    monkeypatch.setattr(class_pairs, 'DRAWS', 40)
    rng = np.random.default_rng(1)
    counts, evaluations = rng.integers(0, 50, (6, 2, 13)), np.array([3, 0, 1, 2, 1, 1])
    counts[4, 1] = 0
    pairs = [ClassPair(0, 1, tuple(range(k))) for k in (1, 2, 2, 3, 1, 1)]
    found = class_pairs.draw_pairs_again(counts, pairs, evaluations)
    drawn = np.sort(np.random.default_rng(class_pairs.SEED).integers(5, size=(40, 5)), axis=1)
    missing = 0
    for number, draw in enumerate(np.flatnonzero(evaluations)[drawn]):
        summary, _ = class_pairs.summarise(counts[draw], [pairs[index] for index in draw], np.ones(5))
        for name in ('published', 'published, all pixels'):
            for key in paper.KEYS:
                own, expected = from_text(found[name][key])[number], summary[name][key]
                assert np.isnan(own) if expected is None else abs(own - expected) <= 0.005 + 1e-9
                missing += expected is None
    assert missing  # some draws have no pair of a kind
    assert class_pairs.draw_pairs_again(counts, pairs, evaluations) == found
    monkeypatch.setattr(class_pairs, 'LARGEST', 5 * 2 * 13 - 1)
    assert class_pairs.draw_pairs_again(counts, pairs, evaluations) is None  # so many thresholds take too long


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


@given(hnp.arrays(np.float32, (2, 5, 6), elements=st.integers(0, 3)), st.integers(0, 99))
def test_ranks_order_the_pixels_and_break_ties_by_the_images_seed(values, seed):
    maps = torch.tensor(values)
    rank, random = ranks(maps, generators(2, seed))
    again, _ = ranks(maps, generators(2, seed))
    assert torch.equal(rank, again)
    for one in (rank, random):
        assert torch.equal(one.sort(1).values, torch.arange(30).expand(2, -1))
    ordered = maps.flatten(1).gather(1, rank.argsort(1))
    assert (ordered.diff(dim=1) <= 0).all()


def test_ties_do_not_fall_in_reading_order():
    rank, _ = ranks(torch.zeros(1, 40, 40), generators(1))
    first_half = rank[0, :800].double().mean()
    assert abs(first_half - 800) < 60  # reading order would give 400


def test_erase_counts_and_keeps_the_rest():
    images = torch.rand(2, 3, 10, 10) + 0.1
    rank, _ = ranks(torch.rand(2, 10, 10), generators(2))
    for ratio in metrics.ERASE_RATIOS:
        erased = metrics.erase(images, rank, ratio)
        gone = (erased == 0).all(1)
        assert (gone.sum((1, 2)) == int(ratio * 100)).all()
        assert torch.equal(erased[:, 0][~gone], images[:, 0][~gone])


# --- remove-and-classify with a known answer -------------------------------------------------------------------------

SIDE, KNOWN = 10, 10  # of the 100 pixels of an image, the network looks at the 10 of one row
ROW = 4


class LooksAtOneRow(torch.nn.Module):
    """Says class 1 as long as anything is left of the pixels in ROW, else class 0; it computes the others in vain."""

    def forward(self, images):
        left = images[:, :, ROW].abs().sum((1, 2))
        return torch.stack([torch.full_like(left, 1e-6), left], 1)


def classify_erased(row_values, count, seed=7, batch_size=40, seen=None):
    """eval_pixel_perturb's classification of images of class 1, whose maps have these values in ROW and others beside."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, SIDE, SIDE, generator=generator) + 0.1
    maps = torch.rand(count, SIDE, SIDE, generator=generator)
    maps[:, ROW] = torch.as_tensor(row_values)
    model, indices = LooksAtOneRow(), torch.arange(count)
    if seen is not None:
        model.register_forward_pre_hook(lambda _, inputs: seen.append(*inputs))

    def source(batch, indices, classes):
        assert classes.shape == (len(batch), 1) and (classes == 1).all()  # the true class's map is asked for
        return MapBatch(model(batch).softmax(1), classes, maps[indices][:, None])
    loader = [(images[part], torch.ones(len(part), dtype=torch.int64), part) for part in indices.split(batch_size)]
    return eval_pixel_perturb.classify_erased(model, loader, source, torch.device('cpu'), seed, 'float32', batch_size)


def test_batches_are_filled_across_the_ratios():
    """Ten batches of seven and one of two: each image is classified eleven times, the erased ones as if one by one."""
    seen, again = [], []
    together = classify_erased([0.5] * SIDE, 72, batch_size=7, seen=seen)
    one_by_one = classify_erased([0.5] * SIDE, 72, batch_size=1, seen=again)
    for own, plain in zip(together, one_by_one, strict=True):
        np.testing.assert_array_equal(own, plain)
    assert 0 < together[1].sum() < 360 and 0 < together[2].sum() < 360
    assert sorted(map(len, seen)) == sorted([7] * 11 * 10 + [2, 7, 7, 6]) and len(again) == 11 * 72
    by_content = [sorted(image.sum().item() for batch in batches for image in batch) for batches in (seen, again)]
    assert by_content[0] == pytest.approx(by_content[1])


def survival(erased):
    """How probable it is that not all known pixels are among so many erased at random."""
    total = SIDE * SIDE
    return 1 - comb(total - KNOWN, erased - KNOWN) / comb(total, erased) if erased >= KNOWN else 1.0


def test_a_map_that_ranks_the_decisive_pixels_first_has_a_ratio_of_zero():
    """On a network whose answer hangs on 10 % of the pixels, all of which the map ranks above the others."""
    intact, top, random = classify_erased([2.0] * SIDE, 200)
    assert intact.all() and intact.shape == (200,) and top.shape == random.shape == (200, 5)
    assert not top.any()
    records = eval_pixel_perturb.summarise(top, random, seed=0)
    assert [record['R'] for record in records] == [0.0] * 5
    assert [(record['R_low'], record['R_high']) for record in records] == [(0.0, 0.0)] * 5


def test_a_map_that_ranks_the_decisive_pixels_last_has_a_known_ratio():
    """After 90 % are erased they alone are left, and the answer is right; at random it is as often as combinatorics say."""
    count = 400
    _, top, random = classify_erased([-1.0] * SIDE, count)
    assert top.all()
    records = eval_pixel_perturb.summarise(top, random, seed=0)
    for record, ratio in zip(records, metrics.ERASE_RATIOS, strict=True):
        expected = survival(int(ratio * SIDE * SIDE))
        spread = 4 * (expected * (1 - expected) * count) ** 0.5
        assert abs(record['correct_random'] - count * expected) <= max(spread, 1)
        assert record['correct_top'] == count and record['R'] == count / record['correct_random']
    assert records[0]['R'] == records[1]['R'] == 1.0  # to lose all 10 at random is out of the question
    assert records[4]['R'] > 1.3  # a third of the images loses them with 90 %


# --- cue localization, from maps to metric ---------------------------------------------------------------------------


@pytest.mark.parametrize('threshold_type', metrics.THRESHOLD_TYPES)
@pytest.mark.parametrize('norm_type', PUBLISHED_NORMS)
@pytest.mark.parametrize('kind', ['logit', 'joint'])
def test_cue_localization_from_maps_to_metric_is_the_published_one(kind, norm_type, threshold_type):
    """The signed difference is resized, then made absolute, then normalised."""
    reference = golden('cue_end_to_end')
    shape = tuple(reference['masks_shape'])
    truth = np.unpackbits(reference['masks_packed'].reshape(-1))[:np.prod(shape)].reshape(shape).astype(bool)
    truth = torch.from_numpy(truth).flatten(1)
    differences = torch.from_numpy(reference[f'{kind}_A'] - reference[f'{kind}_B'])
    edges = metrics.bin_edges(threshold_type)
    pairs = torch.from_numpy(reference['pair_of_image']).long()

    def running_pxap(scores):
        bins = metrics.bin_scores(scores, edges).flatten(1)
        counts = metrics.count_scores(bins, truth, len(edges) + 1, pairs, 3)
        return metrics.pixel_average_precision(np.cumsum(counts, axis=0), underflow=False)
    published = reference[f'pxap_{kind}_{norm_type}_{threshold_type}']
    ours = running_pxap(eval_cue_location.cue_scores(differences, shape[1:], norm_type))
    # a score that float32's rounding carries across an edge counts for 1e-6
    np.testing.assert_allclose(ours, published, rtol=0, atol=1e-5)
    # the oracle sees the order: made absolute first, the ridges where A - B changes its sign are washed out
    other = normalise(resize(differences.abs(), shape[1:]), norm_type)
    assert np.abs(running_pxap(other) - published).max() > 1e-4
