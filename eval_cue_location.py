"""Cue localization: does "why A and not B" fall on the parts in which the classes A and B differ?

Source: Kim et al., ICCV 2021, section 5 and its published code. For every test image of a class of
a pair, |map_A - map_B| is scored as a detector of the differing parts' pixels, by pixel average
precision (PxAP). Data in CUB's layout. The published code adds pair after pair to the same histograms and
drops scores under the first threshold; both are kept, and reported beside the corrected figures.
Result: save/<experiment_name>/cue_location_<method>_<process>_<norm>_<thresholds>.json and .png.

    python eval_cue_location.py --experiment_name=calm_em --score_map_process=jointll --norm_type=clipping \\
        --threshold_type=log
"""
import numpy as np
import torch
from torch.utils.data import Dataset

import config
import data_loaders
import evaluation
import figures
import util
from util import UserError
from wsol import metrics
from wsol.cub import UNION_PARTS, CueAnnotations

# Kim et al. 2021, table 2: PxAP for 1, 2, 3 differing parts and over all pairs (CUB, ResNet-50)
PAPER = {
    ('CAM', 'vanilla'): (24.1, 28.3, 32.2, 29.6), ('CALM_ML', 'jointll'): (23.6, 26.7, 28.8, 27.3),
    ('CALM_EM', 'jointll'): (30.4, 33.3, 36.3, 34.3), ('CAM', 'backprop'): (10.0, 13.7, 15.3, 13.9),
    ('CAM', 'input_grad'): (10.0, 13.7, 15.3, 13.9), ('CAM', 'integrated_grad'): (12.0, 15.1, 17.3, 15.7),
    ('CAM', 'smooth_grad'): (11.8, 15.5, 18.6, 16.5), ('CAM', 'var_grad'): (16.7, 21.1, 23.1, 21.4),
}
PROTOCOLS = {'published': 'running over the pairs', 'per_pair': 'each pair alone'}
CHUNK = 64  # (image, pair) evaluations scored at a time: bounds the memory


class CueImages(Dataset):
    """The test images that some pair evaluates, with their partitions and masks.

    Item -> image (3,S,S), label, index, partition (S,S) uint8, object mask (S,S) bool,
    true parts (S,S) uint8 (empty where the data set does not know them).
    """

    def __init__(self, images, annotations):
        self.images, self.annotations = images, annotations
        self.pairs = [annotations.evaluated(images.image_id(index), label) for index, label in enumerate(images.labels)]
        self.rows = [index for index, pairs in enumerate(self.pairs) if pairs]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        image, label, index = self.images[self.rows[row]]
        image_id, size = self.images.image_id(index), image.shape[-1]
        truth = self.annotations.true_parts(image_id, size)
        return (image, label, index, self.annotations.partition(image_id, size),
                self.annotations.object_mask(image_id, size), np.empty(0, np.uint8) if truth is None else truth)


def asked_classes(batch_pairs, labels, pairs):
    """The classes whose maps a batch needs, the label's first. Returns (B,K) int64, padded with the label."""
    asked = []
    for label, indices in zip(labels, batch_pairs, strict=True):
        others = {cls for index in indices for cls in pairs[index][:2]} - {label}
        asked.append([label, *sorted(others)])
    width = max(map(len, asked))
    return torch.tensor([row + [row[0]] * (width - len(row)) for row in asked])


@torch.inference_mode()
def count(loader, maps_of, args, device):
    """One pass over the images, filling all pairs' histograms.

    Returns {truth: (P,2,bins) int64} for the truths 'parts' (the published one: nearest part point within the
    bird) and, where known, 'exact'; and (P,) images per pair.
    """
    images_set = loader.dataset
    pairs = images_set.annotations.pairs
    differing = np.zeros((len(pairs), 256), bool)  # pair, part -> does it differ?
    for index, pair in enumerate(pairs):
        differing[index, list(pair.parts)] = True
    differing = torch.from_numpy(differing)
    edges = metrics.bin_edges(args.threshold_type, args.cam_curve_interval)
    bins = len(edges) + 1
    counts, evaluations, per_class = {}, np.zeros(len(pairs), np.int64), evaluation.is_per_class(args)
    for images, labels, indices, partition, object_mask, exact in util.progress(loader, 'cue localization', 'batch'):
        batch_pairs = [images_set.pairs[index] for index in indices.tolist()]
        classes = asked_classes(batch_pairs, labels.tolist(), pairs)
        maps = maps_of(util.to_device(images, device), classes.to(device), indices)  # (B,K,h,w)
        entries = [(row, index) for row, chosen in enumerate(batch_pairs) for index in chosen]
        columns = [{cls: column for column, cls in reversed(list(enumerate(row)))} for row in classes.tolist()]
        for start in range(0, len(entries), CHUNK):
            rows, chosen = (list(column) for column in zip(*entries[start:start + CHUNK], strict=True))
            scores = []
            for row, index in zip(rows, chosen, strict=True):
                first, second = (maps[row][columns[row][pairs[index][side]]] for side in (0, 1))  # (h,w)
                # A - B of a map without classes would be zero: such a map is a control, scored as it is
                scores.append((first - second).abs() if per_class else first)
            scores = torch.cat([metrics.resize(one[None], images.shape[2:]) for one in scores])  # (E,S,S)
            scores = metrics.normalise(scores, args.norm_type)
            binned, which = metrics.bin_scores(scores, edges).flatten(1), torch.tensor(chosen)
            truths = {'parts': partition[rows], 'exact': exact[rows]} if exact.numel() else {'parts': partition[rows]}
            for name, parts in truths.items():
                truth = differing[which[:, None], parts.flatten(1).long()]  # (E,S*S)
                if name == 'parts':
                    truth &= object_mask[rows].flatten(1)
                counts[name] = counts.get(name, 0) + metrics.count_scores(binned, truth, bins, which, len(pairs))
            evaluations += np.bincount(chosen, minlength=len(pairs))
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


