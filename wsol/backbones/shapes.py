"""Ask a network for the shapes it gives: no arithmetic, next to no memory, on whichever device it is."""
import logging
from contextlib import contextmanager

import torch
from torch._subclasses import FakeTensorMode


@contextmanager
def shapes_only():
    """A context in which tensors have shapes and no values; the networks' own weights are taken as they are."""
    log = logging.getLogger('torch._subclasses.fake_tensor')
    before, log.disabled = log.disabled, True  # it would print a traceback for every size that does not fit
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            yield
    finally:
        log.disabled = before
