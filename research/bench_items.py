"""What bench.py measures: each item's ways of doing the same, ours beside the plain one and beside a floor."""
import statistics
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
from dataset import image_files
from dataset.images import ImageDataset
from dataset.registry import DATASETS
from evaluation.map_sources import NetworkMaps
from research import plain_ways
from runtime import screen
from wsol import attribution_maps, metrics
from wsol.annotations.cub import ClassPair, CueAnnotations, read_by_id
from wsol.attribution.gradients import VERSIONS_AT_A_TIME
from wsol.attribution.registry import SamplingSettings
from wsol.speed.depthwise import keep_in_float32

ITEMS = {}
COPIES = 8     # of an image, for SmoothGrad; as many points on the path of integrated gradients
PHOTOS = 256   # for the loaders
SMALL = 'resnet18'  # on half-size images, where many forwards of large batches would take minutes
PHOTO = 500, 375  # pixels, as many as most of CUB's have
CUB = DATASETS['CUB'].cues


class Item(NamedTuple):
    """What is measured: ways that do the same. count: what a figure is divided by, the images of a call."""
    name: str
    ways: dict            # 'plain', 'float32', 'auto', 'floor' -> what to call
    count: int = 1
    unit: str = 'ms'
    rounds: int | None = None  # None: as many as are asked
    compare: Callable = lambda results: ''  # {way: what it gave} -> how far ours is from the plain way's, in words


def item(function):
    """Make a generator function (bench) -> Items a part of the benchmark, under its name."""
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
def depthwise(bench, count=8, other='efficientnet_b0'):
    """Trainings in bfloat16 on a CPU: the depthwise convolutions in bfloat16, too (plain), or in float32 (auto)."""
    if bench.device.type != 'cpu' or 'auto' not in bench.precisions:
        screen.say('depthwise: this device does not compute in bfloat16, or is no CPU: left out')
        return
    models = {way: bench.network(other=other) for way in ('plain', 'float32', 'auto')}
    keep_in_float32(models['auto'])
    images, labels = bench.images(count), bench.labels(count)
    ways = {way: _step(bench, model, images, labels, lambda model, *batch: model.loss(*batch)[0],
                       'float32' if way == 'float32' else 'auto') for way, model in models.items()}
    yield Item(f'training, batch of {count}, {other}, plain in bfloat16 alone', ways, count)


# --- maps and the two protocols ------------------------------------------------------------------------------


def _without_graph(bench, way, call, *args):
    with bench.casting(way), torch.inference_mode():
        return call(*args)


@item
def maps(bench):
    for count, num_classes in ((1, 200), (8, 10), (8, 200), (8, 1000), (32, 200)):
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
    for count, num_classes, other in ((1, 200, None), (8, 10, SMALL), (8, 1000, SMALL), (32, 200, SMALL)):
        plain, model = (bench.network(num_classes, other=other, **{kind: True}) for kind in ('plain', 'folded'))
        size, labels = bench.size // 2 if other else bench.size, bench.labels(count, num_classes)
        same, images = bench.images(count, True, size), bench.images(count, False, size)
        batch = [(images, labels, torch.arange(count))]
        ways = {'plain': partial(plain_ways.erasure, plain, same, labels)}
        for way, precision in bench.precisions.items():
            source = NetworkMaps(known, model, 'jointll', precision)
            ways[way] = partial(eval_pixel_perturb.classify_erased, model, batch, source, bench.device, 0, precision,
                                count)
        ways['floor'] = partial(_without_graph, bench, bench.best, _eleven_times, model, images)
        name = f'remove-and-classify, batch of {count}, {num_classes} classes'
        if other:
            yield Item(f'{name}, {other} on half-size images, one round', ways, count, rounds=1)
        else:
            yield Item(name, ways, count)


# --- cue localization ----------------------------------------------------------------------------------------


