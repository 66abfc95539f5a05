"""wsol.folding: a network with its BatchNorms folded gives the same, or is left as it was."""
import pytest
import torch
from conftest import accepted
from torch import nn

from evaluation import session
from wsol import attribution_maps, build_model
from wsol.attribution.registry import METHODS
from wsol.heads import CAM
from wsol.speed import folding

NETWORKS = [('resnet18', {'large_feature_map': True}), ('resnet18', {'last_stage': 'layer1'}),
            ('inception_v3', {'use_bn': True}), ('mobilenet_v3_small', {})]
SIZE = 75


def with_statistics(model):
    """In eval mode, with statistics that a training could have left."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in ((module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 2), (module.weight, 0.5, 1.5),
                                      (module.bias, -0.2, 0.2)):
                values.data.uniform_(low, high, generator=generator)
    return model.eval()


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize('name, options', NETWORKS)
def test_probabilities_and_maps_stay(name, options):
    def build():
        torch.manual_seed(0)
        return with_statistics(build_model(name, 'CALM_EM', 7, **options)).to(memory_format=torch.channels_last)
    model, folded = build(), build()
    images, labels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2)), torch.tensor([[0, 3], [6, 1]])
    total, count = len(norms(model)), folding.fold_batchnorm(folded, SIZE)
    assert count == total - len(norms(folded)) == total
    assert not folded.training and folded.conv_last.weight.equal(model.conv_last.weight)
    with torch.no_grad():
        for after, before in ((folded(images).softmax(1), model(images).softmax(1)),
                              *((attribution_maps(each, images, labels, method) for each in (folded, model))
                                for method in ('vanilla', 'jointll', 'saliency'))):
            assert after.isfinite().all() and (after - before).abs().max() <= 1e-5 * before.abs().max()
    assert folding.fold_batchnorm(folded, SIZE) == 0  # nothing is left to fold


class Stage(nn.Module):
    """A convolution and a BatchNorm, put together by a function (module, images) -> features."""

    def __init__(self, forward, **options):
        super().__init__()
        self.convolution, self.norm, self.function = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, **options), forward

    def forward(self, images):
        return self.function(self, images)


@pytest.mark.parametrize('forward, options, folds', [
    (lambda stage, x: stage.norm(stage.convolution(x)), {}, 1),
    (lambda stage, x: stage.norm(stage.convolution(x)), {'affine': False}, 1),
    (lambda stage, x: stage.norm(stage.convolution(x)), {'track_running_stats': False}, 0),  # normalises by the batch
    (lambda stage, x: stage.norm(stage.convolution(x) + 1), {}, 0),
    (lambda stage, x: stage.convolution(stage.norm(x)), {}, 0),
    (lambda stage, x: stage.norm(stage.convolution(stage.convolution(x))), {}, 0),  # runs twice
    (lambda stage, x: stage.norm(stage.norm(stage.convolution(x))), {}, 0),
    (lambda stage, x: stage.norm(y := stage.convolution(x)) + y, {}, 0),  # the map before it is used too: the features show it
])
def test_what_cannot_be_folded_stays(forward, options, folds):
    torch.manual_seed(0)
    model = CAM(nn.Sequential(), 3, 2)
    model.stage, model.stages = Stage(forward, **options), ('stage',)
    if options != {'track_running_stats': False}:
        model.stage.norm.running_mean.uniform_(-1, 1)
        model.stage.norm.running_var.uniform_(0.5, 2)
    model.eval()
    images = torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        before, names = model(images), list(model.state_dict())
        assert folding.fold_batchnorm(model, 5) == folds
        torch.testing.assert_close(model(images), before, rtol=1e-5, atol=1e-6)
    assert (list(model.state_dict()) == names) != bool(folds)


@pytest.mark.parametrize('method', ['jointll', 'smooth_grad', 'object_mask'])
def test_evaluations_fold_where_forwards_alone_are_asked(script, tiny_birds, save, monkeypatch, method):
    asked = []
    monkeypatch.setattr(session, 'fold_batchnorm', lambda model, size: asked.append(size))
    accepted(script('eval_pixel_perturb', *tiny_birds, '--experiment_name=CALM_EM', f'--score_map_process={method}',
                    '--smooth_grad_nr_iter=1', '--batch_size=36'))
    assert len(asked) == (method not in METHODS or METHODS[method].one_forward)
