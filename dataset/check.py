"""Find bad data before training does: images that do not open, files and lists that disagree, boxes that lie."""
import argparse
from pathlib import Path

import numpy as np
from munch import Munch

import config
import data_loaders
from dataset.metadata import read_columns
from util import UserError, write_json

SHOWN = 5
KINDS = ('broken images', 'missing images', 'unlabelled images', 'surplus images', 'bad boxes', 'missing masks',
         'broken masks', 'images without a place')


def check_dataset(args):
    """Check every split that is there.

    args: dataset, data_root, metadata_root. Returns {what is wrong: [which]}; the whole lists also go to
    <data_root>/check_<NAME>.json.
    """
    args = Munch(args, dataset=_name(args.dataset), mask_root=args.data_root)
    spec, found = data_loaders.dataset_spec(args), {kind: [] for kind in KINDS}
    known, masks = {}, set()
    for split in data_loaders.SPLITS:
        lists = data_loaders.metadata_folder(args, split)
        images = _image_folder(args, spec, split)
        if not (images.is_dir() if _is_own(args) else (lists / 'image_ids.txt').exists()):
            continue
        ids = _listed(args, spec, images, lists, found)
        known.setdefault(images, set()).update(ids)
        place = lists / 'localization.txt'
        if place.is_file() and place.stat().st_size:
            if spec.masks:
                masks |= _check_masks(place, ids, data_loaders.mask_folder(args), found)
            else:
                _check_boxes(place, ids, found)
        if spec.cub_folder and images == Path(args.data_root) / spec.cub_folder / 'images':
            masks |= {data_loaders.cub_root(args) / 'segmentations' / Path(image_id).with_suffix('.png')
                      for image_id in ids}
    if not known:
        raise UserError(f'{args.dataset} is not there, neither in {args.metadata_root} nor in {args.data_root}: '
                        f'{spec.prepare}')
    for images, ids in known.items():
        there = _there(sorted(images / image_id for image_id in ids), 'missing images', found)
        found['broken images'] += list(data_loaders.broken_images(there).values())
        surplus = {path for path in images.rglob('*') if path.suffix.lower() in data_loaders.SUFFIXES}
        surplus -= {images / image_id for image_id in ids}
        # OpenImages keeps its masks beside the photos
        found['surplus images'] += sorted(str(path) for path in surplus if not (spec.masks and path.suffix == '.png'))
    found['broken masks'] += list(data_loaders.broken_images(_there(sorted(masks), 'missing masks', found)).values())
    write_json(Path(args.data_root) / f'check_{Path(args.dataset).name}.json', found)
    return found


def _name(text):
    try:
        return config.dataset_name(text)
    except argparse.ArgumentTypeError as error:
        raise UserError(str(error)) from error


def _is_own(args):
    return args.dataset not in data_loaders.DATASETS


def _image_folder(args, spec, split):
    folder = Path(spec.image_folders[split])
    return folder if _is_own(args) else Path(args.data_root) / folder


def _there(paths, what, found):
    """The paths that are files; the others are noted."""
    found[what] += [str(path) for path in paths if not path.is_file()]
    return [path for path in paths if path.is_file()]


def _listed(args, spec, images, lists, found):
    """A split's ids; those without a label are noted."""
    if _is_own(args):
        ids, classes = data_loaders.own_images(images), data_loaders.class_names(None, args)
        found['unlabelled images'] += [str(images / name) for name in ids if name.split('/')[0] not in classes]
        return ids
    ids, _ = read_columns(lists / 'image_ids.txt', 0)
    labelled, labels = read_columns(lists / 'class_labels.txt', 1)
    good = labelled[(labels[:, 0] >= 0) & (labels[:, 0] < spec.num_classes)]
    found['unlabelled images'] += [image_id.decode() for image_id in ids[~np.isin(ids, good)]]
    return [image_id.decode() for image_id in ids]


def _lines(path):
    """(where, line) of a list's lines."""
    with open(path, encoding='utf-8', errors='replace') as file:
        for number, line in enumerate(file, 1):
            yield f'{path}, line {number}', line.strip()


def _integers(line, count):
    """`path,int,...` -> (path, integers); (line, None) where it is not that."""
    name, *fields = line.rsplit(',', count)
    try:
        integers = [int(field) for field in fields]
    except ValueError:
        return line, None
    return (name, integers) if len(integers) == count else (line, None)


def _check_boxes(path, ids, found):
    """Every box within its image, and at least one for each."""
    sizes_path, unplaced = path.with_name('image_sizes.txt'), set(ids)
    sizes = dict(_integers(line, 2) for _, line in _lines(sizes_path)) if sizes_path.is_file() else {}
    for where, line in _lines(path):
        name, box = _integers(line, 4)
        unplaced.discard(name)
        if box is None:
            found['bad boxes'].append(f'{where}: expected "path,x0,y0,x1,y1", found "{line}"')
        elif not sizes.get(name):
            found['bad boxes'].append(f'{where}: {name} has no size in {sizes_path}')
        elif not (0 <= box[0] <= box[2] < sizes[name][0] and 0 <= box[1] <= box[3] < sizes[name][1]):
            width, height = sizes[name]
            found['bad boxes'].append(f'{where}: {name} is {width} x {height}, its box {box}')
    found['images without a place'] += [f'{name} has no line in {path}' for name in sorted(unplaced)]


def _check_masks(path, ids, folder, found):
    """Every image with a mask and an ignore mask. Returns their paths."""
    masks, without_mask, without_ignore = set(), set(ids), set(ids)
    for where, line in _lines(path):
        fields = line.split(',')
        if len(fields) != 3 or not fields[1]:
            found['images without a place'].append(f'{where}: expected "path,mask.png,ignore.png", found "{line}"')
            continue
        masks.update(folder / name for name in fields[1:] if name)
        without_mask.discard(fields[0])
        if fields[2]:
            without_ignore.discard(fields[0])
    found['images without a place'] += [f'{path} names no mask of {name}' for name in sorted(without_mask)]
    found['images without a place'] += [f'{path} names no ignore mask of {name}'
                                        for name in sorted(without_ignore - without_mask)]
    return masks


def summary(found):
    """What is shown of what was found: counts, and the first few of each kind."""
    return {what: {'count': len(which), 'first': which[:SHOWN]} if which else 0 for what, which in found.items()}
