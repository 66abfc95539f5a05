"""CUB's annotations as a test of attribution maps: in which parts two classes differ, and where these parts are.

Source: cue localization, Kim et al., ICCV 2021, section 5 and its published code; the annotations of CUB-200-2011
(Wah et al. 2011), or of any data set in the same layout.
Result: the class pairs by the number of differing parts; for an image, the part that each pixel shows.
"""
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from wsol.annotations import whole_number
from wsol.errors import UserError

# CUB's part points in the order of parts.txt, ids 1..15
POINT_NAMES = ('back', 'beak', 'belly', 'breast', 'crown', 'forehead', 'left eye', 'left leg', 'left wing',
               'nape', 'right eye', 'right leg', 'right wing', 'tail', 'throat')
# the parts that attributes describe, in the published order; each is the union of some part points
UNION_PARTS = ('head', 'back', 'belly', 'breast', 'tail', 'leg', 'wing')
HEAD_WORDS = ('bill', 'crown', 'eye', 'forehead', 'head', 'nape', 'throat')
HEAD_POINTS = ('beak', 'crown', 'forehead', 'left eye', 'nape', 'right eye', 'throat')
# (union part, the part points whose mean is a centre of it). If two centres are equally near, the first counts.
CENTRES = (('head', HEAD_POINTS), ('back', ('back',)), ('belly', ('belly',)), ('breast', ('breast',)),
           ('tail', ('tail',)), ('leg', ('left leg',)), ('leg', ('right leg',)), ('wing', ('left wing',)),
           ('wing', ('right wing',)))
NO_PART = 255
LAYOUT = 'The folder should hold CUB_200_2011 or data in its layout.'


class ClassPair(NamedTuple):
    """Two classes (0-based, first < second) and the union parts in which they differ."""
    first: int
    second: int
    parts: tuple[int, ...]  # indices into UNION_PARTS, ascending


def attribute_parts(name):
    """Indices of the union parts that an attribute's name mentions: `has_bill_shape::hooked` -> {0}."""
    subject = name.split('::')[0]
    return {index for index, part in enumerate(UNION_PARTS)
            if any(word in subject for word in (HEAD_WORDS if part == 'head' else (part,)))}


def class_pairs(attribute_names, class_attributes):
    """The pairs of classes that differ in 1, 2 or 3 union parts.

    attribute_names: A strings. class_attributes: (C,A) percentages; an attribute is present from 50 % on.
    Returns [ClassPair], sorted by number of parts, then by classes: the order of the published running metric.
    """
    present = np.asarray(class_attributes) >= 50  # (C,A)
    mentions = np.array([[part in mentioned for part in range(len(UNION_PARTS))]
                         for mentioned in map(attribute_parts, attribute_names)])  # (A,7) bool
    pairs = []
    for first in range(len(present)):
        differing = (present[first] != present[first + 1:]) @ mentions  # (C-first-1,7)
        pairs += [ClassPair(first, first + 1 + offset, tuple(np.flatnonzero(parts).tolist()))
                  for offset, parts in enumerate(differing)]
    return [pair for count in (1, 2, 3) for pair in pairs if len(pair.parts) == count]


def nearest_part(points, width, height, size):
    """The part whose point is nearest, for each pixel of a square picture.

    points: (15,3) x, y, visible, in pixels of a photo of width x height. Returns (size,size) uint8, indices into
    UNION_PARTS (NO_PART everywhere if no point is visible).
    As published: the mean of the visible head points is one point. Coordinates are scaled, then truncated to integers.
    Distances are Euclidean.
    """
    visible = points[:, 2] > 0
    # divided first, as published: x * (size / width) can fall just under a whole number, and truncate to one pixel less
    scaled = points[:, :2] / np.array([width, height], np.float64) * size
    parts, centres = [], []
    for part, names in CENTRES:
        chosen = [point for point in map(POINT_NAMES.index, names) if visible[point]]
        if chosen:
            parts.append(UNION_PARTS.index(part))
            centres.append(scaled[chosen].mean(0).astype(np.int64))
    if not centres:
        return np.full((size, size), NO_PART, np.uint8)
    centres = np.array(centres)  # (P,2)
    axis = np.arange(size)
    x, y = ((axis - centres[:, column, None]) ** 2 for column in (0, 1))  # (P,S)
    squared = y[:, :, None] + x[:, None, :]  # (P,S,S)
    return np.array(parts, np.uint8)[squared.argmin(0)]


