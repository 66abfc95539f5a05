"""Cue localization: does "why A and not B" fall on the parts in which the classes A and B differ?

Source: Kim et al., ICCV 2021, section 5 and its published code. For every test image of a class of a pair, map_A -
map_B is resized to the image, made absolute, and scored as a detector of the differing parts, by pixel average
precision (PxAP). A second figure is the share of its mass on these parts. The script needs data in CUB's layout.
docs/protocols.md explains the four ways to count, and the controls.
Methods separated by commas are evaluated in one pass: every image runs through the network once.
Result, for each: save/<experiment_name>/cue_location_<data set>_<head>_<method>_<norm>_<thresholds>.<8 digits>.json
and .png.

    python eval_cue_location.py --experiment_name=calm_em
"""
import itertools
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P and -I leave it out

import config
import util
from dataset.fingerprints import combined
from dataset.images import Images
from dataset.registry import DATASETS
from evaluation import session
from evaluation.map_sources import MapSource
from evaluation.pxap import DROPPING, KEYS, dropped_shares, pair_records, resample_pairs, summarise, summarise_masses
from experiment.result_files import as_text
from reports import figures, paper
from runtime import processes, screen
from wsol import metrics
from wsol.errors import UserError
from wsol.maps import normalise, ranks, resize

TRUTHS = {'parts': '', 'exact': 'exact part masks, '}
LISTED = ('score_map_process', 'contrast_method', 'drop_lowest')  # the flags that take several values
CHUNKS = defaultdict(lambda: 8, cuda=64)  # (image, pair) evaluations scored at a time, by the device's memory

# --- images and their pairs -----------------------------------------------------------------------------


class CueImages(Images):
    """The test images that some pair evaluates, with their partitions and masks.

    Item -> image (3,S,S), label, index, partition (S,S) uint8, object mask (S,S) bool, true parts (S,S) uint8 (empty
    where the data set does not know them).
    """

    def __init__(self, images, annotations):
        self.images, self.annotations, self.transform = images, annotations, images.transform
        self.pairs = [annotations.evaluated(images.image_id(index), label) for index, label in enumerate(images.labels)]
        self.rows = [index for index, pairs in enumerate(self.pairs) if pairs]
        self.truths = tuple(TRUTHS)[:1 + annotations.has_part_masks()]

    def __len__(self):
        return len(self.rows)

    def class_pairs(self, index):
        """The ClassPairs that evaluate an image."""
        return [self.annotations.pairs[number] for number in self.pairs[index]]

    def asked_classes(self, index):
        """The classes whose maps the pairs of an image compare: its label, then the others."""
        label = int(self.images.labels[index])
        return [label, *sorted({cls for pair in self.class_pairs(index) for cls in pair[:2]} - {label})]

    def fingerprint(self):
        """SHA-256 of all that the maps are compared with: class pairs, part points, masks."""
        ids, annotations = [self.images.image_id(index) for index in self.rows], self.annotations
        files = [path(image_id) for image_id in ids for path in (annotations.segmentation, annotations.part_mask)]
        points = np.stack([annotations.points(image_id) for image_id in ids])
        return combined(str(annotations.pairs), points, self.images.contents.of(files))

    def read(self, row):
        image, label, index = self.images.read(self.rows[row])
        image_id, size = self.images.image_id(index), image.shape[-1]
        truth = self.annotations.true_parts(image_id, size)
        return (image, label, index, self.annotations.partition(image_id, size),
                self.annotations.object_mask(image_id, size), np.empty(0, np.uint8) if truth is None else truth)


def open_cues(data, images):
    """The CueImages of a split, without the class pairs with a class that has no image. Raises UserError where nothing
    can be evaluated."""
    annotations, last = data.annotations(), images.labels.max()
    if last >= annotations.num_classes:
        raise UserError(f'{annotations.root} has the attributes of {annotations.num_classes} classes, but a test image '
                        f'has label {last}')
    total, labels = len(annotations.pairs), {*images.labels.tolist()}
    annotations.pairs = [pair for pair in annotations.pairs if {*pair[:2]} <= labels]
    if not annotations.pairs:
        raise UserError(f'no class pair to evaluate: none of the {total} pairs that differ in 1 to 3 parts has '
                        'test images of both classes; check --metadata_root and --data_root')
    if dropped := total - len(annotations.pairs):
        screen.warn(f'{dropped} of {total} class pairs have a class without test images and are left out')
    cues = CueImages(images, annotations)
    if not cues.rows:
        raise UserError('no image to evaluate: no test image shows a differing part; check '
                        f'{annotations.root / "parts" / "part_locs.txt"}')
    return cues


