"""wsol.from_module: modules of other people's frameworks, and what becomes of a layer's output."""
import collections
import copy
import runpy
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torchvision
from conftest import shared
from torch import nn

from wsol import UserError, attribution_maps, build_model, from_module
from wsol.attribution.contrast import contrast_maps
from wsol.backbones.torchvision_networks import LastMap
from wsol.contexts import unwrapped
from wsol.foreign_networks import LayerOutput
from wsol.heads import CALM_EM

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class ModelOutput(dict):
    """Hugging Face's: a dict whose values are attributes too."""
    __getattr__ = dict.get


class Fields(NamedTuple):
    logits: torch.Tensor
    aux_logits: torch.Tensor


@dataclass
class Record:
    logits: torch.Tensor
    loss: None = None


class Encoder(nn.Module):
    """wrap: what its output is made of, a map (B,8,h,w)."""

    def __init__(self, wrap=lambda features: features, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.wrap = nn.Conv2d(channels, 8, 3, 2), nn.BatchNorm2d(8), wrap

    def forward(self, images):
        return self.wrap(self.norm(self.first(images)).relu())


class Classifier(nn.Module):
    """unwrap: the map in the encoder's output. wrap: what the output is made of, the logits (B,5)."""

    def __init__(self, encoder=None, unwrap=lambda features: features, wrap=lambda logits: logits):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(8, 5)  # before the encoder: the order of names says nothing
        self.encoder, self.unwrap, self.wrap = encoder or Encoder(), unwrap, wrap

    def forward(self, images):
        return self.wrap(self.head(self.unwrap(self.encoder(images)).mean((2, 3))))


class Wrapper(nn.Module):
    """As Lightning's modules are."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return self.model(batch)


def agrees(module, layer, images=IMAGES, network=None, **options):
    """CAM of a module is what the module says, and a head on it has its features."""
    network = network or module
    model = from_module(module, layer, 'CAM', image_size=32, **options)
    calm = from_module(module, layer, num_classes=4, image_size=32, **options).eval()
    scores = network.eval()(images)
    torch.testing.assert_close(model(images), scores, rtol=1e-4, atol=1e-5)
    assert torch.equal(calm.extract_features(images), model.extract_features(images))
    torch.testing.assert_close(attribution_maps(calm, images).sum((1, 2, 3)), torch.ones(len(images)))


@pytest.mark.parametrize('wrap', [
    lambda logits: {'logits': logits}, lambda logits: {'loss': None, 'prediction': logits}, lambda logits: (logits, logits),
    lambda logits: [logits.softmax(1), logits], lambda logits: ModelOutput(loss=logits.mean(), logits=logits),
    lambda logits: Fields(logits, None), lambda logits: Record(logits), lambda logits: ((logits,), {}),
    lambda logits: logits[:, :, None, None]])
def test_the_output_of_a_module_may_be_of_any_kind(wrap):
    agrees(Classifier(wrap=wrap), 'encoder', network=Classifier())


@pytest.mark.parametrize('wrap, unwrap', [
    (lambda maps: (maps, maps.mean((2, 3))), lambda output: output[0]), (lambda maps: [maps], lambda output: output[0]),
    (lambda maps: {'out': maps, 'aux': None}, lambda output: output['out']),
    (lambda maps: ModelOutput(last_hidden_state=maps, hidden_states=(2 * maps, maps)), lambda output: output.last_hidden_state),
    (lambda maps: maps.movedim(1, -1), lambda output: output.movedim(-1, 1)),
    (lambda maps: (maps.movedim(1, -1),), lambda output: output[0].movedim(-1, 1))])
def test_the_output_of_a_layer_may_hold_its_map(wrap, unwrap):
    agrees(Classifier(Encoder(wrap), unwrap), 'encoder', network=Classifier())


def test_what_holds_no_map_or_several_is_refused_and_to_map_helps():
    pyramid = Classifier(Encoder(lambda maps: [maps, maps[:, :, ::2, ::2]]), lambda output: output[0])
    with pytest.raises(UserError, match=r'output of the layer is no map \(B,D,h,w\) but a list with 2 maps; to_map= can make it one'):
        from_module(pyramid, 'encoder', num_classes=3)
    agrees(pyramid, 'encoder', network=Classifier(), to_map=lambda output: output[0])
    tokens = Classifier(Encoder(lambda maps: maps.flatten(2).mT), lambda output: output.mT[..., None])
    with pytest.raises(UserError, match=r'no map \(B,D,h,w\) but \(1, 12321, 8\); to_map='):
        from_module(tokens, 'encoder', 'CAM')
    with pytest.raises(UserError, match=r'to_map gives no map .* but \(1, 12321, 8\)'):
        from_module(tokens, 'encoder', 'CAM', to_map=lambda output: output)


class Centred(Encoder):
    """Its last convolution is defined first, and a mean of each channel is subtracted before the first one runs."""

    def __init__(self, channels):
        super().__init__(channels=channels)
        self._modules = {'last': nn.Conv2d(8, 8, 1), **self._modules}
        self.register_buffer('mean', torch.rand(channels, 1, 1))

    def forward(self, images):
        return self.last(super().forward(images - self.mean))


@pytest.mark.parametrize('channels', [1, 2, 3, 6])
def test_images_of_as_many_channels_as_the_first_convolution_that_runs_takes(channels):
    for encoder in (Encoder(channels=channels), Centred(channels)):
        agrees(Classifier(encoder), 'encoder', torch.randn(2, channels, 32, 32))


def test_wrappers_are_taken_off_and_layers_may_be_named_with_them():
    plain = Classifier()
    agrees(nn.DataParallel(plain), 'encoder')
    agrees(nn.DataParallel(plain), 'module.encoder')
    agrees(torch.optim.swa_utils.AveragedModel(plain), 'encoder')
    agrees(Wrapper(plain), 'model.encoder')
    agrees(Wrapper(nn.DataParallel(plain)), 'model.encoder')
    with pytest.raises(UserError, match='layer="encoder" is no submodule; there is model.encoder'):
        from_module(Wrapper(plain), 'encoder', 'CAM')
    with pytest.raises(UserError, match='does not take an image of 224 x 224 pixels and 3 channels .TypeError'):
        from_module(Wrapper(lambda images, labels: images), '', num_classes=3)


def test_a_compiled_network_runs_uncompiled_for_its_layers():
    plain, compiled = Classifier().eval(), torch.compile(Classifier(), backend='eager').eval()
    for module, layer in ((compiled, 'encoder'), (compiled, '_orig_mod.encoder'), (Wrapper(compiled), 'model.encoder'),
                          (nn.DataParallel(compiled), 'encoder'), (torch.compile(Wrapper(compiled), backend='eager'), 'model.encoder')):
        module(IMAGES)  # compiled before the hook is there
        agrees(module, layer, network=plain)
    compiled_in_place = Classifier().eval()
    compiled_in_place.encoder.compile(backend='eager')
    compiled_in_place(IMAGES)
    torch.testing.assert_close(from_module(compiled_in_place, 'encoder', 'CAM')(IMAGES), plain(IMAGES))


def test_maps_of_a_wrapped_model_are_those_of_the_model():
    model, labels = build_model('resnet18', 'CALM_EM', 5, last_stage='layer1').eval(), torch.tensor([0, 3])
    wrapped = nn.DataParallel(torch.compile(model, backend='eager'))
    assert unwrapped(wrapped) is model
    assert torch.equal(attribution_maps(wrapped, IMAGES, labels), attribution_maps(model, IMAGES, labels))
    assert torch.equal(contrast_maps(wrapped, IMAGES, labels, labels + 1), contrast_maps(model, IMAGES, labels, labels + 1))
    for explain in (lambda model: attribution_maps(model, IMAGES), lambda model: contrast_maps(model, IMAGES, labels, labels + 1)):
        with pytest.raises(UserError, match='a Classifier has no maps: only CAM and CALM have'):
            explain(Classifier())


@pytest.mark.filterwarnings('ignore:.torch.jit')
def test_programs_whose_layers_do_not_run_are_refused_by_name():
    plain = Classifier().eval()
    programs = [(torch.jit.script(nn.Conv2d(3, 8, 3)), ''), (torch.jit.trace(plain, IMAGES), 'encoder'), (torch.fx.symbolic_trace(plain), 'encoder'),
                (Wrapper(torch.jit.trace(plain, IMAGES)), 'model.encoder'), (torch.export.export(plain, (IMAGES,)).module(), 'encoder')]
    for program, layer in programs:
        with pytest.raises(UserError, match='do not let their layers be read'):
            from_module(program, layer, 'CAM')


def test_a_second_classifier_of_the_map_is_named(caplog):
    class Two(Classifier):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(8, 3)

        def forward(self, images):
            features = self.encoder(images).mean((2, 3))
            return self.other(features), self.head(features)
    agrees(Classifier(), 'encoder')
    assert not caplog.records
    two = Two().eval()
    torch.testing.assert_close(from_module(two, 'encoder', 'CAM')(IMAGES), two(IMAGES)[1])
    assert 'has 2 classifiers: the last to run, of 5 classes, is explained' in caplog.text


def test_features_that_are_not_finite_are_refused():
    broken = Classifier()
    next(broken.encoder.parameters()).data[0] = torch.nan
    with pytest.raises(UserError, match='not finite'):
        from_module(broken, 'encoder', num_classes=3)
    with torch.device('meta'):
        empty = Classifier()
    with pytest.raises(UserError, match='on the device "meta", which holds no weights'):
        from_module(empty, 'encoder', 'CAM')


def test_a_module_keeps_its_mode_its_frozen_parameters_and_its_weights():
    module = Classifier().train()
    module.encoder.first.requires_grad_(False)
    before = copy.deepcopy(module.state_dict())
    model = from_module(module, 'encoder', num_classes=3, image_size=32)
    assert all(part.training for part in module.modules()) and not module.encoder.first.weight.requires_grad
    model.loss(IMAGES, torch.tensor([0, 2]))[0].backward()
    assert module.encoder.first.weight.grad is None and module.encoder.norm.weight.grad.abs().max() > 0
    from_module(Classifier(), 'encoder', 'CAM', image_size=32)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items() if 'running' not in name
               and 'num_batches' not in name)


class TwiceAndAux(nn.Module):
    """Its ReLU runs twice; in training it has another output, as Inception does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.relu = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3), nn.ReLU()
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        last = self.relu(self.second(self.relu(self.first(images))))
        logits = self.head(last.mean((2, 3)))
        return (logits, last.mean()) if self.training else logits


