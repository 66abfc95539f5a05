"""The WSOL evaluation's lists of a split, read: ids, labels, sizes, boxes, masks.

Source: Choe et al., CVPR 2020 (arXiv 2001.07437). A split's folder holds image_ids.txt (path), class_labels.txt
(path,label), image_sizes.txt (path,width,height) and localization.txt: path,x0,y0,x1,y1, several lines per image
allowed, or path,mask.png,ignore.png with the ignore mask on an image's first line only.
"""
from itertools import islice
from typing import NamedTuple

import numpy as np

from wsol.errors import UserError

LONGEST = 1000     # bytes of an id: all take as many as the longest
LARGEST = 1 << 31  # pixels along a side


def leads_out(name):
    """Whether an id, in bytes, is a path that leads out of the folder it is relative to."""
    return name.startswith(b'/') or b'..' in name.split(b'/')


def _parse(lines, num_integers):
    """The ids (n,) bytes and integers (n,num_integers) of some lines; ValueError where one has another form."""
    rows = [line.strip().rsplit(b',', num_integers) for line in lines]
    names = [row[0] for row in rows]
    if not all(names) or max(map(len, names)) > LONGEST or b'\0' in (whole := b'\n'.join(names)):
        raise ValueError('no id')
    whole.decode()  # UnicodeDecodeError is a ValueError
    try:
        integers = np.array([[int(value) for value in row[1:]] for row in rows], np.int64)
    except OverflowError as error:
        raise ValueError('beyond 64 bits') from error
    return np.array(names), integers.reshape(len(rows), num_integers)


def read_columns(path, num_integers):
    """Read `path,int,int,...` lines.

    Returns image ids, (N,) bytes array, and (N,num_integers) int64. Fixed-width bytes and small
    chunks keep the 1.28 million lines of ImageNet in tens of megabytes. Raises UserError with
    file and line number.
    """
    names, integers, line_number = [], [], 0
    try:
        with open(path, 'rb') as file:
            while chunk := list(islice(file, 65536)):
                try:
                    columns = _parse(chunk, num_integers)
                except ValueError:
                    _name_bad_line(path, chunk, line_number, num_integers)
                names.append(columns[0])
                integers.append(columns[1])
                line_number += len(chunk)
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from error
    if not names:
        raise UserError(f'{path} is empty')
    return np.concatenate(names), np.concatenate(integers)


def _name_bad_line(path, chunk, before, num_integers):
    wanted = ','.join(['path'] + ['integer'] * num_integers)
    for number, line in enumerate(chunk, before + 1):
        try:
            _parse([line], num_integers)
        except ValueError:
            found = line.strip()[:200].decode(errors='replace')
            raise UserError(f'{path}, line {number}: expected "{wanted}", found "{found}"') from None


def read_labels(folder, num_classes, proxy=False):
    """Image ids (N,) bytes and labels (N,) int64 of a split's metadata folder.

    proxy: the ids of image_ids_proxy.txt instead of image_ids.txt.
    """
    ids_path, labels_path = folder / f'image_ids{"_proxy" if proxy else ""}.txt', folder / 'class_labels.txt'
    if proxy and not ids_path.exists():
        raise UserError(f'{ids_path} is not there: --proxy_training_set trains on the part of image_ids.txt that it '
                        'lists, an id per line')
    ids, _ = read_columns(ids_path, 0)
    _check_ids(ids_path, ids)
    labelled, labels = read_columns(labels_path, 1)
    labels = labels[:, 0]
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UserError(f'{labels_path}, line {wrong[0] + 1}: label {labels[wrong[0]]} is out of range, '
                        f'classes are 0 to {num_classes - 1}')
    if not np.array_equal(ids, labelled):  # another order, or a part of it
        order = labelled.argsort(kind='stable')
        again = np.flatnonzero((labelled[order][1:] == labelled[order][:-1]) & (np.diff(labels[order]) != 0))
        if len(again):
            one, other = order[again[0]], order[again[0] + 1]
            raise UserError(f'{labels_path}, lines {one + 1} and {other + 1} contradict each other: '
                            f'{labelled[one].decode()} has label {labels[one]} and {labels[other]}')
        place = np.searchsorted(labelled, ids, sorter=order).clip(max=len(labelled) - 1)
        unlabelled = np.flatnonzero(labelled[order[place]] != ids)
        if len(unlabelled):
            raise UserError(f'{ids_path}, line {unlabelled[0] + 1}: {ids[unlabelled[0]].decode()} has no line in '
                            f'{labels_path} ({len(unlabelled)} such images)')
        labels = labels[order[place]]
    return ids, labels


