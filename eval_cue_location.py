"""Cue localization: does "why A and not B" fall on the parts in which the classes A and B differ?

Source: Kim et al., ICCV 2021, section 5 and its published code. For every test image of a class of
a pair, map_A - map_B is resized to the image, made absolute, and scored as a detector of the differing
parts' pixels, by pixel average precision (PxAP). Data in CUB's layout. The published code adds pair after
pair to the same histograms and drops scores under the first threshold; both are kept, and reported beside
the corrected figures, with the share of the pixels that are dropped.
Several methods, separated by commas, are measured in one pass: every image runs through the network once.
Result, for each: save/<experiment_name>/cue_location_<data set>_<method>_<process>_<norm>_<thresholds>.<8 digits>.json
and .png.

    python eval_cue_location.py --experiment_name=calm_em
"""
import itertools
from typing import NamedTuple

import numpy as np
import torch

import config
import util
from dataset.images import Images
from dataset.registry import DATASETS
from evaluation import session
from evaluation.map_sources import MapSource
from evaluation.pxap import DROPPING, KEYS, draw_pairs_again, dropped_shares, summarise
from experiment.result_files import as_text
from reports import figures, paper
from runtime import processes, screen
from wsol import metrics
from wsol.annotations.cub import UNION_PARTS
from wsol.errors import UserError
from wsol.maps import normalise, ranks, resize

TRUTHS = {'parts': '', 'exact': 'exact part masks, '}
LISTED = ('score_map_process', 'contrast_method', 'drop_lowest')  # the flags that list what one pass measures
CHUNK = 64  # (image, pair) evaluations scored at a time: bounds the memory


class CueImages(Images):
    """The test images that some pair evaluates, with their partitions and masks.

    Item -> image (3,S,S), label, index, partition (S,S) uint8, object mask (S,S) bool,
    true parts (S,S) uint8 (empty where the data set does not know them).
    """

    def __init__(self, images, annotations):
        self.images, self.annotations, self.transform = images, annotations, images.transform
        self.pairs = [annotations.evaluated(images.image_id(index), label) for index, label in enumerate(images.labels)]
        self.rows = [index for index, pairs in enumerate(self.pairs) if pairs]

    def __len__(self):
        return len(self.rows)

    def asked_classes(self, index):
        """The classes whose maps an image's pairs compare, its own first."""
        own = int(self.images.labels[index])
        pairs = (self.annotations.pairs[pair] for pair in self.pairs[index])
        return [own, *sorted({cls for pair in pairs for cls in pair[:2]} - {own})]

    def read(self, row):
        image, label, index = self.images.read(self.rows[row])
        image_id, size = self.images.image_id(index), image.shape[-1]
        truth = self.annotations.true_parts(image_id, size)
        return (image, label, index, self.annotations.partition(image_id, size),
                self.annotations.object_mask(image_id, size), np.empty(0, np.uint8) if truth is None else truth)


def signed_differences(maps, classes, pairs, per_class):
    """map_A - map_B of one image for its class pairs (A, B): (K,h,w) -> (E,h,w).

    classes: the K classes of the maps. Where the maps are not per class A - B would be zero: such a map is a control,
    scored as it is.
    """
    column = {cls: place for place, cls in reversed(list(enumerate(classes)))}
    first, second = (maps[[column[pair[side]] for pair in pairs]] for side in (0, 1))
    return first - second if per_class else first


def signed_contrasts(source, images, indices, pairs, activations):
    """The maps (E,h,w) of a contrast method for the classes (A, B) that are asked of each image of a batch, from one
    forward."""
    found = [[] for _ in pairs]
    for number in range(max(map(len, pairs))):
        rows = [row for row, own in enumerate(pairs) if number < len(own)]
        classes = torch.tensor([pairs[row][number] for row in rows], device=images.device)
        own = type(activations)(*(None if values is None else values[rows] for values in activations))
        for row, maps in zip(rows, source(images[rows], indices[rows], classes, own).maps, strict=True):
            found[row].append(maps[0])
    return [torch.stack(own) for own in found]