# --- signed maps and their scores -----------------------------------------------------------------------


def signed_contrasts(source, images, indices, asked, activations):
    """The maps (N,h,w) of a contrast method. asked: for each image of a batch, a list of pairs (A, B)."""
    signed = [[] for _ in asked]
    for number in range(max(map(len, asked))):
        rows = [row for row, pairs in enumerate(asked) if number < len(pairs)]
        classes = torch.tensor([asked[row][number] for row in rows], device=images.device)
        part = type(activations)(*(None if values is None else values[rows] for values in activations))
        for row, maps in zip(rows, source(images[rows], indices[rows], classes, part).maps, strict=True):
            signed[row].append(maps[0])
    return torch.stack([one for maps in signed for one in maps])


def signed_maps(source, images, indices, cues, activations):
    """The signed maps (N,h,w) of "why A and not B": image by image, one for each class pair of the image.

    activations: the network's forward. A contrast method explains why the image's label and not the other class:
    Grad-CAM and similar methods have no negative part, so the opposite question would give another absolute value.
    Maps that are not per class are a control: A - B would be zero everywhere, so the map itself is scored. Maps whose
    sizes differ from image to image are resized.
    """
    pairs = [cues.class_pairs(index) for index in indices.tolist()]
    if source.takes_pairs:
        labels = cues.images.labels[indices.numpy()]
        asked = [[pair[:2] if pair.first == label else pair[1::-1] for pair in of_image]
                 for label, of_image in zip(labels, pairs, strict=True)]
        return signed_contrasts(source, images, indices, asked, activations)
    asked = [cues.asked_classes(index) for index in indices.tolist()]
    width = max(map(len, asked))
    classes = util.send([row + row[:1] * (width - len(row)) for row in asked], images.device)  # (B,K), padded
    maps = source(images, indices, classes, activations).maps  # B of (K,h,w)
    places = [[[row.index(pair.first), row.index(pair.second)] for pair in of_image]
              for row, of_image in zip(asked, pairs, strict=True)]
    if isinstance(maps, torch.Tensor):  # all images at once, which is faster on a GPU
        maps = maps.flatten(0, 1)[None]  # (1,B*K,h,w)
        places = [[[row * width + place for place in pair] for row, of_image in enumerate(places) for pair in of_image]]
    chosen = [of_image[util.send(of_pairs, images.device)] for of_image, of_pairs in zip(maps, places, strict=True)]
    signed = [maps[:, 0] - maps[:, 1] if source.per_class else maps[:, 0] for maps in chosen]  # (E,h,w) each
    if len({of_image.shape[1:] for of_image in signed}) > 1:
        signed = [resize(of_image, images.shape[2:]) for of_image in signed]
    return torch.cat(signed)


def cue_scores(signed, size, norm_type, drop_lowest=0.0, generators=()):
    """Scores in 0..1 of signed maps, in the published order: resized, made absolute, normalised. (E,h,w) -> (E,*size).

    drop_lowest: the percentage of each map's lowest pixels that get the score 0. generators: E torch.Generators of
    the CPU, which decide between equal pixels.
    """
    scores = normalise(resize(signed, size).abs(), norm_type)
    if drop_lowest:
        order, _ = ranks(scores, generators)  # (E,S*S), from the highest down
        kept = order.shape[1] - round(drop_lowest / 100 * order.shape[1])
        scores = scores.masked_fill((order >= kept).view_as(scores), 0.0)
    return scores


# --- counting -------------------------------------------------------------------------------------------


class Scoring(NamedTuple):
    """One evaluation of a pass over the images: a source of maps, and how its maps become scores."""
    source: MapSource
    norm_type: str
    edges: np.ndarray         # of the bins
    drop_lowest: float = 0.0  # of cue_scores
    seed: int = 0             # seeds drop_lowest's random draws

    def count(self, totals, signed, size, truths, numbers, asked):
        """Add the signed maps (E,h,w) of the pairs `numbers` (E,) to totals, for each of truths {name: (E,S*S)}.

        asked: [(row, image, pair)] of these maps; image and pair seed what is drawn. totals: {name:
        (histograms (P,2,bins), masses (P,2))}, on the device. A mass is the share of |A - B| inside the truth, in
        millionths, and 1 (0 for a map of zeros). Integers add up to the same in any batches or processes.
        """
        generators = [torch.Generator().manual_seed(util.seed_of(self.seed, index, number))
                      for _, index, number in asked if self.drop_lowest]
        absolute = resize(signed, size).abs()
        scores = cue_scores(absolute, size, self.norm_type, self.drop_lowest, generators)
        bins = metrics.bin_scores(scores, self.edges).flatten(1)
        for name, truth in truths.items():
            histograms, masses = totals[name]
            metrics.add_scores(histograms, bins, truth, numbers)
            share = metrics.mass_inside(absolute.flatten(1), truth)
            mass = torch.stack([(1e6 * share).nan_to_num(0).round(), share.isfinite()], 1).long()
            masses.index_add_(0, numbers, mass)