def report(args, summaries, evaluations, number):
    """The table on the screen."""
    keys = ('1', '2', '3', 'mean')
    truths = {'parts': 'nearest part point', 'exact': 'exact part masks'}
    rows = [[f'{truths[truth]}, {PROTOCOLS[protocol]}, underflow {underflow}', *(values[key] for key in keys),
             values['pairs']]
            for truth, summary in summaries.items()
            for protocol, by in summary.items() for underflow, values in by.items()]
    key = (args.attribution_method, args.score_map_process)
    paper = PAPER.get(key) if args.dataset == 'CUB' and args.scoremap_root is None else None
    if paper:
        rows.append(['the paper (CUB, ResNet-50)', *paper, 191])
    by_number = ', '.join(f'{(evaluations[number == k] > 0).sum()} with {k}' for k in (1, 2, 3))
    print(f'\n{evaluation.results_name(args)}, {args.threshold_type} thresholds, {args.dataset}: {evaluations.sum()} '
          f'(image, pair) evaluations; pairs: {by_number} differing parts')
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
        names = ', '.join(f'{pair.first + 1}-{pair.second + 1}' for pair in dropped)
        util.warn(f'{len(dropped)} of {total} class pairs have a class without test images and are left out: {names}')


def main():
    model, path, args, device = evaluation.open_evaluation(config.parse(__doc__), needs_model=False)
    if data_loaders.dataset_spec(args).cub_folder is None:
        raise UserError(f'cue localization needs parts and attributes in CUB\'s layout; {args.dataset} has none')
    test_set = data_loaders.open_split(args, 'test')
    annotations = CueAnnotations(data_loaders.cub_root(args))
    keep_pairs_with_images(annotations, test_set.labels)
    pairs, images = annotations.pairs, CueImages(test_set, annotations)
    if not images.rows:
        raise UserError('no image to evaluate: in none of the test images is a differing part visible; check '
                        f'{annotations.root / "parts" / "part_locs.txt"}')
    loader = data_loaders.make_loader(images, args, device)
    counts, evaluations = count(loader, evaluation.map_source(args, model, test_set), args, device)

    summaries, per_pair = {}, {}
    for truth, histogram in counts.items():
        summaries[truth], per_pair[truth] = summarise(histogram, pairs, evaluations)
    name = f'{evaluation.results_name(args)}_{args.threshold_type}'
    target = evaluation.results_folder(args, path) / f'cue_location_{name}.json'
    number = np.array([len(pair.parts) for pair in pairs])
    truth = 'exact' if 'exact' in counts else 'parts'
    curves = {f'{k} differing part{"s" * (k > 1)}': metrics.precision_recall(counts[truth][number == k].sum(0))
              for k in (1, 2, 3) if evaluations[number == k].any()}
    figures.precision_recall_curves(target.with_suffix('.png'), name, curves)
    util.write_json(target, {'metric': 'cue localization, PxAP in percent', 'dataset': args.dataset,
                             'images': len(images), 'evaluations': int(evaluations.sum()), 'pxap': summaries,
                             'pairs': pair_records(pairs, evaluations, per_pair), 'checkpoint': path and str(path),
                             'settings': evaluation.recorded_settings(args)})
    report(args, summaries, evaluations, number)
    print(f'{target}, {target.with_suffix(".png").name}')


if __name__ == '__main__':
    util.run(main)
