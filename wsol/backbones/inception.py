"""Inception-v3 up to Mixed_6e, re-strided: 14x14 maps of a 224x224 image, or 28x28.

Source: torchvision's inception_v3 (Szegedy et al., CVPR 2016) with the published changes: padding 1 in Conv2d_1a, stem
poolings with padding 1 and rounding up, a third pooling before Mixed_6a unless the map is large, Mixed_6a without
stride; then A3_1b and A3_2b (3x3, 768 -> 1024 -> 1024, BatchNorm with use_bn, ReLU). Images are normalised as for
ImageNet. The published code computes Mixed_6e without using its result; this code uses it.
"""
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from wsol.backbones.torchvision_networks import torchvision_network

ADDED = ('A3_1b', 'A3_2b')  # stages without ImageNet weights


class UnstridedReduction(nn.Module):
    """torchvision's InceptionB (Mixed_6a) with stride 1 and padding 1 in all three branches."""

    def __init__(self, block):
        super().__init__()
        for name, branch in block.named_children():
            self.add_module(name, branch)
        for branch in (self.branch3x3, self.branch3x3dbl_3):
            branch.conv.stride, branch.conv.padding = (1, 1), (1, 1)

    def forward(self, features):
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(features)))
        pooled = F.max_pool2d(features, kernel_size=3, stride=1, padding=1)
        return torch.cat([self.branch3x3(features), double, pooled], 1)


def inception_v3(source, large_feature_map, use_bn):
    """(nn.Sequential of the stages, number of features). source: of torchvision_network."""
    network = torchvision_network('inception_v3', source)
    network.Conv2d_1a_3x3.conv.padding = (1, 1)
    network.Mixed_6a = UnstridedReduction(network.Mixed_6a)

    def pool(padding):
        return nn.MaxPool2d(3, stride=2, padding=padding, ceil_mode=True)

    def added(width):
        norm = [nn.BatchNorm2d(1024)] if use_bn else []
        return nn.Sequential(nn.Conv2d(width, 1024, 3, padding=1), *norm, nn.ReLU())

    changed = {'maxpool1': pool(1), 'maxpool2': pool(1), 'maxpool3': pool(0), 'A3_1b': added(768), 'A3_2b': added(1024)}
    names = ['Conv2d_1a_3x3', 'Conv2d_2a_3x3', 'Conv2d_2b_3x3', 'maxpool1', 'Conv2d_3b_1x1', 'Conv2d_4a_3x3',
             'maxpool2', 'Mixed_5b', 'Mixed_5c', 'Mixed_5d', *([] if large_feature_map else ['maxpool3']),
             'Mixed_6a', 'Mixed_6b', 'Mixed_6c', 'Mixed_6d', 'Mixed_6e', 'A3_1b', 'A3_2b']
    stages = OrderedDict((name, changed[name] if name in changed else getattr(network, name)) for name in names)
    return nn.Sequential(stages), 1024
