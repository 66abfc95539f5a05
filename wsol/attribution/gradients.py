"""Attribution by gradients: the published baselines, and the standard ones.

Each explains a class score s: CAM's logit, or log p(class|x) for CALM. Images (B,3,H,W) -> maps (B,K,H,W), or (B,K,h,w)
for the methods on the last map A (B,D,h,w). The caller's tensors and the parameters' .grad stay as they are.
"""
from functools import partial
from itertools import islice

import numpy as np
import torch

from wsol.attribution.registry import image_by_image, register, versions_at_a_time

VERSIONS_AT_A_TIME = 8  # noisy copies of an image, or points on a path, per forward and backward (CUDA takes more)
NUMBERS_KEPT = 1000     # per pixel of such a version, in the graph of ResNet-50 with 28x28 maps

gradient_method = partial(register, explains_score=True, cost=(1, 1))

# --- gradients by the input ---------------------------------------------------------------------


def gradients(query, score, inputs, reduce, explained=None):
    """reduce(∂s_k/∂inputs) for each asked class: one forward, K backwards.

    score: a function (inputs) -> class scores (B,C). explained: a function of these -> (B,K) (default: the query's).
    Returns (B,K,...). It works on copies, even where the caller has switched gradients off.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = inputs.detach().clone().requires_grad_()
        scores = (explained or query.explained)(score(leaf))  # (B,K)
        count = scores.shape[1]
        rows = (torch.autograd.grad(scores[:, k].sum(), leaf, retain_graph=k < count - 1)[0] for k in range(count))
        return torch.stack([reduce(row.to(scores.dtype)) for row in rows], dim=1)  # maps add up in float32


def _magnitudes(query, images):
    """Vanilla gradient maps (B,K,H,W) of some images: the largest absolute value over the colours."""
    return gradients(query, query.model, images, lambda gradient: gradient.abs().amax(1))


def _products(query, images):
    """(B,K,H,W): the query's images times the gradient at `images`, summed over the colours."""
    factor = query.images.clone()
    return gradients(query, query.model, images, lambda gradient: (factor * gradient).sum(1))


@gradient_method('backprop', 'input_grad', label='gradient of {score}', per='largest over colours')
def backprop(query):
    """Vanilla gradient: the largest |d score / d pixel| of the three colours (Simonyan et al. 2014)."""
    return _magnitudes(query, query.images)


def _many_magnitudes(query, versions):
    """The vanilla gradient map (K,H,W) of each version (3,H,W) of one image, some of them together."""
    versions, at_a_time = iter(versions), versions_at_a_time(query, VERSIONS_AT_A_TIME, NUMBERS_KEPT)
    while part := list(islice(versions, at_a_time)):
        yield from _magnitudes(query, torch.stack(part))


@gradient_method('integrated_grad', settings=('integrated_grad_nr_iter',),
                 cost=lambda settings, _: 2 * (settings.integrated_grad_nr_iter + 1,),
                 label='gradients of {score}, from zero to the image', per='summed')
@image_by_image
def integrated_grad(query):
    """The sum of the vanilla gradient maps at N+1 points from 0 to the image, divided by N (published code).

    This is not Sundararajan's method, which is `integrated_gradients`.
    """
    steps, image = query.settings.integrated_grad_nr_iter, query.images[0]
    return sum(_many_magnitudes(query, (image * (step / steps) for step in range(steps + 1)))) / steps


def _noisy_magnitudes(query):
    """Vanilla gradient maps (K,H,W) of noisy copies of one image.

    As published, the standard deviation of the noise is the image's range / smooth_grad_sigma. The noise depends on the
    image's seed and not on the batch. A GPU draws its noise itself, so that none is copied there; from the same seed it
    draws other noise than a CPU.
    """
    seed, = query.seeds
    image = query.images[0]
    generator = torch.Generator(image.device if image.is_cuda else 'cpu').manual_seed(seed)
    sigma = (image.amax() - image.amin()) / query.settings.smooth_grad_sigma
    copies = (image + torch.randn(image.shape, generator=generator, device=generator.device).to(image) * sigma
              for _ in range(query.settings.smooth_grad_nr_iter))
    return _many_magnitudes(query, copies)


noisy_method = partial(gradient_method, settings=('smooth_grad_nr_iter', 'smooth_grad_sigma'), random=True,
                       cost=lambda settings, _: 2 * (settings.smooth_grad_nr_iter,))


@noisy_method('smooth_grad', label='gradient of {score}', per='mean over noisy copies')
@image_by_image
def smooth_grad(query):
    """SmoothGrad: the mean of the vanilla gradient maps of N noisy copies (Smilkov et al. 2017)."""
    return sum(_noisy_magnitudes(query)) / query.settings.smooth_grad_nr_iter


@noisy_method('smooth_grad_square', label='squared gradient of {score}', per='mean over noisy copies')
@image_by_image
def smooth_grad_square(query):
    """SmoothGrad squared: the mean of the squares of those maps (Hooker et al. 2019)."""
    return sum(maps.square() for maps in _noisy_magnitudes(query)) / query.settings.smooth_grad_nr_iter


@noisy_method('var_grad', label='gradient of {score}', per='variance over noisy copies')
@image_by_image
def var_grad(query):
    """VarGrad: the variance of those maps (Adebayo et al. 2018)."""
    mean = squares = 0  # Welford's recurrence: it is never negative
    for count, maps in enumerate(_noisy_magnitudes(query), 1):
        before = maps - mean
        mean = mean + before / count
        squares = squares + before * (maps - mean)
    return squares / query.settings.smooth_grad_nr_iter


