"""CAM and CALM: the equations, then the thin modules that train them.

Source: Kim, Choe, Akata, Oh, "Keep CALM and Improve Visual Feature Attribution", ICCV 2021
(arXiv 2106.07861), section 3; CAM: Zhou et al., CVPR 2016. A class is y, a location of the
h x w grid is z. Everything CALM says is a marginal of one tensor,

    p(y,z|x) = p(y|x,z) p(z|x)                                             (B,C,h,w)

summed over z it is the prediction p(y|x), summed over y the prior p(z|x), divided by p(y|x)
the posterior p(z|x,y). One letter per axis: B images, C classes, D features, h x w the grid.
"""
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from wsol.speed.fused import loss_and_scores

# --- the equations -----------------------------------------------------------------------


def spatial_prior(attention, detach_normaliser=True):
    """p(z|x), where the cue is: the attention divided by its sum over the grid.

    attention: (B,h,w), >= 0. Returns (B,h,w), each image summing to 1.
    detach_normaliser: hold the sum constant in the gradient, as the published code does.
    An image whose attention is 0 everywhere gets the uniform prior (the published code: NaN).
    """
    total = attention.sum((1, 2), keepdim=True)  # (B,1,1)
    if detach_normaliser:
        total = total.detach()
    dead = total == 0
    uniform = 1 / (attention.shape[1] * attention.shape[2])
    return torch.where(dead, uniform, attention / total.masked_fill(dead, 1))


def log_marginal(log_conditional, prior):
    """log p(y|x) = log sum_z p(y|x,z) p(z|x), safe where p(y|x,z) is below the smallest float.

    log_conditional: (B,C,h,w), log p(y|x,z); C may be the row of one class. prior: (B,h,w).
    Returns (B,C).
    """
    reachable = log_conditional.detach().masked_fill(prior[:, None] == 0, -torch.inf)
    shift = reachable.amax((2, 3), keepdim=True)  # (B,C,1,1)
    # the clamp touches only places without prior, whose exp could overflow before it is times 0
    conditional = (log_conditional - shift).clamp(max=0).exp()
    return (conditional * prior[:, None]).sum((2, 3)).log() + shift[..., 0, 0]


def joint(log_conditional, prior):
    """p(y,z|x). log_conditional: (B,C,h,w); prior: (B,h,w). Returns (B,C,h,w)."""
    return log_conditional.exp() * prior[:, None]


def posterior(joint_map, epsilon=1e-10):
    """p(z|x,y) = p(y,z|x) / p(y|x): (...,h,w) -> (...,h,w). epsilon as published."""
    return joint_map / (joint_map.sum((-2, -1), keepdim=True) + epsilon)


def beside_the_grid(values, elsewhere):
    """Values (...,h,w) with that of one more location, elsewhere (...): (...,1,h*w+1). The equations take any grid."""
    return torch.cat([values.flatten(-2), elsewhere.expand(values.shape[:-2])[..., None]], -1)[..., None, :]


def calm_ml_loss(log_row, prior):
    """-log p(y*|x), the mean over the batch. log_row: (B,h,w), log p(y*|x,z) of the true class."""
    return -log_marginal(log_row[:, None], prior).mean()


def calm_em_loss(log_row, prior):
    """-sum_z q(z) log p(y*,z|x), the mean over the batch; q, the E step, is held constant.

    log_row: (B,h,w), log p(y*|x,z) of the true class; prior: (B,h,w). As published, a prior
    under 1e-8 is raised by 1e-8 in the logarithm.
    """
    q = posterior(log_row.detach().exp() * prior.detach())  # (B,h,w)
    log_prior = torch.where(prior < 1e-8, prior + 1e-8, prior).log()
    return -(q * (log_row + log_prior)).sum((1, 2)).mean()


# --- the modules ---------------------------------------------------------------------------

PRIORS = {'relu': nn.ReLU, 'softplus': nn.Softplus}  # what makes an attention of CALM's logits


