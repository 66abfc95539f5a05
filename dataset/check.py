"""Find bad data before training does: images that do not open, files and lists that disagree, boxes outside
their image."""
from pathlib import Path

import numpy as np

from dataset.image_folders import images_below, problems_of
from dataset.lists import BOXES, MASKS, read_columns, read_rows
from dataset.registry import SPLITS, OwnFolder
from wsol.errors import UserError

KINDS = ('broken images', 'missing images', 'unlabelled images', 'surplus images', 'bad boxes', 'missing masks',
         'broken masks', 'images without box or mask')


def listed_images(data):
    """{split: [image id]} of the splits of a DataSet whose lists are there. The user's own folder lists its files."""
    if isinstance(data, OwnFolder):
        return {split: images_below(folder) for split, folder in data.image_folders.items() if folder.is_dir()}
    paths = {split: data.list_folders[split] / 'image_ids.txt' for split in SPLITS}
    return {split: np.char.decode(read_columns(path)[0]).tolist() for split, path in paths.items() if path.exists()}


def compare(data, listed):
    """Compare files with lists. listed: {split: [image id]}; the images of several splits may lie in one folder.

    Returns {folder of images: (listed ids, missing ids, files that no list names)}, sorted.
    """
    ids_of, compared = {}, {}
    for split, ids in listed.items():
        ids_of.setdefault(data.image_folders[split], set()).update(ids)
    for folder, ids in ids_of.items():
        files = ids if isinstance(data, OwnFolder) else set(images_below(folder))
        # images_below leaves out some files that a list may name
        missing = [image_id for image_id in sorted(ids - files) if not (folder / image_id).is_file()]
        # OpenImages keeps its masks beside the photos
        surplus = [name for name in sorted(files - ids) if not (data.has_masks and name.endswith('.png'))]
        compared[folder] = sorted(ids), missing, surplus
    return compared


def check_dataset(data):
    """Check every split of a DataSet that is there. Returns {kind of problem, one of KINDS: [where it is]}."""
    problems, masks, listed = {kind: [] for kind in KINDS}, set(), listed_images(data)
    if not listed:
        raise UserError(f'{data.name} is not there: {data.list_folders["test"].parent} holds no lists. To prepare it: '
                        f'{", ".join(dict.fromkeys(data.prepare.values()))}')
    for split, ids in listed.items():
        problems['unlabelled images'] += _unlabelled(data, split, ids)
        path = data.list_folders[split] / 'localization.txt'
        if path.is_file() and path.stat().st_size:
            if data.has_masks:
                kind, noted, read = 'broken masks', problems['images without box or mask'], data.mask_paths
                masks |= check_masks(path, ids, data.mask_folder, noted)
            else:
                kind, noted, read = 'bad boxes', problems['bad boxes'], data.boxes
                _check_boxes(path, ids, problems)
            present = [name.encode() for name in ids if (data.image_folders[split] / name).is_file()]
            try:
                read(split, np.array(present))  # raises if a photo has another size or shape than listed
            except UserError as error:
                problems[kind] += [] if noted else [str(error)]
    for folder, (ids, missing, surplus) in compare(data, listed).items():
        problems['missing images'] += [str(folder / name) for name in missing]
        problems['surplus images'] += [str(folder / name) for name in surplus]
        paths = [folder / name for name in sorted({*ids} - {*missing})]
        problems['broken images'] += filter(None, problems_of(paths, data.open_photo))
        if data.cub_root is not None and folder == data.cub_root / 'images':
            masks |= {data.cub_root / 'segmentations' / Path(name).with_suffix('.png') for name in ids}
    problems['missing masks'] = [str(path) for path in sorted(masks) if not path.is_file()]
    problems['broken masks'] += filter(None, problems_of([path for path in sorted(masks) if path.is_file()]))
    return problems


def _unlabelled(data, split, ids):
    """The images of a split that have no label, or none of the data set's classes."""
    if isinstance(data, OwnFolder):
        return [str(data.image_folders[split] / name) for name in ids if name.split('/')[0] not in data.class_names]
    labelled, labels = read_columns(data.list_folders[split] / 'class_labels.txt', 'path,label')
    good = labelled[(labels[:, 0] >= 0) & (labels[:, 0] < data.num_classes)]
    return np.array(ids)[~np.isin(np.char.encode(ids), good)].tolist()


def _check_boxes(path, ids, problems):
    """Note the boxes that do not lie within their image, and the images without a box."""
    sizes_path, bad, unplaced = path.with_name('image_sizes.txt'), problems['bad boxes'], set(ids)
    rows = read_rows(sizes_path, 'path,width,height', bad) if sizes_path.is_file() else ()
    sizes = {image_id: size for _, image_id, *size in rows}
    for number, image_id, x0, y0, x1, y1 in read_rows(path, BOXES, bad):
        width, height = sizes.get(image_id, (0, 0))
        name = image_id.decode()
        unplaced.discard(name)
        if image_id not in sizes:
            bad.append(f'{path}, line {number}: {name} has no size in {sizes_path}')
        elif not (0 <= x0 <= x1 < width and 0 <= y0 <= y1 < height):
            bad.append(f'{path}, line {number}: {name} is {width} x {height}, its box {[x0, y0, x1, y1]}')
    problems['images without box or mask'] += [f'{name} has no line in {path}' for name in sorted(unplaced)]


def check_masks(path, ids, folder, problems):
    """Note the images without a mask, or without an ignore mask if others have one. Returns the paths of all masks."""
    masks, with_mask, with_ignore = set(), set(), set()
    for _, image_id, mask, ignore in read_rows(path, MASKS, problems):
        with_mask.add(image_id.decode())
        if ignore:
            with_ignore.add(image_id.decode())
        masks |= {folder / name.decode() for name in (mask, ignore) if name}
    without_ignore = with_mask.intersection(ids) - with_ignore if with_ignore else ()
    for what, images in (('mask', set(ids) - with_mask), ('ignore mask', without_ignore)):
        problems += [f'{path} names no {what} of {name}' for name in sorted(images)]
    return masks
