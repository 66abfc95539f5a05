"""wsol.maps: the published code's resizing and normalising; ranks order the pixels, ties at random."""
import numpy as np
import pytest
import torch
from conftest import assert_close, generators, golden
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from wsol import metrics
from wsol.maps import NORM_TYPES, blurred, normalise, ranks, resize


@pytest.mark.parametrize('size, name', [((56, 56), 'large'), ((33, 50), 'odd')])
def test_resize_is_the_published_one(size, name):
    reference = golden('resize')
    assert_close(resize(torch.tensor(reference['small'])[None], size)[0], reference[name])


@pytest.mark.parametrize('norm_type', ['max', 'minmax', 'clipping'])
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


@given(hnp.arrays(np.float64, st.tuples(st.just(2), st.integers(1, 9), st.integers(1, 9)), elements=st.floats(-10, 10)))
def test_blur_is_scipys_keeps_the_mean_and_leaves_a_constant_as_it_is(values):
    maps = torch.tensor(values)
    once = blurred(maps)
    expected = [ndimage.gaussian_filter(one, [side / 8 for side in one.shape], mode='reflect') for one in values]
    np.testing.assert_allclose(once, expected, atol=1e-12)
    torch.testing.assert_close(once.mean((1, 2)), maps.mean((1, 2)))
    assert (once.flatten(1).std(1, False) <= maps.flatten(1).std(1, False) + 1e-9).all()
    constant = maps[:, :1, :1].expand_as(maps)
    torch.testing.assert_close(blurred(constant), constant)


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
