"""How fast, as ratios: every item beside the plain way of doing it and, where there is one, beside a floor.

The plain ways are written out here and kept: the published code's (Kim et al., ICCV 2021), where the item has one, and
captum's and torchcam's, where they are installed. All ways of an item run in turns, round by round, so that what else
the machine does hits them alike; a ratio is the median of the rounds', beside the lowest and the highest. Networks have
random weights, images are noise: neither data nor a checkpoint is needed.

    python bench.py --json=save/bench.json --plot=save/bench.png
"""
import itertools
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

import config
import eval_cue_location
import eval_pixel_perturb
import figures
import image_files
import util
from data_loaders import ImageDataset, Images, SeededBatches, make_loader
from map_sources import NetworkMaps
from wsol import attribution_maps, build_model, metrics
from wsol.cub import POINT_NAMES, SEEDS, UNION_PARTS, ClassPair, nearest_part
from wsol.folding import fold_batchnorm
from wsol.gradients import VERSIONS_AT_A_TIME
from wsol.heads import joint
from wsol.query import SamplingSettings

ITEMS = {}
COPIES = 8     # of an image, for SmoothGrad; as many points on the path of integrated gradients
PHOTOS = 256   # for the loaders
CUB = {'images': 2579, 'evaluations': 11039}  # of cue localization on CUB's test split, all 191 pairs


class Item(NamedTuple):
    """What is measured: ways that do the same. count: what a figure is divided by, the images of a call."""
    name: str
    ways: dict            # 'plain', 'float32', 'auto', 'floor' -> what to call
    count: int = 1
    unit: str = 'ms'      # MiB: a way gives the figure itself


def item(function):
    """Make a generator function (bench) -> Items a part of the benchmark, under its name."""
    ITEMS[function.__name__] = function
    return function


class Bench:
    """The network that is measured, in the ways it is used, and what it is measured on."""

    def __init__(self, architecture, size, device, rounds):
        self.architecture, self.size, self.device, self.rounds = architecture, size, device, rounds
        util.try_algorithms(device)
        self.precisions = {'float32': 'float32'}
        if util.computes_in_bfloat16(device):
            self.precisions['auto'] = 'bfloat16'
        self.best = list(self.precisions)[-1]

    def network(self, num_classes=200, folded=False, plain=False):
        """In eval mode. plain: in the memory layout that torch has by default, with its BatchNorms."""
        torch.manual_seed(0)
        large = {'large_feature_map': True} if self.architecture.startswith('resnet') else {}
        model = build_model(self.architecture, 'CALM_EM', num_classes, **large).to(self.device)
        for module in model.modules():  # statistics that fit the weights: else numbers grow from layer to layer
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            model.train()(torch.randn(4, 3, self.size, self.size, device=self.device))
        model = model.eval() if plain else model.eval().to(memory_format=util.memory_format(self.device))
        if folded:
            fold_batchnorm(model, self.size)
        return model

    def images(self, count, plain=False):
        images = torch.randn(count, 3, self.size, self.size, generator=torch.Generator().manual_seed(1))
        return images.to(self.device) if plain else util.to_device(images, self.device)

    def labels(self, count, num_classes=200):
        return torch.arange(count, device=self.device) % num_classes

    def casting(self, way):
        return util.autocast(self.precisions.get(way, 'float32'), self.device)

    def measure(self, entry):
        """{way: figures (rounds,)} of one thing. The first round warms up, and counts for nothing."""
        found = {way: [] for way in entry.ways}
        for number in range(self.rounds + 1):
            for way, call in entry.ways.items():
                start = time.perf_counter()
                figure = call()
                if self.device.type == 'cuda':
                    torch.cuda.synchronize()
                if entry.unit == 'ms':
                    figure = 1000 * (time.perf_counter() - start)
                found[way] += [figure / entry.count] * (number > 0)
        return found


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
                           lambda model, *batch: model.plain_loss(*batch)[0], 'float32')}
    for way in bench.precisions:
        ways[way] = _step(bench, bench.network(), bench.images(count), labels,
                          lambda model, *batch: model.loss(*batch)[0], way)
    ways['floor'] = _step(bench, bench.network(), bench.images(count), labels, _cheapest_loss, bench.best)
    yield Item(f'training, batch of {count}', ways, count)


def _peak(call):
    """MiB that a call allocates at most, beyond what there was (CPU)."""
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    changes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == '[memory]']
    return max(itertools.accumulate(changes), default=0) / 2**20


