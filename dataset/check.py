"""Find bad data before training does: images that do not open, files and lists that disagree, boxes that lie."""
import argparse
from pathlib import Path

import numpy as np
from munch import Munch

import config
import data_loaders
from dataset.metadata import read_boxes, read_columns, read_mask_paths
from util import UserError, write_json

SHOWN = 5


def check_dataset(args):
    """Check every split that is there.

    args: dataset, data_root, metadata_root. Returns {what is wrong: [which]}; the whole lists also go to
    <data_root>/check_<NAME>.json.
    """
    try:
        name = config.dataset_name(args.dataset)
    except argparse.ArgumentTypeError as error:
        raise UserError(str(error)) from error
    args = Munch(args, dataset=name, skip_broken=False, proxy_training_set=False, resize_size=256, crop_size=224)
    spec = data_loaders.dataset_spec(args)
    found = {key: [] for key in ('broken images', 'missing images', 'unlabelled images', 'surplus images', 'bad boxes',
                                 'missing masks')}
    known, folders, splits = {}, set(), 0
    for split in data_loaders.SPLITS:
        folder = data_loaders.metadata_folder(args, split)
        images = Path(args.data_root) / spec.image_folders[split] if name in data_loaders.DATASETS else Path(
            spec.image_folders[split])
        listed = (folder / 'image_ids.txt').exists() if name in data_loaders.DATASETS else images.is_dir()
        if not listed:
            continue
        splits += 1
        folders.add(images)
        ids = _listed(args, split, folder, found)
        paths = [images / image_id.decode() for image_id in ids]
        known.setdefault(images, set()).update(paths)
        there = [path for path in paths if path.is_file()]
        found['missing images'] += sorted(str(path) for path in set(paths) - set(there))
        found['broken images'] += list(data_loaders.broken_images(there).values())
        if (folder / 'localization.txt').exists() and (folder / 'localization.txt').stat().st_size:
            _check_localization(args, spec, folder, ids, images, found)
    if not splits:
        raise UserError(f'{name} is not there, neither in {args.metadata_root} nor in {args.data_root}: {spec.prepare}')
    for images in folders:
        files = {path for path in images.rglob('*') if path.suffix.lower() in data_loaders.SUFFIXES}
        files = {path for path in files if not (spec.masks and path.suffix == '.png')}
        found['surplus images'] += sorted(str(path) for path in files - known[images])
    write_json(Path(args.data_root) / f'check_{Path(name).name}.json', found)
    return found


def _listed(args, split, folder, found):
    """A split's ids; those without a label are noted."""
    if args.dataset not in data_loaders.DATASETS:
        return data_loaders.open_split(args, split).image_ids
    ids, _ = read_columns(folder / 'image_ids.txt', 0)
    labelled, labels = read_columns(folder / 'class_labels.txt', 1)
    count = data_loaders.dataset_spec(args).num_classes
    good = labelled[(labels[:, 0] >= 0) & (labels[:, 0] < count)]
    found['unlabelled images'] += [image_id.decode() for image_id in ids[~np.isin(ids, good)]]
    return ids


def _check_localization(args, spec, folder, ids, images, found):
    if spec.masks:
        root = Path(args.get('mask_root') or args.data_root) / spec.name
        for masks, ignore in read_mask_paths(folder, ids):
            found['missing masks'] += [path for path in (*masks, ignore) if not (root / path).is_file()]
        return
    try:
        boxes = read_boxes(folder, ids)
    except UserError as error:
        found['bad boxes'].append(str(error))
        return
    owner = np.repeat(np.arange(len(ids)), np.diff(boxes.starts))
    outside = (boxes.corners[:, 2:] >= boxes.sizes[owner]).any(1)
    found['bad boxes'] += [f'{ids[index].decode()}: {corners.tolist()} in an image of {boxes.sizes[index].tolist()}'
                           for index, corners in zip(owner[outside], boxes.corners[outside], strict=True)]


def summary(found):
    """What is shown of what was found: counts, and the first few of each kind."""
    return {what: {'count': len(which), 'first': which[:SHOWN]} if which else 0 for what, which in found.items()}
