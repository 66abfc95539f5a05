"""eval_wsol.py: real masks, and the script against naive loops that share no code with it."""
import pickle
import threading

import cv2
import numpy as np
import pytest
import torch
from conftest import SIZE, accepted, open_birds, read_result, refused, roots_of, shared
from PIL import Image

import eval_wsol
from dataset.registry import find_dataset
from evaluation import map_sources
from experiment import weights
from reports import columns, intervals
from wsol import metrics
from wsol.attribution.maps import attribution_maps
from wsol.errors import UserError

# --- OpenImages' real masks (the WSOL evaluation's unit tests give the pixel counts) --------------------------

REAL = {'val/0bt_c3/1cd9ac0169ec7df0.jpg': (43031, 7145), 'val/0bt_c3/3a29f0b33894d4a6.jpg': (833, 49342),
        'val/0bt_c3/3b3b9931325d65c9.jpg': (347, 13909)}


def mask_counts(tmp_path, image_id):
    (tmp_path / 'OpenImages').symlink_to(shared('openimages_masks'))
    data = find_dataset('OpenImages', metadata_root=shared('metadata'), mask_root=tmp_path)
    return eval_wsol.MaskCounts(data.mask_paths('val', np.array([image_id.encode()])), 224, 'clipping', 0.01)


@pytest.mark.parametrize('flags, root', [([], 'dataset/'), (['--data_root=x'], 'x'), (['--data_root=x', '--mask_root=m'], 'm')])
def test_masks_lie_below_the_data_root_unless_another_is_stated(script, monkeypatch, flags, root):
    def tell(network, mask_root):
        raise UserError(f'masks below {mask_root}, recorded as {network.args.mask_root}')
    monkeypatch.setattr(eval_wsol.session, 'open_data', tell)
    refused(script('eval_wsol', '--dataset=OpenImages', '--scoremap_root=maps', *flags), f'masks below {root}, recorded as {root}')


THING = np.eye(4, 5, dtype=np.uint8)
CLEAR = np.full((4, 5, 4), 255, np.uint8)
CLEAR[..., 3] *= THING
MASKS = {'bits': Image.fromarray(THING > 0), 'ones': Image.fromarray(THING), '16 bits': Image.fromarray(THING.astype(np.uint16)), 'alpha': Image.fromarray(CLEAR),
         'dark blue': Image.fromarray(np.stack([0 * THING, 0 * THING, THING], 2)), 'palette': Image.fromarray(THING).convert('P', palette=Image.Palette.WEB)}


@pytest.mark.parametrize('kind', MASKS)
def test_masks_of_every_kind_show_the_same(kind, tmp_path):
    MASKS[kind].save(tmp_path / 'mask.png')
    counts = eval_wsol.MaskCounts([([tmp_path / 'mask.png'], None)], 20, 'clipping', 0.01)
    assert np.array_equal(counts.truth(0)[0], cv2.resize(THING, (20, 20), interpolation=cv2.INTER_NEAREST) > 0)


@pytest.mark.parametrize('image_id', REAL)
def test_constant_maps_on_real_masks_score_the_share_of_the_object(tmp_path, image_id):
    counts, (true, false) = mask_counts(tmp_path, image_id), REAL[image_id]
    counts.measure(np.full((224, 224), 0.5, np.float32), 0, None)
    assert metrics.pixel_average_precision(counts.counts) == pytest.approx(100 * true / (true + false), abs=0.1)
    assert counts.mass[0] == pytest.approx(true / (true + false), rel=2e-4)


@pytest.mark.parametrize('image_id', REAL)
@pytest.mark.parametrize('ignored', [0.0, 1.0])
def test_perfect_maps_on_real_masks_score_100_whatever_the_ignored_pixels(tmp_path, image_id, ignored):
    counts = mask_counts(tmp_path, image_id)
    thing, counted = counts.truth(0)
    counts.measure(np.where(counted, thing, ignored).astype(np.float32), 0, None)
    assert metrics.pixel_average_precision(counts.counts) == 100 and counts.mass == 1


# --- boxes: the script against a naive loop --------------------------------------------------------------------

def overlap(first, second):
    """IoU of two inclusive boxes, by counting pixels."""
    grid = np.zeros((2, 2 * SIZE, 2 * SIZE), bool)
    for layer, (x0, y0, x1, y1) in zip(grid, (first, second), strict=True):
        layer[y0:y1 + 1, x0:x1 + 1] = True
    return grid.all(0).sum() / grid.any(0).sum()


