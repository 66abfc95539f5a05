"""Boxes of score maps: the WSOL evaluation's own test values, and an independent slow reference in plain loops."""
import numpy as np
import pytest
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from dataset.lists import read_boxes
from wsol import metrics

# --- values of the WSOL evaluation's unit tests (clovaai/wsolevaluation, evaluation_test.py) ---------------

FIFTHS = np.arange(0, 1, 0.2)
UNIMODAL = np.array([[0, 0, 0, 0, 0], [0, .4, .4, .4, .6], [0, .4, 1, .8, .6], [0, .4, .4, .4, .6]])
MULTIMODAL = np.array([[.4, 0, .2, .2, .2], [.4, .4, 0, .4, 0], [0, 0, 0, .4, 0], [1, .6, .8, .2, .2]])


def largest_boxes(score_map, thresholds):
    image = (score_map * 255).astype(np.uint8)
    return [metrics.boxes_above(image, int(threshold * image.max()))[0].tolist() for threshold in thresholds]


def test_the_largest_contours_boxes_are_the_wsol_evaluations():
    assert largest_boxes(np.zeros((3, 3)), FIFTHS) == [[0, 0, 0, 0]] * 5
    assert largest_boxes(UNIMODAL, FIFTHS) == [[1, 1, 4, 3], [1, 1, 4, 3], [2, 1, 4, 3], [2, 2, 4, 3], [2, 2, 3, 3]]
    assert largest_boxes(MULTIMODAL, FIFTHS) == [[0, 0, 4, 3], [0, 0, 2, 2], [0, 3, 3, 3], [2, 3, 3, 3], [0, 3, 1, 3]]


def test_ious_are_the_wsol_evaluations():
    assert (metrics.box_iou(np.zeros((3, 4)), np.zeros((5, 4))) == 1).all()
    boxes = np.array([[1, 1, 3, 3], [4, 4, 5, 5]])
    np.testing.assert_array_equal(metrics.box_iou(boxes, boxes), np.eye(2))
    assert metrics.box_iou([[1, 2, 5, 6]], [[3, 1, 4, 5]])[0, 0] == pytest.approx(8 / 27)


@pytest.mark.parametrize('box, size, new, expected', [
    ((1, 2, 4, 3), (10, 20), (35, 10), (3, 1, 14, 1)), ((1, 2, 1, 2), (3, 3), (3, 3), (1, 2, 1, 2))])
def test_scaled_boxes_are_the_wsol_evaluations(box, size, new, expected):
    assert metrics.scale_boxes([box], size, new).tolist() == [list(expected)]


@pytest.mark.parametrize('name, split, boxes, sizes', [
    ('CUB', 'val', [[(176, 136, 459, 291)], [(44, 183, 426, 254)], [(437, 42, 834, 422)]],
     [(560, 419), (576, 432), (999, 587)]),
    ('CUB', 'test', [[(60, 27, 385, 331)], [(14, 112, 402, 298)], [(33, 53, 284, 448)]],
     [(500, 335), (500, 347), (500, 470)]),
    ('ILSVRC', 'val', [[(156, 163, 318, 230)], [(143, 142, 394, 248)], [(28, 94, 485, 303)]], [(500, 375)] * 3),
    ('ILSVRC', 'test', [[(111, 108, 441, 193)], [(45, 49, 499, 162), (2, 69, 437, 207)], [(38, 19, 385, 373)]],
     [(500, 375)] * 3),
])
def test_boxes_and_sizes_of_the_metadata_are_the_wsol_evaluations(name, split, boxes, sizes):
    folder = shared('metadata', name, split)
    ids = np.array([line.encode() for line in (folder / 'image_ids.txt').read_text().splitlines()])
    known = read_boxes(folder, ids)
    assert [[tuple(box) for box in known.of(index).tolist()] for index in range(3)] == boxes
    assert [tuple(size) for size in known.sizes[:3].tolist()] == sizes
    owner = np.repeat(np.arange(len(ids)), np.diff(known.starts))
    assert (known.corners >= 0).all() and (known.corners[:, 2:] < known.sizes[owner]).all()


# --- a slow reference: components by scipy, their outlines by walking around them ----------------------------

FOUR = [(0, 1), (1, 0), (0, -1), (-1, 0)]
EIGHT = [(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)]  # clockwise on the screen


def components(mask, connectivity):
    """The connected pixels of a mask, a set for each component. connectivity: 1 by four neighbours, 2 by eight."""
    labels, count = ndimage.label(mask, ndimage.generate_binary_structure(2, connectivity))
    return [set(map(tuple, np.argwhere(labels == number).tolist())) for number in range(1, count + 1)]


