"""BatchNorm folded into the convolution before it: the same network for evaluation, with fewer passes over its maps.

In eval mode BatchNorm is a factor and a summand for each channel, which a convolution can take into its own weights
(Jacob et al., CVPR 2018, section 3.2). Which convolution a BatchNorm follows is found by running the network.
"""
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from wsol.contexts import evaluating, shapes_only

TOLERANCE = 1e-5  # of the largest value: by how much the folded network's features may differ


def fold_batchnorm(model, image_size):
    """Fold a network's BatchNorms, in place and for evaluation alone. Returns how many, 0 where its features would
    change: it is left as it was then. model: of build_model, in eval mode. image_size: of its images."""
    pairs = _pairs(model, image_size)
    if not pairs:
        return 0
    before, undo = _some_features(model, image_size), []
    for convolution, name in pairs:
        norm = model.get_submodule(name)
        undo.append((convolution, convolution.weight, convolution.bias, name, norm))
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        _put(model, name, nn.Identity())
    # what the hooks cannot see, as a map that is used before its BatchNorm too, shows in the features
    if (_some_features(model, image_size) - before).abs().max() <= TOLERANCE * before.abs().max():
        return len(pairs)
    for convolution, weight, bias, name, norm in undo:
        convolution.weight, convolution.bias = weight, bias
        _put(model, name, norm)
    return 0


def _put(model, name, module):
    """Put a module in the place of the submodule of that name."""
    parent, _, leaf = name.rpartition('.')
    setattr(model.get_submodule(parent), leaf, module)


@torch.no_grad()
def _some_features(model, image_size):
    """The features of an image of noise, computed in float32 (on recent GPUs a convolution would round to TF32)."""
    noise = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with torch.backends.cudnn.flags(allow_tf32=False):
        return model.extract_features(noise.to(next(model.parameters())))


def _pairs(model, image_size):
    """[(convolution, name of a BatchNorm)] of those where the one's output is the other's input, each running once."""
    made, pairs, runs = {}, [], {}

    def note(module, inputs, output):
        runs[module] = runs.get(module, 0) + 1
        if type(module) is nn.Conv2d:
            made[id(output)] = module, output  # which stays alive, so that its id is no other's
        elif id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], module))
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