def visible_parts(points):
    """Indices of the union parts with a visible part point. points: (15,3) x, y, visible."""
    seen = {name for name, visible in zip(POINT_NAMES, points[:, 2] > 0, strict=True) if visible}
    return {UNION_PARTS.index(part) for part, names in CENTRES if seen.intersection(names)}


class CueAnnotations:
    """The annotations for cue localization of a data set in CUB's layout, read from its folder `root`.

    pairs: [ClassPair]. num_classes: the number of classes with attributes. Part points and masks are looked up by image
    id (`class/name.jpg`). Raises UserError for files that are missing or wrong.
    """

    def __init__(self, root):
        self.root = Path(root)
        names, values = self._attributes()
        self.pairs, self.num_classes = class_pairs(names, values), len(values)
        images = read_by_id(self.root / 'images.txt')
        self._row = {name: row for row, name in enumerate(images.values())}
        if len(self._row) < len(images):
            raise UserError(f'{self.root / "images.txt"} names an image twice, under different ids')
        self._points = self._part_points(images)

    def _attributes(self):
        folders = (self.root / 'attributes', self.root, self.root.parent)
        places = [folder / 'attributes.txt' for folder in folders]
        file = next((path for path in places if path.is_file()), None)
        if file is None:
            raise UserError(f'no attributes.txt: looked for {", ".join(map(str, places))}. '
                            'It comes with CUB_200_2011.tgz; cue localization needs it.')
        names = [name for _, name in sorted(read_by_id(file).items())]
        path = self.root / 'attributes' / 'class_attribute_labels_continuous.txt'
        return names, _numbers(path, len(names), f'one per attribute of {file}')

    def _part_points(self, image_ids):
        """The part points (N,15,3) of all images. image_ids: their ids, in the order of the result."""
        path = self.root / 'parts' / 'part_locs.txt'
        rows = _numbers(path, 5, 'image, part, x, y, visible')
        row_of = {image_id: row for row, image_id in enumerate(image_ids)}
        image = np.array([row_of.get(image_id, -1) for image_id in rows[:, 0].tolist()])
        _, first = np.unique(rows[:, :2], axis=0, return_index=True)
        wrong = (image < 0) | ~np.isin(rows[:, 1], 1 + np.arange(len(POINT_NAMES)))
        wrong |= ~np.isin(np.arange(len(rows)), first)  # a point that is listed twice
        if wrong.any():
            row = wrong.argmax()
            raise UserError(f'{path}, row {row + 1}: image {rows[row, 0]:g}, part {rows[row, 1]:g}; every point should '
                            f'be listed once, for the images of images.txt and the parts 1 to {len(POINT_NAMES)}')
        points = np.zeros((len(image_ids), len(POINT_NAMES), 3))
        points[image, rows[:, 1].astype(int) - 1] = rows[:, 2:]
        return points

    def points(self, image_id):
        """(15,3): x, y in pixels of the photo, visible."""
        if image_id not in self._row:
            raise UserError(f'{image_id} is a test image but not in {self.root / "images.txt"}')
        return self._points[self._row[image_id]]

    def evaluated(self, image_id, label):
        """Indices into `pairs` of those that an image tests: they contain its label, a differing part is visible."""
        seen = visible_parts(self.points(image_id))
        return [index for index, pair in enumerate(self.pairs)
                if label in (pair.first, pair.second) and seen.intersection(pair.parts)]

    def photo_size(self, image_id):
        """(width, height) in pixels."""
        return _read_picture(self.root / 'images' / image_id, lambda image: image.size)

    def partition(self, image_id, size):
        """(size,size) uint8: the union part whose point is nearest."""
        return nearest_part(self.points(image_id), *self.photo_size(image_id), size)

    def segmentation(self, image_id):
        """The path of the bird's segmentation."""
        return self.root / 'segmentations' / Path(image_id).with_suffix('.png')

    def part_mask(self, image_id):
        """The path of an image's exact part mask."""
        return self.root / 'part_masks' / Path(image_id).with_suffix('.png')

    def object_mask(self, image_id, size):
        """(size,size) bool: the bird's segmentation, resized with PIL's default filter, > 0."""
        return _read_picture(self.segmentation(image_id),
                             lambda image: np.asarray(image.convert('L').resize((size, size)))) > 0

    def has_part_masks(self):
        """Whether the data set has exact part masks; ToyBirds has them."""
        return (self.root / 'part_masks').is_dir()

    def true_parts(self, image_id, size):
        """(size,size) uint8: the part that each pixel shows, an index into UNION_PARTS, or NO_PART off the bird.

        None for a data set without exact part masks.
        """
        if not self.has_part_masks():
            return None
        mask = _read_picture(self.part_mask(image_id),
                             lambda image: np.asarray(image.resize((size, size), Image.Resampling.NEAREST)))
        return mask - np.uint8(1)  # 0, the background, wraps to NO_PART


