"""The items of research/bench.py: several ways to compute the same, ours, the plain one, and a floor."""
import tempfile
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
from runtime import screen
from wsol import attribution_maps, metrics
from wsol.annotations.cub import ClassPair, CueAnnotations
from wsol.attribution.gradients import VERSIONS_AT_A_TIME
from wsol.attribution.registry import SamplingSettings
from wsol.speed.depthwise import keep_depthwise_in_float32

ITEMS = {}
COPIES = 8     # of an image, for SmoothGrad; as many points on the path of integrated gradients
PHOTOS = 256   # for the loaders
BATCH = 32     # the larger one
SMALL = 'resnet18'  # on half-size images, where many forwards of large batches would take minutes
PHOTO = 500, 375  # pixels, as many as most of CUB's have


class Item(NamedTuple):
    """A row of the table. count: the images of a call, by which its time is divided."""
    name: str
    ways: dict            # 'plain', 'float32', 'auto', 'floor' -> a function to call
    count: int = 1
    compare: Callable = lambda results: ''  # {way: its result} -> words: how far ours differs from the plain way's


def item(function):
    """Register a generator function (bench) -> Items as a part of the benchmark, under its name."""
    ITEMS[function.__name__] = function
    return function


# --- training ------------------------------------------------------------------------------------------------


def _step(bench, model, images, labels, loss, way):
    optimiser = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True)

    def step():
        with bench.casting(way):
            value = loss(model.train(), images, labels)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    return step


def _cheapest_loss(model, images, labels):
    """The floor: no head but a linear layer on the pooled features."""
    pooled = model.extract_features(images).mean((2, 3)).float()
    return F.cross_entropy(F.linear(pooled, model.conv_last.weight[:, :, 0, 0], model.conv_last.bias), labels)


@item
def training(bench, count=8):
    plain, labels = bench.network(plain=True), bench.labels(count)
    ways = {'plain': _step(bench, plain, bench.images(count, plain=True), labels,
                           lambda model, *batch: model.loss(*batch)[0], 'float32')}
    for way in bench.precisions:
        ways[way] = _step(bench, bench.network(), bench.images(count), labels,
                          lambda model, *batch: model.loss(*batch)[0], way)
    ways['floor'] = _step(bench, bench.network(), bench.images(count), labels, _cheapest_loss, bench.best)
    yield Item(f'training, batch of {count}', ways, count)


@item
def depthwise(bench, count=8, architecture='efficientnet_b0'):
    """Trainings in bfloat16 on a CPU: the depthwise convolutions in bfloat16 too (plain), or in float32 (auto)."""
    if not bench.all:
        return
    if bench.device.type != 'cpu' or 'auto' not in bench.precisions:
        screen.say('depthwise: left out, because it needs a CPU that computes in bfloat16')
        return
    models = {way: bench.network(architecture=architecture) for way in ('plain', 'float32', 'auto')}
    keep_depthwise_in_float32(models['auto'])
    images, labels = bench.images(count), bench.labels(count)
    ways = {way: _step(bench, model, images, labels, lambda model, *batch: model.loss(*batch)[0],
                       'float32' if way == 'float32' else 'auto') for way, model in models.items()}
    yield Item(f'training, batch of {count}, {architecture}, plain in bfloat16 alone', ways, count)


# --- maps and the two protocols ------------------------------------------------------------------------------


def _without_graph(bench, way, call, *args):
    with bench.casting(way), torch.inference_mode():
        return call(*args)


@item
def maps(bench):
    for count, num_classes in ((1, 200), (BATCH, 200), *(((8, 10), (8, 200), (8, 1000)) if bench.all else ())):
        plain, model = bench.network(num_classes, plain=True), bench.network(num_classes, folded=True)
        same, images, labels = bench.images(count, plain=True), bench.images(count), bench.labels(count, num_classes)
        ways = {'plain': partial(plain_ways.maps, plain, same, labels)}
        ways |= {way: partial(_without_graph, bench, way, attribution_maps, model, images, labels)
                 for way in bench.precisions}
        ways['floor'] = partial(_without_graph, bench, bench.best, model.extract_features, images)
        yield Item(f'jointll maps, batch of {count}, {num_classes} classes', ways, count)


