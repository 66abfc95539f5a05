"""Image files: found, opened by PIL, checked."""
import contextlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from runtime import processes
from runtime.screen import progress, warn
from util import usable_cores
from wsol.errors import UserError

SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.gif', '.tif', '.tiff', '.webp', '.ppm', '.pgm'}
SCALABLE = ('L', 'RGB', 'RGBA', 'CMYK', 'YCbCr')  # the modes in which an image can be made smaller
ORIENTATION = 0x0112  # EXIF's tag
REMEDY = 'replace it, or leave it out by --skip_broken'  # for an image that does not open
# phones take photos this large; a larger image is refused by the size in its header, before it is decoded
Image.MAX_IMAGE_PIXELS = 200_000_000
warnings.filterwarnings('error', category=Image.DecompressionBombWarning)


def is_hidden(name):
    """Whether file managers or notebooks left it: .DS_Store, ._photo.jpg, .ipynb_checkpoints, __MACOSX."""
    return name.startswith('.') or name == '__MACOSX'


def images_below(root):
    """The sorted ids of the image files below a folder, linked folders included: their paths relative to it."""
    ids = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not is_hidden(name) and not _leads_back(Path(folder, name))]
        ids += [str(Path(folder, name).relative_to(root)) for name in (*folders, *files)
                if Path(name).suffix.lower() in SUFFIXES and not is_hidden(name)]
    ids.sort()
    odd = next((image_id for image_id in ids if image_id != image_id.encode(errors='replace').decode()), None)
    if odd is not None:
        raise UserError(f'{str(root / odd)!r}: the name of this file is not UTF-8; rename it')
    return ids


def _leads_back(path):
    """Whether a path is a link to a folder that holds the link, so that following it would have no end."""
    return path.is_symlink() and any(above.resolve().is_relative_to(path.resolve()) for above in path.parents)


def open_upright(path, longest=None):
    """Any image file as RGB: turned as its EXIF says, transparency on white, 16 bits scaled to 8.

    longest: the longer side of a larger image becomes this. JPEG's decoder already does most of it, which saves memory.
    """
    def convert(image):
        if longest is not None and max(image.size) > longest:
            image = image if image.mode in SCALABLE and 'transparency' not in image.info else _to_rgb(image)
            image.draft(None, [max(1, side * longest // max(image.size)) for side in image.size])
            image.thumbnail((longest, longest), reducing_gap=None)
        _read_exif(image)
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)
    return open_image(path, convert)


def upright_size(path):
    """(width, height) of open_upright(path), from the file's header."""
    def turned(image):
        _read_exif(image)
        turn = image.getexif().get(ORIENTATION, 1)
        return image.size[::-1] if turn in (5, 6, 7, 8) else image.size
    return open_image(path, turned)


def _read_exif(image):
    """Read the EXIF block. PIL fails once on a damaged block, keeps what it could read, and does not fail again."""
    with contextlib.suppress(Exception):
        image.getexif()


def _to_rgb(image):
    if image.mode.startswith(('I', 'F')):
        image = _to_8_bits(image)
    if image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    image.load()
    return image if image.mode == 'RGB' else image.convert('RGB')  # convert copies what is RGB already


def _to_8_bits(image):
    """A grey image of integers or real numbers as bytes, 256 rows at a time to save memory."""
    values = np.asarray(image)
    top = 65535 if image.mode.startswith('I') and values.max() > 255 else 255
    top = 1 if image.mode == 'F' and values.max() <= 1 else top
    scaled = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), 256):
        scaled[row:row + 256] = values[row:row + 256].astype(np.float64).clip(0, top) * (255 / top)
    return Image.fromarray(scaled)


def open_image(path, convert=lambda image: image.convert('RGB'), remedy=REMEDY):
    """An image file as RGB; as published, its EXIF is ignored. convert: another function of the open PIL image.

    remedy: what the user can do if it does not open. Raises UserError naming the file.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise OSError('no regular file')  # a pipe would be waited for
        with Image.open(path) as image:
            return convert(image)
    except MemoryError:  # no fault of the file's
        raise
    except Exception as error:  # damaged files make PIL raise many kinds
        reason = 'no such file' if isinstance(error, FileNotFoundError) else f'{type(error).__name__}: {error}'
        raise UserError(f'the image {path} does not open ({reason}); {remedy}') from error


def in_threads(function, items, description, unit='image', **options):
    """Yield function(item) for each item of a sequence, in order, computed by threads, with a bar.

    options: of progress.
    """
    with ThreadPoolExecutor(usable_cores()) as pool:
        # the pool queues everything that it is given: chunks keep the memory small
        chunks = (items[start:start + 256] for start in range(0, len(items), 256))
        results = chain.from_iterable(pool.map(function, chunk) for chunk in chunks)
        yield from progress(results, description, unit, total=len(items), **options)


def broken_images(paths, remedy=REMEDY):
    """Decode every image of a list. Returns {index: problem} of those that do not open. remedy: as in open_image."""
    def problem(path):
        try:
            open_image(path, remedy=remedy)
        except UserError as error:
            return str(error)
        return None
    return {index: text for index, text in enumerate(in_threads(problem, paths, 'opening images')) if text}


def opening_images(paths, name):
    """The indices of the image files that open; warns of the others. Raises UserError if none opens.

    name: what the warning calls the images. Several processes share the work.
    """
    indices = range(len(paths))[processes.rank()::processes.size()]  # of this process
    problems = broken_images([paths[index] for index in indices], 'replace it')
    shares = processes.gather({indices[place]: problem for place, problem in problems.items()})
    broken = dict(sorted(chain.from_iterable(share.items() for share in shares)))
    if broken and len(broken) == len(paths):
        raise UserError(f'none of the {len(paths)} images of {name} opens; the first: {broken[0]}')
    if broken:
        warn(f'{len(broken)} of {len(paths)} images of {name} do not open and are left out; the first: '
             f'{next(iter(broken.values()))}')
    return np.setdiff1d(np.arange(len(paths)), list(broken))