def signed_maps(source, images, indices, cues, activations):
    """For each image of a batch the signed maps (E,h,w) of "why A and not B", a map for each of its class pairs.
    activations: the network's forward.

    A contrast method is asked why the image's own class and not the other: Grad-CAM and its like have no negative
    part, so that the question the other way round has another answer, which no absolute value mends.
    """
    pairs = [[cues.annotations.pairs[number] for number in cues.pairs[index]] for index in indices.tolist()]
    if source.per_pair:
        own = [int(cues.images.labels[index]) for index in indices.tolist()]
        asked = [[pair[:2] if pair.first == label else pair[1::-1] for pair in of_image]
                 for label, of_image in zip(own, pairs, strict=True)]
        return signed_contrasts(source, images, indices, asked, activations)
    asked = [cues.asked_classes(index) for index in indices.tolist()]
    width = max(map(len, asked))
    classes = torch.tensor([row + row[:1] * (width - len(row)) for row in asked], device=images.device)  # (B,K), padded
    maps = source(images, indices, classes, activations).maps  # B of (K,h,w)
    return [signed_differences(*of_image, source.per_class) for of_image in zip(maps, asked, pairs, strict=True)]


def cue_scores(differences, size, norm_type, drop_lowest=0.0, seed=0):
    """Scores in 0..1 from the signed maps A - B: (E,h,w) -> (E,*size).

    In the published order: resized, then made absolute, then normalised. drop_lowest: the percentage of each map's
    pixels, the lowest, that get the score 0; which of equal ones they are falls at random, by the seed.
    """
    scores = normalise(resize(differences, size).abs(), norm_type)
    if drop_lowest:
        generator = torch.Generator().manual_seed(seed)
        order, _ = ranks(scores, [generator] * len(scores))  # (E,S*S), from the highest down
        kept = order.shape[1] - round(drop_lowest / 100 * order.shape[1])
        scores = scores.masked_fill((order >= kept).view_as(scores), 0.0)
    return scores


class Measure(NamedTuple):
    """What is measured in a pass over the images: a source of maps, and how its maps are scored."""
    source: MapSource
    norm_type: str
    edges: np.ndarray         # of the histograms' bins
    drop_lowest: float = 0.0  # of cue_scores
    seed: int = 0             # of what falls at random there


@torch.inference_mode()
def fill_histograms(loader, measures, device):
    """One pass over the images, and one forward for each, filling all pairs' histograms for each of the Measures.

    Returns, for each, {truth: (P,2,bins) int64} for the truths 'parts' (the published one: nearest part point within
    the bird) and, where known, 'exact'; and (P,) images per pair.
    """
    cues, sources = loader.images, list({id(own.source): own.source for own in measures}.values())
    pairs = cues.annotations.pairs
    differing = np.zeros((len(pairs), 256), bool)  # pair, part -> does it differ?
    for number, pair in enumerate(pairs):
        differing[number, list(pair.parts)] = True
    differing = torch.from_numpy(differing).to(device)
    counts, evaluations = [{} for _ in measures], np.zeros(len(pairs), np.int64)
    for images, _, indices, partition, object_mask, exact in screen.progress(loader, 'cue localization', 'batch'):
        images = util.to_device(images, device)
        activations = sources[0].forward(images)
        differences = {id(own): signed_maps(own, images, indices, cues, activations) for own in sources}
        partition, object_mask, exact = (truth.flatten(1).to(device) for truth in (partition, object_mask, exact))
        for row, index in enumerate(indices.tolist()):
            numbers = cues.pairs[index]
            evaluations[numbers] += 1
            for start in range(0, len(numbers), CHUNK):
                chosen = numbers[start:start + CHUNK]
                truths = {'parts': differing[chosen][:, partition[row].long()] & object_mask[row]}  # (E,S*S)
                if exact.numel():
                    truths['exact'] = differing[chosen][:, exact[row].long()]
                for measure, own in zip(measures, counts, strict=True):
                    signed = differences[id(measure.source)][row][start:start + CHUNK]
                    _count(measure, signed, images.shape[2:], truths, own, chosen, len(pairs), index)
    return counts, evaluations


