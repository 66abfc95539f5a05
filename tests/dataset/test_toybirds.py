"""dataset.toybirds: the same bytes, CUB's layout, known differences, whole or not at all."""
from collections import Counter

import cv2
import numpy as np
import pytest
from conftest import files_below, roots_of

from dataset import painter, toybirds
from dataset.registry import DATASETS
from wsol.annotations.cub import UNION_PARTS, CueAnnotations
from wsol.errors import UserError

COUNTS = {'train': 1, 'val': 0, 'test': 0}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (('a', 1), ('b', 1), ('c', 2)):
        toybirds.paint_dataset(tmp_path / name / 'data', tmp_path / name / 'meta', COUNTS, seed)
    a, b, c = (files_below(tmp_path / name) for name in 'abc')
    assert a == b
    images = [name for name in a if name.endswith('.jpg')]
    assert len(images) == len(toybirds.class_colours())
    assert not any(a[name] == c[name] for name in images)


def test_families_differ_in_1_2_and_3_parts_and_a_cue_belongs_to_one_class():
    classes, birds = toybirds.class_colours(), DATASETS['ToyBirds']
    different = Counter(sum(first[part] != second[part] for part in UNION_PARTS)
                        for index, (_, first) in enumerate(classes) for _, second in classes[index + 1:])
    assert tuple(different[count] for count in (1, 2, 3)) == birds.cue_pairs and len(classes) == birds.num_classes
    for _, cues in toybirds.FAMILIES:
        for part, colours in cues.items():
            for colour in colours.split():
                assert sum(colouring[part] == colour for _, colouring in classes) == 1


def test_the_annotations_read_as_cubs_and_agree_with_the_colours(tiny_birds):
    root = roots_of(tiny_birds)[0] / 'ToyBirds'
    classes = toybirds.class_colours()
    for pair in CueAnnotations(root).pairs:
        first, second = classes[pair.first][1], classes[pair.second][1]
        differing = [index for index, part in enumerate(UNION_PARTS) if first[part] != second[part]]
        assert list(pair.parts) == differing


def test_masks_points_and_boxes_agree(tiny_birds):
    root = roots_of(tiny_birds)[0] / 'ToyBirds'
    annotations = CueAnnotations(root)
    boxes = np.loadtxt(root / 'bounding_boxes.txt')[:, 1:]
    for row, line in enumerate((root / 'images.txt').read_text().splitlines()):
        image_id = line.split()[1]
        files = [(root / folder / image_id).with_suffix(suffix) for folder, suffix in (
            ('images', '.jpg'), ('part_masks', '.png'), ('segmentations', '.png'))]
        image, parts, bird = (cv2.imread(file, cv2.IMREAD_UNCHANGED) for file in files)
        assert image.shape[:2] == parts.shape
        np.testing.assert_array_equal(bird > 0, parts > 0)
        ys, xs = np.nonzero(parts)
        np.testing.assert_array_equal(boxes[row], [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1])
        for name, (x, y, visible) in zip(toybirds.POINT_NAMES, annotations.points(image_id), strict=True):
            if visible:
                assert parts[int(y), int(x)] == painter.PART_OF[name]


def test_a_parts_pixels_have_its_colour():
    name, colours = toybirds.class_colours()[0]
    image, mask, *_ = painter.paint(colours, np.random.default_rng(4))
    for index, part in enumerate(UNION_PARTS, 1):
        if (mask == index).sum() < 50:
            continue
        mean = image[mask == index].mean(0)
        # light scales a colour: compare what is left when brightness is taken out, and a little of it
        distance = {colour: np.abs(mean / mean.sum() - np.array(rgb) / sum(rgb)).sum() + np.abs(mean - rgb).sum() / 400
                    for colour, rgb in painter.PALETTE.items()}
        assert min(distance, key=distance.get) == colours[part], (name, part)


def test_a_seed_gives_the_bird_that_it_always_gave(monkeypatch):
    """If this must change, toybirds.VERSION must too. (Another OpenCV may round otherwise.)"""
    monkeypatch.setattr(painter, 'SUPERSAMPLING', 4)  # which tests lower
    picture = painter.paint(toybirds.class_colours()[0][1], np.random.default_rng(4))
    assert picture.image.shape == (208, 192, 3) and picture.clutter.max() == 14
    np.testing.assert_allclose(picture.image.mean((0, 1)), [181.7, 162.6, 136.8], atol=0.2)
    np.testing.assert_allclose(np.bincount(picture.parts.ravel()), [32105, 1838, 730, 849, 746, 1649, 463, 1556], rtol=0.02)


def test_pose_side_and_size_vary():
    colours = toybirds.class_colours()[0][1]
    birds = [painter.paint(colours, np.random.default_rng(seed)) for seed in range(40)]
    sides = Counter(bool(points[toybirds.POINT_NAMES.index('left eye'), 2]) for _, _, points, _ in birds)
    assert min(sides.values()) > 8
    areas = [(mask > 0).mean() for _, mask, *_ in birds]
    assert max(areas) > 1.8 * min(areas)


def test_an_interrupted_painting_leaves_nothing_and_is_painted_again(tmp_path, monkeypatch):
    painted, paint = [], toybirds.paint

    def stops(colours, rng):
        painted.append(1)
        if len(painted) == 5:
            raise KeyboardInterrupt
        return paint(colours, rng)

    monkeypatch.setattr(toybirds, 'paint', stops)
    monkeypatch.setattr(toybirds, 'IMAGES_PER_CLASS', COUNTS)
    with pytest.raises(KeyboardInterrupt):
        toybirds.paint_dataset(tmp_path / 'data', tmp_path / 'meta')
    assert not list(tmp_path.rglob('*.jpg'))
    toybirds.paint_dataset(tmp_path / 'data', tmp_path / 'meta')
    before = len(painted)
    toybirds.paint_dataset(tmp_path / 'data', tmp_path / 'meta')
    assert len(painted) == before


def test_a_foreign_folder_is_not_touched(tmp_path):
    mine = tmp_path / 'data' / 'ToyBirds' / 'mine.txt'
    mine.parent.mkdir(parents=True)
    mine.write_text('x')
    with pytest.raises(UserError, match='move both away'):
        toybirds.paint_dataset(tmp_path / 'data', tmp_path / 'meta')
    assert mine.read_text() == 'x'
