"""A user's photos: how they are found, how their results are named, and how they are opened for the network and to be
drawn."""
import itertools
import os
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.image_files import open_upright
from dataset.image_folders import images_below
from dataset.images import Images
from wsol.errors import UserError

LONGEST = 100   # bytes of a photo's name that stand in the names of its results: file systems allow 255 in all


class Photos(Images):
    """Image files, upright, of any size and mode. Item -> (image (3,S,S), whether it opens, index)."""

    def __init__(self, paths, transform, class_names=()):
        self.paths, self.transform, self.class_names = paths, transform, class_names

    def __len__(self):
        return len(self.paths)

    def image_id(self, index):
        return str(self.paths[index])

    def read(self, index):
        try:
            return self.transform.resize(open_upright(self.paths[index])), True, index
        except UserError:  # the other photos are still explained; inference.py says what is wrong with this one
            return self.transform.resize(Image.new('RGB', (8, 8))), False, index


def find_images(inputs, output):
    """{name: path} of image files and of all images below folders, except those in the output folder.

    The names begin the names of the results. A name is that of the file without its suffix; for an image below a given
    folder, with the folders in between.
    """
    photos, output = {}, Path(output).resolve()  # resolved path -> (path as given, folder's name, path inside it)
    for given in map(Path, inputs):
        if given.is_dir():
            inside = [Path(name) for name in images_below(given, output)]
            wanted = [name for name in inside if not (given / name).resolve().is_relative_to(output)]
            if inside and not wanted:
                raise UserError(f'all images of {given} lie in {output}, where the results go: choose another --output')
            if not wanted:
                raise UserError(f'{given} holds no images')
            for name in wanted:
                photos.setdefault((given / name).resolve(), (given / name, given.resolve().name, name))
        elif given.is_file():
            photos.setdefault(given.resolve(), (given, given.resolve().parent.name, Path(given.name)))
        else:
            raise UserError(f'{given}: no such image or folder')
    names = unique_names([(folder, name) for _, folder, name in photos.values()])
    return dict(zip(names, (path for path, *_ in photos.values()), strict=True))


def _cut(text, length):
    """The beginning of a file's name, of so many bytes."""
    name = os.fsencode(text)
    return text if len(name) <= length else name[:length].decode(sys.getfilesystemencoding(), 'ignore')


def unique_names(files):
    """Names for files [(name of the folder, path inside it)], unique even on file systems that take Photo and
    photo, or the two spellings of é in Unicode, for one.

    photo.jpg -> photo; beside a photo.png -> photo-jpg; beside a photo.jpg of another folder -> folder-photo; beside
    both, folder-photo-jpg; if even those are equal, with a number. All files of one name are renamed alike.
    """
    def forms(number, folder, path):  # of a name, the shortest first
        folder, suffix = _cut(folder, 40), _cut(path.suffix[1:], 10)
        stem = str(path.with_name(_cut(path.stem, LONGEST) or 'photo'))
        yield from (stem, f'{stem}-{suffix}', f'{folder}-{stem}', longest := f'{folder}-{stem}-{suffix}')
        yield from (f'{longest}-{number}{"-" * count}' for count in itertools.count())
    longer = [forms(number, *file) for number, file in enumerate(files, 1)]
    names, equal = [''] * len(files), range(len(files))
    while equal:
        for place in equal:
            names[place] = next(longer[place])
        keys = [unicodedata.normalize('NFC', name.casefold()) for name in names]
        counts = Counter(keys)
        equal = [place for place, key in enumerate(keys) if counts[key] > 1]
    return names


def open_picture(path, longest, smallest=0):
    """A photo to be drawn, (H,W,3) uint8: its longer side is at most `longest`, and is enlarged to `smallest`."""
    image = open_upright(path, longest)
    side = max(image.size)
    if side < smallest:
        image = image.resize([max(1, round(length * smallest / side)) for length in image.size],
                             Image.Resampling.BICUBIC)
    return np.asarray(image)
