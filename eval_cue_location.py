"""Cue localization: does "why A and not B" fall on the parts in which the classes A and B differ?

Source: Kim et al., ICCV 2021, section 5 and its published code. For every test image of a class of
a pair, map_A - map_B is resized to the image, made absolute, and scored as a detector of the differing
parts' pixels, by pixel average precision (PxAP). Data in CUB's layout. The published code adds pair after
pair to the same histograms and drops scores under the first threshold; both are kept, and reported beside
the corrected figures.
Result: save/<experiment_name>/cue_location_<data set>_<method>_<process>_<norm>_<thresholds>.<images and
weights>.json and .png.

    python eval_cue_location.py --experiment_name=calm_em
"""
import numpy as np
import torch

import config
import evaluation
import figures
import util
from data_loaders import Images
from util import UserError
from wsol import metrics
from wsol.cub import UNION_PARTS

# Kim et al. 2021, table 2: PxAP for 1, 2, 3 differing parts and over all pairs (CUB, ResNet-50)
PAPER = {
    ('CAM', 'vanilla'): (24.1, 28.3, 32.2, 29.6), ('CALM_ML', 'jointll'): (23.6, 26.7, 28.8, 27.3),
    ('CALM_EM', 'jointll'): (30.4, 33.3, 36.3, 34.3), ('CAM', 'backprop'): (10.0, 13.7, 15.3, 13.9),
    ('CAM', 'input_grad'): (10.0, 13.7, 15.3, 13.9), ('CAM', 'integrated_grad'): (12.0, 15.1, 17.3, 15.7),
    ('CAM', 'smooth_grad'): (11.8, 15.5, 18.6, 16.5), ('CAM', 'var_grad'): (16.7, 21.1, 23.1, 21.4),
}
PROTOCOLS = {'published': 'running over the pairs', 'per_pair': 'each pair alone'}
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


def cue_scores(differences, size, norm_type):
    """Scores in 0..1 from the signed maps A - B: (E,h,w) -> (E,*size).

    In the published order: resized, then made absolute, then normalised.
    """
    return metrics.normalise(metrics.resize(differences, size).abs(), norm_type)