def _there_and_back(loss, features, labels):
    loss(features, labels)[0].backward()


@item
def head(bench, count=8):
    """Forward and backward of the head alone. The floor is one 1x1 convolution of all rows."""
    for num_classes in (10, 200, 1000):
        model, labels = bench.network(num_classes), bench.labels(count, num_classes)
        with torch.no_grad():
            features = model.extract_features(bench.images(count))
        features.requires_grad_()
        rows = nn.Conv2d(features.shape[1], num_classes + 1, 1).to(features)
        model.stages = ()  # what is left takes the features
        losses = {'plain': model.plain_loss, 'float32': model.loss,
                  'floor': lambda leaf, _, rows=rows: [rows(leaf).sum()]}
        ways = {way: partial(_there_and_back, loss, features, labels) for way, loss in losses.items()}
        yield Item(f'head, batch of {count}, {num_classes} classes, in all', ways)
        if bench.device.type == 'cpu':
            peaks = {way: partial(_peak, call) for way, call in ways.items()}
            yield Item(f'head, batch of {count}, {num_classes} classes: memory', peaks, unit='MiB')


# --- maps and the two protocols ------------------------------------------------------------------------------


def _plain_maps(model, images, labels):
    """As published: with a graph, of all classes, of which one is taken."""
    _, logits, prior = model.activations(images)
    return joint(logits.log_softmax(1), prior)[range(len(images)), labels].detach()


def _without_graph(bench, way, call, *args):
    with bench.casting(way), torch.inference_mode():
        return call(*args)


@item
def maps(bench):
    for count, num_classes in ((1, 200), (8, 10), (8, 200), (8, 1000), (32, 200)):
        plain, model = bench.network(num_classes, plain=True), bench.network(num_classes, folded=True)
        same, images, labels = bench.images(count, plain=True), bench.images(count), bench.labels(count, num_classes)

        ways = {'plain': partial(_plain_maps, plain, same, labels)}
        ways |= {way: partial(_without_graph, bench, way, attribution_maps, model, images, labels)
                 for way in bench.precisions}
        ways['floor'] = partial(_without_graph, bench, bench.best, model.extract_features, images)
        yield Item(f'jointll maps, batch of {count}, {num_classes} classes', ways, count)


def _plain_erasure(model, images, labels):
    """As published: a forward for the prediction, one for the map, a sort and a forward for each k and order."""
    def right(images):
        with torch.no_grad():
            return (model(images).argmax(1) == labels).tolist()
    results = [right(images)]
    scores = F.interpolate(_plain_maps(model, images, labels)[:, None], images.shape[2:], mode='bilinear').flatten(1)
    for by_value in (True, False):
        for ratio in metrics.ERASE_RATIOS:
            order = scores.argsort(1, descending=True) if by_value else torch.rand_like(scores).argsort(1)
            mask = torch.ones_like(scores).scatter_(1, order[:, :int(ratio * scores.shape[1])], 0)
            results.append(right(images * mask.view(len(images), 1, *images.shape[2:])))
    return results


def _eleven_times(model, images):
    return [model(images) for _ in range(11)]


@item
def remove_and_classify(bench):
    plain, model = bench.network(plain=True), bench.network(folded=True)
    known = SimpleNamespace(image_id=str)
    for count in (1, 2):
        same, labels = bench.images(count, plain=True), bench.labels(count)
        batch = [(bench.images(count), labels, torch.arange(count))]
        ways = {'plain': partial(_plain_erasure, plain, same, labels)}
        for way, precision in bench.precisions.items():
            source = NetworkMaps(known, model, 'jointll', precision)
            ways[way] = partial(eval_pixel_perturb.classify_erased, model, batch, source, bench.device, 0, precision,
                                count)
        ways['floor'] = partial(_without_graph, bench, bench.best, _eleven_times, model, batch[0][0])
        yield Item(f'remove-and-classify, batch of {count}', ways, count)


