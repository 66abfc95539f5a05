"""Photos go into a classifier as its own evaluation does it: agreement with the transforms of torchvision and timm."""
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import wsol
from dataset.transforms import Transform, fitted
from wsol.backbones import torchvision_networks

SIZES = [(500, 333), (333, 500), (301, 301), (97, 211), (641, 223), (225, 224), (400, 13), (12, 31)]
# every crop_mode of timm, with margins, without, and with more than the photo
TIMM = ['tf_efficientnet_lite0', 'dm_nfnet_f0', 'vit_base_patch16_siglip_224', 'resnet18.a1_in1k', 'volo_d5_512', 'inception_v3',
        'vit_base_patch16_clip_224.openai', 'deepseek_vit_412m']


def photo(size, seed=0):
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def transform_of(way):
    return Transform(way['input_size'], None, (way['mean'], way['deviation']), way)


def assert_equal(theirs, way, sizes):
    for size in sizes:
        torch.testing.assert_close(transform_of(way)(photo(size)), theirs(photo(size)), atol=2e-6, rtol=0)


def test_torchvisions_presets():
    """All of them that differ, on photos of several shapes."""
    models, seen = torchvision.models, []
    for weights in (one for name in torchvision_networks.names() for one in models.get_model_weights(name)):
        way = wsol.preprocessing(weights)
        if way not in seen:
            seen.append(way)
            assert_equal(weights.transforms(), way, [SIZES[len(seen) % len(SIZES)]])
    assert len(seen) > 20


@pytest.mark.parametrize('name', TIMM)
def test_timms_data_configs(name):
    timm = pytest.importorskip('timm')
    if not timm.is_model(name):
        pytest.skip(f'this timm has no {name}')
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    theirs = timm.data.create_transform(**config, is_training=False)
    assert_equal(theirs, wsol.preprocessing(f'timm/{name}'), SIZES if config['input_size'][1] < 300 else SIZES[:2])


def test_a_network_of_timm_says_its_own_way():
    timm = pytest.importorskip('timm')
    network = timm.create_model('test_resnet.r160_in1k')
    assert wsol.preprocessing(network) == wsol.preprocessing('timm/test_resnet.r160_in1k')
    assert wsol.preprocessing(network)['input_size'] == 160


def test_a_file_of_torchvisions_is_known_by_its_name():
    sizes = [wsol.preprocessing('resnet50', path)['resize_size'] for path in ('x/resnet50-11ad3fa6.pth', 'x/resnet50-0676ba61.pth', 'x.pth')]
    assert sizes == [232, 256, 256]
    with pytest.raises(wsol.UserError, match='no classifier "nothing"'):
        wsol.preprocessing('nothing')


@pytest.mark.parametrize('fit', ['crop', 'squash', 'pad'])
@pytest.mark.parametrize('size', SIZES)
def test_the_box_is_what_the_square_shows(fit, size):
    """A ramp from left to right and from top to bottom: a pixel's colour says where in the photo it was."""
    width, height = size
    across, down = (np.arange(length) / max(1, length - 1) * 255 for length in size)
    picture = np.stack([np.broadcast_to(across, (height, width)), np.broadcast_to(down[:, None], (height, width)),
                        np.full((height, width), 255)], 2).round().astype(np.uint8)
    side, way = 64, {'input_size': 64, 'fit': fit, 'resize_size': 72 if fit == 'crop' else 64, 'interpolation': 'bilinear', 'mean': [0] * 3}
    square = np.asarray(fitted(Image.fromarray(picture), way)).astype(float)
    x0, y0, x1, y1 = Transform(side, way=way).box(size)
    seen = square[..., 2] > 254  # not beside the photo
    rows, columns = np.nonzero(seen)
    if min(size) > 90:
        for places, low, high, channel in ((columns, x0, x1, 0), (rows, y0, y1, 1)):
            where = low + (places + 0.5) / side * (high - low)
            assert np.abs(square[rows, columns, channel] / 255 - where).max() < 0.02
    assert seen.all() or fit == 'pad'
    assert fit != 'squash' or (x0, y0, x1, y1) == (0, 0, 1, 1)
