"""ResNet with the published strides: 14x14 maps of a 224x224 image, or 28x28.

Source: torchvision's resnet (He et al., CVPR 2016); stride of layer4 1, and of layer3 1 for the
large map, in the first block's 3x3 convolution and its downsample branch; no dilation.
Result: the stages up to layer4 under torchvision's names, and the width of the last.
"""
from torch import nn

from .torchvision_backbone import torchvision_network

STAGES = ('conv1', 'bn1', 'relu', 'maxpool', 'layer1', 'layer2', 'layer3', 'layer4')


def _unstride(layer):
    """Give the first block of a layer stride 1: at the convolution that strides, and beside it."""
    block = layer[0]
    for conv in (block.conv1, block.conv2, block.downsample[0]):
        conv.stride = (1, 1)


def resnet(name, source, large_feature_map, last_stage):
    """(nn.Sequential of the stages, number of features). source: of torchvision_network."""
    network = torchvision_network(name, source)
    _unstride(network.layer4)
    if large_feature_map:
        _unstride(network.layer3)
    stages = nn.Sequential()
    for stage in STAGES[:STAGES.index(last_stage) + 1]:
        stages.add_module(stage, getattr(network, stage))
    last = stages[-1][-1]  # the last block
    return stages, getattr(last, 'conv3', last.conv2).out_channels
