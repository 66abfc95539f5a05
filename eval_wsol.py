"""Weakly supervised object localization: do the maps find the whole object?

Source: the WSOL evaluation of Choe et al., CVPR 2020 (arXiv 2001.07437), MaxBoxAccV2 of its extension. Boxes (CUB,
ILSVRC): of all contours of the thresholded map, at IoU 30, 50, 70 % (MaxBoxAccV2), of the largest one at 50 %
(MaxBoxAcc), that one where the class is right too (Top-1). Masks (OpenImages): pixel average precision. Thresholds
are chosen on val and reported on test, beside the oracle that chooses on test.
Result: save/<experiment_name>/wsol_<method>_<process>_<norm>.json and .png.

    python eval_wsol.py --experiment_name=calm_em --score_map_process=jointll-superclass --norm_type=minmax
"""
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch

import config
import data_loaders
import evaluation
import figures
import util
from dataset.metadata import read_boxes, read_mask_paths
from util import UserError
from wsol import metrics

SPLITS = ('val', 'test')


def prepared(score_map, size, norm_type):
    """A raw map (h,w) -> (S,S) in 0..1: bicubic, as the WSOL evaluation resizes, then normalised."""
    if score_map.shape != (size, size):
        score_map = cv2.resize(score_map, (size, size), interpolation=cv2.INTER_CUBIC)
    return metrics.normalise(torch.from_numpy(np.ascontiguousarray(score_map)), norm_type).numpy()


class BoxCounts:
    """MaxBoxAcc and its kin: how many images are found at each threshold. Keeps counts only."""

    def __init__(self, args, split, ids):
        self.boxes = read_boxes(data_loaders.metadata_folder(args, split), ids)
        self.thresholds = np.arange(0, 1, args.cam_curve_interval)
        self.ious, self.size, self.norm_type = np.array(args.iou_thresholds) / 100, args.crop_size, args.norm_type
        count = len(self.thresholds)
        self.found, self.images = np.zeros((len(self.ious), count), np.int64), 0  # any contour, per IoU
        self.largest, self.largest_and_class = (np.zeros(count, np.int64) for _ in range(2))  # at IoU 50 %

    def measure(self, score_map, index):
        """The best overlaps of one map, over all contours and of the largest: two (T,)."""
        truth = metrics.scale_boxes(self.boxes.of(index), self.boxes.sizes[index], (self.size, self.size))
        return metrics.best_ious(prepared(score_map, self.size, self.norm_type), truth, self.thresholds)

    def add(self, measured, class_is_right):
        every, largest = measured
        self.found += every >= self.ious[:, None]
        self.largest += largest >= 0.5
        self.largest_and_class += (largest >= 0.5) & class_is_right
        self.images += 1

    def curves(self):
        """{measure: accuracy in percent at every threshold (T,)}."""
        rows = {f'MaxBoxAccV2@{round(100 * iou)}': row for iou, row in zip(self.ious, self.found, strict=True)}
        rows |= {'MaxBoxAcc': self.largest, 'Top-1 Loc': self.largest_and_class}
        return {name: 100 * row / self.images for name, row in rows.items()}


class MaskCounts:
    """Pixel average precision on masks; pixels to be ignored count nowhere."""

    def __init__(self, args, split, ids):
        self.paths = read_mask_paths(data_loaders.metadata_folder(args, split), ids)
        self.root = data_loaders.mask_folder(args)
        self.size, self.norm_type = args.crop_size, args.norm_type
        self.edges = metrics.bin_edges('even', args.cam_curve_interval)
        self.counts, self.images = np.zeros((2, len(self.edges) + 1), np.int64), 0

    def _mask(self, path):
        image = cv2.imread(str(self.root / path), cv2.IMREAD_GRAYSCALE)
        if image is None:
            raise UserError(f'the mask {self.root / path} does not open; --mask_root names the folder above '
                            'OpenImages/')
        return cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_NEAREST) > 0

    def truth(self, index):
        """(S,S) bool object, (S,S) bool to be counted: all but the ignore mask outside the object."""
        masks, ignore = self.paths[index]
        thing = np.any([self._mask(path) for path in masks], axis=0)
        return thing, thing | ~self._mask(ignore)

    def measure(self, score_map, index):
        thing, counted = (torch.from_numpy(mask) for mask in self.truth(index))
        bins = metrics.bin_scores(torch.from_numpy(prepared(score_map, self.size, self.norm_type)), self.edges)
        return metrics.count_scores(bins[counted][None], thing[counted][None], len(self.edges) + 1)[0]

    def add(self, measured, _):
        self.counts += measured
        self.images += 1


