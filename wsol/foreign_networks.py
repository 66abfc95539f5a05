"""Networks made elsewhere: a head on a layer of any module, and trained classifiers explained as they are.

    model = wsol.from_module(network, layer='encoder.layer4', attribution_method='CALM_EM', num_classes=10)
    model = wsol.from_classifier('resnet50')            # torchvision's ImageNet weights, no training, plain CAM
"""
from collections import OrderedDict

import torch
from torch import nn

from wsol.backbones import timm_networks, torchvision_networks
from wsol.backbones.state_dicts import read_state_dict
from wsol.contexts import evaluating
from wsol.errors import UserError
from wsol.heads import CAM
from wsol.networks import find_head

TOLERANCE = 1e-4  # relative: by how much a classifier's scores may differ from those that its CAM gives
IMAGE_SIZE = 224  # of the image that a network is tried on, unless the caller says otherwise


class LayerOutput(nn.Module):
    """(B,3,H,W) -> (B,D,h,w): the output of a module's layer, seen by a hook. The module runs to its end.

    to_map: a function that makes a map (B,D,h,w) of the layer's output, where that is something else.
    """

    def __init__(self, module, layer, to_map=None):
        super().__init__()
        self.module, self.layer, self.to_map = module, layer, to_map

    def forward(self, images):
        outputs = []
        hook = self.module.get_submodule(self.layer).register_forward_hook(lambda _, __, output: outputs.append(output))
        try:
            self.module(images)
        finally:
            hook.remove()
        if not outputs:
            raise UserError(f'the layer {self.layer} does not run when the module does')
        return outputs[-1] if self.to_map is None else self.to_map(outputs[-1])


def from_module(module, layer, attribution_method='CALM_EM', num_classes=None, prior='relu', to_map=None,
                image_size=IMAGE_SIZE):
    """A head on the output of a layer of any module, to be trained; or CAM of a classifier that is already trained.

    module: takes images (B,3,H,W), normalised as it was trained. layer: the dotted name of a submodule whose output is
    a map (B,D,h,w), or from which to_map makes one (tokens (B,N,D) -> (B,D,h,w), say). attribution_method: a key of
    HEADS. num_classes: of the new head; None takes the module's own classifier, for 'CAM' only: the module must end in
    average pooling and one linear layer. image_size: of the blank image on which the layer is tried.
    Returns an nn.Module as build_model does. Raises UserError.
    """
    if layer not in dict(module.named_modules()):
        near = ', '.join(name for name, _ in module.named_children())
        raise UserError(f'layer="{layer}" is no submodule; the outermost ones are {near}')
    traced = None if to_map is not None else _trace(module, layer)
    backbone = traced or LayerOutput(module, layer, to_map)
    if num_classes is None:
        if attribution_method != 'CAM':
            raise UserError(f'{attribution_method} has to be trained: say num_classes=')
        return cam_of_classifier(module, backbone, f'this module, up to {layer},', image_size)
    with torch.no_grad(), evaluating(backbone):  # with real values: a foreign module may branch on them
        like = next(module.parameters(), torch.zeros(()))
        features = backbone(like.new_zeros(1, 3, image_size, image_size))
    if not isinstance(features, torch.Tensor) or features.ndim != 4:
        shape = tuple(getattr(features, 'shape', ())) or type(features).__name__
        raise UserError(f'the output of {layer} is no map (B,D,h,w) but {shape}; to_map= can make it one')
    model = find_head(attribution_method, prior)(_as_stage(backbone), features.shape[1], num_classes, prior)
    for convolution in (model.conv_last, *([model.attention[0]] if hasattr(model, 'attention') else [])):
        convolution.to(features)  # the device and precision of the features
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    return model


def _trace(module, layer):
    """The part of a module up to a layer, by torch.fx; None where it cannot be traced."""
    try:
        return torchvision_networks.LastMap(module, layer)
    except Exception:  # tracing fails in as many ways as there are programs; then the hook is used
        return None


def _as_stage(backbone):
    return nn.Sequential(OrderedDict(backbone=backbone))


def from_classifier(architecture, source=True):
    """CAM of a trained classifier, without training: its linear layer becomes conv_last, its strides stay.

    architecture: of torchvision, or timm/NAME. source: True for ImageNet's weights, downloaded once, or a file with the
    state dict of a whole classifier, of any number of classes. The scores are checked to equal the classifier's.
    Raises UserError for a network that does not end in average pooling and one linear layer (VGG, ConvNeXt, ViT).
    """
    size = IMAGE_SIZE
    if architecture.startswith(timm_networks.PREFIX):
        network, backbone = timm_networks.classifier(architecture, source)
        size = timm_networks.trained_size(network)
    elif architecture in torchvision_networks.names():
        classes = {} if source is True else {'num_classes': _count_classes(source)}
        node, _ = torchvision_networks.last_map_node(architecture)
        network = torchvision_networks.torchvision_network(architecture, source, 'DEFAULT', **classes)
        backbone = torchvision_networks.LastMap(network.eval(), node)
    else:
        raise UserError(f'no classifier "{architecture}" in torchvision; timm/NAME names one of timm\'s')
    return cam_of_classifier(network, backbone, architecture, size)


def _count_classes(path):
    """The number of classes of a classifier's state dict: the rows of the last weight of a classifier module."""
    names = torchvision_networks.CLASSIFIERS
    last = [value for name, value in read_state_dict(path).items()
            if name.startswith(names) and not name.startswith(('aux', 'AuxLogits')) and value.ndim > 1]
    if not last:
        raise UserError(f'{path} holds no classifier: no weight whose name begins with {", ".join(names[:3])}')
    return len(last[-1])


@torch.no_grad()
def cam_of_classifier(network, backbone, name, image_size=IMAGE_SIZE):
    """CAM of a backbone with the last linear layer of the network that it is a part of. name: for the error."""
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    remedy = ('does not end in average pooling and one linear layer, so its linear layer gives no map; train a CAM or '
              'CALM head on it, or use gradient methods on a network that does')
    if not linear:
        raise UserError(f'{name} {remedy}')
    weight, bias = linear[-1].weight, linear[-1].bias
    model = CAM(_as_stage(backbone), weight.shape[1], weight.shape[0]).eval()
    bias = torch.zeros(len(weight)) if bias is None else bias
    model.conv_last.to(weight).load_state_dict({'weight': weight[:, :, None, None], 'bias': bias})
    images = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = images.to(next(network.parameters()))
    try:
        expected = network.eval()(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise UserError(f'{name} does not take an image of {image_size} x {image_size} pixels ({reason}); '
                        'from_module tries another size by image_size=') from error
    try:
        scores = model(images)
        tolerance = max(TOLERANCE, 2 * torch.finfo(expected.dtype).eps)  # the second: in half precision
        equal = scores.shape == expected.shape and (scores - expected).abs().max() <= tolerance * expected.abs().max()
    except (RuntimeError, AssertionError):  # the features are no map, or do not suit the linear layer
        equal = False
    if not equal:
        raise UserError(f'{name} {remedy}')
    return model
