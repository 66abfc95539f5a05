"""The images of a data set's split, one by one: (image, label, index)."""
import hashlib
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.image_files import open_image, opening_images
from runtime import processes
from runtime.screen import progress, say
from runtime.whole_files import make_folder, write_atomically
from util import usable_cores
from wsol.errors import UserError


class Images(Dataset):
    """The base of what loaders batch. Item -> (image (3,S,S) float32, label, index, ...).

    transform: a Transform, of the images that `read` gives.
    """

    def read(self, key):
        """An item with its image in bytes, (3,S,S) uint8."""
        raise TypeError(f'{type(self).__name__} reads no images')

    def __getitem__(self, key):
        image, *more = self.read(key)
        return self.transform.normalise(image), *more

    def __getitems__(self, keys):
        """What a loader asks for, in the place of single items: bytes, which it normalises on the device."""
        return [self.read(key) for key in keys]


class ImageDataset(Images):
    """One split. Item i -> (image (3,S,S) float32, label, i); item (i, seed) crops with that seed.

    Attributes: image_ids (N,) bytes, labels (N,) int64, folder (where the ids start), class_names.
    """

    def __init__(self, image_ids, labels, folder, transform, class_names=()):
        self.image_ids, self.labels, self.folder = image_ids, labels, Path(folder)
        self.transform, self.class_names, self.cache = transform, class_names, None

    def __len__(self):
        return len(self.image_ids)

    def image_id(self, index):
        return self.image_ids[index].decode()

    def read(self, key):
        index, seed = key if isinstance(key, tuple) else (key, None)
        pixels, label = self.resized(index), int(self.labels[index])
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return self.transform.crop(pixels, generator), label, index

    def resized(self, index):
        """(3,R,R) uint8: an image before it is cropped, from the cache or the file."""
        if self.cache is None:
            return self.transform.resize(open_image(self.folder / self.image_id(index)))
        shape = (3, self.transform.resize_size, self.transform.resize_size)
        stored = np.memmap(self.cache, np.uint8, 'r', index * math.prod(shape), shape)
        return torch.from_numpy(np.array(stored))

    def cached(self, folder, name):
        """Itself, with all resized images in one file below folder, from where workers and processes map them into
        their memory. It is made where it is missing. name: of data set and split. Raises UserError.

        The file's name holds the fingerprint of the images, and their size: images of other names, labels or
        file sizes, or written at another time, have another file.
        """
        size = self.transform.resize_size
        path = Path(folder) / f'{name}_{size}.{self.fingerprint(with_times=True)[:16]}.pixels'
        total = len(self) * 3 * size**2
        if processes.is_first() and (not path.is_file() or path.stat().st_size != total):
            make_folder(path.parent)
            free = shutil.disk_usage(path.parent).free
            say(f'{path}: {len(self)} images of {size}x{size} pixels will take {total / 1e9:.2f} GB')
            if total > free:
                raise UserError(f'{path.parent} has {free / 1e9:.2f} GB free; leave --cache out, or name another '
                                '--save_root')
            write_atomically(path, self._write_resized)
        processes.gather(None)  # the others wait until it is there
        self.cache = path
        return self

    def _write_resized(self, path):
        with ThreadPoolExecutor(usable_cores()) as pool, open(path, 'wb') as file:
            # a pool queues all it is given at once: parts keep the memory small
            parts = (range(start, min(start + 256, len(self))) for start in range(0, len(self), 256))
            resized = chain.from_iterable(pool.map(self.resized, part) for part in parts)
            for pixels in progress(resized, 'resizing images', 'image', total=len(self)):
                file.write(pixels.numpy().tobytes())

    def fingerprint(self, with_times=False):
        """A SHA-256 of the ids, labels and sizes of the files: which images these are.

        with_times: also of when each file was last written. A cache needs it, to see that a file was replaced by one of
        the same size. A result does not, so that copies of a data set have one fingerprint.
        """
        digest = hashlib.sha256()
        for index, label in enumerate(progress(self.labels, 'looking at the files', 'image', leave=False)):
            path = self.folder / self.image_id(index)
            found = path.stat() if path.is_file() else None
            time = f',{found.st_mtime_ns}' if with_times and found else ''
            digest.update(f'{self.image_id(index)},{label},{found and found.st_size}{time}\n'.encode())
        return digest.hexdigest()

    def without_broken(self, name):
        """The images that open; says how many do not. name: what they are called in what is said."""
        kept = opening_images([self.folder / self.image_id(index) for index in range(len(self))], name)
        return ImageDataset(self.image_ids[kept], self.labels[kept], self.folder, self.transform, self.class_names)
