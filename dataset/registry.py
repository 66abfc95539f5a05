"""Data sets as objects: their numbers, splits and lists, boxes and masks, annotations, superclasses.

Source: the WSOL evaluation's splits (Choe et al., CVPR 2020), train, val (its train-fullsup) and test, listed in the
format that dataset.lists reads, or the user's own folders. `dataset.open_dataset` also paints ToyBirds if need be.
"""
import os
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dataset import lists
from dataset.class_names import read_superclass_file
from dataset.fingerprints import Contents, combined
from dataset.image_files import open_image, open_upright, stored_size, upright_size
from dataset.image_folders import images_below, in_threads, is_hidden, opening_images
from dataset.images import ImageDataset
from runtime import processes
from runtime.command_line import choice
from runtime.screen import warn
from wsol.annotations import superclasses
from wsol.annotations.cub import CueAnnotations
from wsol.errors import UserError

SPLITS = ('train', 'val', 'test')
PREPARE = 'python dataset/prepare.py'  # and a recipe's name


@dataclass(frozen=True)
class DataSet:
    """A data set: where its files are, and what is known of it. Files are opened only when they are asked for.

    In the table DATASETS, folders are relative to data_root, and find_dataset fills in the last three fields.
    """
    num_classes: int
    image_folders: dict[str, str | Path]  # split -> what its image ids are relative to
    prepare: dict[str, str]               # split -> what to do if it is missing
    cub_root: str | Path | None = None    # the folder of parts, attributes and segmentations in CUB's layout
    cue_pairs: tuple[int, ...] = ()       # how many pairs of classes differ in 1, 2, 3 parts
    has_masks: bool = False               # localization.txt names masks, not boxes
    groups: Callable | None = None        # (DataSet, class names) -> (C,C) bool, its superclasses
    class_names: tuple[str, ...] | None = None  # of the user's own folder; otherwise the images' folders tell them
    name: str = ''
    list_folders: dict[str, Path] | None = None  # split -> where image_ids.txt, class_labels.txt, localization.txt are
    mask_folder: Path | None = None       # what the masks of localization.txt are relative to

    # as published, without EXIF: boxes and masks belong to these pixels
    open_photo, size_of_photo, turned = staticmethod(open_image), staticmethod(stored_size), ''
    may_be_resized = True  # whether photos may be smaller than in the published lists of boxes and sizes

    @property
    def label(self):
        """The name in names of result files; a folder gets a number, since two folders may have the same name."""
        return self.name if self.name in DATASETS else (
            f'{Path(self.name).name}-{zlib.crc32(bytes(Path(self.name).resolve())):08x}')

    def list_images(self, split, proxy=False):
        """Image ids (N,) bytes and labels (N,) int64 of a split. Raises UserError with the command that prepares it."""
        folder, images = self.list_folders[split], self.image_folders[split]
        missing = [str(path) for path in (folder / 'image_ids.txt', folder / 'class_labels.txt', images)
                   if not path.exists()]
        if missing:
            raise UserError(f'{self.name} {split} is not there: missing {", ".join(missing)}. To prepare it: '
                            f'{self.prepare[split]}')
        return lists.read_labels(folder, self.num_classes, proxy)

    def open_split(self, split, transform, proxy=False, skip_broken=False, folder=None, cached=False):
        """The ImageDataset of a split. transform: a Transform. proxy: only what image_ids_proxy.txt lists. skip_broken:
        without images that do not open. folder: where the SHA-256 of the photos are kept and, if cached, the resized
        images."""
        image_ids, labels = self.list_images(split, proxy)
        images = ImageDataset(image_ids, labels, self.image_folders[split], transform, (), Contents(folder),
                              self.open_photo)
        names = images.class_names = self.class_names or names_of_folders(images, self.num_classes)
        processes.check_same(f'{len(labels)} images, fingerprint {combined(image_ids.tolist(), labels, names)[:8]}',
                             f'list different images of {self.name} {split}: all machines should see the same files')
        if skip_broken:
            kept = opening_images(images.paths(), split, self.open_photo)
            images.image_ids, images.labels = images.image_ids[kept], images.labels[kept]
        # sets that can be used side by side have caches of different names
        which = self.image_folders[split].resolve(), self.list_folders[split].resolve(), proxy, skip_broken
        images.name = f'{self.label}_{split}_{zlib.crc32(repr(which).encode()):08x}'
        return images.cached(folder) if cached else images

    def check_classes(self, split, images, names, source):
        """Raise UserError where images lie in the folder of another class than their label's. Returns whether the
        folders tell the classes at all.

        names: the classes' names in `source`, where each class has the name of its images' folder; None if `source` has
        no names. Training images may have wrong labels on purpose: there the commonest folder of a class counts.
        """
        by_class = split == 'train' or self.class_names
        pairs = zip(images.class_names, range(self.num_classes), strict=False) if by_class else count_folders(images)
        pairs = [(folder, label) for folder, label in pairs if folder]
        folders, numbers = {folder for folder, _ in pairs}, [str(label) for label in range(self.num_classes)]
        if not self.class_names and folders.isdisjoint(names or ()):
            if folders != set(numbers):
                return False
            names, source = numbers, 'the name of the folder'  # as in ImageNetV2
        expected, known = dict(enumerate(names or ())), set(names or ())
        wrong = {label: folder for folder, label in pairs
                 if expected.get(label, '') != folder and (expected.get(label) or folder in known)}
        if wrong:
            label = min(wrong)
            place = self.image_folders[split] if self.class_names else self.list_folders[split] / 'class_labels.txt'
            raise UserError(f'{place}: {len(wrong)} of {self.num_classes} classes are others than in {source}. The '
                            f'first: class {label} is "{expected.get(label, "")}" there, and "{wrong[label]}" here. '
                            'Put the labels and folders right, or name another checkpoint')
        return bool(names)

    def boxes(self, split, image_ids):
        """The lists.Boxes of images. Raises UserError where a photo has another size than image_sizes.txt says."""
        boxes = lists.read_boxes(self._places(split), image_ids)
        paths = [self.image_folders[split] / image_id.decode() for image_id in image_ids]
        sizes = np.array(list(in_threads(self.size_of_photo, paths, 'image sizes', delay=3)))
        wrong = np.flatnonzero((sizes != boxes.sizes).any(1))
        if len(wrong):
            (width, height), listed = sizes[wrong[0]], boxes.sizes[wrong[0]]
            path = self.list_folders[split] / 'image_sizes.txt'
            rows = lists.read_rows(path, 'path,width,height')
            line = next(number for number, image_id, *_ in rows if image_id == image_ids[wrong[0]])
            problem = (f'{paths[wrong[0]]} is {width} x {height} pixels, and {listed[0]} x {listed[1]} by {path}, line '
                       f'{line} ({len(wrong)} such images)')
            if not (self.may_be_resized and are_resized(sizes, boxes.sizes)):
                raise UserError(f'{problem}: boxes and sizes are those of the photo{self.turned}')
            warn(f'{problem}: boxes are taken to be those of the photos before they were resized')
        return boxes

    def mask_paths(self, split, image_ids):
        """[(paths of an image's masks, path of its ignore mask or None)]."""
        return [([self.mask_folder / name for name in masks], self.mask_folder / ignore if ignore else None)
                for masks, ignore in lists.read_mask_paths(self._places(split), image_ids)]

    def _places(self, split):
        """The folder of a split's lists, if they say where the objects are."""
        path, command = self.list_folders[split] / 'localization.txt', self.prepare[split]
        if not path.is_file():
            raise UserError(f'{path} is not there: it says where the objects are, one line "path,x0,y0,x1,y1" for each '
                            'box, with image_sizes.txt beside it ("path,width,height"), or "path,mask.png,ignore.png" '
                            'or "path,mask.png"'
                            + (f'. To prepare it: {command}' if command.startswith('python') else ''))
        return path.parent

    def annotations(self):
        """The CueAnnotations: class pairs, parts and segmentations. Raises UserError where there are none."""
        if self.cub_root is None:
            raise UserError(f"parts, attributes and segmentations in CUB's layout are needed; {self.name} has none")
        return CueAnnotations(self.cub_root)

    def superclasses(self, class_names, path, num_classes):
        """(C,C) bool: row c holds the classes of c's superclass. Raises UserError.

        class_names, num_classes: the classifier's. path: a YAML file of `label: [labels]`; None: the data set's
        built-in superclasses.
        """
        if path is not None:
            return read_superclass_file(path, num_classes)
        members = self.groups(self, class_names) if self.groups else ()
        if len(members) != num_classes:
            raise UserError(f'{self.name} has no built-in superclasses for a classifier of {num_classes} classes; list '
                            'them in --superclass_file (YAML, "label: [labels]")')
        return members


