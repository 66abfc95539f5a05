"""The items of research/bench.py: several ways to compute the same, ours, the plain one, and a floor."""
import tempfile
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader

import eval_cue_location
import eval_pixel_perturb
from data_loaders import SeededBatches, make_loader
from dataset import transforms
from dataset.images import ImageDataset
from evaluation.map_sources import NetworkMaps
from research import plain_ways
from wsol import attribution_maps, metrics
from wsol.annotations.cub import ClassPair, CueAnnotations, read_by_id
from wsol.contexts import keep_depthwise_in_float32

PHOTOS = 256   # for the loaders
PHOTO = 500, 375  # pixels, as many as most of CUB's have


class Item(NamedTuple):
    """A row of the table. count: the images of a call, by which its time is divided."""
    name: str
    ways: dict            # 'plain', 'float32', 'auto', 'floor' -> a function to call
    count: int = 1
    compare: Callable = lambda results: ''  # {way: its result} -> words: how far ours differs from the plain way's


# --- training ------------------------------------------------------------------------------------------------


def _cheapest_loss(model, images, labels):
    """The floor: no head but a linear layer on the pooled features."""
    pooled = model.extract_features(images).mean((2, 3)).float()
    return F.cross_entropy(F.linear(pooled, model.conv_last.weight[:, :, 0, 0], model.conv_last.bias), labels)


def _step(bench, way, count, num_classes, loss=lambda model, *batch: model.loss(*batch)[0]):
    model = bench.network(num_classes, plain=way == 'plain')
    if way == 'auto' and bench.device.type == 'cpu':
        keep_depthwise_in_float32(model)
    images, labels = bench.images(count, way == 'plain'), bench.labels(count, num_classes)
    optimiser = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True)

    def step():
        with bench.casting(way):
            value = loss(model.train(), images, labels)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    return step


def training(bench):
    """In bfloat16 on a CPU, depthwise convolutions compute in float32, as in main.py."""
    for size in bench.sizes((bench.batch, 200)):
        ways = {way: _step(bench, way, *size) for way in ('plain', *bench.precisions)}
        ways['floor'] = _step(bench, bench.best, *size, _cheapest_loss)
        yield Item('training, batch of {}, {} classes'.format(*size), ways, size[0])


# --- maps and the two protocols ------------------------------------------------------------------------------


def _without_graph(bench, way, call, *args):
    with bench.casting(way), torch.inference_mode():
        return call(*args)


def maps(bench):
    for count, num_classes in bench.sizes((1, 200), (bench.batch, 200), more=((8, 10), (8, 1000), (32, 200))):
        plain, model = bench.network(num_classes, plain=True), bench.network(num_classes)
        same, images, labels = bench.images(count, plain=True), bench.images(count), bench.labels(count, num_classes)
        ways = {'plain': partial(plain_ways.maps, plain, same, labels)}
        ways |= {way: partial(_without_graph, bench, way, attribution_maps, model, images, labels)
                 for way in bench.precisions}
        ways['floor'] = partial(_without_graph, bench, bench.best, model.extract_features, images)
        yield Item(f'jointll maps, batch of {count}, {num_classes} classes', ways, count)
        if bench.gpu:
            ways = {'plain': partial(_without_graph, bench, 'plain', plain, same), 'floor': ways['floor']} | {
                way: partial(_without_graph, bench, way, model, images) for way in bench.precisions}
            yield Item(f'accuracy, batch of {count}, {num_classes} classes', ways, count)


def remove_and_classify(bench):
    known = SimpleNamespace(image_id=str)
    for count, num_classes in bench.sizes((1, 200), more=((8, 10), (8, 1000))):
        plain, model = bench.network(num_classes, plain=True), bench.network(num_classes)
        same, images, labels = bench.images(count, plain=True), bench.images(count), bench.labels(count, num_classes)
        batch = [(images, labels, torch.arange(count))]
        ways = {'plain': partial(plain_ways.erasure, plain, same, labels)}
        for way, precision in bench.precisions.items():
            source = NetworkMaps(known, model, 'jointll', precision)
            ways[way] = partial(eval_pixel_perturb.classify_erased, model, batch, source, bench.device, 0, precision,
                                count, names=('top', 'random'))
        ways['floor'] = partial(_without_graph, bench, bench.best, lambda ours, batch: [ours(batch) for _ in range(11)],
                                model, images)
        yield Item(f'remove-and-classify, batch of {count}, {num_classes} classes', ways, count)


# --- cue localization ----------------------------------------------------------------------------------------


class WithoutPhotos(CueAnnotations):
    """CUB's annotations without its photos and segmentations: all photos have one size, and every bird is a disc."""

    def photo_size(self, image_id):
        return PHOTO

    def object_mask(self, image_id, size):
        axis = (np.arange(size) / size - 0.5) ** 2
        return axis[:, None] + axis < 0.1


