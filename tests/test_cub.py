"""wsol.cub: the published masks, CUB's real annotations, ToyBirds' known pairs."""
import numpy as np
import pytest
from conftest import golden, shared
from PIL import Image

from util import UserError
from wsol.cub import NO_PART, POINT_NAMES, UNION_PARTS, CueAnnotations, attribute_parts, class_pairs, nearest_part


def test_cue_masks_are_the_published_ones(tmp_path):
    """All 60 masks of six tiny images in CUB's format, read from files laid out as CUB."""
    reference = golden('cue_masks')
    (tmp_path / 'attributes').mkdir()
    (tmp_path / 'parts').mkdir()
    write = {'images.txt': enumerate(reference['files'], 1),
             'attributes/attributes.txt': enumerate(reference['attribute_names'], 1),
             'attributes/class_attribute_labels_continuous.txt': reference['class_attributes'],
             'parts/part_locs.txt': reference['part_locs']}
    for name, rows in write.items():
        (tmp_path / name).write_text(''.join(' '.join(map(str, row)) + '\n' for row in rows))
    for index, (file, size) in enumerate(zip(reference['files'], reference['sizes'], strict=True)):
        for folder, picture, suffix in (('segmentations', reference[f'segmentation_{index}'], '.png'),
                                        ('images', np.zeros(tuple(size[::-1]), np.uint8), '.jpg')):
            path = (tmp_path / folder / file).with_suffix(suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    annotations = CueAnnotations(tmp_path)
    pairs = {(pair.first + 1, pair.second + 1): pair for pair in annotations.pairs}
    masks = np.unpackbits(reference['masks_packed'], axis=1).reshape(-1, 224, 224).astype(bool)
    for (number, first, second, image, has_mask), published in zip(reference['evaluations'], masks, strict=True):
        pair, image_id = pairs[first, second], reference['files'][image]
        assert len(pair.parts) == number
        shown = annotations.pairs.index(pair) in annotations.evaluated(image_id, pair.first)
        assert shown == bool(has_mask)
        ours = np.isin(annotations.partition(image_id, 224), pair.parts) & annotations.object_mask(image_id, 224)
        if has_mask:
            np.testing.assert_array_equal(ours, published)


def test_cub_has_the_papers_class_pairs_and_evaluations():
    annotations = CueAnnotations(shared('cub'))
    assert [sum(len(pair.parts) == k for pair in annotations.pairs) for k in (1, 2, 3)] == [31, 64, 96]
    classes = {label for pair in annotations.pairs for label in pair[:2]}
    assert len(classes) == 89
    lines = shared('metadata', 'CUB', 'test', 'class_labels.txt').read_text().splitlines()
    images = [(image_id, int(label)) for image_id, label in (line.rsplit(',', 1) for line in lines)]
    assert sum(label in pair[:2] for _, label in images for pair in annotations.pairs) == 11039
    evaluated = [len(annotations.evaluated(*image)) for image in images]
    assert sum(count > 0 for count in evaluated) == 2579
    assert sum(evaluated) == 11019  # in 20 of the 11,039 no differing part is visible


@pytest.mark.parametrize('name, parts', [
    ('has_bill_shape::hooked_seabird', {'head'}), ('has_upper_tail_color::grey', {'tail'}),
    ('has_eye_color::red', {'head'}), ('has_wing_pattern::solid', {'wing'}), ('has_size::large_(16_-_32_in)', set()),
    ('has_shape::long-legged-like', set()), ('has_underparts_color::blue', set()),
])
def test_attributes_name_their_parts(name, parts):
    assert {UNION_PARTS[index] for index in attribute_parts(name)} == parts


def test_pairs_come_by_number_of_parts_then_by_class():
    names = [f'has_{part}_color::red' for part in UNION_PARTS]
    present = np.zeros((4, 7))
    present[1, 0] = present[2, :2] = present[3, :5] = 100
    pairs = class_pairs(names, present)
    assert [(pair.first, pair.second, len(pair.parts)) for pair in pairs] == [
        (0, 1, 1), (1, 2, 1), (0, 2, 2), (2, 3, 3)]  # 0-3 and 1-3 differ in 5 and 4


def test_nearest_part_is_the_brute_force_partition():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(0, 90, (15, 2)), rng.random((15, 1)) < 0.7], axis=1)
    ours = nearest_part(points, 120, 90, 30)
    names = ('beak', 'crown', 'forehead', 'left eye', 'nape', 'right eye', 'throat')
    head = [POINT_NAMES.index(name) for name in names]
    seeds = [(UNION_PARTS.index('head'), [i for i in head if points[i, 2]])]
    for name in ('back', 'belly', 'breast', 'tail', 'left leg', 'right leg', 'left wing', 'right wing'):
        index = POINT_NAMES.index(name)
        seeds.append((UNION_PARTS.index(name.split()[-1]), [index] if points[index, 2] else []))
    for row in range(30):
        for column in range(30):
            best = (np.inf, None)
            for part, members in seeds:
                if members:
                    x = int(np.mean([points[i, 0] * 30 / 120 for i in members]))
                    y = int(np.mean([points[i, 1] * 30 / 90 for i in members]))
                    best = min(best, ((column - x) ** 2 + (row - y) ** 2, part), key=lambda pair: pair[0])
            assert ours[row, column] == best[1]


def test_without_visible_points_there_is_no_part():
    assert (nearest_part(np.zeros((15, 3)), 10, 10, 4) == NO_PART).all()


@pytest.mark.parametrize('broken, words', [
    ('images.txt', ['images.txt', 'CUB_200_2011']), ('attributes/attributes.txt', ['attributes.txt', 'looked for']),
    ('parts/part_locs.txt', ['part_locs.txt', 'not found']),
])
def test_missing_annotations_are_named(tiny_birds, tmp_path, broken, words):
    import shutil
    from pathlib import Path
    root = tmp_path / 'ToyBirds'
    source = Path(next(flag.split('=')[1] for flag in tiny_birds if 'data_root' in flag)) / 'ToyBirds'
    shutil.copytree(source, root)
    (root / broken).unlink()
    with pytest.raises(UserError) as error:
        CueAnnotations(root)
    assert all(word in str(error.value) for word in words)


def test_malformed_annotations_are_named_with_their_line(tiny_birds, tmp_path):
    import shutil
    from pathlib import Path
    root = tmp_path / 'ToyBirds'
    source = Path(next(flag.split('=')[1] for flag in tiny_birds if 'data_root' in flag)) / 'ToyBirds'
    shutil.copytree(source, root)
    lines = (root / 'images.txt').read_text().splitlines()
    (root / 'images.txt').write_text('\n'.join([*lines[:3], 'nonsense', *lines[4:]]))
    with pytest.raises(UserError, match='line 4'):
        CueAnnotations(root)
