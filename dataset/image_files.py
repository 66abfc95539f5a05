"""The one reader of image files: PIL opens them, and every script sees the same pixels of a file."""
import contextlib
import errno
import math
import re
import warnings
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from runtime.screen import warn_once
from wsol.errors import UserError

NO_FORMATS = {'BUFR', 'EPS', 'GRIB', 'HDF5', 'MPEG', 'WMF'}  # PIL cannot decode them, or has another program do it
BY_SUFFIX = {'TGA', 'XBM'}  # such files have no mark: PIL takes other binary files or C headers for them
CAMERAS = {'.dng', '.nef', '.cr2', '.cr3', '.arw', '.orf', '.rw2', '.raf'}  # PIL would open the small preview inside
ADVICE = dict.fromkeys(CAMERAS, 'develop them into TIFF or JPEG') | dict.fromkeys(
    ('.heic', '.heif', '.hif'), 'pip install pillow-heif opens these') | {
        '.jxl': 'pip install pillow-jxl-plugin does', '.npy': 'arrays go into networks in Python, by wsol.from_module'}
OF_THE_FILE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)
LARGEST = 8192  # pixels along a side: a larger photo is reduced to half of this when it is opened, to save memory. A
                # photo of 48 megapixels is not reduced, so that networks see the same pixels as in other programs
ORIENTATION = 0x0112  # EXIF's tag
REMEDY = 'replace it, or leave it out by --skip_broken'  # for an image that does not open
# phones take photos this large; a larger image is refused by the size in its header, before it is decoded
Image.MAX_IMAGE_PIXELS = 200_000_000
warnings.filterwarnings('error', category=Image.DecompressionBombWarning)


def is_image(path):
    """Whether PIL recognises a file. Raises UserError if the system cannot read it."""
    try:
        open_image(path, lambda image: None, formats=_formats())
    except UserError as error:
        if is_of_the_system(error.__cause__):
            raise
        return not isinstance(error.__cause__, OSError)  # too large or damaged: an error says so when it is opened
    return True


@cache
def _formats():
    """The formats that PIL recognises, also by its optional packages."""
    with contextlib.suppress(ImportError):
        __import__('pillow_heif').register_heif_opener()
    with contextlib.suppress(ImportError):
        __import__('pillow_jxl')  # registers itself
    Image.init()
    return [name for name in Image.ID if name not in NO_FORMATS | BY_SUFFIX]


