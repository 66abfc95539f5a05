"""PxAP of class pairs: from maps to metric as published, and the published protocol with resampled pairs."""
import numpy as np
import pytest
import torch
from conftest import golden

import eval_cue_location
from evaluation import pxap as class_pairs
from experiment.result_files import from_text
from reports import paper
from wsol import metrics
from wsol.annotations.cub import ClassPair
from wsol.maps import normalise, resize


def test_draws_of_the_published_protocol_are_its_figures_for_the_pairs_drawn(monkeypatch):
    """Against the evaluation itself, asked for the drawn pairs; those without images are never drawn."""
    monkeypatch.setattr(class_pairs, 'DRAWS', 40)
    rng = np.random.default_rng(1)
    counts, evaluations = rng.integers(0, 50, (6, 2, 13)), np.array([3, 0, 1, 2, 1, 1])
    counts[4, 1] = 0
    pairs = [ClassPair(0, 1, tuple(range(k))) for k in (1, 2, 2, 3, 1, 1)]
    drawn_again = class_pairs.resample_pairs(counts, pairs, evaluations)
    drawn = np.sort(np.random.default_rng(class_pairs.SEED).integers(5, size=(40, 5)), axis=1)
    missing = 0
    for number, draw in enumerate(np.flatnonzero(evaluations)[drawn]):
        summary, _ = class_pairs.summarise(counts[draw], [pairs[index] for index in draw], np.ones(5))
        for name in ('published', 'published, all pixels'):
            for key in paper.KEYS:
                actual, expected = from_text(drawn_again[name][key])[number], summary[name][key]
                assert np.isnan(actual) if expected is None else abs(actual - expected) <= 0.005 + 1e-9
                missing += expected is None
    assert missing  # some draws have no pair of a kind
    assert class_pairs.resample_pairs(counts, pairs, evaluations) == drawn_again
    monkeypatch.setattr(class_pairs, 'LARGEST', 5 * 2 * 13 - 1)
    assert class_pairs.resample_pairs(counts, pairs, evaluations) is None  # so many thresholds take too long


def test_dropped_shares_by_hand():
    """Under the lowest threshold lie 2 of 4 true pixels and 1 of 4 false ones."""
    counts = np.array([[[1, 2, 1, 0], [2, 1, 0, 1]]])
    assert class_pairs.dropped_shares(counts) == {'true': 50, 'false': 25, 'all': 37.5}


@pytest.mark.parametrize('threshold_type', metrics.THRESHOLD_TYPES)
@pytest.mark.parametrize('norm_type', ['max', 'minmax', 'clipping'])
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
    absolute_first = normalise(resize(differences.abs(), shape[1:]), norm_type)
    assert np.abs(running_pxap(absolute_first) - published).max() > 1e-4
