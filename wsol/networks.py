"""Networks by name: a backbone with a head. ARCHITECTURES, HEADS, build_model.

    model = build_model('resnet50', 'CALM_EM', num_classes=200, large_feature_map=True)
"""
import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from wsol.backbones import inception, timm_networks, torchvision_networks, vgg
from wsol.backbones.resnet import resnet
from wsol.contexts import shapes_of
from wsol.errors import UserError, words_of
from wsol.heads import CALM, CALM_EM, CALM_ML, CAM, PRIORS
from wsol.weights.fitting import IMAGENET

HEADS = {'CAM': CAM, 'CALM_EM': CALM_EM, 'CALM_ML': CALM_ML}


@dataclass(frozen=True)
class Architecture:
    """A backbone: how it is built, initialised and trained.

    build(source, **options) -> (nn.Sequential of named stages, number of features). source: None for random weights,
    True for ImageNet's, or a file. options: the arguments of build_model that `build` takes.
    slow: parameters whose names contain one of these learn at lr, all others at lr * ratio. backbone: used in place of
    `slow` to fine-tune on another label set (published).
    """
    build: Callable
    slow: tuple[str, ...]
    backbone: tuple[str, ...]
    options: tuple[str, ...] = ()
    initialise: Callable | None = nn.init.xavier_uniform_  # of convolutions; None: torchvision's initialisation
    added: tuple[str, ...] = ()  # stages that ImageNet weights do not cover


_RESNET = {'slow': ('conv1', 'layer1', 'layer2', 'layer3'),
           'options': ('large_feature_map', 'last_stage'),
           'backbone': ('conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4')}
_INCEPTION = ('Mixed', 'Conv2d_1', 'Conv2d_2', 'Conv2d_3', 'Conv2d_4')
# The networks with the published strides: 14x14 or 28x28 maps of 224x224 images.
ARCHITECTURES = {
    'resnet50': Architecture(partial(resnet, 'resnet50'), **_RESNET),
    'vgg16': Architecture(vgg.vgg16, slow=('features.',), backbone=('features.', *vgg.ADDED), added=vgg.ADDED,
                          options=('large_feature_map', 'use_bn'),
                          initialise=partial(nn.init.kaiming_normal_, mode='fan_out', nonlinearity='relu')),
    'inception_v3': Architecture(inception.inception_v3, slow=_INCEPTION, backbone=_INCEPTION, added=inception.ADDED,
                                 options=('large_feature_map', 'use_bn')),
    **{name: Architecture(partial(resnet, name), **_RESNET)
       for name in ('resnet18', 'resnet34', 'resnet101', 'resnet152')},
}


def architecture_names():
    """ARCHITECTURES, then torchvision's other classifiers, whose maps keep their size. (timm/NAME are not listed.)"""
    return (*ARCHITECTURES, *(name for name in torchvision_networks.names() if name not in ARCHITECTURES))


def find_architecture(name):
    """The Architecture of one of architecture_names(), or of timm/NAME. Raises UserError."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if name.startswith(timm_networks.PREFIX):
        timm_networks.find_settings(name)
        build, options = partial(timm_networks.timm_backbone, name), ('large_feature_map',)
    elif name in architecture_names():
        build, options = partial(torchvision_networks.traced_backbone, name), ()
    else:
        raise UserError(f'no architecture "{name}"; there are {", ".join(architecture_names())}, and timm/NAME')
    return Architecture(build, slow=('backbone.',), backbone=('backbone.',), options=options, initialise=None)


def normalisation(architecture):
    """(mean, deviation) per colour, in 0..1, by which a network's images are normalised."""
    if architecture.startswith(timm_networks.PREFIX):
        data = timm_networks.data_config(architecture)
        return tuple(data['mean']), tuple(data['std'])
    return IMAGENET


def find_head(name, prior='relu'):
    """The class of a head by its name, a key of HEADS. Raises UserError for an unknown head or prior."""
    if name not in HEADS:
        raise UserError(f'no head "{name}"; there are {", ".join(HEADS)}')
    if prior not in PRIORS:
        raise UserError(f'no prior "{prior}"; there are {", ".join(PRIORS)}')
    return HEADS[name]


def options_taken(architecture, attribution_method):
    """The names of build_model's arguments that change this network. For example, use_bn does not change a ResNet, and
    prior does not change CAM."""
    of_head = ('prior',) if issubclass(find_head(attribution_method), CALM) else ()
    return (*find_architecture(architecture).options, *of_head)