def open_upright(path, longest=None, remedy=REMEDY):
    """Any image file as RGB: turned as its EXIF says, transparency on white, more bits scaled to 8.

    longest: the longer side of a larger image becomes this; None: LARGEST. JPEG's decoder does most of it, which saves
    memory. remedy: as in open_image.
    """
    def convert(image):
        side = longest or (LARGEST // 2 if max(image.size) > LARGEST else LARGEST)
        if getattr(image, 'is_animated', False) and image.format in ('GIF', 'PNG', 'TIFF', 'WEBP', 'AVIF'):
            warn_once('frames', f'{path} holds several images: the first is taken, here and of each such file')
        image = _with_all_16_bits(image, path)
        image.draft(None, [max(1, length * side // max(image.size)) for length in image.size])
        ImageOps.exif_transpose(image, in_place=True)
        image = _to_rgb(image, path)
        image.thumbnail((side, side), reducing_gap=None)
        return image
    return open_image(path, convert, remedy)


def stored_size(path):
    """(width, height) of an image file as it is stored, from its header."""
    return open_image(path, lambda image: image.size)


def upright_size(path):
    """(width, height) of an image file when it is upright, from its header."""
    def turned(image):
        turn, tags = _turn(image), getattr(image, 'tag_v2', {})  # PIL has turned the size of a TIFF already
        size = tags.get(256, image.width), tags.get(257, image.height)
        return size[::-1] if turn in (5, 6, 7, 8) else size
    return open_image(path, turned)


def _turn(image):
    """EXIF's orientation. PIL fails once on a damaged block, keeps what it could read, and does not fail again."""
    with contextlib.suppress(Exception):
        image.getexif()
    return image.getexif().get(ORIENTATION, 1)


def _to_rgb(image, path):
    if image.mode.startswith(('I', 'F')):
        levels, clear = _to_8_bits(np.asarray(image), image, path), image.info.get('transparency')
        if isinstance(clear, int):  # the value of the transparent pixels
            levels[np.asarray(image) == clear] = 255
        image = Image.fromarray(levels)
    if image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
        image = image.convert('RGBA')
        if not image.getextrema()[3][1]:
            warn_once('transparent', f'{path} is transparent everywhere, so it is white; so is each such image')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    image.load()
    return image if image.mode == 'RGB' else image.convert('RGB')  # convert copies what is RGB already


def _with_all_16_bits(image, path):
    """Read a colour image of 16 bits again if it uses at most 14 of them, since PIL keeps only the upper 8 bits."""
    form = str(image.tile)  # PIL forgets this when it loads the pixels; in some formats it turns them then
    turn = _turn(image)
    if image.mode not in ('RGB', 'RGBA') or ';16' not in form or max(high for _, high in image.getextrema()[:3]) > 63:
        return image
    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)  # (H,W,3) BGR, or (H,W,4)
    if values is None or values.dtype != np.uint16:
        return image
    alpha = values[..., 3:len(image.getbands())] >> 8
    image = Image.fromarray(np.dstack([_to_8_bits(values[..., 2::-1], image, path), alpha]).astype(np.uint8))
    image.getexif()[ORIENTATION] = turn
    return image


def _to_8_bits(values, image, path):
    """Integers or real numbers (H,W,...) as bytes, 256 rows at a time to save memory.

    White is 1 for real numbers up to 1; else what the file states, if no value is larger; else the next power of two,
    minus one, with an even number of bits for integers, as cameras have. So it depends on this file alone, and every
    script sees the same pixels.
    """
    values = np.nan_to_num(values, posinf=0, neginf=0)
    black, high, is_real = min(values.min(), 0), float(values.max()), values.dtype.kind == 'f'
    bits, stated = math.ceil(high).bit_length(), _stated_white(image, path)
    white = high if black < 0 else 1 if is_real and high <= 1 else stated if stated >= high else (
        2 ** (bits if is_real else max(8, bits + bits % 2)) - 1)
    levels = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), 256):
        part = values[row:row + 256].astype(np.float64).clip(black, white) - black
        levels[row:row + 256] = part * (255 / (white - black or 1))
    if white not in (1, 65535):
        warn_once('depth', f'{path}: its values of more than 8 bits are scaled from {black:.8g} (black) to {white:.8g} '
                           '(white), by what it states or what it holds; the same is done to each such image')
    return 255 - levels if getattr(image, 'tag_v2', {}).get(262) == 0 else levels  # in a TIFF whose white is 0


def _stated_white(image, path):
    """The largest value that a file states (PNG's sBIT, TIFF's SMaxSampleValue, MaxSampleValue, 12 bits), or 0."""
    if image.format == 'PNG':
        with open(path, 'rb') as file:
            bits = re.search(rb'\0\0\0[\1-\4]sBIT(.)', file.read(1 << 16).split(b'IDAT')[0], re.DOTALL)
        return 2 ** bits[1][0] - 1 if bits else 0
    tags = getattr(image, 'tag_v2', {})
    return float(np.max(tags.get(341, tags.get(281, 4095 * (tags.get(258) == (12,))))))


def open_image(path, convert=lambda image: image.convert('RGB'), remedy=REMEDY, formats=None):
    """An image file as RGB; as published, its EXIF is ignored. convert: another function of the open PIL image.

    remedy: what the user can do if it does not open. formats: PIL's names of those that count (default: all). Raises
    UserError naming the file.
    """
    suffix = Path(path).suffix.lower()
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise OSError('no regular file')  # a pipe would be waited for
        if suffix in CAMERAS:
            raise OSError("a camera's raw file")
        with open(path, 'rb') as file, Image.open(file, formats=formats or [*_formats(), *BY_SUFFIX]) as image:
            return convert(image)  # from the path PIL would map the file, and then garbles a TIFF that it has to turn
    except MemoryError:  # no fault of the file's
        raise
    except Exception as error:  # damaged files make PIL raise many kinds
        refuse_unreadable(path, error)
        reason = ('no such file' if isinstance(error, FileNotFoundError) else 'no image that PIL knows' if isinstance(
            error, UnidentifiedImageError) else f'{type(error).__name__}: {error}')
        raise UserError(f'the image {path} does not open ({reason}); {ADVICE.get(suffix, remedy)}') from error


def refuse_unreadable(path, error):
    """Raise UserError if an error says that the system has failed to read a file: the file is not broken then."""
    if is_of_the_system(error):
        raise UserError(f'{path} cannot be read ({error.strerror}): the disk, the network or its permissions are at '
                        'fault, not the file') from error


def is_of_the_system(error):
    """Whether an error is the system's, such as EIO, ESTALE or EACCES, and not a damaged or missing file's."""
    return isinstance(error, OSError) and error.errno not in OF_THE_FILE
