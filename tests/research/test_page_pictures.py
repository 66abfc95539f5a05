"""research.pictures: the pictures of the pages say what the networks and the measurements say."""
import numpy as np
import pytest
import torch
from PIL import Image

from research import demo, findings, pictures
from wsol import build_model

PAGES = ''.join(path.read_text() for path in (findings.DOCS.parent / 'README.md', *findings.DOCS.glob('*.md')))


@pytest.fixture
def bird():
    cue = np.zeros((32, 32), bool)
    cue[8:20, 8:20] = True
    torch.manual_seed(1)
    return demo.Bird(torch.randn(1, 3, 32, 32), np.full((32, 32, 3), 200, np.uint8), cue, [2, 0], 'A, B: head')


def texts(figure):
    return [text.get_text().replace('\n', ' ') for text in figure.texts]


@torch.inference_mode()
def test_the_joint_sums_to_the_prediction(bird):
    model = build_model('resnet18', 'CALM_EM', 4, last_stage='layer1').eval()
    probs = model.probabilities(model(bird.image))[0]
    said = ' '.join(texts(pictures.joint_of(model, bird, 'a run')))
    assert f'in all {probs[2]:.4f} = p(A | x)' in said and f'in all {probs[0]:.4f} = p(B | x)' in said


@torch.inference_mode()
def test_a_threshold_leaves_out_pixels_of_calm_alone(bird):
    models = {name: build_model('resnet18', name, 4, last_stage='layer1').eval() for name in ('CAM', 'CALM_EM')}
    said = [text for text in texts(pictures.left_out(models, bird, 'a run')) if 'left out:' in text]
    assert said[0] == 'left out: 0 % of the cue, 0 % of the rest' and len(said) == 2 and said[1] != said[0]


def test_the_plot_of_speed_has_a_point_for_each_line_of_the_table():
    faster, memory = pictures.speed().axes
    lines = findings.speed_table().count('\n') - 2
    assert len(faster.get_yticks()) == lines and len(memory.containers) == 2 * lines
    assert all(len(container[0].get_xdata()) for container in faster.containers)


@pytest.mark.parametrize('path', sorted(findings.DOCS.glob('*.png')), ids=lambda path: path.name)
def test_a_picture_is_wide_enough_and_shown(path):
    if path.name != 'cat.png':  # a photo, which is explained
        with Image.open(path) as picture:
            assert picture.width >= 1200
    assert path.name in PAGES
