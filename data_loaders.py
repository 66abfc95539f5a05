"""The images of a data set's split, and their loaders: (images, labels, indices), batch by batch.

Transforms are as published (image_files). What is random hangs on a seed and the image, not on the loader's processes.
"""
import os
import signal

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from dataset.images import Images
from runtime import processes
from util import to_device


class Batches(Sampler):
    """The indices of whole batches in order, of which every process of the run has its own.

    Each batch holds the images that it holds where one process has them all: the network gives them the same figures.
    """

    def __init__(self, length, batch_size):
        self.batches = [range(start, min(start + batch_size, length)) for start in range(0, length, batch_size)]
        self.batches = self.batches[processes.rank()::processes.size()]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class SeededBatches(Sampler):
    """Shuffled batches of (index, seed) pairs that depend on the seed, the epoch and the step alone; of each batch, the
    share of this process.

    So a run is the same with any number of workers, and a resumed run goes on at any step as if uninterrupted. A
    process without a share has the batch's first image, to be given no weight: it must take part in the step.
    """

    def __init__(self, length, batch_size, seed):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.epoch, self.start = 0, 0  # where the next iteration begins

    def __len__(self):
        """The steps of a whole epoch."""
        return -(-self.length // self.batch_size)

    def counts(self, step):
        """The number of images in a step's batch: in this process's share of it, and in all."""
        total = min(self.batch_size, self.length - step * self.batch_size)
        return len(range(processes.rank(), total, processes.size())), total

    def __iter__(self):
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(self.length, generator=generator).tolist()
        seeds = torch.randint(2**62, (self.length,), generator=generator).tolist()
        for start in range(self.start * self.batch_size, self.length, self.batch_size):
            rows = slice(start, start + self.batch_size)
            batch = list(zip(order[rows], seeds[rows], strict=True))
            yield batch[processes.rank()::processes.size()] or batch[:1]


class Loader(DataLoader):
    """A loader whose batches arrive on the device; Images are normalised there."""

    def __init__(self, images, device, **options):
        super().__init__(images, **options)
        self.device = device

    def __iter__(self):
        for values, *more in super().__iter__():
            if isinstance(self.dataset, Images):  # before they are in the memory order of networks, which is slower
                values = values.to(self.device, non_blocking=values.is_pinned())
                values = self.dataset.transform.normalise(values)
            yield to_device(values, self.device), *more


def outlive_the_first_signal(_):
    """A loader process goes on after a first SIGTERM, and after SIGUSR1: a scheduler sends them to the whole process
    group, and the training needs its loaders until it has saved. It ends them itself, with a second one if need be."""
    def end_at_the_next(*_):
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGTERM, end_at_the_next)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def make_loader(images, batch_size, workers, device, sampler=None):
    """Batches (images (B,3,S,S) on the device, labels (B,), indices (B,)) of Images, in order unless a SeededBatches
    says otherwise; of several processes each has some.

    workers: loader processes, at most one per image.
    """
    workers = min(workers, len(images))
    # a generator of its own: an iterator draws a number when it starts, and none may come from the network's state
    return Loader(images, device=device, batch_sampler=sampler or Batches(len(images), batch_size), num_workers=workers,
                  pin_memory=device.type == 'cuda', persistent_workers=workers > 0 and sampler is not None,
                  generator=torch.Generator(), worker_init_fn=outlive_the_first_signal)


def in_order(loader, values):
    """The values of this process's images (n,...), in the order of its loader -> those of all images (N,...)."""
    rows = [row for batch in loader.batch_sampler for row in batch]
    order = np.concatenate([np.array(own, np.int64) for own in processes.gather(rows)])
    return np.concatenate(processes.gather(values))[order.argsort()]
