"""wsol's networks: published names, groups and map sizes; weights complete; torchvision mended where needed."""
import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, shared

import config
from util import UserError, load_weights
from wsol import ARCHITECTURE_NAMES, ARCHITECTURES, METHODS, build_model, parameter_groups
from wsol._torchvision import torchvision
from wsol.attribution import attribution_maps


def published_names():
    return json.loads(shared('golden', 'resnet50_names.json').read_text())


@pytest.mark.parametrize('method', ['CALM_EM', 'CALM_ML'])
def test_resnet50_has_the_published_names_and_shapes(method):
    names = published_names()['state_dict']
    with torch.device('meta'):
        model = build_model('resnet50', method, 200)
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == names


def test_resnet50_has_the_published_learning_rate_groups():
    slow_names = set(published_names()['low_learning_rate'])
    with torch.device('meta'):
        model = build_model('resnet50', 'CALM_EM', 200)
    slow, fast = parameter_groups(model, 'resnet50', lr=0.01, lr_classifier_ratio=10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in slow['params']} == slow_names
    assert {names[id(parameter)] for parameter in fast['params']} == set(names.values()) - slow_names
    assert (slow['lr'], fast['lr']) == (0.01, 0.1)


def test_fine_tuning_slows_the_whole_backbone():
    with torch.device('meta'):
        model = build_model('resnet50', 'CALM_EM', 200)
    _, fast = parameter_groups(model, 'resnet50', 0.01, is_different_checkpoint=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in fast['params']} == {
        'conv_last.weight', 'conv_last.bias', 'attention.0.weight', 'attention.0.bias'}


@pytest.mark.parametrize('architecture', ['resnet18', 'resnet50', 'vgg16', 'inception_v3'])
@pytest.mark.parametrize('large, side', [(False, 14), (True, 28)])
def test_maps_of_a_224_pixel_image_are_14_or_28_wide(architecture, large, side):
    with torch.device('meta'):
        model = build_model(architecture, 'CAM', 7, large_feature_map=large).eval()
        features = model.extract_features(torch.empty(2, 3, 224, 224))
    assert features.shape == (2, model.conv_last.in_channels, side, side)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('architecture', ['resnet18', 'resnet50', 'vgg16', 'inception_v3'])
def test_every_head_on_every_network(architecture, method):
    model = build_model(architecture, method, 7).eval()
    features, logits, prior = model.activations(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 7, *features.shape[2:])
    assert prior is None if method == 'CAM' else prior.shape == (2, *features.shape[2:])
    torch.testing.assert_close(model(torch.randn(2, 3, 64, 64)).softmax(1).sum(1), torch.ones(2))


@pytest.mark.parametrize('architecture, slow, fast', [
    ('vgg16', {'features'}, {'conv6', 'bn6', 'conv_last', 'attention'}),
    ('inception_v3', {'Conv2d_1a_3x3', 'Conv2d_2a_3x3', 'Conv2d_2b_3x3', 'Conv2d_3b_1x1', 'Conv2d_4a_3x3', 'Mixed_5b',
                      'Mixed_5c', 'Mixed_5d', 'Mixed_6a', 'Mixed_6b', 'Mixed_6c', 'Mixed_6d', 'Mixed_6e'},
     {'A3_1b', 'A3_2b', 'conv_last', 'attention'}),
    ('swin_t', {'backbone'}, {'conv_last', 'attention'}),
])
def test_learning_rate_groups_of_the_other_networks(architecture, slow, fast):
    model = build_model(architecture, 'CALM_EM', 7, use_bn=True)
    names = {id(parameter): name.split('.')[0] for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, architecture, 0.01)
    assert [{names[id(parameter)] for parameter in group['params']} for group in groups] == [slow, fast]
    groups = parameter_groups(model, architecture, 0.01, is_different_checkpoint=True)
    quick = {names[id(parameter)] for parameter in groups[1]['params']}
    assert quick == ({'conv_last', 'attention'} if architecture != 'inception_v3' else fast)


@pytest.mark.parametrize('large', [False, True])
@pytest.mark.parametrize('architecture', ['vgg16', 'inception_v3'])
def test_batch_norm_of_the_added_layers_is_optional(architecture, large):
    with torch.device('meta'):
        plain, normed = (build_model(architecture, 'CAM', 7, large_feature_map=large, use_bn=use_bn)
                         for use_bn in (False, True))
    added = ARCHITECTURES[architecture].added
    for model, expected in ((plain, False), (normed, True)):
        assert any('running_mean' in name for name in model.state_dict() if name.startswith(added)) == expected
    convolutions = [sum('weight' in name and value.ndim == 4 for name, value in model.state_dict().items())
                    for model in (plain, normed)]
    assert convolutions[0] == convolutions[1]


