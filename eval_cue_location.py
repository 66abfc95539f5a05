"""Cue localization: does "why A and not B" fall on the parts in which the classes A and B differ?

Source: Kim et al., ICCV 2021, section 5 and its published code. For every test image of a class of
a pair, map_A - map_B is resized to the image, made absolute, and scored as a detector of the differing
parts' pixels, by pixel average precision (PxAP). Data in CUB's layout. The published code adds pair after
pair to the same histograms and drops scores under the first threshold; both are kept, and reported beside
the corrected figures, with the share of the pixels that are dropped.
Result: save/<experiment_name>/cue_location_<data set>_<method>_<process>_<norm>_<thresholds>.<images and
weights>.json and .png.

    python eval_cue_location.py --experiment_name=calm_em
"""
import numpy as np
import torch

import config
import evaluation
import figures
import paper
import processes
import util
from data_loaders import Images
from util import UserError
from wsol import metrics
from wsol.cub import UNION_PARTS

TRUTHS = {'parts': '', 'exact': 'exact part masks, '}
ROWS = {  # protocol and underflow -> how the table calls them
    ('published', 'dropped'): 'published protocol', ('published', 'counted'): 'published protocol, all pixels counted',
    ('per_pair', 'dropped'): 'each pair alone, lowest pixels dropped',
    ('per_pair', 'counted'): 'each pair alone, all pixels counted'}
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


def signed_contrasts(source, images, indices, pairs):
    """The maps (E,h,w) of a contrast method for the class pairs of each image of a batch, from one forward."""
    activations, found = source.forward(images), [[] for _ in pairs]
    for number in range(max(map(len, pairs))):
        rows = [row for row, own in enumerate(pairs) if number < len(own)]
        classes = torch.tensor([pairs[row][number][:2] for row in rows], device=images.device)
        own = type(activations)(*(None if values is None else values[rows] for values in activations))
        for row, maps in zip(rows, source(images[rows], indices[rows], classes, own).maps, strict=True):
            found[row].append(maps[0])
    return [torch.stack(own) for own in found]


def signed_maps(source, images, indices, cues):
    """For each image of a batch the signed maps (E,h,w) of "why A and not B", a map for each of its class pairs."""
    pairs = [[cues.annotations.pairs[number] for number in cues.pairs[index]] for index in indices.tolist()]
    if source.per_pair:
        return signed_contrasts(source, images, indices, pairs)
    asked = [cues.asked_classes(index) for index in indices.tolist()]
    width = max(map(len, asked))
    classes = torch.tensor([row + row[:1] * (width - len(row)) for row in asked], device=images.device)  # (B,K), padded
    maps = source(images, indices, classes).maps  # B of (K,h,w)
    return [signed_differences(*of_image, source.per_class) for of_image in zip(maps, asked, pairs, strict=True)]


def cue_scores(differences, size, norm_type, drop_lowest=0.0):
    """Scores in 0..1 from the signed maps A - B: (E,h,w) -> (E,*size).

    In the published order: resized, then made absolute, then normalised. drop_lowest: the percentage of each map's
    pixels, the lowest, that get the score 0.
    """
    scores = metrics.normalise(metrics.resize(differences, size).abs(), norm_type)
    if drop_lowest:
        flat = scores.flatten(1)
        lowest = flat.argsort(dim=1, stable=True)[:, :round(drop_lowest / 100 * flat.shape[1])]
        scores = flat.scatter(1, lowest, 0.0).view_as(scores)
    return scores


