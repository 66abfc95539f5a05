"""Data sets: metadata + image files -> (images, labels, indices), one loader per split.

Source: the WSOL evaluation's splits (Choe et al., CVPR 2020), train, val (its train-fullsup) and test,
listed in dataset.metadata's format, or the user's own folders; transforms as published.
"""
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset, Sampler

from dataset.metadata import read_labels
from util import UserError, progress, warn
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
    masks: bool = False  # localization.txt names masks, not boxes


def _everywhere(folder):
    return dict.fromkeys(SPLITS, folder)


DATASETS = {spec.name: spec for spec in (
    DatasetSpec('CUB', 200, {'train': 'CUB/images', 'val': 'CUBV2', 'test': 'CUB/images'},
                'python dataset/prepare.py cub, then cubv2', 'CUB'),
    DatasetSpec('ILSVRC', 1000, {'train': 'ILSVRC', 'val': 'ImageNetV2', 'test': 'ILSVRC'},
                'python dataset/prepare.py imagenet, then imagenetv2'),
    DatasetSpec('OpenImages', 100, _everywhere('OpenImages'), 'python dataset/prepare.py openimages', masks=True),
    DatasetSpec('ToyBirds', 18, _everywhere('ToyBirds/images'), 'painted at first use', 'ToyBirds'),
)}
ALIASES = {'ImageNet': 'ILSVRC'}
SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.gif', '.tif', '.tiff', '.webp', '.ppm', '.pgm'}


def dataset_spec(args):
    """The DatasetSpec of --dataset: one of DATASETS, or the user's own folder of train/, val/ and test/."""
    return DATASETS.get(args.dataset) or _own_spec(Path(args.dataset), args.get('class_names'))


def _own_spec(folder, class_names):
    """A folder <split>/<class>/*.jpg. class_names: of the checkpoint; else the folders of train/, in order."""
    if class_names is None:
        train = folder / 'train'
        if not train.is_dir():
            raise UserError(f'--dataset={folder}: no such folder, or no {train} in it. It should hold train/<class>/, '
                            f'val/<class>/ and test/<class>/ with images, or be one of {", ".join(DATASETS)}')
        class_names = _class_folders(train)
        if len(class_names) < 2:
            raise UserError(f'{train} has {len(class_names)} class folders; a classifier needs two at least')
    return DatasetSpec(str(folder), len(class_names), {split: str(folder / split) for split in SPLITS},
                       f'put images in {folder}/<split>/<class>/', masks=_names_masks(folder / 'metadata'))


def _hidden(name):
    """What file managers and notebooks leave: .DS_Store, ._photo.jpg, .ipynb_checkpoints, __MACOSX."""
    return name.startswith('.') or name == '__MACOSX'


def _class_folders(train):
    return sorted(path.name for path in train.iterdir() if path.is_dir() and not _hidden(path.name))


def _names_masks(metadata):
    """Whether the lists of the user's own folder locate by path,mask.png,ignore.png and not by boxes."""
    for split in ('test', 'val'):
        path = metadata / split / 'localization.txt'
        lines = path.read_text(errors='replace').split('\n') if path.is_file() else []
        first = next((line.split(',') for line in lines if line.strip()), ['', ''])
        if first != ['', '']:
            return first[-2:][0].endswith('.png')
    return False


def mask_folder(args):
    """Where the masks of localization.txt are."""
    return Path(args.mask_root) / args.dataset if args.dataset in DATASETS else Path(args.dataset)


def metadata_folder(args, split):
    """Where a split's lists and boxes are; of the user's own folder, what there is of them."""
    if args.dataset in DATASETS:
        return Path(args.metadata_root) / args.dataset / split
    return Path(args.dataset) / 'metadata' / split


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
        top = 1 if image.mode == 'F' and values.max() <= 1 else top
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


def cub_root(args):
    """The folder with a data set's parts, attributes and segmentations, in CUB's layout."""
    return Path(args.data_root) / dataset_spec(args).cub_folder


def class_names(dataset, args):
    """The name of each class: --dataset's own folders, or the folder of its images ('' where the split has none)."""
    if args.dataset not in DATASETS:
        return _own_names(args)
    names = [''] * dataset_spec(args).num_classes
    for label, first in zip(*np.unique(dataset.labels, return_index=True), strict=True):
        names[label] = Path(dataset.image_id(first)).parent.name
    return names