def test_inceptions_last_block_is_used():
    """The published code computes Mixed_6e and drops it."""
    model = build_model('inception_v3', 'CAM', 7).eval()
    images = torch.randn(1, 3, 64, 64)
    before = model(images)
    model.Mixed_6e.branch1x1.conv.weight.data *= 2
    assert not torch.equal(model(images), before)


def test_vgg_is_initialised_by_he_fan_out():
    torch.manual_seed(0)
    weight = build_model('vgg16', 'CAM', 7).conv6.weight
    assert weight.std().item() == pytest.approx((2 / (1024 * 9)) ** 0.5, rel=0.01)


@pytest.mark.parametrize('name', ['convnext_tiny', 'mobilenet_v3_large', 'efficientnet_b0', 'densenet121', 'swin_t',
                                  'shufflenet_v2_x0_5', 'regnet_y_400mf', 'mnasnet0_5', 'squeezenet1_1', 'googlenet',
                                  'alexnet', 'resnext50_32x4d'])
def test_any_classifier_trains_a_step_and_gives_maps(name):
    torch.manual_seed(0)
    model = build_model(name, 'CALM_EM', 5)
    optimiser = torch.optim.SGD(parameter_groups(model, name, 1e-3))
    before = {key: value.clone() for key, value in model.named_parameters()}
    images = torch.randn(2, 3, 96, 96)
    loss, _ = model.loss(images, torch.tensor([0, 1]))
    loss.backward()
    optimiser.step()
    moved = [key for key, value in model.named_parameters() if not torch.equal(value, before[key])]
    assert torch.isfinite(loss) and len(moved) > len(before) / 2
    model.eval()
    maps = attribution_maps(model, images, torch.tensor([0, 1]), 'jointll')
    assert maps.ndim == 3 and min(maps.shape[1:]) > 1
    torch.testing.assert_close(maps.sum((1, 2)), model(images).softmax(1)[[0, 1], [0, 1]])


@pytest.mark.parametrize('name, words', [('vit_b_16', 'no spatial last map'), ('convnexttiny', 'no architecture')])
def test_what_cannot_be_a_backbone_is_refused(name, words):
    with pytest.raises(UserError, match=words):
        build_model(name, 'CAM', 5)


@pytest.mark.parametrize('name, option', [('convnext_tiny', 'large_feature_map'), ('vgg16', 'last_stage')])
def test_options_that_a_network_does_not_have_are_refused(name, option):
    with pytest.raises(UserError, match=option):
        build_model(name, 'CAM', 5, **{option: True if option == 'large_feature_map' else 'layer2'})


@pytest.mark.parametrize('stage, features', [('layer1', 64), ('layer2', 128), ('layer3', 256)])
def test_a_network_can_stop_at_an_earlier_stage(stage, features):
    with torch.device('meta'):
        model = build_model('resnet18', 'CAM', 7, last_stage=stage)
        assert model.extract_features(torch.empty(1, 3, 64, 64)).shape[1] == features


def test_random_initialisation_is_xavier_with_zero_biases():
    torch.manual_seed(0)
    model = build_model('resnet18', 'CALM_EM', 7)
    weight = model.layer4[0].conv2.weight
    bound = (6 / (2 * 512 * 9)) ** 0.5
    assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / 3 ** 0.5, rel=0.01)
    assert not model.conv_last.bias.any() and not model.attention[0].bias.any()


def put_imagenet_file(name, hub):
    """Random weights where torchvision keeps a download, under the real names. Returns them."""
    weights = torchvision.models.get_model_weights(name)['IMAGENET1K_V1']
    with torch.device('meta'):
        options = {'init_weights': False} if 'inception' in name else {}
        shapes = torchvision.models.get_model(name, **options).state_dict()
    torch.manual_seed(1)
    state = {key: torch.rand(value.shape) if value.is_floating_point() else torch.tensor(7)
             for key, value in shapes.items()}
    path = hub / 'checkpoints' / weights.url.split('/')[-1]
    path.parent.mkdir(exist_ok=True)
    torch.save(state, path)
    return state