def test_of_a_layer_that_runs_twice_the_last_output_is_taken():
    agrees(TwiceAndAux().train(), 'relu')
    assert from_module(TwiceAndAux().train(), 'relu', num_classes=3)(IMAGES).shape == (2, 3)


class Dropping(nn.Module):
    """torch.fx traces it twice, in training mode and in eval mode."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, images):
        return self.last(nn.functional.dropout(self.first(images), training=self.training))


def test_a_traced_network_explains_in_eval_mode_and_trains_on_in_training_mode():
    model = CALM_EM(nn.Sequential(collections.OrderedDict(backbone=LastMap(Dropping().train(), 'last'))), 8, 3, 'relu')
    for _ in range(2):
        assert all(part.training for part in model.modules())
        assert not torch.equal(model(IMAGES), model(IMAGES))
        assert torch.equal(attribution_maps(model, IMAGES), attribution_maps(model, IMAGES))


class ClassToken(Classifier):
    """Its linear layer does not read the average of the map."""

    def forward(self, images):
        return self.head(self.encoder(images)[:, :, 0, 0])


def test_a_linear_layer_of_zeros_tells_nothing_of_what_it_reads():
    """Where all scores are 0, as of a new classifier, any map would give them."""
    for kind in (Classifier, ClassToken):
        module = kind()
        nn.init.zeros_(module.head.weight), nn.init.zeros_(module.head.bias)
        if kind is Classifier:
            agrees(module, 'encoder')
        else:
            with pytest.raises(UserError, match='this module, up to encoder, does not end in average pooling'):
                from_module(module, 'encoder', 'CAM')


# --- what follows the layer in place ------------------------------------------------------------------


def add_in_place(maps):
    maps += maps * 2
    return maps


class Followed(Encoder):
    """The layer `first`, and what is done with its output."""

    def forward(self, images):
        return self.wrap(self.first(images)).mean((2, 3))


@pytest.mark.parametrize('follow', [nn.ReLU(inplace=True), add_in_place, torch.relu_, lambda maps: maps.mul_(3).add(1),
                                    lambda maps: maps.flatten(1).zero_().view_as(maps), lambda maps: maps.relu()])
@pytest.mark.parametrize('to_map', [None, lambda output: output])
def test_a_layers_output_is_kept_as_it_was(follow, to_map):
    """Whatever writes into it afterwards; gradients too."""
    module = Followed(follow)
    model = from_module(module, 'first', num_classes=3, image_size=32, to_map=to_map).eval()
    assert torch.equal(model.activations(IMAGES).features, module.first(IMAGES))
    model(IMAGES)[:, 0].sum().backward()
    gradient = module.first.weight.grad.clone()
    module.zero_grad()
    model.class_scores(model.head(module.first(IMAGES)))[:, 0].sum().backward()
    assert torch.equal(gradient, module.first.weight.grad)


@pytest.mark.parametrize('name, layer', [('resnet18', 'layer4.1.bn2'), ('squeezenet1_1', 'features.12.expand3x3')])
def test_features_by_hook_are_those_by_tracing_and_what_follows_does_not_run(name, layer):
    network, images, ran = torchvision.models.get_model(name).eval(), torch.randn(1, 3, 64, 64), []
    with torch.no_grad():
        expected, backbone = LastMap(network, layer)(images), LayerOutput(network, layer)
        network.get_submodule('fc' if name == 'resnet18' else 'classifier').register_forward_hook(lambda *_: ran.append(1))
        assert all(torch.equal(expected, backbone(images)) for _ in range(3))
    assert len(ran) == 1  # in the first forward, which counts how often the layer runs


# --- the handed cases ---------------------------------------------------------------------------------

def test_the_handed_modules_of_other_frameworks_work(capsys):
    runpy.run_path(str(shared('cases', '14-any-module', 'modules.py')))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and all(line.endswith(': works') for line in lines), lines


@pytest.mark.filterwarnings('ignore:Converting a tensor')
def test_the_handed_layer_before_an_in_place_operation_is_kept(capsys):
    runpy.run_path(str(shared('cases', '18-in-place-after-the-layer', 'modules.py')))
    assert [line.split(': ')[1] for line in capsys.readouterr().out.splitlines()] == ['0.0', '0.0']
