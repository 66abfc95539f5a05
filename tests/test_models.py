"""wsol's networks: published names, groups and map sizes; weights complete; torchvision mended where needed."""
import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, shared

import config
from util import UserError, load_weights
from wsol import ARCHITECTURES, METHODS, build_model, parameter_groups
from wsol._torchvision import torchvision


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


@pytest.mark.parametrize('architecture', ARCHITECTURES)
@pytest.mark.parametrize('large, side', [(False, 14), (True, 28)])
def test_maps_of_a_224_pixel_image_are_14_or_28_wide(architecture, large, side):
    with torch.device('meta'):
        model = build_model(architecture, 'CAM', 7, large_feature_map=large).eval()
        features = model.extract_features(torch.empty(2, 3, 224, 224))
    assert features.shape == (2, model.conv_last.in_channels, side, side)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_every_head_on_every_network(architecture, method):
    model = build_model(architecture, method, 7).eval()
    features, logits, prior = model.activations(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 7, *features.shape[2:])
    assert prior is None if method == 'CAM' else prior.shape == (2, *features.shape[2:])
    torch.testing.assert_close(model(torch.randn(2, 3, 64, 64)).softmax(1).sum(1), torch.ones(2))


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


@pytest.fixture
def imagenet_file(tmp_path, monkeypatch):
    """A function that puts random weights where torchvision keeps a download, under the real names."""
    def put(name):
        monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
        weights = torchvision.models.get_model_weights(name)['IMAGENET1K_V1']
        torch.manual_seed(1)
        state = torchvision.models.get_model(name).state_dict()
        state = {key: torch.rand_like(value) if value.is_floating_point() else value + 7
                 for key, value in state.items()}
        path = tmp_path / 'checkpoints' / weights.url.split('/')[-1]
        path.parent.mkdir(exist_ok=True)
        torch.save(state, path)
        return state
    return put


@pytest.mark.parametrize('large', [False, True])
def test_imagenet_weights_fill_the_whole_backbone(imagenet_file, large):
    state = imagenet_file('resnet18')
    model = build_model('resnet18', 'CALM_EM', 7, pretrained=True, large_feature_map=large)
    ours = model.state_dict()
    new = {name for name in ours if name.startswith(('conv_last', 'attention'))}
    assert set(ours) - new == {name for name in state if not name.startswith('fc.')}
    assert all(torch.equal(ours[name], state[name]) for name in set(ours) - new)
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
    for flag, keys in (('architecture', ARCHITECTURES), ('attribution_method', METHODS)):
        for key in keys:
            assert config.parse('', [f'--{flag}={key}'])[flag] == key
