"""Find bad data before training does: images that do not open, files and lists that disagree, boxes that lie."""
import re
from pathlib import Path

import numpy as np

from dataset.image_files import broken_images, images_below
from dataset.lists import read_columns
from dataset.registry import SPLITS, OwnFolder
from wsol.errors import UserError

SHOWN = 5
KINDS = ('broken images', 'missing images', 'unlabelled images', 'surplus images', 'bad boxes', 'missing masks',
         'broken masks', 'images without a place')


def listed_images(data):
    """{split: [image id]} of the splits of a DataSet whose lists are there. The user's own folder lists its files."""
    if isinstance(data, OwnFolder):
        return {split: images_below(folder) for split, folder in data.image_folders.items() if folder.is_dir()}
    paths = {split: data.list_folders[split] / 'image_ids.txt' for split in SPLITS}
    return {split: [image_id.decode() for image_id in read_columns(path, 0)[0]]
            for split, path in paths.items() if path.exists()}


def compare(data, listed):
    """Compare files with lists. listed: {split: [image id]}; the images of several splits may lie in one folder.

    Returns {folder of images: (ids that are listed, those that are missing, files that are in no list)}, sorted.
    """
    ids_of, compared = {}, {}
    for split, ids in listed.items():
        ids_of.setdefault(data.image_folders[split], set()).update(ids)
    for folder, ids in ids_of.items():
        files = set(images_below(folder))
        # images_below passes over some files that a list may name
        missing = [image_id for image_id in sorted(ids - files) if not (folder / image_id).is_file()]
        # OpenImages keeps its masks beside the photos
        surplus = [name for name in sorted(files - ids) if not (data.has_masks and name.endswith('.png'))]
        compared[folder] = sorted(ids), missing, surplus
    return compared


def check_dataset(data):
    """Check every split of a DataSet that is there. Returns {kind of problem, one of KINDS: [what has it]}."""
    found, masks, listed = {kind: [] for kind in KINDS}, set(), listed_images(data)
    if not listed:
        raise UserError(f'{data.name} is not there: {data.list_folders["test"].parent} holds no lists. To prepare it: '
                        f'{", ".join(dict.fromkeys(data.prepare.values()))}')
    for split, ids in listed.items():
        found['unlabelled images'] += _unlabelled(data, split, ids)
        path = data.list_folders[split] / 'localization.txt'
        if path.is_file() and path.stat().st_size:
            if data.has_masks:
                masks |= _check_masks(path, ids, data.mask_folder, found)
            else:
                _check_boxes(path, ids, found)
    for folder, (ids, missing, surplus) in compare(data, listed).items():
        found['missing images'] += [str(folder / name) for name in missing]
        found['surplus images'] += [str(folder / name) for name in surplus]
        there = sorted(set(ids) - set(missing))
        found['broken images'] += broken_images([folder / name for name in there]).values()
        if data.cub_root is not None and folder == data.cub_root / 'images':
            masks |= {data.cub_root / 'segmentations' / Path(name).with_suffix('.png') for name in ids}
    found['missing masks'] = [str(path) for path in sorted(masks) if not path.is_file()]
    found['broken masks'] += broken_images([path for path in sorted(masks) if path.is_file()]).values()
    return found


def _unlabelled(data, split, ids):
    """The images of a split that have no label, or none of the data set's classes."""
    if isinstance(data, OwnFolder):
        return [str(data.image_folders[split] / name) for name in ids if name.split('/')[0] not in data.class_names]
    labelled, labels = read_columns(data.list_folders[split] / 'class_labels.txt', 1)
    good = labelled[(labels[:, 0] >= 0) & (labels[:, 0] < data.num_classes)]
    return np.array(ids)[~np.isin(np.char.encode(ids), good)].tolist()


def _rows(path, fields, problems):
    """(where, *values) of the lines that have as many fields as `fields` names, all but path and *.png integers.

    A line of another form is noted in problems.
    """
    pattern = ','.join({'path': '(.+)', 'mask.png': '([^,]+)', 'ignore.png': '([^,]*)'}.get(field, r'\s*(-?\d{1,18})')
                       for field in fields.split(','))
    with open(path, encoding='utf-8', errors='replace') as file:
        for number, line in enumerate(file, 1):
            match = re.fullmatch(pattern, line.strip())
            if match:
                yield f'{path}, line {number}', *match.groups()
            else:
                problems.append(f'{path}, line {number}: expected "{fields}", found "{line.strip()}"')


def _check_boxes(path, ids, found):
    """Look for boxes that do not lie within their image, and for images without a box."""
    sizes_path, unplaced = path.with_name('image_sizes.txt'), set(ids)
    rows = _rows(sizes_path, 'path,width,height', found['bad boxes']) if sizes_path.is_file() else ()
    sizes = {name: (int(width), int(height)) for _, name, width, height in rows}
    for where, name, *box in _rows(path, 'path,x0,y0,x1,y1', found['bad boxes']):
        x0, y0, x1, y1 = map(int, box)
        width, height = sizes.get(name, (0, 0))
        unplaced.discard(name)
        if name not in sizes:
            found['bad boxes'].append(f'{where}: {name} has no size in {sizes_path}')
        elif not (0 <= x0 <= x1 < width and 0 <= y0 <= y1 < height):
            found['bad boxes'].append(f'{where}: {name} is {width} x {height}, its box {[x0, y0, x1, y1]}')
    found['images without a place'] += [f'{name} has no line in {path}' for name in sorted(unplaced)]


def _check_masks(path, ids, folder, found):
    """Look for images without a mask or an ignore mask. Returns the paths of all masks."""
    masks, with_mask, with_ignore = set(), set(), set()
    for _, name, mask, ignore in _rows(path, 'path,mask.png,ignore.png', found['images without a place']):
        with_mask.add(name)
        masks.add(folder / mask)
        if ignore:
            with_ignore.add(name)
            masks.add(folder / ignore)
    for what, images in (('mask', set(ids) - with_mask), ('ignore mask', with_mask.intersection(ids) - with_ignore)):
        found['images without a place'] += [f'{path} names no {what} of {name}' for name in sorted(images)]
    return masks


def summary(found):
    """What is shown of what was found: counts, and the first few of each kind."""
    return {what: {'count': len(which), 'first': which[:SHOWN]} if which else 0 for what, which in found.items()}
