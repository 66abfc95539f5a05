"""dataset.lists: lists are read right, or refused with file and line; the real ones have the registry's numbers."""
import re
import tracemalloc

import numpy as np
import pytest
from conftest import shared

from dataset.lists import read_boxes, read_columns, read_labels, read_mask_paths
from dataset.registry import DATASETS
from wsol.annotations import cub
from wsol.errors import UserError


def write_split(folder, ids, labels):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'image_ids.txt').write_text('\n'.join(ids) + '\n')
    (folder / 'class_labels.txt').write_text('\n'.join(labels) + '\n')
    return folder


def test_labels_follow_the_ids_whatever_the_order(tmp_path):
    folder = write_split(tmp_path, ['b.jpg', 'a,1.jpg', 'c.jpg'], ['a,1.jpg,4', 'c.jpg,2', 'z.jpg,1', 'b.jpg,0'])
    ids, labels = read_labels(folder, 5)
    assert ids.tolist() == [b'b.jpg', b'a,1.jpg', b'c.jpg'] and labels.tolist() == [0, 4, 2]


def says(error, words):
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize('ids, labels, words', [
    (['a.jpg'], ['a.jpg'], ['class_labels.txt, line 1', 'path,label', '"a.jpg"']),
    (['a.jpg', 'b.jpg'], ['a.jpg,1', 'b.jpg,x'], ['line 2', '"b.jpg,x"']),
    (['a.jpg', '', 'b.jpg'], ['a.jpg,1'], ['image_ids.txt, line 2']),
    (['a.jpg', 'b.jpg'], ['a.jpg,1', 'b.jpg,5'], ['line 2', 'label 5', '0 to 4']),
    (['a.jpg', 'b.jpg'], ['a.jpg,1', 'b.jpg,-1'], ['line 2', 'label -1']),
    (['a.jpg', 'q.jpg'], ['a.jpg,1', 'b.jpg,1'], ['image_ids.txt, line 2', 'q.jpg']),
    (['a.jpg', 'b.jpg'], ['a.jpg,1', 'b.jpg,2', 'a.jpg,3'], ['class_labels.txt, lines 1 and 3', 'a.jpg has label 1 and 3']),
    (['b.jpg'], ['a.jpg,1', 'b.jpg,2', 'a.jpg,3'], ['lines 1 and 3 contradict']),
    *((['a.jpg'], [f'a.jpg,{number}'], ['class_labels.txt, line 1', number]) for number in (
        '1_0', '1e0', '\u0663', '+1', '0x1', '1.5', '1 0', 'True', '\u00b2')),
])
def test_bad_metadata_is_refused_with_file_and_line(tmp_path, ids, labels, words):
    with pytest.raises(UserError) as error:
        read_labels(write_split(tmp_path, ids, labels), 5)
    says(error, words)


@pytest.mark.parametrize('name, images', [
    ('CUB', {'train': 5994, 'val': 1000, 'test': 5794}), ('ILSVRC', {'val': 10_000, 'test': 50_000}),
    ('OpenImages', {'train': 29_819, 'val': 2_500, 'test': 5_000})])
def test_the_real_metadata_has_the_published_numbers(name, images):
    for split, count in images.items():
        ids, labels = read_labels(shared('metadata', name, split), DATASETS[name].num_classes)
        assert len(ids) == len(np.unique(ids)) == count
        assert len(np.unique(labels)) == DATASETS[name].num_classes


def test_a_long_list_stays_small_in_memory(tmp_path):
    """ImageNet's lists have 1.28 million lines of 38 bytes, which must not take 100 bytes each."""
    lines = 50_000
    with open(tmp_path / 'class_labels.txt', 'w') as file:
        file.writelines(f'train/n01440764/n01440764_{index:08d}.JPEG,{index % 1000}\n' for index in range(lines))
    tracemalloc.start()
    ids, labels = read_columns(tmp_path / 'class_labels.txt', 'path,label')
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ids) == lines and labels[-1, 0] == (lines - 1) % 1000
    assert kept < 60 * lines and peak < 250 * lines


@pytest.mark.parametrize('split, masks', [('val', 3854), ('test', None)])
def test_the_real_mask_lists_load(split, masks):
    folder = shared('metadata', 'OpenImages', split)
    ids, _ = read_labels(folder, 100)
    paths = read_mask_paths(folder, ids)
    lines = (folder / 'localization.txt').read_text().splitlines()
    assert len(paths) == len(ids) and sum(len(files) for files, _ in paths) == len(lines) == (masks or len(lines))


@pytest.mark.parametrize('read, lines, words', [
    (read_boxes, ['a.jpg,1,2,3'], ['line 1', 'path,x0,y0,x1,y1']),
    (read_boxes, ['a.jpg,1,2,3,4', 'b.jpg,5,2,3,4'], ['line 2', 'no box']),
    (read_boxes, ['a.jpg,1,2,3,4'], ['no line for b.jpg']),
    (read_mask_paths, ['a.jpg,m.jpg'], ['line 1', 'path,mask.png,ignore.png']),
    (read_boxes, ['a.jpg,1,2,3,4,0.93'], ['line 1', 'path,x0,y0,x1,y1']), (read_boxes, ['a.jpg, 7, 1,2,3,4'], ['line 1']),
    (read_boxes, ['a.jpg,1,2,nan,4'], ['line 1', 'path,x0,y0,x1,y1']),
    (read_mask_paths, ['a.jpg,1,2,3,4'], ['line 1', 'path,mask.png,ignore.png']),
    (read_mask_paths, ['a.jpg,m.png,'], ['no mask of b.jpg']),
    (read_mask_paths, ['b.jpg,m.png,i.png'], ['no mask of a.jpg']),
    (read_mask_paths, ['a.jpg,m.png,i.png', 'a.jpg,n.png,j.png'], ['line 2: a.jpg has several ignore masks, i.png, j.png'])])
