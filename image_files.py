"""Image files: found, opened, checked, and made into what a network takes.

Source: the published transforms (Kim et al., ICCV 2021). All files are decoded by PIL.
"""
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import torch
from PIL import Image, ImageOps

from util import UserError, progress, usable_cores, warn
from wsol._torchvision import torchvision  # noqa: F401  must precede its transforms
from wsol.networks import IMAGENET

from torchvision.transforms import v2  # isort: skip

SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.gif', '.tif', '.tiff', '.webp', '.ppm', '.pgm'}


def is_hidden(name):
    """What file managers and notebooks leave: .DS_Store, ._photo.jpg, .ipynb_checkpoints, __MACOSX."""
    return name.startswith('.') or name == '__MACOSX'


def images_below(root):
    """The ids of the image files below a folder: their paths relative to it, in order."""
    found = (path.relative_to(root) for path in root.rglob('*') if path.suffix.lower() in SUFFIXES)
    return sorted(str(path) for path in found if not any(map(is_hidden, path.parts)))


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


def broken_images(paths):
    """Decode every image, in parallel, with a bar. paths: a list. Returns {index: what is wrong} of those that do not
    open."""
    def reason(path):
        try:
            open_image(path)
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(usable_cores()) as pool:
        # a pool queues all it is given at once: parts keep the memory of a million images small
        parts = (paths[start:start + 4096] for start in range(0, len(paths), 4096))
        reasons = chain.from_iterable(pool.map(reason, part) for part in parts)
        reasons = progress(reasons, 'opening images', 'image', total=len(paths))
        return {index: text for index, text in enumerate(reasons) if text}


def opening_images(paths, name):
    """The indices of the image files that open; says how many do not. Raises UserError where none does."""
    broken = broken_images(paths)
    if broken and len(broken) == len(paths):
        raise UserError(f'none of the {len(paths)} images of {name} opens; the first: {broken[0]}')
    if broken:
        warn(f'{len(broken)} of {len(paths)} images of {name} do not open and are left out; the first: '
             f'{next(iter(broken.values()))}')
    return np.setdiff1d(np.arange(len(paths)), list(broken))


# --- transforms ---------------------------------------------------------------------------------------


def train_transform(resize_size, crop_size, normalisation=IMAGENET):
    """Published: resize to a square, random crop, horizontal flip; the network's mean and deviation."""
    return v2.Compose([v2.Resize((resize_size, resize_size)), v2.RandomCrop(crop_size), v2.RandomHorizontalFlip(),
                       *_to_tensor(normalisation)])


def eval_transform(crop_size, normalisation=IMAGENET):
    """Published: resize to a square of the crop's size. normalisation: the network's (mean, deviation)."""
    return v2.Compose([v2.Resize((crop_size, crop_size)), *_to_tensor(normalisation)])


def _to_tensor(normalisation):
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*normalisation)]


def as_image(picture):
    """(H,W,3) uint8, RGB -> a PIL image, as the transforms take it."""
    return Image.fromarray(np.ascontiguousarray(picture))


def to_picture(image, normalisation=IMAGENET):
    """A normalised image (3,S,S) -> (S,S,3) in 0..1, to be shown."""
    mean, std = (torch.tensor(values)[:, None, None] for values in normalisation)
    return (image.cpu() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