def build_model(architecture, attribution_method, num_classes, pretrained=False, large_feature_map=False,
                use_bn=False, prior='relu', last_stage='layer4'):
    """A network: a backbone and a head.

    architecture: one of architecture_names(), or timm/NAME.
    attribution_method: the head, a key of HEADS.
    pretrained: True starts from ImageNet weights (downloaded once, verified by checksum), a file from its state dict.
    large_feature_map: 28x28 instead of 14x14 maps of a 224x224 image.
    use_bn: VGG-16 with BatchNorm, and BatchNorm in the layers that are added to VGG and Inception.
    prior: CALM's, 'relu' or 'softplus'.
    last_stage: end a ResNet at 'layer1', 'layer2' or 'layer3', for a smaller receptive field.
    Returns an nn.Module: model(images (B,3,H,W)) -> class scores (B,C). Raises UserError.
    """
    recipe, head = find_architecture(architecture), find_head(attribution_method, prior)
    asked = {'large_feature_map': large_feature_map, 'last_stage': last_stage, 'use_bn': use_bn}
    for name, usual in (('large_feature_map', False), ('last_stage', 'layer4')):
        if name not in recipe.options and asked[name] != usual:
            raise UserError(f'{name}={asked[name]} does not suit {architecture}')
    stages, num_features = recipe.build(pretrained or None, **{name: asked[name] for name in recipe.options})
    model = head(stages, num_features, num_classes, prior)
    _initialise(model, recipe, bool(pretrained))
    return model


def check_image_size(model, size):
    """Raise UserError unless the network takes images of size x size, and its map has at least two cells.

    Only shapes are computed, so that a failure is caused by the size, not by the memory or the device.
    """
    try:
        grid = shapes_of(model, lambda twin, images: twin.eval().extract_features(images), 1, 3, size, size).shape[2:]
    except (RuntimeError, ValueError, AssertionError) as error:
        trained = {timm_networks.trained_size(part) for part in model.modules() if hasattr(part, 'pretrained_cfg')}
        words = re.sub(r'Proxy\(\w+\)', str(size), words_of(error))  # torch.fx has this in place of a number
        raise UserError(f'crop_size={size} does not suit this network ({words})' + ''.join(
            f'; timm trained it at {each}' for each in trained - {size})) from error
    if grid.numel() < 2:
        raise UserError(f'crop_size={size} is too small for this network: its map has one cell')


def fewest_images(model, size):
    """The fewest images of size x size that a training step can take: 2 where BatchNorm follows pooling to one cell.

    Only shapes are computed. Raises UserError for a network that cannot be trained on such images.
    """
    for count in (1, 2):
        try:
            shapes_of(model, lambda twin, images: twin.train()(images), count, 3, size, size)
        except ValueError as error:  # BatchNorm's: there is one value in each channel
            problem = words_of(error)
        except RuntimeError:  # the values decide what is computed: shapes do not tell
            return 1
        else:
            return count
    raise UserError(f'images of {size}x{size} are too small to train this network ({problem})')


def _initialise(model, recipe, pretrained):
    """Random weights and biases of 0, as published, for the convolutions without ImageNet weights."""
    fresh = (*recipe.added, 'conv_last', 'attention')
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d) and (name.startswith(fresh) or recipe.initialise and not pretrained):
            (recipe.initialise or nn.init.xavier_uniform_)(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def redrawn(model):
    """A copy of any network, on the CPU, with other weights, drawn by torch's global generator: convolutions and linear
    layers as in He et al. 2015, all others as their modules initialise them, or else in random order."""
    copied = copy.deepcopy(model).cpu()
    for module in copied.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif hasattr(module, 'reset_parameters'):
            module.reset_parameters()
    for before, weight in zip(model.parameters(), copied.parameters(), strict=True):
        if torch.equal(before.cpu(), weight):  # its module does not initialise it
            weight.copy_(weight.flatten()[torch.randperm(weight.numel())].view_as(weight))
    return copied


def parameter_groups(model, architecture, lr, lr_classifier_ratio=10.0, is_different_checkpoint=False):
    """The two parameter groups of the published optimiser: the backbone at lr, the rest faster.

    Names are matched by substring, as published: ResNet's layer4 is fast except its conv1, and so is the stem's bn1.
    is_different_checkpoint: the whole backbone is slow. Returns a list of dicts for torch.optim.
    """
    recipe = find_architecture(architecture)
    slow_names = recipe.backbone if is_different_checkpoint else recipe.slow
    slow, fast = [], []
    for name, parameter in model.named_parameters():
        (slow if any(part in name for part in slow_names) else fast).append(parameter)
    return [{'params': slow, 'lr': lr, 'initial_lr': lr},
            {'params': fast, 'lr': lr * lr_classifier_ratio, 'initial_lr': lr * lr_classifier_ratio}]
