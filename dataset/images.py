"""The images of a data set's split. An item is (image (3,S,S) float32, label, index) for every reader.

The way of an image: open_image or open_upright -> Transform.resize (bytes; --cache keeps them) -> Transform.crop ->
from the loader's worker to the device -> Transform.normalise (numbers).
"""
import itertools
import shutil
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL
import torch
from torch.utils.data import Dataset

from dataset.fingerprints import Contents, combined
from dataset.image_files import open_image
from dataset.image_folders import in_threads
from runtime import processes
from runtime.screen import say, warn
from runtime.whole_files import remove_superseded, write_atomically
from wsol.errors import UserError

READER = 1  # raise it whenever files become pixels in another way, so that no cache of earlier pixels is read


class Images(Dataset):
    """Base class: a subclass has read(key), an item whose image is in bytes, (3,S,S) uint8. Item -> (image (3,S,S)
    float32, label, index, ...).

    transform: the Transform that normalises the images. data_loaders.Loader asks for the bytes of `read`, and gives the
    same numbers: bytes take a quarter of the memory between processes.
    """

    def __getitem__(self, key):
        image, *more = self.read(key)
        return self.transform.normalise(image), *more


class ImageDataset(Images):
    """One split. Item i -> (image (3,S,S) float32, label, i); item (i, seed) crops with that seed.

    Attributes: image_ids (N,) bytes, labels (N,) int64, folder (where the ids start), class_names, contents (the
    Contents that knows the photos' SHA-256), open_photo (open_image, as published, or open_upright), name (of data set
    and split, for caches).
    """

    def __init__(self, image_ids, labels, folder, transform, class_names=(), contents=None, open_photo=open_image):
        self.image_ids, self.labels, self.folder, self.transform = image_ids, labels, Path(folder), transform
        self.class_names, self.contents, self.open_photo = class_names, contents or Contents(), open_photo
        self.name, self.cache, self.pixels = 'images', None, None

    def __len__(self):
        return len(self.image_ids)

    def image_id(self, index):
        return self.image_ids[index].decode()

    def path(self, index):
        return self.folder / self.image_id(index)

    def read(self, key):
        index, seed = key if isinstance(key, tuple) else (key, None)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return self.transform.crop(self.resized(index), generator), int(self.labels[index]), index

    def resized(self, index):
        """(3,R,R) uint8: an image before it is cropped, from the cache or the file."""
        if self.cache is None:
            return self.transform.resize(self.open_photo(self.path(index)))
        if self.pixels is None:  # a loader process that does not begin as a copy of this one
            self._open_cache()
        return torch.from_numpy(np.array(self.pixels[index]))

    def _open_cache(self):
        """Keep the cache file open, so that it stays readable if another command deletes it."""
        size = self.transform.resize_size
        self.pixels = np.memmap(self.cache, np.uint8, 'r', shape=(len(self), 3, size, size))

    def __getstate__(self):
        return self.__dict__ | {'pixels': None}  # to pickle an open file is to copy its content

    def cached(self, folder):
        """Itself, reading all resized images from one file below folder, which is written if it is missing.

        The file is named after data set and split, the images' size and fit, and a fingerprint of everything else
        that the pixels depend on. Caches with another fingerprint are then removed. Raises UserError for a full disk.
        """
        size, fit = self.transform.resize_size, (self.transform.way or {}).get('fit', '')
        path = Path(folder) / f'{self.name}_{size}{fit}.{self.pixels_fingerprint()[:16]}.pixels'
        total = len(self) * 3 * size**2

        def write(unfinished):
            free = shutil.disk_usage(path.parent).free
            say(f'{path}: {len(self)} images of {size}x{size} pixels will take {total / 1e9:.2f} GB')
            if total > free:
                raise UserError(f'{path.parent} has {free / 1e9:.2f} GB free; leave --cache out, or name another '
                                '--save_root')
            with open(unfinished, 'wb') as file:
                for pixels in in_threads(self.resized, range(len(self)), 'resizing images'):
                    file.write(pixels.numpy().tobytes())

        if processes.is_first() and (not path.is_file() or path.stat().st_size != total):
            remove_superseded(path)
            write_atomically(path, write)
        processes.gather(None)  # the others wait until it is there
        self.cache = path
        self._open_cache()
        return self

    @cached_property
    def sha256(self):
        """[SHA-256 of each photo]. The processes of a run share the work, so all of them must ask for it."""
        return self.contents.of(self.paths())

    def fingerprint(self):
        """SHA-256 of the ids, the labels and the photos' content: the identity of these images, wherever they are."""
        return combined(self.image_ids.tolist(), self.labels.tolist(), self.sha256)

    def pixels_fingerprint(self):
        """SHA-256 of everything the photos' pixels depend on before they are resized."""
        return combined(self.fingerprint(), READER, self.open_photo.__name__, PIL.__version__, str(torch.__version__),
                        *([str(self.transform.way)] if self.transform.way else ()))

    def paths(self):
        """The paths of all images."""
        return [self.path(index) for index in range(len(self))]


def warn_of_shared(images):
    """Warn of photos that stand in two splits, by content, whatever their names. images: {split: ImageDataset}."""
    for (split, first), (later, second) in itertools.combinations(images.items(), 2):
        places = {sha256: index for index, sha256 in enumerate(first.sha256) if sha256}  # '' if it cannot be read
        pairs = [(places[sha256], index) for index, sha256 in enumerate(second.sha256) if sha256 in places]
        if pairs:
            warn(f'{len(pairs)} images of {later} are images of {split}, too; the first: {second.path(pairs[0][1])} is '
                 f'{first.path(pairs[0][0])}')
