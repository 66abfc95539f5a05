"""Networks made elsewhere: a head on a layer of any module, and CAM of classifiers that are already trained.

    model = wsol.from_module(network, layer='encoder.layer4', attribution_method='CALM_EM', num_classes=10)
    model = wsol.from_classifier('resnet50')            # torchvision's ImageNet weights, no training, plain CAM
"""
from collections import OrderedDict

import torch
from torch import nn

from wsol.backbones import timm_networks, torchvision_networks
from wsol.contexts import evaluating
from wsol.errors import UserError
from wsol.heads import CAM
from wsol.networks import find_head

TOLERANCE = 1e-4  # relative: by how much the scores of CAM may differ from the classifier's
IMAGE_SIZE = 224  # the size of the image on which a network is tried, if the caller gives none
ENDS = ((None, lambda scores: scores), ('softmax', lambda scores: scores.softmax(1)),
        ('softmax', lambda scores: scores.log_softmax(1)), ('sigmoid', torch.sigmoid))  # what a classifier may end in


class LayerOutput(nn.Module):
    """(B,3,H,W) -> (B,D,h,w): the output of a layer of a module, read by a hook. The whole module runs.

    to_map: a function from the layer's output to a map (B,D,h,w), if the output is not a map.
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
            raise UserError(f'the module does not use its layer {self.layer}')
        return outputs[-1] if self.to_map is None else self.to_map(outputs[-1])


def from_module(module, layer, attribution_method='CALM_EM', num_classes=None, prior='relu', to_map=None,
                image_size=IMAGE_SIZE, scores=None):
    """A head on the output of a layer of any module, to be trained; or CAM of a classifier that is already trained.

    module: takes images (B,3,H,W), normalised as in its training.
    layer: the dotted name of a submodule. Its output is a map (B,D,h,w), or to_map makes a map of it, for example of
    tokens (B,N,D).
    attribution_method: the head, a key of HEADS.
    num_classes: of the new head. None, for 'CAM' only, takes the module's classifier: the module must then end in
    average pooling and one linear layer.
    image_size: of the blank image on which the layer is tried.
    scores: 'softmax' over the classes, or 'sigmoid' for several labels (default: what the module ends in, or softmax).
    A classifier of one logit becomes one of the two classes 0 and 1, no and yes.
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
        return cam_of_classifier(module, backbone, f'this module, up to {layer},', image_size, scores)
    with torch.no_grad(), evaluating(backbone):  # not shapes_only: a foreign module may branch on values
        like = next(module.parameters(), torch.zeros(()))
        features = backbone(like.new_zeros(1, 3, image_size, image_size))
    if not isinstance(features, torch.Tensor) or features.ndim != 4:
        shape = tuple(getattr(features, 'shape', ())) or type(features).__name__
        raise UserError(f'the output of {layer} is no map (B,D,h,w) but {shape}; to_map= can make it one')
    model = find_head(attribution_method, prior)(_as_stage(backbone), features.shape[1], num_classes, prior)
    model.use_scores(scores or 'softmax')
    for convolution in (model.conv_last, *([model.attention[0]] if hasattr(model, 'attention') else [])):
        convolution.to(features)  # the device and precision of the features
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    return model


def _trace(module, layer):
    """The part of a module up to a layer, by torch.fx; None where it cannot be traced."""
    try:
        return torchvision_networks.LastMap(module, layer)
    except Exception:  # tracing can fail in many ways; then the hook is used
        return None


def _as_stage(backbone):
    return nn.Sequential(OrderedDict(backbone=backbone))


def from_classifier(architecture, source=True, scores=None):
    """CAM of a trained classifier, without training: its linear layer becomes conv_last, its strides stay.

    architecture: of torchvision, or timm/NAME. source: True for ImageNet's weights, downloaded once, or a file with the
    state dict of a classifier of any number of classes. scores: as in from_module. CAM's scores are compared with the
    classifier's.
    Raises UserError for a network that does not end in average pooling and one linear layer (VGG, ConvNeXt, ViT).
    """
    size = IMAGE_SIZE
    if architecture.startswith(timm_networks.PREFIX):
        network, backbone = timm_networks.classifier(architecture, source)
        size = timm_networks.trained_size(network)
    elif architecture in torchvision_networks.names():
        node, _ = torchvision_networks.last_map_node(architecture)
        network = torchvision_networks.classifier(architecture, source)
        backbone = torchvision_networks.LastMap(network, node)
    else:
        raise UserError(f'no classifier "{architecture}" in torchvision; timm/NAME names one of timm\'s')
    return cam_of_classifier(network, backbone, architecture, size, scores)


@torch.no_grad()
def cam_of_classifier(network, backbone, name, image_size=IMAGE_SIZE, scores=None):
    """CAM of a network: its backbone and its last linear layer. name: for the error message. scores: as in from_module.
    Raises UserError."""
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    remedy = ('does not end in average pooling and one linear layer, so its linear layer gives no map; train a CAM or '
              'CALM head on it, or use gradient methods on a network that does')
    if not linear:
        raise UserError(f'{name} {remedy}')
    weight, bias = linear[-1].weight, linear[-1].bias
    bias, outputs = torch.zeros(len(weight)) if bias is None else bias, len(weight)
    if outputs == 1:  # the classes no and yes
        weight, bias = torch.cat([-weight, weight]), torch.cat([-bias, bias])
    model = CAM(_as_stage(backbone), weight.shape[1], len(weight)).eval()
    model.scores = 'one_logit' if outputs == 1 else 'softmax'
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
        logits = model(images)[:, -outputs:]
        tolerance = max(TOLERANCE, 2 * torch.finfo(expected.dtype).eps)  # the second is for half precision
        ends = [end for end, activate in ENDS if (activate(logits) - expected.view_as(logits)).abs().max()
                <= tolerance * expected.abs().max()]
    except (RuntimeError, AssertionError):  # the features are no map, or do not suit the linear layer
        ends = []
    if not ends:
        raise UserError(f'{name} {remedy}')
    if scores and ends[0] not in (None, scores):
        raise UserError(f'{name} ends in a {ends[0]}, so scores={scores} does not suit it')
    if scores or ends[0]:
        model.use_scores(scores or ends[0])
    return model
