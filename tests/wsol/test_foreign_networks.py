"""wsol.foreign_networks: torchvision's and timm's classifiers as they are, a head on any module, weights from files."""
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from conftest import flags_of, refused, shared
from PIL import Image
from torch import nn

from experiment import weights
from wsol import UserError, attribution_maps, build_model, from_classifier, from_module, parameter_groups
from wsol.backbones.timm_networks import timm_backbone
from wsol.backbones.torchvision_networks import LastMap
from wsol.networks import check_image_size, normalisation

AUXILIARY = {'googlenet': {'aux_logits': True, 'init_weights': False, 'transform_input': True}, 'inception_v3': {'init_weights': False}}


def random_classifier(name, classes=13):
    """A classifier of torchvision or timm whose random weights give scores that vary from image to image."""
    torch.manual_seed(0)
    make = timm.create_model if name.startswith('timm/') else torchvision.models.get_model
    network = make(name.removeprefix('timm/'), num_classes=classes, **AUXILIARY.get(name, {})).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.1, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
        if isinstance(layer, nn.Linear) and not layer.weight.any():  # a new ViT says the same of every image
            nn.init.normal_(layer.weight)
    return network


@pytest.mark.parametrize('name', ['resnet18', 'densenet121', 'efficientnet_b0', 'regnet_y_400mf', 'shufflenet_v2_x0_5',
                                  'mnasnet0_5', 'googlenet', 'swin_t', 'convnext_tiny'])
def test_a_trained_classifier_is_explained_as_it_is(name, tmp_path):
    """Its scores are those of the original, at its own stride; its maps average to them."""
    network = random_classifier(name)
    state = {re.sub(r'(denselayer\d+\.(?:norm|conv))(\d)', r'\1.\2', key): value for key, value in network.state_dict().items()}
    torch.save(state, tmp_path / 'trained.pth')  # DenseNet's names are those of torchvision's files
    model = from_classifier(name, tmp_path / 'trained.pth')
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        scores = network(images)
        torch.testing.assert_close(model(images), scores, rtol=1e-5, atol=1e-5 * scores.abs().max().item())
        maps = attribution_maps(model, images)
    assert maps.shape == (2, 13, 7, 7)
    torch.testing.assert_close(maps.mean((2, 3)), scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['vit_b_16', 'alexnet', 'squeezenet1_1', 'mobilenet_v3_small', 'timm/test_vit', 'timm/test_vit3', 'timm/levit_128s'])
def test_what_does_not_end_in_pooling_and_a_linear_layer_is_refused_by_name(name, tmp_path):
    torch.save(random_classifier(name).state_dict(), tmp_path / 'trained.pth')
    with pytest.raises(UserError, match=f'{name} does not end in average pooling and one linear layer'):
        from_classifier(name, tmp_path / 'trained.pth')


def test_finite_weights_that_give_no_finite_scores_are_named(tmp_path):
    network = random_classifier('resnet18')
    network.layer4[1].bn2.running_var[0] = -1
    torch.save(network.state_dict(), tmp_path / 'trained.pth')
    for explain in (lambda: from_classifier('resnet18', tmp_path / 'trained.pth'), lambda: from_module(network, 'layer4', 'CAM')):
        with pytest.raises(UserError, match='scores that are not finite'):
            explain()


# --- timm ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name, grid, large', [
    ('resnet18d', 14, 28), ('convnext_atto', 14, 28), ('mobilenetv3_small_050', 14, 28), ('swin_tiny_patch4_window7_224', 7, None), ('vit_tiny_patch16_224', 14, None),
    ('vit_small_patch14_dinov2', 16, None), ('vit_small_patch16_dinov3', 14, None), ('inception_v3', 5, None)])
