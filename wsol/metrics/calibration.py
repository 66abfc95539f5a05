"""Calibration: are 80 % of the images that are classified with p = 0.8 classified correctly?

Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017: 15 bins of equal width.
"""
import numpy as np

from wsol.metrics.statistics import bootstrap_sums, interval

BINS = 15


def bins_of(confidence, correct):
    """(N,3,BINS): for each image, in the bin of its confidence, 1, its confidence, and 1 if it is right; 0 elsewhere.

    confidence: (N,), p of the predicted class. correct: (N,) bool.
    """
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # the upper edge belongs to a bin
    rows = np.zeros((len(place), 3, BINS))
    rows[np.arange(len(place)), :, place] = np.stack([np.ones(len(place)), confidence, correct], 1)
    return rows


def expected_calibration_error(sums):
    """ECE in percent: how far confidence and accuracy lie apart in a bin, as a mean over the images.

    sums: (...,3,BINS), the sum of bins_of over the images. The error is biased: with few images in a bin, chance alone
    makes it larger than 0.
    """
    images, confidence, correct = np.moveaxis(sums, -2, 0)
    return 100 * np.abs(confidence - correct).sum(-1) / images.sum(-1)


def calibration(confidence, correct, seed=0):
    """What a result says of calibration: the error in percent, its 95 % interval over the images, and for each bin the
    images, their mean confidence and accuracy in percent (None for an empty bin)."""
    images, *sums = rows = bins_of(confidence, correct).sum(0)
    # the bootstrap rounds confidences to three decimals: many images are then equal, which takes less memory
    draws = bootstrap_sums(bins_of(np.round(confidence, 3), correct).reshape(-1, 3 * BINS), seed).reshape(-1, 3, BINS)
    low, high = interval(expected_calibration_error(draws))
    of_bins, accuracy = ([100 * float(total / number) if number else None for total, number in zip(
        values, images, strict=True)] for values in sums)
    return {'error': float(expected_calibration_error(rows)), 'low': low, 'high': high,
            'images': images.astype(int).tolist(), 'confidence': of_bins, 'accuracy': accuracy}
