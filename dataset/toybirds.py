"""ToyBirds: painted birds whose classes differ in known parts, in CUB's own layout.

A bird has seven parts (head, back, belly, breast, tail, leg, wing), each in one colour of a
palette. The classes come in four families. A family shares its colours but for its cue: one, two
or three parts that have another colour in each class. Every pair of a family thus differs in
exactly 1, 2 or 3 parts (12, 10 and 10 pairs), and a cue part in its colour belongs to one class
alone. Pose, size, side, light and background vary, and the background holds shapes in the
palette's colours: a colour alone does not give the place.

Result: `<root>/ToyBirds/` as CUB_200_2011 lays it out (images, images.txt,
image_class_labels.txt, train_test_split.txt, bounding_boxes.txt, classes.txt, parts/,
attributes/, segmentations/) and, beyond what CUB knows, `part_masks/`: for every pixel the
part it shows. The metadata for training goes to `<metadata_root>/ToyBirds/{train,val,test}/`.

Command: none needed; `--dataset=ToyBirds` paints it at first use.
"""
import json
from pathlib import Path

import cv2
import numpy as np

from dataset.archives import check_count, staged
from dataset.metadata import corners_of, write_split
from util import UserError, progress
from whole_files import read_json, write_lines
from wsol.cub import POINT_NAMES, UNION_PARTS

VERSION = 1  # raise it whenever the same seed no longer gives the same bytes
STAMP = 'toybirds.json'
IMAGES_PER_CLASS = {'train': 40, 'val': 8, 'test': 20}

PALETTE = {  # RGB
    'black': (38, 36, 42), 'white': (236, 234, 226), 'red': (204, 44, 40), 'yellow': (238, 204, 52),
    'green': (58, 150, 66), 'blue': (48, 92, 204), 'violet': (148, 66, 176), 'brown': (126, 84, 50),
}
# Per family: its colours in the order of UNION_PARTS, and the cue parts' colours class by class.
FAMILIES = (
    ('black green white white brown yellow yellow', {'head': 'red yellow blue white'}),
    ('green brown yellow white black white black', {'wing': 'red green white blue'}),
    ('violet yellow yellow red white black violet', {'back': 'black white red blue violet',
                                                     'tail': 'red green blue yellow violet'}),
    ('brown green red black brown white brown', {'belly': 'black green blue violet brown',
                                                 'breast': 'yellow blue green brown violet',
                                                 'leg': 'red blue green brown violet'}),
)
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
SUPERSAMPLING = 4  # shapes are filled on a grid this much finer, then averaged: anti-aliasing


def class_colours():
    """[(class name, {part: colour name})], family by family."""
    classes = []
    for letter, (base, cues) in zip('ABCD', FAMILIES, strict=True):
        base = dict(zip(UNION_PARTS, base.split(), strict=True))
        for member, choice in enumerate(zip(*(colours.split() for colours in cues.values()), strict=True), 1):
            name = f'{len(classes) + 1:03d}.Toy_{letter}{member}'
            classes.append((name, base | dict(zip(cues, choice, strict=True))))
    return classes


# --- the bird: outlines in a frame of its own, x towards the bill, y down, body length 0.84 ---

def ellipse(centre, radii, angle=0.0, start=0.0, stop=360.0):
    """(N,2) points along an ellipse, angles in degrees, clockwise on the screen."""
    t = np.radians(np.linspace(start, stop, 49))
    points = np.stack([radii[0] * np.cos(t), radii[1] * np.sin(t)], axis=1)
    return rotate(points, angle) + centre


def rotate(points, angle, pivot=(0.0, 0.0)):
    """(N,2) points turned by `angle` degrees about `pivot`, clockwise on the screen."""
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return (np.asarray(points) - pivot) @ np.array([[c, s], [-s, c]]) + pivot


