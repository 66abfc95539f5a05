"""--freeze: every image goes through the backbone once, and the head trains on what it left. Minutes on a laptop.

The features of an image and of its mirror image are kept, in half precision, in a file that goes when the training
ends, or with --cache stays for the next one. There is no augmentation but the mirroring; no BatchNorm is touched.
"""
import copy
import hashlib
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

import util
from data_loaders import make_loader
from runtime import processes, screen, whole_files
from wsol.errors import UserError
from wsol.networks import find_architecture

HEAD = ('conv_last.', 'attention.')  # what is trained, of the state dict's names


class FeatureSet(Dataset):
    """The features of a split. Item i -> (features (D,h,w) float32, label, i); item (i, seed) mirrors by that seed.

    features: (N,M,D,h,w) float16, M = 1 or, with the mirror images, 2.
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
                        f'({", ".join(added)}), which would stay random; choose an architecture without, or leave '
                        '--freeze out')


def head_of(model):
    """The network's own head as a model of features: the same parameters, of which those of the backbone are frozen."""
    head = copy.copy(model)  # shares its modules
    head.stages = ()         # so that its features are what it is given
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(HEAD))
    return head


def extract_all(model, images, folder, args, device):
    """{split: FeatureSet} of what a training looks at.

    The features are in a file without a name in folder, or with --cache in one that stays below save_root/cache/, for
    every training on the same images and backbone.
    """
    model.eval()
    return {split: FeatureSet(_features(model, images[split], split, folder, args, device), images[split])
            for split in ('train', 'val')}


def _features(model, images, split, folder, args, device):
    """(N,M,D,h,w) float16 of a split, computed unless they are kept: of the training images the mirror images' too."""
    def write(make):
        features = None
        for rows, found in extract(model, images, split, args, device):
            if features is None:
                features = make((len(images), *found.shape[1:]))
                screen.say(f'features of {len(images)} {split} images: {features.nbytes / 1e6:,.0f} MB in {folder}'
                         + ('' if args.cache else ', for the time of the training'))
            features[rows] = found
        return features

    if not args.cache:
        return write(partial(_new_file, folder, None))
    folder = Path(args.save_root) / 'cache'
    path = folder / f'features_{split}_{args.crop_size}.{_fingerprint(model, images, args)}.npy'
    try:
        return np.load(path, mmap_mode='r')
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError) as error:
        screen.warn(f'{path} is damaged ({error}): the features are computed again')
    whole_files.make_folder(folder)
    whole_files.write_atomically(path, lambda unfinished: write(partial(_new_file, folder, unfinished)), durable=True)
    return np.load(path, mmap_mode='r')


def _fingerprint(model, images, args):
    """Of all that the features hang on, 16 hexadecimal digits: other features have another file."""
    which = images.fingerprint(with_times=True)
    digest = hashlib.sha256(f'{which},{images.transform},{args.precision}'.encode())
    for name, value in model.state_dict().items():
        if not name.startswith(HEAD):
            digest.update(f'{name},{tuple(value.shape)}'.encode() + value.cpu().numpy().tobytes())
    digest.update(repr([model.get_submodule(stage) for stage in model.stages]).encode())  # strides, too
    return digest.hexdigest()[:16]


@torch.inference_mode()
def extract(model, images, split, args, device):
    """The rows (B,) and features (B,M,D,h,w) float16 of batch after batch, with a bar. Raises UserError."""
    loader = make_loader(images, args.batch_size, args.workers, device)
    for batch, _, rows in screen.progress(loader, f'features of {split}', 'batch'):
        batch = util.to_device(batch, device)
        with util.autocast(args.precision, device):
            found = torch.stack([model.extract_features(own).float() for own in (
                [batch, batch.flip(3)] if split == 'train' else [batch])], dim=1)  # (B,M,D,h,w)
        kept = found.half()
        if not kept.isfinite().all():
            raise UserError(f'the backbone gives features beyond 65,504 or no numbers on {split}: leave --freeze out')
        yield rows.numpy(), kept.cpu().numpy()


def _new_file(folder, path, shape):
    """An array in a file; where path is None it has no name, and its space is free again when this process ends,
    however it does."""
    size = 2 * int(np.prod(shape))
    try:
        if path is None:
            with tempfile.TemporaryFile(dir=folder) as file:
                whole_files.reserve(file, size)
                return np.memmap(file, np.float16, 'w+', shape=shape)
        array = np.lib.format.open_memmap(path, 'w+', np.float16, shape)
        with open(path, 'r+b') as file:
            whole_files.reserve(file, path.stat().st_size)
        return array
    except OSError as error:
        raise UserError(f'cannot write {size / 1e6:,.0f} MB of features in {folder}: {error.strerror}') from error
