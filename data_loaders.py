"""Data sets: metadata + image files -> (images, labels, indices), one loader per split.

Source: the WSOL evaluation's metadata format (Choe et al., CVPR 2020):
metadata/<DATASET>/<split>/{image_ids,class_labels,image_sizes,localization}.txt, splits train,
val (= its train-fullsup) and test; transforms as published.
"""
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset, Sampler

from util import UserError
from wsol._torchvision import torchvision  # noqa: F401  must precede its transforms

from torchvision.transforms import v2  # isort: skip

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPLITS = ('train', 'val', 'test')


@dataclass(frozen=True)
class DatasetSpec:
    """Where a data set lies below data_root and metadata_root, and what it offers."""
    name: str
    num_classes: int
    image_folders: dict[str, str]  # split -> folder that its image ids are relative to
    prepare: str  # the command that prepares it
    cub_folder: str | None = None  # parts, attributes and segmentations in CUB's layout


def _everywhere(folder):
    return dict.fromkeys(SPLITS, folder)


DATASETS = {spec.name: spec for spec in (
    DatasetSpec('CUB', 200, {'train': 'CUB/images', 'val': 'CUBV2', 'test': 'CUB/images'},
                'see dataset/README.md', 'CUB'),
    DatasetSpec('ILSVRC', 1000, {'train': 'ILSVRC', 'val': 'ImageNetV2', 'test': 'ILSVRC'}, 'see dataset/README.md'),
    DatasetSpec('OpenImages', 100, _everywhere('OpenImages'), 'see dataset/README.md'),
    DatasetSpec('ToyBirds', 18, _everywhere('ToyBirds/images'), 'painted at first use', 'ToyBirds'),
)}
ALIASES = {'ImageNet': 'ILSVRC'}


# --- metadata -----------------------------------------------------------------------------------------


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
                    rows = [line.strip().rsplit(b',', num_integers) for line in chunk]
                    names.append(np.array([row[0] for row in rows]))
                    numbers = [[int(value) for value in row[1:]] for row in rows]
                    integers.append(np.array(numbers, np.int64).reshape(len(rows), num_integers))
                    if b'' in names[-1]:
                        raise ValueError('empty')
                except ValueError:
                    _name_bad_line(path, chunk, line_number, num_integers)
                line_number += len(chunk)
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from error
    if not names:
        raise UserError(f'{path} is empty')
    return np.concatenate(names), np.concatenate(integers)


def _name_bad_line(path, chunk, before, num_integers):
    wanted = ','.join(['path'] + ['integer'] * num_integers)
    for offset, line in enumerate(chunk, 1):
        row = line.strip().rsplit(b',', num_integers)
        try:
            good = row[0] and len([int(value) for value in row[1:]]) == num_integers
        except ValueError:
            good = False
        if not good:
            raise UserError(f'{path}, line {before + offset}: expected "{wanted}", '
                            f'found "{line.strip().decode(errors="replace")}"')


def read_labels(folder, num_classes, proxy=False):
    """Image ids (N,) bytes and labels (N,) int64 of a split's metadata folder.

    proxy: the ids of image_ids_proxy.txt instead of image_ids.txt.
    """
    ids_path, labels_path = folder / f'image_ids{"_proxy" if proxy else ""}.txt', folder / 'class_labels.txt'
    ids, _ = read_columns(ids_path, 0)
    labelled, labels = read_columns(labels_path, 1)
    labels = labels[:, 0]
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UserError(f'{labels_path}, line {wrong[0] + 1}: label {labels[wrong[0]]} is out of range, '
                        f'classes are 0 to {num_classes - 1}')
    if not np.array_equal(ids, labelled):  # another order, or a part of it
        order = labelled.argsort(kind='stable')
        place = np.searchsorted(labelled, ids, sorter=order).clip(max=len(labelled) - 1)
        unlabelled = np.flatnonzero(labelled[order[place]] != ids)
        if len(unlabelled):
            raise UserError(f'{ids_path}, line {unlabelled[0] + 1}: {ids[unlabelled[0]].decode()} has no line in '
                            f'{labels_path} ({len(unlabelled)} such images)')
        labels = labels[order[place]]
    return ids, labels


# --- images ---------------------------------------------------------------------------------------------


def train_transform(resize_size, crop_size):
    """Published: resize to a square, random crop, horizontal flip, ImageNet's mean and deviation."""
    return v2.Compose([v2.Resize((resize_size, resize_size)), v2.RandomCrop(crop_size), v2.RandomHorizontalFlip(),
                       *_to_tensor()])