def found_at(score_map, truth, threshold):
    """The overlaps of a raw map's boxes with the true one at a threshold: (the best of all contours', the largest's).

    Resized bicubically as it is, then scaled to 0..1, then made 8 bits, then cut at a share of its maximum.
    """
    enlarged = cv2.resize(score_map, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    image = ((enlarged - enlarged.min()) / (enlarged.max() - enlarged.min()) * 255).astype(np.uint8)
    above = (image > int(threshold * image.max())).astype(np.uint8)
    contours, _ = cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    overlaps, areas = [overlap((0, 0, 0, 0), truth)] * (not contours), [0] * (not contours)
    for contour in contours:
        (left, top), (right, bottom) = contour[:, 0].min(0), contour[:, 0].max(0)
        # one beyond the contour, but within the image
        overlaps.append(overlap((left, top, min(right + 1, SIZE - 1), min(bottom + 1, SIZE - 1)), truth))
        areas.append(cv2.contourArea(contour))
    return max(overlaps), overlaps[int(np.argmax(areas))]


def true_boxes(tiny_birds, split):
    """{image id: its box on the grid of the map}, read line by line."""
    folder = roots_of(tiny_birds)[1] / 'ToyBirds' / split
    sizes = {line.split(',')[0]: list(map(int, line.split(',')[1:]))
             for line in (folder / 'image_sizes.txt').read_text().split()}
    boxes = {}
    for line in (folder / 'localization.txt').read_text().split():
        name, *box = line.split(',')
        boxes[name] = [int(int(value) * SIZE / sizes[name][axis % 2]) for axis, value in enumerate(box)]
    return boxes


def naive(tiny_birds, folder, method, thresholds):
    """{split: {measure: % of the images at each threshold}}."""
    model, _ = weights.load_model(folder)
    hits = {}
    for split in ('val', 'test'):
        images, _ = open_birds(tiny_birds, split)
        boxes, rows = true_boxes(tiny_birds, split), {name: [] for name in ('20', '50', 'largest', 'top1', 'mass')}
        for index, label in enumerate(images.labels):
            image = images[index][0][None]
            with torch.no_grad():
                score_map = attribution_maps(model, image, torch.tensor([label]), method)[0].numpy()
                right = int(model(image).argmax()) == label
            (x0, y0, x1, y1), size = boxes[images.image_id(index)], (SIZE, SIZE)
            positive = np.maximum(cv2.resize(score_map, size, interpolation=cv2.INTER_LINEAR), 0)
            if positive.any():  # else the map has no share anywhere
                rows['mass'].append(positive[y0:y1 + 1, x0:x1 + 1].sum() / positive.sum())
            every, largest = np.array([found_at(score_map, boxes[images.image_id(index)], t) for t in thresholds]).T
            for name, row in (('20', every >= .2), ('50', every >= .5), ('largest', largest >= .5),
                              ('top1', (largest >= .5) & right)):
                rows[name].append(row)
        hits[split] = {name: 100 * np.mean(row, 0) for name, row in rows.items()}
    return hits


@pytest.mark.parametrize('head, method', [('CALM_EM', 'jointll'), ('CAM', 'vanilla')])
def test_wsol_agrees_with_a_naive_loop(script, tiny_birds, save, forwards, head, method):
    accepted(script('eval_wsol', *tiny_birds, f'--experiment_name={head}', '--norm_type=minmax', '--batch_size=1',
                    '--cam_curve_interval=0.05', '--iou_thresholds', '20', '50'))
    assert len(forwards) == sum(forwards) == 18 + 36  # probabilities and maps are of one forward
    result = read_result(save / head, 'wsol')
    assert result['images_by_split'] == {'val': 18, 'test': 36}
    result, thresholds = result['results'], np.arange(0, 1, 0.05)
    hits = naive(tiny_birds, save / head, method, thresholds)
    for name, key, chooser in (('MaxBoxAccV2@20', '20', '20'), ('MaxBoxAccV2@50', '50', '50'),
                               ('MaxBoxAcc', 'largest', 'largest'), ('Top-1 Loc', 'top1', 'largest')):
        best = hits['val'][chooser].argmax()
        assert result[name] == pytest.approx({
            'val': hits['val'][key][best], 'test': hits['test'][key][best], 'oracle': hits['test'][key].max(),
            'threshold': thresholds[best]})
    mass = result['mass in box']
    assert [mass['val'], mass['test']] == pytest.approx([hits['val']['mass'], hits['test']['mass']], abs=0.01)
    assert mass['low'] < mass['test'] < mass['high'] and mass['oracle'] is None
    for column in ('val', 'test', 'oracle'):
        mean = (result['MaxBoxAccV2@20'][column] + result['MaxBoxAccV2@50'][column]) / 2
        assert result['MaxBoxAccV2'][column] == pytest.approx(mean)
    assert 0 < result['Top-1 Loc']['oracle'] < result['MaxBoxAcc']['oracle']


def test_the_class_is_right_by_the_probabilities_of_the_forward_that_gave_the_map(script, tiny_birds, save):
    """Top-1 localization is bounded by the accuracy, and reaches it with boxes that are always found."""
    result = {}
    assert script('eval_wsol', *tiny_birds, '--experiment_name=CALM_ML', '--batch_size=7')[0] == 0
    assert script('eval_pixel_perturb', *tiny_birds, '--experiment_name=CALM_ML', '--batch_size=5')[0] == 0
    for metric in ('wsol', 'pixel_perturb'):
        result[metric] = read_result(save / 'CALM_ML', metric)
    outcomes, results = result['wsol']['outcomes'], result['wsol']['results']
    for name, digits in outcomes.items():  # what is kept by image is what was counted, at the threshold of val
        assert len(digits) == 36 and 100 * digits.count('1') / 36 == pytest.approx(results[name]['test'])
    estimates = columns.read_estimates(result['wsol'])
    for name in ('MaxBoxAccV2', 'MaxBoxAcc'):
        mean, low, high = intervals.mean_interval([estimates[name]])
        assert low <= mean == pytest.approx(estimates[name].value) and estimates[name].value == results[name]['test']
    assert estimates['Top-1 Loc'].units is None
    top1 = results['Top-1 Loc']['oracle']
    assert 0 < top1 <= result['pixel_perturb']['accuracy']


def bird_boxes(tiny_birds):
    images, data = open_birds(tiny_birds)
    return len(images), eval_wsol.BoxCounts(data.boxes('test', images.image_ids), SIZE, 'minmax', 0.02, (30, 50, 70))


def test_a_perfect_map_finds_every_box(tiny_birds):
    """The box itself as a map: found at every IoU and threshold but the rounding of x + w."""
    total, counts = bird_boxes(tiny_birds)
    for index in range(total):
        (x0, y0, x1, y1), = metrics.scale_boxes(counts.boxes.of(index), counts.boxes.sizes[index], (SIZE, SIZE)).tolist()
        score_map = np.zeros((SIZE, SIZE), np.float32)
        score_map[y0:y1 + 1, x0:x1 + 1] = 1
        counts.measure(score_map, index, True)
    assert all((curve == 100).all() for name, curve in counts.curves().items() if name != 'MaxBoxAccV2@70')


def test_the_memory_is_all_taken_before_the_first_image(tiny_birds):
    """Counts, and some bits for each image."""
    total, counts = bird_boxes(tiny_birds)

    def held():
        return len(pickle.dumps(counts))  # everything in it, arrays and lists alike
    before = held()
    for index in range(0, total, 9):
        counts.measure(np.random.default_rng(index).random((SIZE, SIZE)).astype(np.float32), index, True)
    assert counts.is_right.sum() == total / 9
    assert held() == before


def test_boxes_are_sought_while_the_next_batch_is_in_the_network():
    """A batch's boxes are waited for after the forward of the next."""
    seen, first_is_begun, next_is_in = [], threading.Event(), threading.Event()

    class Counts(eval_wsol.Counts):
        def measure(self, score_map, index, is_right):
            first_is_begun.set()
            assert next_is_in.wait(60)
            seen.append((index, bool(is_right)))

    def source(images, indices, classes):
        if indices[0] > 0:  # the second batch: the first one's boxes are being sought, and none has been counted
            assert first_is_begun.wait(60) and not seen
            next_is_in.set()
        return map_sources.MapBatch(torch.eye(3)[indices % 3], [torch.zeros(1, 4, 4)] * 2)
    loader = [(torch.zeros(2, 3, 4, 4), torch.tensor([0, 0]), torch.tensor(rows)) for rows in ([0, 1], [2, 3])]
    eval_wsol.localise(loader, source, Counts(4, 4, 'minmax'), torch.device('cpu'))
    assert sorted(seen) == [(0, True), (1, False), (2, False), (3, True)]


def test_what_fails_while_boxes_are_sought_is_raised():
    class Counts(eval_wsol.Counts):
        def measure(self, score_map, index, is_right):
            raise UserError(f'image {index}')

    def source(images, indices, classes):
        return map_sources.MapBatch(None, [torch.zeros(1, 4, 4)])
    loader = [(torch.zeros(1, 3, 4, 4), torch.tensor([0]), torch.tensor([row])) for row in range(3)]
    for part in (loader, loader[:1]):
        with pytest.raises(UserError, match='image 0'):
            eval_wsol.localise(part, source, Counts(4, 4, 'minmax'), torch.device('cpu'))