@contextmanager
def evaluating(model):
    """Put a model in eval mode, and every module of it back in its own mode afterwards."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def pointwise(features, convolution):
    """A 1x1 convolution, computed as a matrix product: (B,D,h,w) -> (B,C,h,w).

    cuDNN rounds the inputs of a float32 convolution to TF32 on recent GPUs; torch's matrix products keep float32
    unless the caller has asked otherwise. No copy is made of features in channels-last order.
    """
    weight = convolution.weight[:, :, 0, 0]  # (C,D)
    return F.linear(features.movedim(1, -1), weight, convolution.bias).movedim(-1, 1)


class Activations(NamedTuple):
    """What one forward leaves for predictions, losses and maps (in float32)."""
    features: torch.Tensor              # (B,D,h,w), the backbone's last map
    logits: torch.Tensor                # (B,C,h,w), a 1x1 convolution of the features
    prior: torch.Tensor | None = None   # (B,h,w), p(z|x); None for CAM


class CAM(nn.Module):
    """Class activation mapping: the mean of the logits over the grid, then softmax.

    prior, no_cue: CALM's alone. backbone: an nn.Sequential of named stages (wsol.resnet); its stages become this
    module's own children, so that state-dict names are the published ones (`layer1...`, `conv_last...`).
    """
    own_maps = 'vanilla'  # the attribution method that the head stands for
    own_contrast = 'log-odds'  # and the contrast method, where none is asked for

    def __init__(self, backbone, num_features, num_classes, prior=None, no_cue=False):
        super().__init__()
        self.stages = tuple(name for name, _ in backbone.named_children())
        self.earlier = getattr(backbone, 'earlier', ())  # stages whose features are taken beside those of the last
        for name, stage in backbone.named_children():
            self.add_module(name, stage)
        self.conv_last = nn.Conv2d(num_features, num_classes, 1)

    def extract_features(self, images):
        """(B,3,H,W) -> (B,D,h,w). Of several stages: side by side on the grid of the first, the finest."""
        found = []
        for name in self.stages:
            images = self.get_submodule(name)(images)
            if name in self.earlier:
                found.append(images)
        if not found:
            return images
        return torch.cat([F.interpolate(own, found[0].shape[2:], mode='nearest') for own in [*found, images]], 1)

    def head(self, features):
        """(B,D,h,w) -> Activations, in the weights' precision whatever autocast made of the backbone's."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.conv_last.weight.dtype)
            return Activations(features, pointwise(features, self.conv_last))

    def activations(self, images):
        """One forward: (B,3,H,W) -> Activations."""
        return self.head(self.extract_features(images))

    def class_scores(self, activations):
        """(B,C); their softmax is p(y|x). CAM: logits, CALM: log-probabilities."""
        return activations.logits.mean((2, 3))

    def forward(self, images):
        """(B,3,H,W) -> class scores (B,C)."""
        return self.class_scores(self.activations(images))

    def loss(self, images, labels):
        """Training loss () and class scores (B,C) of one batch. labels: (B,) int64."""
        features = self.extract_features(images)
        with torch.autocast(features.device.type, enabled=False):
            # the mean over the grid of a linear map is the linear map of the mean: no (B,C,h,w) is made
            pooled = features.to(self.conv_last.weight.dtype).mean((2, 3))  # (B,D)
            scores = F.linear(pooled, self.conv_last.weight[:, :, 0, 0], self.conv_last.bias)  # (B,C)
        return F.cross_entropy(scores, labels), scores.detach()


