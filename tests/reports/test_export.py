"""export.py: the exported network gives what the network gives, in onnxruntime and in torch, for any batch."""
import json

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import refused

from experiment import weights
from wsol import attribution_maps
from wsol.networks import IMAGENET

# of onnx and of torch's exporter, which change from version to version
pytestmark = [pytest.mark.filterwarnings('ignore::DeprecationWarning'), pytest.mark.filterwarnings('ignore::UserWarning'),
              pytest.mark.filterwarnings('ignore::FutureWarning')]


def expected(save, name, images):
    """Probabilities and own maps, by the library, of images in 0..1."""
    model, _ = weights.load_model(name, save_root=save)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    normalised = (images - mean) / deviation
    with torch.no_grad():
        return model(normalised).softmax(1), attribution_maps(model, normalised)


@pytest.mark.parametrize('name', ['CAM', 'CALM_EM', 'CALM_ML'])
def test_onnx_and_torch_give_the_networks_probabilities_and_maps(script, save, name, tmp_path):
    images = torch.rand(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    for suffix in ('onnx', 'pt2'):
        code, out, err = script('export', f'--save_root={save}', f'--load_checkpoint={name}', f'--output=x.{suffix}')
        assert code == 0 and f'x.{suffix}: images (B,3,56,56)' in out, err
    session = onnxruntime.InferenceSession('x.onnx')
    extra = {'classes': ''}
    program = torch.export.load('x.pt2', extra_files=extra).module()
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about['classes'])[0] == json.loads(extra['classes'])[0] == '001.Toy_A1'
    assert about['image_size'] == '56' and about['attribution_method'] == name
    for count in (1, 2, 3):
        probabilities, maps = expected(save, name, images[:count])
        for ours in (session.run(None, {'images': images[:count].numpy()}), [value.detach() for value in program(images[:count])]):
            np.testing.assert_allclose(ours[0], probabilities, atol=1e-4)
            np.testing.assert_allclose(ours[1], maps, atol=1e-4 * maps.abs().max().item())


def test_the_file_is_named_by_the_checkpoint(script, save, tmp_path):
    assert script('export', f'--save_root={save}', '--load_checkpoint=CAM')[0] == 0
    assert (tmp_path / 'CAM.onnx').is_file()


def test_another_suffix_is_refused(script, save):
    refused(script('export', f'--save_root={save}', '--load_checkpoint=CAM', '--output=x.tflite'), '.onnx or .pt2')
