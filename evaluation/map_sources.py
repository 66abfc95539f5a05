"""Where attribution maps come from: a network, a folder of maps made elsewhere, or the object's segmentation.

All sources are called in one way, source(images, indices, classes), and return a MapBatch. They refuse maps that are
not finite, and count maps that show nothing. Letters: B images, C classes of the network, K classes whose maps are
wanted.
"""
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import util
from dataset.fingerprints import combined
from runtime import processes, screen
from wsol.attribution.contrast import contrast_maps
from wsol.attribution.maps import attribution_maps
from wsol.attribution.registry import METHODS
from wsol.errors import UserError, words_of
from wsol.maps import blurred, is_constant


class MapBatch(NamedTuple):
    """The probabilities and maps of a batch of images."""
    probs: torch.Tensor | None  # (B,C), p(y|x); None without a network, or if the caller passes activations
    maps: list                  # B maps (K,h,w), of any size; or one tensor (B,K,h,w)


class MapSource:
    """The base class of all sources.

    images: the ImageDataset of the batches. model: the network, or None. classifier: the network that gives the
    probabilities, where the maps are those of another one.
    """
    per_class = True  # whether the maps of two classes can differ
    takes_pairs = False  # whether it makes one signed map for two classes
    is_blurred = False  # a control: its maps are blurred, which shows what smoothness alone changes

    def __init__(self, images, model=None, precision='float32', classifier=None):
        self.images, self.model, self.precision = images, model, precision
        self.classifier = model if classifier is None else classifier
        self.constant, self.predicted = set(), set()  # the images with a map of one value; the classes predicted so far

    def __call__(self, images, indices, classes, activations=None):
        """The MapBatch of images (B,3,S,S). indices: (B,) into the data set. classes: (B,K), on the images' device.
        activations: the network's, if they are computed already. Raises UserError for a map that is not finite."""
        with util.autocast(self.precision, images.device):
            probs = None
            if activations is None:
                activations = self.forward(images)
                is_judge = self.classifier is self.model
                probs = self.probabilities(activations if is_judge else self.forward(images, self.classifier))
            maps = self.compute(images, indices, classes, activations)
        if self.is_blurred:
            maps = blurred(maps) if isinstance(maps, torch.Tensor) else list(map(blurred, maps))
        batch = MapBatch(probs, maps)
        sets = [batch.maps] if isinstance(batch.maps, torch.Tensor) else [maps[None] for maps in batch.maps]
        checks = torch.cat([torch.stack([maps.isfinite().flatten(1).all(1), is_constant(maps).flatten(1).any(1)], 1)
                            for maps in sets])  # (B,2)
        for index, (is_finite, is_flat) in zip(indices.tolist(), checks.tolist(), strict=True):
            if not is_finite:
                raise UserError(f'the map of {self.images.image_id(index)} holds values that are infinite or no '
                                'number; a network that has diverged gives such maps, or maps made elsewhere have them')
            if is_flat:
                self.constant.add(index)
        if batch.probs is not None:
            self.predicted.update(batch.probs.argmax(1).tolist())
        return batch

    def say_constant(self):
        """Warn of maps with one value everywhere, and of one prediction for all images of several classes. All
        processes of a run call it after their last image."""
        constant, predicted = (set().union(*parts) for parts in zip(*processes.gather((self.constant, self.predicted)),
                                                                    strict=True))
        if constant:
            screen.warn(f'{len(constant)} of {len(self.images)} images have a map with one value everywhere, which '
                        f'shows no place; the first: {self.images.image_id(min(constant))}')
        if len(predicted) == 1 and np.ptp(self.images.labels):
            screen.warn(f'the network predicts class {predicted.pop()} for all {len(self.images)} images: no map can '
                        'say what in an image led to it')

    def forward(self, images, model=None):
        """The Activations of images, which several sources can share; None if there is no network. model: the network
        that makes the maps (default), or the classifier."""
        model = self.model if model is None else model
        if model is None:
            return None
        with torch.no_grad(), util.autocast(self.precision, images.device):
            return model.activations(images)

    def probabilities(self, activations):
        """(B,C); None without a network. activations: the classifier's."""
        model = self.classifier
        with torch.no_grad():
            return None if activations is None else model.probabilities(model.class_scores(activations))

    def fingerprint(self):
        """SHA-256 of what the maps come from, beside the images and the network; None if there is nothing else. All
        processes of a run call it."""

    def check_pairs(self, pairs):
        """Raise UserError if the two classes have the same map in each of these pairs."""

    def compute(self, images, indices, classes, activations):
        """Maps of a batch. The default calls read(index, classes, size of the images) -> (K,h,w) for each image."""
        return [self.read(index, row, images.shape[-1]).to(images.device)
                for index, row in zip(indices.tolist(), classes.tolist(), strict=True)]


