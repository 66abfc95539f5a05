"""Contexts in which a network runs: in eval mode, for shapes alone, without autocast."""
import logging
from contextlib import contextmanager

import torch


@contextmanager
def evaluating(model):
    """Put a model in eval mode, and give each of its modules its earlier mode back afterwards."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


@contextmanager
def shapes_only():
    """Tensors have shapes but no values: no arithmetic and next to no memory, on whichever device the network is."""
    from torch._subclasses import FakeTensorMode
    log = logging.getLogger('torch._subclasses.fake_tensor')
    before, log.disabled = log.disabled, True  # it would print a traceback for every size that does not fit
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            yield
    finally:
        log.disabled = before


def full_precision(tensor):
    """Autocast, which is meant for the backbone, is off: heads and sums of maps are computed in the tensor's type."""
    return torch.autocast(tensor.device.type, enabled=False)
