"""wsol.annotations.cub: the published masks, CUB's real annotations, ToyBirds' known pairs."""
import shutil
import zlib

import numpy as np
import pytest
from conftest import golden, shared
from PIL import Image

from dataset.registry import DATASETS
from wsol.annotations.cub import (
    NO_PART,
    POINT_NAMES,
    UNION_PARTS,
    CueAnnotations,
    attribute_parts,
    class_pairs,
    nearest_part,
    read_by_id,
)
from wsol.errors import UserError


def write_lists(root, reference):
    """The lists of six tiny images, laid out as CUB."""
    (root / 'attributes').mkdir(parents=True)
    (root / 'parts').mkdir()
    write = {'images.txt': enumerate(reference['files'], 1),
             'attributes/attributes.txt': enumerate(reference['attribute_names'], 1),
             'attributes/class_attribute_labels_continuous.txt': reference['class_attributes'],
             'parts/part_locs.txt': reference['part_locs']}
    for name, rows in write.items():
        (root / name).write_text(''.join(' '.join(map(str, row)) + '\n' for row in rows))


def test_cue_masks_are_the_published_ones(tmp_path):
    """All 60 masks of six tiny images in CUB's format, read from files laid out as CUB."""
    reference = golden('cue_masks')
    write_lists(tmp_path, reference)
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
    pairs = tuple(sum(len(pair.parts) == count for pair in annotations.pairs) for count in (1, 2, 3))
    assert pairs == DATASETS['CUB'].cue_pairs == (31, 64, 96)
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
    ('images.txt', 'images.txt: .*CUB_200_2011'), ('attributes/attributes.txt', 'no attributes.txt: looked for'),
    ('parts/part_locs.txt', 'part_locs.txt: not found')])
def test_missing_annotations_are_named(tmp_path, broken, words):
    write_lists(tmp_path, golden('cue_masks'))
    (tmp_path / broken).unlink()
    with pytest.raises(UserError, match=words):
        CueAnnotations(tmp_path)


# --- files are joined by their ids ----------------------------------------------------------------------------------


def shuffle_lines(path, seed=0):
    """Put a file's lines in another order, the last of them first."""
    lines = path.read_text().splitlines()
    order = np.random.default_rng(seed).permutation(len(lines) - 1).tolist()
    path.write_text(''.join(f'{line}\n' for line in [lines[-1], *(lines[index] for index in order)]))


def test_values_are_found_by_their_id_whatever_the_order(tmp_path):
    path = tmp_path / 'images.txt'
    values = {1: '001.Albatross/one.jpg', 2: '001.Albatross/two words.jpg', 10: '002.Auklet/ten.jpg', 30: 'x'}
    path.write_text(''.join(f'{key} {value}\n' for key, value in values.items()))
    assert read_by_id(path) == values
    shuffle_lines(path)
    assert read_by_id(path) == values and list(read_by_id(path)) != list(values)  # the order is the file's
    assert read_by_id(path, known=values) == values
    path.write_text('  2   a b \r\n1 c\n')
    assert read_by_id(path) == {2: 'a b', 1: 'c'}


@pytest.mark.parametrize('text, known, words', [
    ('1 a\n2 b\n01 c\n', None, ['line 3', 'the id 1', 'twice']),
    ('1 a\n7 b\n', [1, 2], ['line 2', 'the id 7', 'not in images.txt']),
    ('2 b\n', [1, 2, 3], ['no line with the id 1', '2 such ids']),
    ('1 a\n2 \n', None, ['line 2', 'found "2 "']), ('1 a\n\n3 c\n', None, ['line 2', 'found ""']),
    ('x 1\n', None, ['line 1', 'found "x 1"']), ('-1 a\n', None, ['line 1']), ('1.0 a\n', None, ['line 1']),
    *((f'{key} a\n', None, ['line 1', 'expected "id value"']) for key in ('1_0', '1e0', '\u0663', '+1', '\u00b2')),
    ('', None, ['is empty'])])
def test_ids_that_are_doubled_unknown_or_missing_are_named(tmp_path, text, known, words):
    path = tmp_path / 'list.txt'
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_by_id(path, known)
    assert str(path) in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path):
    with pytest.raises(UserError, match='nowhere.txt.*No such file.*CUB_200_2011'):
        read_by_id(tmp_path / 'nowhere.txt')
    (tmp_path / 'binary.txt').write_bytes(b'1 \xff\xfe\n')
    with pytest.raises(UserError, match='binary.txt'):
        read_by_id(tmp_path / 'binary.txt')


