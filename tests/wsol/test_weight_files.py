"""Weights as people store them: wrappers, prefixes, objects beside them, replaced heads, and files that are no weights."""
import argparse
import collections
import datetime
import io
import logging
import os
import pathlib
import pickle
import re
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import shared
from torch import nn

from wsol import UserError, from_classifier
from wsol.weights.files import load
from wsol.weights.fitting import IMAGENET, load_backbone, load_classifier
from wsol.weights.state_dicts import read_weights


class Tiny(nn.Module):
    """A classifier that ends in average pooling and one linear layer."""

    def __init__(self, classes=5):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, stride=4, bias=False), nn.BatchNorm2d(8)
        self.stage2 = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU())
        self.fc = nn.Linear(16, classes)

    def forward(self, images):
        return self.fc(self.stage2(torch.relu(self.bn1(self.conv1(images)))).mean((2, 3)))


def tiny(head=None):
    torch.manual_seed(0)
    network = Tiny()
    network.bn1.running_mean.uniform_(-0.1, 0.1)
    network.fc = head or network.fc
    return network.eval()


IMAGES = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
STATE, ZEROS = tiny().state_dict(), {name: value * 0 for name, value in tiny().state_dict().items()}


def said(caplog):
    return ' '.join(record.getMessage() for record in caplog.records)


def stored(content, path, **options):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path, **options)
    return path


def loaded(content, folder, key=None, **options):
    """A network of other random weights and another number of classes, into which a file of `content` was loaded."""
    torch.manual_seed(1)
    network = Tiny(9)
    load_classifier(network, read_weights(stored(content, folder / 'file.pth', **options), key), 'fc', 'fc')
    return network.eval()


@torch.no_grad()
def assert_scores(network, reference):
    torch.testing.assert_close(network(IMAGES), reference(IMAGES), rtol=1e-5, atol=1e-6)