def test_timms_networks_of_every_kind_train_and_give_maps(name, grid, large):
    """Convolutional maps in both layouts and token grids; strides as published where there are strides to change."""
    torch.manual_seed(0)
    architecture = f'timm/{name}'
    model = build_model(architecture, 'CALM_EM', 5).train()
    images = torch.randn(1, 3, 224, 224)
    loss, _ = model.loss(images, torch.tensor([1]))
    loss.backward()
    slow, fast = parameter_groups(model, architecture, 0.1)
    assert len(fast['params']) == 4 and any(p.grad is not None and p.grad.abs().max() > 0 for p in slow['params'])
    joint = attribution_maps(model, images)
    assert joint.shape == (1, 5, grid, grid)
    torch.testing.assert_close(joint.sum(), torch.tensor(1.0))
    if large is None:
        with pytest.raises(UserError, match='large_feature_map=True does not suit'):
            timm_backbone(architecture, None, large_feature_map=True)
    else:
        stages, _ = timm_backbone(architecture, None, large_feature_map=True)
        with torch.no_grad():
            assert stages.eval()(images).shape[2:] == (large, large)


@pytest.mark.parametrize('size', [112, 320])
@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'vit_small_patch16_dinov3', 'resnet18'])
def test_timms_networks_take_images_of_other_sizes(name, size):
    model = build_model(f'timm/{name}', 'CAM', 5).eval()
    with torch.no_grad():
        assert model.extract_features(torch.randn(1, 3, size, size)).shape[2:] == (size // 16, size // 16)


def test_changed_strides_keep_the_weights_and_the_cells():
    """Stride 1 computes the strided network's cells and those between: every second one where no padding is near."""
    torch.manual_seed(0)
    network = timm.create_model('resnet18', num_classes=0).eval()
    stages, _ = timm_backbone('timm/resnet18', None)
    stages.backbone.network.load_state_dict(network.state_dict())
    first = network.layer4[0]
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        before = network.layer3(network.layer2(network.layer1(network.maxpool(network.act1(network.bn1(network.conv1(images)))))))
        strided, dense = first(before), stages.eval().backbone.network.layer4[0](before)
    # conv2 of the block sees other neighbours; its shortcut does not
    torch.testing.assert_close(first.downsample(before), stages.backbone.network.layer4[0].downsample(before)[..., ::2, ::2])
    assert strided.shape[2:] == (7, 7) and dense.shape[2:] == (14, 14)


def test_a_network_that_timm_does_not_have():
    with pytest.raises(UserError, match='resnet18'):
        build_model('timm/resnet18x', 'CAM', 5)
    with pytest.raises(UserError, match='no network "resnet18x"'):
        flags_of('main', ['--architecture=timm/resnet18x'])


@pytest.mark.parametrize('name, words', [
    ('resnet50d.ra2_in1', 'has no weights "ra2_in1" of the network resnet50d; it has a1_in1k, .*ra2_in1k'),
    ('resnet50d.', 'has no weights "" of the network resnet50d; it has a1_in1k'),
    ('vit_relpos_small_patch16_rpn_224.x', 'has no weights "x" of .*; say timm/vit_relpos_small_patch16_rpn_224$')])
def test_weights_that_timm_does_not_have_are_answered_with_those_it_has(name, words):
    for ask in (normalisation, from_classifier, lambda name: flags_of('main', [f'--architecture={name}'])):
        with pytest.raises(UserError, match=words):
            ask(f'timm/{name}')
    flags_of('main', ['--architecture=timm/resnet50d.ra2_in1k'])


@pytest.mark.parametrize('name, size, grid', [
    ('test_maxvit', 160, 5), ('hiera_tiny_224', 224, 7), ('test_mambaout', 160, 5), ('convit_tiny', 224, 14),
    ('crossvit_tiny_240', 240, 14), ('selecsls42', 224, 14)])
def test_a_head_stands_on_the_last_map_or_tokens_of_every_family(name, size, grid):
    """Windows that divide one size alone, maps without timm's norm, both layouts, tokens, two sequences of tokens, layers
    of several inputs, and a network that keeps what it computes of shapes."""
    torch.manual_seed(0)
    model = build_model(f'timm/{name}', 'CALM_EM', 5).eval()
    check_image_size(model, size)
    maps = attribution_maps(model, torch.randn(1, 3, size, size))
    assert maps.shape == (1, 5, grid, grid)
    torch.testing.assert_close(maps.sum(), torch.tensor(1.0))


@pytest.mark.parametrize('name, prefix', [('test_vit', 1), ('test_vit_relpos', 0), ('hiera_tiny_224', 0)])
def test_the_map_of_tokens_is_that_of_the_classifier(name, prefix):
    """Its cells are the tokens that the classifier reads, in their order, without those before them."""
    network = timm.create_model(name).eval()
    model = build_model(f'timm/{name}', 'CAM', 5).eval()
    model.backbone.network.load_state_dict(network.state_dict(), strict=False)
    images = torch.randn(1, 3, *network.pretrained_cfg['input_size'][1:])
    with torch.no_grad():
        tokens = network.forward_features(images)
        torch.testing.assert_close(model.extract_features(images).flatten(2).mT, tokens[:, prefix:])


def test_the_tokens_of_torchvisions_transformers_become_a_map():
    network = torchvision.models.VisionTransformer(32, 8, 2, 2, 12, 24).eval()
    images = torch.randn(2, 3, 32, 32)
    network.encoder.register_forward_hook(lambda _, __, output: tokens.append(output))
    tokens = []
    with torch.no_grad():
        network(images)
        features = LastMap(network, 'encoder.ln', 'conv_proj')(images)
    assert torch.equal(features.flatten(2).mT, tokens[0][:, 1:]) and features.shape == (2, 12, 4, 4)
    model = build_model('vit_b_32', 'CALM_EM', 3).eval()
    check_image_size(model, 224)
    assert attribution_maps(model, torch.randn(1, 3, 224, 224)).shape == (1, 3, 7, 7)


def test_a_network_of_one_size_is_tried_at_that_size(script, tmp_path):
    """CoAtNet takes images of 160 pixels alone; of another size the command asks for this one."""
    torch.manual_seed(0)
    network = timm.create_model('test_coatnet', num_classes=13).eval()
    torch.save(network.state_dict(), 'trained.pth')
    model, images = from_classifier('timm/test_coatnet', 'trained.pth'), torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(model(images), network(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(from_module(network, 'norm', 'CAM', image_size=160)(images), network(images), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match='this module, up to norm, does not take an image of 224 x 224 pixels .*image_size='):
        from_module(network, 'norm', 'CAM')
    Image.new('RGB', (50, 60)).save('photo.png')
    flags = ['photo.png', '--architecture=timm/test_coatnet', '--pretrained=trained.pth', '--workers=0']
    refused(script('inference', *flags, '--crop_size=224'), 'crop_size=224 does not suit this network', 'timm trained it at 160')
    code, _, err = script('inference', *flags, '--crop_size=160')
    assert code == 0, err


@pytest.mark.parametrize('name, size', [('convnext_atto', 224), ('test_vit_relpos', 160), ('efficientvit_m0', 224)])
def test_a_norm_between_pooling_and_the_linear_layer_is_a_part_of_cam(name, size, tmp_path):
    """LayerNorm of averaged maps and tokens, and BatchNorm of averaged maps: maps average to the classifier's scores."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=13).eval()
    for layer in network.modules():
        if isinstance(layer, (nn.LayerNorm, nn.BatchNorm1d)):  # as if trained: no two are alike
            nn.init.uniform_(layer.weight, 0.5, 1.5), nn.init.uniform_(layer.bias, -0.5, 0.5)
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.uniform_(-0.1, 0.1), layer.running_var.uniform_(0.5, 1.5)
    torch.save(network.state_dict(), tmp_path / 'trained.pth')
    model, images = from_classifier(f'timm/{name}', tmp_path / 'trained.pth'), torch.randn(2, 3, size, size)
    with torch.no_grad():
        scores = network(images)
        tolerance = {'rtol': 1e-4, 'atol': 1e-5 * scores.abs().max().item()}
        torch.testing.assert_close(model(images), scores, **tolerance)
        torch.testing.assert_close(attribution_maps(model, images).mean((2, 3)), scores, **tolerance)


def test_the_networks_own_mean_and_deviation():
    assert normalisation('timm/vit_tiny_patch16_224') == ((0.5,) * 3, (0.5,) * 3)
    assert normalisation('timm/resnet18') == normalisation('resnet18') == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_mean_and_deviation_are_recorded_and_used(script, tiny_birds, tmp_path):
    """A network trained on images scaled its own way is evaluated on images scaled so."""
    code, _, err = script('main', *tiny_birds, '--architecture=timm/test_vit', '--pretrained=False', '--epochs=1', '--batch_size=20', '--crop_size=64')
    assert code == 0, err
    path = tmp_path / 'save/result/last_checkpoint.pth.tar'
    content = torch.load(path, weights_only=True)
    assert content['normalisation'] == normalisation('timm/test_vit')
    code, _, err = script('eval_pixel_perturb', *tiny_birds, '--crop_size=64')
    assert code == 0, err
    (result,) = (tmp_path / 'save/result').glob('pixel_perturb_*.json')
    before = json.loads(result.read_text())['ratios']
    content['normalisation'] = ((9.0,) * 3, (1.0,) * 3)
    torch.save(content, path)
    assert script('eval_pixel_perturb', *tiny_birds, '--crop_size=64')[0] == 0
    assert json.loads(result.read_text())['ratios'] != before


# --- weights from files, of any architecture ----------------------------------------------------------

@pytest.mark.parametrize('name, wrapped', [('resnet18', False), ('inception_v3', False), ('efficientnet_b0', True), ('timm/resnet18d', True)])
def test_pretrained_file_fills_the_backbone(name, wrapped, tmp_path):
    """Strictly, but for the classifier; `state_dict` inside a dict and `module.` before the names are understood."""
    state = random_classifier(name, 7).state_dict()
    content = {'state_dict': {f'module.{key}': value for key, value in state.items()}} if wrapped else state
    torch.save(content, tmp_path / 'file.pth')
    model = build_model(name, 'CAM', 3, pretrained=tmp_path / 'file.pth')
    ours = {re.sub('backbone.(body|network).', '', key): value for key, value in model.state_dict().items()}
    shared_names = [key for key in ours if key in state]
    assert len(shared_names) > 20 and all(torch.equal(ours[key], state[key]) for key in shared_names)
    if name != 'resnet18':
        return
    torch.save(state | {'surplus': torch.ones(1)}, tmp_path / 'other.pth')
    with pytest.raises(UserError, match='surplus is not a part of the network'):
        build_model(name, 'CAM', 3, pretrained=tmp_path / 'other.pth')


def test_a_training_starts_from_the_file(script, tiny_birds, tmp_path):
    """main.py --pretrained=FILE, learning nothing: the backbone that is saved is the file's."""
    state = random_classifier('resnet18').state_dict()
    torch.save(state, 'file.pth')
    code, _, err = script('main', *tiny_birds, '--architecture=resnet18', '--attribution_method=CALM_EM', '--pretrained=file.pth',
                          '--freeze', '--epochs=1', '--batch_size=20', '--experiment_name=from_file')
    assert code == 0, err
    saved = weights.load_model('from_file')[1].weights
    shared_names = [name for name in saved if name in state]
    assert len(shared_names) > 100 and all(torch.equal(saved[name], state[name]) for name in shared_names)


def test_weights_that_timm_cannot_have_are_an_error_of_one_line(monkeypatch):
    def unreachable(*_, pretrained, **__):
        if pretrained:
            raise OSError('no\nsuch host')
    monkeypatch.setattr(timm, 'create_model', unreachable)
    with pytest.raises(UserError, match='could not be loaded .no such host.*pretrained=FILE'):
        build_model('timm/resnet18', 'CAM', 3, pretrained=True)


def test_a_package_that_is_not_installed_is_named(script, tiny_birds, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    Path('weights.safetensors').write_bytes((2).to_bytes(8, 'little') + b'{}')
    refused(script('main', *tiny_birds, '--architecture=resnet18', '--pretrained=weights.safetensors'),
            'weights.safetensors needs the package safetensors: pip install safetensors')


def test_a_plain_state_dict_is_explained_without_training(script, tmp_path):
    torch.save(random_classifier('resnet18').state_dict(), 'mine.pth')
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)).save('photo.png')
    code, out, err = script('inference', 'photo.png', '--architecture=resnet18', '--load_checkpoint=mine.pth', '--workers=0',
                            '--score_map_process=grad_cam')
    assert code == 0, err
    (entry,) = json.loads((tmp_path / 'maps/manifest.json').read_text())['images']
    assert entry['class_name'].startswith('class ') and 0 < entry['probability'] < 1
    code, _, err = script('inference', 'photo.png', '--architecture=vgg11', '--load_checkpoint=mine.pth')
    assert code == 2 and 'mine.pth does not fit the network' in err
    code, _, err = script('inference', 'photo.png', '--architecture=resnet18', '--pretrained=False')
    assert code == 2 and 'leaves nothing to explain' in err
    for source in ('load_checkpoint', 'pretrained'):  # its strides are as they are
        code, _, err = script('inference', 'photo.png', '--architecture=resnet18', f'--{source}=mine.pth', '--large_feature_map')
        assert code == 2 and 'mine.pth was trained with --large_feature_map=' in err


def test_a_replaced_head_is_explained_or_refused_by_all_scripts(script, tiny_birds, tmp_path):
    one, two = (shared('cases', '01-replaced-head', f'{name}.pth') for name in ('weights', 'weights_two_layers'))
    photo, flags = shared('cases', '01-replaced-head', 'photo.png'), ['--architecture=shufflenet_v2_x0_5', '--workers=0']
    for _ in range(2):
        code, out, err = script('inference', photo, *flags, f'--load_checkpoint={one}')
        assert code == 0 and 'class 2, p = 0.964' in out and 'fc.1 is taken as the classifier' in err
    for name, more in (('inference', [photo]), ('eval_pixel_perturb', tiny_birds), ('eval_wsol', tiny_birds), ('export', [])):
        refused(script(name, *more, *flags, f'--load_checkpoint={two}'), 'the classifier is not one linear layer, it may have fc.0.weight')


def test_a_state_dict_is_chosen_by_its_key(script, tmp_path):
    state = random_classifier('resnet18').state_dict()
    other = state | {'fc.bias': torch.eye(13)[7] * 1e3}
    torch.save({'model': state, 'state_dict_ema': {f'module.{name}': value for name, value in other.items()}}, 'mine.pth')
    Image.new('RGB', (50, 60)).save('photo.png')
    for flags, is_chosen in (([], False), (['--weights_key=state_dict_ema'], True)):
        for source in ('load_checkpoint', 'pretrained'):
            code, out, err = script('inference', 'photo.png', '--architecture=resnet18', f'--{source}=mine.pth', '--workers=0', *flags)
            assert code == 0 and ('class 7, p = 1.000' in out) == is_chosen == ('not those of weights_key=state_dict_ema' not in err), err


# --- any module ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_a_head_is_computed_in_as_its_network_is(dtype):
    """In its precision and on its device, be it the network's own classifier or a new head."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
                            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval().to(dtype)
    model, images = from_module(network, '3', 'CAM'), torch.randn(2, 3, 96, 96, dtype=dtype)
    with torch.no_grad():
        rtol = 1e-12 if dtype == torch.float64 else 0.02
        torch.testing.assert_close(model(images).to(dtype), network(images), rtol=rtol, atol=rtol * network(images).abs().max().item())
    with pytest.raises(UserError, match='does not end in average pooling'):
        from_module(network, '1', 'CAM')
    for method in ('CAM', 'CALM_EM'):
        model = from_module(network, '1', method, num_classes=9)
        assert model(images).dtype == torch.promote_types(dtype, torch.float32)  # a head is no coarser than float32


@pytest.mark.parametrize('layer, options, words', [
    ('layer9', {}, 'no submodule; the outermost ones are conv1'), ('fc', {'num_classes': 3}, r'no map \(B,D,h,w\)'),
    ('layer4', {'attribution_method': 'CALM_EM'}, 'say num_classes'), ('layer4', {'attribution_method': 'X', 'num_classes': 3}, 'no head')])
def test_what_a_module_cannot_be_asked(layer, options, words):
    with pytest.raises(UserError, match=words):
        from_module(torchvision.models.resnet18(num_classes=4), layer, **options)
