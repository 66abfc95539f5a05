"""Fold BatchNorm into the convolution before it: the same network for evaluation, with fewer passes over its maps.

In eval mode BatchNorm multiplies each channel by a number and adds another. The weights and biases of a convolution can
include both (Jacob et al., CVPR 2018, section 3.2). Hooks show which convolution a BatchNorm follows.
"""
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from wsol.contexts import evaluating, shapes_only

TOLERANCE = 1e-5  # relative to the largest value: by how much the folded network's features may differ


def fold_batchnorm(model, image_size):
    """Fold a network's BatchNorms, in place, for evaluation only. Returns how many were folded.

    model: of build_model, in eval mode. image_size: side of its images. If the features would change, none is folded.
    """
    pairs = _pairs(model, image_size)
    if not pairs:
        return 0
    before, undo = _some_features(model, image_size), []
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
    """[(convolution, name of a BatchNorm)] where the one's output is the other's input, and each runs once."""
    outputs, pairs, runs = {}, [], {}

    def note(module, inputs, output):
        runs[module] = runs.get(module, 0) + 1
        if type(module) is nn.Conv2d:
            outputs[id(output)] = module, output  # kept alive, so that no other tensor gets its id
        elif id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], module))
    names = {module: name for name, module in model.named_modules()
             if type(module) is nn.Conv2d or (type(module) is nn.BatchNorm2d and module.track_running_stats)}
    hooks = [module.register_forward_hook(note) for module in names]
    try:
        with shapes_only(), evaluating(model):
            model.extract_features(torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return [(convolution, names[norm]) for convolution, norm in pairs if runs[convolution] == runs[norm] == 1]