@torch.inference_mode()
def fill_histograms(loader, source, device, norm_type, edges):
    """One pass over the images, filling all pairs' histograms.

    source: a MapSource. edges: of the histograms' bins. Returns {truth: (P,2,bins) int64} for the truths 'parts' (the
    published one: nearest part point within the bird) and, where known, 'exact'; and (P,) images per pair.
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
        asked = [cues.asked_classes(index) for index in indices.tolist()]
        width = max(map(len, asked))
        classes = torch.tensor([row + row[:1] * (width - len(row)) for row in asked])  # (B,K), padded
        maps = source(util.to_device(images, device), indices, classes.to(device)).maps  # B of (K,h,w)
        partition, object_mask, exact = (truth.flatten(1).to(device) for truth in (partition, object_mask, exact))
        for row, index in enumerate(indices.tolist()):
            numbers = cues.pairs[index]
            differences = signed_differences(maps[row], asked[row], [pairs[n] for n in numbers], source.per_class)
            truths = {'parts': partition[row].long()}  # (S*S,)
            if exact.numel():
                truths['exact'] = exact[row].long()
            for start in range(0, len(numbers), CHUNK):
                chosen = numbers[start:start + CHUNK]
                scores = cue_scores(differences[start:start + CHUNK], images.shape[2:], norm_type)  # (E,S,S)
                binned, rows = metrics.bin_scores(scores, edges).flatten(1), torch.arange(len(chosen), device=device)
                for name, parts in truths.items():
                    truth = differing[chosen][:, parts]  # (E,S*S)
                    if name == 'parts':
                        truth &= object_mask[row]
                    counts.setdefault(name, np.zeros((len(pairs), 2, bins), np.int64))
                    counts[name][chosen] += metrics.count_scores(binned, truth, bins, rows, len(chosen))
            evaluations[numbers] += 1
    return counts, evaluations


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


def pair_records(pairs, evaluations, per_pair):
    """What the result file says of each measured pair."""
    records = []
    for index in np.flatnonzero(evaluations):
        pair = pairs[index]
        values = {f'{truth}_{protocol}_underflow_{underflow}': float(pxap[index]) if np.isfinite(pxap[index]) else None
                  for truth, by in per_pair.items() for (protocol, underflow), pxap in by.items()}
        records.append({'classes': [pair.first + 1, pair.second + 1], 'images': int(evaluations[index]),
                        'parts': [UNION_PARTS[part] for part in pair.parts], **values})
    return records


def report(summaries, paper):
    """The table on the screen. paper: the published row, or None."""
    keys = ('1', '2', '3', 'mean')
    truths = {'parts': 'nearest part point', 'exact': 'exact part masks'}
    rows = [[f'{truths[truth]}, {PROTOCOLS[protocol]}, underflow {underflow}', *(values[key] for key in keys),
             values['pairs']]
            for truth, summary in summaries.items()
            for protocol, by in summary.items() for underflow, values in by.items()]
    if paper:
        rows.append(['the paper (CUB, ResNet-50)', *paper, 191])
    print(util.table(['PxAP, %, by differing parts', *keys, 'pairs'], rows))


def keep_pairs_with_images(annotations, labels):
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
        util.warn(f'{len(dropped)} of {total} class pairs have a class without test images and are left out')


def open_cues(data, images):
    """The CueImages of a split. Raises UserError where nothing can be evaluated."""
    annotations = data.annotations()
    keep_pairs_with_images(annotations, images.labels)
    cues = CueImages(images, annotations)
    if not cues.rows:
        raise UserError('no image to evaluate: in none of the test images is a differing part visible; check '
                        f'{annotations.root / "parts" / "part_locs.txt"}')
    return cues


def main():
    run = evaluation.open_evaluation(config.parse('eval_cue_location', __doc__), 'eval_cue_location', needs_model=False)
    args, images = run.args, run.open_split('test')
    cues = open_cues(run.data, images)
    pairs, number = cues.annotations.pairs, np.array([len(pair.parts) for pair in cues.annotations.pairs])
    source = run.map_source(images, 'test', cues.asked_classes, cues.rows)
    counts, evaluations = fill_histograms(run.loader(cues), source, run.device, args.norm_type,
                                          metrics.bin_edges(args.threshold_type, args.cam_curve_interval))
    summaries, per_pair = {}, {}
    for truth, histogram in counts.items():
        summaries[truth], per_pair[truth] = summarise(histogram, pairs, evaluations)

    by_number = ', '.join(f'{(evaluations[number == k] > 0).sum()} with {k}' for k in (1, 2, 3))
    print(f'\n{run.maps_name()}, {run.data.name}: {evaluations.sum()} (image, pair) evaluations of {len(cues)} images; '
          f'pairs: {by_number} differing parts')
    is_published = run.data.name == 'CUB' and args.scoremap_root is None
    report(summaries, PAPER.get((args.attribution_method, args.score_map_process)) if is_published else None)
    result = run.result_file('cue_location', images, 'test', run.maps_name(), args.norm_type, args.threshold_type)
    histogram = counts.get('exact', counts['parts'])
    curves = {f'{k} differing part{"s" * (k > 1)}': metrics.precision_recall(histogram[number == k].sum(0))
              for k in (1, 2, 3) if evaluations[number == k].any()}
    figures.save(figures.precision_recall_curves(f'{run.maps_name()}, {run.data.name}', curves), result.figure())
    result.write({'evaluated_images': len(cues), 'evaluations': int(evaluations.sum()), 'pxap': summaries,
                  'pairs': pair_records(pairs, evaluations, per_pair)})


if __name__ == '__main__':
    util.run(main)