class MadeUp(WithoutPhotos):
    """Part points at random, a tenth of them invisible, and pairs of class 0 and others that differ in two parts."""
    root = Path('nowhere')

    def __init__(self, count, num_pairs):
        rng = np.random.default_rng(0)
        self.made = np.concatenate([rng.random((count, 15, 2)) * PHOTO, rng.random((count, 15, 1)) > 0.1], 2)
        parts = rng.permuted(np.tile(np.arange(7), (num_pairs, 1)), axis=1)[:, :2].tolist()
        self.pairs = [ClassPair(0, 1 + number, tuple(pair)) for number, pair in enumerate(parts)]

    def points(self, image_id):
        return self.made[int(image_id)]


class NoiseImages(ImageDataset):
    """Noise in place of photos."""

    def resized(self, index):
        size = self.transform.resize_size
        return torch.from_numpy(np.random.default_rng(index).integers(0, 256, (3, size, size), dtype=np.uint8))


def some_cues(bench, count, num_pairs):
    """CueImages of noise, with annotations of some CUB images whose classes are in pairs, or with made-up ones."""
    ids, labels, annotations = np.arange(count).astype('S'), np.zeros(count, int), MadeUp(count, num_pairs)
    if bench.cub:
        annotations = WithoutPhotos(bench.cub)
        asked = {cls for pair in annotations.pairs for cls in pair[:2]}
        names = [name for name in read_by_id(Path(bench.cub) / 'images.txt').values() if int(name[:3]) - 1 in asked]
        ids = np.array(names[::-(-len(names) // count)]).astype('S')
        labels = np.array([int(name[:3]) - 1 for name in ids])
    images = NoiseImages(ids, labels, 'nowhere', transforms.eval_transform(bench.size))
    return eval_cue_location.CueImages(images, annotations)


def differing_counts(results):
    """Words: how far our histograms differ from the plain way's."""
    plain, words = np.pad(results['plain'], ((0, 0), (0, 0), (1, 1))), []
    for way in results.keys() - {'plain', 'floor'}:
        ours = results[way][0][0]['parts'][0].copy()
        ours[..., [0, -1]] = 0  # numpy counts nothing there
        moved = 100 * np.abs(ours - plain).sum() / 2 / plain.sum()
        words.append(f'{way}: {moved:.3f} % of the pixels are counted in another bin than by the plain way')
    return '; '.join(sorted(words))


def cue_localization(bench):
    plain, model, edges = bench.network(plain=True), bench.network(), metrics.bin_edges('log')
    for count, pairs in ((bench.batch, 4),) if bench.gpu else ((4, 4), *((4, 1), (8, 1)) * bench.all):
        cues = some_cues(bench, count, pairs)
        count = len(cues)
        ways = {'plain': partial(plain_ways.cue_histograms, plain, cues, edges, bench.device)}
        for way, precision in bench.precisions.items():
            source = NetworkMaps(cues, model, 'jointll', precision)
            loader = make_loader(cues, max(8, bench.batch), 0, bench.device)
            ways[way] = partial(eval_cue_location.fill_histograms, loader,
                                [eval_cue_location.Scoring(source, 'clipping', edges)], bench.device)
        ways['floor'] = partial(_without_graph, bench, bench.best, model, bench.images(count))
        name = f'cue localization, {count} images' + (", CUB's pairs" if bench.cub else f' x {pairs} pairs')
        yield Item(name, ways, count, differing_counts)


# --- loading -------------------------------------------------------------------------------------------------


def loading(bench):
    """One worker, an epoch at a time: photos of 500x375 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for index in range(PHOTOS):
            small = Image.fromarray(rng.integers(0, 256, (38, 50, 3), dtype=np.uint8))  # as smooth as a photo
            small.resize(PHOTO).save(Path(folder) / f'{index}.jpg', quality=92)
        ids = np.array([f'{index}.jpg'.encode() for index in range(PHOTOS)])
        kinds = [ImageDataset(ids, np.zeros(PHOTOS, int), folder, transforms.Transform(256, 224)) for _ in 'ab']
        kinds[1].cached(folder)
        loaders = {'plain': DataLoader(plain_ways.TrainingImages(kinds[0]), num_workers=1, persistent_workers=True,
                                       batch_sampler=SeededBatches(PHOTOS, 64, 0))}
        for name, images in zip(('float32', 'cache'), kinds, strict=True):
            loaders[name] = make_loader(images, 64, 1, bench.device, SeededBatches(PHOTOS, 64, 0))
        ways = {name: partial(deque, loader, 0) for name, loader in loaders.items()}  # an epoch, not kept
        for call in ways.values():
            call()  # starts the loader's process, which lives on, before anything is profiled
        yield Item('loading, one worker', {way: ways[way] for way in ('plain', 'float32')}, PHOTOS)
        yield Item('loading, one worker, --cache', {'plain': ways['plain'], 'float32': ways['cache']}, PHOTOS)


ITEMS = {part.__name__: part for part in (training, maps, remove_and_classify, cue_localization, loading)}
