"""wsol.compiled and --compile: the backbone alone is compiled, to the same features under the same names.

Nothing is compiled to machine code here, which takes minutes: torch's backends "eager" and "aot_eager" do all but that.
"""
import json

import numpy as np
import pytest
import torch
from conftest import SMALL, open_birds, read_result, refused, same_training

import main
import util
from evaluation import session
from wsol import build_model
from wsol.speed.compiled import compile_backbone
from wsol.speed.depthwise import keep_in_float32


@pytest.fixture(autouse=True)
def fresh():
    """torch keeps what it has compiled of a function for all tests of a process, up to a number."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network(name='resnet18', **options):
    torch.manual_seed(0)
    return build_model(name, 'CALM_EM', 5, **options)


@pytest.mark.parametrize('name, options, backend', [
    ('resnet18', {'last_stage': 'layer2'}, 'aot_eager'), ('mobilenet_v3_small', {}, 'eager')])  # the second is traced before
def test_features_and_names_stay(name, options, backend):
    """In batches of several sizes, as the last of a data set is smaller."""
    model, plain = network(name, **options).eval(), network(name, **options).eval()
    compile_backbone(model, backend)
    assert list(model.state_dict()) == list(plain.state_dict()) and type(model) is type(plain)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        for count in (4, 4, 3):
            features, expected = (own.extract_features(images[:count]) for own in (model, plain))
            torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
            torch.testing.assert_close(model(images[:count]), plain(images[:count]), rtol=1e-5, atol=1e-5)


def test_a_step_has_the_same_gradients_and_statistics():
    model, plain = network(last_stage='layer1'), network(last_stage='layer1')
    compile_backbone(model, 'aot_eager')
    images, labels = torch.randn(4, 3, 40, 40, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 4, 2])
    for own in (model, plain):
        own.train().loss(images, labels)[0].backward()
    for (name, ours), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-3, atol=1e-5, msg=name)
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], expected, rtol=1e-4, atol=1e-6, msg=name)


def test_depthwise_convolutions_stay_in_float32_when_compiled():
    """As a training in bfloat16 on a CPU has them (main.train): to the bit, and not what bfloat16 alone gives."""
    images, found = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)), []
    for is_kept, is_compiled in ((True, True), (True, False), (False, False)):
        model = network('mobilenet_v3_small').train()
        if is_kept:
            keep_in_float32(model)
        if is_compiled:
            compile_backbone(model, 'aot_eager')
        with torch.autocast('cpu', torch.bfloat16):
            features = model.extract_features(images)
        features.float().square().sum().backward()
        found.append([features, *(weight.grad for weight in model.parameters() if weight.grad is not None)])
    compiled, kept, plain = found
    assert all(torch.equal(own, expected) for own, expected in zip(compiled, kept, strict=True))
    assert not torch.equal(kept[0], plain[0])


def fail(graph, example):
    raise OSError('no working C++ compiler')


def test_what_torch_cannot_compile_is_one_line(monkeypatch):
    model = network(last_stage='layer1')
    compile_backbone(model, fail)
    with pytest.raises(util.UserError, match='--compile: .*no working C.. compiler.*leave --compile out'):
        model(torch.zeros(1, 3, 40, 40))

    def refuse(*_, **__):
        raise RuntimeError('Dynamo is not supported on this Python')
    monkeypatch.setattr(torch, 'compile', refuse)
    with pytest.raises(util.UserError, match='not supported on this Python'):
        compile_backbone(model)


@pytest.fixture
def backend(monkeypatch):
    """A function (backend) that has --compile use it. Gives the networks that were compiled."""
    seen = []

    def use(name):
        def compile_with(model):
            seen.append(model)
            compile_backbone(model, name)
        for module in (main, session):
            monkeypatch.setattr(module, 'compile_backbone', compile_with)
        return seen
    return use


@pytest.mark.parametrize('more', [[], ['--freeze']])
def test_a_training_goes_on_with_it_or_without(script, tiny_birds, tmp_path, backend, more):
    """And is the same training: the backend "eager" computes what the network itself does."""
    seen, flags = backend('eager'), [*tiny_birds, *SMALL, '--attribution_method=CALM_EM', '--lr=0.001', *more]
    assert script('main', *flags, '--epochs=2', '--experiment_name=plain')[0] == 0
    assert not seen
    for epochs, asked in ((1, '--compile'), (2, '--compile=False')):
        code, out, err = script('main', *flags, f'--epochs={epochs}', '--experiment_name=mixed', asked)
        assert code == 0, err
        assert (', compiled' in out) == (asked == '--compile')
    assert len(seen) == 1 and same_training(tmp_path / 'save/plain', tmp_path / 'save/mixed')
    code, _, err = script('main', *flags, '--epochs=2', '--experiment_name=mixed', '--compile')
    assert code == 0, err
    assert json.loads((tmp_path / 'save/mixed/results.json').read_text())['settings']['compile'] is True


@pytest.mark.parametrize('name', ['eval_pixel_perturb', 'eval_cue_location', 'eval_wsol'])
def test_evaluations_say_that_they_are_compiled_and_count_the_same(script, tiny_birds, save, backend, name):
    flags, results = [*tiny_birds, '--experiment_name=CALM_EM', '--batch_size=16'], []
    seen = backend('eager')
    for asked in ('--compile=False', '--compile'):
        code, out, err = script(name, *flags, asked)
        assert code == 0, err
        results.append(read_result(save / 'CALM_EM', name.removeprefix('eval_')))
    assert len(seen) == 1 and 'float32, compiled' in out and 'compile was False, is True' in out
    assert [own.pop('settings').pop('compile') for own in results] == [False, True]
    assert all(results[0][key] == results[1][key] for key in results[0].keys() - {'command'})


def test_a_result_from_before_the_flag_was_not_compiled(script, tiny_birds, save):
    flags = [*tiny_birds, '--experiment_name=CAM']
    assert script('eval_pixel_perturb', *flags)[0] == 0
    path, = (save / 'CAM').glob('pixel_perturb_*.json')
    content = json.loads(path.read_text())
    del content['settings']['compile']
    path.write_text(json.dumps(content))
    code, out, err = script('eval_pixel_perturb', *flags)
    assert code == 0 and 'replaces' not in out, err


def test_maps_made_elsewhere_leave_nothing_to_compile(script, tiny_birds, tmp_path, backend):
    for split in ('val', 'test'):
        images, _ = open_birds(tiny_birds, split)
        for index in range(len(images)):
            path = tmp_path / 'maps' / split / f'{images.image_id(index)}.npy'
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.eye(7, dtype=np.float32))
    seen = backend('eager')
    code, out, err = script('eval_wsol', *tiny_birds, '--scoremap_root=maps', '--compile')
    assert code == 0 and 'compiled' not in out and not seen, err


def test_mistakes_are_one_line(script, tiny_birds, save, backend):
    refused(script('eval_pixel_perturb', *tiny_birds, '--experiment_name=CAM', '--score_map_process=grad_cam', '--compile'),
            '--compile', 'grad_cam')
    refused(script('eval_cue_location', *tiny_birds, '--experiment_name=CAM', '--contrast_method=backprop', '--compile'),
            '--compile', 'backprop')
    backend(fail)
    refused(script('main', *tiny_birds, *SMALL, '--epochs=1', '--compile'), '--compile', 'C++ compiler')
