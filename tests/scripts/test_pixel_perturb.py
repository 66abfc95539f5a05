"""Remove-and-classify with a known answer: a network that looks at one row of pixels, and maps that rank it first or last."""
from math import comb

import numpy as np
import pytest
import torch

import eval_pixel_perturb
from evaluation.map_sources import MapBatch
from wsol import metrics

SIDE, KNOWN = 10, 10  # of the 100 pixels of an image, the network looks at the 10 of one row
ROW = 4


class LooksAtOneRow(torch.nn.Module):
    """Says class 1 as long as anything is left of the pixels in ROW, else class 0; it computes the others in vain."""

    def forward(self, images):
        left = images[:, :, ROW].abs().sum((1, 2))
        return torch.stack([torch.full_like(left, 1e-6), left], 1)

    def probabilities(self, scores):
        return scores.softmax(1)


def classify_erased(row_values, count, seed=7, batch_size=40, seen=None, **options):
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
        return MapBatch(model(batch).softmax(1), maps[indices][:, None])
    loader = [(images[part], torch.ones(len(part), dtype=torch.int64), part) for part in indices.split(batch_size)]
    return eval_pixel_perturb.classify_erased(model, loader, source, torch.device('cpu'), seed, 'float32', batch_size, **options)


def test_batches_are_filled_across_the_ratios():
    """Ten batches of seven and one of two: each image is classified eleven times, the erased ones as if one by one."""
    seen, again = [], []
    together = classify_erased([0.5] * SIDE, 72, batch_size=7, seen=seen, names=('top', 'random'))
    one_by_one = classify_erased([0.5] * SIDE, 72, batch_size=1, seen=again, names=('top', 'random'))
    for batched, plain in zip(together, one_by_one, strict=True):
        for name in ('intact', 'top', 'random'):
            np.testing.assert_array_equal(batched[name], plain[name])
    assert all(0 < together[0][name].sum() < 360 for name in ('top', 'random'))
    assert sorted(map(len, seen)) == sorted([7] * 11 * 10 + [2, 7, 7, 6]) and len(again) == 11 * 72
    by_content = [sorted(image.sum().item() for batch in batches for image in batch) for batches in (seen, again)]
    assert by_content[0] == pytest.approx(by_content[1])


def survival(erased):
    """How probable it is that not all known pixels are among so many erased at random."""
    total = SIDE * SIDE
    return 1 - comb(total - KNOWN, erased - KNOWN) / comb(total, erased) if erased >= KNOWN else 1.0


def test_a_map_that_ranks_the_decisive_pixels_first_has_a_ratio_of_zero():
    """On a network whose answer hangs on 10 % of the pixels, all of which the map ranks above the others."""
    correct, _ = classify_erased([2.0] * SIDE, 200)
    intact, top, random = (correct[name] for name in ('intact', 'top', 'random'))
    assert intact.all() and intact.shape == (200,) and top.shape == random.shape == (200, 5)
    assert not top.any()
    records = eval_pixel_perturb.ratios(correct, 'top', seed=0)
    assert [record['R'] for record in records] == [0.0] * 5
    assert [(record['R_low'], record['R_high']) for record in records] == [(0.0, 0.0)] * 5


def test_a_map_that_ranks_the_decisive_pixels_last_has_a_known_ratio():
    """After 90 % are erased they alone are left, and the answer is right; at random it is as often as combinatorics say."""
    count = 400
    correct, _ = classify_erased([-1.0] * SIDE, count)
    assert correct['top'].all()
    records = eval_pixel_perturb.ratios(correct, 'top', seed=0)
    for record, ratio in zip(records, metrics.ERASE_RATIOS, strict=True):
        expected = survival(int(ratio * SIDE * SIDE))
        spread = 4 * (expected * (1 - expected) * count) ** 0.5
        assert abs(record['correct_random'] - count * expected) <= max(spread, 1)
        assert record['correct_top'] == count and record['R'] == count / record['correct_random']
    assert records[0]['R'] == records[1]['R'] == 1.0  # to lose all 10 at random is out of the question
    assert records[4]['R'] > 1.3  # a third of the images loses them with 90 %


def test_a_map_of_noise_is_worth_as_much_as_random_erasure():
    """R is 1 but for the sampling: the differences image by image sum to 0 within four of their deviations."""
    noise = torch.rand(600, SIDE, generator=torch.Generator().manual_seed(1))
    correct, _ = classify_erased(noise, 600)
    difference = correct['top'].astype(int) - correct['random']
    assert (np.abs(difference.sum(0)) <= 4 * np.sqrt(np.abs(difference).sum(0))).all() and difference.any()


def test_more_orders_leave_the_published_outcomes_as_they_are():
    plain, more = (classify_erased([0.5] * SIDE, 50, batch_size=20, names=names)[0] for names in (('top', 'random'), eval_pixel_perturb.ORDERS))
    for name, outcomes in plain.items():
        np.testing.assert_array_equal(outcomes, more[name])
    assert [outcomes.shape for outcomes in more.values()] == [(50,), *[(50, 5)] * 4, (50,)]


def test_areas_are_known_where_the_answer_is():
    """Deletion takes the decisive row first, so p falls at the first 10 %; insertion puts it in first, so p rises there."""
    correct, p = classify_erased([2.0] * SIDE, 60)
    assert correct['low'].all() and not correct['top'].any() and not correct['blank'].any()
    np.testing.assert_allclose(p['low'], p['intact'][:, None].repeat(5, 1))
    floor, intact = p['blank'], p['intact']
    summary, by_image = eval_pixel_perturb.areas(p, seed=0)
    areas = {name: np.array(text.split(), float) for name, text in by_image.items()}
    np.testing.assert_allclose(areas['deletion'], 0.05 * intact + 0.95 * floor, atol=6e-4)
    np.testing.assert_allclose(areas['insertion'], 0.95 * intact + 0.05 * floor, atol=6e-4)
    for name, (value, low, high) in summary.items():
        assert value == pytest.approx(areas[name].mean()) and low - 1e-9 <= value <= high + 1e-9
    assert summary['deletion'][0] < summary['coarse noise'][0] < summary['insertion'][0]


def test_coarse_noise_depends_on_the_image_alone():
    once, again = (classify_erased([2.0] * SIDE, 30, batch_size=size)[1]['coarse'] for size in (30, 7))
    np.testing.assert_array_equal(once, again)
    other = classify_erased([2.0] * SIDE, 30, seed=8)[1]['coarse']
    assert (once != other).any() and len(np.unique(once, axis=0)) > 20