def refusal(content, folder, **options):
    with pytest.raises(UserError) as caught:
        loaded(content, folder, **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def prefixed(prefix, state=STATE):
    return {prefix + name: value for name, value in state.items()}


# --- where the state dict is ----------------------------------------------------------------------------


OPTIMIZER = {'state': {0: {'momentum_buffer': torch.ones(3, 3)}}, 'param_groups': [{'lr': 0.1, 'params': [0]}]}
COUNTED = {f'{name}.{kind}': torch.zeros(1) for name in ('conv1', 'fc') for kind in ('total_ops', 'total_params')}  # as thop leaves them
STORED = {
    **{f'prefix {prefix}': {'state_dict': prefixed(prefix), 'epoch': 3} for prefix in (
        'module.', '_orig_mod.', 'model.', 'net.', 'backbone.', 'network.', 'encoder.', '_fsdp_wrapped_module.', 'model.model.',
        'module.model.', 'net.0.', 'model._orig_mod.module.', 'any.name.at.all.')},
    **{f'{wrapper} within': {name.replace('stage2.', f'stage2.{wrapper}.'): value for name, value in STATE.items()}
       for wrapper in ('_fsdp_wrapped_module', '_orig_mod', 'module')},
    **{f'key {key}': {key: STATE, 'epoch': 3, 'optimizer': OPTIMIZER} for key in (
        'state_dict', 'model', 'model_state_dict', 'net', 'network', 'weights', 'module', 'params', 'state_dict_ema', 'model_ema', 'ema', 'mine')},
    'key below a key': {'checkpoint': {'network': {'state_dict': STATE}}}, 'average in a module': {'ema': {'module': STATE, 'decay': 0.99}},
    'tuple': (STATE, 3), 'list': [3, {'model': STATE}], 'average of weights': prefixed('module.') | {'n_averaged': torch.tensor(3)},
    'without batch counts': {name: value for name, value in STATE.items() if 'num_batches' not in name},
    'counts as real numbers': {name: value.half() if 'num_batches' in name else value for name, value in STATE.items()},
    'counts in a row': {name: value[None] if 'num_batches' in name else value for name, value in STATE.items()}, 'numbers beside': {**STATE, **COUNTED, 'epoch': 3, 'classes': ['a']},
    'doubles': {name: value.double() if value.is_floating_point() else value for name, value in STATE.items()},
    'parameters': {name: nn.Parameter(value) if value.is_floating_point() else value for name, value in STATE.items()},
    'safetensors': safetensors.torch.save(prefixed('module.')), 'safetensors with a record': safetensors.torch.save(STATE, {'format': 'pt'})}


@pytest.mark.parametrize('how', STORED)
def test_a_classifier_is_found_however_it_is_stored(how, tmp_path, caplog):
    assert_scores(loaded(STORED[how], tmp_path), tiny())
    assert not caplog.records


@pytest.mark.parametrize('plain, average', [('state_dict', 'state_dict_ema'), ('model', 'ema'), ('model', 'model_ema'), ('net', 'teacher')])
def test_the_network_is_taken_and_its_average_named(plain, average, tmp_path, caplog):
    content = {average: ZEROS, plain: STATE}
    assert_scores(loaded(content, tmp_path), tiny())
    assert f'under {plain} are taken, not those of weights_key={average}' in said(caplog)
    assert loaded(content, tmp_path, key=average).fc.weight.abs().max() == 0
    assert refusal(content, tmp_path, key='nowhere').endswith(f"no weights under weights_key=nowhere; it has '{average}', '{plain}'")


def test_several_networks_are_a_question(tmp_path, caplog):
    assert 'choose one: weights_key=G or weights_key=D' in refusal({'G': STATE, 'D': ZEROS}, tmp_path)
    both = prefixed('encoder_k.', ZEROS) | prefixed('encoder_q.')
    assert 'choose one: weights_key=encoder_k or weights_key=encoder_q' in refusal(both, tmp_path)
    assert_scores(loaded(both, tmp_path, key='encoder_q'), tiny())
    assert_scores(loaded(prefixed('ema_model.', ZEROS) | prefixed('model.'), tmp_path), tiny())
    assert 'under model are taken, not those of weights_key=ema_model' in said(caplog)
    beside = prefixed('module.', STATE | prefixed('model_ema.', {name: value for name, value in ZEROS.items() if 'running' not in name}))
    assert_scores(loaded(beside, tmp_path), tiny())
    assert 'under the outermost names are taken, not those of weights_key=model_ema' in said(caplog) and 'left out' not in said(caplog)
    assert_scores(loaded(STATE | prefixed('student.', ZEROS), tmp_path), tiny())
    assert 'under the outermost names are taken, not those of weights_key=student' in said(caplog)
    assert_scores(loaded(prefixed('module.', both), tmp_path, key='encoder_q'), tiny())
    assert_scores(loaded(prefixed('module.', both), tmp_path, key='module.encoder_q'), tiny())


def test_names_beside_the_network_are_named(tmp_path, caplog):
    beside = {'criterion.weight': torch.ones(5), 'train_acc.tp': torch.zeros(5, dtype=torch.long)}
    assert_scores(loaded({'state_dict': prefixed('model.') | beside, 'pytorch-lightning_version': '2'}, tmp_path), tiny())
    assert 'criterion.weight, train_acc.tp: left out' in said(caplog)
    loaded(prefixed('model.') | {'fc.weight': torch.ones(7, 9), 'fc.bias': torch.ones(7)}, tmp_path)  # names that stand within, too
    assert 'fc.weight, fc.bias: left out' in said(caplog)


@pytest.mark.parametrize('scale', [1, 255])
def test_the_usual_normalisation_among_the_weights_is_left_out_with_a_word(scale, tmp_path, caplog):
    beside = {name: scale * torch.tensor(value).view(1, 3, 1, 1) for name, value in zip(('pixel_mean', 'pixel_std'), IMAGENET, strict=True)}
    assert_scores(loaded(prefixed('model.', STATE | beside), tmp_path), tiny())
    assert 'pixel_mean, pixel_std: left out, since photos are normalised so already' in said(caplog)


class Settings(dict):
    """A dict with attributes, as configurations are."""


CONFIG = Settings(lr=np.float32(0.1))
CONFIG.name = 'x'
BESIDE = {'namespace': argparse.Namespace(lr=np.float64(0.1), folder=pathlib.Path('a')), 'number': np.int64(3), 'array': np.ones(3),
          'day': datetime.datetime(2026, 1, 1), 'ordered': collections.OrderedDict(a=1), 'lists': collections.defaultdict(list, a=[1]),
          'recent': collections.deque([1.5]), 'size': torch.Size([1]), 'config': CONFIG, 'class': Settings, 'loss': nn.CrossEntropyLoss(),
          'random': np.random.default_rng(0)}


@pytest.mark.parametrize('legacy', [False, True])
def test_objects_beside_the_weights_are_harmless(legacy, tmp_path):
    beside = {name: value for name, value in BESIDE.items() if not (legacy and name == 'loss')}  # legacy files hold the source of modules
    assert_scores(loaded(beside | {'model': STATE}, tmp_path, _use_new_zipfile_serialization=not legacy), tiny())


def test_numbers_of_numpy_are_read_as_numbers(tmp_path):
    numbers = {'a': np.float64(1.5), 'b': np.int32(-3), 'c': np.bool_(True), 'd': np.float32(0.25), 'e': np.datetime64('2026-01-01')}
    assert load(stored(numbers, tmp_path / 'file.pth')) == {'a': 1.5, 'b': -3, 'c': True, 'd': 0.25, 'e': None}


@pytest.mark.parametrize('kind', [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_read_in_full(kind, tmp_path):
    network = loaded({name: value.to(kind) if value.is_floating_point() else value for name, value in STATE.items()}, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(network(IMAGES), tiny()(IMAGES), rtol=0.02, atol=0.02)


# --- heads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('head', [
    nn.Sequential(nn.Dropout(), nn.Linear(16, 3)), nn.Sequential(nn.Linear(16, 3)), nn.Linear(16, 3, bias=False),
    nn.Sequential(nn.Flatten(), nn.Identity(), nn.Dropout(), nn.Linear(16, 3)), nn.Sequential(collections.OrderedDict(out=nn.Linear(16, 3))),
    nn.Sequential(nn.Sequential(nn.Dropout(), nn.Linear(16, 3))),
    nn.Sequential(nn.Unflatten(1, (16, 1, 1)), nn.Conv2d(16, 3, 1), nn.Flatten())], ids=str)
def test_one_linear_layer_is_the_classifier(head, tmp_path, caplog):
    network = tiny(head)
    assert_scores(loaded(network.state_dict(), tmp_path), network)
    assert 'is taken as the classifier' in said(caplog)


@pytest.mark.parametrize('name', ['last_linear', 'classifier', 'head.fc', 'heads.head', 'head'])
def test_a_classifier_of_another_name(name, tmp_path, caplog):
    state = {key.replace('fc.', f'{name}.'): value for key, value in STATE.items()}
    assert_scores(loaded(state, tmp_path), tiny())
    beside = {key if key.startswith(name) else f'backbone.{key}': value for key, value in state.items()}
    assert_scores(loaded(beside, tmp_path), tiny())
    assert f'{name} is taken as the classifier' in said(caplog)


class Cosine(nn.Linear):
    def __init__(self):
        super().__init__(16, 3, bias=False)
        self.scale = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize('head, words', [
    (nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)), 'it may have fc.0.weight, fc.0.bias, fc.2.weight, fc.2.bias'),
    (nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 3)), 'fc.0.running_mean'), (nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 3)), 'fc.0.weight'),
    (nn.Sequential(nn.PReLU(), nn.Linear(16, 3)), 'fc.0.weight'), (Cosine(), 'fc.scale'),
    (nn.utils.parametrizations.weight_norm(nn.Linear(16, 3)), 'fc.parametrizations.weight.original0')], ids=str)
