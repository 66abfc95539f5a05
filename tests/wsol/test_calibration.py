"""wsol.metrics.calibration: the expected calibration error, against a loop and where it is known."""
import numpy as np
import pytest

from wsol.metrics.calibration import BINS, calibration


def by_a_loop(confidence, correct):
    error = 0.0
    for number in range(BINS):
        chosen = [(p, right) for p, right in zip(confidence, correct, strict=True)
                  if number / BINS < p <= (number + 1) / BINS or number == p == 0]
        if chosen:
            mean, accuracy = np.mean(chosen, axis=0)
            error += len(chosen) / len(confidence) * abs(mean - accuracy)
    return 100 * error


@pytest.mark.parametrize('seed', range(3))
def test_the_error_agrees_with_a_loop_and_lies_in_its_interval(seed):
    rng = np.random.default_rng(seed)
    confidence = np.concatenate([rng.random(300), [0.0, 1.0, 1 / 15, 0.2]])
    correct = rng.random(304) < confidence ** 2
    result = calibration(confidence, correct)
    assert result['error'] == pytest.approx(by_a_loop(confidence, correct))
    assert 0 < result['low'] < result['high'] < 100 and sum(result['images']) == 304
    for number, (images, mean) in enumerate(zip(result['images'], result['confidence'], strict=True)):
        assert (mean is None) == (images == 0)
        assert mean is None or 100 * number / BINS <= mean <= 100 * (number + 1) / BINS


def test_a_network_that_says_how_often_it_is_right_has_no_error():
    confidence = np.repeat([0.75, 0.5], 8)
    correct = np.tile([True, True, True, False, True, True, False, True, True, False, True, False, False, True, True, False], 1)
    assert correct[:8].mean() == 0.75 and correct[8:].mean() == 0.5
    assert calibration(confidence, correct)['error'] == pytest.approx(0)
    sure = calibration(np.ones(10), np.zeros(10, bool))
    assert sure['error'] == sure['low'] == sure['high'] == 100 and sure['images'][-1] == 10


def test_one_image_and_any_order():
    assert calibration(np.array([0.5]), np.array([True]))['error'] == pytest.approx(50)
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(50), rng.random(50) < 0.5
    order = rng.permutation(50)
    assert calibration(confidence, correct)['error'] == pytest.approx(calibration(confidence[order], correct[order])['error'])