class OwnFolder(DataSet):
    """The user's own folder: <split>/<class>/*.jpg, and perhaps metadata/<split>/ in the WSOL evaluation's format.

    Photos are read upright, as viewers show them; boxes, sizes and masks belong to the upright photo.
    """
    open_photo, size_of_photo = staticmethod(open_upright), staticmethod(upright_size)
    turned, may_be_resized = ' turned as its EXIF says', False

    def mask_paths(self, split, image_ids):
        """As in DataSet. Raises UserError where a photo is upright and its mask lies on its side, or the reverse."""
        paths = super().mask_paths(split, image_ids)

        def turned(pair):
            photo, (masks, _) = pair
            with suppress(UserError):  # what does not open is refused when it is needed
                width, height = upright_size(photo)
                return [f'{mask} is {across} x {down} pixels, and {photo} {width} x {height}'
                        for mask, (across, down) in zip(masks, map(stored_size, masks), strict=True)
                        if (across - down) * (width - height) < 0]
            return []
        pairs = list(zip((self.image_folders[split] / name.decode() for name in image_ids), paths, strict=True))
        wrong = sum(in_threads(turned, pairs, 'mask sizes', delay=3), [])
        if wrong:
            raise UserError(f'{wrong[0]} ({len(wrong)} such masks): a mask belongs to the photo{self.turned}')
        return paths

    def list_images(self, split, proxy=False):
        root, names, normal = self.image_folders[split], self.class_names, partial(unicodedata.normalize, 'NFC')
        if proxy:
            raise UserError(f'--proxy_training_set trains on the part that image_ids_proxy.txt lists; {self.name} is a '
                            'folder without lists')
        if not root.is_dir():
            raise UserError(f'{root} is not there: {self.prepare[split]}')
        ids = images_below(root)
        loose = [image_id for image_id in ids if '/' not in image_id]
        if loose:
            raise UserError(f'{root / loose[0]} lies in no class folder ({len(loose)} such images)')
        unknown = sorted({image_id.split('/')[0] for image_id in ids} - set(names))
        if unknown:
            raise UserError(f'{root / unknown[0]} is no class of the training set (its classes: '
                            f'{", ".join(names[:8])}{", ..." if len(names) > 8 else ""})'
                            + '; it has the letters of a class in another form of Unicode, so rename one of the two'
                            * (normal(unknown[0]) in map(normal, names)))
        if not ids:
            raise UserError(f'{root} holds no images in its class folders')
        labels = np.array([names.index(image_id.split('/')[0]) for image_id in ids])
        empty = [name for label, name in enumerate(names) if label not in labels]
        if empty:
            warn(f'{root} has no images of {len(empty)} classes: {", ".join(empty[:8])}')
        return np.array([image_id.encode() for image_id in ids]), labels


