"""Networks made elsewhere: a head on a layer of any module, and CAM of classifiers that are already trained.

    model = wsol.from_module(network, layer='encoder.layer4', attribution_method='CALM_EM', num_classes=10)
    model = wsol.from_classifier('resnet50')            # torchvision's ImageNet weights, no training, plain CAM
"""
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext, suppress
from functools import partial

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from wsol.backbones import timm_networks, torchvision_networks
from wsol.contexts import evaluating, unwrapped
from wsol.errors import UserError, words_of
from wsol.heads import CAM
from wsol.networks import find_head
from wsol.weights.state_dicts import LOG

TOLERANCE = 1e-4  # relative: by how much the scores of CAM may differ from the classifier's
IMAGE_SIZE = 224  # the size of the image on which a network is tried, if the caller gives none
ENDS = ((None, lambda scores: scores), ('softmax', lambda scores: scores.softmax(1)),
        ('softmax', lambda scores: scores.log_softmax(1)), ('sigmoid', torch.sigmoid))  # what a classifier may end in


def tensors_in(output):
    """The tensors in a module's output: itself, or those in a tuple, list, dict, or object with fields."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, (Mapping, tuple, list)):  # Hugging Face's outputs are dicts
        values = output.values() if isinstance(output, Mapping) else output
        return [tensor for value in values for tensor in tensors_in(value)]
    return [value for value in getattr(output, '__dict__', {}).values() if isinstance(value, torch.Tensor)]


def last_map(output, channels=1):
    """The one map in a layer's output, as (B,D,h,w); Hugging Face's last_hidden_state if there are several. channels:
    the axis of D in the output, 1 or -1."""
    maps = list({id(tensor): tensor for tensor in tensors_in(output) if tensor.ndim == 4}.values())
    if len(maps) > 1 and getattr(output, 'last_hidden_state', None) is not None:
        maps = [output.last_hidden_state]
    if len(maps) != 1:
        kind = tuple(getattr(output, 'shape', ())) or f'a {type(output).__name__} with {len(maps)} maps'
        raise UserError(f'the output of the layer is no map (B,D,h,w) but {kind}; to_map= can make it one')
    return maps[0].movedim(channels, 1)


class Reached(Exception):
    """Ends a forward that has come far enough."""


class LayerOutput(nn.Module):
    """images -> (B,D,h,w): the output of a layer of a module, read by a hook. What follows the layer does not run.

    to_map: a function from the layer's output to the map. A layer that runs several times gives its last map: the first
    forward, in training and in evaluation, counts how often it runs. Parameters behind the layer get no gradient.
    """

    def __init__(self, module, layer, to_map=last_map):
        super().__init__()
        self.module, self.layer, self.to_map, self.runs = module, layer, to_map, {}

    def forward(self, images):
        kept = []

        def keep(_, __, output):  # a copy: the module may write into its output, as ReLU(inplace=True) does
            kept.append(self.to_map(output).clone())
            if len(kept) == self.runs.get(self.training):
                raise Reached
        with self.module.get_submodule(self.layer).register_forward_hook(keep), suppress(Reached):
            run_module(self.module, images)
        if not kept:
            raise UserError(f'the module does not use its layer {self.layer}: name another')
        self.runs.setdefault(self.training, len(kept))
        return kept[-1]


def run_module(module, images):
    """A module's output. Parts that torch.compile has made run uncompiled, since compiled code ignores hooks."""
    compiled = any('_orig_mod' in part._modules or part._compiled_call_impl for part in module.modules())
    with torch.compiler.set_stance('force_eager') if compiled else nullcontext():
        return module(images)