@torch.inference_mode()
def fill_histograms(loader, scorings, device):
    """The histograms of all class pairs for each of the Scorings, from one forward of every image.

    Returns, for each Scoring, {truth: (P,2,bins), (P,2)} as Scoring.count gives them, int64, for the truths 'parts'
    (the published one: nearest part point within the bird) and, where known, 'exact'; and (P,) images per pair. All are
    sums over the processes of a run. Counts stay on the device until the last batch: to read them, the host waits.
    """
    def zeros(*shape):
        return torch.zeros(len(pairs), 2, *shape, dtype=torch.int64, device=device)

    cues, sources = loader.images, list(dict.fromkeys(scoring.source for scoring in scorings))
    pairs = cues.annotations.pairs
    differing = torch.tensor([[part in pair.parts for part in range(256)] for pair in pairs], device=device)  # (P,256)
    counts = [{name: (zeros(len(scoring.edges) + 1), zeros()) for name in cues.truths} for scoring in scorings]
    evaluations = np.zeros(len(pairs), np.int64)
    for images, _, indices, partition, object_mask, exact in screen.progress(loader, 'cue localization', 'batch'):
        images, size = util.to_device(images, device), images.shape[2:]
        asked = [(row, index, number) for row, index in enumerate(indices.tolist()) for number in cues.pairs[index]]
        np.add.at(evaluations, [number for *_, number in asked], 1)
        rows, numbers = util.send([[row, number] for row, _, number in asked], device).T
        masks = [util.to_device(mask.flatten(1), device) for mask in (partition, object_mask, exact)]
        activations = sources[0].forward(images)
        signed = {source: signed_maps(source, images, indices, cues, activations) for source in sources}
        for start in range(0, len(asked), CHUNKS[device.type]):
            part = slice(start, start + CHUNKS[device.type])
            differs, (shown, on_object, exact) = differing[numbers[part]], (mask[rows[part]] for mask in masks)
            truths = {'parts': differs.gather(1, shown.long()) & on_object}  # (E,S*S)
            if 'exact' in cues.truths:
                truths['exact'] = differs.gather(1, exact.long())
            for scoring, totals in zip(scorings, counts, strict=True):
                scoring.count(totals, signed[scoring.source][part], size, truths, numbers[part], asked[part])
    together = [{name: tuple(sum(processes.gather(part.cpu().numpy())) for part in parts)
                 for name, parts in totals.items()} for totals in counts]
    return together, sum(processes.gather(evaluations))


# --- results --------------------------------------------------------------------------------------------


def report(summaries, masses, dropped, published, is_control):
    """Print the table. masses: {truth: {key: percent}}. dropped: {truth: dropped_shares}. published: the paper's row,
    or None. is_control: the maps do not know the class."""
    rows = []
    for truth, summary in summaries.items():
        for name, values in summary.items():
            shares = [dropped[truth][side] if name in DROPPING else '-' for side in ('true', 'false')]
            rows.append([f'{"control: " * is_control}{TRUTHS[truth]}{name}', *(values[key] for key in KEYS),
                         values['pairs'], *shares])
    for truth, of_keys in masses.items():
        rows.append([f'{TRUTHS[truth]}mass of |A − B| inside', *of_keys.values(), '-', '-', '-'])
    if published:
        rows.append(['the paper (CUB, ResNet-50)', *published, sum(DATASETS['CUB'].cue_pairs), '-', '-'])
    header = ['PxAP, %, by differing parts', *KEYS, 'pairs', 'dropped true, %', 'dropped false, %']
    screen.say(screen.table(header, rows))


