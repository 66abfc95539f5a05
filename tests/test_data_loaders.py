"""data_loaders: metadata read right or refused with file and line; the order of training depends on the seed alone."""
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import shared
from PIL import Image

import data_loaders
from data_loaders import ImageDataset, SeededSampler
from dataset.metadata import read_boxes, read_columns, read_labels, read_mask_paths
from util import UserError


def write_split(folder, ids, labels):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'image_ids.txt').write_text('\n'.join(ids) + '\n')
    (folder / 'class_labels.txt').write_text('\n'.join(labels) + '\n')
    return folder


def test_labels_follow_the_ids_whatever_the_order(tmp_path):
    folder = write_split(tmp_path, ['b.jpg', 'a,1.jpg', 'c.jpg'], ['a,1.jpg,4', 'c.jpg,2', 'z.jpg,1', 'b.jpg,0'])
    ids, labels = read_labels(folder, 5)
    assert ids.tolist() == [b'b.jpg', b'a,1.jpg', b'c.jpg'] and labels.tolist() == [0, 4, 2]


@pytest.mark.parametrize('ids, labels, words', [
    (['a.jpg'], ['a.jpg'], ['class_labels.txt, line 1', 'path,integer', '"a.jpg"']),
    (['a.jpg', 'b.jpg'], ['a.jpg,1', 'b.jpg,x'], ['line 2', '"b.jpg,x"']),
    (['a.jpg', '', 'b.jpg'], ['a.jpg,1'], ['image_ids.txt, line 2']),
    (['a.jpg', 'b.jpg'], ['a.jpg,1', 'b.jpg,5'], ['line 2', 'label 5', '0 to 4']),
    (['a.jpg', 'b.jpg'], ['a.jpg,1', 'b.jpg,-1'], ['line 2', 'label -1']),
    (['a.jpg', 'q.jpg'], ['a.jpg,1', 'b.jpg,1'], ['image_ids.txt, line 2', 'q.jpg']),
])
def test_bad_metadata_is_refused_with_file_and_line(tmp_path, ids, labels, words):
    with pytest.raises(UserError) as error:
        read_labels(write_split(tmp_path, ids, labels), 5)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize('name, split, images, classes', [
    ('CUB', 'train', 5994, 200), ('CUB', 'val', 1000, 200), ('CUB', 'test', 5794, 200),
    ('ILSVRC', 'val', 10000, 1000), ('ILSVRC', 'test', 50000, 1000),
    ('OpenImages', 'train', 29819, 100), ('OpenImages', 'val', 2500, 100), ('OpenImages', 'test', 5000, 100),
])
def test_the_real_metadata_has_the_papers_sizes(name, split, images, classes):
    ids, labels = read_labels(shared('metadata', name, split), data_loaders.DATASETS[name].num_classes)
    assert len(ids) == len(np.unique(ids)) == images
    assert len(np.unique(labels)) == data_loaders.DATASETS[name].num_classes == classes


def test_a_long_list_stays_small_in_memory(tmp_path):
    """ImageNet's lists have 1.28 million lines of 38 bytes; a fifth of them must not take 100 bytes a line."""
    lines = 256_000
    with open(tmp_path / 'class_labels.txt', 'w') as file:
        file.writelines(f'train/n01440764/n01440764_{index:08d}.JPEG,{index % 1000}\n' for index in range(lines))
    tracemalloc.start()
    ids, labels = read_columns(tmp_path / 'class_labels.txt', 1)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ids) == lines and labels[-1, 0] == (lines - 1) % 1000
    assert kept < 60 * lines and peak < 250 * lines


def picture(path, size=(20, 10), mode='RGB'):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 200).save(path)


@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA', 'P', 'CMYK'])
def test_images_of_any_mode_become_normalised_squares(tmp_path, mode):
    picture(tmp_path / f'a.{"tif" if mode == "CMYK" else "png"}', mode=mode)
    image = data_loaders.open_image(next(tmp_path.iterdir()))
    assert data_loaders.eval_transform(8)(image).shape == (3, 8, 8)


