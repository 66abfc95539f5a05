"""The user's own photos: found, named so that no two results meet, opened for the network and for the eye."""
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.image_files import SUFFIXES, images_below, open_upright
from dataset.images import Images
from wsol.errors import UserError

LARGEST = 4096  # a larger photo is made this large before the network's square is cut from it: memory, and speed


class OwnImages(Images):
    """The user's image files, upright, of any size and mode. Item -> (image (3,S,S), whether it opens, index)."""

    def __init__(self, paths, transform, class_names=()):
        self.paths, self.transform, self.class_names = paths, transform, class_names

    def __len__(self):
        return len(self.paths)

    def image_id(self, index):
        return str(self.paths[index])

    def read(self, index):
        try:
            return self.transform.resize(open_upright(self.paths[index], LARGEST)), True, index
        except UserError:  # the others are explained all the same; inference.py says what is wrong with this one
            return self.transform.resize(Image.new('RGB', (8, 8))), False, index


def find_images(inputs, output):
    """{name of its results: path} of image files and of all images below folders, but for those in the output folder.

    The name is the file's without its suffix, in a folder given as a whole with the folders on the way to it.
    """
    if '' in inputs:
        raise UserError('"" is no image and no folder; the folder you are in is .')
    found, output = {}, Path(output).resolve()  # path, resolved -> the path as given, the folder's name, the file's
    for given in map(Path, inputs):
        if given.is_dir():
            there = [Path(name) for name in images_below(given)]
            below = [name for name in there if not (given / name).resolve().is_relative_to(output)]
            if there and not below:
                raise UserError(f'all images of {given} lie in {output}, where the results go: choose another --output')
            if not below:
                raise UserError(f'{given} holds no images (looked for {", ".join(sorted(SUFFIXES))})')
            for name in below:
                found.setdefault((given / name).resolve(), (given / name, given.resolve().name, name))
        elif given.is_file():
            found.setdefault(given.resolve(), (given, given.resolve().parent.name, Path(given.name)))
        else:
            raise UserError(f'{given}: no such image or folder')
    names = unique_names([(folder, name) for _, folder, name in found.values()])
    return dict(zip(names, (path for path, *_ in found.values()), strict=True))


def unique_names(files):
    """Names for files [(name of the folder, path inside it)], none twice whether or not case counts.

    photo.jpg -> photo; beside a photo.png -> photo-jpg; beside a photo.jpg of another folder -> folder-photo; where
    both are there, folder-photo-jpg; and numbers where even those meet. All files that would meet are renamed alike.
    """
    def name_of(position, level):
        folder, path = files[position]
        stem = str(path.with_suffix(''))
        suffixed = f'{stem}-{path.suffix[1:]}'
        forms = (stem, suffixed, f'{folder}-{stem}', f'{folder}-{suffixed}')
        return forms[level] if level < len(forms) else f'{forms[-1]}-{position + 1}' + '-' * (level - len(forms))

    levels = [0] * len(files)
    while True:
        names = [name_of(position, level) for position, level in enumerate(levels)]
        counts = Counter(map(str.casefold, names))
        meeting = [position for position, name in enumerate(names) if counts[name.casefold()] > 1]
        if not meeting:
            return names
        for position in meeting:
            levels[position] += 1


def open_picture(path, longest, smallest=0):
    """A photo as it is drawn, (H,W,3) uint8: its longer side at most `longest`; a photo smaller than `smallest` is
    enlarged to it, for its colour bars to be read."""
    image = open_upright(path, longest)
    side = max(image.size)
    if side < smallest:
        image = image.resize([max(1, round(own * smallest / side)) for own in image.size], Image.Resampling.BICUBIC)
    return np.asarray(image)