def _eleven_times(model, images):
    return [model(images) for _ in range(11)]


@item
def remove_and_classify(bench):
    known = SimpleNamespace(image_id=str)
    more = ((8, 10, SMALL), (8, 1000, SMALL)) if bench.all else ()
    for count, num_classes, architecture in ((1, 200, None), (BATCH, 200, SMALL), *more):
        plain = bench.network(num_classes, plain=True, architecture=architecture)
        model = bench.network(num_classes, folded=True, architecture=architecture)
        size, labels = bench.size // 2 if architecture else bench.size, bench.labels(count, num_classes)
        same, images = bench.images(count, True, size), bench.images(count, False, size)
        batch = [(images, labels, torch.arange(count))]
        ways = {'plain': partial(plain_ways.erasure, plain, same, labels)}
        for way, precision in bench.precisions.items():
            source = NetworkMaps(known, model, 'jointll', precision)
            ways[way] = partial(eval_pixel_perturb.classify_erased, model, batch, source, bench.device, 0, precision,
                                count, more=False)
        ways['floor'] = partial(_without_graph, bench, bench.best, _eleven_times, model, images)
        name = f'remove-and-classify, batch of {count}, {num_classes} classes'
        yield Item(name + (f', {architecture} on half-size images' if architecture else ''), ways, count)


# --- cue localization ----------------------------------------------------------------------------------------


class MadeUp(CueAnnotations):
    """Part points at random, a tenth of them invisible, and pairs of class 0 and others that differ in two parts; every
    bird is a disc."""
    root = Path('nowhere')

    def __init__(self, count, num_pairs):
        rng = np.random.default_rng(0)
        self.made = np.concatenate([rng.random((count, 15, 2)) * PHOTO, rng.random((count, 15, 1)) > 0.1], 2)
        parts = rng.permuted(np.tile(np.arange(7), (num_pairs, 1)), axis=1)[:, :2].tolist()
        self.pairs = [ClassPair(0, 1 + number, tuple(pair)) for number, pair in enumerate(parts)]

    def points(self, image_id):
        return self.made[int(image_id)]

    def photo_size(self, image_id):
        return PHOTO

    def object_mask(self, image_id, size):
        axis = (np.arange(size) / size - 0.5) ** 2
        return axis[:, None] + axis < 0.1


class NoiseImages(ImageDataset):
    """Noise in place of photos."""

    def resized(self, index):
        size = self.transform.resize_size
        return torch.from_numpy(np.random.default_rng(index).integers(0, 256, (3, size, size), dtype=np.uint8))


def some_cues(bench, count, num_pairs):
    """The CueImages of made-up annotations: images of class 0, each of which is part of all pairs."""
    ids, transform = np.arange(count).astype('S'), transforms.eval_transform(bench.size)
    images = NoiseImages(ids, np.zeros(count, int), 'nowhere', transform)
    return eval_cue_location.CueImages(images, MadeUp(count, num_pairs))


def differing_counts(results):
    """Words: how far our histograms differ from the plain way's."""
    plain, words = np.pad(results['plain'], ((0, 0), (0, 0), (1, 1))), []
    for way in results.keys() - {'plain', 'floor'}:
        ours = results[way][0][0]['parts'].copy()
        ours[..., [0, -1]] = 0  # numpy counts nothing there
        moved = 100 * np.abs(ours - plain).sum() / 2 / plain.sum()
        words.append(f'{way}: {moved:.3f} % of the pixels are counted in another bin than by the plain way')
    return '; '.join(sorted(words))


