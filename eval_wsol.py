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
from threading import Lock

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
    resized = cv2.resize(score_map, (size, size), interpolation=cv2.INTER_CUBIC)
    return normalise(torch.from_numpy(resized), norm_type).numpy()


class Counts:
    """The base class: numbers that add up over images and over processes.

    mass: (N,), the share of each image's map that lies inside the truth; other processes' images are 0.
    """
    summed = ()  # the names of those numbers

    def __init__(self, length, size, norm_type):
        self.size, self.norm_type, self.mass = size, norm_type, np.zeros(length)

    def note_mass(self, score_map, index, truth, counted=True):
        """Note the share of a raw map that lies inside the truth (S,S). counted: the pixels that count."""
        values = resize(torch.from_numpy(score_map)[None], truth.shape) * (truth | counted)
        self.mass[index] = metrics.mass_inside(values.flatten(1), truth.flatten()[None])[0]

    def share(self):
        """Add what the other processes have counted."""
        for name in self.summed:
            setattr(self, name, sum(processes.gather(getattr(self, name))))


class BoxCounts(Counts):
    """Which images are found at each threshold, by MaxBoxAcc and MaxBoxAccV2, and which are classified correctly.

    boxes: the lists.Boxes of the split. ious: the overlaps that count as found, in percent.
    """
    summed = ('mass', 'bits', 'is_right')  # zero for the images of other processes

    def __init__(self, boxes, size, norm_type, interval, ious):
        total = len(boxes.sizes)
        super().__init__(total, size, norm_type)
        self.boxes, self.ious, self.thresholds = boxes, np.array(ious) / 100, np.arange(0, 1, interval)
        self.names = [*(f'MaxBoxAccV2@{iou}' for iou in ious), 'MaxBoxAcc']  # of the metrics; the last is at IoU 50 %
        # (N,IoUs+1,T/8), eight thresholds a byte
        self.bits = np.zeros((total, len(self.names), (len(self.thresholds) + 7) // 8), np.uint8)
        self.is_right = np.zeros(total, bool)

    def fingerprint(self, contents=None):
        """SHA-256 of what the maps are compared with."""
        return combined(*self.boxes)

    def measure(self, score_map, index, is_right):
        """Note which boxes a map finds: at IoU 30, 50 and 70 % the best of all contours, at 50 % the largest."""
        truth = metrics.scale_boxes(self.boxes.of(index), self.boxes.sizes[index], (self.size, self.size))
        inside = torch.zeros(self.size, self.size, dtype=torch.bool)
        for x0, y0, x1, y1 in truth:
            inside[y0:y1 + 1, x0:x1 + 1] = True
        self.note_mass(score_map, index, inside)
        best, largest = metrics.best_ious(prepared(score_map, self.size, self.norm_type), truth, self.thresholds)
        self.bits[index] = np.packbits([*(best >= self.ious[:, None]), largest >= 0.5], axis=1)
        self.is_right[index] = is_right

    def hits(self, name):
        """(N,T): whether each image is found at each threshold, 0 or 1."""
        return np.unpackbits(self.bits[:, self.names.index(name)], axis=1, count=len(self.thresholds))

    def curves(self):
        """{metric: accuracy in percent at every threshold (T,)}."""
        counts = {name: self.hits(name).sum(0) for name in self.names}
        counts['Top-1 Loc'] = self.hits('MaxBoxAcc')[self.is_right > 0].sum(0)
        return {name: 100 * count / len(self.bits) for name, count in counts.items()}

    def outcomes(self, results):
        """{metric: digits, whether each image is found} at the thresholds of box_results."""
        return {name: result_files.digits(self.hits(name)[:, self.thresholds == results[name]['threshold']].ravel())
                for name in self.names}


def _shown(image):
    """(H,W) uint8, above 0 where a mask shows something: any colour but black, unless it is transparent."""
    if image.mode in ('1', 'L') or image.mode.startswith('I'):
        return np.asarray(image.convert('L'))
    pixels = np.asarray(image.convert('RGBA'))
    return pixels[..., :3].max(2) * (pixels[..., 3] > 0)


class MaskCounts(Counts):
    """The histograms of PxAP on masks; ignored pixels are not counted.

    paths: [(the paths of an image's masks, the path of its ignore mask or None)].
    """
    summed = ('mass', 'counts')

    def __init__(self, paths, size, norm_type, interval):
        super().__init__(len(paths), size, norm_type)
        self.paths = paths
        self.edges = metrics.bin_edges('even', interval)
        self.counts, self.lock = np.zeros((2, len(self.edges) + 1), np.int64), Lock()

    def fingerprint(self, contents):
        """SHA-256 of what the maps are compared with. contents: the Contents that knows the masks' SHA-256."""
        form = [(len(masks), ignore is not None) for masks, ignore in self.paths]
        files = [path for masks, ignore in self.paths for path in (*masks, ignore) if path is not None]
        return combined(form, contents.of(files))

    def _mask(self, path):
        try:
            image = open_image(path, _shown, 'replace it')
        except UserError as error:
            raise UserError(f'{error}. The file is a mask: --mask_root names the folder above OpenImages/') from error
        return cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_NEAREST) > 0

    def truth(self, index):
        """(S,S) bool: the object; (S,S) bool: the pixels that count, all but the ignore mask outside the object."""
        masks, ignore = self.paths[index]
        shown = np.any([self._mask(path) for path in masks], axis=0)
        return shown, np.ones_like(shown) if ignore is None else shown | ~self._mask(ignore)

    def measure(self, score_map, index, _):
        """Add the histograms of one map."""
        shown, counted = map(torch.from_numpy, self.truth(index))
        self.note_mass(score_map, index, shown, counted)
        bins = metrics.bin_scores(torch.from_numpy(prepared(score_map, self.size, self.norm_type)), self.edges)
        added = metrics.count_scores(bins[counted][None], shown[counted][None], len(self.edges) + 1)[0]
        with self.lock:  # several threads measure maps
            self.counts += added


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
    with ThreadPoolExecutor(util.usable_cores()) as pool:  # OpenCV lets other threads run
        before = ()
        for images, labels, indices in screen.progress(loader, 'localization', 'batch'):
            labels = util.to_device(labels, device)
            probs, maps = source(util.to_device(images, device), indices, labels[:, None])
            maps = [of_image[0].float().cpu().numpy() for of_image in maps]  # B of (h,w)
            right = np.zeros(len(labels), bool) if probs is None else (probs.argmax(1) == labels).cpu().numpy()
            begun = pool.map(counts.measure, maps, indices.tolist(), right)
            list(before)  # wait for the boxes of the batch before, which the pool finds while the network computes
            before = begun
        list(before)
    counts.share()


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
    (val, *_), (test, low, high) = (metrics.bootstrap_mean((100 * by_split[split].mass).round(2), seed)
                                    for split in SPLITS)
    return {'val': val, 'test': test, 'oracle': None, 'threshold': None, 'low': low, 'high': high}


def make_parser():
    """The parser of this script's flags."""
    return config.make_parser(__doc__, *config.EVALUATION, 'mask_root', 'norm_type', 'iou_thresholds',
                              'cam_curve_interval')


def main():
    args = config.parse(make_parser())
    args.mask_root = args.mask_root if 'mask_root' in args.given else args.data_root
    network = session.open_network(args, needed=args.scoremap_root is None, whole=True)
    data = session.open_data(network, args.mask_root)
    maps = session.choose_maps(network, data, 'wsol')
    screen.say(maps.describe())
    util.try_algorithms(network.device)
    images = {split: network.open_split(data, split) for split in SPLITS}
    warn_of_shared(images)
    by_split = {split: open_counts(data, split, part, maps.args) for split, part in images.items()}
    sources = {split: maps.source(part, split) for split, part in images.items()}
    truth = combined(images['val'].fingerprint(), *(by_split[split].fingerprint(part.contents)
                                                    for split, part in images.items()))  # thresholds are chosen on val
    result = maps.result_file(images['test'], sources.values(), truth)
    for split, part in images.items():
        localise(network.loader(part), sources[split], by_split[split], network.device)
        sources[split].say_constant()
    if not processes.is_first():
        return
    results = mask_results(by_split) if data.has_masks else box_results(by_split, network.model is not None)
    results['mass in mask' if data.has_masks else 'mass in box'] = mass_result(by_split, maps.args.seed)
    rows = [[key, values['val'], values['test'], values['oracle'],
             '-' if values['threshold'] is None else f'{values["threshold"]:.3f}'] for key, values in results.items()]
    sizes = {split: len(part) for split, part in images.items()}
    screen.say(f'\n{maps.name}, {data.name}: {sizes["val"]} val and {sizes["test"]} test images')
    screen.say(screen.table(['%', 'val', 'test', 'test, oracle', 'threshold'], rows))
    test = by_split['test']
    outcomes = {} if data.has_masks else {'outcomes': test.outcomes(results)}
    result.write({'images_by_split': sizes, 'results': results, **outcomes,
                  'mass_by_image': result_files.as_text(100 * test.mass, 2)})
    if data.has_masks:
        curve = figures.precision_curves(maps.title(), {'test': metrics.precision_recall(test.counts)})
    else:
        curve = figures.accuracy_curves(maps.title(), test.thresholds, test.curves())
    figures.save(curve, result.figure())


if __name__ == '__main__':
    screen.run(main)
