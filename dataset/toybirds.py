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

from dataset.archives import staged
from dataset.lists import write_split
from dataset.official_lists import corners_of
from dataset.painter import PALETTE, paint
from dataset.registry import DATASETS, SPLITS
from runtime.screen import progress
from runtime.whole_files import read_json, write_lines
from wsol.annotations.cub import POINT_NAMES, UNION_PARTS
from wsol.errors import UserError

VERSION = 1  # raise it whenever the same seed no longer gives the same bytes
STAMP = 'toybirds.json'
_BIRDS = DATASETS['ToyBirds']
IMAGES_PER_CLASS = {split: number // _BIRDS.num_classes for split, number in zip(SPLITS, _BIRDS.images, strict=True)}

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


def class_colours():
    """[(class name, {part: colour name})], family by family."""
    classes = []
    for letter, (base, cues) in zip('ABCD', FAMILIES, strict=True):
        base = dict(zip(UNION_PARTS, base.split(), strict=True))
        for member, choice in enumerate(zip(*(colours.split() for colours in cues.values()), strict=True), 1):
            name = f'{len(classes) + 1:03d}.Toy_{letter}{member}'
            classes.append((name, base | dict(zip(cues, choice, strict=True))))
    return classes


class Repainter:
    """The images of a painted data set, painted again: the same pose, size, light and clutter, but other colours, or
    without a part or a shape of the background.

    root: the data set's folder, whose stamp says how it was painted.
    """

    def __init__(self, root):
        stamp = _read_stamp(Path(root) / STAMP)
        if stamp is None:
            raise UserError(f'{root} holds no ToyBirds of version {VERSION}: its images cannot be painted again')
        self.seed, self.colours = stamp['seed'], dict(class_colours())
        names = [_image_id(label, split, number) for label, split, number in _tasks(stamp['images_per_class'])]
        self.index = {name: index for index, name in enumerate(names)}

    def picture(self, image_id, colours=None, background=None, without=()):
        """The Picture of an image, before it is written. colours: {part: colour} that replace its own. background: a
        seed of another background. without: what is left out, of paint."""
        index = self.index[image_id]
        own = self.colours[image_id.split('/')[0]] | (colours or {})
        other = None if background is None else np.random.default_rng([self.seed, index, background])
        return paint(own, np.random.default_rng([self.seed, index]), other, without)

    def paint(self, *of_picture, **more):
        """(H,W,3) uint8: an image as its file has it, or would have it. The arguments are those of picture."""
        image = self.picture(*of_picture, **more).image
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
        for half in (folder, lists):
            (half / STAMP).write_text(json.dumps(_stamp(images_per_class, seed)))


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
        image, mask, points, _ = paint(classes[label][1], np.random.default_rng([seed, index]))
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
        write_split(root / split, [(r[0], r[1], r[3], [corners_of(r[4], r[3])]) for r in rows])