class Annotations(CueAnnotations):
    """CUB's; where its photos are missing all have PHOTO pixels, and where its segmentations are, a bird is a disc."""

    def photo_size(self, image_id):
        return super().photo_size(image_id) if (self.root / 'images').is_dir() else PHOTO

    def object_mask(self, image_id, size):
        if (self.root / 'segmentations').is_dir():
            return super().object_mask(image_id, size)
        axis = (np.arange(size) / size - 0.5) ** 2
        return axis[:, None] + axis < 0.1


class MadeUp(Annotations):
    """Part points at random, and pairs of class 0 and others that differ in two parts."""
    root = Path('nowhere')

    def __init__(self, count, num_pairs):
        rng = np.random.default_rng(0)
        self.made = np.concatenate([rng.random((count, 15, 2)) * PHOTO, np.ones((count, 15, 1))], 2)
        parts = rng.permuted(np.tile(np.arange(7), (num_pairs, 1)), axis=1)[:, :2].tolist()
        self.pairs = [ClassPair(0, 1 + number, tuple(own)) for number, own in enumerate(parts)]

    def points(self, image_id):
        return self.made[int(image_id)]


class NoiseImages(ImageDataset):
    """Noise in the place of the photos that are not there."""

    def resized(self, index):
        if (self.folder / self.image_id(index)).is_file():
            return super().resized(index)
        size = self.transform.resize_size
        return torch.from_numpy(np.random.default_rng(index).integers(0, 256, (3, size, size), dtype=np.uint8))


def some_cues(bench, count, num_pairs):
    """The CueImages of made up annotations: images of class 0, each of which is part of all pairs."""
    ids, transform = np.arange(count).astype('S'), image_files.eval_transform(bench.size)
    images = NoiseImages(ids, np.zeros(count, int), 'nowhere', transform)
    return eval_cue_location.CueImages(images, MadeUp(count, num_pairs))


