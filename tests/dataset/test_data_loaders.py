"""Images, transforms and loaders: one meaning of an item, and an order that only the seed decides."""
import copy
import multiprocessing
import os
import pickle
import shutil
import signal
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import several
import torch
from conftest import noise_dataset, roots_of
from PIL import Image
from torch.utils.data import DataLoader

from data_loaders import SeededBatches, make_loader
from dataset import image_files, transforms
from dataset import images as images_module
from dataset.images import ImageDataset
from dataset.registry import find_dataset
from wsol.errors import UserError


def noise(height=40, width=60):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize('size', [10, 24, 50, 75])
def test_images_are_resized_as_pil_does_to_one_grey_level_at_most(size):
    ours = transforms.eval_transform(size).resize(noise())
    expected = np.asarray(noise().resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert ours.dtype == torch.uint8 and ours.shape == expected.shape
    difference = np.abs(ours.numpy().astype(int) - expected)
    assert difference.max() <= 1 and difference.mean() < 0.1


def test_eval_transform_is_the_resized_image_normalised():
    transform = transforms.eval_transform(24)
    expected = normalised(transform.resize(noise()).permute(1, 2, 0).numpy())
    np.testing.assert_allclose(transform(noise()), expected, rtol=1e-5, atol=1e-6)
    centred = transforms.eval_transform(24, [[0.5] * 3, [0.25] * 3])(noise())
    np.testing.assert_allclose(centred, expected * [[[0.229 * 4]], [[0.224 * 4]], [[0.225 * 4]]]
                               + [[[-0.06]], [[-0.176]], [[-0.376]]], rtol=1e-5, atol=1e-6)


def normalised(pixels):
    """(S,S,3) uint8 -> (3,S,S) float32, the formula written out."""
    return ((pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)


def test_train_transform_is_one_of_the_crops_of_the_resized_image_flipped_or_not(tmp_path):
    """Exactly one of them for a seed; over many seeds every offset and both flips come about equally often."""
    dataset = noise_dataset(tmp_path, 1, (10, 8))
    resized = dataset.resized(0).permute(1, 2, 0).numpy()
    crops = {(top, left, flip): normalised(resized[top:top + 8, left:left + 8][:, ::-1 if flip else 1])
             for top in range(3) for left in range(3) for flip in (False, True)}
    places, stacked = list(crops), np.stack(list(crops.values()))
    drawn = Counter()
    for seed in range(900):
        output = dataset[0, seed][0].numpy()
        assert output.shape == (3, 8, 8) and output.dtype == np.float32
        matches = np.abs(stacked - output).max((1, 2, 3)) < 1e-5
        assert matches.sum() == 1
        drawn[places[matches.argmax()]] += 1
    assert drawn.keys() == crops.keys()
    chi_squared = sum((count - 50) ** 2 / 50 for count in drawn.values())
    assert chi_squared < 40  # 17 degrees of freedom: 0.1 % of uniform draws exceed it
    assert torch.equal(dataset[0, 7][0], dataset[0, 7][0])


def drawn(dataset, seed, epoch, workers):
    sampler = SeededBatches(len(dataset), 4, seed)
    sampler.epoch = epoch
    loader = make_loader(dataset, 4, workers, torch.device('cpu'), sampler)
    images, _, indices = (torch.cat(column) for column in zip(*loader, strict=True))
    return images, indices


def test_loader_processes_outlive_the_first_signal_to_the_group_and_end_at_the_second(tmp_path):
    """As a scheduler sends it to all processes of a training, which needs its loaders until it has saved."""
    loader = make_loader(noise_dataset(tmp_path, 12), 2, 1, torch.device('cpu'), SeededBatches(12, 2, 0))
    before, batches = set(multiprocessing.active_children()), iter(loader)
    labels = [next(batches)[1]]
    (worker,) = set(multiprocessing.active_children()) - before
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(worker.pid, number)
    labels += [more for _, more, _ in batches]
    assert sorted(torch.cat(labels).tolist()) == list(range(12))
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(20)
    assert worker.exitcode == 0


def test_a_fault_of_the_program_ends_it_though_loader_processes_are_at_work(tmp_path, capfd):
    """They outlive a first signal, and Python sends no second one: a traceback must not keep them."""
    def fail():
        loader = make_loader(noise_dataset(tmp_path, 12), 2, 2, torch.device('cpu'), SeededBatches(12, 2, 0))
        for _ in loader:
            raise ValueError('a fault of the program')
    assert several.code_of(several.fork(tmp_path / 'out', tmp_path / 'err', fail, limit=20)) == 1
    assert capfd.readouterr().err.rstrip().endswith('ValueError: a fault of the program')


def test_training_images_depend_on_seed_and_epoch_but_not_on_the_workers(tmp_path):
    dataset = noise_dataset(tmp_path, 10, (24, 16))
    images, order = drawn(dataset, 3, 1, 0)
    torch.rand(1)  # the global state must not matter
    again, same_order = drawn(dataset, 3, 1, 2)
    assert torch.equal(order, same_order) and torch.equal(images, again)
    assert sorted(order.tolist()) == list(range(10))
    for drawn_otherwise in (drawn(dataset, 4, 1, 0), drawn(dataset, 3, 2, 0)):
        assert not torch.equal(drawn_otherwise[0], images) and not torch.equal(drawn_otherwise[1], order)


@pytest.mark.parametrize('workers', [0, 2])
def test_workers_hand_over_bytes_that_become_the_items_numbers(tmp_path, monkeypatch, workers):
    """Single items, torch's plain loader and ours give the same numbers."""
    dataset, handed = noise_dataset(tmp_path), []
    dataset.transform = transforms.eval_transform(12)
    normalise = transforms.Transform.normalise
    monkeypatch.setattr(transforms.Transform, 'normalise', lambda transform, pixels: handed.append(pixels) or normalise(transform, pixels))
    batches = [images for images, _, _ in make_loader(dataset, 4, workers, torch.device('cpu'))]
    assert [(pixels.dtype, tuple(pixels.shape)) for pixels in handed] == [
        (torch.uint8, (4, 3, 12, 12)), (torch.uint8, (1, 3, 12, 12))]
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images in batches)
    items = torch.stack([dataset[index][0] for index in range(5)])
    plainly, = (images for images, _, _ in DataLoader(dataset, 5))
    assert torch.equal(torch.cat(batches), items) and torch.equal(plainly, items)


def test_a_cache_gives_the_same_pixels_and_opens_no_image_again(tmp_path, capsys, monkeypatch):
    dataset = noise_dataset(tmp_path)
    kept = copy.copy(dataset).cached(tmp_path / 'cache')
    path, = (tmp_path / 'cache').iterdir()
    out, err = capsys.readouterr()
    assert path.stat().st_size == 5 * 3 * 16 * 16 and '5 images of 16x16 pixels will take' in out and 'resizing images' in err
    expected = [dataset[index, index + 7][0] for index in range(5)]
    monkeypatch.setattr(images_module, 'open_image', None)
    for index, image in enumerate(expected):
        assert torch.equal(kept[index, index + 7][0], image)
    assert len(list(make_loader(kept, 2, 2, torch.device('cpu')))) == 3
    copy.copy(dataset).cached(tmp_path / 'cache')  # there already
    assert capsys.readouterr().out == ''


def test_a_cache_is_of_its_images_their_order_and_their_size(tmp_path):
    folder, paths = tmp_path / 'cache', set()

    def add(dataset):
        before = {path: path.stat().st_mtime_ns for path in paths if path.exists()}
        paths.add(dataset.cached(folder).cache)
        assert all(not path.exists() or path.stat().st_mtime_ns == time for path, time in before.items())
        for index in range(len(dataset)):
            assert torch.equal(dataset.resized(index), dataset.transform.resize(image_files.open_image(
                tmp_path / dataset.image_id(index))))
    whole = noise_dataset(tmp_path)
    smaller = transforms.Transform(20, 12)
    turned = ImageDataset(whole.image_ids[::-1], whole.labels[::-1], tmp_path, whole.transform)
    turned.name = 'turned'
    for dataset in (whole, turned, ImageDataset(whole.image_ids, whole.labels, tmp_path, smaller)):
        add(dataset)
    Image.new('RGB', (30, 30), 'blue').save(tmp_path / '2.png')
    add(ImageDataset(whole.image_ids, whole.labels, tmp_path, whole.transform))
    size = (tmp_path / '2.png').stat().st_size
    Image.new('RGB', (30, 30), 'white').save(tmp_path / '2.png')  # another picture in a file of the same size
    assert (tmp_path / '2.png').stat().st_size == size
    add(ImageDataset(whole.image_ids, whole.labels, tmp_path, whole.transform))
    assert len(paths) == 5 and len(list(folder.iterdir())) == 3  # those of earlier photos are gone


def test_superseded_caches_go_and_nothing_else_does(tmp_path, capsys):
    """Of three versions of a set the last stays; a file of any other form, name or size is the user's or in use."""
    folder, kept = tmp_path / 'cache', ['images_16.0123456789abcde.pixels', 'images_16.0123456789abcdeg.pixels', 'images_16.pixels',
                                        'images_17.0123456789abcdef.pixels', 'image_16.0123456789abcdef.pixels', 'b/images_16.pixels',
                                        'images_16.0123456789abcdef.pixels.bak', 'images_16.0123456789abcdef.npy', 'a/x',
                                        'images_16.0123456789ABCDEF.pixels', 'images_16x0123456789abcdef.pixels', 'images_16-pad.0123456789abcdef.pixels']
    for name in kept:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('mine')
    (folder / 'images_16.aaaaaaaaaaaaaaaa.pixels').mkdir()
    versions = []
    for colour in ('red', 'green', 'blue'):
        dataset = noise_dataset(tmp_path)
        Image.new('RGB', (30, 30), colour).save(tmp_path / '2.png')
        versions.append(dataset.cached(folder))
        out = capsys.readouterr().out
        assert ('is removed: it is of images that have changed since' in out) == (colour != 'red')
    assert [images.cache.exists() for images in versions] == [False, False, True]
    assert all((folder / name).read_text() == 'mine' for name in kept)
    # what is open is read on, in this process and in those that load its images
    for images, colour in zip(versions, (0, 1, 2), strict=True):
        assert images.resized(2)[colour].min() >= 128 and images.resized(2).sum(0).max() <= 255
        batch, = (batch for batch, *_ in make_loader(images, 5, 1, torch.device('cpu')))
        assert batch[2].argmax(0).eq(colour).all()


@pytest.mark.parametrize('change', [('dataset.images.READER', 2), ('PIL.__version__', '1.0'), ('torch.__version__', '1.0')])
def test_a_cache_is_of_how_photos_are_read(tmp_path, monkeypatch, change):
    dataset = noise_dataset(tmp_path)
    fingerprints = [dataset.pixels_fingerprint()]
    dataset.open_photo = image_files.open_upright
    fingerprints.append(dataset.pixels_fingerprint())
    monkeypatch.setattr(*change)
    fingerprints.append(dataset.pixels_fingerprint())
    assert len(set(fingerprints)) == 3


def test_sets_that_are_used_side_by_side_have_caches_of_different_names(tiny_birds, tmp_path):
    roots, transform = roots_of(tiny_birds), transforms.eval_transform(8)
    shutil.copytree(roots[1], tmp_path / 'meta')
    lists = tmp_path / 'meta/ToyBirds/train'
    (lists / 'image_ids_proxy.txt').write_text((lists / 'image_ids.txt').read_text())
    here, there = find_dataset('ToyBirds', *roots), find_dataset('ToyBirds', roots[0], tmp_path / 'meta')
    images = [here.open_split('train', transform), here.open_split('val', transform), there.open_split('train', transform),
              there.open_split('train', transform, proxy=True), there.open_split('train', transform, skip_broken=True)]
    assert len({split.name for split in images}) == 5
    assert there.open_split('train', transform, proxy=True).name == images[3].name


def test_a_cache_reaches_a_process_that_begins_anew_without_its_content(tmp_path):
    images = noise_dataset(tmp_path).cached(tmp_path / 'cache')
    content = pickle.dumps(images)
    assert len(content) < images.cache.stat().st_size
    assert torch.equal(pickle.loads(content).resized(3), images.resized(3))


def test_half_a_cache_is_made_anew_and_one_that_does_not_fit_on_the_disk_is_refused(tmp_path, monkeypatch):
    dataset = noise_dataset(tmp_path)
    path = copy.copy(dataset).cached(tmp_path / 'cache').cache
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert copy.copy(dataset).cached(tmp_path / 'cache').cache.read_bytes() == whole
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match='0.00 GB free; leave --cache out'):
        copy.copy(dataset).cached(tmp_path / 'other')


