"""The WSOL evaluation's lists of a split, read and written: ids, labels, sizes, boxes, masks.

Source: Choe et al., CVPR 2020 (arXiv 2001.07437). A split's folder holds image_ids.txt (path), class_labels.txt
(path,label), image_sizes.txt (path,width,height) and localization.txt: path,x0,y0,x1,y1, several lines per image
allowed, or path,mask.png,ignore.png with the ignore mask on an image's first line only, or no ignore masks.

Files as spreadsheets and pandas write them are read too: a byte order mark, blank lines at the end, spaces around
commas, tabs in their place, 12.0. The published code fails at any fraction. Here those of box corners are cut off, as
it does after scaling.
"""
import codecs
import re
from array import array
from typing import NamedTuple

import numpy as np

from runtime.screen import warn
from runtime.whole_files import write_lines
from wsol.errors import UserError

LISTS = ('class_labels.txt', 'image_sizes.txt', 'localization.txt', 'image_ids.txt')
BOXES, MASKS = 'path,x0,y0,x1,y1', 'path,mask.png,ignore.png'  # the two forms of localization.txt
LARGEST = 1 << 31  # pixels along a side
# an id has at most 1,000 bytes: numpy keeps all ids as wide as the longest
PATHS = {'path': rb'([^\0]{1,1000}?)', 'mask.png': rb'([^,\t\0]+\.(?i:png))',
         'ignore.png': rb'((?:[^,\t\0]+\.(?i:png))?)', 'old name': rb'([^,\0]+?)', 'new name': rb'([^,\0]+)'}
CORNERS = dict.fromkeys(('x0', 'y0', 'x1', 'y1'), rb'(-?[0-9]{1,18})(?:\.[0-9]*)?')
INTEGER, COMMA = rb'(-?[0-9]{1,18})(?:\.0*)?', rb'(?:\s*,\s*|[^\S\t]*\t\s*)'
FRACTION = re.compile(rb'[,\t][^,\t]*\.0*[1-9]')  # a fraction in a corner
NUMBER_AT_END = re.compile(rb'[,\t]\s*-?[0-9.]+$')


# --- lines ------------------------------------------------------------------------------------------


def read_rows(path, form, problems=None):
    """Yield (line number, value, ...) for each line of a list: paths as bytes, integers as int.

    form: the names of the fields, as in 'path,label': those in PATHS are paths, all others are integers.
    A line may end before ignore.png.
    problems: a list to which a sentence is added for each malformed line; without it such a line raises UserError.
    """
    names = re.split(', ?', form)
    paths = sum(name in PATHS for name in names)  # they come first
    pattern = COMMA.join((PATHS | CORNERS).get(name, INTEGER) for name in names if name != 'ignore.png')
    if 'ignore.png' in names:
        pattern += rb'(?:' + COMMA + PATHS['ignore.png'] + rb')?'
    pattern, cut = re.compile(pattern), 0
    try:
        with open(path, 'rb') as file:
            for number, line in _lines(file):
                match = pattern.fullmatch(line)
                values = match.groups(b'') if match else ()
                # a path may hold commas; one that ends in ",12" is a line with a number too many, such as a score
                too_long = match and paths < len(names) and NUMBER_AT_END.search(values[0])
                if not match or too_long or line.decode(errors='ignore').encode() != line:
                    problem = f'expected "{form}", found'
                elif any(name.startswith(b'/') or b'..' in name.split(b'/') for name in values[:paths]):
                    problem = 'a path leads out of its folder in'
                else:
                    cut += form == BOXES and FRACTION.search(line[match.end(1):]) is not None
                    yield number, *values[:paths], *map(int, values[paths:])
                    continue
                problem = f'{path}, line {number}: {problem} "{line[:200].decode(errors="replace")}"'
                if problems is None:
                    raise UserError(problem)
                problems.append(problem)
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from error
    if cut:
        warn(f'{path}: {cut} boxes lie between pixels; the fractions of their corners are cut off')


def _lines(file):
    """(number, line) of each line, without a byte order mark and without the blank lines at the end."""
    blank = []
    for number, line in enumerate(file, 1):
        line = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b'').strip()
        blank.append((number, line))
        if line:
            yield from blank
            blank = []


def read_columns(path, form='path'):
    """The ids (N,) bytes and the integers (N,K) int64 of a list of the form 'path,integer,...'. Raises UserError.

    Bytes of one width keep ImageNet's 1.28 million lines in tens of megabytes.
    """
    ids, integers = [], array('q')
    for _, image_id, *values in read_rows(path, form):
        ids.append(image_id)
        integers.extend(values)
    if not ids:
        raise UserError(f'{path} is empty')
    return np.array(ids), np.array(integers).reshape(len(ids), -1)


def find(names, wanted):
    """The index in names (N,) of each of wanted (M,), of the first if there are several; -1 if there is none."""
    order = names.argsort(kind='stable')
    place = order[np.searchsorted(names, wanted, sorter=order).clip(max=len(names) - 1)]
    return np.where(names[place] == wanted, place, -1)