def _count(measure, signed, size, truths, counts, chosen, num_pairs, index):
    """Add the pixels of the signed maps (E,h,w) of one image and the pairs `chosen` to the histograms. truths: {name:
    (E,S*S) bool}. counts: {name: (P,2,bins)}. index: of the image."""
    bins = len(measure.edges) + 1
    seed = util.seed_of(measure.seed, index, *chosen[:1])
    scores = cue_scores(signed, size, measure.norm_type, measure.drop_lowest, seed)  # (E,S,S)
    binned, rows = metrics.bin_scores(scores, measure.edges).flatten(1), torch.arange(len(chosen), device=scores.device)
    for name, truth in truths.items():
        counts.setdefault(name, np.zeros((num_pairs, 2, bins), np.int64))
        counts[name][chosen] += metrics.count_scores(binned, truth, bins, rows, len(chosen))


def over_all(counts, evaluations):
    """The histograms of each Measure and the numbers of evaluations, of all processes together. The first has some of
    each truth."""
    of_each = processes.gather((counts, evaluations))
    together = [{name: sum(own[number][name] for own, _ in of_each if name in own[number]) for name in first}
                for number, first in enumerate(of_each[0][0])]
    return together, sum(own for _, own in of_each)


def pair_records(pairs, evaluations, per_pair, counts):
    """What the result file says of each measured pair. counts: (P,2,bins), whose precision by recall it keeps."""
    records, precision = [], metrics.precision_at_recall(counts)
    for index in np.flatnonzero(evaluations):
        pair = pairs[index]
        values = {truth: {name: float(pxap[index]) if np.isfinite(pxap[index]) else None for name, pxap in by.items()}
                  for truth, by in per_pair.items()}
        records.append({'classes': [pair.first + 1, pair.second + 1], 'images': int(evaluations[index]),
                        'parts': [UNION_PARTS[part] for part in pair.parts], 'pxap': values,
                        'precision': as_text(100 * precision[index], 1)})
    return records


def report(summaries, dropped, published):
    """The table on the screen. dropped: {truth: dropped_shares}. published: the paper's row, or None."""
    rows = []
    for truth, summary in summaries.items():
        for name, values in summary.items():
            shares = [dropped[truth][side] if name in DROPPING else '-' for side in ('true', 'false')]
            rows.append([TRUTHS[truth] + name, *(values[key] for key in KEYS), values['pairs'], *shares])
    if published:
        rows.append(['the paper (CUB, ResNet-50)', *published, sum(DATASETS['CUB'].cues.pairs), '-', '-'])
    header = ['PxAP, %, by differing parts', *KEYS, 'pairs', 'dropped: true, %', 'false, %']
    screen.say(screen.table(header, rows))


def keep_pairs_with_images(annotations, labels, verbose=False):
    """Leave out the class pairs with a class that has no test image, and say so."""
    if labels.max() >= annotations.num_classes:
        raise UserError(f'{annotations.root} has the attributes of {annotations.num_classes} classes, but a test image '
                        f'has label {labels.max()}')
    total = len(annotations.pairs)
    dropped = annotations.drop_pairs_without(labels.tolist())
    if len(dropped) == total:
        raise UserError(f'no class pair to evaluate: for none of the {total} pairs that differ in 1 to 3 parts do '
                        'both classes have test images; check --metadata_root and --data_root')
    if dropped:
        screen.warn(f'{len(dropped)} of {total} class pairs have a class without test images and are left out'
                  + ('' if verbose else '; --verbose lists them'))
        for pair in dropped if verbose else []:
            screen.say(f'left out: classes {pair.first + 1} and {pair.second + 1}')


def open_cues(data, images, verbose=False):
    """The CueImages of a split. Raises UserError where nothing can be evaluated."""
    annotations = data.annotations()
    keep_pairs_with_images(annotations, images.labels, verbose)
    cues = CueImages(images, annotations)
    if not cues.rows:
        raise UserError('no image to evaluate: in none of the test images is a differing part visible; check '
                        f'{annotations.root / "parts" / "part_locs.txt"}')
    return cues