class Cues(Images):
    """A data set of cue localization: images of class 0, which some pairs compare with another class."""

    def __init__(self, bench, count, num_pairs):
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(0, 256, (count, 3, bench.size, bench.size), dtype=np.uint8)
        self.points = np.concatenate([rng.random((count, 15, 2)) * [500, 375], np.ones((count, 15, 1))], 2)
        self.transform, self.size = image_files.eval_transform(bench.size), bench.size
        self.pairs = [list(range(num_pairs))] * count
        parts = rng.permuted(np.tile(np.arange(7), (num_pairs, 1)), axis=1)[:, :2].tolist()
        self.annotations = SimpleNamespace(pairs=[ClassPair(0, 1 + number, tuple(own))
                                                  for number, own in enumerate(parts)])
        axis = (np.arange(bench.size) / bench.size - 0.5) ** 2
        self.object_mask = axis[:, None] + axis < 0.1  # a disc

    def __len__(self):
        return len(self.pixels)

    def image_id(self, index):
        return str(index)

    def asked_classes(self, index):
        return list(range(1 + len(self.annotations.pairs)))

    def read(self, index):
        partition = nearest_part(self.points[index], 500, 375, self.size)
        return torch.from_numpy(self.pixels[index]), 0, index, partition, self.object_mask, np.empty(0, np.uint8)


def _plain_mask(points, size, pair, object_mask):
    """As published: every pixel's distance to every part point, anew for each pair."""
    scaled = points[:, :2] * size / [500, 375]
    centres = [scaled[[POINT_NAMES.index(name) for name in names]].mean(0) for _, names in SEEDS]
    parts = [UNION_PARTS.index(part) for part, _ in SEEDS]
    pixels = np.array([(x, y) for y in range(size) for x in range(size)])
    squared = ((pixels[:, None] - np.array(centres).astype(int)[None]) ** 2).sum(2)
    nearest = np.array(parts)[squared.argmin(1)].reshape(size, size)
    return np.isin(nearest, pair.parts) & object_mask


def _plain_cues(bench, model, cues, edges):
    """As published: pair by pair, two forwards with a graph, the masks anew, numpy's histograms."""
    counts = np.zeros((2, len(edges) - 1))
    for pair in cues.annotations.pairs:
        images = torch.stack([cues[index][0] for index in range(len(cues))]).to(bench.device)
        first, second = (_plain_maps(model, images, [own] * len(images)) for own in pair[:2])
        differences = F.interpolate((first - second)[:, None], (cues.size, cues.size), mode='bilinear')[:, 0]
        for index, scores in enumerate(differences.abs().clamp(0, 1).double().cpu().numpy()):
            truth = _plain_mask(cues.points[index], cues.size, pair, cues.object_mask)
            for side in (0, 1):
                counts[side] += np.histogram(scores[truth == side], edges)[0]
    return counts


@item
def cue_localization(bench):
    plain, model, edges = bench.network(plain=True), bench.network(folded=True), metrics.bin_edges('log')
    for count, num_pairs in ((4, 1), (4, 4), (8, 1)):
        cues = Cues(bench, count, num_pairs)
        ways = {'plain': partial(_plain_cues, bench, plain, cues, edges)}
        for way, precision in bench.precisions.items():
            source = NetworkMaps(cues, model, 'jointll', precision)
            ways[way] = partial(eval_cue_location.fill_histograms, make_loader(cues, 8, 0, bench.device), source,
                                bench.device, 'clipping', edges)
        ways['floor'] = partial(_without_graph, bench, bench.best, model, bench.images(count))
        yield Item(f'cue localization, {count} images x {num_pairs} pairs', ways, count)


def project_on_cub(results):
    """{way: seconds} for CUB's test split, from what an image and a pair cost: ours a + b E / N, plainly b E / N."""
    one, four = (results[f'cue localization, 4 images x {pairs} pairs'] for pairs in (1, 4))
    seconds = {}
    for way in one.keys() - {'floor'}:
        first, fourth = (statistics.median(own[way]) / 1000 for own in (one, four))
        per_pair = (fourth - first) / 3
        seconds[way] = CUB['images'] * (first - per_pair) + CUB['evaluations'] * per_pair
    return seconds


# --- loading -------------------------------------------------------------------------------------------------