def _same(value):
    return dict.fromkeys(SPLITS, value)


DATASETS = {
    'CUB': DataSet(200, _same('CUB/images') | {'val': 'CUBV2'}, _same(f'{PREPARE} cub') | {'val': f'{PREPARE} cubv2'},
                   'CUB', (31, 64, 96),
                   groups=lambda data, _: torch.ones(data.num_classes, data.num_classes, dtype=torch.bool)),
    'ILSVRC': DataSet(1000, _same('ILSVRC') | {'val': 'ImageNetV2'},
                      _same(f'{PREPARE} imagenet') | {'val': f'{PREPARE} imagenetv2'},
                      groups=lambda data, _: superclasses.wordnet(data.list_folders['train'].parent / 'helper')),
    'OpenImages': DataSet(100, _same('OpenImages'), _same(f'{PREPARE} openimages'), has_masks=True),
    'ToyBirds': DataSet(18, _same('ToyBirds/images'), _same(f'{PREPARE} toybirds'), 'ToyBirds', (12, 10, 10),
                        groups=lambda _, class_names: superclasses.by_prefix(class_names)),
}
ALIASES = {'ImageNet': 'ILSVRC'}


def canonical_name(text):
    """A data set's name in DATASETS, or a folder (written with a slash: ./birds) as it is. Raises UserError."""
    if '/' in text or '\\' in text:
        return text
    try:
        return choice(tuple(DATASETS), ALIASES)(text)
    except UserError as error:
        raise UserError(f'{error} (a folder of your own is written with a slash: ./{text})') from None


