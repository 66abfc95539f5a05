"""wsol.attribution, gradients and perturbation: captum and torchcam as oracles, and the identities each method must keep."""
import copy
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import InputXGradient, IntegratedGradients, LayerGradCam, Occlusion, Saliency
from torchcam.methods import CAM as TorchCAM
from torchcam.methods import LayerCAM, XGradCAM

from wsol import build_model
from wsol.attribution import gradients, perturbation, registry
from wsol.attribution.contrast import contrast_maps
from wsol.attribution.maps import attribution_maps
from wsol.attribution.registry import SamplingSettings

LABELS = torch.tensor([1, 4])


@pytest.fixture(scope='module', params=['CAM', 'CALM_EM'])
def model(request):
    torch.manual_seed(0)
    model = build_model('resnet18', request.param, 5, last_stage='layer1').eval()
    if request.param != 'CAM':
        torch.nn.init.constant_(model.attention[0].bias, 0.1)
    return model


@pytest.fixture(scope='module')
def images():
    return torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))


def maps(model, images, name, **settings):
    return attribution_maps(model, images, LABELS, name, settings=SamplingSettings(**settings))


def test_vanilla_gradient_is_captums_saliency_bit_for_bit(model, images):
    reference = Saliency(model).attribute(images.clone().requires_grad_(), LABELS).amax(1)
    assert torch.equal(maps(model, images, 'backprop'), reference)


def test_input_x_gradient_is_captums(model, images):
    reference = InputXGradient(model).attribute(images.clone().requires_grad_(), LABELS).sum(1)
    torch.testing.assert_close(maps(model, images, 'input_x_gradient'), reference)


def test_integrated_gradients_are_captums_and_complete(model, images):
    reference = IntegratedGradients(model).attribute(images, target=LABELS, n_steps=20).sum(1)
    ours = maps(model, images, 'integrated_gradients', integrated_grad_nr_iter=20)
    torch.testing.assert_close(ours, reference.float(), rtol=1e-4, atol=1e-5)
    attribution = maps(model, images, 'integrated_gradients', integrated_grad_nr_iter=100)
    with torch.no_grad():
        difference = (model(images) - model(torch.zeros_like(images)))[torch.arange(2), LABELS]
    torch.testing.assert_close(attribution.sum((1, 2)), difference, rtol=1e-2, atol=1e-3)


def test_grad_cam_is_captums(model, images):
    reference = LayerGradCam(model, model.layer1).attribute(images, LABELS, relu_attributions=True)[:, 0]
    torch.testing.assert_close(maps(model, images, 'grad_cam'), reference)


def test_grad_cam_of_a_cam_network_is_its_map_without_bias(images):
    """CAM's score is linear in the last map."""
    model = build_model('resnet18', 'CAM', 5, last_stage='layer1').eval()
    cam = maps(model, images, 'vanilla') - model.conv_last.bias[LABELS][:, None, None]
    torch.testing.assert_close(maps(model, images, 'grad_cam'), cam.relu() / cam[0].numel())


@pytest.mark.parametrize('name, oracle', [('layer_cam', LayerCAM), ('xgrad_cam', XGradCAM)])
def test_maps_of_the_last_map_are_torchcams(model, images, name, oracle):
    with oracle(model, target_layer='layer1') as extract:
        scores = model(images.clone().requires_grad_())
        reference, = extract(LABELS.tolist(), scores, normalized=False)
    torch.testing.assert_close(maps(model, images, name), reference.detach(), rtol=1e-4, atol=1e-7)


def slopes(model, image, weights_of):
    """(D,h,w) features of one image, and the slope in them of the sum of weights_of(scores) times the class scores."""
    features = model.extract_features(image[None]).detach().requires_grad_()
    scores = model.class_scores(model.head(features))[0]
    slope, = torch.autograd.grad((weights_of(scores.detach()) * scores).sum(), features)
    return features.detach()[0], slope[0]


