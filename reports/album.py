"""What inference.py leaves in its folder: a picture, raw maps and a manifest entry for each photo; one page for all.

photo.jpg gives photo_jointll.png and photo_jointll.npy; with a contrast, photo_jointll_contrast.png and
photo_jointll_difference.npy, or photo_evidence_contrast.npy of a contrast method.

The manifest lists every file that inference.py has written in its folder. Any other file stays as it is: a run that
would replace one is refused.
"""
import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dataset.image_files import upright_size
from evaluation.erasing import CHECKED, CONTROLS
from reports import figures, gallery, pictures
from reports.photos import open_picture
from reports.pictures import Panel
from runtime import processes, screen, whole_files
from wsol.attribution.contrast import CONTRASTS, label_of
from wsol.attribution.registry import METHODS
from wsol.errors import UserError
from wsol.heads import SCORES
from wsol.maps import is_constant

DIFFERENCE = 'difference'  # the contrast that subtracts the shown maps of two classes, where no contrast method is used
SMALLEST = 480         # pixels: a smaller photo is enlarged to this, so that its colour bars can be read
MOST_PIXELS = 24e6     # of all panels of a picture: two of 4000 x 3000, for which a gigabyte of memory is enough
WHOLE, DIMMED = (0.0, 0.0, 1.0, 1.0), '; dimmed: not seen by the network'
MANIFEST, PAGE = 'manifest.json', 'gallery.html'
WRITER = 'inference.py'  # the mark of a manifest of ours


class Explanation(NamedTuple):
    """What was computed for a photo."""
    name: str         # the beginning of its files' names
    path: Path
    box: tuple        # (x0,y0,x1,y1): the part of the photo that maps cover, in shares of its width and height
    probs: list       # p(y | x) of every class
    classes: list     # the explained ones: A, with a contrast B, perhaps more
    maps: dict        # attribution method -> (K,h,w), of the first K of the classes; contrast_key -> (1,h,w)
    check: dict | None  # from evaluation.erasing.check_maps


class View(NamedTuple):
    """What is shown of every photo: the maps of a method, or a contrast."""
    file: str         # the end of its files' names
    title: str
    label: str        # of the colour bar
    signed: bool
    maps: Callable    # Explanation -> (K,h,w): a map for each class, or one in all

    def panel(self, picture, values, title, box):
        """A Panel of one of its maps. A constant map is drawn as zeros, which have no colour, and its title says so."""
        if is_constant(torch.from_numpy(values)):
            title, values = f'{title}: {values.flat[0]:.3g} everywhere, which shows no place', np.zeros_like(values)
        return Panel(picture, title, values, self.label, self.signed, box=None if box == WHOLE else box)


def contrast_key(name):
    """The key of a contrast method's map, whose name may be that of an attribution method too."""
    return f'{name}_contrast'


def views_of(methods, contrast_method, scores='softmax'):
    """The Views of attribution methods, and those of why A and not B. contrast_method: a key of CONTRASTS, DIFFERENCE,
    or None for no contrast. scores: a key of SCORES."""
    views = [View(name, name, METHODS[name].label_of(), METHODS[name].signed, lambda photo, name=name: photo.maps[name])
             for name in methods]
    if contrast_method is None:
        return views, []
    if contrast_method == DIFFERENCE:
        return views, [View(f'{name}_difference', f'{name}: why A, not B', METHODS[name].difference_label(), True,
                            lambda photo, name=name: photo.maps[name][:1] - photo.maps[name][1:2])
                       for name in methods if METHODS[name].per_class]
    key, method = contrast_key(contrast_method), CONTRASTS[contrast_method]
    return views, [View(key, f'{contrast_method}: why A, not B', label_of(method, scores), method.signed,
                        lambda photo: photo.maps[key])]


