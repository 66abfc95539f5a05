"""Depthwise convolutions that compute in float32 while the rest of a network trains in bfloat16 on a CPU.

torch (2.13, with oneDNN) computes their gradients slowly in bfloat16: with stride 2 or a 5x5 kernel they take several
times as long as in float32. docs/performance.md has the gain in a whole training step.
"""
from types import MethodType

import torch
from torch import nn


def is_depthwise(layer):
    """Whether a layer is a convolution with one group per channel."""
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1


def keep_depthwise_in_float32(model):
    """Change a network in place, so that its depthwise convolutions compute in float32 under autocast.

    Their outputs have the precision of their inputs, so the other layers see no difference. Without autocast nothing
    changes. Names and weights stay. Returns the number of these convolutions.
    """
    layers = [layer for layer in model.modules() if is_depthwise(layer)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return len(layers)


def _forward(self, features):
    with torch.autocast(features.device.type, enabled=False):
        return type(self).forward(self, features.float()).to(features.dtype)
