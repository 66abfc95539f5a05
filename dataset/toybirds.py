"""ToyBirds: painted birds whose classes differ in known parts, in CUB's own layout.

A bird has seven parts (head, back, belly, breast, tail, leg, wing), each in one colour of a palette. The classes come
in four families. A family shares its colours except for its cue: one, two or three parts that have another colour in
each class. So every pair of a family differs in exactly 1, 2 or 3 parts (12, 10 and 10 pairs), and a cue part in its
colour belongs to one class alone. Pose, size, side, light and background vary, and the background holds shapes in the
palette's colours: a colour alone does not tell the place.

Result: `<data_root>/ToyBirds/` in the layout of CUB_200_2011, and beside it `part_masks/`: the part that every pixel
shows. The lists for training go to `<metadata_root>/ToyBirds/{train,val,test}/`.

Command: none needed; `--dataset=ToyBirds` paints it at first use.
"""
import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from dataset.archives import staged
from dataset.image_folders import in_threads
from dataset.lists import write_split
from dataset.official_lists import corners_of
from dataset.painter import PALETTE, paint
from dataset.registry import SPLITS
from runtime.whole_files import read_json, write_lines
from wsol.annotations.cub import POINT_NAMES, UNION_PARTS
from wsol.errors import UserError

VERSION = 1  # raise it whenever the same seed no longer gives the same bytes
STAMP = 'toybirds.json'
IMAGES_PER_CLASS = {'train': 40, 'val': 8, 'test': 20}

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
    """Paints the images of a data set again: the same pose, size, light and clutter, but with other colours, or without
    a part or a shape of the background.

    root: the data set's folder, whose stamp says how it was painted.
    """

    def __init__(self, root):
        stamp = _read_stamp(Path(root) / STAMP)
        if stamp is None:
            raise UserError(f'{root} holds no ToyBirds of version {VERSION}: its images cannot be painted again')
        self.seed, self.colours = stamp['seed'], dict(class_colours())
        self.index = {image_id: index for index, (image_id, *_) in enumerate(_tasks(stamp['images_per_class']))}

    def picture(self, image_id, colours=None, background=None, without=()):
        """The Picture of an image, before it is written.

        colours: {part: colour} in place of the class's colours. background: a seed for another background. without:
        the parts and shapes to leave out, as in paint.
        """
        index = self.index[image_id]
        colours = self.colours[image_id.split('/')[0]] | (colours or {})
        behind = None if background is None else np.random.default_rng([self.seed, index, background])
        return paint(colours, np.random.default_rng([self.seed, index]), behind, without)

    def paint(self, *of_picture, **more):
        """(H,W,3) uint8: an image after JPEG compression, as its file has it. The arguments are those of picture."""
        image = self.picture(*of_picture, **more).image
        return cv2.imdecode(cv2.imencode('.jpg', image[..., ::-1], JPEG)[1], cv2.IMREAD_COLOR)[..., ::-1]


# --- the data set on disk -------------------------------------------------------------------------

def _stamp(images_per_class, seed):
    """The content of a painting's stamp."""
    return {'version': VERSION, 'seed': seed, 'images_per_class': images_per_class}


def _read_stamp(path):
    """The stamp of a painting of this version; None if there is none, or none that can be read."""
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
    """Paint all images and write CUB's files and the metadata, whole or not at all, unless a painting is there.

    images_per_class: {'train': n, 'val': n, 'test': n}. Raises UserError if something else is in its place.
    """
    images_per_class = images_per_class or IMAGES_PER_CLASS
    targets, stamp = [Path(root) / 'ToyBirds' for root in (data_root, metadata_root)], _stamp(images_per_class, seed)
    if _is_whole(targets):
        return
    for target, other in (targets, targets[::-1]):
        # a process that is killed between the two, or has not finished, leaves one half alone
        if target.exists() and read_json(target / STAMP) != stamp:
            raise UserError(f'{target} and {other} are not the two halves of one painting of version {VERSION}: name a '
                            '--data_root and a --metadata_root that belong together, or move both away and ToyBirds is '
                            'painted anew')
    with staged(targets[0]) as folder, staged(targets[1]) as lists:
        if _is_whole(targets):  # another process has painted it meanwhile
            return
        birds = _paint_images(folder, images_per_class, seed)
        _write_annotations(folder, birds)
        for split in SPLITS:
            write_split(lists / split, [(bird.image_id, bird.label, bird.size, [corners_of(bird.box, bird.size)])
                                        for bird in birds if bird.split == split])
        for half in (folder, lists):
            (half / STAMP).write_text(json.dumps(stamp))


def _tasks(images_per_class):
    """[(image id, label, split)] of all images, in the order in which they are painted."""
    return [(f'{name}/{name.split(".")[1]}_{split}_{number:04d}.jpg', label, split)
            for label, (name, _) in enumerate(class_colours()) for split, count in images_per_class.items()
            for number in range(count)]


class Bird(NamedTuple):
    """What the lists say of a painted image."""
    image_id: str
    label: int
    split: str
    size: tuple         # (width, height)
    box: tuple          # x, y, width, height
    points: np.ndarray  # (15,3): x, y, visible


def _paint_images(root, images_per_class, seed):
    """Paint and write the pictures. Returns their Birds."""
    colours = [colours for _, colours in class_colours()]

    def paint_one(numbered):
        index, (image_id, label, split) = numbered
        image, mask, points, _ = paint(colours[label], np.random.default_rng([seed, index]))
        silhouette = np.where(mask > 0, 255, 0).astype(np.uint8)
        for folder, suffix, picture, options in (
                ('images', '.jpg', image[..., ::-1], JPEG), ('part_masks', '.png', mask, []),
                ('segmentations', '.png', silhouette, [])):
            path = (root / folder / image_id).with_suffix(suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(suffix, picture, options)[1].tobytes())
        return Bird(image_id, label, split, image.shape[1::-1], cv2.boundingRect(silhouette), points)
    return list(in_threads(paint_one, list(enumerate(_tasks(images_per_class))), 'painting ToyBirds'))


def _write_annotations(root, birds):
    """CUB's text files."""
    classes, attributes = class_colours(), [(part, colour) for part in UNION_PARTS for colour in PALETTE]
    numbered = {
        'images.txt': [bird.image_id for bird in birds],
        'image_class_labels.txt': [bird.label + 1 for bird in birds],
        'train_test_split.txt': [int(bird.split != 'test') for bird in birds],
        'bounding_boxes.txt': [' '.join(f'{value:.1f}' for value in bird.box) for bird in birds],
        'classes.txt': [name for name, _ in classes],
        'parts/parts.txt': POINT_NAMES,
        'attributes/attributes.txt': [f'has_{part}_color::{colour}' for part, colour in attributes]}
    for file, values in numbered.items():
        write_lines(root / file, [f'{number} {value}' for number, value in enumerate(values, 1)])
    write_lines(root / 'parts/part_locs.txt', [
        f'{number} {part} {x:.1f} {y:.1f} {int(visible)}' for number, bird in enumerate(birds, 1)
        for part, (x, y, visible) in enumerate(bird.points, 1)])
    write_lines(root / 'attributes/class_attribute_labels_continuous.txt', [
        ' '.join('100.0' if colours[part] == colour else '0.0' for part, colour in attributes)
        for _, colours in classes])