def test_every_other_head_is_refused_by_name(head, words, tmp_path):
    message = refusal(tiny(head).state_dict(), tmp_path)
    assert 'not one linear layer' in message and words in message and ('wsol.from_module' in message or 'remove_parametrizations' in message)


@pytest.mark.parametrize('names, words', [
    (('stage2.0.weight_g', 'stage2.0.weight_v'), 'call remove_weight_norm'), (('stage2.0.weight_orig', 'stage2.0.weight_mask'), 'prune.remove'),
    (('fc.scale', 'fc.zero_point'), 'it is quantised'), (('fc.lora_A.default.weight', 'fc.lora_B.default.weight'), 'merge it')])
def test_weights_in_another_form_are_refused_with_the_remedy(names, words, tmp_path):
    kept = {name: value for name, value in STATE.items() if words in ('merge it',) or not name.startswith(names[0].rpartition('.')[0])}
    assert words in refusal(kept | dict.fromkeys(names, torch.ones(3, 16)), tmp_path)


def test_a_part_of_several_files_is_refused_with_the_remedy(tmp_path):
    part = stored(dict([*STATE.items()][3:]), tmp_path / 'model-00002-of-00002.bin')
    with pytest.raises(UserError, match='put the weights of all into one file'):
        load_classifier(Tiny(), read_weights(part), 'fc', 'fc')