def bird_outlines(rng):
    """One pose: [(part, polygon (N,2))] from back to front, and {CUB part point: (x, y)}."""
    tail_angle, spread = rng.uniform(-25, 25), rng.uniform(0.08, 0.2)
    tail = rotate([(-0.30, -0.12), (-0.84, -0.10 - spread), (-0.90, -0.04), (-0.84, 0.02 + spread / 2),
                   (-0.30, 0.06)], tail_angle, (-0.32, -0.04))
    head_angle = rng.uniform(-25, 25)
    neck = (0.28, -0.10)
    skull = ellipse((0.45, -0.31), (0.20, 0.18))
    throat = np.array([(0.16, -0.20), (0.33, -0.44), (0.60, -0.22), (0.40, 0.00)])
    bill = np.array([(0.61, -0.38), (0.61 + rng.uniform(0.14, 0.30), -0.27), (0.60, -0.23)])
    head = [rotate(shape, head_angle, neck) for shape in (throat, skull, bill)]
    folded = rng.random() < 0.6
    wing_angle = rng.uniform(-12, 14) if folded else rng.uniform(55, 120)
    wing = rotate([(0.20, -0.08), (0.12, -0.16), (-0.20, -0.12), (-0.52, 0.02), (-0.44, 0.08), (-0.16, 0.14),
                   (0.08, 0.10)], wing_angle, (0.12, -0.04))
    stride = rng.uniform(0.04, 0.14)
    legs = []
    for hip, foot in ((-0.02, stride), (-0.10, -stride)):
        legs.append(np.array([(hip - 0.03, 0.16), (hip + 0.03, 0.16), (hip + foot + 0.03, 0.50),
                              (hip + foot + 0.12, 0.55), (hip + foot - 0.05, 0.55), (hip + foot - 0.03, 0.50)]))
    body = (0.42, 0.27)
    back = ellipse((0, 0), body, start=180, stop=360)
    belly = np.concatenate([ellipse((0, 0), body, start=75, stop=180), [(0.02, 0.0)]])
    breast = np.concatenate([ellipse((0, 0), body, start=0, stop=75), [(0.02, 0.0)]])
    outlines = [('tail', tail), ('leg', legs[0]), ('leg', legs[1]), ('back', back), ('belly', belly),
                ('breast', breast), *(('head', shape) for shape in head), ('wing', wing)]
    on_head = {'beak': (0.66, -0.30), 'crown': (0.43, -0.46), 'forehead': (0.57, -0.40), 'nape': (0.28, -0.32),
               'throat': (0.45, -0.16), 'eye': (0.50, -0.35)}
    points = {name: rotate([at], head_angle, neck)[0] for name, at in on_head.items()}
    points.update(back=(-0.02, -0.22), belly=(-0.08, 0.20), breast=(0.26, 0.12), tail=tail[1:4].mean(0) * 0.7
                  + 0.3 * tail[[0, 4]].mean(0), wing=wing.mean(0), near_leg=legs[0].mean(0), far_leg=legs[1].mean(0))
    return outlines, points


def place(rng, outlines, points, width, height):
    """The pose in pixels: scaled, turned, perhaps mirrored, moved to where the whole bird fits."""
    angle, mirrored = rng.uniform(-25, 25), rng.random() < 0.5
    scale = rng.uniform(0.40, 0.60) * min(width, height)

    def turn(xy):
        xy = rotate(np.atleast_2d(xy), angle) * scale
        return xy * (-1, 1) if mirrored else xy

    outlines = [(part, turn(shape)) for part, shape in outlines]
    everything = np.concatenate([shape for _, shape in outlines])
    low, high = everything.min(0), everything.max(0)
    room = np.array([width, height]) - (high - low)
    scale_down = min(1.0, (np.array([width, height]) * 0.94 / (high - low)).min())
    if scale_down < 1:  # a long pose of a large bird: shrink it to the canvas
        outlines = [(part, shape * scale_down) for part, shape in outlines]
        low, high = low * scale_down, high * scale_down
        room = np.array([width, height]) - (high - low)
    shift = rng.uniform(0.1, 0.9, 2) * room - low
    outlines = [(part, shape + shift) for part, shape in outlines]
    points = {name: turn(xy)[0] * scale_down + shift for name, xy in points.items()}
    side, other = ('left', 'right') if mirrored else ('right', 'left')  # the side the viewer sees
    for old, new in (('eye', f'{side} eye'), ('wing', f'{side} wing'), ('near_leg', f'{side} leg'),
                     ('far_leg', f'{other} leg')):
        points[new] = points.pop(old)
    return outlines, points