def test_hires_cam_adds_up_to_what_is_linear(model, images):
    """Draelos and Carin's guarantee: for a linear head, here CAM's, the map's sum is the score without the bias."""
    ours = maps(model, images, 'hires_cam')
    for index, label in enumerate(LABELS.tolist()):
        target = F.one_hot(LABELS[index], 5)
        features, slope = slopes(model, images[index], lambda _, target=target: target)
        torch.testing.assert_close(ours[index], sum(a * g for a, g in zip(features, slope, strict=True)))
        if not hasattr(model, 'attention'):
            score = model(images)[index, label] - model.conv_last.bias[label]
            torch.testing.assert_close(ours[index].sum(), score, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('alpha, count', [(0.6, 3), (1.0, 1), (0.6, 9), (0.0, 2)])
def test_finer_cam_agrees_with_its_formula(model, images, alpha, count):
    ours = maps(model, images, 'finer_cam', finer_cam_alpha=alpha, finer_cam_references=count)
    for index, label in enumerate(LABELS.tolist()):
        def weights_of(scores, label=label):
            near = sorted((c for c in range(5) if c != label), key=lambda c: abs(scores[c] - scores[label]))[:count]
            return torch.tensor([1.0 if c == label else -alpha / len(near) if c in near else 0.0 for c in range(5)])
        features, slope = slopes(model, images[index], weights_of)
        torch.testing.assert_close(ours[index], (slope.mean((1, 2))[:, None, None] * features).sum(0).relu())
    if alpha == 0:
        assert torch.equal(ours, maps(model, images, 'grad_cam'))


def test_finer_cam_as_a_contrast_is_grad_cam_of_the_difference_where_its_strength_is_one(model, images):
    other = torch.tensor([0, 2])
    settings = SamplingSettings(finer_cam_alpha=1.0)
    finer, plain = (contrast_maps(model, images, LABELS, other, name, settings=settings) for name in ('finer_cam', 'grad_cam'))
    torch.testing.assert_close(finer, plain)
    weaker = contrast_maps(model, images, LABELS, other, 'finer_cam')
    assert not torch.allclose(weaker, plain)


def test_eigen_cam_is_the_first_principal_component_by_numpy(model, images):
    ours = maps(model, images, 'eigen_cam')
    for index in range(2):
        features = model.extract_features(images[index:index + 1])[0].detach().flatten(1).numpy().T  # (hw,D)
        values, vectors = np.linalg.eigh(features.T @ features)
        reference = (features @ vectors[:, -1]).reshape(ours[index].shape)
        np.testing.assert_allclose(ours[index], reference * np.sign(reference.sum()), rtol=1e-3, atol=1e-4)


def test_ablation_cam_agrees_with_a_naive_loop(model, images):
    ours = maps(model, images, 'ablation_cam')
    with torch.no_grad():
        for index, label in enumerate(LABELS.tolist()):
            features = model.extract_features(images[index:index + 1])
            score = model.class_scores(model.head(features))[0, label]
            total = torch.zeros(features.shape[2:])
            for channel in range(features.shape[1]):
                without = features.clone()
                without[:, channel] = 0
                drop = score - model.class_scores(model.head(without))[0, label]
                total += drop / abs(score) * features[0, channel]
            torch.testing.assert_close(ours[index], total.relu(), rtol=1e-4, atol=1e-6)


def test_rise_is_the_mean_of_masks_weighted_by_the_probability(model, images):
    ours = maps(model, images, 'rise', rise_nr_masks=40)  # more than share a forward
    for index, label in enumerate(LABELS.tolist()):
        masks = torch.stack(list(perturbation.rise_masks(40, (40, 40), seed=index)))
        assert masks.shape == (40, 1, 40, 40) and masks.min() >= 0 and masks.max() <= 1.001
        with torch.no_grad():
            total = sum(model(images[index:index + 1] * mask).softmax(1)[0, label] * mask[0] for mask in masks)
        torch.testing.assert_close(ours[index], total / 20)
    many = torch.stack(list(perturbation.rise_masks(2000, (20, 30), seed=3)))
    assert (many.mean(0) - 0.5).abs().max() < 0.05  # every pixel is kept half of the time


def test_grad_cam_pp_agrees_with_a_naive_loop(model, images):
    """torchcam 0.5 is no oracle here: it leaves out the division of the paper's equation 19."""
    model, images = copy.deepcopy(model).double(), images.double()  # a denominator may come near 0
    ours = maps(model, images, 'grad_cam_pp')
    for index in range(2):
        features = model.extract_features(images[index:index + 1]).detach().requires_grad_()
        score = model.class_scores(model.head(features))[0, LABELS[index]]
        gradient, = torch.autograd.grad(score, features)
        total = torch.zeros(features.shape[2:], dtype=torch.float64)
        for channel, slope in zip(features[0].detach(), gradient[0], strict=True):
            weight = 0.0
            for g in slope.flatten():
                if g > 0:
                    weight += g * g ** 2 / (2 * g ** 2 + (channel * slope ** 3).sum())
            total += weight * channel
        torch.testing.assert_close(ours[index], total.relu())


def test_cam_is_torchcams(model, images):
    """On a network of average pooling and a linear layer with the same weights."""
    head = torch.nn.Linear(model.conv_last.in_channels, 5)
    head.weight.data, head.bias.data = model.conv_last.weight.data[:, :, 0, 0], model.conv_last.bias.data
    pooled = torch.nn.Sequential()
    for name in model.stages:
        pooled.add_module(name, model.get_submodule(name))
    pooled.add_module('pool', torch.nn.AdaptiveAvgPool2d(1))
    pooled.add_module('flatten', torch.nn.Flatten())
    pooled.add_module('fc', head)
    with TorchCAM(pooled, target_layer='layer1', fc_layer='fc') as extract:
        pooled(images)
        reference, = extract(LABELS.tolist(), normalized=False)
    ours = maps(model, images, 'vanilla') - model.conv_last.bias[LABELS][:, None, None]
    torch.testing.assert_close(ours, reference.detach(), rtol=1e-4, atol=1e-5)


def test_occlusion_is_captums_where_the_squares_tile(model):
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    reference = Occlusion(model).attribute(images, sliding_window_shapes=(3, 4, 4), strides=(3, 2, 2), target=LABELS)
    torch.testing.assert_close(maps(model, images, 'occlusion'), reference[:, 0], rtol=1e-4, atol=1e-5)


def test_occlusion_covers_every_pixel_of_any_size(model):
    image = torch.randn(2, 3, 37, 50, generator=torch.Generator().manual_seed(2))
    assert torch.isfinite(maps(model, image, 'occlusion')).all()


def test_score_cam_agrees_with_a_naive_loop(model, images):
    ours = maps(model, images, 'score_cam')
    with torch.no_grad():
        for index in range(2):
            features = model.extract_features(images[index:index + 1])[0]
            gains = []
            for channel in features:
                up = F.interpolate(channel[None, None], images.shape[2:], mode='bilinear', align_corners=False)
                mask = (up - up.min()) / (up.max() - up.min()) if up.max() > up.min() else torch.zeros_like(up)
                gain = model(images[index:index + 1] * mask) - model(torch.zeros(1, 3, 40, 40))
                gains.append(gain[0, LABELS[index]])
            reference = (torch.stack(gains).softmax(0)[:, None, None] * features).sum(0).relu()
            torch.testing.assert_close(ours[index], reference, rtol=1e-4, atol=1e-6)


def test_published_integrated_grad_is_the_mean_of_vanilla_maps_on_the_path(model, images):
    reference = sum(maps(model, images * step / 4, 'backprop') for step in range(5)) / 4
    torch.testing.assert_close(maps(model, images, 'integrated_grad', integrated_grad_nr_iter=4), reference)


def test_without_noise_smooth_grad_is_the_gradient(model, images):
    calm = {'smooth_grad_sigma': 1e30, 'smooth_grad_nr_iter': 3}
    gradient = maps(model, images, 'backprop')
    torch.testing.assert_close(maps(model, images, 'smooth_grad', **calm), gradient)
    torch.testing.assert_close(maps(model, images, 'smooth_grad_square', **calm), gradient.square())
    assert maps(model, images, 'var_grad', **calm).abs().max() <= 1e-10 * gradient.square().max()


def test_smooth_grad_variants_are_moments_of_the_same_copies(model, images):
    mean, square, variance = (maps(model, images, name, smooth_grad_nr_iter=6)
                              for name in ('smooth_grad', 'smooth_grad_square', 'var_grad'))
    assert (variance >= 0).all()
    torch.testing.assert_close(variance, square - mean.square(), rtol=1e-3, atol=1e-5 * square.max().item())


def noise_of(model, images, seeds, count, sigma):
    """(count,B,3,H,W): what SmoothGrad adds to the images, seen at the network's entrance."""
    copies = []
    handle = model.register_forward_pre_hook(lambda _, inputs: copies.append(inputs[0].detach().clone()))
    try:
        attribution_maps(model, images, LABELS[:len(images)], 'smooth_grad', seeds=torch.tensor(seeds),
                         settings=SamplingSettings(smooth_grad_nr_iter=count, smooth_grad_sigma=sigma))
    finally:
        handle.remove()
    return torch.cat(copies).unflatten(0, (len(images), count)).transpose(0, 1) - images


VERSIONS = {  # method -> how many versions of an image it takes, beside single ones
    'integrated_grad': 71, 'integrated_gradients': 70, 'smooth_grad': 70, 'smooth_grad_square': 70, 'var_grad': 70,
    'score_cam': 64, 'occlusion': 12 * 12}


@pytest.mark.parametrize('name', VERSIONS)
def test_versions_of_an_image_are_computed_together_as_one_by_one(model, name, monkeypatch):
    """In double precision, where the network's own rounding by the size of a batch is far below 1e-6."""
    model, image = copy.deepcopy(model).double(), torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1)).double()
    results, settings = [], SamplingSettings(smooth_grad_nr_iter=70, integrated_grad_nr_iter=70)
    for at_a_time in (1, 8, 64):
        for module, usual in ((gradients, 'VERSIONS_AT_A_TIME'), (perturbation, 'MASKS_AT_A_TIME')):
            monkeypatch.setattr(module, usual, at_a_time)
        sizes = []
        handle = model.register_forward_pre_hook(lambda _, inputs, sizes=sizes: sizes.append(len(inputs[0])))
        results.append(attribution_maps(model, image, LABELS[:1], name, settings=settings))
        handle.remove()
        if name in ('score_cam', 'occlusion'):
            assert sizes.pop(0) == 1
        total = sum(sizes)
        assert total == VERSIONS[name]
        assert sizes == [min(at_a_time, total - start) for start in range(0, total, at_a_time)]
    for together in results[1:]:
        assert (together - results[0]).abs().max() <= 1e-6 * results[0].abs().max()


