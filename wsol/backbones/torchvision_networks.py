"""torchvision's classifiers with the chosen weights, and each of them that has a last map as a backbone.

Source: torchvision's graph tracing (models.feature_extraction). A network is traced without data; the part up to its
last map before pooling is kept, under torchvision's names. Functions import torchvision, since that takes seconds.
"""
from collections import OrderedDict
from functools import cache
from pickle import UnpicklingError

import torch
from torch import nn

from wsol.contexts import initial_weights
from wsol.errors import UserError, words_of
from wsol.weights.fitting import AUXILIARY, load_backbone, load_classifier
from wsol.weights.state_dicts import read_weights

CLASSIFIERS = ('classifier', 'fc', 'head', 'heads', *AUXILIARY)  # modules that depend on the number of classes
AFTER_BACKBONE = (*CLASSIFIERS, 'avgpool')
# The first two options avoid auxiliary heads, slow initialisation and warnings. torchvision sets the third with its
# ImageNet weights: a network that is built without them, to load a checkpoint, must compute the same.
QUIET = dict.fromkeys(('googlenet', 'inception_v3'),
                      {'aux_logits': False, 'init_weights': False, 'transform_input': True})


class LastMap(nn.Module):
    """(B,3,H,W) -> (B,D,h,w): a network up to one node, by torch.fx.

    grid: for a node of tokens (B,N,D), the node with the map (B,_,h,w) whose cells are its last h w tokens.
    """

    def __init__(self, network, node, grid=None):
        super().__init__()
        from torchvision.models.feature_extraction import create_feature_extractor
        self.node, self.grid = node, grid
        self.body = create_feature_extractor(network, [node] if grid is None else [node, grid])

    def forward(self, images):
        outputs = self.body.forward(images)  # a call would print a traceback where the size does not suit
        if self.grid is None:
            return outputs[self.node]
        height, width = outputs[self.grid].shape[2:]
        return outputs[self.node][:, -height * width:].mT.unflatten(2, (height, width))  # without class tokens


@cache
def names():
    """The names of torchvision's classifiers."""
    from torchvision import models
    return tuple(models.list_models(module=models))


def torchvision_network(name, source, weights='IMAGENET1K_V1'):
    """A classifier of torchvision. Raises UserError.

    source: None for random weights; True for ImageNet's (`weights` is torchvision's name for them), downloaded once and
    verified by checksum; or a file with a state dict, or its Weights, which must fit except for the classifier.
    """
    from torchvision import models
    if source is not True:
        network = models.get_model(name, weights=None, **QUIET.get(name, {}))
        if source is not None:
            load_backbone(network, read_weights(source), CLASSIFIERS)
        return network
    try:
        return models.get_model(name, weights=weights)  # torchvision's weights require the auxiliary heads
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:  # urllib's errors are OSErrors
        raise not_loaded(name, error) from error


def not_loaded(name, error):
    """The UserError that ImageNet's weights cannot be downloaded or read."""
    return UserError(f'the ImageNet weights of {name} could not be loaded ({words_of(error)}); if a damaged file is '
                     f'below {torch.hub.get_dir()}, remove it; or start from random weights with pretrained=False, or '
                     'from a file with pretrained=FILE')


def classifier(name, source):
    """A whole trained classifier of torchvision and its backbone, a LastMap. source: as in torchvision_network."""
    if name not in names():
        raise UserError(f'no classifier "{name}" in torchvision; timm/NAME names one of timm\'s')
    nodes, _ = last_map_nodes(name)
    with initial_weights(drawn=source is True):
        network = torchvision_network(name, True if source is True else None, 'DEFAULT')
    if source is not True:
        layers = [layer for layer, module in network.named_modules() if isinstance(module, nn.Linear)]
        if not layers:  # SqueezeNet
            raise UserError(f'{name} does not end in average pooling and one linear layer; train a CAM or '
                            'CALM head on it')
        load_classifier(network, read_weights(source), layers[-1], layers[-1].partition('.')[0])
    return network, LastMap(network.eval(), *nodes)


@cache
def last_map_nodes(name):
    """(the arguments of LastMap: where the last map with h and w above 1 is, its D). Raises UserError.

    Where layers with parameters follow this map, its cells have become tokens (ViT), and their last ones are taken.
    """
    from torchvision import models
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
    options = QUIET.get(name, {})
    try:
        with torch.device('meta'):  # shapes only
            network = models.get_model(name, **options)
    except NotImplementedError:  # RegNet computes its widths with tensors
        network = models.get_model(name, **options).to('meta')
    _, nodes = get_graph_node_names(network.eval())
    nodes = [node for node in nodes if not node.startswith(AFTER_BACKBONE)]
    with torch.device('meta'), torch.no_grad():
        outputs = create_feature_extractor(network, nodes)(torch.empty(1, 3, 224, 224))
    shapes = {node: outputs[node].shape for node in nodes if isinstance(outputs[node], torch.Tensor)}
    last_map = [node for node, shape in shapes.items() if len(shape) == 4 and min(shape[2:]) > 1][-1]
    after = nodes[nodes.index(last_map) + 1:]
    parents = tuple({parameter.rsplit('.', 1)[0] for parameter, _ in network.named_parameters()})
    if not any(node.startswith(parents) for node in after):
        return (last_map,), shapes[last_map][1]
    cells = shapes[last_map][2:].numel()
    tokens = [node for node in after if len(shapes.get(node, ())) == 3
              and shapes[node][1] in (cells, cells + 1)]  # with or without a class token
    if not tokens:
        raise UserError(f'{name} has no last map to attribute on, nor tokens of its cells; choose another network')
    return (tokens[-1], last_map), shapes[tokens[-1]][2]


def traced_backbone(name, source):
    """(nn.Sequential with the one stage `backbone`, number of features). source: of torchvision_network."""
    nodes, num_features = last_map_nodes(name)
    network = torchvision_network(name, source, 'DEFAULT')
    return nn.Sequential(OrderedDict(backbone=LastMap(network, *nodes))), num_features