def cues_of_cub(bench):
    """The CueImages of CUB's test images, of those that some pair evaluates as many as are asked for, one out of each
    stretch of the list. Raises UserError."""
    annotations = Annotations(bench.cub_root)
    names = read_by_id(annotations.root / 'images.txt')
    labels, splits = (read_by_id(annotations.root / f'{name}.txt', names)
                      for name in ('image_class_labels', 'train_test_split'))
    ids, own = zip(*((names[key].encode(), int(labels[key]) - 1) for key in names if splits[key] == '0'), strict=True)
    images = NoiseImages(np.array(ids), np.array(own), annotations.root / 'images',
                         image_files.eval_transform(bench.size))
    cues = eval_cue_location.CueImages(images, annotations)
    cues.rows = cues.rows[::max(1, len(cues.rows) // bench.cub_images)][:bench.cub_images]
    return cues


def counted_otherwise(results):
    """How far our histograms are from the plain way's, in words."""
    plain, said = np.pad(results['plain'], ((0, 0), (0, 0), (1, 1))), []
    for way in results.keys() - {'plain', 'floor'}:
        ours = results[way][0][0]['parts'].copy()
        ours[..., [0, -1]] = 0  # numpy counts nothing there
        moved = 100 * np.abs(ours - plain).sum() / 2 / plain.sum()
        said.append(f'{way}: {moved:.3f} % of the pixels are counted in another bin than plainly')
        ours, plainly = (float(metrics.pixel_average_precision(own.sum(0), underflow=False)) for own in (ours, plain))
        if np.isfinite([ours, plainly]).all():  # else no true pixel is counted
            said[-1] += f', PxAP is {ours:.3f}, plainly {plainly:.3f}'
    return '; '.join(sorted(said))


@item
def cue_localization(bench):
    plain, model, edges = bench.network(plain=True), bench.network(folded=True), metrics.bin_edges('log')
    measured = {f'{count} images x {pairs} pairs': some_cues(bench, count, pairs)
                for count, pairs in ((4, 1), (4, 4), (8, 1))}
    if bench.cub_root:
        cues = cues_of_cub(bench)
        evaluations = sum(len(cues.pairs[index]) for index in cues.rows)
        measured[f"CUB's pairs, {len(cues)} images and {evaluations} evaluations"] = cues
    for name, cues in measured.items():
        ways = {'plain': partial(plain_ways.cue_histograms, plain, cues, edges, bench.device)}
        for way, precision in bench.precisions.items():
            source = NetworkMaps(cues, model, 'jointll', precision)
            ways[way] = partial(eval_cue_location.fill_histograms, make_loader(cues, 8, 0, bench.device),
                                [eval_cue_location.Measure(source, 'clipping', edges)], bench.device)
        batches = bench.images(len(cues)).split(8)
        ways['floor'] = partial(_without_graph, bench, bench.best, lambda batches, model=model: [
            model(images) for images in batches], batches)
        yield Item(f'cue localization, {name}', ways, len(cues), compare=counted_otherwise)


def project_on_cub(results):
    """{way: seconds} for CUB's test split, from what an image and a pair cost: ours a + b E / N, plainly b E / N."""
    one, four = (results[f'cue localization, 4 images x {pairs} pairs'] for pairs in (1, 4))
    seconds = {}
    for way in one.keys() - {'floor'}:
        first, fourth = (statistics.median(own[way]) / 1000 for own in (one, four))
        per_pair = (fourth - first) / 3
        seconds[way] = CUB.images * (first - per_pair) + CUB.evaluations * per_pair
    return seconds


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
            small.resize((500, 375)).save(Path(folder) / f'{index}.jpg', quality=92)
        ids = np.array([f'{index}.jpg'.encode() for index in range(count)])
        kinds = [ImageDataset(ids, np.zeros(count, int), folder, image_files.train_transform(256, 224)) for _ in 'ab']
        kinds[1].cached(folder, 'bench')
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
    except ImportError:
        screen.say('captum is not installed: left out')
        return
    model, images, labels = bench.network(), bench.images(1), bench.labels(1)
    leaf, last = images.clone().requires_grad_(), model.get_submodule(model.stages[-1])
    settings, memory = SamplingSettings(COPIES, integrated_grad_nr_iter=COPIES), VERSIONS_AT_A_TIME

    def noisy():
        tunnel = NoiseTunnel(Saliency(model))
        return tunnel.attribute(leaf, target=labels, nt_type='smoothgrad', nt_samples=COPIES,
                                nt_samples_batch_size=memory, stdevs=0.5)
    theirs = {
        'smooth_grad': noisy,
        'integrated_gradients': lambda: IntegratedGradients(model).attribute(
            leaf, target=labels, n_steps=COPIES, internal_batch_size=memory),
        'backprop': lambda: Saliency(model).attribute(leaf, labels),
        'input_x_gradient': lambda: InputXGradient(model).attribute(leaf, labels),
        'grad_cam': lambda: LayerGradCam(model, last).attribute(images, labels)}
    names = {'smooth_grad': f'NoiseTunnel, {COPIES} copies', 'integrated_gradients': f'{COPIES} steps'}
    for process, call in theirs.items():
        ways = {'plain': call, 'float32': partial(attribution_maps, model, images, labels, process, settings=settings)}
        yield Item(f'{process} beside captum' + (f' ({names[process]})' if process in names else ''), ways)


@item
def torchcam(bench, count=4):
    try:
        from torchcam.methods import GradCAM, LayerCAM
    except ImportError:
        screen.say('torchcam is not installed: left out')
        return
    model, images, labels = bench.network(), bench.images(count), bench.labels(count)

    def theirs(method):
        with method(model, target_layer=model.stages[-1]) as extract:
            return extract(labels.tolist(), model(images.clone().requires_grad_()), normalized=False)
    for process, method in (('grad_cam', GradCAM), ('layer_cam', LayerCAM)):
        ways = {'plain': partial(theirs, method), 'float32': partial(attribution_maps, model, images, labels, process)}
        yield Item(f'{process} beside torchcam', ways, count)