# --- the picture ---

def fill(canvas, polygon, value):
    """Fill a polygon given in final pixels (pixel i covers [i, i+1)) on the fine grid, in place."""
    cv2.fillPoly(canvas, [np.round(np.asarray(polygon) * SUPERSAMPLING - 0.5).astype(np.int32)], value)


def shade(rng, name, spread=10.0):
    """A palette colour as it comes out in one image."""
    return np.array(PALETTE[name], np.float64) + rng.normal(0, spread, 3)


def paint_background(rng, width, height):
    """(4H,4W,3) float: a soft two-colour ground with sticks and 10 to 18 shapes of the palette's colours."""
    ground = rng.uniform(60, 210, (2, 2, 3)).astype(np.float32)
    canvas = cv2.resize(ground, (width * SUPERSAMPLING, height * SUPERSAMPLING), interpolation=cv2.INTER_LINEAR)
    size = min(width, height)
    for _ in range(rng.integers(2, 5)):
        start, stop = rng.uniform(-0.1, 1.1, (2, 2)) * (width, height)
        across = (stop - start)[::-1] * (1, -1)
        across *= rng.uniform(0.008, 0.03) * size / (np.linalg.norm(across) + 1e-9)
        fill(canvas, [start - across, start + across, stop + across, stop - across],
             tuple(rng.uniform(40, 140, 3)))
    names = list(PALETTE)
    for _ in range(rng.integers(10, 19)):
        centre, radii = rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.03, 0.12, 2) * size
        kind, angle = rng.integers(4), rng.uniform(0, 360)
        if kind < 2:
            shape = ellipse(centre, radii, angle, stop=360 if kind else 180)
        else:
            corners = rng.integers(3, 6)
            shape = ellipse(centre, radii, angle)[np.sort(rng.choice(48, corners, replace=False))]
        fill(canvas, shape, tuple(shade(rng, names[rng.integers(len(names))])))
    return canvas