def test_eval_transform_is_pils_bilinear_resize(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR)) / 255
    expected = (expected - data_loaders.IMAGENET_MEAN) / data_loaders.IMAGENET_STD
    np.testing.assert_allclose(data_loaders.eval_transform(24)(image).permute(1, 2, 0), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('content', [None, b'', b'<html>', 'truncated'])
def test_an_image_that_does_not_open_is_named(tmp_path, content):
    path = tmp_path / 'broken.png'
    if content == 'truncated':
        picture(path, (200, 200))
        content = path.read_bytes()[:60]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match='broken.png does not open'):
        data_loaders.open_image(path)


def drawn(dataset, seed, epoch, workers):
    sampler = SeededSampler(len(dataset), seed)
    sampler.epoch = epoch
    loader = torch.utils.data.DataLoader(dataset, 4, sampler=sampler, num_workers=workers)
    images, _, indices = (torch.cat(column) for column in zip(*loader, strict=True))
    return images, indices


def test_training_images_depend_on_seed_and_epoch_but_not_on_the_workers(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(10):
        Image.fromarray(rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(tmp_path / f'{index}.png')
    ids = np.array([f'{index}.png'.encode() for index in range(10)])
    dataset = ImageDataset(ids, np.zeros(10, int), tmp_path, data_loaders.train_transform(24, 16))
    images, order = drawn(dataset, 3, 1, 0)
    torch.rand(1)  # the global state must not matter
    again, same_order = drawn(dataset, 3, 1, 2)
    assert torch.equal(order, same_order) and torch.equal(images, again)
    assert sorted(order.tolist()) == list(range(10))
    for other in (drawn(dataset, 4, 1, 0), drawn(dataset, 3, 2, 0)):
        assert not torch.equal(other[0], images)


@pytest.mark.parametrize('split, masks', [('val', 3854), ('test', None)])
def test_the_real_mask_lists_load(split, masks):
    folder = shared('metadata', 'OpenImages', split)
    ids, _ = read_labels(folder, 100)
    paths = read_mask_paths(folder, ids)
    lines = (folder / 'localization.txt').read_text().splitlines()
    assert len(paths) == len(ids) and sum(len(own) for own, _ in paths) == len(lines) == (masks or len(lines))


@pytest.mark.parametrize('lines, words', [
    (['a.jpg,1,2,3'], ['line 1', 'path,integer,integer,integer,integer']),
    (['a.jpg,1,2,3,4', 'b.jpg,5,2,3,4'], ['line 2', 'no box']), (['a.jpg,1,2,3,4'], ['no line for b.jpg']),
])
def test_bad_boxes_are_refused_with_their_line(tmp_path, lines, words):
    (tmp_path / 'localization.txt').write_text('\n'.join(lines) + '\n')
    (tmp_path / 'image_sizes.txt').write_text('a.jpg,9,9\nb.jpg,9,9\n')
    with pytest.raises(UserError) as error:
        read_boxes(tmp_path, np.array([b'a.jpg', b'b.jpg']))
    assert all(word in str(error.value) for word in words), error.value


def test_boxes_of_an_image_stay_together_whatever_the_order(tmp_path):
    (tmp_path / 'localization.txt').write_text('b.jpg,1,1,2,2\nz.jpg,0,0,1,1\na.jpg,3,3,4,4\nb.jpg,5,5,6,6\n')
    (tmp_path / 'image_sizes.txt').write_text('z.jpg,5,5\nb.jpg,7,8\na.jpg,9,9\n')
    boxes = read_boxes(tmp_path, np.array([b'a.jpg', b'b.jpg']))
    assert boxes.of(0).tolist() == [[3, 3, 4, 4]] and boxes.of(1).tolist() == [[1, 1, 2, 2], [5, 5, 6, 6]]
    assert boxes.sizes.tolist() == [[9, 9], [7, 8]]


@pytest.mark.parametrize('line, words', [('a.jpg,m.png', ['line 1']), ('a.jpg,m.png,', ['no ignore mask of a.jpg']),
                                         ('b.jpg,m.png,i.png', ['no mask of a.jpg'])])
def test_bad_mask_lists_are_refused(tmp_path, line, words):
    (tmp_path / 'localization.txt').write_text(line + '\n')
    with pytest.raises(UserError) as error:
        read_mask_paths(tmp_path, np.array([b'a.jpg']))
    assert all(word in str(error.value) for word in words), error.value