@pytest.mark.parametrize('change, words', [
    ({'classifier.weight': torch.ones(2, 5)}, 'not one linear layer, it may have fc.weight, fc.bias, classifier.weight'),
    ({'classifier.weight': torch.ones(2, 16)}, 'fc.bias, classifier.weight'), ({'neck.running_mean': torch.ones(16)}, 'neck.running_mean'), ({'norm.weight': torch.ones(16)}, 'fc.bias, norm.weight'),
    ({'model.fc.weight': torch.ones(3, 7)}, 'takes 7 features, and the network gives 16'),
    ({'model.stage2.4.weight': torch.ones(16)}, 'stage2.4.weight is not a part of the network'),
    ({'model.mean': torch.full((1, 3, 1, 1), 0.5), 'model.std': torch.ones(1)}, 'normalises its images itself, by mean = [0.5, 0.5, 0.5], which is not how photos go in'),
    ({'model.conv1.weight': torch.ones(8, 1, 3, 3)}, 'its images have 1 channel, and photos have 3: load the weights into your network'),
    ({'model.bn1.weight': None}, 'bn1.weight is missing; check that the architecture is the same'), ({'model.fc.weight': None, 'model.fc.bias': None}, 'another name; train one on it, from pretrained=FILE'), ({'model.fc.weight': torch.ones(0, 16), 'model.fc.bias': torch.ones(0)}, 'holds no classifier: no weight fc.weight'),
    ({'normalize.std': torch.ones(3), 'normalize.mean': torch.tensor(IMAGENET[0])}, 'by normalize.std = [1.0, 1.0, 1.0]'), ({'arc.W': torch.ones(3, 16)}, 'it may have fc.weight, fc.bias, arc.W'),
    ({'model.conv1.weight': torch.ones(4, 3, 7, 7)}, 'conv1.weight is (4, 3, 7, 7), the network has (8, 3, 3, 3)'),
    ({'model.bn1.weight': torch.full((8,), torch.inf)}, 'bn1.weight is not finite'), ({'model.fc.bias': torch.full((5,), torch.nan)}, 'fc.bias is not finite'),
    ({'model.stage2.0.weight': torch.ones(16, 8, 3, 3, dtype=torch.int8)}, 'stage2.0.weight is (16, 8, 3, 3) of integers, the network has (16, 8, 3, 3); it is quantised'),
    ({'model.fc.weight': torch.ones(5, 16).to_sparse()}, 'model.fc.weight is no weight but a torch.sparse_coo torch.float32 tensor of shape (5, 16); save dense tensors'),
    ({'model.fc.weight': nn.parameter.UninitializedParameter()}, 'model.fc.weight is no weight but a torch.nn.parameter.UninitializedParameter')])
def test_no_weight_is_left_out_or_wrong_without_a_word(change, words, tmp_path):
    assert words in refusal({name: value for name, value in (prefixed('model.') | change).items() if value is not None}, tmp_path)


def test_a_backbone_names_what_it_leaves_out(tmp_path, caplog):
    state = prefixed('model.') | {'criterion.weight': torch.ones(3), 'model.AuxLogits.fc.weight': torch.ones(3, 8), 'model.last_linear.weight': torch.ones(3, 16)}
    network = Tiny(9)
    load_backbone(network, read_weights(stored(state, tmp_path / 'file.pth')), ('fc', 'AuxLogits'))
    assert all(torch.equal(network.state_dict()[name], STATE[name]) for name in STATE if not name.startswith('fc.'))
    assert 'model.' not in said(caplog) and 'fc.weight, fc.bias, AuxLogits.fc.weight, last_linear.weight and 1 more: left out' in said(caplog)


# --- what is no file of weights ---------------------------------------------------------------------------


def packed(save, *values):
    buffer = io.BytesIO()
    save(buffer, *values)
    return buffer.getvalue()


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


