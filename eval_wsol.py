"""Weakly supervised object localization: do the maps find the whole object?

Source: the WSOL evaluation of Choe et al., CVPR 2020 (arXiv 2001.07437); MaxBoxAccV2 is from its extended version.
Boxes (CUB, ILSVRC): MaxBoxAccV2 takes the boxes of all contours of the thresholded map, at IoU 30, 50 and 70 %;
MaxBoxAcc takes the largest contour's box at 50 %; Top-1 Loc also requires the right class. Masks (OpenImages): pixel
average precision. Both: the share of the map's mass inside the truth (Wang et al. 2020). Thresholds are chosen on val
and reported on test, beside the oracle, the best threshold on test.
Result: save/<experiment_name>/wsol_<data set>_<head>_<method>_<norm>.<8 digits>.json and .png.

    python eval_wsol.py --experiment_name=calm_em --score_map_process=jointll-superclass --norm_type=minmax
"""
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P and -I leave it out

import config
import util
from dataset.fingerprints import combined
from dataset.image_files import open_image
from dataset.images import warn_of_shared
from evaluation import session
from experiment import result_files
from reports import figures
from runtime import processes, screen
from wsol import metrics
from wsol.errors import UserError
from wsol.maps import normalise, resize

SPLITS = ('val', 'test')


def prepared(score_map, size, norm_type):
    """A raw map (h,w) -> (S,S) in 0..1: resized bicubically, as in the WSOL evaluation, then normalised."""
    if score_map.shape != (size, size):
        score_map = cv2.resize(score_map, (size, size), interpolation=cv2.INTER_CUBIC)
    return normalise(torch.from_numpy(np.ascontiguousarray(score_map)), norm_type).numpy()


class Counts:
    """The base: numbers that add up over images and over processes.

    mass: (N,), the share of each image's map that lies inside the truth; other processes' images are 0.
    """
    summed = ()  # the names of those numbers

    def __init__(self, length, size, norm_type):
        self.size, self.norm_type, self.mass = size, norm_type, np.zeros(length)

    def note_mass(self, score_map, index, truth, counted=True):
        """Note the share of a raw map that lies inside the truth (S,S). counted: the pixels that count."""
        values = resize(torch.from_numpy(score_map)[None], truth.shape).flatten(1)
        kept = torch.from_numpy(truth | counted).flatten()
        self.mass[index] = metrics.mass_inside(values * kept, torch.from_numpy(truth).flatten()[None])[0]

    def share(self):
        """Add what the other processes have counted."""
        for name in self.summed:
            setattr(self, name, sum(processes.gather(getattr(self, name))))


