"""ImageNet's lists from its folders and annotations; ImageNetV2's files under the names its boxes use."""
import shutil
import xml.etree.ElementTree
from pathlib import PurePosixPath

from dataset.metadata import image_sizes, read_boxes, read_labels, write_split
from util import UserError, progress

NUM_CLASSES = 1000

def train_lists(root, metadata):
    """ImageNet's training lists from its folders: class numbers follow the sorted synset ids."""
    synsets = sorted(path.name for path in (root / 'train').iterdir() if path.is_dir())
    if len(synsets) != NUM_CLASSES:
        raise UserError(f'{root / "train"} has {len(synsets)} class folders, not {NUM_CLASSES}: labels would be '
                        'shifted. Move it away and prepare it anew')
    ids, labels = [], []
    for label, synset in enumerate(progress(synsets, 'listing', 'class')):
        names = sorted(path.name for path in (root / 'train' / synset).iterdir())
        ids += [f'train/{synset}/{name}' for name in names]
        labels += [label] * len(names)
    write_split(metadata / 'ILSVRC' / 'train', ids, labels)
    return synsets


def test_lists(metadata, annotations, synsets):
    """The test lists (ImageNet's val images) from the devkit's XML: boxes, sizes, and the class of the objects."""
    numbers = {synset: label for label, synset in enumerate(synsets)}
    ids, labels, sizes, boxes = [], [], [], []
    for path in progress(sorted(annotations.rglob('*.xml')), 'reading boxes', 'file'):
        try:
            tree = xml.etree.ElementTree.parse(path)
            width, height = (int(tree.findtext(f'size/{side}')) for side in ('width', 'height'))
            objects = tree.findall('object')
            own = [tuple(int(one.findtext(f'bndbox/{key}')) for key in ('xmin', 'ymin', 'xmax', 'ymax'))
                   for one in objects]
            label = numbers[objects[0].findtext('name')]
        except (xml.etree.ElementTree.ParseError, TypeError, ValueError, KeyError, IndexError) as error:
            raise UserError(f'{path} does not parse as an ImageNet annotation: '
                            f'{type(error).__name__} {error}') from error
        ids.append(f'val/{path.stem}.JPEG')
        labels.append(label)
        sizes.append((width, height))
        boxes.append([(x0, y0, min(x1, width - 1), min(y1, height - 1)) for x0, y0, x1, y1 in own])
    write_split(metadata / 'ILSVRC' / 'test', ids, labels, sizes, boxes)


def match_renamed(old, new):
    """Which renamed image is which, within a class, by size and, among images of one size, by equal boxes.

    old: {old name: (size, boxes)}; new: {new name: size}. Images of one size whose boxes are the same too may be
    exchanged without changing any evaluation. Returns {new name: old name} of those that can be told.
    """
    matched = {}
    for size in {size for size, _ in old.values()}:
        names = sorted(name for name, (own, _) in old.items() if own == size)
        candidates = sorted(name for name, own in new.items() if own == size)
        if len(names) == len(candidates) and len({str(old[name][1]) for name in names}) == 1:
            matched.update(zip(candidates, names, strict=True))
    return matched


def rename(root, lists, mapping=None):
    """Give ImageNetV2's files the names that the boxes speak of, val2/<class>/<n>.jpeg.

    root: where val2/<class>/<hash>.jpeg lie. lists: the split's metadata folder. mapping: a file of lines
    "<class>/<n>.jpeg, <class>/<hash>.jpeg"; without it by image size and boxes. Returns the number of ids, and
    those that no file could be told to be.
    """
    ids, _ = read_labels(lists, NUM_CLASSES)
    names = [image_id.decode() for image_id in ids]
    if all((root / name).is_file() for name in names):
        return len(names), []
    old_of = {}
    if mapping is not None:
        for number, line in enumerate(mapping.read_text().splitlines(), 1):
            parts = [part.strip() for part in line.split(',')]
            if len(parts) != 2:
                raise UserError(f'{mapping}, line {number}: expected "old, new", found "{line}"')
            old_of[f'val2/{parts[1]}'] = f'val2/{parts[0]}'
    else:
        boxes, by_class = read_boxes(lists, ids), {}
        for index, name in enumerate(names):
            size = tuple(boxes.sizes[index].tolist())
            by_class.setdefault(PurePosixPath(name).parent, {})[name] = size, boxes.of(index).tolist()
        for parent, old in by_class.items():
            files = sorted((root / parent).iterdir()) if (root / parent).is_dir() else []
            new = dict(zip((str(parent / file.name) for file in files), image_sizes(files), strict=True))
            old_of.update(match_renamed(old, new))
    for new, old in old_of.items():
        if (root / new).is_file():
            (root / new).rename(root / old)
    return len(names), [name for name in names if not (root / name).is_file()]


def drop(folder, lost):
    """Take images out of a split's lists; the whole lists are kept in whole/, for restore()."""
    ids, labels = read_labels(folder, NUM_CLASSES)
    boxes = read_boxes(folder, ids)
    kept = [index for index, image_id in enumerate(ids) if image_id.decode() not in lost]
    (folder / 'whole').mkdir()
    for file in folder.glob('*.txt'):
        shutil.copy2(file, folder / 'whole' / file.name)
    write_split(folder, [ids[index].decode() for index in kept], labels[kept], boxes.sizes[kept].tolist(),
                [boxes.of(index).tolist() for index in kept])


def restore(folder):
    """Undo drop()."""
    if (folder / 'whole').is_dir():
        for file in (folder / 'whole').iterdir():
            file.replace(folder / file.name)
        (folder / 'whole').rmdir()
