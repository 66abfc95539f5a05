"""torchvision's classifiers: with the weights that are asked for, and any of them with a last map as a backbone.

Source: torchvision's graph tracing (models.feature_extraction). The network is traced without data;
what it computes up to its last map before pooling is kept, under torchvision's names.
"""
from pickle import UnpicklingError

import torch
from torch import nn

from wsol.backbones._torchvision import torchvision
from wsol.backbones.state_dicts import load_backbone
from wsol.errors import UserError

from torchvision.models.feature_extraction import (  # noqa: E402  isort: skip
    create_feature_extractor, get_graph_node_names)

CLASSIFIERS = ('classifier', 'fc', 'head', 'aux', 'AuxLogits')  # the modules that tell classes apart
HEADS = (*CLASSIFIERS, 'avgpool')  # what comes after the backbone
# without the first two they build auxiliary heads, initialise slowly, and warn of what they will change; the third is
# what torchvision sets with ImageNet's weights: a network built without them for a checkpoint has to be the same
QUIET = dict.fromkeys(('googlenet', 'inception_v3'),
                      {'aux_logits': False, 'init_weights': False, 'transform_input': True})


class LastMap(nn.Module):
    """(B,3,H,W) -> (B,D,h,w): the traced network up to one node."""

    def __init__(self, body, node):
        super().__init__()
        self.body, self.node = body, node

    def forward(self, images):
        return self.body(images)[self.node]


def names():
    """The classifiers that torchvision knows (some, as vit_*, have no spatial last map)."""
    return torchvision.models.list_models(module=torchvision.models)


def torchvision_network(name, source, weights='IMAGENET1K_V1', **options):
    """A classifier of torchvision. source: None for random weights; True for ImageNet's, downloaded once and their hash
    checked (weights says which); or a file with a state dict, which fits but for the classifier. Raises UserError."""
    if source is not True:
        network = torchvision.models.get_model(name, weights=None, **QUIET.get(name, {}), **options)
        if source is not None:
            load_backbone(network, source, CLASSIFIERS)
        return network
    try:
        # torchvision insists on the auxiliary heads where it loads weights; they are not taken over
        return torchvision.models.get_model(name, weights=weights)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:  # urllib's errors are OSErrors
        reason = ' '.join(str(error).split())[:200]
        raise UserError(f'the ImageNet weights of {name} could not be had ({reason}); if a damaged file is below '
                        f'{torch.hub.get_dir()}, remove it; or start from random weights with --pretrained=False, or '
                        'from a file with --pretrained=FILE') from error


def last_map_node(name):
    """The node whose output is the last map of size (B,D,h,w), h and w above 1, and its D."""
    options = QUIET.get(name, {})
    try:
        with torch.device('meta'):  # shapes only: no memory, no arithmetic
            network = torchvision.models.get_model(name, **options)
    except NotImplementedError:  # RegNet computes its widths with tensors
        network = torchvision.models.get_model(name, **options).to('meta')
    _, nodes = get_graph_node_names(network.eval())
    nodes = [node for node in nodes if not node.startswith(HEADS)]
    with torch.device('meta'), torch.no_grad():
        outputs = create_feature_extractor(network, nodes)(torch.empty(1, 3, 224, 224))
    maps = [node for node in nodes if isinstance(outputs[node], torch.Tensor) and outputs[node].ndim == 4
            and min(outputs[node].shape[2:]) > 1]
    after = nodes[nodes.index(maps[-1]) + 1:] if maps else nodes
    parents = {parameter.rsplit('.', 1)[0] for parameter, _ in network.named_parameters()}
    if not maps or any(node.startswith(tuple(parents)) for node in after):
        raise UserError(f'--architecture={name} has no spatial last map to attribute on (it ends in a sequence of '
                        'tokens); choose a convolutional network or swin_t')
    return maps[-1], outputs[maps[-1]].shape[1]


def traced_backbone(name, source):
    """(nn.Sequential with the one stage `backbone`, number of features). source: of torchvision_network."""
    node, num_features = last_map_node(name)
    network = torchvision_network(name, source, 'DEFAULT')
    stages = nn.Sequential()
    stages.add_module('backbone', LastMap(create_feature_extractor(network, [node]), node))
    return stages, num_features