class BoxCounts(Counts):
    """How many images are found at each threshold, by MaxBoxAcc, MaxBoxAccV2 and Top-1 Loc, and which images.

    boxes: the lists.Boxes of the split. ious: the overlaps that count as found, in percent.
    """
    summed = ('hits', 'largest', 'largest_and_class', 'images', 'mass', 'by_image')  # zero rows of others' images

    def __init__(self, boxes, size, norm_type, interval, ious):
        super().__init__(len(boxes.sizes), size, norm_type)
        self.boxes, self.ious = boxes, np.array(ious) / 100
        self.thresholds = np.arange(0, 1, interval)
        total = len(self.thresholds)
        self.hits, self.images = np.zeros((len(self.ious), total), np.int64), 0  # of any contour, per IoU
        self.largest, self.largest_and_class = (np.zeros(total, np.int64) for _ in range(2))  # at IoU 50 %
        # (N,IoUs+1,T/8), eight thresholds a byte: found by any contour per IoU, and by the largest
        self.by_image = np.zeros((len(boxes.sizes), len(self.ious) + 1, (total + 7) // 8), np.uint8)

    def fingerprint(self, contents=None):
        """SHA-256 of what the maps are compared with."""
        return combined(*self.boxes)

    def measure(self, score_map, index):
        """The best overlaps of one map, over all contours and of the largest: two (T,)."""
        truth = metrics.scale_boxes(self.boxes.of(index), self.boxes.sizes[index], (self.size, self.size))
        inside = np.zeros((self.size, self.size), bool)
        for x0, y0, x1, y1 in truth:
            inside[y0:y1 + 1, x0:x1 + 1] = True
        self.note_mass(score_map, index, inside)
        best, largest = metrics.best_ious(prepared(score_map, self.size, self.norm_type), truth, self.thresholds)
        self.by_image[index] = np.packbits([*(best >= self.ious[:, None]), largest >= 0.5], axis=1)
        return best, largest

    def add(self, overlaps, class_is_right):
        """Count the overlaps of one map, as measure() gives them."""
        best, largest = overlaps
        self.hits += best >= self.ious[:, None]
        self.largest += largest >= 0.5
        self.largest_and_class += (largest >= 0.5) & class_is_right
        self.images += 1

    def curves(self):
        """{metric: accuracy in percent at every threshold (T,)}."""
        rows = {f'MaxBoxAccV2@{round(100 * iou)}': row for iou, row in zip(self.ious, self.hits, strict=True)}
        rows |= {'MaxBoxAcc': self.largest, 'Top-1 Loc': self.largest_and_class}
        return {name: 100 * row / self.images for name, row in rows.items()}

    def outcomes(self, results):
        """{metric: digits, whether each image is found} at the thresholds of box_results."""
        names = [*(f'MaxBoxAccV2@{round(100 * iou)}' for iou in self.ious), 'MaxBoxAcc']
        columns = [np.flatnonzero(self.thresholds == results[name]['threshold'])[0] for name in names]
        return {name: result_files.digits(self.by_image[:, row, column // 8] >> (7 - column % 8) & 1)
                for row, (name, column) in enumerate(zip(names, columns, strict=True))}


class MaskCounts(Counts):
    """The histograms of PxAP on masks; ignored pixels are not counted.

    paths: [(the paths of an image's masks, the path of its ignore mask or None)].
    """
    summed = ('counts', 'images', 'mass')

    def __init__(self, paths, size, norm_type, interval):
        super().__init__(len(paths), size, norm_type)
        self.paths = paths
        self.edges = metrics.bin_edges('even', interval)
        self.counts, self.images = np.zeros((2, len(self.edges) + 1), np.int64), 0

    def fingerprint(self, contents):
        """SHA-256 of what the maps are compared with. contents: the Contents that knows the masks' SHA-256."""
        form = [(len(masks), ignore is not None) for masks, ignore in self.paths]
        files = [path for masks, ignore in self.paths for path in (*masks, ignore) if path is not None]
        return combined(form, contents.of(files))

    def _mask(self, path):
        try:
            image = open_image(path, lambda image: np.asarray(image.convert('L')), 'replace it')
        except UserError as error:
            raise UserError(f'{error}. The file is a mask: --mask_root names the folder above OpenImages/') from error
        return cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_NEAREST) > 0

    def truth(self, index):
        """(S,S) bool: the object; (S,S) bool: the pixels that count, all but the ignore mask outside the object."""
        masks, ignore = self.paths[index]
        shown = np.any([self._mask(path) for path in masks], axis=0)
        return shown, np.ones_like(shown) if ignore is None else shown | ~self._mask(ignore)

    def measure(self, score_map, index):
        """The histograms (2,bins) of one map."""
        shown, counted = self.truth(index)
        self.note_mass(score_map, index, shown, counted)
        shown, counted = torch.from_numpy(shown), torch.from_numpy(counted)
        bins = metrics.bin_scores(torch.from_numpy(prepared(score_map, self.size, self.norm_type)), self.edges)
        return metrics.count_scores(bins[counted][None], shown[counted][None], len(self.edges) + 1)[0]

    def add(self, histograms, _):
        """Count the histograms of one map, as measure() gives them."""
        self.counts += histograms
        self.images += 1


def open_counts(data, split, images, args):
    """The BoxCounts or MaskCounts of a split."""
    options = args.crop_size, args.norm_type, args.cam_curve_interval
    if data.has_masks:
        paths = data.mask_paths(split, images.image_ids)
        if without := sum(ignore is None for _, ignore in paths):
            screen.say(f'{split}: {without} of {len(paths)} images have no ignore mask, so all their pixels count')
        return MaskCounts(paths, *options)
    return BoxCounts(data.boxes(split, images.image_ids), *options, args.iou_thresholds)


def localise(loader, source, counts, device):
    """Add every map of a split to counts, in one pass. source: a MapSource; without a network no class is right."""
    def add(batch):
        for measured, is_right in batch:
            counts.add(measured, is_right)

    with ThreadPoolExecutor(util.usable_cores()) as pool:  # OpenCV lets other threads run
        before = ()
        for images, labels, indices in screen.progress(loader, 'localization', 'batch'):
            labels = util.to_device(labels, device)
            probs, maps = source(util.to_device(images, device), indices, labels[:, None])
            maps = [of_image[0].float().cpu().numpy() for of_image in maps]  # B of (h,w)
            right = np.zeros(len(labels), bool) if probs is None else (probs.argmax(1) == labels).cpu().numpy()
            begun = zip(pool.map(counts.measure, maps, indices.tolist()), right, strict=True)
            add(before)  # the pool sought its boxes while the network computed this batch
            before = begun
        add(before)
    counts.share()
    return counts


def box_results(by_split, has_model):
    """Accuracies at val's best threshold and at the test split's best.

    by_split: {split: BoxCounts}. Returns {metric: {'val', 'test', 'oracle', 'threshold'}}.
    """
    val, test = (by_split[split].curves() for split in SPLITS)
    thresholds, results = by_split['test'].thresholds, {}
    for name in test:
        best = val['MaxBoxAcc' if name == 'Top-1 Loc' else name].argmax()  # Top-1 uses the threshold of the boxes
        results[name] = {'val': float(val[name][best]), 'test': float(test[name][best]),
                         'oracle': float(test[name].max()), 'threshold': float(thresholds[best])}
    v2 = [results[name] for name in results if name.startswith('MaxBoxAccV2@')]
    mean = {key: float(np.mean([result[key] for result in v2])) for key in ('val', 'test', 'oracle')}
    results = {'MaxBoxAccV2': mean | {'threshold': None}} | results
    if not has_model:
        del results['Top-1 Loc']
    return results


def mask_results(by_split):
    """PxAP against masks, which needs no threshold. by_split: {split: MaskCounts}."""
    for split, counts in by_split.items():
        if not counts.counts[1].any():
            raise UserError(f'the masks of {split} show no object, so PxAP is not defined')
    pxap = {split: float(metrics.pixel_average_precision(counts.counts)) for split, counts in by_split.items()}
    return {'mask PxAP': pxap | {'oracle': None, 'threshold': None}}


def mass_result(by_split, seed):
    """The mean share of a map inside the truth, in percent, with its interval over the test images."""
    val, test = ((100 * by_split[split].mass).round(2) for split in SPLITS)
    low, high = metrics.bootstrap_ratio(np.nan_to_num(test), np.isfinite(test), seed)
    means = {split: float(np.nanmean(values)) if np.isfinite(values).any() else None
             for split, values in (('val', val), ('test', test))}
    return means | {'oracle': None, 'threshold': None, 'low': low, 'high': high}


def curves_figure(title, counts):
    """The curve of the test split."""
    if isinstance(counts, MaskCounts):
        return figures.precision_recall_curves(title, {'test': metrics.precision_recall(counts.counts)})
    return figures.accuracy_curves(title, counts.thresholds, counts.curves())


def make_parser():
    """The parser of this script's flags."""
    return config.make_parser(__doc__, *config.EVALUATION, 'mask_root', 'norm_type', 'iou_thresholds',
                              'cam_curve_interval')


def main():
    args = config.parse(make_parser())
    network = session.open_network(args, needed=args.scoremap_root is None, whole=True)
    data = session.open_data(network, args.mask_root)
    maps = session.choose_maps(network, data, 'wsol')
    screen.say(maps.describe())
    network.speed_up(maps)
    images = {split: network.open_split(data, split) for split in SPLITS}
    warn_of_shared(images)
    by_split = {split: open_counts(data, split, part, maps.args) for split, part in images.items()}
    sources = {split: maps.source(part, split) for split, part in images.items()}
    truth = combined(images['val'].fingerprint(), *(by_split[split].fingerprint(part.contents)
                                                    for split, part in images.items()))  # val's choose the thresholds
    result = maps.result_file(images['test'], sources.values(), truth)
    for split, part in images.items():
        localise(network.loader(part), sources[split], by_split[split], network.device)
    if not processes.is_first():
        return
    results = mask_results(by_split) if data.has_masks else box_results(by_split, network.model is not None)
    results['mass in mask' if data.has_masks else 'mass in box'] = mass_result(by_split, maps.args.seed)
    rows = [[key, values['val'], values['test'], values['oracle'],
             '-' if values['threshold'] is None else f'{values["threshold"]:.3f}'] for key, values in results.items()]
    sizes = {split: counts.images for split, counts in by_split.items()}
    screen.say(f'\n{maps.name}, {data.name}: {sizes["val"]} val and {sizes["test"]} test images')
    screen.say(screen.table(['%', 'val', 'test', 'test, oracle', 'threshold'], rows))
    outcomes = {} if data.has_masks else {'outcomes': by_split['test'].outcomes(results)}
    result.write({'images_by_split': sizes, 'results': results, **outcomes,
                  'mass_by_image': result_files.as_text(100 * by_split['test'].mass, 2)})
    figures.save(curves_figure(maps.title(), by_split['test']), result.figure())


if __name__ == '__main__':
    screen.run(main)