def open_maps(args):
    """The Network and its data, and the Maps of every combination of the attribution methods, contrast methods and
    shares of dropped pixels that the flags list."""
    methods, contrasts, shares = ([*values] if isinstance(values, tuple) else [values]
                                  for values in (args[name] for name in LISTED))
    if args.scoremap_root and len(methods) * len(contrasts) > 1:
        raise UserError('--scoremap_root is one source of maps, and several methods are a network\'s; leave one out')
    if args.score_map_method == 'backprop':  # the published name of the vanilla gradient
        methods = ['backprop' if method == 'vanilla' else method for method in methods]
    network = session.open_network(args, needed=args.scoremap_root is None)
    data = session.open_data(network)
    chosen = [session.choose_maps(network, data, 'cue_location', None if contrast == 'difference' else contrast,
                                  score_map_process=method, contrast_method=contrast, drop_lowest=share)
              for method, contrast, share in itertools.product(methods, contrasts, shares)]
    for said in dict.fromkeys(maps.describe() for maps in chosen):
        screen.say(said)
    # a network folded for forwards alone serves no gradients
    network.speed_up(min(chosen, key=lambda maps: maps.one_forward))
    return network, data, chosen


def finish(maps, counts, evaluations, images, cues):
    """Say and write what one evaluation has measured. counts: {truth: (P,2,bins)}."""
    args, pairs = maps.args, cues.annotations.pairs
    number = np.array([len(pair.parts) for pair in pairs])
    summaries, per_pair = {}, {}
    for truth, histogram in counts.items():
        summaries[truth], per_pair[truth] = summarise(histogram, pairs, evaluations)
    dropped = {truth: dropped_shares(histogram) for truth, histogram in counts.items()}

    by_number = ', '.join(f'{(evaluations[number == k] > 0).sum()} with {k}' for k in (1, 2, 3))
    dropping = f', lowest {args.drop_lowest:.10g} % dropped' if args.drop_lowest else ''
    screen.say(f'\n{maps.name}{dropping}, {maps.data.name}: {evaluations.sum()} (image, pair) evaluations of '
               f'{len(cues)} images; pairs: {by_number} differing parts')
    is_published = maps.data.name == 'CUB' and maps.folder is None and not args.drop_lowest
    method = args.attribution_method, args.score_map_process
    report(summaries, dropped, paper.PXAP.get(method) if is_published else None)
    result = maps.result_file(images, *([f'lowest{args.drop_lowest:.10g}dropped'] if args.drop_lowest else []))
    histogram = counts.get('exact', counts['parts'])
    curves = {f'{k} differing part{"s" * (k > 1)}': metrics.precision_recall(histogram[number == k].sum(0))
              for k in (1, 2, 3) if evaluations[number == k].any()}
    result.write({'evaluated_images': len(cues), 'evaluations': int(evaluations.sum()), 'pxap': summaries,
                  'published_draws': draw_pairs_again(counts['parts'], pairs, evaluations), 'dropped': dropped,
                  'recalls': as_text(100 * np.array(metrics.RECALLS), 0),
                  'pairs': pair_records(pairs, evaluations, per_pair, histogram)})
    figures.save(figures.precision_recall_curves(maps.title(), curves), result.figure())


def make_parser():
    """The parser of this script's flags."""
    return config.make_parser(__doc__, *config.EVALUATION, 'contrast_method', 'verbose', 'drop_lowest', 'norm_type',
                              'threshold_type', 'cam_curve_interval', listed=LISTED)


def main():
    network, data, chosen = open_maps(config.parse(make_parser()))
    images = network.open_split(data, 'test')
    cues = open_cues(data, images, network.args.verbose)
    by_name = {maps.name: maps for maps in chosen}  # those that drop other pixels have the same maps
    sources = {name: maps.source(images, 'test', cues.asked_classes, cues.rows) for name, maps in by_name.items()}
    for source in sources.values():
        source.check_pairs(cues.annotations.pairs)
    measures = [Measure(sources[maps.name], maps.args.norm_type,
                        metrics.bin_edges(maps.args.threshold_type, maps.args.cam_curve_interval),
                        maps.args.drop_lowest, maps.args.seed)
                for maps in chosen]
    counts, evaluations = over_all(*fill_histograms(network.loader(cues), measures, network.device))
    if processes.is_first():
        for maps, own in zip(chosen, counts, strict=True):
            finish(maps, own, evaluations, images, cues)


if __name__ == '__main__':
    screen.run(main)