@torch.inference_mode()
def fill_histograms(loader, source, device, norm_type, edges, drop_lowest=0.0):
    """One pass over the images, filling all pairs' histograms.

    source: a MapSource. edges: of the histograms' bins. drop_lowest: of cue_scores. Returns {truth: (P,2,bins) int64}
    for the truths 'parts' (the published one: nearest part point within the bird) and, where known, 'exact'; and (P,)
    images per pair.
    """
    cues = loader.dataset
    pairs = cues.annotations.pairs
    differing = np.zeros((len(pairs), 256), bool)  # pair, part -> does it differ?
    for number, pair in enumerate(pairs):
        differing[number, list(pair.parts)] = True
    differing = torch.from_numpy(differing).to(device)
    bins = len(edges) + 1
    counts, evaluations = {}, np.zeros(len(pairs), np.int64)
    for images, _, indices, partition, object_mask, exact in util.progress(loader, 'cue localization', 'batch'):
        differences = signed_maps(source, util.to_device(images, device), indices, cues)  # B of (E,h,w)
        partition, object_mask, exact = (truth.flatten(1).to(device) for truth in (partition, object_mask, exact))
        for row, index in enumerate(indices.tolist()):
            numbers = cues.pairs[index]
            truths = {'parts': partition[row].long()}  # (S*S,)
            if exact.numel():
                truths['exact'] = exact[row].long()
            for start in range(0, len(numbers), CHUNK):
                chosen = numbers[start:start + CHUNK]
                own = differences[row][start:start + CHUNK]
                scores = cue_scores(own, images.shape[2:], norm_type, drop_lowest)  # (E,S,S)
                binned, rows = metrics.bin_scores(scores, edges).flatten(1), torch.arange(len(chosen), device=device)
                for name, parts in truths.items():
                    truth = differing[chosen][:, parts]  # (E,S*S)
                    if name == 'parts':
                        truth &= object_mask[row]
                    counts.setdefault(name, np.zeros((len(pairs), 2, bins), np.int64))
                    counts[name][chosen] += metrics.count_scores(binned, truth, bins, rows, len(chosen))
            evaluations[numbers] += 1
    return counts, evaluations


def over_all(counts, evaluations):
    """The histograms and numbers of evaluations of all processes together. The first has some of each truth."""
    of_each = processes.gather((counts, evaluations))
    counts = {name: sum(own[name] for own, _ in of_each if name in own) for name in of_each[0][0]}
    return counts, sum(own for _, own in of_each)


def summarise(counts, pairs, evaluations):
    """PxAP by protocol, with the underflow dropped as published and counted.

    counts: (P,2,bins). Returns {protocol: {'dropped' | 'counted': {'1', '2', '3', 'mean', 'pairs'}}}, pairs the number
    that have a value (underflow can hold all of a pair's true pixels); and the per-pair values (protocol, underflow)
    -> (P,).
    """
    measured = evaluations > 0
    number = np.array([len(pair.parts) for pair in pairs])
    histograms = {'published': np.cumsum(counts, axis=0), 'per_pair': counts}
    summary, values = {}, {}
    for protocol, histogram in histograms.items():
        summary[protocol] = {}
        for name, underflow in (('dropped', False), ('counted', True)):
            value = metrics.pixel_average_precision(histogram, underflow)  # (P,)
            values[protocol, name] = value
            usable = measured & np.isfinite(value)  # a pair whose differing parts no mask shows has no value
            groups = {str(k): usable & (number == k) for k in (1, 2, 3)} | {'mean': usable}
            summary[protocol][name] = {key: float(value[group].mean()) if group.any() else None
                                       for key, group in groups.items()}
            summary[protocol][name]['pairs'] = int(usable.sum())
    return summary, values


def dropped_shares(counts):
    """{'true', 'false', 'all'}: the percent of true, of false and of all pixels under the lowest threshold. counts:
    (P,2,bins)."""
    below, total = counts[..., 0].sum(0), counts.sum((0, 2))
    shares = {name: 100 * float(below[side] / total[side]) if total[side] else None
              for name, side in (('true', 1), ('false', 0))}
    return shares | {'all': 100 * float(below.sum() / total.sum())}


def pair_records(pairs, evaluations, per_pair, counts):
    """What the result file says of each measured pair. counts: (P,2,bins), whose precision by recall it keeps."""
    records, precision = [], metrics.precision_at_recall(counts)
    for index in np.flatnonzero(evaluations):
        pair = pairs[index]
        values = {f'{truth}_{protocol}_underflow_{underflow}': float(pxap[index]) if np.isfinite(pxap[index]) else None
                  for truth, by in per_pair.items() for (protocol, underflow), pxap in by.items()}
        records.append({'classes': [pair.first + 1, pair.second + 1], 'images': int(evaluations[index]),
                        'parts': [UNION_PARTS[part] for part in pair.parts], **values,
                        'precision': ' '.join(f'{100 * value:.1f}' for value in precision[index])})
    return records


