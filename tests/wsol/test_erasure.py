"""wsol.metrics.erasure: ROAD's imputation against a plain dense solve, and by its properties; areas; coarse noise."""
import numpy as np
import pytest
import torch
from conftest import generators
from hypothesis import given, settings
from hypothesis import strategies as st

from wsol import metrics


def dense(image, kept):
    """The same system, written out pixel by pixel: each erased pixel is the weighted mean of its neighbours."""
    height, width = kept.shape
    system, known = np.eye(kept.size), image.reshape(len(image), -1).T.copy()  # a kept pixel is itself
    for y, x in np.argwhere(~kept):
        row = y * width + x
        weights = {(y + down, x + right): (2 if down * right == 0 else 1) for down in (-1, 0, 1) for right in (-1, 0, 1)
                   if (down or right) and 0 <= y + down < height and 0 <= x + right < width}
        for (below, beside), weight in weights.items():
            system[row, below * width + beside] = -weight / sum(weights.values())
        known[row] = 0
    return np.linalg.solve(system, known).T.reshape(image.shape)


@settings(max_examples=30)
@given(height=st.integers(2, 7), width=st.integers(2, 7), channels=st.integers(1, 4), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_imputation_is_the_dense_solution(height, width, channels, share, seed):
    rng = np.random.default_rng(seed)
    image, kept = rng.normal(size=(channels, height, width)), rng.random((height, width)) < share
    kept[rng.integers(height), rng.integers(width)] = True
    filled = metrics.impute(image, kept)
    np.testing.assert_allclose(filled, dense(image, kept), atol=1e-10)
    np.testing.assert_array_equal(filled[:, kept], image[:, kept])
    assert filled.min() >= image[:, kept].min() - 1e-9 and filled.max() <= image[:, kept].max() + 1e-9  # means


@pytest.mark.parametrize('hole', [(slice(2, 6), slice(3, 9)), (slice(1, 11), slice(1, 11)), (slice(4, 5), slice(1, 2))])
def test_linear_images_are_reproduced_where_a_frame_is_kept(hole):
    y, x = np.mgrid[:12, :12]
    image, kept = np.stack([2.0 * x - y, np.ones((12, 12)), 0.5 * y + 3]), np.ones((12, 12), bool)
    kept[hole] = False
    np.testing.assert_allclose(metrics.impute(np.where(kept, image, 99), kept), image, atol=1e-9)


def test_all_and_nothing():
    image = np.random.default_rng(0).normal(size=(3, 5, 5))
    np.testing.assert_array_equal(metrics.impute(image, np.ones((5, 5), bool)), image)
    np.testing.assert_array_equal(metrics.impute(image, np.zeros((5, 5), bool)), np.zeros_like(image))


def test_erased_pixels_get_seeded_noise_and_kept_ones_none():
    images, rank = torch.randn(3, 3, 16, 16), torch.stack([torch.randperm(256) for _ in range(3)])
    once, again, other = (metrics.erase(images, rank, (0.3, 0.5, 1.0), 'road', generators(3, seed)) for seed in (0, 0, 9))
    kept = (rank >= torch.tensor([[76], [128], [256]])).view(3, 1, 16, 16).expand_as(images)
    assert torch.equal(once, again) and torch.equal(once[kept], images[kept]) and once.dtype == images.dtype
    assert not (once == other)[~kept].any()
    noise = once[2]  # nothing is kept: zeros and noise
    assert 0.007 < noise.std() < 0.013 and abs(noise.mean()) < 0.002
    torch.testing.assert_close(once[0], torch.from_numpy(metrics.impute(images[0].double().numpy(), kept[0, 0].numpy())).float(),
                               atol=0.06, rtol=0)


def test_several_threads_give_what_one_gives():
    images, rank = torch.randn(6, 3, 24, 24), torch.stack([torch.randperm(576) for _ in range(6)])
    one = metrics.erase(images, rank, 0.7, 'road', generators(6))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        several = metrics.erase(images, rank, 0.7, 'road', generators(6))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, several)


def test_the_area_is_the_trapezoid():
    p = np.random.default_rng(1).random((7, 7))
    expected = [np.interp(np.linspace(0, 1, 100001), [0, *metrics.ERASE_RATIOS, 1], row).mean() for row in p]
    np.testing.assert_allclose(metrics.area_over_erased(p[:, 0], p[:, 1:6], p[:, 6]), expected, atol=1e-5)
    np.testing.assert_allclose(metrics.area_over_erased(np.ones(2), np.ones((2, 5)), np.ones(2)), 1)


def test_coarse_noise_is_smooth_and_of_the_generator():
    noise, again = (metrics.coarse_noise((70, 90), generators(4)) for _ in range(2))
    assert noise.shape == (4, 70, 90) and torch.equal(noise, again) and len({one.sum().item() for one in noise}) == 4
    assert noise.diff(dim=1).abs().max() < 0.11  # ten pixels from cell to cell
    assert noise.std((1, 2)).min() > 0.1