@item
def cue_localization(bench):
    plain, model, edges = bench.network(plain=True), bench.network(folded=True), metrics.bin_edges('log')
    for count, pairs in ((4, 1), (4, 4), *(((8, 1),) if bench.all else ())):
        cues = some_cues(bench, count, pairs)
        ways = {'plain': partial(plain_ways.cue_histograms, plain, cues, edges, bench.device)}
        for way, precision in bench.precisions.items():
            source = NetworkMaps(cues, model, 'jointll', precision)
            ways[way] = partial(eval_cue_location.fill_histograms, make_loader(cues, 8, 0, bench.device),
                                [eval_cue_location.Scoring(source, 'clipping', edges)], bench.device)
        ways['floor'] = partial(_without_graph, bench, bench.best, model, bench.images(count))
        yield Item(f'cue localization, {count} images x {pairs} pairs', ways, count, differing_counts)


# --- loading -------------------------------------------------------------------------------------------------


def _epoch(loader):
    return [len(labels) for _, labels, _ in loader]


@item
def loading(bench):
    """One worker, an epoch at a time: photos of 500x375 pixels."""
    count = PHOTOS
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for index in range(count):
            small = Image.fromarray(rng.integers(0, 256, (38, 50, 3), dtype=np.uint8))  # as smooth as a photo
            small.resize(PHOTO).save(Path(folder) / f'{index}.jpg', quality=92)
        ids = np.array([f'{index}.jpg'.encode() for index in range(count)])
        kinds = [ImageDataset(ids, np.zeros(count, int), folder, transforms.train_transform(256, 224)) for _ in 'ab']
        kinds[1].cached(folder)
        loaders = {'plain': DataLoader(plain_ways.TrainingImages(kinds[0]), num_workers=1, persistent_workers=True,
                                       batch_sampler=SeededBatches(count, 64, 0))}
        for name, images in zip(('float32', 'cache'), kinds, strict=True):
            loaders[name] = make_loader(images, 64, 1, bench.device, SeededBatches(count, 64, 0))
        ways = {name: partial(_epoch, loader) for name, loader in loaders.items()}
        yield Item('loading, one worker', {way: ways[way] for way in ('plain', 'float32')}, count)
        yield Item('loading, one worker, --cache', {'plain': ways['plain'], 'float32': ways['cache']}, count)


# --- captum and torchcam -------------------------------------------------------------------------------------


@item
def gradients(bench):
    try:
        from captum.attr import InputXGradient, IntegratedGradients, LayerGradCam, NoiseTunnel, Saliency
        from torchcam.methods import LayerCAM
    except ImportError:
        screen.say('gradients: left out, because captum or torchcam is not installed')
        return
    model, images, labels = bench.network(), bench.images(1), bench.labels(1)
    leaf, last = images.clone().requires_grad_(), model.get_submodule(model.stages[-1])
    settings, memory = SamplingSettings(COPIES, integrated_grad_nr_iter=COPIES), VERSIONS_AT_A_TIME

    def layer_cam():
        with LayerCAM(model, target_layer=last) as extract:
            return extract(labels.tolist(), model(images.clone().requires_grad_()), normalized=False)
    theirs = {
        'smooth_grad': lambda: NoiseTunnel(Saliency(model)).attribute(
            leaf, target=labels, nt_type='smoothgrad', nt_samples=COPIES, nt_samples_batch_size=memory, stdevs=0.5),
        'backprop': lambda: Saliency(model).attribute(leaf, labels),
        'grad_cam': lambda: LayerGradCam(model, last).attribute(images, labels)}
    if bench.all:
        theirs |= {'integrated_gradients': lambda: IntegratedGradients(model).attribute(
                       leaf, target=labels, n_steps=COPIES, internal_batch_size=memory),
                   'input_x_gradient': lambda: InputXGradient(model).attribute(leaf, labels),
                   'layer_cam': layer_cam}
    for method, call in theirs.items():
        ways = {'plain': call, 'float32': partial(attribution_maps, model, images, labels, method, settings=settings)}
        yield Item(f'{method} beside {"torchcam" if method == "layer_cam" else "captum"}', ways)