class NetworkMaps(MapSource):
    """A network's maps by an attribution method.

    method: a key of METHODS. seed: for methods that draw at random. options: superclasses and settings of
    attribution_maps.
    """

    def __init__(self, images, model, method, precision='float32', seed=0, classifier=None, **options):
        super().__init__(images, model, precision, classifier)
        self.method, self.seed, self.options = method, seed, options
        self.per_class = self.takes_pairs or METHODS[method].per_class

    def fingerprint(self):
        members = self.options.get('superclasses')
        return None if members is None else combined(members.numpy())

    def check_pairs(self, pairs):
        members = self.options.get('superclasses')
        if members is None:
            return
        alike = sum(bool((members[first] == members[second]).all()) for first, second, *_ in pairs)
        if alike == len(pairs):
            raise UserError(f'{self.method} has one map for both classes of each of the {alike} class pairs, as they '
                            'are in one superclass: A - B is zero everywhere. eval_wsol.py measures such maps')
        if alike:
            screen.warn(f'{alike} of {len(pairs)} class pairs are in one superclass: their A - B is zero everywhere')

    def compute(self, images, indices, classes, activations):
        return attribution_maps(self.model, images, classes, self.method, seeds=util.image_seeds(self.seed, indices),
                                activations=activations, **self.options)


class ContrastMaps(NetworkMaps):
    """A network's maps by a contrast method, a key of CONTRASTS: why the first of two classes and not the second.
    classes (B,2) -> maps (B,1,h,w)."""
    takes_pairs = True

    def compute(self, images, indices, classes, activations):
        return contrast_maps(self.model, images, *classes.unbind(1), self.method, util.image_seeds(self.seed, indices),
                             activations=activations, **self.options)[:, None]


class ObjectMasks(MapSource):
    """The object's segmentation, whatever the class: a control that shows how well the whole object scores."""
    per_class = False

    def __init__(self, images, annotations, model=None, precision='float32'):
        super().__init__(images, model, precision)
        self.annotations = annotations

    def fingerprint(self):
        ids = map(self.images.image_id, range(len(self.images)))
        return combined(self.images.contents.of([self.annotations.segmentation(image_id) for image_id in ids]))

    def read(self, index, classes, size):
        mask = torch.from_numpy(self.annotations.object_mask(self.images.image_id(index), size)).float()
        return mask.expand(len(classes), -1, -1)


class FolderMaps(MapSource):
    """Maps made elsewhere, one .npy each: <root>/<split>/<image_id>.npy or <root>/<image_id>.npy; for maps of several
    classes of an image, <root>/<split>/<label>/<image_id>.npy.

    classes_of: a function (index) -> the classes whose maps will be read, for the layout by class. rows: the images
    whose maps will be read (default: all). The headers of all files are checked before the first image.
    """

    def __init__(self, root, split, images, classes_of=None, rows=None, model=None, precision='float32'):
        super().__init__(images, model, precision)
        self.root, self.split, self.by_class = Path(root), split, classes_of is not None
        rows, self.shapes, self.paths = range(len(images)) if rows is None else rows, set(), []
        for index in screen.progress(rows, 'checking the score maps', 'image', leave=False):
            paths = [self.find(index, label) for label in (classes_of(index) if self.by_class else [None])]
            shapes = {open_map(path).shape for path in paths}
            if len(shapes) > 1:
                raise UserError(f'the score maps of {images.image_id(index)} have different sizes for different '
                                'classes')
            self.shapes |= shapes  # (h,w) of all maps
            self.paths += paths

    def fingerprint(self):
        return combined(self.images.contents.of(self.paths))

    def find(self, index, label):
        """The file of an image's map. Raises UserError where there is none."""
        name = f'{self.images.image_id(index)}.npy'
        places = [self.root / self.split / name, self.root / name]
        if self.by_class:
            places = [self.root / self.split / str(label) / name]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise UserError(f'no score map: looked for {", ".join(map(str, places))}')
        return path

    def read(self, index, classes, size):
        with np.errstate(over='ignore'):
            maps = [open_map(self.find(index, label)).astype(np.float32) for label in classes]
        return torch.from_numpy(np.stack(maps))


def folder_name(folder):
    """The name of maps made elsewhere: their folder's, and a number, since two folders may have the same name."""
    folder = Path(folder).resolve()
    return f'maps-{folder.name}-{zlib.crc32(bytes(folder)):08x}'


def open_map(path):
    """A memory map of the map (h,w) in a .npy file: values are read when they are used. Raises UserError."""
    try:
        values = np.lib.format.open_memmap(path, mode='r')  # takes no memory for what the header promises
        if values.offset + values.nbytes != path.stat().st_size:
            raise ValueError(f'its header promises {values.nbytes:,} bytes of numbers, the file has another size')
    except Exception as error:  # numpy evaluates a header as a Python expression, which fails in many ways
        raise UserError(f'{path} is no score map: {words_of(error)}') from error
    if values.dtype.kind not in 'biuf' or values.ndim != 2 or not values.size:
        raise UserError(f'{path} is no score map: it should be a two-dimensional array of real numbers, it is '
                        f'{values.dtype} of shape {values.shape}')
    return values
