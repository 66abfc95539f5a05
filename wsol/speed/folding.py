"""Fold BatchNorm into the convolution before it: the same network for evaluation, with fewer passes over its maps.

In eval mode BatchNorm multiplies each channel by a number and adds another. The weights and biases of a convolution can
include both (Jacob et al., CVPR 2018, section 3.2). Hooks show which convolution a BatchNorm follows.
"""
from contextlib import ExitStack
from functools import partial

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

TOLERANCE = 1e-5  # relative to the largest value: by how much the folded network's features may differ


def fold_batchnorm(model, image_size):
    """Fold a network's BatchNorms, in place, for evaluation only. Returns how many were folded.

    model: of build_model, in eval mode. image_size: side of its images. If the features would change, none is folded.
    """
    pairs, before = _pairs(model, image_size)
    undo = []
    for convolution, name in pairs:
        norm = model.get_submodule(name)
        undo.append((convolution, convolution.weight, convolution.bias, name, norm))
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        _replace(model, name, nn.Identity())
    # hooks do not see everything, for example a map that is also used before its BatchNorm; then the features change
    if (_some_features(model, image_size) - before).abs().max() <= TOLERANCE * before.abs().max():
        return len(pairs)
    for convolution, weight, bias, name, norm in undo:
        convolution.weight, convolution.bias = weight, bias
        _replace(model, name, norm)
    return 0


def _replace(model, name, module):
    """Put a module in the place of the submodule `name`."""
    parent, _, leaf = name.rpartition('.')
    setattr(model.get_submodule(parent), leaf, module)


@torch.no_grad()
def _some_features(model, image_size):
    """The features of an image of noise, in float32 (on recent GPUs a convolution would round to TF32)."""
    noise = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with torch.backends.cudnn.flags(allow_tf32=False):
        return model.extract_features(noise.to(next(model.parameters())))


def _pairs(model, image_size):
    """[(convolution, name of a BatchNorm)] where the one's output is the other's input, and each runs once; and the
    features of the forward that has shown it."""
    outputs, pairs, runs = {}, [], {}

    def note(name, module, inputs, output):
        runs[name] = runs.get(name, 0) + 1
        if type(module) is nn.Conv2d:  # kept alive, so that no other tensor gets its id
            outputs[id(output)] = name, output, output._version
        elif id(inputs[0]) in outputs:
            convolution, _, version = outputs[id(inputs[0])]
            if inputs[0]._version == version:  # nothing has written into it
                pairs.append((convolution, name))

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if type(module) is nn.Conv2d or (type(module) is nn.BatchNorm2d and module.track_running_stats):
                hooks.enter_context(module.register_forward_hook(partial(note, name)))
        features = _some_features(model, image_size)
    return [(model.get_submodule(convolution), norm) for convolution, norm in pairs
            if runs[convolution] == runs[norm] == 1], features