def test_the_draws_of_an_image_leave_the_global_state_alone(tmp_path):
    dataset, before = noise_dataset(tmp_path), torch.get_rng_state()
    dataset[0, 5]
    assert torch.equal(before, torch.get_rng_state())


def test_the_epoch_an_image_is_drawn_in_does_not_repeat_its_crops():
    """Over 50 epochs the seeds of one image, and of all, are all different."""
    sampler, seeds = SeededBatches(20, 6, 3), []
    for epoch in range(50):
        sampler.epoch = epoch
        order, drawn = zip(*(pair for batch in sampler for pair in batch), strict=True)
        assert sorted(order) == list(range(20))
        seeds += drawn
    assert len(set(seeds)) == 1000


@pytest.mark.parametrize('size', [1, 2, 3])
def test_no_process_trains_on_one_image_where_the_network_needs_two(monkeypatch, size):
    """A last batch that is too small joins the one before; the order and the crops stay. Elsewhere nothing changes."""
    monkeypatch.setattr('runtime.processes.size', lambda: size)
    for length in range(2 * size, 40):
        for batch_size in (2 * size, 2 * size + 1, 8, 50):
            usual, joined, shares = SeededBatches(length, batch_size, 3), SeededBatches(length, batch_size, 3, 2), []
            for rank in range(size):
                monkeypatch.setattr('runtime.processes.rank', lambda rank=rank: rank)
                shares.append(list(joined))
                assert [len(batch) for batch in shares[-1]] == [joined.counts(step)[0] for step in range(len(joined))]
                assert min(map(len, shares[-1])) >= 2
                joined.start = len(joined) - 1
                assert list(joined) == shares[-1][-1:]
                joined.start = 0
            assert len(usual) == -(-length // batch_size)
            batches = [sorted(pair for share in step for pair in share) for step in zip(*shares, strict=True)]
            monkeypatch.setattr('runtime.processes.size', lambda: 1)
            monkeypatch.setattr('runtime.processes.rank', lambda: 0)
            plain = [sorted(batch) for batch in usual]
            monkeypatch.setattr('runtime.processes.size', lambda: size)
            assert batches[:-1] == plain[:len(batches) - 1]
            assert batches[-1] == sorted(pair for batch in plain[len(batches) - 1:] for pair in batch)
            assert len(plain) - len(batches) == (0 < length % batch_size < 2 * size <= batch_size < length)
    for length, batch_size in ((2 * size - 1, 8), (8, 2 * size - 1)):
        with pytest.raises(UserError, match=f'needs {2 * size} images at a step'):
            SeededBatches(length, batch_size, 0, 2)


# --- data sets as objects -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('name, folders', [
    ('CUB', ['d/CUB/images', 'd/CUBV2', 'd/CUB/images']), ('ILSVRC', ['d/ILSVRC', 'd/ImageNetV2', 'd/ILSVRC']),
    ('ImageNet', ['d/ILSVRC', 'd/ImageNetV2', 'd/ILSVRC']), ('OpenImages', ['d/OpenImages'] * 3),
    ('ToyBirds', ['d/ToyBirds/images'] * 3)])
def test_where_a_data_sets_files_are(name, folders):
    data = find_dataset(name, 'd', 'm', 'masks')
    assert [str(data.image_folders[split]) for split in ('train', 'val', 'test')] == folders
    assert [str(data.list_folders[split]) for split in ('train', 'val', 'test')] == [
        f'm/{data.name}/{split}' for split in ('train', 'val', 'test')]
    assert data.label == data.name == {'ImageNet': 'ILSVRC'}.get(name, name)
    assert str(data.mask_folder) == f'masks/{data.name}' and data.has_masks == (name == 'OpenImages')
    for split in ('train', 'val', 'test'):
        with pytest.raises(UserError) as error:
            data.list_images(split)
        assert all(word in str(error.value) for word in (data.name, split, 'image_ids.txt', data.prepare[split]))
