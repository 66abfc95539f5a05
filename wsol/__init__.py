"""Classifiers whose attribution map is a part of them, and every attribution method for them.

Source: Kim, Choe, Akata, Oh, "Keep CALM and Improve Visual Feature Attribution", ICCV 2021.

    import wsol
    model = wsol.build_model('resnet50', 'CALM_EM', num_classes=200, large_feature_map=True).eval()
    maps = wsol.attribution_maps(model, images, labels, method='jointll')      # (B,h,w), p(label, z | x)
"""
from wsol.attribution.maps import attribution_maps
from wsol.attribution.registry import METHODS
from wsol.errors import UserError
from wsol.foreign_networks import from_classifier, from_module
from wsol.networks import ARCHITECTURES, HEADS, architecture_names, build_model, parameter_groups
from wsol.preprocessing import preprocessing

__all__ = ['ARCHITECTURES', 'HEADS', 'METHODS', 'UserError', 'architecture_names', 'attribution_maps', 'build_model',
           'from_classifier', 'from_module', 'parameter_groups', 'preprocessing']
