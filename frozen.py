"""--freeze: every image goes through the backbone once, and the head trains on what it left. Minutes on a laptop.

The features of an image and of its mirror image are kept, in half precision, in a file that goes when the training
ends. So there is no augmentation but the mirroring, and no BatchNorm is touched.
"""
import copy
import tempfile

import numpy as np
import torch
from torch.utils.data import Dataset

import processes
import util
from data_loaders import make_loader
from util import UserError
from wsol.networks import find_architecture


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
    trained = ('conv_last.', 'attention.')
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    return head


def extract_all(model, images, folder, args, device):
    """{split: FeatureSet} of what a training looks at."""
    return {split: extract(model, images[split], split, folder, split == 'train', args.batch_size, args.workers, device,
                           args.precision) for split in ('train', 'val')}


@torch.inference_mode()
def extract(model, images, split, folder, mirrored, batch_size, workers, device, precision):
    """The FeatureSet of a split. folder: where its file is, which has no name. mirrored: those of the mirror images
    too."""
    model.eval()
    features, loader = None, make_loader(images, batch_size, workers, device)
    for batch, _, rows in util.progress(loader, f'features of {split}', 'batch'):
        batch = util.to_device(batch, device)
        with util.autocast(precision, device):
            found = torch.stack([model.extract_features(own).float() for own in (
                [batch, batch.flip(3)] if mirrored else [batch])], dim=1)  # (B,M,D,h,w)
        if features is None:
            features = _new_file(folder, (len(images), *found.shape[1:]))
            util.say(f'features of {len(images)} {split} images: {features.nbytes / 1e6:,.0f} MB in {folder}, for the '
                     'time of the training')
        kept = found.half()
        if not kept.isfinite().all():
            raise UserError(f'the backbone gives features beyond 65,504 or no numbers on {split}: leave --freeze out')
        features[rows.numpy()] = kept.cpu().numpy()
    return FeatureSet(features, images)


def _new_file(folder, shape):
    """An array in a file without a name, whose space is free again when this process ends, however it does."""
    util.check_writable(folder, 2 * int(np.prod(shape)))
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return np.memmap(file, np.float16, 'w+', shape=shape)
    except OSError as error:
        raise UserError(f'cannot write the features in {folder}: {error.strerror}') from error