def _own_names(args):
    return args.get('class_names') or _class_folders(Path(args.dataset) / 'train')


def own_images(root):
    """The image files below <folder>/<split>, as ids."""
    found = (path.relative_to(root) for path in root.rglob('*') if path.suffix.lower() in SUFFIXES)
    return sorted(str(path) for path in found if not any(map(_hidden, path.parts)))


def _list_folder(args, split):
    """Image ids and labels of <folder>/<split>/<class>/."""
    names, root = _own_names(args), Path(args.dataset) / split
    if not root.is_dir():
        raise UserError(f'{root} is not there: {dataset_spec(args).prepare}')
    ids = own_images(root)
    loose = [image_id for image_id in ids if '/' not in image_id]
    if loose:
        raise UserError(f'{root / loose[0]} lies in no class folder ({len(loose)} such images)')
    strangers = sorted({image_id.split('/')[0] for image_id in ids} - set(names))
    if strangers:
        raise UserError(f'{root / strangers[0]} is no class of the training set (its classes: {", ".join(names[:8])}'
                        f'{", ..." if len(names) > 8 else ""})')
    if not ids:
        raise UserError(f'{root} holds no images (looked for {", ".join(sorted(SUFFIXES))} below its class folders)')
    labels = np.array([names.index(image_id.split('/')[0]) for image_id in ids])
    empty = [name for label, name in enumerate(names) if label not in labels]
    if empty:
        warn(f'{root} has no images of {len(empty)} classes: {", ".join(empty[:8])}')
    return np.array([image_id.encode() for image_id in ids]), labels


def open_split(args, split):
    """The ImageDataset of a split; UserError names what is missing and the command that prepares it."""
    spec, training = dataset_spec(args), split == 'train'
    images, metadata = Path(args.data_root) / spec.image_folders[split], metadata_folder(args, split)
    if spec.name == 'ToyBirds':
        from dataset import toybirds  # painting needs OpenCV; nothing else here does
        toybirds.ensure(args.data_root, args.metadata_root)
    if args.dataset not in DATASETS:
        images = Path(spec.image_folders[split])
        image_ids, labels = _list_folder(args, split)
    else:
        missing = [str(path) for path in (metadata / 'image_ids.txt', metadata / 'class_labels.txt', images)
                   if not path.exists()]
        if missing:
            raise UserError(f'{spec.name} {split} is not there: missing {", ".join(missing)}. '
                            f'To prepare it: {spec.prepare}')
        image_ids, labels = read_labels(metadata, spec.num_classes, training and args.proxy_training_set)
    transform = train_transform(args.resize_size, args.crop_size) if training else eval_transform(args.crop_size)
    dataset = ImageDataset(image_ids, labels, images, transform)
    return without_broken(dataset, split) if args.skip_broken else dataset


def broken_images(paths):
    """Decode every image, in parallel, with a bar. paths: a list. Returns {index: what is wrong} of those that do not
    open."""
    def reason(path):
        try:
            open_image(path)
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        # a pool queues all it is given at once: parts keep the memory of a million images small
        parts = (paths[start:start + 4096] for start in range(0, len(paths), 4096))
        reasons = chain.from_iterable(pool.map(reason, part) for part in parts)
        reasons = progress(reasons, 'opening images', 'image', total=len(paths))
        return {index: text for index, text in enumerate(reasons) if text}


def without_broken(dataset, split):
    """The data set without the images that do not open; says how many they are."""
    broken = broken_images([dataset.folder / dataset.image_id(index) for index in range(len(dataset))])
    if len(broken) == len(dataset):
        raise UserError(f'no image of {split} opens; the first: {broken[0]}')
    if broken:
        warn(f'{len(broken)} of {len(dataset)} images of {split} do not open and are left out; the first: '
             f'{next(iter(broken.values()))}')
    kept = np.setdiff1d(np.arange(len(dataset)), list(broken))
    return ImageDataset(dataset.image_ids[kept], dataset.labels[kept], dataset.folder, dataset.transform)


def make_loader(dataset, args, device, sampler=None):
    """Batches (images (B,3,S,S), labels (B,), indices (B,)), in order unless a sampler says otherwise."""
    workers = min(args.workers, torch.get_num_threads(), len(dataset))  # more than cores only get in each other's way
    return DataLoader(dataset, args.batch_size, sampler=sampler, num_workers=workers,
                      pin_memory=device.type == 'cuda', persistent_workers=workers > 0 and sampler is not None)