SAVED = packed(lambda buffer: torch.save(STATE, buffer))
NO_WEIGHTS = {
    'whole module': (tiny(), r'whole object of the class .*Tiny, whose reading would run code: save the state dict'),
    'module under model': ({'model': tiny(), 'epoch': 1}, 'whole object of the class'), 'module, nested': ({'a': {'ema': tiny()}}, 'whole object'),
    'half written': (SAVED[:len(SAVED) // 2], 'damaged: its end is not the end of a zip'), 'nothing': (b'', 'it is empty'),
    'empty': ({}, 'an empty state dict'), 'empty, nested': ({'state_dict': {}, 'epoch': 3}, 'an empty state dict'),
    'optimizer': ({'state': {0: {'exp_avg': torch.ones(3, 3)}}, 'param_groups': []}, 'state of an optimizer'),
    'optimizer, nested': ({'optimizer': {'param_groups': []}, 'epoch': 1, 'loss': np.float64(0.5)}, 'state of an optimizer'),
    'Keras': (b'\x89HDF\r\n\x1a\n' + bytes(99), 'HDF5, as Keras writes'), 'ONNX': (b'\x08\x07\x12\x07pytorch' + bytes(99), 'a network in ONNX'),
    'LFS': (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\n', 'run git lfs pull'), 'page': (b'\n<!doctype html><html>', 'a web page'),
    'index': (b'{"metadata": {}, "weight_map": {}}', 'it is text'), 'gzip': (b'\x1f\x8b\x08' + bytes(99), 'unpack it first'),
    'pickle': (pickle.dumps({'a': 1}), 'a plain pickle'), 'text': (b'Not Found', 'no file of torch.save'),
    'zip': (zipped({'weights.pth': SAVED}), 'it is an archive: unpack it first'), 'arrays': (packed(lambda buffer: np.savez(buffer, a=np.ones(3))), 'arrays of NumPy'), 'state of arrays': ({'model': {'fc.weight': np.ones((3, 3))}}, 'arrays of NumPy'),
    'half of safetensors': (safetensors.torch.save(STATE)[:900], 'damaged')}


@pytest.mark.parametrize('name', NO_WEIGHTS)
def test_what_is_no_weights_is_refused_by_its_name(name, tmp_path):
    content, words = NO_WEIGHTS[name]
    assert re.search(words, refusal(content, tmp_path))


def test_programs_and_protocols_are_refused_by_their_names(tmp_path):
    class Program(nn.Module):
        def forward(self, images):
            return images + 1
    program = torch.export.export(Program(), (torch.ones(2),))
    assert 'a program of torch.export' in refusal(packed(lambda buffer: torch.export.save(program, buffer)), tmp_path)
    script = zipped({'x/data.pkl': b'', 'x/constants.pkl': b'', 'x/code/__torch__.py': b'pass'})
    assert 'a program of TorchScript' in refusal(script, tmp_path)
    assert 'pickle_protocol=4' in refusal(STATE, tmp_path, pickle_protocol=4)
    assert 'holds a whole module' in refusal(nn.Linear(2, 2), tmp_path, _use_new_zipfile_serialization=False)


class Runs:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize('legacy', [False, True])
def test_nothing_in_a_file_is_executed(legacy, tmp_path):
    for call, words in (((os.system, f'touch {tmp_path}/ran'), 'asks to run posix.system; nothing was run'), ((exec, f'open("{tmp_path}/ran", "w")'), 'asks to run builtins.exec'),
                        ((pathlib.Path.touch, tmp_path / 'ran'), 'cannot be read as weights')):
        assert words in refusal({'state_dict': STATE, 'x': Runs(*call)}, tmp_path, _use_new_zipfile_serialization=not legacy)
    loaded({'state_dict': STATE, 'x': Runs(os.path.expanduser, '~')}, tmp_path)
    loaded({'state_dict': STATE, 'x': Runs(collections.namedtuple, 'x', 'a')}, tmp_path)
    assert not (tmp_path / 'ran').exists()


# --- cases by name ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('case, classes', [('01-replaced-head/weights.pth', 3), ('07-without-batch-counts/weights.pth', 3), ('08-prefixes-and-wrappers/compiled.pth', 3),
                                           ('08-prefixes-and-wrappers/lightning.ckpt', 3), ('09-safetensors/weights.safetensors', 3)])
def test_stored_classifiers(case, classes, caplog):
    with caplog.at_level(logging.WARNING):
        model = from_classifier('shufflenet_v2_x0_5', shared('cases', *case.split('/')))
    assert model.conv_last.out_channels == classes and ('fc.1 is taken' in said(caplog)) == case.startswith('01')


def test_heads_and_numbers_that_cannot_be_explained():
    for case, words in (('01-replaced-head/weights_two_layers.pth', 'fc.0.weight, fc.0.bias, fc.2.weight'), ('11-not-finite/weights.pth', 'is not finite, NaN')):
        with pytest.raises(UserError, match=words):
            from_classifier('shufflenet_v2_x0_5', shared('cases', *case.split('/')))
