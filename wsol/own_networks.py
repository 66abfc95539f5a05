"""One's own networks: a head on any module, and trained classifiers explained as they are.

    model = wsol.from_module(network, layer='encoder.layer4', attribution_method='CALM_EM', num_classes=10)
    model = wsol.from_classifier('resnet50')            # torchvision's ImageNet weights, no training, plain CAM
"""
import torch
from torch import nn

from wsol.backbones import timm_networks as timm_backbone
from wsol.backbones.state_dicts import read_state_dict
from wsol.backbones.torchvision_networks import (
    CLASSIFIERS,
    LastMap,
    create_feature_extractor,
    last_map_node,
    names,
    torchvision_network,
)
from wsol.contexts import evaluating
from wsol.errors import UserError
from wsol.heads import CAM
from wsol.networks import make_head

TOLERANCE = 1e-4  # relative: by how much a classifier's scores and those of its parts may differ
IMAGE_SIZE = 224  # of the image by which a network is tried, where nothing else is said


class LayerOutput(nn.Module):
    """(B,3,H,W) -> (B,D,h,w): what a module's layer gives, seen by a hook; the rest of the module runs for nothing.

    to_map: a function that makes the layer's output a map (B,D,h,w), where it is none.
    """

    def __init__(self, module, layer, to_map=None):
        super().__init__()
        self.module, self.layer, self.to_map = module, layer, to_map

    def forward(self, images):
        seen = []
        hook = self.module.get_submodule(self.layer).register_forward_hook(lambda _, __, output: seen.append(output))
        try:
            self.module(images)
        finally:
            hook.remove()
        if not seen:
            raise UserError(f'the layer {self.layer} does not run when the module does')
        return seen[-1] if self.to_map is None else self.to_map(seen[-1])


def from_module(module, layer, attribution_method='CALM_EM', num_classes=None, prior='relu', to_map=None,
                image_size=IMAGE_SIZE):
    """A head on the output of a layer of any module, to be trained; or CAM of a classifier that is trained already.

    module: takes images (B,3,H,W), normalised as it was trained. layer: the dotted name of a submodule whose output is
    a map (B,D,h,w), or becomes one by to_map (tokens (B,N,D) -> (B,D,h,w), say). attribution_method: a key of HEADS.
    num_classes: of the new head; None takes the module's own classifier, for attribution_method 'CAM' alone: the
    module must end in average pooling and one linear layer. image_size: of the blank image by which the layer is tried.
    Returns an nn.Module as build_model does. Raises UserError.
    """
    if layer not in dict(module.named_modules()):
        near = ', '.join(name for name, _ in module.named_children())
        raise UserError(f'layer="{layer}" is no submodule; the outermost ones are {near}')
    traced = None if to_map is not None else _trace(module, layer)
    backbone = traced or LayerOutput(module, layer, to_map)
    if num_classes is None:
        if attribution_method != 'CAM':
            raise UserError(f'{attribution_method} is trained: say num_classes=')
        return with_own_classifier(module, backbone, f'this module, up to {layer},', image_size)
    with torch.no_grad(), evaluating(backbone):  # with numbers: a module of one's own may look at them
        like = next(module.parameters(), torch.zeros(()))
        features = backbone(like.new_zeros(1, 3, image_size, image_size))
    if not isinstance(features, torch.Tensor) or features.ndim != 4:
        shape = tuple(getattr(features, 'shape', ())) or type(features).__name__
        raise UserError(f'the output of {layer} is no map (B,D,h,w) but {shape}; to_map= can make it one')
    model = make_head(attribution_method, _as_stage(backbone), features.shape[1], num_classes, prior)
    for convolution in (model.conv_last, *([model.attention[0]] if hasattr(model, 'attention') else [])):
        convolution.to(features)  # the device and precision of what it is given
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    return model


def _trace(module, layer):
    """The part of a module up to a layer, by torch.fx; None where it cannot be traced."""
    try:
        return LastMap(create_feature_extractor(module, [layer]), layer)
    except Exception:  # tracing fails in as many ways as there are programs; the hook serves them all
        return None


def _as_stage(backbone):
    stages = nn.Sequential()
    stages.add_module('backbone', backbone)
    return stages


def from_classifier(architecture, source=True):
    """CAM of a trained classifier, without training: its linear layer becomes conv_last, its strides stay.

    architecture: of torchvision or timm/NAME. source: True for ImageNet's weights, downloaded once, or a file with the
    state dict of a whole classifier, of any number of classes. Equal to the classifier's own scores, which is checked.
    Raises UserError for a network that does not end in average pooling and one linear layer (VGG, ConvNeXt, ViT).
    """
    size = IMAGE_SIZE
    if architecture.startswith(timm_backbone.PREFIX):
        network, backbone = timm_backbone.classifier(architecture, source)
        size = timm_backbone.own_size(network)
    elif architecture in names():
        classes = {} if source is True else {'num_classes': _count_classes(source)}
        node, _ = last_map_node(architecture)
        network = torchvision_network(architecture, source, 'DEFAULT', **classes)
        backbone = LastMap(create_feature_extractor(network.eval(), [node]), node)
    else:
        raise UserError(f'no classifier "{architecture}" in torchvision; timm/NAME names one of timm\'s')
    return with_own_classifier(network, backbone, f'--architecture={architecture}', size)


def _count_classes(path):
    """The number of classes of a classifier's state dict: of its last weights with the name of a classifier."""
    last = [value for name, value in read_state_dict(path).items()
            if name.startswith(CLASSIFIERS) and not name.startswith(('aux', 'AuxLogits')) and value.ndim > 1]
    if not last:
        raise UserError(f'{path} holds no classifier: no weight whose name begins with {", ".join(CLASSIFIERS[:3])}')
    return len(last[-1])


@torch.no_grad()
def with_own_classifier(network, backbone, name, image_size=IMAGE_SIZE):
    """CAM of a backbone with the last linear layer of the network it is a part of. name: for the error."""
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    remedy = ('does not end in average pooling and one linear layer, so its linear layer gives no map; train a CAM or '
              'CALM head on it with main.py, or use the gradient methods on a network that does')
    if not linear:
        raise UserError(f'{name} {remedy}')
    weight, bias = linear[-1].weight, linear[-1].bias
    model = CAM(_as_stage(backbone), weight.shape[1], weight.shape[0]).eval()
    model.conv_last.to(weight).weight.copy_(weight[:, :, None, None])
    model.conv_last.bias.copy_(bias if bias is not None else torch.zeros(len(weight)))
    images = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = images.to(next(network.parameters()))
    try:
        own = network.eval()(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise UserError(f'{name} does not take an image of {image_size} x {image_size} pixels ({reason}); '
                        'from_module tries another size by image_size=') from error
    try:
        ours = model(images)
        tolerance = max(TOLERANCE, 2 * torch.finfo(own.dtype).eps)  # of half precision it is the second
        equal = ours.shape == own.shape and (ours - own).abs().max() <= tolerance * own.abs().max()
    except (RuntimeError, AssertionError):  # the backbone gives no map, or the linear layer does not take its features
        equal = False
    if not equal:
        raise UserError(f'{name} {remedy}')
    return model
