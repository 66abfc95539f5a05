"""wsol's networks: published names, groups and map sizes; weights complete; torchvision mended where needed."""
import json
import logging
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import GOLDEN, ROOT, flags_of

from experiment.weights import Checkpoint, load_weights
from wsol import ARCHITECTURES, HEADS, architecture_names, build_model, parameter_groups
from wsol.attribution.maps import attribution_maps
from wsol.backbones.torchvision_networks import LastMap
from wsol.errors import UserError
from wsol.networks import check_image_size


@pytest.mark.parametrize('method', ['CALM_EM', 'CALM_ML'])
def test_resnet50_has_the_published_names_shapes_and_learning_rate_groups(method):
    published = json.loads((GOLDEN / 'resnet50_names.json').read_text())
    slow_names = set(published['low_learning_rate'])
    with torch.device('meta'):
        model = build_model('resnet50', method, 200)
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == published['state_dict']
    slow, fast = parameter_groups(model, 'resnet50', lr=0.01, lr_classifier_ratio=10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in slow['params']} == slow_names
    assert {names[id(parameter)] for parameter in fast['params']} == set(names.values()) - slow_names
    assert (slow['lr'], fast['lr']) == (0.01, 0.1)
    _, fast = parameter_groups(model, 'resnet50', 0.01, is_different_checkpoint=True)  # fine-tuning slows the backbone
    assert {names[id(parameter)] for parameter in fast['params']} == {
        'conv_last.weight', 'conv_last.bias', 'attention.0.weight', 'attention.0.bias'}


@pytest.mark.parametrize('architecture', ['resnet18', 'resnet50', 'vgg16', 'inception_v3'])
@pytest.mark.parametrize('large, side', [(False, 14), (True, 28)])
def test_maps_of_a_224_pixel_image_are_14_or_28_wide(architecture, large, side):
    with torch.device('meta'):
        model = build_model(architecture, 'CAM', 7, large_feature_map=large).eval()
        features = model.extract_features(torch.empty(2, 3, 224, 224))
    assert features.shape == (2, model.conv_last.in_channels, side, side)


@pytest.mark.parametrize('architecture, method', [*(('resnet18', method) for method in HEADS), ('vgg16', 'CALM_EM'),
                                                  ('inception_v3', 'CALM_EM')])
def test_every_head_and_every_network(architecture, method):
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


@pytest.mark.parametrize('architecture', ['vgg16', 'inception_v3'])
def test_batch_norm_of_the_added_layers_is_optional(architecture):
    with torch.device('meta'):
        plain, normed = (build_model(architecture, 'CAM', 7, use_bn=use_bn) for use_bn in (False, True))
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


@pytest.mark.parametrize('large, use_bn, numbers', [
    (True, False, [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 23, 25, 27]), (False, False, [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]),
    (True, True, [0, 1, 3, 4, 7, 8, 10, 11, 14, 15, 17, 18, 20, 21, 24, 25, 27, 28, 30, 31, 33, 34, 36, 37, 39, 40])])
def test_vggs_layers_have_the_published_numbers(large, use_bn, numbers):
    with torch.device('meta'):
        names = build_model('vgg16', 'CAM', 2, large_feature_map=large, use_bn=use_bn).state_dict()
    assert sorted({int(name.split('.')[1]) for name in names if name.startswith('features.')}) == numbers


def test_vgg_is_initialised_by_he_fan_out():
    torch.manual_seed(0)
    weight = build_model('vgg16', 'CAM', 7).conv6.weight
    assert weight.std().item() == pytest.approx((2 / (1024 * 9)) ** 0.5, rel=0.01)


@pytest.mark.parametrize('name', ['convnext_tiny', 'mobilenet_v3_small', 'efficientnet_b0', 'densenet121', 'swin_t',
                                  'shufflenet_v2_x0_5', 'regnet_y_400mf', 'mnasnet0_5', 'squeezenet1_1', 'googlenet', 'alexnet'])
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