def eval_transform(crop_size):
    """Published: resize to a square of the crop's size."""
    return v2.Compose([v2.Resize((crop_size, crop_size)), *_to_tensor()])


def _to_tensor():
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]


def to_picture(image):
    """A normalised image (3,S,S) -> (S,S,3) in 0..1, to be shown."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (image.cpu() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()


def open_upright(path):
    """Any image file as RGB: turned as its EXIF says, transparency on white, 16 bits scaled to 8."""
    return open_image(path, lambda image: _to_rgb(ImageOps.exif_transpose(image)))


def _to_rgb(image):
    if image.mode.startswith(('I', 'F')):
        values = np.asarray(image, np.float64)
        top = 65535 if image.mode.startswith('I') and values.max() > 255 else 255
        image = Image.fromarray((values.clip(0, top) * (255 / top)).astype(np.uint8))
    if image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image.convert('RGB')


def open_image(path, convert=lambda image: image.convert('RGB')):
    """An image file as RGB, decoded by PIL; as published, EXIF is not looked at. Raises UserError naming the file."""
    try:
        with Image.open(path) as image:
            return convert(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = 'no such file' if isinstance(error, FileNotFoundError) else f'{type(error).__name__}: {error}'
        raise UserError(f'the image {path} does not open ({reason}); replace it, or leave it out') from error


class ImageDataset(Dataset):
    """One split. Item i -> (image (3,S,S) float32, label, i); item (i, seed) transforms with that seed.

    Attributes: image_ids (N,) bytes, labels (N,) int64, folder (where the ids start).
    """

    def __init__(self, image_ids, labels, folder, transform):
        self.image_ids, self.labels, self.folder, self.transform = image_ids, labels, Path(folder), transform

    def __len__(self):
        return len(self.image_ids)

    def image_id(self, index):
        return self.image_ids[index].decode()

    def __getitem__(self, key):
        index, seed = key if isinstance(key, tuple) else (key, None)
        image = open_image(self.folder / self.image_id(index))
        if seed is None:
            return self.transform(image), int(self.labels[index]), index
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.transform(image), int(self.labels[index]), index


class SeededSampler(Sampler):
    """Shuffled (index, seed) pairs that depend on the seed and the epoch alone.

    So a run is the same with any number of workers, and a resumed run goes on as if uninterrupted.
    """

    def __init__(self, length, seed):
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self):
        return self.length

    def __iter__(self):
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(self.length, generator=generator).tolist()
        seeds = torch.randint(2**62, (self.length,), generator=generator).tolist()
        return zip(order, seeds, strict=True)


def dataset_spec(args):
    return DATASETS[args.dataset]


def cub_root(args):
    """The folder with a data set's parts, attributes and segmentations, in CUB's layout."""
    return Path(args.data_root) / dataset_spec(args).cub_folder


def class_names(dataset, num_classes):
    """The name of each class: the folder of its images ('' where the split has none)."""
    names = [''] * num_classes
    for label, first in zip(*np.unique(dataset.labels, return_index=True), strict=True):
        names[label] = Path(dataset.image_id(first)).parent.name
    return names


def open_split(args, split):
    """The ImageDataset of a split; UserError names what is missing and the command that prepares it."""
    spec = dataset_spec(args)
    if spec.name == 'ToyBirds':
        from dataset import toybirds  # painting needs OpenCV; nothing else here does
        toybirds.ensure(args.data_root, args.metadata_root)
    metadata = Path(args.metadata_root) / spec.name / split
    images = Path(args.data_root) / spec.image_folders[split]
    missing = [str(path) for path in (metadata / 'image_ids.txt', metadata / 'class_labels.txt', images)
               if not path.exists()]
    if missing:
        raise UserError(f'{spec.name} {split} is not there: missing {", ".join(missing)}. '
                        f'To prepare it: {spec.prepare}')
    proxy = split == 'train' and args.proxy_training_set
    image_ids, labels = read_labels(metadata, spec.num_classes, proxy)
    training = split == 'train'
    transform = train_transform(args.resize_size, args.crop_size) if training else eval_transform(args.crop_size)
    return ImageDataset(image_ids, labels, images, transform)


def make_loader(dataset, args, device, sampler=None):
    """Batches (images (B,3,S,S), labels (B,), indices (B,)), in order unless a sampler says otherwise."""
    workers = min(args.workers, torch.get_num_threads(), len(dataset))  # more than cores only get in each other's way
    return DataLoader(dataset, args.batch_size, sampler=sampler, num_workers=workers,
                      pin_memory=device.type == 'cuda', persistent_workers=workers > 0 and sampler is not None)