def report(summaries, dropped, published):
    """The table on the screen. dropped: {truth: dropped_shares}. published: the paper's row, or None."""
    rows = []
    for truth, summary in summaries.items():
        for (protocol, underflow), name in ROWS.items():
            values = summary[protocol][underflow]
            shares = [dropped[truth][side] if underflow == 'dropped' else '-' for side in ('true', 'false')]
            rows.append([TRUTHS[truth] + name, *(values[key] for key in paper.KEYS), values['pairs'], *shares])
    if published:
        rows.append(['the paper (CUB, ResNet-50)', *published, sum(paper.PAIRS), '-', '-'])
    util.say(util.table(['PxAP, %, by differing parts', *paper.KEYS, 'pairs', 'dropped: true, %', 'false, %'], rows))


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
        util.warn(f'{len(dropped)} of {total} class pairs have a class without test images and are left out'
                  + ('' if verbose else '; --verbose lists them'))
        for pair in dropped if verbose else []:
            util.say(f'left out: classes {pair.first + 1} and {pair.second + 1}')


def open_cues(data, images, verbose=False):
    """The CueImages of a split. Raises UserError where nothing can be evaluated."""
    annotations = data.annotations()
    keep_pairs_with_images(annotations, images.labels, verbose)
    cues = CueImages(images, annotations)
    if not cues.rows:
        raise UserError('no image to evaluate: in none of the test images is a differing part visible; check '
                        f'{annotations.root / "parts" / "part_locs.txt"}')
    return cues


def main():
    run = evaluation.open_evaluation(config.parse('eval_cue_location', __doc__), 'eval_cue_location', needs_model=False)
    args, images = run.args, run.open_split('test')
    cues = open_cues(run.data, images, args.verbose)
    pairs, number = cues.annotations.pairs, np.array([len(pair.parts) for pair in cues.annotations.pairs])
    source = run.map_source(images, 'test', cues.asked_classes, cues.rows)
    edges = metrics.bin_edges(args.threshold_type, args.cam_curve_interval)
    counts, evaluations = over_all(*fill_histograms(run.loader(cues), source, run.device, args.norm_type, edges,
                                                    args.drop_lowest))
    if not processes.is_first():
        return
    summaries, per_pair = {}, {}
    for truth, histogram in counts.items():
        summaries[truth], per_pair[truth] = summarise(histogram, pairs, evaluations)
    dropped = {truth: dropped_shares(histogram) for truth, histogram in counts.items()}

    by_number = ', '.join(f'{(evaluations[number == k] > 0).sum()} with {k}' for k in (1, 2, 3))
    util.say(f'\n{run.maps_name()}, {run.data.name}: {evaluations.sum()} (image, pair) evaluations of {len(cues)} '
             f'images; pairs: {by_number} differing parts')
    is_published = run.data.name == 'CUB' and args.scoremap_root is None and not args.drop_lowest
    method = args.attribution_method, args.score_map_process
    report(summaries, dropped, paper.PXAP.get(method) if is_published else None)
    dropping = [f'lowest{args.drop_lowest:g}dropped'] if args.drop_lowest else []
    result = run.result_file('cue_location', images, 'test', run.maps_name(), args.norm_type, args.threshold_type,
                             *dropping)
    histogram = counts.get('exact', counts['parts'])
    curves = {f'{k} differing part{"s" * (k > 1)}': metrics.precision_recall(histogram[number == k].sum(0))
              for k in (1, 2, 3) if evaluations[number == k].any()}
    figures.save(figures.precision_recall_curves(run.title(), curves), result.figure())
    result.write({'evaluated_images': len(cues), 'evaluations': int(evaluations.sum()), 'pxap': summaries,
                  'dropped': dropped, 'recalls': ' '.join(f'{100 * recall:.0f}' for recall in metrics.RECALLS),
                  'pairs': pair_records(pairs, evaluations, per_pair, histogram)})


if __name__ == '__main__':
    util.run(main)