@pytest.mark.parametrize('name, options, words', [
    ('convnexttiny', {}, 'no architecture'),
    ('convnext_tiny', {'large_feature_map': True}, 'large_feature_map=True does not suit convnext_tiny'),
    ('vgg16', {'last_stage': 'layer2'}, 'last_stage=layer2 does not suit vgg16'),
    ('resnet18', {'last_stage': 'layer5'}, 'a ResNet has no stage "layer5"'), ('resnet18', {'last_stage': ''}, 'no stage ""'),
    ('resnet18', {'prior': 'sigmoid'}, 'no prior "sigmoid"; there are relu, softplus')])
def test_what_a_network_cannot_be_is_refused(name, options, words):
    with pytest.raises(UserError, match=words):
        build_model(name, 'CAM', 5, **options)


@pytest.mark.parametrize('last_stage, width, field', [('layer1', 64, 43), ('layer2', 128, 99)])
def test_what_a_cell_of_a_resnet_18_sees_of_the_picture(last_stage, width, field):
    torch.manual_seed(0)
    model = build_model('resnet18', 'CAM', 7, last_stage=last_stage).eval()
    images = torch.randn(4, 3, 160, 160, requires_grad=True)
    features = model.extract_features(images)
    assert features.shape[1] == model.conv_last.in_channels == width
    middle = features.shape[2] // 2
    features[:, :, middle, middle].square().sum().backward()
    rows, columns = images.grad.abs().sum((0, 1)).nonzero().T
    assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == field


def test_random_initialisation_is_xavier_with_zero_biases():
    torch.manual_seed(0)
    model = build_model('resnet18', 'CALM_EM', 7)
    weight = model.layer4[0].conv2.weight
    bound = (6 / (2 * 512 * 9)) ** 0.5
    assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / 3 ** 0.5, rel=0.01)
    assert not model.conv_last.bias.any() and not model.attention[0].bias.any()


# --- the size of the images ------------------------------------------------------------------------------------


@pytest.mark.parametrize('architecture, sizes', [('resnet18', (33, 16, 8, 1)), ('vgg16', (64, 31, 8)),
                                                 ('inception_v3', (35, 20, 8)), ('swin_t', (64, 33, 2)), ('alexnet', (96, 32)),
                                                 ('vit_b_32', (224, 64))])
def test_an_image_size_is_refused_where_the_network_fails_or_leaves_one_cell(architecture, sizes, caplog, monkeypatch):
    """And only there: a real forward is the judge. It takes one line: torch, which would print tracebacks, logs nothing."""
    monkeypatch.setattr(logging.getLogger('torch._subclasses.fake_tensor'), 'handlers', [caplog.handler])
    model, judged = build_model(architecture, 'CALM_EM', 3).eval(), set()
    for size in sizes:
        cells = 0
        with suppress(RuntimeError, AssertionError), torch.no_grad():
            cells = model.extract_features(torch.zeros(1, 3, size, size))[0, 0].numel()
        judged.add(cells > 1)
        with nullcontext() if cells > 1 else pytest.raises(UserError, match=f'^crop_size={size} (?!.*Proxy)[^\n]*$'):
            check_image_size(model, size)
    assert judged == {True, False} and not caplog.records


@pytest.mark.parametrize('error', [torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB'),
                                   RuntimeError('CUDA error: no kernel image is available for execution on the device')])
def test_memory_and_device_are_no_matter_of_the_size(error):
    """What fails in computing is not blamed on the size: it is seen where it happens, in its own words."""
    def fail(_, __, output):
        if not isinstance(output, torch._subclasses.FakeTensor):
            raise error
    model = build_model('resnet18', 'CAM', 3, last_stage='layer1')
    model.layer1.register_forward_hook(fail)
    check_image_size(model, 64)
    with pytest.raises(type(error), match='CUDA'):
        model(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize('size', [64, 8])
def test_checking_a_size_leaves_the_network_and_the_generator_alone(size):
    model = build_model('resnet18', 'CALM_EM', 3).train()
    model.bn1.eval()  # frozen
    modes, parameters = [module.training for module in model.modules()], dict(model.named_parameters())
    before, generator = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    with nullcontext() if size == 64 else pytest.raises(UserError):
        check_image_size(model, size)
    assert [module.training for module in model.modules()] == modes and torch.equal(torch.get_rng_state(), generator)
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name] and parameter.grad is None and type(parameter.data) is torch.Tensor
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()(torch.zeros(1, 3, 64, 64))  # and the network still computes