def outline_area(pixels):
    """Area of the polygon through the outline's pixels, found by walking around a component clockwise (Moore)."""
    start = min(pixels)
    if len(pixels) == 1:
        return 0.0
    path, here, back = [start], start, 4  # we came from the left: nothing lies there
    first = None
    while True:
        for turn in range(1, 9):
            direction = (back + turn) % 8
            there = here[0] + EIGHT[direction][0], here[1] + EIGHT[direction][1]
            if there in pixels:
                break
        if (here, there) == first:
            break
        first = first or (here, there)
        path.append(there)
        here, back = there, (direction + 5) % 8 if direction % 2 else (direction + 6) % 8
    area = sum(first[0] * second[1] - first[1] * second[0] for first, second in zip(path, path[1:], strict=False))
    return abs(area) / 2


def box_of(pixels, shape):
    rows, columns = zip(*pixels, strict=True)
    return (min(columns), min(rows), min(max(columns) + 1, shape[1] - 1), min(max(rows) + 1, shape[0] - 1))


def slow_boxes(image, level):
    """Boxes of all contours, as a set, and those that the largest one may have (several may be equally large)."""
    mask = np.pad(image > level, 1)  # a frame of background
    boxes_seen, largest = set(), (-1, set())
    for pixels in components(mask, 2):
        inside = {(row - 1, column - 1) for row, column in pixels}
        box = box_of(inside, image.shape)
        boxes_seen.add(box)
        area = outline_area(inside)
        largest = (area, {box}) if area > largest[0] else (area, largest[1] | {box}) if area == largest[0] else largest
    for pixels in components(~mask, 1):
        if (0, 0) not in pixels:  # a hole: its contour runs over the pixels around it
            around = {(row + down - 1, column + right - 1) for row, column in pixels for down, right in FOUR
                      if mask[row + down, column + right]}
            boxes_seen.add(box_of(around, image.shape))
    return boxes_seen or {(0, 0, 0, 0)}, largest[1] or {(0, 0, 0, 0)}


def agrees(image):
    for level in {0, 1, int(image.max()) // 2, max(0, int(image.max()) - 1), int(image.max())}:
        ours = metrics.boxes_above(image, level)
        every, largest = slow_boxes(image, level)
        assert {tuple(box) for box in ours.tolist()} == every, (image, level)
        assert tuple(ours[0].tolist()) in largest, (image, level)


SHAPES = {
    'constant': np.full((9, 9), 7), 'zero': np.zeros((9, 9)), 'one pixel': np.pad([[9]], 4),
    'corner pixel': np.pad([[9]], ((0, 8), (0, 8))), 'frame': np.pad(np.zeros((5, 5)), 2, constant_values=9),
    'ring': np.pad(np.pad(np.zeros((3, 3)), 1, constant_values=9), 3), 'chess': np.indices((9, 9)).sum(0) % 2 * 9,
    'dots': np.kron(np.ones((4, 4)), [[9, 0], [0, 0]]), 'touching': np.pad(np.full((9, 3), 9), ((0, 0), (6, 0))),
    'line': np.pad(np.full((1, 9), 9), ((4, 4), (0, 0))),
}


@pytest.mark.parametrize('name', SHAPES)
def test_boxes_of_adversarial_maps_agree_with_the_slow_reference(name):
    agrees(np.ascontiguousarray(SHAPES[name], dtype=np.uint8))


@settings(max_examples=200)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(2, 9), st.integers(2, 9)), elements=st.integers(0, 4)))
def test_boxes_of_random_maps_agree_with_the_slow_reference(image):
    agrees(image)


@settings(max_examples=60)
@given(hnp.arrays(np.float64, (8, 8), elements=st.integers(0, 20).map(lambda value: value / 20)),
       hnp.arrays(np.int64, (3, 4), elements=st.integers(0, 7)), st.sampled_from([0.1, 0.01, 0.001]))
def test_best_overlaps_agree_with_a_loop_over_all_thresholds(score_map, corners, interval):
    truth = np.concatenate([np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1)
    thresholds = np.arange(0, 1, interval)
    every, largest = metrics.best_ious(score_map, truth, thresholds)
    image = (score_map * 255).astype(np.uint8)
    for index in range(0, len(thresholds), max(1, len(thresholds) // 20)):
        level = int(thresholds[index] * np.max(image))
        boxes, candidates = slow_boxes(image, level)

        def overlap(boxes):
            best = []
            for x0, y0, x1, y1 in boxes:
                for u0, v0, u1, v1 in truth.tolist():
                    mine = {(x, y) for x in range(x0, x1 + 1) for y in range(y0, y1 + 1)}
                    theirs = {(x, y) for x in range(u0, u1 + 1) for y in range(v0, v1 + 1)}
                    best.append(len(mine & theirs) / len(mine | theirs))
            return max(best)
        assert every[index] == pytest.approx(overlap(boxes), abs=1e-12)
        if len(candidates) == 1 and len(boxes) == 1:
            assert largest[index] == pytest.approx(overlap(candidates), abs=1e-12)