class PlainImages(Dataset):
    """As published: PIL resizes, the worker normalises, floats go through shared memory."""

    def __init__(self, images):
        self.images = images
        v2 = image_files.v2
        self.transform = v2.Compose([v2.Resize((256, 256)), v2.RandomCrop(224), v2.RandomHorizontalFlip(), v2.ToImage(),
                                     v2.ToDtype(torch.float32, scale=True), v2.Normalize(*image_files.IMAGENET)])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, key):
        index, _ = key
        image = image_files.open_image(self.images.folder / self.images.image_id(index))
        return self.transform(image), int(self.images.labels[index]), index


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
        loaders = {'plain': DataLoader(PlainImages(kinds[0]), num_workers=1, persistent_workers=True,
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
        util.say('captum is not installed: left out')
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
        util.say('torchcam is not installed: left out')
        return
    model, images, labels = bench.network(), bench.images(count), bench.labels(count)

    def theirs(method):
        with method(model, target_layer=model.stages[-1]) as extract:
            return extract(labels.tolist(), model(images.clone().requires_grad_()), normalized=False)
    for process, method in (('grad_cam', GradCAM), ('layer_cam', LayerCAM)):
        ways = {'plain': partial(theirs, method), 'float32': partial(attribution_maps, model, images, labels, process)}
        yield Item(f'{process} beside torchcam', ways, count)


# --- the table -----------------------------------------------------------------------------------------------


def ratio(above, below):
    """(median, lowest, highest) of the rounds' ratios."""
    values = [one / other for one, other in zip(above, below, strict=True)]
    return statistics.median(values), min(values), max(values)


def row(name, unit, found):
    """One line of the table: what the plain way takes, how many times less ours does, and ours over the floor."""
    def times(above, below):
        if above not in found or below not in found:
            return '-'
        middle, low, high = ratio(found[above], found[below])
        return f'{middle:.2f} ({low:.2f} .. {high:.2f})'
    best = 'auto' if 'auto' in found else 'float32'
    plain = statistics.median(found['plain'])
    return [name, f'{plain:.1f} {unit}' if plain >= 1 else f'{plain:.2f} {unit}', times('plain', 'float32'),
            times('plain', 'auto'), times(best, 'floor')]


def ratios_figure(measured):
    """A bar for each item: how many times faster than the plain way, with the lowest and the highest round."""
    best = {name: ratio(own['plain'], own['auto' if 'auto' in own else 'float32'])
            for name, (_, own) in measured.items()}
    figure = figures.Figure(figsize=(9, 0.35 * len(best) + 1), layout='constrained')
    axes = figure.subplots()
    middle, low, high = np.array(list(best.values())).T
    axes.barh(list(best), middle, xerr=[middle - low, high - middle], color='teal')
    axes.axvline(1, color='black', linewidth=1)
    axes.invert_yaxis()
    axes.set(xlabel='times less than the plain way', xscale='log')
    return figure


def make_parser():
    parser = config.plain_parser(__doc__)
    parser.add_argument('--only', nargs='+', choices=ITEMS, default=list(ITEMS), help='these parts alone')
    parser.add_argument('--architecture', default='resnet50', help='default: %(default)s, with 28x28 maps')
    parser.add_argument('--crop_size', type=config.COUNT, default=224, help='of the images (default: %(default)s)')
    parser.add_argument('--rounds', type=config.COUNT, default=3,
                        help='beside one that warms up (default: %(default)s)')
    parser.add_argument('--device', default='auto', choices=['auto', 'cuda', 'cpu'])
    parser.add_argument('--json', help='write all figures there')
    parser.add_argument('--plot', help='draw the ratios there')
    return parser


def main():
    args = make_parser().parse_args()
    bench = Bench(args.architecture, args.crop_size, util.pick_device(args.device), args.rounds)
    util.say(f'{args.architecture}, {args.crop_size}x{args.crop_size} pixels, {bench.device.type}, '
             f'{util.usable_cores()} cores, torch {torch.__version__}; auto is {bench.precisions[bench.best]}')
    measured = {}
    for name in args.only:
        for entry in ITEMS[name](bench):
            measured[entry.name] = entry.unit, bench.measure(entry)
            util.say('  '.join(row(entry.name, *measured[entry.name])))
    header = ['per image', 'the plain way', 'float32: times less', 'auto: times less', 'over the floor']
    util.say('\n' + util.table(header, [row(name, *own) for name, own in measured.items()]))
    projected = {}
    if 'cue_localization' in args.only:
        projected = project_on_cub({name: own for name, (_, own) in measured.items()})
        util.say(f'\ncue localization on CUB, {CUB["images"]} images and {CUB["evaluations"]} evaluations, from what '
                 'an image and a pair cost here: '
                 + ', '.join(f'{way} {projected[way]:.0f} s' for way in sorted(projected)))
    if args.json:
        util.write_json(args.json, {'settings': vars(args), 'cue_localization_on_cub': projected, 'figures': {
            name: {'unit': unit, **own} for name, (unit, own) in measured.items()}})
    if args.plot:
        figures.save(ratios_figure(measured), Path(args.plot))


if __name__ == '__main__':
    util.run(main)
