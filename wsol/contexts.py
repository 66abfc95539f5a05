"""How a network runs: in eval mode, for shapes only, without autocast, without its wrappers."""
import logging
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model):
    """A model is in eval mode; afterwards each of its modules gets its earlier mode back."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():  # parents first; train() may do more than set a flag, as fx's does
            if module.training != training:
                module.train(training)


@contextmanager
def shapes_only():
    """Tensors have shapes but no values, on any device: nothing is computed, and hardly any memory is used."""
    from torch._subclasses import FakeTensorMode
    log = logging.getLogger('torch._subclasses.fake_tensor')
    before, log.disabled = log.disabled, True  # it would print a traceback for each image size that fails
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            yield
    finally:
        log.disabled = before


def full_precision(tensor):
    """Autocast is off: it is meant for the backbone. Heads and sums of maps are computed in the tensor's type."""
    return torch.autocast(tensor.device.type, enabled=False)


def unwrapped(module):
    """The network inside DataParallel, DistributedDataParallel and torch.compile; any other module as it is."""
    while True:
        inner = getattr(module, '_orig_mod', module)
        if isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = inner.module
        if inner is module:
            return module
        module = inner
