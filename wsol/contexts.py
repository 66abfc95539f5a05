"""How a network runs: in eval mode, for shapes only, without autocast, without its wrappers."""
import copy
import logging
from contextlib import contextmanager, nullcontext
from types import MethodType

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode


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


def shapes_of(model, forward, *shape):
    """What forward(twin, images of zeros of this shape) returns: tensors with shapes but no values, on any device.

    Hardly any memory is used, unless the values decide what a network computes: then it does compute. The twin is a
    copy that shares the model's parameters, so that nothing of the model changes (some networks keep what they
    compute).
    """
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
    log = logging.getLogger('torch._subclasses.fake_tensor')
    before, log.disabled = log.disabled, True  # it would print a traceback for each image size that fails
    try:
        for mode in (FakeTensorMode(allow_non_fake_inputs=True), nullcontext()):
            twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
            try:
                with mode, torch.no_grad():
                    return forward(twin, torch.zeros(shape, device=next(model.parameters()).device))
            except DataDependentOutputException:
                continue
    finally:
        log.disabled = before


class _Zeros(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function.__name__.endswith(('uniform_', 'normal_')):
            weight = arguments[0] if arguments else options['tensor']
            weight.data.zero_()
            return weight
        return function(*arguments, **options)


def initial_weights(drawn):
    """A context in which layers are made. drawn=False: their weights are zeros, not random numbers, for a network that
    is loaded next, since to draw them takes longer than to load them."""
    return nullcontext() if drawn else _Zeros()


def full_precision(tensor):
    """Autocast is off: it is meant for the backbone. Heads and sums of maps are computed in the tensor's type."""
    return torch.autocast(tensor.device.type, enabled=False)


def keep_depthwise_in_float32(model):
    """Change a network in place, so that its depthwise convolutions, with a group for each channel, compute in float32
    under autocast; their outputs keep the precision of their inputs. Returns the number of these convolutions.

    torch (2.13, with oneDNN) computes their gradients in bfloat16 on a CPU several times slower than in float32.
    """
    def forward(layer, features):
        with full_precision(features):
            return type(layer).forward(layer, features.float()).to(features.dtype)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)
              and layer.groups == layer.in_channels > 1]
    for layer in layers:
        layer.forward = MethodType(forward, layer)
    return len(layers)


def unwrapped(module):
    """The network inside DataParallel, torch.compile and an average of weights; any other module as it is."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
        return unwrapped(module.module)
    return unwrapped(module._orig_mod) if hasattr(module, '_orig_mod') else module
