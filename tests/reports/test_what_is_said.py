"""inference.py says how probabilities are made, which maps show no place, and when a prediction does not depend on the photo."""
import json

import numpy as np
import pytest
import torch
import torchvision
from conftest import refused
from PIL import Image

from reports.album import View
from wsol.attribution.contrast import CONTRASTS, label_of
from wsol.maps import is_constant

NAMES = 'background\ncrane\ncrane\n'


@pytest.fixture
def explain(script, tmp_path):
    """Call inference.py on two photos with a network whose classifier has these biases, and weights drawn at random or 0."""
    def call(*flags, biases, scale=0.0):
        torch.manual_seed(0)
        network = torchvision.models.shufflenet_v2_x0_5(num_classes=len(biases))
        for layer in network.modules():  # features of a fresh network are nearly constant
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 1.0
        network(torch.randn(8, 3, 64, 64))
        network.fc.weight.data *= scale
        network.fc.bias.data = torch.tensor(biases)
        torch.save(network.state_dict(), tmp_path / 'trained.pth')
        (tmp_path / 'names.txt').write_text(NAMES)
        rng = np.random.default_rng(0)
        for name in 'ab':
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).resize((90, 90)).save(tmp_path / f'{name}.png')
        return script('inference', 'a.png', 'b.png', '--architecture=shufflenet_v2_x0_5', '--load_checkpoint=trained.pth',
                      '--workers=0', '--device=cpu', '--picture_size=64', '--output=out', '--format=png,html', *flags)
    return call


def read(tmp_path):
    return json.loads((tmp_path / 'out/manifest.json').read_text()), (tmp_path / 'out/gallery.html').read_text()


def test_one_logit_is_no_or_yes_and_what_shows_nothing_is_said(explain, tmp_path):
    code, out, err = explain('--contrast', biases=[-4.0])
    manifest, page = read(tmp_path)
    assert code == 0 and 'b.png: no, p = 0.982' in out and 'one logit: p(class 1) = sigmoid(logit)' in out
    assert 'the network says no, p = 0.982, of all photos here, and of plain grey and of noise too' in err
    assert 'maps with one value everywhere show no place: 4 here, as vanilla of a.png' in err
    assert manifest['settings']['scores'] == 'one_logit' and all(note in page for note in manifest['notes'])
    for entry in manifest['images']:
        assert (entry['predicted'], entry['contrast']['class_name']) == (0, 'yes')
        assert entry['probability'] == pytest.approx(1 / (1 + np.exp(-4))) == 1 - entry['contrast']['probability']
        assert entry['constant_maps'] == ['vanilla', 'log-odds: why A, not B']
        assert np.load(tmp_path / 'out' / entry['maps']['vanilla']) == pytest.approx(4)
    assert page.count('4 everywhere, which shows no place') == 6  # no, yes and the contrast of two photos


def test_several_labels_have_probabilities_of_their_own(explain, tmp_path):
    code, out, err = explain('--scores=sigmoid', '--contrast', '--class_names=names.txt', biases=[-4.0, 4.0, 3.0], scale=0.02)
    manifest, page = read(tmp_path)
    assert code == 0 and 'the p of each label is its own' in out and 'the p of each label is its own' in page
    assert '(labels with p >= 0.5: crane (1), crane (2))' in out
    first = manifest['images'][0]
    assert first['labels'] == ['crane (1)', 'crane (2)'] and first['probability'] + first['contrast']['probability'] > 1.5
    assert manifest['settings']['scores'] == 'sigmoid' and first['constant_maps'] == []
    maps = [np.load(tmp_path / 'out' / name) for name in (first['maps']['vanilla'], first['contrast']['maps']['log-odds_contrast'])]
    logit = [np.log(p / (1 - p)) for p in (first['probability'], first['contrast']['probability'])]
    assert maps[0].mean() == pytest.approx(logit[0], rel=1e-3)
    assert maps[1].mean() == pytest.approx(logit[0] - logit[1], rel=1e-3)


def test_which_scores_are_taken_is_said_unless_they_are_stated(explain, tmp_path):
    code, out, err = explain('--class_names=names.txt', '--target=crane (2)', biases=[0.0, 3.0, 0.0], scale=30.0)
    manifest, _ = read(tmp_path)
    assert code == 0 and '--scores=sigmoid is for a network of several labels' in out and not manifest['notes']
    assert {entry['class_name'] for entry in manifest['images']} == {'crane (2)'}
    assert 'plain grey' not in err and 'one value' not in err
    assert '--scores=sigmoid is for' not in explain('--scores=softmax', biases=[0.0, 1.0, 2.0])[1]
    refused(explain('--class_names=names.txt', biases=[0.0, 3.0]), 'names.txt holds 3 names, and the network has 2 classes')
    refused(explain('--scores=softmax', biases=[3.0]), 'one number is 1')


@pytest.mark.parametrize('head', ['CAM', 'CALM_EM'])
def test_a_network_that_was_trained_here_keeps_its_probabilities(script, trained, tmp_path, head):
    Image.new('RGB', (30, 30)).save(tmp_path / 'a.png')
    refused(script('inference', 'a.png', f'--load_checkpoint={trained / head}', '--scores=sigmoid', '--workers=0'),
            'scores=sigmoid', head if head == 'CALM_EM' else 'was trained with softmax')


def test_maps_that_vary_by_rounding_alone_are_constant_and_drawn_without_colour():
    noise = 1e-6 * torch.rand(3, 4, 4)
    maps = torch.stack([torch.zeros(4, 4), 5 + noise[0], -5 - noise[1], noise[2], torch.eye(4) + 100])
    assert is_constant(maps).tolist() == [True, True, True, False, False]
    view = View('file', 'title', 'label', False, None)
    panel = view.panel(np.zeros((4, 4, 3), np.uint8), (5 + noise[0]).numpy(), 'jointll', (0.0, 0.0, 1.0, 1.0))
    assert panel.title == 'jointll: 5 everywhere, which shows no place' and not panel.values.any()


def test_labels_of_contrasts_say_logits_where_probabilities_are_of_each_label():
    for name, words in (('log-odds', 'logit p(A | x, z) − logit p(B | x, z), nats'), ('grad_cam', 'logit p(A | x) − logit p(B | x)')):
        assert words in label_of(CONTRASTS[name], 'sigmoid') or 'A rather than B' in label_of(CONTRASTS[name], 'sigmoid')
        for scores in ('softmax', 'one_logit'):
            assert label_of(CONTRASTS[name], scores) == CONTRASTS[name].label_of()