def count(dataset, model, maps_of, counts, args, device):
    """One pass over a split, adding every map to counts. model: None for maps made elsewhere (no class then)."""
    loader = data_loaders.make_loader(dataset, args, device)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # OpenCV lets other threads run
        for images, labels, indices in util.progress(loader, 'localization', 'batch'):
            images = util.to_device(images, device)
            maps = [one.float().cpu().numpy() for one in maps_of(images, labels.to(device), indices)]
            right = np.zeros(len(labels), bool)
            if model is not None:
                with torch.no_grad(), util.autocast(args, device):
                    right = (model(images).argmax(1).cpu() == labels).numpy()
            for measured, correct in zip(pool.map(counts.measure, maps, indices.tolist()), right, strict=True):
                counts.add(measured, correct)
    return counts


def box_results(by_split, has_model):
    """Accuracies at val's best threshold and at the test split's own.

    by_split: {split: BoxCounts}. Returns {measure: {'val', 'test', 'oracle', 'threshold'}}.
    """
    val, test = (by_split[split].curves() for split in SPLITS)
    thresholds = by_split['test'].thresholds
    results = {}
    for name in test:
        chooser = 'MaxBoxAcc' if name == 'Top-1 Loc' else name  # Top-1 uses the threshold of the boxes
        best = val[chooser].argmax()
        results[name] = {'val': float(val[name][best]), 'test': float(test[name][best]),
                         'oracle': float(test[name].max()), 'threshold': float(thresholds[best])}
    v2 = [results[name] for name in results if name.startswith('MaxBoxAccV2@')]
    mean = {key: float(np.mean([result[key] for result in v2])) for key in ('val', 'test', 'oracle')}
    results = {'MaxBoxAccV2': mean | {'threshold': None}} | results
    results['GT-known Loc'] = dict(results['MaxBoxAcc'])  # its other name, at a threshold chosen beforehand
    if not has_model:
        del results['Top-1 Loc']
    return results


def mask_results(by_split):
    """PxAP needs no threshold: nothing is chosen. by_split: {split: MaskCounts}."""
    for split, counts in by_split.items():
        if not counts.counts[1].any():
            raise UserError(f'the masks of {split} show no object at all: PxAP is not defined')
    pxap = {split: float(metrics.pixel_average_precision(counts.counts)) for split, counts in by_split.items()}
    return {'PxAP': pxap | {'oracle': None, 'threshold': None}}


def draw(path, name, counts):
    """The test split's curve, next to the result file."""
    if isinstance(counts, MaskCounts):
        figures.precision_recall_curves(path, name, {'test': metrics.precision_recall(counts.counts)})
    else:
        figures.accuracy_curves(path, name, counts.thresholds, counts.curves())


def main():
    model, path, args, device = evaluation.open_evaluation(config.parse(__doc__), needs_model=False)
    masks, by_split = data_loaders.dataset_spec(args).masks, {}
    for split in SPLITS:
        dataset = data_loaders.open_split(args, split)
        counts = (MaskCounts if masks else BoxCounts)(args, split, dataset.image_ids)
        maps_of = evaluation.map_source(args, model, dataset, split)
        by_split[split] = count(dataset, model, maps_of, counts, args, device)
    results = mask_results(by_split) if masks else box_results(by_split, model is not None)
    name = evaluation.results_name(args)
    target = evaluation.results_folder(args, path) / f'wsol_{name}.json'
    images = {split: counts.images for split, counts in by_split.items()}
    draw(target.with_suffix('.png'), name, by_split['test'])
    util.write_json(target, {'metric': 'weakly supervised object localization, in percent', 'dataset': args.dataset,
                             'images': images, 'results': results, 'checkpoint': path and str(path),
                             'settings': evaluation.recorded_settings(args)})
    rows = [[key, one['val'], one['test'], one['oracle'],
             '-' if one['threshold'] is None else f'{one["threshold"]:.3f}'] for key, one in results.items()]
    print(f'\n{name}, {args.dataset}: {images["val"]} val and {images["test"]} test images')
    print(util.table(['%', 'val', 'test', 'test, oracle', 'threshold'], rows))
    print(f'{target}, {target.with_suffix(".png").name}')


if __name__ == '__main__':
    util.run(main)
