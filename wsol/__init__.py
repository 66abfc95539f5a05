"""Networks and attribution methods by name: ARCHITECTURES, METHODS, build_model.

    model = build_model('resnet50', 'CALM_EM', num_classes=200, large_feature_map=True)
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from util import UserError

from . import _torchvision  # noqa: F401  first: it makes torchvision importable
from .heads import CALM_EM, CALM_ML, CAM
from .resnet import resnet

METHODS = {'CAM': CAM, 'CALM_EM': CALM_EM, 'CALM_ML': CALM_ML}


@dataclass(frozen=True)
class Architecture:
    """A backbone: how it is built, initialised and trained.

    build(weights, large_feature_map, ...) -> (nn.Sequential of named stages, number of features).
    slow: parameters whose names contain one of these learn at lr, all others at lr * ratio;
    backbone: the same when fine-tuning on another label set (SGD groups, as published).
    """
    build: Callable
    slow: tuple[str, ...]
    backbone: tuple[str, ...]
    initialise: Callable = nn.init.xavier_uniform_
    added: tuple[str, ...] = ()  # stages that ImageNet weights do not cover


_RESNET = {'slow': ('conv1', 'layer1', 'layer2', 'layer3'),
           'backbone': ('conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4')}
ARCHITECTURES = {
    'resnet50': Architecture(partial(resnet, 'resnet50'), **_RESNET),
    'resnet18': Architecture(partial(resnet, 'resnet18'), **_RESNET),
}


def build_model(architecture, attribution_method, num_classes, pretrained=False, large_feature_map=False,
                use_bn=False, prior='relu', last_stage='layer4'):
    """The network of an attribution method on a backbone.

    architecture: a key of ARCHITECTURES. attribution_method: a key of METHODS. pretrained: start
    from torchvision's ImageNet weights (downloaded once). large_feature_map: 28x28 instead of
    14x14 maps of a 224x224 image. prior: 'relu' or 'softplus' (CALM only).
    last_stage: stop earlier, at 'layer1', 'layer2' or 'layer3', for a smaller receptive field.
    Returns an nn.Module: model(images (B,3,H,W)) -> class scores (B,C). Raises UserError.
    """
    recipe = ARCHITECTURES[architecture]
    weights = 'IMAGENET1K_V1' if pretrained else None
    try:
        stages, num_features = recipe.build(weights, large_feature_map, last_stage)
    except OSError as error:  # urllib's errors are OSErrors
        raise UserError(f'the ImageNet weights of {architecture} could not be downloaded ({error}); '
                        'start from random ones with --pretrained=False') from error
    model = METHODS[attribution_method](stages, num_features, num_classes, prior)
    fresh = (*recipe.added, 'conv_last', 'attention') if pretrained else ''
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and name.startswith(fresh):
            recipe.initialise(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def parameter_groups(model, architecture, lr, lr_classifier_ratio=10.0, is_different_checkpoint=False):
    """The two parameter groups of the published optimiser: the backbone at lr, the rest faster.

    By substring, as published: ResNet's layer4.*.conv1 is slow, the stem's bn1 is fast.
    is_different_checkpoint: the whole backbone is slow. Returns a list of dicts for torch.optim.
    """
    recipe = ARCHITECTURES[architecture]
    slow_names = recipe.backbone if is_different_checkpoint else recipe.slow
    slow, fast = [], []
    for name, parameter in model.named_parameters():
        (slow if any(part in name for part in slow_names) else fast).append(parameter)
    return [{'params': slow, 'lr': lr, 'initial_lr': lr},
            {'params': fast, 'lr': lr * lr_classifier_ratio, 'initial_lr': lr * lr_classifier_ratio}]
