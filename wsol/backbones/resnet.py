"""ResNet with the published strides: 14x14 maps of a 224x224 image, or 28x28.

Source: torchvision's resnet (He et al., CVPR 2016); stride of layer4 1, and of layer3 1 for the
large map, in the first block's 3x3 convolution and its downsample branch; no dilation.
Result: the stages up to layer4 under torchvision's names, and the width of their features. Of several stages
(hypercolumns, Hariharan et al., CVPR 2015) the features are those of all of them side by side. With 1x1 instead of 3x3
convolutions (BagNet, Brendel & Bethge, ICLR 2019) a stage sees no more of the picture than the one before it.
"""
from torch import nn

from wsol.backbones.torchvision_networks import torchvision_network
from wsol.errors import UserError

LAYERS = ('layer1', 'layer2', 'layer3', 'layer4')
STAGES = ('conv1', 'bn1', 'relu', 'maxpool', *LAYERS)


def _unstride(layer):
    """Give the first block of a layer stride 1: at the convolution that strides, and beside it."""
    block = layer[0]
    for conv in (block.conv1, block.conv2, block.downsample[0]):
        conv.stride = (1, 1)


def _make_pointwise(network, first):
    """Put a random 1x1 convolution in place of every 3x3 one, from stage `first` on."""
    for stage in LAYERS[LAYERS.index(first):]:
        for block in getattr(network, stage):
            for name, conv in list(block.named_children()):
                if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
                    setattr(block, name, nn.Conv2d(conv.in_channels, conv.out_channels, 1, conv.stride, bias=False))


def _check_name(flag, stage):
    if stage not in LAYERS:
        raise UserError(f'--{flag}: a ResNet has no stage "{stage}"; there are {", ".join(LAYERS)}')


def _stages_taken(last_stage):
    """'layer3,layer2' -> ['layer2', 'layer3']: in the order of the network, each once. Raises UserError."""
    stages = last_stage.split(',')
    for stage in stages:
        _check_name('last_stage', stage)
    return sorted(set(stages))


def check_effect(large_feature_map, last_stage, pointwise_from):
    """Raise UserError for options that change nothing, since the network ends before what they change."""
    for flag, stage in (('large_feature_map', 'layer3' if large_feature_map else None),
                        ('pointwise_from', pointwise_from)):
        if stage is not None and stage > _stages_taken(last_stage)[-1]:
            raise UserError(f'--{flag} changes a ResNet from {stage} on, and this one ends at --last_stage='
                            f'{last_stage}: leave one of the two flags out')


def resnet(name, source, large_feature_map, last_stage, pointwise_from):
    """(nn.Sequential of the stages, number of features). source: of torchvision_network. last_stage: where it ends, or
    all stages whose features are taken, separated by commas. pointwise_from: the first stage with 1x1 instead of 3x3
    convolutions, or None. Raises UserError."""
    taken = _stages_taken(last_stage)
    if pointwise_from is not None:
        _check_name('pointwise_from', pointwise_from)
    if pointwise_from and source is not None:
        raise UserError(f'--pointwise_from={pointwise_from} replaces convolutions that ImageNet weights are of; train '
                        'from random weights with --pretrained=False')
    network = torchvision_network(name, source)
    if pointwise_from:
        _make_pointwise(network, pointwise_from)
    _unstride(network.layer4)
    if large_feature_map:
        _unstride(network.layer3)
    stages = nn.Sequential()
    for stage in STAGES[:STAGES.index(taken[-1]) + 1]:
        stages.add_module(stage, getattr(network, stage))
    stages.earlier = taken[:-1]  # whose features are taken too (wsol.heads)
    blocks = [getattr(network, stage)[-1] for stage in taken]  # the last of each
    return stages, sum(getattr(block, 'conv3', block.conv2).out_channels for block in blocks)
