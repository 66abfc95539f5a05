"""The WSOL evaluation's lists of a split, written (wsol.lists reads them): any data set's, and CUB's from its own."""
import math
from concurrent.futures import ThreadPoolExecutor

from dataset.image_files import open_image
from runtime.screen import progress
from runtime.whole_files import write_lines
from util import usable_cores
from wsol.annotations.cub import read_by_id
from wsol.errors import UserError

LISTS = ('class_labels.txt', 'image_sizes.txt', 'localization.txt', 'image_ids.txt')


def write_split(folder, ids, labels, sizes=None, boxes=None):
    """A split's four files. sizes: [(width, height)]; boxes: [[(x0, y0, x1, y1)]] per image."""
    write_lines(folder / 'class_labels.txt', [f'{name},{label}' for name, label in zip(ids, labels, strict=True)])
    write_lines(folder / 'image_sizes.txt', [] if sizes is None else [
        f'{image_id},{width},{height}' for image_id, (width, height) in zip(ids, sizes, strict=True)])
    write_lines(folder / 'localization.txt', [] if boxes is None else [
        ','.join(map(str, (image_id, *box))) for image_id, own in zip(ids, boxes, strict=True) for box in own])
    write_lines(folder / 'image_ids.txt', ids)  # last: its presence says that the split is whole


def corners_of(box, size):
    """CUB's x, y, width, height -> the WSOL evaluation's x0, y0, x1, y1, within an image of size (width, height)."""
    x, y, width, height = box
    return int(x), int(y), min(int(x + width), size[0] - 1), min(int(y + height), size[1] - 1)


def image_sizes(paths):
    """[(width, height)] of image files, from their headers, in parallel."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        sizes = pool.map(lambda path: open_image(path, lambda image: image.size), paths)
        return list(progress(sizes, 'image sizes', 'image', total=len(paths), leave=False))


def write_cub_lists(data, sizes_of=image_sizes):
    """CUB's train and test lists from its official annotations, equal to the WSOL evaluation's.

    data: the DataSet. sizes_of: a function [path of a photo] -> [(width, height)]. The annotations are joined by the
    ids of images.txt. Raises UserError where they do not fit, naming the file, and the line or the id.
    """
    names = read_by_id(data.cub_root / 'images.txt')
    label_of = {str(label + 1): label for label in range(data.num_classes)}
    labels = _parse(data.cub_root / 'image_class_labels.txt', names, label_of.__getitem__, f'1 to {data.num_classes}')
    splits = _parse(data.cub_root / 'train_test_split.txt', names, {'1': 'train', '0': 'test'}.__getitem__, '1 or 0')
    boxes = _parse(data.cub_root / 'bounding_boxes.txt', names, _box, 'the numbers x y width height')
    for split in ('train', 'test'):
        keys = [key for key in names if splits[key] == split]
        image_ids = [names[key] for key in keys]
        sizes = sizes_of([data.image_folders[split] / image_id for image_id in image_ids])
        corners = [[corners_of(boxes[key], size)] for key, size in zip(keys, sizes, strict=True)]
        write_split(data.list_folders[split], image_ids, [labels[key] for key in keys], sizes, corners)


def _parse(path, names, parse, expected):
    """{id: parse(value)} of a file that has a value for every id of names."""
    values = {}
    for key, text in read_by_id(path, names).items():
        try:
            values[key] = parse(text)
        except (ValueError, KeyError) as error:
            raise UserError(f'{path}: expected {expected} for the id {key}, found "{text}"') from error
    return values


def _box(text):
    x, y, width, height = map(float, text.split())
    if not all(0 <= value < math.inf for value in (x, y, width, height)):  # False of NaN
        raise ValueError
    return x, y, width, height
