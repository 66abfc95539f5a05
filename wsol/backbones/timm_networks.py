"""timm's networks as backbones, under the name timm/NAME: convolutional networks and transformers.

Source: timm (Wightman, github.com/huggingface/pytorch-image-models), an optional dependency: pip install timm.
Convolutional networks get the published strides if these can be changed: 14x14 maps of a 224x224 image, or 28x28.
Networks that end in channels-last maps (Swin) or in tokens (ViT, DINOv2, Hiera) are not changed; they take the image
sizes that timm allows. timm's forward_intermediates makes the map of tokens.
"""
from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from wsol.backbones.torchvision_networks import not_loaded
from wsol.contexts import initial_weights, shapes_of
from wsol.errors import UserError
from wsol.weights.fitting import load_backbone, load_classifier
from wsol.weights.state_dicts import read_weights

PREFIX = 'timm/'
SIZE = 224        # the image size for which strides are chosen
STRIDE = 16       # image pixels per cell of the published networks' maps; 8 with the large map
TOKENS = {'tokens': True, 'plain tokens': False}  # layout -> whether the network's last norm belongs to the map
ANY_SIZE = ({'dynamic_img_size': True}, {'strict_img_size': False}, {})  # options by which transformers take any size


def _timm():
    try:
        import timm
    except ImportError as error:
        raise UserError('the architectures timm/... need the package timm: pip install timm') from error
    return timm


def find_settings(name):
    """timm's record of the network timm/NAME and of its weights, as a dict. Raises UserError for an unknown one."""
    timm, short = _timm(), name.removeprefix(PREFIX)
    if not timm.is_model(short):
        near = ', '.join(timm.list_models(f'*{short[:8]}*')[:5])
        raise UserError(f'timm {timm.__version__} has no network "{short}"' + (f'; it has {near}' if near else ''))
    try:
        settings = timm.get_pretrained_cfg(short)
    except RuntimeError as error:  # is_model does not check the tag of the weights
        network, _, tag = short.partition('.')
        known = ', '.join(full.partition('.')[2] for full in timm.list_pretrained(f'{network}.*'))
        raise UserError(f'timm {timm.__version__} has no weights "{tag}" of the network {network}; '
                        + (f'it has {known}' if known else f'say {PREFIX}{network}')) from error
    assert settings is not None  # timm has them for each of its networks
    return settings.to_dict()


def data_config(network):
    """timm's data config of one of its networks, given as a module or by its name timm/NAME. Raises UserError."""
    settings = find_settings(network) if isinstance(network, str) else network.pretrained_cfg
    return _timm().data.resolve_data_config(pretrained_cfg=settings)


class LastMap(nn.Module):
    """(B,3,H,W) -> (B,D,h,w): a timm network up to its last map or its grid of tokens. layout: from _layout."""

    def __init__(self, network, layout):
        super().__init__()
        self.network, self.layout = network, layout

    def forward(self, images):
        if self.layout in TOKENS:  # the grid of tokens as a map, without class and register tokens
            norm = TOKENS[self.layout]
            return self.network.forward_intermediates(images, indices=1, norm=norm, intermediates_only=True)[0]
        features = self.network.forward_features(images)
        return features.movedim(-1, 1) if self.layout == 'NHWC' else features


def timm_backbone(name, source, large_feature_map=False):
    """(nn.Sequential with the one stage `backbone`, number of features). source: of load_backbone."""
    network = _create(name.removeprefix(PREFIX), source is True, num_classes=0)
    if source not in (None, True):
        load_backbone(network, read_weights(source), network.pretrained_cfg.get('classifier') or ())
    layout, num_features = _layout(network, name)
    stride = STRIDE // 2 if large_feature_map else STRIDE
    has_stride = layout == 'NCHW' and set_output_stride(network, stride)
    if large_feature_map and not has_stride:
        raise UserError(f'large_feature_map=True does not suit {name}: its map cannot be made {SIZE // stride} cells '
                        'wide by changing strides')
    return nn.Sequential(OrderedDict(backbone=LastMap(network, layout))), num_features


def _create(short, pretrained, **classes):
    """The network, for images of any size where possible."""
    for options in ANY_SIZE:
        try:
            return _timm().create_model(short, pretrained=pretrained, **classes, **options)
        except TypeError:  # the network has no such option
            continue
        except (OSError, RuntimeError) as error:  # the hub's errors are OSErrors
            if not pretrained:
                raise
            raise not_loaded(f'{PREFIX}{short}', error) from error
    raise UserError(f'timm cannot make {short}')


