"""The loaders of a data set's images: (images, labels, indices), batch by batch, in order or shuffled.

Random crops and orders depend only on a seed and the image, not on the number of loader processes.
"""
import os
import signal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dataset.images import Images
from runtime import processes
from util import to_device
from wsol.errors import UserError


def batches_in_order(length, batch_size):
    """[the indices of a batch]; several processes take turns.

    A batch holds the same images whatever the number of processes, so that the network gives them the same values.
    """
    batches = [range(start, min(start + batch_size, length)) for start in range(0, length, batch_size)]
    return batches[processes.rank()::processes.size()]


class SeededBatches(Sampler):
    """Shuffled batches of (index, seed) pairs that depend only on the seed, the epoch and the step.

    So a run is the same with any number of workers. A run can resume at any step, as if it had not stopped. Several
    processes share each batch. A process without a share gets the batch's first image, to which the training gives the
    weight 0, because every process must take part in the step.

    least: the fewest images that the network trains on in a process. If the last batch gives a process fewer, it joins
    the batch before. Raises UserError if all batches are so small.
    """

    def __init__(self, length, batch_size, seed, least=1):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.epoch, self.start = 0, 0  # where the next iteration begins
        together = 1 if least == 1 else least * processes.size()  # the fewest images of a batch
        if min(length, batch_size) < together:
            raise UserError('BatchNorm after pooling to one cell trains on the statistics of a batch, so this network '
                            f'needs {together} images at a step ({least} in each process); --batch_size={batch_size} '
                            f'and {length} training images give fewer')
        self.bounds = [*range(0, length, batch_size), length]  # where batches begin and end in the order of an epoch
        if length - self.bounds[-2] < together:
            del self.bounds[-2]

    def __len__(self):
        """The steps of a whole epoch."""
        return len(self.bounds) - 1

    def counts(self, step):
        """The number of images in a step's batch: in this process's share, and in all."""
        total = self.bounds[step + 1] - self.bounds[step]
        return len(range(processes.rank(), total, processes.size())), total

    def __iter__(self):
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(self.length, generator=generator).tolist()
        seeds = torch.randint(2**62, (self.length,), generator=generator).tolist()
        for step in range(self.start, len(self)):
            rows = slice(self.bounds[step], self.bounds[step + 1])
            batch = list(zip(order[rows], seeds[rows], strict=True))
            yield batch[processes.rank()::processes.size()] or batch[:1]


class Bytes(Dataset):
    """The Dataset that the workers read: images in bytes, not normalised."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, key):
        return self.images.read(key)


class Loader(DataLoader):
    """A loader whose batches arrive on the device. Images travel there in bytes and are normalised there."""

    def __init__(self, images, device, **options):
        super().__init__(Bytes(images) if isinstance(images, Images) else images, **options)
        self.images, self.device = images, device

    def __iter__(self):
        for values, *more in super().__iter__():
            if isinstance(self.dataset, Bytes):  # normalise before to_device() changes the memory order: this is faster
                values = values.to(self.device, non_blocking=values.is_pinned())
                values = self.images.transform.normalise(values)
            yield to_device(values, self.device), *more


def outlive_the_first_signal(_):
    """Let a loader process go on after a first SIGTERM, and after SIGUSR1.

    A scheduler sends them to the whole process group, and the training needs its loaders until it has saved. It then
    ends them itself, if necessary by a second SIGTERM.
    """
    def end_at_the_next(*_):
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGTERM, end_at_the_next)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def make_loader(images, batch_size, workers, device, sampler=None):
    """Batches (images (B,3,S,S) on the device, labels (B,), indices (B,)), in order unless a SeededBatches is given.

    images: Images, or a Dataset of tensors. workers: loader processes, at most one per image. Several processes of a
    run share the batches.
    """
    workers = min(workers, len(images))
    # a new iterator draws a number: from this generator, not from the global state, which the network uses
    return Loader(images, device, batch_sampler=sampler or batches_in_order(len(images), batch_size),
                  num_workers=workers, worker_init_fn=outlive_the_first_signal, generator=torch.Generator(),
                  persistent_workers=workers > 0 and sampler is not None, pin_memory=device.type == 'cuda')


def in_order(batches, values):
    """Gather values from all processes, and sort them by image. batches: this process's batches of indices. values:
    (n,...), in the order of these batches. Returns (N,...)."""
    rows = [row for batch in batches for row in batch]
    order = np.concatenate([np.array(share, np.int64) for share in processes.gather(rows)])
    return np.concatenate(processes.gather(values))[order.argsort()]