class PooledNorm(nn.Module):
    """(B,D,h,w) -> (B,D,h,w), whose average over the grid is the norm of the map's average (B,D).

    For networks that average, normalise, then classify. LayerNorm's mean and deviation are those of the averaged map,
    the same for all cells. The cells' contributions to a score then average to it, exactly.
    norm: LayerNorm over D, or BatchNorm in eval mode.
    """

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, features):
        norm, features = self.norm, features.to(torch.promote_types(features.dtype, torch.float32))
        mean = features.mean((2, 3))  # (B,D)
        shift, variance = ((norm.running_mean, norm.running_var) if hasattr(norm, 'running_var') else
                           (mean.mean(1, keepdim=True), mean.var(1, keepdim=True, correction=0)))
        scale = (variance + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
        scaled = (features - shift[..., None, None]) * scale[..., None, None]
        return scaled if norm.bias is None else scaled + norm.bias[:, None, None]


def from_module(module, layer, attribution_method='CALM_EM', num_classes=None, prior='relu', to_map=None,
                image_size=IMAGE_SIZE, scores=None):
    """A head on the output of a layer of any module, to be trained; or CAM of a classifier that is already trained.

    module: takes images (B,C,H,W), normalised as in its training; C is what the first convolution that runs takes. Its
    output may be of any kind. The network inside DataParallel or torch.compile is taken. Freeze parts of it by
    requires_grad=False: torch.no_grad inside the module may have no effect, since only a part of it runs.
    layer: the dotted name of a submodule. Its output is a map (B,D,h,w) or (B,h,w,D), a tuple, list or dict that holds
    one, or to_map makes a map of it, for example of tokens (B,N,D).
    attribution_method: the head, a key of HEADS.
    num_classes: the new head's. None, for 'CAM' only, takes the module's classifier: the module must then end in
    average pooling, LayerNorm or BatchNorm or neither, and one linear layer. It is in eval mode afterwards.
    image_size: the side of the noise image on which the layer is tried.
    scores: 'softmax' over the classes, or 'sigmoid' for several labels (default: what the module ends in, or softmax).
    A classifier of one logit becomes one of the two classes 0 and 1, no and yes.
    Returns an nn.Module as build_model does. Raises UserError.
    """
    module = unwrapped(module)
    layer = _find_layer(module, layer)
    part = dict(module.named_modules(remove_duplicate=False))[layer]
    if isinstance(part, torch.jit.ScriptModule) or type(part) is nn.Module:  # the second holds weights, and never runs
        raise UserError('programs of TorchScript, torch.export and torch.fx do not let their layers be read: give the '
                        'module that this one was made of')
    if any(weight.is_meta for weight in module.parameters()):
        raise UserError('the module is on the device "meta", which holds no weights: load them first')
    head = find_head(attribution_method, prior)
    if num_classes is None and attribution_method != 'CAM':
        raise UserError(f'{attribution_method} has to be trained: say num_classes=')
    images = noise_image(module, image_size, _channels(module, image_size))
    backbone, features = _find_map(module, layer, to_map, images)
    if num_classes is None:
        return cam_of_classifier(module, backbone, f'this module, up to {layer},', images, scores)
    model = head(nn.Sequential(OrderedDict(backbone=backbone)), features.shape[1], num_classes, prior)
    model.use_scores(scores or 'softmax')
    for convolution in (model.conv_last, *([model.attention[0]] if hasattr(model, 'attention') else [])):
        convolution.to(features.device, torch.promote_types(features.dtype, torch.float32))
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    return model


def _find_layer(module, layer):
    """The name of a layer in a module, whether or not the caller's name counts wrappers inside it. Raises UserError."""
    def plain(name):
        return '.'.join(part for part in name.split('.') if part not in ('_orig_mod', 'module'))
    names = [name for name, _ in module.named_modules(remove_duplicate=False)]
    same = [layer] if layer in names else [name for name in names if plain(name) == plain(layer)]
    if not same:
        near = [name for name in names if name.endswith(f'.{layer}')]
        raise UserError(f'layer="{layer}" is no submodule; ' + (f'there is {", ".join(near)}' if near else (
            f'the outermost ones are {", ".join(name for name, _ in module.named_children())}')))
    return same[-1]  # the innermost: a wrapper and what it wraps have the same plain name


@torch.no_grad()
def _find_map(module, layer, to_map, images):
    """(the module up to a layer, the features of the square `images`). Raises UserError."""
    backbone = LayerOutput(module, layer, to_map or last_map)
    with evaluating(backbone):  # not shapes_only: a foreign module may branch on values
        features = _try(backbone, images, f'this module, up to {layer},')
    if not isinstance(features, torch.Tensor) or features.ndim != 4:
        shape = tuple(getattr(features, 'shape', ())) or type(features).__name__
        raise UserError(f'to_map gives no map (B,D,h,w) but {shape}')
    if to_map is None and features.shape[1] == features.shape[2] != features.shape[3]:  # these are rows and columns
        backbone.to_map = partial(last_map, channels=-1)
        return backbone, features.movedim(-1, 1)
    return backbone, features


def noise_image(network, image_size, channels=3):
    """An image (1,C,S,S) of noise in -1..1, of the network's precision."""
    images = torch.rand(1, channels, image_size, image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return images.to(next((weight for weight in network.parameters() if weight.is_floating_point()), images))


def _channels(module, image_size):
    """How many channels the first convolution takes that runs; 3 if none runs."""
    ran = []

    def stop(layer, _):  # before it meets an image that it may not take
        if isinstance(layer, nn.Conv2d):
            ran.append(layer.in_channels)
            raise Reached
    convolutions = [layer.in_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    for channels in dict.fromkeys((3, *convolutions)):  # a mean to subtract, before it, may fit its channels alone
        with evaluating(module), torch.no_grad(), suppress(Exception), register_module_forward_pre_hook(stop):
            run_module(module, noise_image(module, image_size, channels))
        if ran:
            return ran[0]
    return 3


def _try(network, images, name):
    """The network's output. Raises UserError where it does not take these images, or gives NaN."""
    try:
        output = run_module(network, images)
    except UserError:
        raise
    except Exception as error:  # a foreign module may raise anything
        raise UserError(f'{name} does not take an image of {images.shape[2]} x {images.shape[3]} pixels and '
                        f'{images.shape[1]} channels ({type(error).__name__}: {words_of(error)}); from_module tries '
                        'another size by image_size=') from error
    if not all(tensor.isfinite().all() for tensor in tensors_in(output) if tensor.is_floating_point()):
        raise UserError(f'{name} gives scores that are not finite, NaN or infinite, for an image of noise: its weights '
                        'are damaged, or its training has diverged')
    return output


def from_classifier(architecture, source=True, scores=None):
    """CAM of a trained classifier, without training: its linear layer becomes conv_last, its strides stay.

    architecture: torchvision's name, or timm/NAME. source: True for ImageNet's weights, downloaded once, or a file with
    the state dict of a classifier of any number of classes. scores: as in from_module. CAM's scores are compared with
    the classifier's.
    Raises UserError for a network that does not end in average pooling and one linear layer (VGG, ViT).
    """
    is_timm = architecture.startswith(timm_networks.PREFIX)
    network, backbone = (timm_networks if is_timm else torchvision_networks).classifier(architecture, source)
    size = timm_networks.trained_size(network) if is_timm else IMAGE_SIZE
    return cam_of_classifier(network, backbone, architecture, noise_image(network, size), scores)


@torch.no_grad()
def cam_of_classifier(network, backbone, name, images, scores=None):
    """CAM of a network: its backbone, PooledNorm if it has such a norm, and its linear layer.

    Which layers these are is found by trying: for `images` (1,C,H,W), the linear layer must be given the mean of the
    map, normalised or not, and the scores must be what it gives, except for a softmax or sigmoid at the end.
    name: for the message. scores: as in from_module. Raises UserError.
    """
    fed = {}  # linear layers, and what they are given
    with ExitStack() as hooks:
        for layer in network.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                hooks.enter_context(layer.register_forward_hook(lambda layer, given, _: fed.update({layer: given[0]})))
        expected = [output.flatten() for output in tensors_in(_try(network.eval(), images, name))]
    features = _try(backbone.eval(), images, name)
    shape = features.shape[1:2]  # (D,)
    norms = [layer for layer in network.modules() if getattr(layer, 'normalized_shape', ()) == shape
             or (isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.num_features,) == shape)]
    for norm in (None, *reversed(norms)):
        stages = OrderedDict(backbone=backbone) | ({} if norm is None else {'pooled_norm': PooledNorm(norm)})
        pooled = nn.Sequential(stages)[1:](features).mean((2, 3), keepdim=True)
        heads = [head for layer, given in fed.items() if (head := _head(stages, pooled, layer, given, expected))]
        if not heads:
            continue
        model, end = heads[-1]
        if len(heads) > 1:
            LOG.warning(f'{name} has {len(heads)} classifiers: the last to run, of {model.conv_last.out_channels} '
                        'classes, is explained; for another one, let the module return its scores alone')
        if scores and end not in (None, scores):
            raise UserError(f'{name} ends in a {end}, so scores={scores} does not suit it')
        if scores or end:
            model.use_scores(scores or end)
        return model
    raise UserError(f'{name} does not end in average pooling and one linear layer, so its linear layer gives no map; '
                    'train a CAM or CALM head on it, or use gradient methods on a network that does')


def _head(stages, pooled, layer, given, expected):
    """(CAM with a linear layer, what the scores end in, of ENDS); None unless the layer is given the pooled map, and a
    classifier's outputs, `expected`, are its scores."""
    given = given.flatten(2).mean(2) if given.ndim == 4 else given
    if layer.weight[0].shape.numel() != pooled.shape[1] or not _equal(pooled.flatten(), given.flatten()):
        return None
    model = _linear_cam(nn.Sequential(stages), layer)
    logits = model.class_scores(model.head(pooled))[:, -len(layer.weight):]
    ends = [end for end, activate in ENDS if any(_equal(activate(logits)[0], output) for output in expected)]
    return (model, ends[0]) if ends else None


def _linear_cam(stages, layer):
    """CAM with the weights of a linear layer. One logit becomes the classes no and yes."""
    weight, outputs = layer.weight.flatten(1), len(layer.weight)
    bias = weight.new_zeros(outputs) if layer.bias is None else layer.bias
    if outputs == 1:
        weight, bias = torch.cat([-weight, weight]), torch.cat([-bias, bias])
    model = CAM(stages, weight.shape[1], len(weight)).eval()
    model.scores = 'one_logit' if outputs == 1 else 'softmax'
    model.conv_last.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
    model.conv_last.load_state_dict({'weight': weight[:, :, None, None], 'bias': bias})
    return model


def _equal(scores, expected):
    if scores.shape != expected.shape:
        return False
    tolerance = max(TOLERANCE, 2 * torch.finfo(expected.dtype).eps)  # the second is for half precision
    return bool((scores - expected).abs().max() <= tolerance * expected.abs().max())