def find_dataset(name, data_root='dataset/', metadata_root='metadata/', mask_root=None, class_names=None):
    """The DataSet of a name of DATASETS, or of the user's own folder. Raises UserError.

    mask_root: the folder above OpenImages' masks (default data_root). class_names: a checkpoint's, for a folder whose
    training images are gone (default: the names of the folders in <name>/train, sorted).
    """
    name = canonical_name(name)
    if name not in DATASETS:
        return _own_folder(Path(name), class_names)
    row, data, metadata = DATASETS[name], Path(data_root), Path(metadata_root) / name
    return replace(
        row, name=name, cub_root=row.cub_root and data / row.cub_root,
        image_folders={split: data / folder for split, folder in row.image_folders.items()},
        list_folders={split: metadata / split for split in SPLITS}, mask_folder=Path(mask_root or data_root) / name)


def _own_folder(folder, class_names):
    train = folder / 'train'
    if class_names is None:
        if not train.is_dir():
            raise UserError(f'--dataset={folder}: no such folder, or no {train} in it. It should hold train/<class>/, '
                            f'val/<class>/ and test/<class>/ with images, or be one of {", ".join(DATASETS)}')
        with os.scandir(train) as entries:  # fails if it cannot read the folder; Path.is_dir does not
            class_names = sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))
        if len(class_names) < 2:
            raise UserError(f'{train} has {len(class_names)} class folders; a classifier needs two at least')
    list_folders = {split: folder / 'metadata' / split for split in SPLITS}
    places = [lists_of_split / 'localization.txt' for lists_of_split in list_folders.values()]
    return OwnFolder(
        len(class_names), {split: folder / split for split in SPLITS},
        prepare={split: f'put images in {folder}/{split}/<class>/' for split in SPLITS},
        has_masks=any(any(lists.read_rows(path, lists.MASKS, [])) for path in places if path.is_file()),
        class_names=tuple(class_names), name=str(folder), list_folders=list_folders, mask_folder=folder)


def are_resized(sizes, listed):
    """Whether photos are smaller copies of those that a list describes, all squashed to one size or each in proportion:
    then boxes in the listed pixels are right. Both: (N,2)."""
    skew = np.abs(sizes[:, 0] * listed[:, 1] - sizes[:, 1] * listed[:, 0])  # 0 except for the rounding of the sides
    in_proportion = (skew <= listed.sum(1)).all() and (sizes <= listed).all()
    most_differ = (sizes != listed).any(1).mean() > 0.5
    return bool(most_differ and (in_proportion or (sizes == sizes[0]).all()))


def count_folders(images):
    """{(folder, label): how many images lie in the folder and have the label}. images: an ImageDataset."""
    folders = (b'/' + image_id for image_id in images.image_ids.tolist())
    return Counter(zip((path.split(b'/')[-2].decode() for path in folders), images.labels.tolist(), strict=True))


def names_of_folders(images, num_classes):
    """Each class's name: the commonest folder of its images ('' for a class without images). () where classes share a
    folder. images: an ImageDataset."""
    names = [''] * num_classes
    for (folder, label), _ in reversed(count_folders(images).most_common()):
        names[label] = folder
    given = [name for name in names if name]
    return tuple(names) if len(set(given)) == len(given) else ()