def test_bad_boxes_and_masks_are_refused_with_their_line(tmp_path, read, lines, words):
    (tmp_path / 'localization.txt').write_text('\n'.join(lines) + '\n')
    (tmp_path / 'image_sizes.txt').write_text('a.jpg,9,9\nb.jpg,9,9\n')
    with pytest.raises(UserError) as error:
        read(tmp_path, np.array([b'a.jpg', b'b.jpg']))
    says(error, words)


def test_two_sizes_of_one_image_contradict_each_other(tmp_path):
    (tmp_path / 'localization.txt').write_text('a.jpg,1,2,3,4\n')
    (tmp_path / 'image_sizes.txt').write_text('a.jpg,9,8\nb.jpg,1,1\na.jpg,9,8\n')
    assert read_boxes(tmp_path, np.array([b'a.jpg'])).sizes.tolist() == [[9, 8]]  # stated twice is no contradiction
    (tmp_path / 'image_sizes.txt').write_text('a.jpg,9,8\nb.jpg,1,1\na.jpg,8,9\n')
    with pytest.raises(UserError, match='image_sizes.txt, lines 1 and 3 contradict each other: a.jpg has size 9 x 8 and 8 x 9'):
        read_boxes(tmp_path, np.array([b'a.jpg']))


def test_boxes_of_an_image_stay_together_whatever_the_order(tmp_path):
    (tmp_path / 'localization.txt').write_text('b.jpg,1,1,2,2\nz.jpg,0,0,1,1\na.jpg,3,3,4,4\nb.jpg,5,5,6,6\n')
    (tmp_path / 'image_sizes.txt').write_text('z.jpg,5,5\nb.jpg,7,8\na.jpg,9,9\n')
    boxes = read_boxes(tmp_path, np.array([b'a.jpg', b'b.jpg']))
    assert boxes.of(0).tolist() == [[3, 3, 4, 4]] and boxes.of(1).tolist() == [[1, 1, 2, 2], [5, 5, 6, 6]]
    assert boxes.sizes.tolist() == [[9, 9], [7, 8]]


WRITTEN = {'plain': str, 'byte order mark': '\ufeff{}'.format, 'Windows': lambda text: text.replace('\n', '\r\n'),
           'blank lines at the end': '{}\n \r\n'.format, 'no line end': str.rstrip,
           'spaces around commas': lambda text: text.replace(',', ' ,  '),
           'tabs': lambda text: text.replace(',', '\t'),
           'numbers of pandas': lambda text: re.sub(r',(\d+)(?=[,\n])', r',\1.0', text),
           'all of it': lambda text: '\ufeff' + text.replace(',', ', ').replace('\n', '\r\n') + '\r\n'}


@pytest.mark.parametrize('how', WRITTEN)
def test_lists_are_read_alike_however_a_program_writes_them(tmp_path, how):
    texts = {'image_ids.txt': 'c/b.png\na1.jpg\n', 'class_labels.txt': 'c/b.png,4\na1.jpg,0\n',
             'image_sizes.txt': 'c/b.png,30,40\na1.jpg,20,10\n', 'localization.txt': 'a1.jpg,1,2,3,4\nc/b.png,5,6,7,8\n'}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(WRITTEN[how](text).encode())
    ids, labels = read_labels(tmp_path, 5)
    boxes = read_boxes(tmp_path, ids)
    assert ids.tolist() == [b'c/b.png', b'a1.jpg'] and labels.tolist() == [4, 0]
    assert boxes.corners.tolist() == [[5, 6, 7, 8], [1, 2, 3, 4]] and boxes.sizes.tolist() == [[30, 40], [20, 10]]
    (tmp_path / 'localization.txt').write_bytes(WRITTEN[how]('c/b.png,m 1.png,i.png\na1.jpg,n.PNG\nc/b.png,m2.png,\n').encode())
    assert read_mask_paths(tmp_path, ids) == [(['m 1.png', 'm2.png'], 'i.png'), (['n.PNG'], '')]


def test_corners_between_pixels_are_cut_off_with_a_warning_and_labels_are_not(tmp_path, capsys):
    write_split(tmp_path, ['a.jpg'], ['a.jpg,1.5'])
    (tmp_path / 'localization.txt').write_text('a.jpg,1.0,2.9,12.5,4.\n')
    (tmp_path / 'image_sizes.txt').write_text('a.jpg,20,20\n')
    assert read_boxes(tmp_path, np.array([b'a.jpg'])).corners.tolist() == [[1, 2, 12, 4]]
    assert 'localization.txt: 1 boxes lie between pixels' in capsys.readouterr().err
    with pytest.raises(UserError, match='line 1: expected "path,label"'):
        read_labels(tmp_path, 5)


@pytest.mark.parametrize('how', ['byte order mark', 'Windows', 'blank lines at the end', 'no line end'])
def test_lists_of_cub_are_read_alike_too(tmp_path, how):
    (tmp_path / 'images.txt').write_bytes(WRITTEN[how]('1 a/1.jpg\n2 a/2.jpg\n').encode())
    (tmp_path / 'numbers.txt').write_bytes(WRITTEN[how]('1 2\n3 4\n').encode())
    assert cub.read_by_id(tmp_path / 'images.txt') == {1: 'a/1.jpg', 2: 'a/2.jpg'}
    assert cub._numbers(tmp_path / 'numbers.txt', 2, 'two').tolist() == [[1, 2], [3, 4]]