def _read_picture(path, read):
    """read(PIL image) of a file."""
    try:
        if path.exists() and not path.is_file():
            raise OSError('no regular file')  # to open a pipe would wait for ever
        with Image.open(path) as image:
            return read(image)
    except Exception as error:  # damaged pictures make PIL raise many kinds
        raise UserError(f'{path}: {error}. Cue localization needs the photos and their segmentations.') from error


def read_by_id(path, known=None):
    """CUB's `id value` lines -> {id: value}, in the order of the file.

    known: the ids that the file should have, those of images.txt. Raises UserError, with file and line, for a line in
    another form, for an id that is listed twice or unknown, and for missing ids.
    """
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{path}: {getattr(error, "strerror", error)}. {LAYOUT}') from error
    values = {}
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        key, _, value = line.strip().partition(' ')
        try:
            key = whole_number(key if value.strip() else '')
        except ValueError:
            raise UserError(f'{path}, line {number}: expected "id value", found "{line}"') from None
        if key in values or (known is not None and key not in known):
            problem = 'is listed twice' if key in values else 'is not in images.txt'
            raise UserError(f'{path}, line {number}: the id {key} {problem}')
        values[key] = value.strip()
    missing = sorted(set(known or ()) - values.keys())
    if missing or not values:
        raise UserError(f'{path} has no line with the id {missing[0]} ({len(missing)} such ids)' if missing
                        else f'{path} is empty')
    return values


def _numbers(path, columns, meaning):
    """A file of `columns` finite numbers on every line -> array (N,columns). meaning: what they are, for a message."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # numpy warns about an empty file, which is refused below
            values = np.loadtxt(path, ndmin=2, encoding='utf-8-sig')
    except OSError as error:
        raise UserError(f'{path}: {error.strerror or "not found"}. {LAYOUT}') from error
    except ValueError as error:
        raise UserError(f'{path}: {error}') from error
    if not values.size:
        raise UserError(f'{path} is empty')
    if values.shape[1] != columns:
        raise UserError(f'{path}: expected {columns} numbers a line ({meaning}), found the shape {values.shape}')
    wrong = ~(np.abs(values) < 1e9)  # true for NaN, too
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise UserError(f'{path}, row {row + 1}: {values[row, column]} is no possible number')
    return values
