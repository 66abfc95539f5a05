"""How photos become a trained classifier's input, as data.

    wsol.preprocessing('timm/resnet50')['interpolation']                       # 'bicubic'
"""
from pathlib import Path

from wsol.backbones import timm_networks, torchvision_networks
from wsol.errors import UserError

TIMM_FITS = {'squash': 'squash', 'border': 'pad'}  # timm's crop_mode -> fit; any other is 'crop'


def preprocessing(classifier, source=True):
    """How photos become a trained classifier's input in its own evaluation.

    classifier: a name as from_classifier takes it, a network of timm, or torchvision's weights, such as
    ResNet50_Weights.DEFAULT. source: as from_classifier takes it. torchvision has several weights of some networks: a
    file is taken for those of its name (resnet50-11ad3fa6.pth), any other for the first of them.
    Returns a dict, sizes in pixels: input_size (the side S of the square input); fit: 'crop' (the photo's shorter side
    becomes resize_size), 'squash' (both sides become it) or 'pad' (the longer side); then the centre S x S is taken,
    with the mean colour around a padded photo; resize_size; interpolation (PIL's name); mean and deviation of each
    colour, in 0..1. Raises UserError for an unknown name.
    Sources: the presets of torchvision's weights; timm's data config.
    """
    if isinstance(classifier, str) and not classifier.startswith(timm_networks.PREFIX):
        classifier = _torchvision_weights(classifier, source)
    if hasattr(classifier, 'transforms'):
        preset = classifier.transforms()
        (size,), (resize_size,) = preset.crop_size, preset.resize_size
        return _record(size, 'crop', resize_size, preset.interpolation.value, preset.mean, preset.std)
    data = timm_networks.data_config(classifier)
    size, fit = data['input_size'][-1], TIMM_FITS.get(data['crop_mode'], 'crop')
    return _record(size, fit, int(size / data['crop_pct']), data['interpolation'], data['mean'], data['std'])


def _record(size, fit, resize_size, interpolation, mean, deviation):
    return {'input_size': size, 'fit': fit, 'resize_size': resize_size, 'interpolation': interpolation,
            'mean': tuple(mean), 'deviation': tuple(deviation)}


def _torchvision_weights(name, source):
    """torchvision's entry of the weights of a network. source: True for its best ones, or a file."""
    if name not in torchvision_networks.names():
        raise UserError(f'no classifier "{name}" in torchvision; timm/NAME names one of timm\'s')
    from torchvision.models import get_model_weights
    weights = get_model_weights(name)
    if source is True:
        return weights.DEFAULT
    return next((one for one in weights if Path(one.url).name == Path(source).name), next(iter(weights)))
