"""ResNet with the published strides: 14x14 maps of a 224x224 image, or 28x28.

Source: torchvision's resnet (He et al., CVPR 2016); stride of layer4 1, and of layer3 1 for the
large map, in the first block's 3x3 convolution and its downsample branch; no dilation.
Result: the stages up to layer4 under torchvision's names, and the width of their features. Of several stages
(hypercolumns, Hariharan et al., CVPR 2015) the features are those of all of them side by side.
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
    """(nn.Sequential of the stages, number of features). source: of torchvision_network. last_stage: where it ends, or
    all stages whose features are taken, separated by commas."""
    network = torchvision_network(name, source)
    _unstride(network.layer4)
    if large_feature_map:
        _unstride(network.layer3)
    stages = nn.Sequential()
    taken = sorted(last_stage.split(','), key=STAGES.index)
    for stage in STAGES[:STAGES.index(taken[-1]) + 1]:
        stages.add_module(stage, getattr(network, stage))
    stages.earlier = taken[:-1]  # whose features are taken too (wsol.heads)
    blocks = [getattr(network, stage)[-1] for stage in taken]  # the last of each
    return stages, sum(getattr(block, 'conv3', block.conv2).out_channels for block in blocks)