class Album:
    """The pictures, raw maps, manifest and page of a folder.

    class_names: the network's; [] if it has none. methods: the attribution methods, in order. contrast_method:
    see views_of. overlay, picture_size, formats: the flags of these names. title: the page's. about: what the
    manifest says of the network and the run. scores: the head's, a key of SCORES.
    """

    def __init__(self, folder, class_names, methods, contrast_method=None, overlay='blend', picture_size=1024,
                 formats=('png',), title='', about=None, scores='softmax'):
        self.folder, self.class_names, self.methods = Path(folder), class_names, methods
        self.overlay, self.picture_size, self.formats = overlay, picture_size, formats
        self.views, self.contrasts = views_of(methods, contrast_method, scores)
        self.all_views = [*self.views, *self.contrasts]
        shown = '+'.join(methods)
        if len(shown) > 80:
            shown = f'{methods[0]}+{len(methods) - 1}'
        against = 'contrast' if contrast_method == DIFFERENCE else contrast_method
        self.picture_end = f'{shown}_{against}.png' if self.contrasts else f'{shown}.png'
        self.title, self.about, self.scores = title, about or {}, scores
        self.notes = [SCORES[scores]] * (scores != 'softmax')  # lines about the run, for the manifest and the page
        self.photos = []     # what the page shows of each photo
        self.reduced = []    # photos that are drawn smaller than they are, and how
        self.files = set()   # names of all files that this run or an earlier one writes here

    def class_name(self, label):
        """A class's name, or its number where the checkpoint knows no names."""
        return self.class_names[label] if self.class_names and self.class_names[label] else f'class {label}'

    def note(self, text, show=screen.say):
        """Show a line about the run, and add it to the manifest and the page."""
        show(text)
        self.notes.append(text)

    # --- files ---

    def claim(self, names):
        """Raise UserError if this run would replace a file that no earlier run has written. names: of the photos."""
        ends = [f'{view.file}.npy' for view in self.all_views]
        ends += [self.picture_end] if 'png' in self.formats else []
        planned = {f'{name}_{end}' for name in names for end in ends} | {MANIFEST}
        planned |= {PAGE} if 'html' in self.formats else set()
        before = files_written(self.folder)
        for name in sorted(planned - before):
            if os.path.lexists(self.folder / name):
                raise UserError(f'{self.folder / name} was not written by inference.py, so it is not replaced: '
                                'choose another --output, or move the file')
        self.files = before | planned

    def write_manifest(self, entries, finished=False):
        """Write what was explained, and how. entries: of the photos, as `add` gives them."""
        files = sorted(name for name in self.files if not finished or os.path.lexists(self.folder / name))
        methods = {view.file: view.label for view in self.views}
        whole_files.write_json(self.folder / MANIFEST, {
            'written_by': WRITER, **self.about, 'notes': self.notes, 'methods': methods, 'images': list(entries),
            'files': files})

    def write_page(self):
        """Write the page. Returns its size in bytes."""
        page = gallery.page('. '.join([self.title, *self.notes]), [view.title for view in self.all_views], self.overlay,
                            self.photos)
        content = page.encode('utf-8', 'replace')  # file names may hold bytes that are no text
        whole_files.write_bytes(self.folder / PAGE, content)
        return len(content)

    def add(self, photo):
        """Write the files of an Explanation, and put it on the page. Returns its entry in the manifest."""
        classes = [{'class': label, 'class_name': self.class_name(label), 'probability': photo.probs[label]}
                   for label in photo.classes]
        size = upright_size(photo.path)
        flat = [view.title for view in self.all_views if is_constant(torch.from_numpy(view.maps(photo)[0]))]
        entry = {'image': str(photo.path), 'predicted': int(np.argmax(photo.probs)),
                 'predicted_probability': max(photo.probs), **classes[0],
                 'box': [round(share * side, 2) for share, side in zip(photo.box, 2 * size, strict=True)],
                 'maps': self._save_maps(photo, self.views), 'constant_maps': flat}
        if self.scores == 'sigmoid':
            entry['labels'] = [self.class_name(label) for label, p in enumerate(photo.probs) if p >= 0.5]
        if self.contrasts:
            entry['contrast'] = {**classes[1], 'maps': self._save_maps(photo, self.contrasts)}
        if photo.check:
            entry['check'] = {'erased_percent': [round(100 * share) for share in CHECKED], **photo.check}
        if 'png' in self.formats:
            entry['picture'] = self._draw(photo, classes)
        if 'html' in self.formats:
            self.photos.append(self._shown(photo, classes))
        return entry

    def share(self, indices):
        """Add what other processes have put on the page, in the order of the photos. indices: the numbers of the
        photos that this process has added."""
        parts = processes.gather((indices, self.photos, self.reduced))
        photos = {index: photo for numbers, shown, _ in parts
                  for index, photo in zip(numbers, shown, strict=bool(shown))}
        self.photos = [photos[index] for index in sorted(photos)]
        self.reduced = [text for *_, reduced in parts for text in reduced]

    def _save_maps(self, photo, views):
        """Write the raw map of class A for each view. Returns {end of the file's name: file}."""
        files = {view.file: f'{photo.name}_{view.file}.npy' for view in views}
        for view in views:
            content = io.BytesIO()
            np.save(content, view.maps(photo)[0])
            whole_files.write_bytes(self.folder / files[view.file], content.getbuffer())
        return files

    # --- pictures ---

    def _draw(self, photo, classes):
        """Write the picture of a photo: the photo, maps and contrasts. Returns its file's name."""
        picture = self._open(photo.path, 1 + len(self.views) * (1 + bool(photo.check)) + len(self.contrasts))
        maps, against = ([view.panel(picture, view.maps(photo)[0], view.title, photo.box) for view in views]
                         for views in (self.views, self.contrasts))
        if photo.check:
            charts = [Panel(figures.erasure_chart(*self._curves(photo, view), picture.shape[:2]),
                            f'{view.title}: p(A | x) when pixels are erased') for view in self.views]
            rows = [[Panel(picture, 'photo'), *maps], [None, *charts], *([None, *against] for _ in against[:1])]
        else:
            rows = pictures.arrange(Panel(picture, 'photo'), maps, against)
        header = caption(*classes[:2 if against else 1], box=photo.box) + '; p by sigmoid' * (self.scores != 'softmax')
        file = f'{photo.name}_{self.picture_end}'
        figures.save(pictures.sheet(rows, header, overlay=self.overlay), self.folder / file)
        return file

    def _curves(self, photo, view):
        """(shares in percent, {name, fill: p}) of the chart of a view: the map's, and the controls'."""
        intact = photo.probs[photo.classes[0]]
        return [0, *(100 * share for share in CHECKED)], {
            (name if name in CONTROLS else 'the map', fill): [intact, *values] for fill, of_fill in photo.check.items()
            for name, values in of_fill.items() if name in (view.file, *CONTROLS)}

    def _open(self, path, panels):
        """The photo as it is drawn in so many panels."""
        width, height = upright_size(path)
        most = math.isqrt(int(MOST_PIXELS / panels * max(width, height) / min(width, height)))
        longest = min(self.picture_size, most)
        picture = open_picture(path, longest, min(SMALLEST, longest))
        if max(width, height) > longest:
            why = 'as many pixels as a picture may have' if longest == most else f'--picture_size is {longest}'
            self.reduced.append(f'{path} ({width} x {height}) at {picture.shape[1]} x {picture.shape[0]}: {why}')
        return picture

    def _shown(self, photo, classes):
        """What the page shows of a photo."""
        longest = min(self.picture_size, gallery.SIZE)
        picture, panels = open_picture(photo.path, longest, longest), []
        for view in self.all_views:
            whose = [classes[:2]] if view in self.contrasts else [[one] for one in classes]
            panels.append([view.panel(picture, values, f'{view.title}. {caption(*shown, box=photo.box)}', photo.box)
                           for shown, values in zip(whose, view.maps(photo), strict=False)])
        charts = [self._curves(photo, view) for view in self.views] if photo.check else []
        names = [(one['class_name'], one['probability']) for one in classes]
        return gallery.shown(photo.name, picture, names, panels, charts, self.overlay)


def caption(*classes, box=WHOLE):
    """A = Laysan_Albatross, p(A | x) = 0.913; B = ..., for one or two classes. box: as in Explanation."""
    return '; '.join(f'{letter} = {one["class_name"]}, p({letter} | x) = {one["probability"]:.3f}'
                     for letter, one in zip('AB', classes, strict=False)) + DIMMED * (min(box[2:]) < 1)


def files_written(folder):
    """The names of the files that earlier runs of inference.py have written in a folder, as its manifest lists them."""
    manifest = whole_files.read_json(Path(folder) / MANIFEST)
    try:
        return {MANIFEST, *manifest['files']} if manifest['written_by'] == WRITER else set()
    except (AttributeError, KeyError, TypeError):  # some other program's manifest.json
        return set()
