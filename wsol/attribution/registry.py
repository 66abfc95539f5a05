"""What an attribution method is (PROCESSES, the registry) and what it is asked (Query).

Letters: B images, K asked classes, C classes, h x w the grid.
"""
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from wsol.contexts import full_precision
from wsol.errors import UserError
from wsol.heads import CAM

PROCESSES = {}
GPU_SHARE = 0.25  # of a GPU's free memory: what the versions of an image that go through the network together may take


@dataclass(frozen=True)
class Process:
    """An attribution method: what computes it and which heads define it.

    compute(query) -> (B,K,h,w); where not per_class, (B,h,w), the same map for every class.
    """
    compute: Callable
    head: type = CAM           # CAM: every head has it; CALM: only those with a prior
    per_class: bool = True
    one_forward: bool = False  # read off one forward, whatever the classes: no gradient, no second forward


def register(name, head=CAM, per_class=True, one_forward=False):
    """Make a function the attribution method `name`."""
    def enter(compute):
        PROCESSES[name] = Process(compute, head, per_class, one_forward)
        return compute
    return enter


@dataclass(frozen=True)
class SamplingSettings:
    """How many samples the gradient methods draw, and how far apart; defaults as published."""
    smooth_grad_nr_iter: int = 50       # noisy copies
    smooth_grad_sigma: float = 4.0      # the noise's deviation is the image's range divided by this
    integrated_grad_nr_iter: int = 50   # points on the path


@dataclass
class Query:
    """What an attribution method is asked."""
    model: nn.Module
    images: torch.Tensor                    # (B,3,H,W)
    classes: torch.Tensor | None            # (B,K) int64; None: all
    seeds: torch.Tensor | list              # (B,) int64, one per image, for methods that draw at random
    superclasses: torch.Tensor | None       # (C,C) bool: row c holds the classes of c's superclass
    settings: SamplingSettings
    contrast: torch.Tensor | None = None    # (B,K) int64: explain the scores of classes minus those of these

    @cached_property
    def activations(self):
        """The one forward that all activation methods share."""
        with torch.no_grad():
            return self.model.activations(self.images)

    @property
    def asked(self):
        """(B,K): the asked classes, written out."""
        if self.classes is not None:
            return self.classes
        count = self.model.conv_last.out_channels
        return torch.arange(count, device=self.images.device).expand(len(self.images), -1)

    def explained(self, scores):
        """The scores that are explained: class scores (N,C) of N versions of the images, B or of one image -> (N,K)."""
        def of(classes):  # a copy: autograd keeps no tensors of inference mode
            return scores.gather(1, classes.expand(len(scores), -1).clone())
        return of(self.asked) if self.contrast is None else of(self.asked) - of(self.contrast)

    def single(self, index):
        """The same question about one image."""
        return replace(self, images=self.images[index:index + 1], classes=self.asked[index:index + 1],
                       seeds=self.seeds.tolist()[index:index + 1],
                       contrast=None if self.contrast is None else self.contrast[index:index + 1])

    def rows(self, maps):
        """The maps of the asked classes: (B,C,h,w) -> (B,K,h,w)."""
        if self.classes is None:
            return maps
        return maps.gather(1, self.classes[..., None, None].expand(-1, -1, *maps.shape[2:]))

    def superclass_sums(self, maps):
        """The maps summed over the superclass of each asked class: (B,C,h,w) -> (B,K,h,w)."""
        if self.superclasses is None:
            raise UserError('superclass maps need superclasses: --superclass_file, or superclasses= in a call')
        members = self.superclasses.to(maps)[self.asked]  # (B,K,C)
        with full_precision(maps):
            return torch.einsum('bkc,bchw->bkhw', members, maps)

    def superclass_sizes(self):
        """(B,K,1,1): how many classes the superclass of each asked class has."""
        return self.superclasses.sum(1).to(self.images)[self.asked][..., None, None]


def image_by_image(function):
    """Make a method of one image (query, i) -> (K,h,w) a method of a batch: memory does not grow with it."""
    def batch(query):
        return torch.stack([function(query.single(index)) for index in range(len(query.images))])
    batch.__doc__ = function.__doc__
    return batch


def versions_at_a_time(query, usual, numbers_kept):
    """How many versions of an image (noisy copies, masked ones) go through the network together; no map depends on it.

    usual: on a CPU, which hardly gains by more. On CUDA as many as fit into GPU_SHARE of what is free, between usual
    and 16 times as many, and a power of two: cuDNN tries its algorithms anew for each size. numbers_kept: for each
    pixel of a version, beside the maps of the asked classes.
    """
    images = query.images
    if images.device.type != 'cuda':
        return usual
    unused = torch.cuda.memory_reserved(images.device) - torch.cuda.memory_allocated(images.device)  # torch's reserve
    free = torch.cuda.mem_get_info(images.device)[0] + unused
    pixels = images.shape[2] * images.shape[3]
    fitting = int(GPU_SHARE * free / (pixels * (numbers_kept + query.asked.shape[1]) * images.element_size()))
    return min(max(usual, 1 << fitting.bit_length() >> 1), 16 * usual)


def check_process(name, head):
    """Raise UserError unless the attribution method `name` is defined for a head (a class, of HEADS)."""
    if name not in PROCESSES:
        raise UserError(f'no attribution method "{name}"; there are {", ".join(PROCESSES)}')
    if not issubclass(head, PROCESSES[name].head):
        defined = ', '.join(key for key, value in PROCESSES.items() if issubclass(head, value.head))
        raise UserError(f'{head.__name__} does not define {name}, which needs p(z|x); it defines {defined}')
