"""ResNet with the published strides: 14x14 maps of a 224x224 image, or 28x28.

Source: torchvision's resnet (He et al., CVPR 2016) with the published changes: layer4 has stride 1, and for the large
map layer3 too, in its first block's convolution and shortcut; no dilation. The stages keep torchvision's names.
"""
from collections import OrderedDict

from torch import nn

from wsol.backbones.torchvision_networks import torchvision_network
from wsol.errors import UserError

LAYERS = ('layer1', 'layer2', 'layer3', 'layer4')
STAGES = ('conv1', 'bn1', 'relu', 'maxpool', *LAYERS)


def _unstride(layer):
    """Give the first block of a layer stride 1: in its convolutions and in its shortcut."""
    block = layer[0]
    for conv in (block.conv1, block.conv2, block.downsample[0]):
        conv.stride = (1, 1)


def check_effect(large_feature_map, last_stage):
    """Raise UserError for a large map of a ResNet that ends before layer3, which has no stride to change."""
    if large_feature_map and last_stage < 'layer3':
        raise UserError(f'large_feature_map=True changes a ResNet from layer3 on, and this one ends at last_stage='
                        f'{last_stage}: leave one of the two out')


def resnet(name, source, large_feature_map, last_stage):
    """(nn.Sequential of the stages, number of features). source: of torchvision_network. Raises UserError."""
    if last_stage not in LAYERS:
        raise UserError(f'a ResNet has no stage "{last_stage}"; there are {", ".join(LAYERS)}')
    network = torchvision_network(name, source)
    _unstride(network.layer4)
    if large_feature_map:
        _unstride(network.layer3)
    names = STAGES[:STAGES.index(last_stage) + 1]
    stages = nn.Sequential(OrderedDict((name, getattr(network, name)) for name in names))
    block = stages[-1][-1]  # the last block
    return stages, getattr(block, 'conv3', block.conv2).out_channels