def finish(maps, result, is_control, counts, evaluations, cues):
    """Print and write the result of one evaluation. counts, evaluations: of fill_histograms."""
    args, pairs = maps.args, cues.annotations.pairs
    number = np.array([len(pair.parts) for pair in pairs])
    summaries, pxaps, masses, mass_by_pair, dropped = {}, {}, {}, {}, {}
    for truth, (histograms, inside) in counts.items():
        summaries[truth], pxaps[truth] = summarise(histograms, pairs, evaluations)
        masses[truth], mass_by_pair[truth] = summarise_masses(inside, pairs)
        dropped[truth] = dropped_shares(histograms)

    by_number = ', '.join(f'{(evaluations[number == k] > 0).sum()} with {k}' for k in (1, 2, 3))
    dropping = f', lowest {args.drop_lowest:.10g} % dropped' if args.drop_lowest else ''
    screen.say(f'\n{maps.name}{dropping}, {maps.data.name}: {evaluations.sum()} (image, pair) evaluations of '
               f'{len(cues)} images; pairs: {by_number} differing parts')
    is_published = maps.data.name == 'CUB' and maps.folder is None and not (args.drop_lowest or args.control)
    published = paper.PXAP.get((args.attribution_method, args.score_map_process)) if is_published else None
    report(summaries, masses, dropped, published, is_control)
    best = counts[cues.truths[-1]][0]  # the histograms of the best truth
    curves = {f'{k} differing part{"s" * (k > 1)}': metrics.precision_recall(best[number == k].sum(0))
              for k in (1, 2, 3) if evaluations[number == k].any()}
    result.write({'evaluated_images': len(cues), 'evaluations': int(evaluations.sum()), 'is_control': is_control,
                  'pxap': summaries, 'mass': masses,
                  'published_draws': resample_pairs(counts['parts'][0], pairs, evaluations),
                  'dropped': dropped, 'recalls': as_text(100 * np.array(metrics.RECALLS), 0),
                  'pairs': pair_records(pairs, evaluations, pxaps, mass_by_pair, best)})
    figures.save(figures.precision_curves(maps.title(), curves), result.figure())


# --- the command ----------------------------------------------------------------------------------------


def make_parser():
    """The parser of this script's flags."""
    return config.make_parser(__doc__, *config.EVALUATION, 'contrast_method', 'drop_lowest', 'norm_type',
                              'threshold_type', 'cam_curve_interval', listed=LISTED)


def open_maps(args):
    """The Network, its data, and the ChosenMaps of every combination of the listed flags: methods, contrast methods and
    shares of dropped pixels."""
    methods, contrasts, shares = ([*values] if isinstance(values, tuple) else [values]
                                  for values in (args[name] for name in LISTED))
    if args.scoremap_root and len(methods) * len(contrasts) > 1:
        raise UserError("--scoremap_root is one source of maps, and a list of methods asks for several; leave one out")
    network = session.open_network(args, needed=args.scoremap_root is None, whole=True)
    data = session.open_data(network)
    chosen = [session.choose_maps(network, data, 'cue_location', None if contrast == 'difference' else contrast,
                                  score_map_process=method, contrast_method=contrast, drop_lowest=share)
              for method, contrast, share in itertools.product(methods, contrasts, shares)]
    for line in dict.fromkeys(maps.describe() for maps in chosen):
        screen.say(line)
    util.try_algorithms(network.device)
    return network, data, chosen


def main():
    network, data, chosen = open_maps(config.parse(make_parser()))
    images = network.open_split(data, 'test')
    cues = open_cues(data, images)
    by_name = {maps.name: maps for maps in chosen}  # shares of dropped pixels have the same maps
    sources = {name: maps.source(images, 'test', cues.asked_classes, cues.rows) for name, maps in by_name.items()}
    for source in sources.values():
        source.check_pairs(cues.annotations.pairs)
    scorings = [Scoring(sources[maps.name], maps.args.norm_type,
                        metrics.bin_edges(maps.args.threshold_type, maps.args.cam_curve_interval),
                        maps.args.drop_lowest, maps.args.seed) for maps in chosen]
    truth = cues.fingerprint()
    results = [maps.result_file(images, [sources[maps.name]], truth) for maps in chosen]
    counts, evaluations = fill_histograms(network.loader(cues), scorings, network.device)
    for source in sources.values():
        source.say_constant()
    if processes.is_first():
        for maps, result, scoring, totals in zip(chosen, results, scorings, counts, strict=True):
            is_control = bool(maps.args.control) or not scoring.source.per_class
            finish(maps, result, is_control, totals, evaluations, cues)


if __name__ == '__main__':
    screen.run(main)