def paint(colours, rng, background=None):
    """One bird. background: a generator of its own, which paints another background behind the same bird.

    Returns image (H,W,3) uint8 RGB, part mask (H,W) uint8 (0 background, 1..7 as in UNION_PARTS)
    and points (15,3): x, y, visible of CUB's part points, (0, 0, 0) where hidden.
    """
    width, height = (int(side) for side in rng.choice([160, 176, 192, 208], 2))
    outlines, points = place(rng, *bird_outlines(rng), width, height)
    canvas = paint_background(rng, width, height)
    if background is not None:  # after rng has drawn its own, so that all that follows is the same
        canvas = paint_background(background, width, height)
    parts = np.zeros(canvas.shape[:2], np.uint8)
    shades = {part: shade(rng, name) for part, name in colours.items()}
    for part, shape in outlines:
        fill(parts, shape, UNION_PARTS.index(part) + 1)
        fill(canvas, shape, tuple(shades[part]))
        # a thin darker contour, as feathers have: it shows a part against another of the same colour
        cv2.polylines(canvas, [np.round(shape * SUPERSAMPLING - 0.5).astype(np.int32)], True,
                      tuple(shades[part] * 0.7), thickness=2)
    eye = next(xy for name, xy in points.items() if name.endswith('eye'))
    radius = 0.035 * np.ptp(np.concatenate([shape for _, shape in outlines]), axis=0).max() / 1.6
    fill(canvas, ellipse(eye, (1.5 * radius, 1.5 * radius)), (240, 240, 240))
    fill(canvas, ellipse(eye, (radius, radius)), (15, 15, 15))

    light = cv2.resize(rng.uniform(0.72, 1.2, (2, 2)).astype(np.float32), (width, height))
    image = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA) * light[..., None]
    image += cv2.resize(rng.normal(0, 9, (height // 4, width // 4)).astype(np.float32), (width, height))[..., None]
    image += rng.normal(0, 4, image.shape)
    # the part at a pixel's centre is the part of the pixel
    half = SUPERSAMPLING // 2
    mask = np.ascontiguousarray(parts[half::SUPERSAMPLING, half::SUPERSAMPLING])

    located = np.zeros((15, 3))
    for index, name in enumerate(POINT_NAMES):
        if name in points:
            x, y = points[name]
            column, row = int(x), int(y)
            if 0 <= column < width and 0 <= row < height and mask[row, column] == UNION_PARTS.index(union_of(name)) + 1:
                located[index] = x, y, 1
    return np.clip(np.round(image), 0, 255).astype(np.uint8), mask, located


def union_of(name):
    """The union part that a CUB part point belongs to."""
    last = name.split()[-1]
    return last if last in UNION_PARTS else 'head'


class Repainter:
    """The images of a painted data set, painted again: the same pose, size, light and clutter, other colours.

    root: the data set's folder, whose stamp says how it was painted.
    """

    def __init__(self, root):
        stamp = _read_stamp(Path(root) / STAMP)
        if stamp is None:
            raise UserError(f'{root} holds no ToyBirds of version {VERSION}: its images cannot be painted again')
        self.seed, self.colours = stamp['seed'], dict(class_colours())
        names = [_image_id(label, split, number) for label, split, number in _tasks(stamp['images_per_class'])]
        self.index = {name: index for index, name in enumerate(names)}

    def paint(self, image_id, colours=None, background=None):
        """(H,W,3) uint8: an image as its file has it. colours: {part: colour} that replace its own. background: a seed
        of another background."""
        index = self.index[image_id]
        own = self.colours[image_id.split('/')[0]] | (colours or {})
        other = None if background is None else np.random.default_rng([self.seed, index, background])
        image, _, _ = paint(own, np.random.default_rng([self.seed, index]), other)
        return cv2.imdecode(cv2.imencode('.jpg', image[..., ::-1], JPEG)[1], cv2.IMREAD_COLOR)[..., ::-1]


# --- the data set on disk -------------------------------------------------------------------------

def ensure(data_root, metadata_root):
    """Paint the data set unless it is there, whole. Raises UserError if something else is in its place."""
    folders = Path(data_root) / 'ToyBirds', Path(metadata_root) / 'ToyBirds'
    if _is_whole(folders):
        return
    for folder in folders:
        # one half alone is what a process leaves that was killed between the two, or is about to put in place
        if folder.exists() and read_json(folder / STAMP) != _stamp(IMAGES_PER_CLASS, 0):
            raise UserError(f'{folder} and {folders[1 - folders.index(folder)]} are not the two halves of one painting '
                            f'of version {VERSION}: name a --data_root and a --metadata_root that belong together, or '
                            'move both away and ToyBirds is painted anew')
    paint_dataset(data_root, metadata_root)


def _stamp(images_per_class, seed):
    """What a painting says of itself."""
    return {'version': VERSION, 'seed': seed, 'images_per_class': images_per_class}


def _read_stamp(path):
    """What a painting of this version says of itself; None where there is none, or none that can be read."""
    stamp = read_json(path)
    counts = stamp.get('images_per_class') if isinstance(stamp, dict) else None
    known = isinstance(counts, dict) and stamp == _stamp(counts, stamp.get('seed'))
    numbers = [stamp['seed'], *counts.values()] if known else [None]
    return stamp if all(type(number) is int and 0 <= number < 2**32 for number in numbers) else None


def _is_whole(folders):
    """Whether two folders are the halves of one painting of this version."""
    stamps = [_read_stamp(folder / STAMP) for folder in folders]
    return stamps[0] is not None and stamps[0] == stamps[1]


def paint_dataset(data_root, metadata_root, images_per_class=None, seed=0):
    """Paint all images and write CUB's files and the metadata: whole or not at all; what is there stays.

    images_per_class: {'train': n, 'val': n, 'test': n}.
    """
    images_per_class = images_per_class or IMAGES_PER_CLASS
    targets = Path(data_root) / 'ToyBirds', Path(metadata_root) / 'ToyBirds'
    with staged(targets[0]) as folder, staged(targets[1]) as lists:
        if _is_whole(targets):  # another process has painted it meanwhile
            return
        records = _paint_images(folder, images_per_class, seed)
        _write_annotations(folder, records)
        _write_metadata(lists, records)
        for half, count in ((folder, 3 * len(records) + 9), (lists, 4 * 3)):  # three pictures each, and the lists
            (half / STAMP).write_text(json.dumps(_stamp(images_per_class, seed)))
            check_count(half, count + 1)


def _tasks(images_per_class):
    """[(label, split, number)] of all images, in the order in which they are painted."""
    return [(label, split, number) for label in range(len(class_colours())) for split in images_per_class
            for number in range(images_per_class[split])]


def _image_id(label, split, number):
    name = class_colours()[label][0]
    return f'{name}/{name.split(".")[1]}_{split}_{number:04d}.jpg'


def _paint_images(root, images_per_class, seed):
    """Paint and write the pictures. Returns one record per image: id, label, split, size, box, points."""
    classes, records = class_colours(), []
    for index, task in enumerate(progress(_tasks(images_per_class), 'painting ToyBirds', 'image')):
        label, split, _ = task
        image, mask, points = paint(classes[label][1], np.random.default_rng([seed, index]))
        image_id = _image_id(*task)
        bird = np.where(mask > 0, 255, 0).astype(np.uint8)
        for folder, suffix, picture, options in (('images', '.jpg', image[..., ::-1], JPEG),
                                                 ('part_masks', '.png', mask, []), ('segmentations', '.png', bird, [])):
            path = (root / folder / image_id).with_suffix(suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(suffix, picture, options)[1].tobytes())
        records.append((image_id, label, split, image.shape[1::-1], cv2.boundingRect(bird), points))
    return records


def _write_annotations(root, records):
    """CUB's text files."""
    numbered = list(enumerate(records, 1))
    classes = class_colours()
    write_lines(root / 'images.txt', [f'{i} {r[0]}' for i, r in numbered])
    write_lines(root / 'image_class_labels.txt', [f'{i} {r[1] + 1}' for i, r in numbered])
    write_lines(root / 'train_test_split.txt', [f'{i} {int(r[2] != "test")}' for i, r in numbered])
    write_lines(root / 'bounding_boxes.txt', [f'{i} ' + ' '.join(f'{v:.1f}' for v in r[4]) for i, r in numbered])
    write_lines(root / 'classes.txt', [f'{i} {name}' for i, (name, _) in enumerate(classes, 1)])
    write_lines(root / 'parts' / 'parts.txt', [f'{i} {name}' for i, name in enumerate(POINT_NAMES, 1)])
    write_lines(root / 'parts' / 'part_locs.txt', [f'{i} {part} {x:.1f} {y:.1f} {int(seen)}' for i, r in numbered
                                              for part, (x, y, seen) in enumerate(r[5], 1)])
    attributes = [(part, colour) for part in UNION_PARTS for colour in PALETTE]
    write_lines(root / 'attributes' / 'attributes.txt',
           [f'{i} has_{part}_color::{colour}' for i, (part, colour) in enumerate(attributes, 1)])
    write_lines(root / 'attributes' / 'class_attribute_labels_continuous.txt',
           [' '.join('100.0' if colours[part] == colour else '0.0' for part, colour in attributes)
            for _, colours in classes])


def _write_metadata(root, records):
    """The WSOL evaluation's files."""
    for split in ('train', 'val', 'test'):
        rows = [r for r in records if r[2] == split]
        write_split(root / split, [r[0] for r in rows], [r[1] for r in rows], [r[3] for r in rows],
                    [[corners_of(r[4], r[3])] for r in rows])