@gradient_method('input_x_gradient', signed=True, label='image × gradient of {score}', per='per pixel')
def input_x_gradient(query):
    """Image times gradient, summed over the colours (Shrikumar et al. 2016)."""
    return _products(query, query.images)


@gradient_method('integrated_gradients', settings=('integrated_grad_nr_iter',), unit='score', signed=True,
                 cost=lambda settings, _: 2 * (settings.integrated_grad_nr_iter,),
                 label='contribution to {score}', per='per pixel', total='{score}, less that of the zero image')
@image_by_image
def integrated_gradients(query):
    """Integrated gradients from the zero image, summed over the colours; they sum to score(image) − score(zero image)
    (Sundararajan et al. 2017)."""
    points, weights = np.polynomial.legendre.leggauss(query.settings.integrated_grad_nr_iter)  # a quadrature
    at_a_time = versions_at_a_time(query, VERSIONS_AT_A_TIME, NUMBERS_KEPT)
    points, weights = (torch.from_numpy(values).to(query.images)[:, None, None, None].split(at_a_time)
                       for values in ((1 + points) / 2, weights / 2))  # of (N,1,1,1)
    return sum((weight * _products(query, query.images * point)).sum(0)
               for point, weight in zip(points, weights, strict=True))


# --- gradients by the last map --------------------------------------------------------------------

def _last_map_maps(query, reduce, explained=None):
    """reduce(A, ∂s/∂A) for each asked class, (B,K,h,w): one forward of the backbone. explained: as in gradients."""
    features = query.activations.features.clone()

    def score(last_map):
        return query.model.class_scores(query.model.head(last_map))
    return gradients(query, score, features, lambda gradient: reduce(features, gradient), explained)


def _weighted_by_means(features, gradient):
    return (gradient.mean((2, 3), keepdim=True) * features).sum(1).relu()


@gradient_method('grad_cam', label='gradient-weighted features for {c}')
def grad_cam(query):
    """Grad-CAM: relu(Σ_d mean_z(∂s/∂A_d) A_d) (Selvaraju et al. 2017)."""
    return _last_map_maps(query, _weighted_by_means)


@gradient_method('finer_cam', settings=('finer_cam_alpha', 'finer_cam_references'),
                 label='gradient-weighted features for {c}, not for similar classes')
def finer_cam(query):
    """Finer-CAM: Grad-CAM of s − α mean_r s_r, where the classes r are those with the most similar scores; in a
    contrast, r is the other class (Zhang et al. 2025)."""
    settings, scores = query.settings, query.model.class_scores(query.activations)
    target = scores.gather(1, query.classes)[..., None]  # (B,K,1)
    distance = (scores[:, None] - target).abs().scatter(2, query.classes[..., None], torch.inf)  # (B,K,C)
    count = min(settings.finer_cam_references, scores.shape[1] - 1)
    references = distance.topk(count, largest=False).indices if query.contrast is None else query.contrast[..., None]

    def explained(scores):
        similar = scores[:, None].expand(-1, references.shape[1], -1).gather(2, references.clone())  # (B,K,R)
        target = scores.gather(1, query.classes.clone())
        return target - settings.finer_cam_alpha * similar.mean(2) if references.shape[2] else target
    return _last_map_maps(query, _weighted_by_means, explained)


@gradient_method('grad_cam_pp', label='gradient-weighted features for {c}')
def grad_cam_pp(query):
    """Grad-CAM++: relu(Σ_d w_d A_d), w_d = Σ_z α relu(∂s/∂A_d) (Chattopadhyay et al. 2018, eq. 19 for α)."""
    def reduce(features, gradient):
        square = gradient.square()
        denominator = 2 * square + (features * gradient ** 3).sum((2, 3), keepdim=True)
        alpha = square / torch.where(denominator == 0, torch.ones_like(denominator), denominator)
        weight = (alpha * gradient.relu()).sum((2, 3), keepdim=True)
        return (weight * features).sum(1).relu()
    return _last_map_maps(query, reduce)


@gradient_method('xgrad_cam', label='gradient-weighted features for {c}')
def xgrad_cam(query):
    """XGrad-CAM: relu(Σ_d w_d A_d), w_d the mean of ∂s/∂A_d over the places, weighted by A_d (Fu et al. 2020)."""
    def reduce(features, gradient):
        total = features.sum((2, 3), keepdim=True)
        weight = (gradient * features).sum((2, 3), keepdim=True) / total.masked_fill(total == 0, 1)
        return (weight * features).sum(1).relu()
    return _last_map_maps(query, reduce)


@gradient_method('hires_cam', signed=True, label='gradient × features for {c}')
def hires_cam(query):
    """HiResCAM: Σ_d ∂s/∂A_d A_d (Draelos and Carin 2020). For CAM it is the class's logits without the bias, over the
    number of cells."""
    return _last_map_maps(query, lambda features, gradient: (gradient * features).sum(1))


@gradient_method('layer_cam', label='gradient × features for {c}')
def layer_cam(query):
    """LayerCAM: relu(Σ_d relu(∂s/∂A_d) A_d) (Jiang et al. 2021)."""
    return _last_map_maps(query, lambda features, gradient: (gradient.relu() * features).sum(1).relu())
