"""--freeze: every image goes through the backbone once, and the head trains on its features. Minutes on a laptop.

The features of an image and of its mirror image are stored in half precision, in a file that is removed when the
training ends; with --cache it is kept for the next training. Mirroring is the only augmentation. BatchNorm keeps its
statistics.
"""
import copy
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

import util
from data_loaders import make_loader
from dataset.fingerprints import combined
from experiment.weights import weights_sha256
from runtime import processes, screen, whole_files
from wsol.errors import UserError
from wsol.networks import find_architecture

HEAD = ('conv_last.', 'attention.')  # how the names of the trained parameters begin


class FeatureSet(Dataset):
    """The features of a split. Item i -> (features (D,h,w) float32, label, i). Item (i, seed) -> those of the mirror
    image if the seed is odd.

    features: (N,M,D,h,w) float16; M = 2 with the mirror images, else 1.
    """

    def __init__(self, features, images):
        self.features, self.labels, self.class_names = features, images.labels, images.class_names

    def __len__(self):
        return len(self.features)

    def __getitem__(self, key):
        index, seed = key if isinstance(key, tuple) else (key, 0)
        features = self.features[index, seed % self.features.shape[1]]
        return torch.from_numpy(features.astype(np.float32)), int(self.labels[index]), index


def check_freezable(architecture):
    """Raise UserError for a network with untrained layers below its head, and for several processes."""
    if processes.size() > 1:
        raise UserError('--freeze trains in one process: it takes minutes; start main.py without torchrun')
    added = find_architecture(architecture).added
    if added:
        raise UserError(f'--freeze trains the head alone, and {architecture} has new layers below it '
                        f'({", ".join(added)}), which would stay random; choose an architecture without new layers, '
                        'or leave --freeze out')


def head_of(model):
    """A network whose inputs are features: the head of this one. It shares all modules; the backbone is frozen."""
    head = copy.copy(model)
    head.stages = ()  # so that extract_features returns its input
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(HEAD))
    return head


def extract_all(model, images, folder, args, device):
    """{split: FeatureSet} of 'train' and 'val'. folder: the experiment's. Raises UserError.

    With --cache the features are kept in save_root/cache/, for every training on the same images and backbone.
    """
    model.eval()
    return {split: FeatureSet(_features(model, images[split], split, folder, args, device), images[split])
            for split in ('train', 'val')}


def _features(model, images, split, folder, args, device):
    """(N,M,D,h,w) float16 of a split: computed, or from the cache."""
    def write(file, folder):
        shape = None
        for features in extract(model, images, split, args, device):
            if shape is None:
                shape = len(images), *features.shape[1:]
                size = 2 * math.prod(shape)  # bytes
                whole_files.check_writable(folder, size)
                header = {'descr': features.dtype.str, 'fortran_order': False, 'shape': shape}
                np.lib.format.write_array_header_1_0(file, header)
                screen.say(f'features of {len(images)} {split} images: {size / 1e6:,.0f} MB in {folder}'
                           + ('' if args.cache else ', until the training ends'))
            file.write(features.tobytes())
        return shape

    def write_file(path):
        with open(path, 'wb') as file:
            write(file, path.parent)

    if not args.cache:
        with tempfile.TemporaryFile(dir=folder) as file:  # without a name: it ends with this process, even a killed one
            shape = write(file, folder)
            return np.memmap(file, np.float16, 'r', file.tell() - 2 * math.prod(shape), shape)  # after the header
    fingerprints = [text[:16] for text in (images.pixels_fingerprint(), _backbone_fingerprint(model, images, args))]
    path = Path(args.save_root) / 'cache' / '.'.join([f'features_{images.name}', *fingerprints, 'npy'])
    try:
        return np.load(path, mmap_mode='r')
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError) as error:
        screen.warn(f'{path} is damaged ({error}): the features are computed again')
    whole_files.remove_superseded(path)
    whole_files.write_atomically(path, write_file, durable=True)
    return np.load(path, mmap_mode='r')


def _backbone_fingerprint(model, images, args):
    """SHA-256 of what the features depend on, beside the photos."""
    backbone = {name: value for name, value in model.state_dict().items() if not name.startswith(HEAD)}
    stages = repr([model.get_submodule(stage) for stage in model.stages])  # strides, too
    return combined(str(images.transform), args.precision, weights_sha256(backbone), stages)


@torch.inference_mode()
def extract(model, images, split, args, device):
    """Yields the features (B,M,D,h,w) float16 of every batch, in order, with a bar. Raises UserError."""
    loader = make_loader(images, args.batch_size, args.workers, device)
    for batch, *_ in screen.progress(loader, f'features of {split}', 'batch'):
        views = [batch, batch.flip(3)] if split == 'train' else [batch]
        with util.autocast(args.precision, device):
            features = torch.stack([model.extract_features(view).float() for view in views], dim=1)  # (B,M,D,h,w)
        features = features.half()
        if not features.isfinite().all():
            raise UserError(f'the backbone gives features on {split} that are beyond 65,504 or not numbers: leave '
                            '--freeze out')
        yield features.cpu().numpy()