def check_agree(path, names, values, what):
    """Raise UserError for two lines of a list that state different values of one name. names: (N,). values: (N,K)."""
    first = find(names, names)
    wrong = np.flatnonzero((values[first] != values).any(1))
    if len(wrong):
        line = wrong[0]
        stated = [' x '.join(map(str, values[row])) for row in (first[line], line)]
        raise UserError(f'{path}, lines {first[line] + 1} and {line + 1} contradict each other: '
                        f'{names[line].decode()} has {what} {stated[0]} and {stated[1]}')


# --- lists ------------------------------------------------------------------------------------------


def read_labels(folder, num_classes, proxy=False):
    """Image ids (N,) bytes and labels (N,) int64 of a split's folder. Raises UserError naming file and line.

    proxy: the ids of image_ids_proxy.txt instead of image_ids.txt.
    """
    ids_path, labels_path = folder / f'image_ids{"_proxy" if proxy else ""}.txt', folder / 'class_labels.txt'
    if proxy and not ids_path.exists():
        raise UserError(f'{ids_path} is not there: --proxy_training_set trains on the part of image_ids.txt that it '
                        'lists, an id per line')
    ids, _ = read_columns(ids_path)
    again = np.flatnonzero(find(ids, ids) != np.arange(len(ids)))
    if len(again):
        raise UserError(f'{ids_path}, line {again[0] + 1}: {ids[again[0]].decode()} stands there twice '
                        f'({len(again)} such lines)')
    labelled, labels = read_columns(labels_path, 'path,label')
    labels = labels[:, 0]
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UserError(f'{labels_path}, line {wrong[0] + 1}: label {labels[wrong[0]]} is out of range, '
                        f'classes are 0 to {num_classes - 1}')
    if np.array_equal(ids, labelled):
        return ids, labels
    check_agree(labels_path, labelled, labels[:, None], 'label')
    rows = find(labelled, ids)
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        raise UserError(f'{ids_path}, line {missing[0] + 1}: {ids[missing[0]].decode()} has no line in {labels_path} '
                        f'({len(missing)} such images)')
    return ids, labels[rows]


class Boxes(NamedTuple):
    """The boxes of N images: those of image i are corners[starts[i]:starts[i + 1]]."""
    starts: np.ndarray   # (N+1,) int64
    corners: np.ndarray  # (M,4) int64: x0, y0, x1, y1, inclusive, in pixels of the photo
    sizes: np.ndarray    # (N,2) int64: width, height of the photo

    def of(self, index):
        """(K,4) boxes of one image."""
        return self.corners[self.starts[index]:self.starts[index + 1]]


def read_boxes(folder, ids):
    """The Boxes of the images `ids` (N,) from a split's folder. Raises UserError naming file and line."""
    path, sizes_path = folder / 'localization.txt', folder / 'image_sizes.txt'
    names, corners = read_columns(path, BOXES)
    wrong = np.flatnonzero((corners[:, :2] > corners[:, 2:]).any(1) | (corners < 0).any(1) | (corners > LARGEST).any(1))
    if len(wrong):
        raise UserError(f'{path}, line {wrong[0] + 1}: {corners[wrong[0]].tolist()} is no box x0,y0,x1,y1')
    known, values = read_columns(sizes_path, 'path,width,height')
    check_agree(sizes_path, known, values, 'size')
    rows, size_rows = find(ids, names), find(known, ids)
    sizes = np.where((size_rows < 0)[:, None], 0, values[size_rows])
    counts = np.bincount(rows[rows >= 0], minlength=len(ids))
    for missing, file in ((counts == 0, path), ((sizes <= 0).any(1) | (sizes > LARGEST).any(1), sizes_path)):
        if missing.any():
            raise UserError(f'{file} has no line for {ids[missing.argmax()].decode()} ({missing.sum()} such images)')
    order = rows.argsort(kind='stable')[(rows < 0).sum():]
    return Boxes(np.concatenate([[0], np.cumsum(counts)]), corners[order], sizes)


def read_mask_paths(folder, ids):
    """[(mask paths, ignore path or '')] of the images `ids` (N,) from a split's folder. Raises UserError."""
    path = folder / 'localization.txt'
    masks, ignore_masks = {image_id: [] for image_id in ids.tolist()}, {}
    for number, image_id, mask, ignore in read_rows(path, MASKS):
        if image_id in masks:
            masks[image_id].append(mask.decode())
            if ignore and ignore_masks.setdefault(image_id, ignore) != ignore:
                raise UserError(f'{path}, line {number}: {image_id.decode()} has several ignore masks, '
                                f'{ignore_masks[image_id].decode()}, {ignore.decode()}')
    for image_id, names in masks.items():
        if not names:
            raise UserError(f'{path} names no mask of {image_id.decode()}')
    return [(names, ignore_masks.get(image_id, b'').decode()) for image_id, names in masks.items()]


def write_split(folder, rows):
    """Write a split's four files. rows: [(id, label)], or [(id, label, (width, height), [(x0, y0, x1, y1)])]."""
    lines = {'class_labels.txt': [row[:2] for row in rows],
             'image_sizes.txt': [(row[0], *row[2]) for row in rows if row[2:]],
             'localization.txt': [(row[0], *box) for row in rows if row[3:] for box in row[3]],
             'image_ids.txt': [row[:1] for row in rows]}  # last: its presence says that the split is whole
    for file, values in lines.items():
        write_lines(folder / file, [','.join(map(str, line)) for line in values])