@pytest.mark.parametrize('architecture, use_bn, file, dropped', [
    ('resnet18', False, 'resnet18', 'fc.'), ('resnet50', False, 'resnet50', 'fc.'),
    ('vgg16', False, 'vgg16', 'classifier.'), ('vgg16', True, 'vgg16_bn', 'classifier.'),
    ('inception_v3', False, 'inception_v3', ('fc.', 'AuxLogits.', 'Mixed_7')),
    ('inception_v3', True, 'inception_v3', ('fc.', 'AuxLogits.', 'Mixed_7')),
])
def test_imagenet_weights_fill_the_whole_backbone(tmp_path, monkeypatch, architecture, use_bn, file, dropped):
    """Every tensor of the file that belongs to the backbone, BatchNorm statistics included, for both map sizes."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    state = put_imagenet_file(file, tmp_path)
    for large in (False, True):
        model = build_model(architecture, 'CALM_EM', 7, pretrained=True, large_feature_map=large, use_bn=use_bn)
        ours = model.state_dict()
        fresh = (*ARCHITECTURES[architecture].added, 'conv_last', 'attention')
        added = {name for name in ours if name.startswith(fresh)}
        assert set(ours) - added == {name for name in state if not name.startswith(dropped)}
        assert all(torch.equal(ours[name], state[name]) for name in set(ours) - added)
        assert not model.conv_last.bias.any()


def test_imagenet_weights_out_of_reach_are_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))

    def refused(*_, **__):
        raise OSError('connection refused')
    monkeypatch.setattr(torch.hub, 'download_url_to_file', refused)
    with pytest.raises(UserError, match='--pretrained=False'):
        build_model('resnet18', 'CAM', 7, pretrained=True)


def test_weights_load_with_and_without_the_module_prefix_and_never_in_part():
    source, target = (build_model('resnet18', 'CALM_EM', 7, last_stage='layer1') for _ in range(2))
    state = source.state_dict()
    for prefix in ('', 'module.'):
        load_weights(target, {'state_dict': {prefix + name: value for name, value in state.items()}}, 'here')
        assert all(torch.equal(value, state[name]) for name, value in target.state_dict().items())
    before = {name: value.clone() for name, value in target.state_dict().items()}
    wrong = {name: value + 1 for name, value in state.items() if name != 'bn1.weight'} | {'surplus': torch.zeros(1)}
    wrong['conv_last.weight'] = torch.zeros(9, 64, 1, 1)
    with pytest.raises(UserError) as error:
        load_weights(target, {'state_dict': wrong}, 'this file')
    for word in ('this file', 'bn1.weight is missing', 'surplus', '(9, 64, 1, 1)', '(7, 64, 1, 1)'):
        assert word in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_fine_tuning_loads_all_but_the_classifier():
    source = build_model('resnet18', 'CALM_EM', 9, last_stage='layer1')
    target = build_model('resnet18', 'CALM_EM', 7, last_stage='layer1')
    own = target.conv_last.weight.clone()
    load_weights(target, {'state_dict': source.state_dict()}, 'here', but_classifier=True)
    assert torch.equal(target.conv_last.weight, own)
    assert torch.equal(target.attention[0].weight, source.attention[0].weight)


def test_fine_tuning_crosses_from_cam_to_calm_and_back():
    cam, calm = (build_model('resnet18', method, 7, last_stage='layer1') for method in ('CAM', 'CALM_EM'))
    own = calm.attention[0].weight.clone()
    load_weights(calm, {'state_dict': cam.state_dict(), 'model': {}}, 'here', but_classifier=True)
    assert torch.equal(calm.attention[0].weight, own) and torch.equal(calm.conv1.weight, cam.conv1.weight)
    calm.conv1.weight.data += 1
    load_weights(cam, {'state_dict': calm.state_dict(), 'model': {}}, 'here', but_classifier=True)
    assert torch.equal(calm.conv1.weight, cam.conv1.weight)


def test_published_cam_weights_load_though_they_carry_an_attention():
    source = build_model('resnet18', 'CALM_EM', 7, last_stage='layer1')
    load_weights(build_model('resnet18', 'CAM', 7, last_stage='layer1'), {'state_dict': source.state_dict()}, 'here')


@pytest.mark.parametrize('broken', [True, False])
def test_torchvision_is_mended_only_where_its_operators_are_missing(tmp_path, broken):
    """With a torchvision that imports, the mending module registers nothing."""
    fake = tmp_path / 'torchvision'
    fake.mkdir()
    (fake / '__init__.py').write_text(
        'import torch\nif not hasattr(torch.ops.torchvision, "nms"):\n'
        '    raise RuntimeError("operator torchvision::nms does not exist")\n' if broken else '')
    code = ('import importlib.util, sys, torch\n'
            f'spec = importlib.util.spec_from_file_location("mend", {str(ROOT / "wsol" / "_torchvision.py")!r})\n'
            'module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n'
            'print(hasattr(torch.ops.torchvision, "nms"))')
    run = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True,
                         env={'PYTHONPATH': str(tmp_path), 'PATH': ''}, check=True)
    assert run.stdout.strip() == str(broken)


def test_registry_keys_are_the_command_lines_choices():
    for flag, keys in (('architecture', ARCHITECTURE_NAMES), ('attribution_method', METHODS)):
        for key in keys:
            assert config.parse('', [f'--{flag}={key}'])[flag] == key
