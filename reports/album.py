"""What inference.py leaves in its folder: of each photo a picture, raw maps and an entry in the manifest; one page.

Names: photo.jpg -> photo_jointll.png, photo_jointll.npy; with a contrast photo_jointll_contrast.png beside the maps
photo_jointll_difference.npy, or photo_evidence_contrast.npy of a contrast method.
"""
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.image_files import upright_size
from reports import figures, pictures
from reports.gallery import Gallery
from reports.photos import open_picture
from runtime import processes, whole_files
from wsol.attribution import labels
from wsol.attribution.registry import PROCESSES

DIFFERENCE = 'difference'  # of the shown maps: the contrast that is no method of its own
SMALLEST = 480         # pixels: a smaller photo is enlarged to this, for its colour bars to be read
MOST_PIXELS = 24e6     # of all panels of a picture: twice 4000 x 3000, which a gigabyte of memory is enough for


class Explained(NamedTuple):
    """A photo and all that was computed of it."""
    name: str         # of its results
    path: Path
    probs: list       # p(y | x) of every class
    classes: list     # the explained ones: A, with a contrast B, perhaps more
    maps: dict        # attribution method -> (K,h,w) of the first K of the classes
    pair: np.ndarray | None = None  # (h,w) of A against B, by a contrast method


class Contrast(NamedTuple):
    """A map of A against B."""
    name: str           # of its file
    title: str
    values: np.ndarray  # (h,w)
    label: str
    signed: bool


class Album:
    """The pictures, raw maps and page of a folder.

    names: of the classes. methods: the attribution methods, in order. contrast_method: of config's table; None
    without a contrast. overlay, picture_size, formats: the flags of these names. title: of the page.
    """

    def __init__(self, folder, names, methods, contrast_method=None, overlay='blend', picture_size=1024,
                 formats=('png',), title=''):
        self.folder, self.names, self.processes = Path(folder), names, methods
        self.overlay, self.picture_size, self.formats = overlay, picture_size, formats
        self.differences = [name for name in methods if contrast_method == DIFFERENCE and PROCESSES[name].per_class]
        self.pair = None if contrast_method == DIFFERENCE else contrast_method
        self.gallery = Gallery(title, self._methods(), bool(self.differences))
        self.reduced = []  # photos that are drawn smaller than they are, and how

    def _methods(self):
        """What the page is told of the methods."""
        methods = [{'name': name, 'label': labels.map_label(name), 'difference': labels.difference_label(name),
                    'signed': name in labels.SIGNED, 'per_class': PROCESSES[name].per_class, 'pair': False}
                   for name in self.processes]
        if self.pair:
            methods.append({'name': f'{self.pair}: why A, not B', 'label': labels.contrast_label(self.pair),
                            'difference': '', 'signed': labels.is_signed_contrast(self.pair), 'per_class': True,
                            'pair': True})
        return methods

    def class_name(self, label):
        """A class's name, or its number where the checkpoint knows no names."""
        return self.names[label] if self.names and self.names[label] else f'class {label}'

    def add(self, photo):
        """Write the files of an Explained photo, and put it on the page. Returns its entry in the manifest."""
        contrasts = self._contrasts(photo)
        explained = [{'class': label, 'class_name': self.class_name(label), 'probability': photo.probs[label]}
                     for label in photo.classes]
        entry = {'image': str(photo.path), 'predicted': int(np.argmax(photo.probs)), **explained[0],
                 'maps': {name: self._save(photo, name, photo.maps[name][0]) for name in self.processes}}
        if contrasts:
            entry['contrast'] = {**explained[1], 'maps': {own.name: self._save(photo, own.name, own.values)
                                                          for own in contrasts}}
        picture = self._open(photo.path, 1 + len(self.processes) + len(contrasts) if 'png' in self.formats else 1)
        if 'png' in self.formats:
            entry['picture'] = self._draw(photo, picture, contrasts, explained)
        if 'html' in self.formats:
            classes = [(own['class_name'], own['probability']) for own in explained]
            maps = [photo.maps[name][:None if PROCESSES[name].per_class else 1] for name in self.processes]
            self.gallery.add(photo.name, picture, classes, maps + ([photo.pair[None]] if self.pair else []))
        return entry

    def share(self, indices):
        """Add what the other processes have put on the page. indices: the numbers of the photos added here, in order;
        the page has all in the order of theirs."""
        of_all = processes.gather((indices, self.gallery.images, self.reduced))
        photos = {index: photo for own, shown, _ in of_all for index, photo in zip(own, shown, strict=bool(shown))}
        self.gallery.images = [photos[index] for index in sorted(photos)]
        self.reduced = [text for *_, reduced in of_all for text in reduced]

    def _contrasts(self, photo):
        """The Contrasts of a photo."""
        found = [Contrast(f'{name}_difference', f'{name}: why A, not B', photo.maps[name][0] - photo.maps[name][1],
                          labels.difference_label(name), True) for name in self.differences]
        if self.pair:
            found.append(Contrast(f'{self.pair}_contrast', f'{self.pair}: why A, not B', photo.pair,
                                  labels.contrast_label(self.pair), labels.is_signed_contrast(self.pair)))
        return found

    def _save(self, photo, name, values):
        """A raw map. Returns its file's name."""
        file = f'{photo.name}_{name}.npy'
        whole_files.write_atomically(self.folder / file, lambda path: whole_files.save_array(path, values))
        return file

    def _open(self, path, panels):
        """The photo as it is drawn, in so many panels."""
        width, height = upright_size(path)
        most = math.isqrt(int(MOST_PIXELS / panels * max(width, height) / min(width, height)))
        longest = min(self.picture_size, most)
        picture = open_picture(path, longest, min(SMALLEST, longest))
        if max(width, height) > longest:
            why = 'as many pixels as a picture may have' if longest == most else f'--picture_size is {longest}'
            self.reduced.append(f'{path} ({width} x {height}) at {picture.shape[1]} x {picture.shape[0]}: {why}')
        return picture

    def _draw(self, photo, picture, contrasts, explained):
        """The PNG: photo, maps, contrasts. Returns its file's name."""
        maps = [pictures.Panel(picture, name, photo.maps[name][0], labels.map_label(name),
                               name in labels.SIGNED) for name in self.processes]
        against = [pictures.Panel(picture, own.title, own.values, own.label, own.signed) for own in contrasts]
        rows = pictures.arrange(pictures.Panel(picture, 'photo'), maps, against)
        shown = list(zip('AB', explained, strict=False))[:2 if contrasts else 1]
        header = '; '.join(f'{letter} = {own["class_name"]}, p({letter} | x) = {own["probability"]:.3f}'
                           for letter, own in shown)
        file = self.picture_name(photo.name, bool(contrasts))
        figures.save(pictures.sheet(rows, header, overlay=self.overlay), self.folder / file)
        return file

    def picture_name(self, name, contrasts):
        """photo_jointll.png, photo_jointll+grad_cam.png, photo_jointll_contrast.png, photo_jointll_evidence.png."""
        methods = '+'.join(self.processes)
        if len(methods) > 80:
            methods = f'{self.processes[0]}+{len(self.processes) - 1}'
        return '_'.join([name, methods, *([self.pair or 'contrast'] if contrasts else [])]) + '.png'