def test_on_a_cpu_as_many_versions_go_together_as_ever(model, images):
    assert (gradients.VERSIONS_AT_A_TIME, perturbation.MASKS_AT_A_TIME) == (8, 32)
    assert registry.versions_at_a_time(SimpleNamespace(images=images), 8, 1000) == 8


@pytest.mark.parametrize('usual, kept', [(8, gradients.NUMBERS_KEPT), (32, perturbation.NUMBERS_KEPT)])
def test_on_cuda_the_versions_fit_into_their_share_of_the_free_memory(monkeypatch, usual, kept):
    """Of 1 GB to 141 GB; what torch holds in reserve is free, too."""
    images = SimpleNamespace(device=torch.device('cuda'), shape=(1, 3, 224, 224), element_size=lambda: 4)
    asked, versions = SimpleNamespace(images=images, classes=torch.zeros(1, 200)), []
    for free in (1e9, 4e9, 8e9, 24e9, 80e9, 141e9):
        for reserved in (0, 0.5):
            monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda _, free=free, reserved=reserved: (free * (1 - reserved), 2e11))
            monkeypatch.setattr(torch.cuda, 'memory_reserved', lambda _, free=free, reserved=reserved: 1e9 + free * reserved)
            monkeypatch.setattr(torch.cuda, 'memory_allocated', lambda _: 1e9)
            versions.append(registry.versions_at_a_time(asked, usual, kept))
        assert versions[-1] == versions[-2] and usual <= versions[-1] <= 16 * usual and versions[-1].bit_count() == 1
        assert versions[-1] == usual or versions[-1] * 224**2 * (kept + 200) * 4 <= registry.GPU_SHARE * free
    assert versions == sorted(versions) and versions[0] == usual < versions[-1]