@pytest.mark.parametrize('shuffled', [('images.txt',), ('parts/part_locs.txt',), ('attributes/attributes.txt',),
                                      ('images.txt', 'parts/part_locs.txt', 'attributes/attributes.txt')])
def test_the_order_of_the_lines_changes_no_points_and_no_pairs(tmp_path, shuffled):
    reference = golden('cue_masks')
    write_lists(tmp_path / 'in order', reference)
    shutil.copytree(tmp_path / 'in order', tmp_path / 'shuffled')
    for seed, name in enumerate(shuffled):
        shuffle_lines(tmp_path / 'shuffled' / name, seed)
    expected, ours = CueAnnotations(tmp_path / 'in order'), CueAnnotations(tmp_path / 'shuffled')
    assert ours.pairs == expected.pairs and ours.num_classes == expected.num_classes
    for index, image_id in enumerate(reference['files'].tolist()):
        points = ours.points(image_id)
        np.testing.assert_array_equal(points, expected.points(image_id))
        rows = reference['part_locs'][reference['part_locs'][:, 0] == index + 1]
        np.testing.assert_array_equal(points[rows[:, 1].astype(int) - 1], rows[:, 2:])
        assert ours.evaluated(image_id, index) == expected.evaluated(image_id, index)


def test_image_ids_need_not_count_from_one_without_gaps(tmp_path):
    """A part of CUB keeps the ids that it has there."""
    reference = golden('cue_masks')
    write_lists(tmp_path / 'whole', reference)
    shutil.copytree(tmp_path / 'whole', tmp_path / 'part')
    for name in ('images.txt', 'parts/part_locs.txt'):
        lines = (tmp_path / 'whole' / name).read_text().splitlines()
        kept = [line for line in lines if float(line.split()[0]) in (2, 5)]
        (tmp_path / 'part' / name).write_text('\n'.join(kept) + '\n')
    whole, part = CueAnnotations(tmp_path / 'whole'), CueAnnotations(tmp_path / 'part')
    for image_id in reference['files'][[1, 4]].tolist():
        np.testing.assert_array_equal(part.points(image_id), whole.points(image_id))
    with pytest.raises(UserError, match='not in .*images.txt'):
        part.points(str(reference['files'][0]))


@pytest.mark.parametrize('line, words', [
    ('7 1 0 0 1', 'image 7, part 1'), ('2.5 1 0 0 1', 'image 2.5'), ('0 1 0 0 1', 'image 0'),
    ('2 16 0 0 1', 'image 2, part 16'), ('2 0 0 0 1', 'image 2, part 0')])
def test_points_of_unknown_images_or_parts_are_refused_by_row(tmp_path, line, words):
    write_lists(tmp_path, golden('cue_masks'))
    path = tmp_path / 'parts' / 'part_locs.txt'
    lines = path.read_text().splitlines()
    path.write_text('\n'.join([*lines[:4], line, *lines[4:]]) + '\n')
    with pytest.raises(UserError) as error:
        CueAnnotations(tmp_path)
    assert f'part_locs.txt, row 5: {words}' in str(error.value)


@pytest.mark.parametrize('line', ['1_0 1 0 0 1', '\u0661 1 0 0 1', '1 1 1_0 0 1', '1 1 \u0663 0 1'])
def test_numbers_of_points_are_plain(tmp_path, line):
    write_lists(tmp_path, golden('cue_masks'))
    path = tmp_path / 'parts' / 'part_locs.txt'
    lines = path.read_text().splitlines()
    assert lines[0].startswith('1.0 1.0 ')  # plain, too
    path.write_text('\n'.join([line, *lines[1:]]) + '\n')
    with pytest.raises(UserError, match='part_locs.txt'):
        CueAnnotations(tmp_path)


def test_real_partitions_are_the_published_ones_to_the_pixel():
    annotations, reference = CueAnnotations(shared('cub')), golden('partitions')
    for image_id, size, checksum in zip(reference['ids'].tolist(), reference['sizes'].tolist(), reference['crc32'].tolist(), strict=True):
        partition = nearest_part(annotations.points(image_id), *size, 224)
        assert zlib.crc32(np.ascontiguousarray(partition)) == checksum, image_id


def test_a_coordinate_is_divided_before_it_is_multiplied():
    """x = 166 of 332 is pixel 112 of 224. Multiplied by 224 / 332 it is 111.99999999999999, and pixel 111."""
    points = np.zeros((15, 3))
    points[POINT_NAMES.index('beak')], points[POINT_NAMES.index('back')] = [0, 166, 1], [166, 166, 1]
    partition = nearest_part(points, 332, 332, 224)
    assert partition[112, 56] == UNION_PARTS.index('head')  # as far from 0 as from 112: a tie, which the head wins
