"""--control=random_weights: the maps of a random network, judged by the trained one."""
import os

import pytest
import torch
from conftest import SIZE, accepted, open_birds, refused, result_paths
from torch import nn

import config
from evaluation import session
from experiment import result_files, weights
from wsol.maps import blurred
from wsol.networks import redrawn

CONTROL = '--control=random_weights'


def chosen(trained, tiny_birds, head, *flags, control=(CONTROL,)):
    """The ChosenMaps of an experiment and its control."""
    args = config.parse(config.make_parser('', *config.EVALUATION), [*tiny_birds, f'--save_root={trained}', f'--experiment_name={head}',
                                                       *control, *flags])
    network = session.open_network(args, whole=True)
    return session.choose_maps(network, session.open_data(network))


@pytest.mark.parametrize('head', ['CAM', 'CALM_EM'])
def test_maps_are_the_random_networks_and_probabilities_the_trained_ones(trained, tiny_birds, head):
    images, _ = open_birds(tiny_birds)
    batch, indices, classes = torch.stack([images[n][0] for n in (4, 9)]), torch.tensor([4, 9]), torch.tensor([[1], [5]])
    trained_model, _ = weights.load_model(trained / head)
    expected = trained_model.probabilities(trained_model(batch))
    drawn = {}
    for name, flags in {'first': [], 'again': [], 'seed': ['--seed=4'], 'gradients': ['--score_map_process=backprop']}.items():
        maps = chosen(trained, tiny_birds, head, *flags)
        before = torch.get_rng_state()
        answer = maps.source(images)(batch, indices, classes)
        assert torch.equal(before, torch.get_rng_state())
        torch.testing.assert_close(answer.probs, expected)
        drawn[name] = maps.model.conv_last.weight
        assert maps.model is not maps.network.model and not torch.equal(drawn[name], trained_model.conv_last.weight)
        assert (answer.maps.flatten(1).amax(1) > answer.maps.flatten(1).amin(1)).all()  # not constant
    assert torch.equal(drawn['first'], drawn['again']) and torch.equal(drawn['first'], drawn['gradients'])
    assert not torch.equal(drawn['first'], drawn['seed'])


@pytest.mark.parametrize('name, contrast', [('pixel_perturb', None), ('wsol', None), ('cue_location', None),
                                            ('cue_location', 'log-odds')])
def test_each_evaluation_has_the_control(script, tiny_birds, save, name, contrast):
    base = [*tiny_birds, '--experiment_name=CAM', *([f'--contrast_method={contrast}'] if contrast else [])]
    base += [] if name == 'pixel_perturb' else ['--cam_curve_interval=0.02']
    for more in ([], [CONTROL]):
        accepted(script(f'eval_{name}', *base, *more))
    plain, control = sorted(map(result_files.read_result, result_paths(save / 'CAM', name)), key=lambda one: 'random_weights' in one['path'])
    assert control['settings'] == {**plain['settings'], 'control': 'random_weights'} and '_random_weights' in control['path']
    assert control['weights_sha256'] == plain['weights_sha256']
    if name == 'cue_location':
        assert control['is_control'] and not plain['is_control'] and control['pxap'] != plain['pxap']
    elif name == 'wsol':
        assert control['results'] != plain['results'] and 'Top-1 Loc' in control['results']
    else:  # the trained network answers as ever, where the map decides nothing
        assert [control['outcomes'][key] for key in ('intact', 'random', 'coarse')] == [
            plain['outcomes'][key] for key in ('intact', 'random', 'coarse')]
        assert control['areas_by_image']['deletion'] != plain['areas_by_image']['deletion']
    asked = {key: plain['settings'][key] for key in ('seed', 'contrast_method', 'cam_curve_interval') if key in plain['settings']}
    os.utime(control['path'])
    found = result_files.find_result(save / 'CAM', name, plain['settings']['score_map_process'], plain['weights_sha256'], **asked)
    assert found['path'] == plain['path']  # studies never take the control for the method
    code, out, err = script('compare', 'save/CAM')
    rows = [line.strip() for line in out.splitlines() if line.startswith('CAM') and 'random weights' in line and '−' not in line]
    assert code == 0 and rows and all(row.startswith('CAM: control: random weights, CAM') for row in rows), out + err


@pytest.mark.parametrize('flags', [[], ['--score_map_process=backprop'], ['--score_map_process=object_mask']])
def test_the_blurred_control_blurs_the_maps_and_nothing_else(trained, tiny_birds, flags):
    images, _ = open_birds(tiny_birds)
    batch, indices, classes = torch.stack([images[n][0] for n in (4, 9)]), torch.tensor([4, 9]), torch.tensor([[1, 3], [5, 1]])
    plain, control = (chosen(trained, tiny_birds, 'CALM_EM', *flags, control=control).source(images)(batch, indices, classes)
                      for control in ([], ['--control=blurred']))
    torch.testing.assert_close(plain.probs, control.probs)
    for maps, of_control in zip(plain.maps, control.maps, strict=True):
        torch.testing.assert_close(of_control, blurred(maps))
        assert (of_control.flatten(1).std(1) < maps.flatten(1).std(1)).all()


def test_maps_that_no_network_makes_have_no_random_weights(script, tiny_birds, save, tmp_path):
    for flag in ('--score_map_process=object_mask', f'--scoremap_root={tmp_path}'):
        refused(script('eval_wsol', *tiny_birds, '--experiment_name=CAM', CONTROL, flag), flag, 'leave one of them out')
    refused(script('eval_wsol', *tiny_birds, '--experiment_name=CAM', '--control=random'), 'did you mean random_weights?')


class Scaled(nn.Module):
    """What no module initialises: a weight of its own, BatchNorm with statistics, and a shared layer."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.gain = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Parameter(torch.randn(8, 1, 1))
        self.attention, self.again = nn.MultiheadAttention(8, 2), self.first

    def forward(self, images):
        return self.norm(self.first(images)) * self.gain


def test_no_trained_weight_is_left_in_any_network():
    torch.manual_seed(0)
    model = Scaled()
    model.train()(torch.randn(4, 3, SIZE, SIZE))
    for part in model.parameters():
        part.data += torch.randn_like(part)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = redrawn(model.eval())
    assert other.first is other.again and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, value in other.state_dict().items():
        assert not torch.equal(value, before[name]), name
    assert torch.equal(other.gain.flatten().sort()[0], model.gain.flatten().sort()[0])
