"""dataset.official_lists: CUB's lists from its annotations, ImageNet's from its folders, ImageNetV2's names."""
from dataclasses import replace

import pytest
from conftest import shared

from dataset import official_lists, registry
from dataset.lists import read_boxes, read_labels, write_split
from wsol.errors import UserError


def test_cubs_lists_equal_the_wsol_evaluations(tmp_path, monkeypatch):
    """All 11,788 images: ids, labels, splits and boxes, to the pixel."""
    metadata = shared('metadata', 'CUB')
    sizes = {}
    for split in ('train', 'test'):
        for line in (metadata / split / 'image_sizes.txt').read_text().splitlines():
            name, width, height = line.rsplit(',', 2)
            sizes[name] = int(width), int(height)
    data = replace(registry.find_dataset('CUB', tmp_path, tmp_path), cub_root=shared('cub'))
    monkeypatch.setattr(official_lists, 'stored_size', lambda path: sizes['/'.join(path.parts[-2:])])
    official_lists.write_cub_lists(data)
    for split in ('train', 'test'):
        for file in ('image_ids.txt', 'class_labels.txt', 'image_sizes.txt', 'localization.txt'):
            ours, theirs = (root / split / file for root in (tmp_path / 'CUB', metadata))
            assert ours.read_text().split() == theirs.read_text().split(), (split, file)


FIVE = {'images.txt': ['1 a/1.jpg', '2 a/2.jpg', '3 b/3.jpg', '4 b/4.jpg', '5 b/5.jpg'],
        'image_class_labels.txt': ['1 1', '2 1', '3 2', '4 2', '5 2'],
        'train_test_split.txt': ['1 1', '2 0', '3 1', '4 0', '5 0'],
        'bounding_boxes.txt': [f'{n} {n}.0 1.0 5.0 5.0' for n in range(1, 6)]}


def lists_of_five(tmp_path, **changed):
    """What write_cub_lists makes of CUB's annotations of five images, some files changed: {split: {id: (label, box)}}."""
    data = registry.find_dataset('CUB', tmp_path / 'data', tmp_path / 'meta')
    data.cub_root.mkdir(parents=True)
    for file, lines in (FIVE | {f'{name}.txt': lines for name, lines in changed.items()}).items():
        (data.cub_root / file).write_text('\n'.join(lines) + '\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(official_lists, 'stored_size', lambda _: (100, 100))
        official_lists.write_cub_lists(data)
    by_split = {}
    for split in ('train', 'test'):
        ids, labels = read_labels(data.list_folders[split], 200)
        boxes = read_boxes(data.list_folders[split], ids)
        by_split[split] = {image_id.decode(): (label, boxes.of(index).tolist()) for index, (image_id, label)
                        in enumerate(zip(ids, labels.tolist(), strict=True))}
    return by_split


@pytest.mark.parametrize('file', FIVE)
def test_cubs_files_are_joined_by_their_ids(tmp_path, file):
    """In whatever order the lines of a file stand."""
    expected = {'train': {'a/1.jpg': (0, [[1, 1, 6, 6]]), 'b/3.jpg': (1, [[3, 1, 8, 6]])},
                'test': {'a/2.jpg': (0, [[2, 1, 7, 6]]), 'b/4.jpg': (1, [[4, 1, 9, 6]]), 'b/5.jpg': (1, [[5, 1, 10, 6]])}}
    order = [3, 0, 4, 1, 2]
    assert lists_of_five(tmp_path, **{file.removesuffix('.txt'): [FIVE[file][index] for index in order]}) == expected


def a_value(file, value):
    return file, [*FIVE[file][:4], f'5 {value}'], [f'{file}: expected ', f' for the id 5, found "{value}"']


@pytest.mark.parametrize('file, lines, words', [
    ('images.txt', [*FIVE['images.txt'], '1 a/1.jpg'], ['line 6: the id 1 is listed twice']),
    *((file, lines[:1] + lines[2:], ['no line with the id 2']) for file, lines in FIVE.items() if file != 'images.txt'),
    *(a_value('image_class_labels.txt', value) for value in ('x y', '201', '0', '1_0', '1e0', '\u0663')),
    *(a_value('train_test_split.txt', value) for value in ('x y', '2')),
    *(a_value('bounding_boxes.txt', value) for value in (
        'x y', '1.0 1.0 5.0', 'nan 1.0 5.0 5.0', '1.0 1.0 inf 5.0', '-1.0 1.0 5.0 5.0', '1_0.0 1.0 5.0 5.0',
        '\u0663 1.0 5.0 5.0'))])
def test_cubs_files_that_do_not_fit_are_named(tmp_path, file, lines, words):
    with pytest.raises(UserError) as error:
        lists_of_five(tmp_path, **{file.removesuffix('.txt'): lines})
    assert all(word in str(error.value) for word in [str(tmp_path / 'data' / 'CUB' / file), *words]), error.value
    assert not (tmp_path / 'meta').exists()


# --- ImageNet ---------------------------------------------------------------------------------------

@pytest.fixture
def imagenet_data(tmp_path):
    """The DataSet of three empty class folders, made in another order than that of their names."""
    for synset in ('n03', 'n02', 'n01'):
        (tmp_path / 'ILSVRC' / 'train' / synset).mkdir(parents=True)
        (tmp_path / 'ILSVRC' / 'train' / synset / 'x.JPEG').write_bytes(b'')
    return replace(registry.find_dataset('ILSVRC', tmp_path, tmp_path / 'meta'), num_classes=3)


def test_some_synsets_are_not_imagenet(imagenet_data):
    with pytest.raises(UserError, match='3 class folders, not 4'):
        official_lists.write_train_lists(replace(imagenet_data, num_classes=4))


def test_training_lists_follow_the_sorted_synsets(imagenet_data):
    official_lists.write_train_lists(imagenet_data)
    ids, labels = read_labels(imagenet_data.list_folders['train'], 3)
    assert ids.tolist() == [b'train/n01/x.JPEG', b'train/n02/x.JPEG', b'train/n03/x.JPEG'] and labels.tolist() == [0, 1, 2]


def test_old_names_are_left_as_they_are(tmp_path):
    data = registry.find_dataset('ILSVRC', tmp_path, tmp_path / 'meta')
    write_split(data.list_folders['val'], [('val2/0/0.jpeg', 0)])
    (data.list_folders['val'] / 'mapping.txt').write_text('0/0.jpeg, 0/a.jpeg\n')
    (tmp_path / 'val2/0').mkdir(parents=True)
    (tmp_path / 'val2/0/0.jpeg').write_bytes(b'')
    official_lists.rename(data, tmp_path / 'val2')
    assert [path.name for path in (tmp_path / 'val2/0').iterdir()] == ['0.jpeg']