# --- weights -------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize('architecture, options, file, dropped', [
    ('resnet18', {'large_feature_map': True}, 'resnet18', 'fc.'), ('vgg16', {}, 'vgg16', 'classifier.'),
    ('vgg16', {'use_bn': True, 'large_feature_map': True}, 'vgg16_bn', 'classifier.'),
    ('inception_v3', {'use_bn': True}, 'inception_v3', ('fc.', 'AuxLogits.', 'Mixed_7'))])
def test_imagenet_weights_fill_the_whole_backbone(tmp_path, monkeypatch, architecture, options, file, dropped):
    """Every tensor of the file that belongs to the backbone, BatchNorm statistics included."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    state = put_imagenet_file(file, tmp_path)
    model = build_model(architecture, 'CALM_EM', 7, pretrained=True, **options)
    ours = model.state_dict()
    fresh = (*ARCHITECTURES[architecture].added, 'conv_last', 'attention')
    added = {name for name in ours if name.startswith(fresh)}
    if architecture == 'vgg16':  # its last block moves up by the place of the fourth pool
        kept = [[name for name in names if name.startswith('features.')] for names in (ours, state)]
        state = {name: state[before] for name, before in zip(*kept, strict=True)}
    assert set(ours) - added == {name for name in state if not name.startswith(dropped)}
    assert all(torch.equal(ours[name], state[name]) for name in set(ours) - added)
    assert not model.conv_last.bias.any()


def test_imagenet_weights_out_of_reach_are_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))

    def refused(*_, **__):
        raise OSError('connection refused')
    monkeypatch.setattr(torch.hub, 'download_url_to_file', refused)
    with pytest.raises(UserError, match='pretrained=False'):
        build_model('resnet18', 'CAM', 7, pretrained=True)


def checkpoint(content):
    """A checkpoint that says this of itself."""
    return Checkpoint(Path('here'), content)


def test_weights_load_with_and_without_the_module_prefix_and_never_in_part():
    source, target = (build_model('resnet18', 'CALM_EM', 7, last_stage='layer1') for _ in range(2))
    state = source.state_dict()
    for prefix in ('', 'module.'):
        load_weights(target, checkpoint({'state_dict': {prefix + name: value for name, value in state.items()}}))
        assert all(torch.equal(value, state[name]) for name, value in target.state_dict().items())
    before = {name: value.clone() for name, value in target.state_dict().items()}
    wrong = {name: value + 1 for name, value in state.items() if name != 'bn1.weight'} | {'surplus': torch.zeros(1)}
    wrong['conv_last.weight'] = torch.zeros(9, 64, 1, 1)
    with pytest.raises(UserError) as error:
        load_weights(target, checkpoint({'state_dict': wrong}))
    for word in ('here', 'bn1.weight is missing', 'surplus', '(9, 64, 1, 1)', '(7, 64, 1, 1)'):
        assert word in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_fine_tuning_crosses_from_cam_to_calm_and_back():
    cam, calm = (build_model('resnet18', method, 7, last_stage='layer1') for method in ('CAM', 'CALM_EM'))
    attention = calm.attention[0].weight.clone()
    ours = {'attribution_method': 'CAM'}  # what a checkpoint of our own says of its network
    load_weights(calm, checkpoint({'state_dict': cam.state_dict(), 'model': ours}), but_classifier=True)
    assert torch.equal(calm.attention[0].weight, attention) and torch.equal(calm.conv1.weight, cam.conv1.weight)
    calm.conv1.weight.data += 1
    ours = {'attribution_method': 'CALM_EM'}
    load_weights(cam, checkpoint({'state_dict': calm.state_dict(), 'model': ours}), but_classifier=True)
    assert torch.equal(calm.conv1.weight, cam.conv1.weight)


def test_a_network_that_is_loaded_whole_draws_nothing_and_a_new_classifier_is_drawn():
    network, state = {'architecture': 'resnet18', 'attribution_method': 'CAM', 'last_stage': 'layer1'}, torch.get_rng_state()
    saved = checkpoint({'state_dict': {name: value + 1 for name, value in build_model(**network, num_classes=7).state_dict().items()}})
    before = torch.get_rng_state()
    whole = saved.build(network, 7, torch.device('cpu')).state_dict()
    assert torch.equal(before, torch.get_rng_state()) and not torch.equal(before, state)
    assert all(torch.equal(value, whole[name]) for name, value in saved.weights.items())
    assert saved.build(network, 3, torch.device('cpu'), but_classifier=True).conv_last.weight.std() > 0


def test_published_cam_weights_load_though_they_carry_an_attention(capsys):
    source = build_model('resnet18', 'CALM_EM', 7, last_stage='layer1')
    target = build_model('resnet18', 'CAM', 7, last_stage='layer1')
    load_weights(target, checkpoint({'state_dict': source.state_dict()}))
    assert 'attention' in capsys.readouterr().err
    assert torch.equal(target.conv_last.weight, source.conv_last.weight)
    with pytest.raises(UserError, match='attention.0.weight is not a part'):  # of our own checkpoints it is a mistake
        load_weights(target, checkpoint({'state_dict': source.state_dict(), 'model': {'attribution_method': 'CALM_EM'}}))


@pytest.mark.parametrize('broken', [True, False])
def test_torchvision_is_mended_only_where_its_operators_are_missing(tmp_path, broken):
    """The user's own `import torchvision` after `import wsol` works, and registers nothing where they are there."""
    fake = tmp_path / 'torchvision'
    fake.mkdir()
    (fake / '__init__.py').write_text('from torchvision import _meta_registrations\n')
    (fake / '_meta_registrations.py').write_text(
        'import torch\nif not hasattr(torch.ops.torchvision, "nms"):\n'
        '    raise RuntimeError("operator torchvision::nms does not exist")\n' if broken else '')
    code = ('import torch, wsol\n'
            + ('' if broken else 'there = torch.library.Library("torchvision", "DEF"); there.define("nms(Tensor x) -> Tensor")\n')
            + 'import torchvision\nfrom wsol.backbones import _torchvision\nprint(bool(_torchvision.DECLARED))')
    run = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True,
                         env={'PYTHONPATH': f'{tmp_path}:{ROOT}', 'PATH': ''}, check=True)
    assert run.stdout.strip() == str(broken)


def test_registry_keys_are_the_command_lines_choices():
    for flag, keys in (('architecture', architecture_names()), ('attribution_method', HEADS)):
        for key in keys:
            assert flags_of('main', [f'--{flag}={key}'])[flag] == key


def test_a_size_that_a_traced_network_does_not_take_prints_nothing(capfd):
    class Windows(torch.nn.Module):
        def forward(self, images):
            return images.reshape(1, 3, 4, 4).relu()
    traced = LastMap(Windows(), 'relu')
    assert traced(torch.ones(1, 3, 4, 4)).shape == (1, 3, 4, 4)
    with pytest.raises(RuntimeError, match='invalid for input of size'):
        traced(torch.ones(1, 3, 5, 5))
    assert capfd.readouterr().err == ''


@pytest.mark.parametrize('but_classifier', [False, True])
def test_a_classifier_from_elsewhere_is_refused_with_the_flag_that_takes_it(but_classifier):
    elsewhere = Checkpoint(Path('file.pth'), torchvision.models.shufflenet_v2_x0_5().state_dict())
    with pytest.raises(UserError, match='does not fit the network: .* starts a training by --pretrained=FILE'):
        load_weights(build_model('resnet18', 'CAM', 3), elsewhere, but_classifier)