def classifier(name, source):
    """The whole classifier timm/NAME and its backbone, a LastMap. source: True, or a file with its state dict."""
    last = find_settings(name).get('classifier') or 'head'
    if not isinstance(last, str) and len(last) > 1:  # for distillation
        raise UserError(f'{name} does not end in average pooling and one linear layer, but in {" and ".join(last)}; '
                        'train a CAM or CALM head on it')
    with initial_weights(drawn=source is True):
        network = _create(name.removeprefix(PREFIX), source is True)
    if source is not True:
        slot = last if isinstance(last, str) else last[0]
        settings = network.pretrained_cfg
        load_classifier(network, read_weights(source), slot, slot, (settings['mean'], settings['std']))
    return network, LastMap(network, _layout(network, name)[0])


def trained_size(network):
    """The side of the images on which a network of timm was trained; some networks take no other size."""
    return network.pretrained_cfg.get('input_size', (3, SIZE, SIZE))[-1]


def _layout(network, name):
    """(the layout of a network's last features: 'NCHW', 'NHWC' or a key of TOKENS; their D). Raises UserError."""
    size = trained_size(network)
    features = shapes_of(network, lambda twin, images: twin.eval().forward_features(images), 1, 3, size, size)
    if isinstance(features, torch.Tensor) and features.ndim == 4:
        is_nhwc = features.shape[-1] == network.num_features != features.shape[1]
        return ('NHWC', features.shape[-1]) if is_nhwc else ('NCHW', features.shape[1])
    for layout in TOKENS:
        try:
            last = shapes_of(network, lambda twin, images, layout=layout: LastMap(twin.eval(), layout)(images),
                             1, 3, size, size)
            return layout, last.shape[1]
        except (AttributeError, AssertionError, TypeError):  # it makes no such map
            continue
    shape = tuple(getattr(features, 'shape', ())) or f'a {type(features).__name__}'
    raise UserError(f'{name} has no last map to attribute on: its features are {shape}, and timm makes no map of them; '
                    'choose another network')


def set_output_stride(network, stride):
    """Set strides of a convolutional network's last stages to 1, so that one cell of its map is `stride` pixels.

    As in the published networks, without dilation. Hooks show which layers, shortcuts included, would reduce the map
    further. Returns whether the map now has the wanted size; if not, nothing is changed.
    """
    wanted, reducers = SIZE // stride, set()

    def note(name, layer, inputs, output):
        maps = [tensor for tensor in (inputs[0], output) if isinstance(tensor, torch.Tensor) and tensor.ndim == 4]
        if len(maps) == 2 and maps[1].shape[-1] < maps[0].shape[-1] <= wanted:
            reducers.add(name)

    def forward(twin, images):
        for name, layer in twin.eval().named_modules():
            if _first(getattr(layer, 'stride', 1)) > 1:
                layer.register_forward_hook(partial(note, name))
        twin.forward_features(images)
        _unstride(twin, reducers)
        return twin.forward_features(images)
    try:
        has_stride = shapes_of(network, forward, 1, 3, SIZE, SIZE).shape[-1] == wanted
    except (RuntimeError, AssertionError):  # it does not take this size, or its parts no longer fit together
        return False
    if has_stride:
        _unstride(network, reducers)
    return has_stride


def _first(setting):
    """A layer's stride or kernel size as one number, that of the first axis. 1 if the attribute is something else."""
    return setting[0] if isinstance(setting, tuple) else setting if isinstance(setting, int) else 1


def _unstride(network, names):
    """Give layers stride 1. With a kernel of even size the map would then lose a row: a convolution gets its input
    padded at the end, and a pooling layer is taken out."""
    for name in names:
        layer = network.get_submodule(name)
        layer.stride = (1, 1) if isinstance(layer.stride, tuple) else 1
        is_even = _first(getattr(layer, 'kernel_size', 1)) % 2 == 0
        if is_even and isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(_pad_at_the_end)
        elif is_even:
            network.set_submodule(name, nn.Identity())


def _pad_at_the_end(layer, inputs):
    return F.pad(inputs[0], (0, layer.kernel_size[1] - 1, 0, layer.kernel_size[0] - 1))