@pytest.mark.parametrize('sigma', [4.0, 10.0])
def test_the_noise_is_that_of_a_generator_of_the_cpu_with_the_images_seed(model, images, sigma):
    """To the bit, as since the first results: normal, of the image's own range over sigma, whatever the batch."""
    images = images.clone()
    images[1] = 5 + 7 * images[1]  # another range, far from zero
    for rows, seeds in (([0, 1], [5, 6]), ([1], [6])):
        noise = noise_of(model, images[rows], seeds, 10, sigma)
        for index, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
            image, generator = images[row], torch.Generator().manual_seed(seed)
            deviation = (image.max() - image.min()) / sigma
            copies = torch.stack([image + torch.randn(image.shape, generator=generator) * deviation for _ in range(10)])
            assert torch.equal(noise[:, index], copies - image)


def test_cuda_draws_the_noise_itself(monkeypatch):
    """It uses a generator of its own: nothing is drawn on the CPU and carried there."""
    asked = []

    def draw(shape, generator, device):
        asked.append(device)
        return torch.zeros(shape)

    class Far(torch.Tensor):
        device, is_cuda = torch.device('cuda', 1), True
    monkeypatch.setattr(torch, 'Generator', lambda device: SimpleNamespace(device=device, manual_seed=lambda _: SimpleNamespace(device=device)))
    monkeypatch.setattr(torch, 'randn', draw)
    monkeypatch.setattr(gradients, '_many_magnitudes', lambda _, copies: list(copies))
    settings = SamplingSettings(smooth_grad_nr_iter=3)
    gradients._noisy_magnitudes(SimpleNamespace(images=torch.zeros(1, 3, 4, 4).as_subclass(Far), seeds=[7], settings=settings))
    assert asked == 3 * [torch.device('cuda', 1)]


@pytest.mark.parametrize('name', ['backprop', 'grad_cam', 'integrated_gradients', 'smooth_grad'])
def test_gradients_work_where_the_caller_switched_them_off(model, images, name):
    expected = maps(model, images, name, smooth_grad_nr_iter=2, integrated_grad_nr_iter=2)
    with torch.inference_mode():
        ours = maps(model, images.clone(), name, smooth_grad_nr_iter=2, integrated_grad_nr_iter=2)
    assert torch.equal(ours, expected)


def test_memory_is_that_of_one_batch_however_many_samples(model, images, monkeypatch):
    """No batch of noisy copies but the last is alive."""
    monkeypatch.setattr(gradients, 'VERSIONS_AT_A_TIME', 3)
    copies, alive, original = [], [], type(model).forward

    def watched(self, batch):
        copies.append(weakref.ref(batch))
        alive.append(sum(copy() is not None for copy in copies))
        return original(self, batch)
    monkeypatch.setattr(type(model), 'forward', watched)
    maps(model, images, 'var_grad', smooth_grad_nr_iter=12)
    assert len(alive) == 2 * 4 and max(alive) == 1