class CALM(CAM):
    """Class activation latent mapping: p(y|x) = sum_z p(y|x,z) p(z|x).

    prior: 'relu' (released code: attention by ReLU, its sum detached) or 'softplus' (as the
    paper's text has it: softplus and L1 normalisation with its gradient). no_cue: one more location, which is nowhere
    in the picture, with an attention and a distribution over the classes that are learned: p(z|x) then sums to
    1 - p(none|x) over the picture, and the joint to p(y|x) - p(y|none) p(none|x).
    """
    own_maps = 'jointll'
    own_contrast = 'prior-log-odds'
    criterion = None  # (log_row, prior) -> loss
    prior_training = None  # of wsol.prior_training: what `loss` does to the attention in training mode

    def __init__(self, backbone, num_features, num_classes, prior='relu', no_cue=False):
        super().__init__(backbone, num_features, num_classes)
        self.attention = nn.Sequential(nn.Conv2d(num_features, 1, 1), PRIORS[prior]())
        self.detach_normaliser, self.no_cue = prior == 'relu', no_cue
        if no_cue:  # beside what they belong to, so that they are trained, frozen and loaded with it
            self.conv_last.register_parameter('no_cue', nn.Parameter(torch.zeros(num_classes)))
            self.attention.register_parameter('no_cue', nn.Parameter(torch.ones(())))

    def whole(self, values, elsewhere):
        """Values (...,h,w) with that of the no-cue location, (...,1,h*w+1), where the network has one.

        elsewhere: a function that gives it, (...), of the attention's logit () and of log p(y|none) (C,).
        """
        if not self.no_cue:
            return values
        return beside_the_grid(values, elsewhere(self.attention.no_cue, self.conv_last.no_cue.log_softmax(0)))

    def whole_prior(self, prior):
        """p(z|x) (B,h,w) with p(none|x): what it lacks to 1."""
        return self.whole(prior, lambda *_: (1 - prior.sum((1, 2))).clamp(min=0))

    def whole_conditional(self, log_conditional):
        """log p(y|x,z) (B,C,h,w) with log p(y|none)."""
        return self.whole(log_conditional, lambda _, log_probs: log_probs)

    def normalised(self, attention):
        """The attention (B,h,w), >= 0, over its sum, with that of the no-cue location."""
        # holding the sum constant is part of the published training; gradients that explain a trained network
        # (eval mode) are those of p(y|x) itself
        whole = self.whole(attention, lambda logit, _: self.attention[1](logit))
        return spatial_prior(whole, self.detach_normaliser and self.training)

    def prior(self, attention):
        """p(z|x) (B,h,w) of the attention's logits (B,h,w)."""
        prior = self.normalised(self.attention[1](attention))
        return prior[..., :-1].view_as(attention) if self.no_cue else prior

    def prior_of_loss(self, attention):
        """p(z|x) as the loss takes it, of the attention's logits (B,h,w), and what is added to the loss ()."""
        attention, summand = self.attention[1](attention), 0.0
        if self.prior_training is not None and self.training:
            attention, summand = self.prior_training(attention)
        return self.normalised(attention), summand

    def head(self, features):
        features, logits, _ = super().head(features)
        with torch.autocast(features.device.type, enabled=False):
            attention = pointwise(features, self.attention[0])[:, 0]  # (B,h,w)
            return Activations(features, logits, self.prior(attention))

    def class_scores(self, activations):
        log_conditional = self.whole_conditional(activations.logits.log_softmax(1))
        return log_marginal(log_conditional, self.whole_prior(activations.prior))

    def plain_loss(self, images, labels):
        """`loss` as the equations have it: the definition that tests hold `loss` against."""
        features = self.extract_features(images)
        with torch.autocast(features.device.type, enabled=False):
            return self._plain_loss(features, labels)

    def _plain_loss(self, features, labels):
        features, logits, _ = self.head(features)
        prior, summand = self.prior_of_loss(pointwise(features, self.attention[0])[:, 0])
        log_conditional = self.whole_conditional(logits.log_softmax(1))  # (B,C,h,w)
        grid = labels[:, None, None].expand_as(prior)  # (B,h,w)
        log_row = -F.nll_loss(log_conditional, grid, reduction='none')  # (B,h,w)
        with torch.no_grad():
            scores = log_marginal(log_conditional, prior)
        return self.criterion(log_row, prior) + summand, scores

    def loss(self, images, labels):
        def equations(log_row, attention):
            prior, summand = self.prior_of_loss(attention)
            return self.criterion(log_row, prior) + summand, prior
        features = self.extract_features(images)
        with torch.autocast(features.device.type, enabled=False):
            if self.no_cue:  # the step below knows the grid alone
                return self._plain_loss(features, labels)
            features = features.to(self.conv_last.weight.dtype)
            return loss_and_scores(features, self.conv_last, self.attention[0], labels, equations)


class CALM_EM(CALM):
    """CALM trained by expectation-maximisation."""
    criterion = staticmethod(calm_em_loss)


class CALM_ML(CALM):
    """CALM trained by the marginal likelihood."""
    criterion = staticmethod(calm_ml_loss)
