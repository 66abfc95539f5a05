"""VGG-16, plain or with BatchNorm, cut and re-strided: 14x14 maps of a 224x224 image, or 28x28.

Source: torchvision's vgg16 and vgg16_bn (Simonyan and Zisserman, ICLR 2015) with the published changes: without the
fifth max-pooling, and for the large map without the fourth; then conv6 (3x3, 512 -> 1024), BatchNorm with use_bn, ReLU.
Result: stages `features` (numbered as published, without the places of those pools), `conv6`, `bn6`, `relu`.
"""
from collections import OrderedDict

from torch import nn

from wsol.backbones.torchvision_networks import torchvision_network

ADDED = ('conv6', 'bn6')  # stages without ImageNet weights


def vgg16(source, large_feature_map, use_bn):
    """(nn.Sequential of the stages, number of features). source: of torchvision_network."""
    features = torchvision_network('vgg16_bn' if use_bn else 'vgg16', source).features
    pools = [index for index, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    left_out = pools[3:] if large_feature_map else pools[4:]
    features = nn.Sequential(*(layer for index, layer in enumerate(features) if index not in left_out))
    norm = {'bn6': nn.BatchNorm2d(1024)} if use_bn else {}
    stages = OrderedDict(features=features, conv6=nn.Conv2d(512, 1024, 3, padding=1), **norm, relu=nn.ReLU())
    return nn.Sequential(stages), 1024