def _check_ids(path, ids):
    """Raise UserError for an id that leads out of the folder of images, or that stands there twice."""
    suspects = np.flatnonzero((np.char.find(ids, b'..') >= 0) | np.char.startswith(ids, b'/'))
    outside = next((row for row in suspects if leads_out(ids[row])), None)
    if outside is not None:
        raise UserError(f'{path}, line {outside + 1}: {ids[outside].decode()} leads out of the folder of images')
    order = ids.argsort(kind='stable')
    again = order[1:][ids[order][1:] == ids[order][:-1]]
    if len(again):
        raise UserError(f'{path}, line {again.min() + 1}: {ids[again.min()].decode()} stands there twice '
                        f'({len(again)} such lines)')


class Boxes(NamedTuple):
    """The boxes of N images: those of image i are corners[starts[i]:starts[i + 1]]."""
    starts: np.ndarray   # (N+1,) int64
    corners: np.ndarray  # (M,4) int64: x0, y0, x1, y1, inclusive, in pixels of the photo
    sizes: np.ndarray    # (N,2) int64: width, height of the photo

    def of(self, index):
        """(K,4) boxes of one image."""
        return self.corners[self.starts[index]:self.starts[index + 1]]


def _rows_of(path, ids, names):
    """For every line its image's index in ids; lines of other images are -1."""
    order = ids.argsort(kind='stable')
    place = np.searchsorted(ids, names, sorter=order).clip(max=len(ids) - 1)
    return np.where(ids[order[place]] == names, order[place], -1)


def read_boxes(folder, ids):
    """The boxes and sizes of the images `ids` (N,) from a split's folder. Raises UserError naming file and line."""
    path, sizes_path = folder / 'localization.txt', folder / 'image_sizes.txt'
    names, corners = read_columns(path, 4)
    rows = _rows_of(path, ids, names)
    wrong = np.flatnonzero((corners[:, 0] > corners[:, 2]) | (corners[:, 1] > corners[:, 3]) | (corners < 0).any(1)
                           | (corners > LARGEST).any(1))
    if len(wrong):
        raise UserError(f'{path}, line {wrong[0] + 1}: {corners[wrong[0]].tolist()} is no box x0,y0,x1,y1')
    known, found = read_columns(sizes_path, 2)
    sizes = np.zeros((len(ids), 2), np.int64)
    size_rows = _rows_of(sizes_path, ids, known)
    sizes[size_rows[size_rows >= 0]] = found[size_rows >= 0]
    counts = np.bincount(rows[rows >= 0], minlength=len(ids))
    for missing, what in ((counts == 0, path), ((sizes <= 0).any(1) | (sizes > LARGEST).any(1), sizes_path)):
        if missing.any():
            raise UserError(f'{what} has no line for {ids[missing.argmax()].decode()} ({missing.sum()} such images)')
    order = np.argsort(rows, kind='stable')[(rows < 0).sum():]
    return Boxes(np.concatenate([[0], np.cumsum(counts)]), corners[order], sizes)


def _is_text(line):
    try:
        return '\0' not in line.decode()
    except UnicodeDecodeError:
        return False


def read_mask_paths(folder, ids):
    """[(mask paths, ignore path)] of the images `ids` (N,) from a split's folder. Raises UserError naming the line."""
    path = folder / 'localization.txt'
    rows = {image_id: number for number, image_id in enumerate(ids.tolist())}
    masks, ignores = [[] for _ in ids], [None] * len(ids)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from error
    for number, line in enumerate(lines, 1):
        fields = line.strip().split(b',')
        if len(fields) != 3 or not fields[1] or any(map(leads_out, fields[1:])) or not _is_text(line):
            raise UserError(f'{path}, line {number}: expected "path,mask.png,ignore.png", '
                            f'found "{line.decode(errors="replace")}"')
        row = rows.get(fields[0])
        if row is not None:
            masks[row].append(fields[1].decode())
            ignores[row] = ignores[row] or fields[2].decode() or None
    for row, image_id in enumerate(ids):
        if not masks[row] or ignores[row] is None:
            what = 'mask' if not masks[row] else 'ignore mask'
            raise UserError(f'{path} names no {what} of {image_id.decode()}')
    return list(zip(masks, ignores, strict=True))
