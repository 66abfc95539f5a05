"""CAM and CALM: the paper's equations, then the thin modules that apply them.

Source: Kim, Choe, Akata, Oh, "Keep CALM and Improve Visual Feature Attribution", ICCV 2021
(arXiv 2106.07861), section 3; CAM: Zhou et al., CVPR 2016. y is a class, z a location on the h x w grid.
Everything that CALM gives is a marginal of one tensor,

    p(y,z|x) = p(y|x,z) p(z|x)                                             (B,C,h,w)

Summed over z, it is the prediction p(y|x); summed over y, the prior p(z|x); divided by p(y|x), the posterior p(z|x,y).
One letter per axis: B images, C classes, D features, h x w the grid.
"""
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from wsol.contexts import full_precision
from wsol.errors import UserError

# --- the equations -----------------------------------------------------------------------


def log_conditional(logits):
    """log p(y|x,z), the class at each location: the softmax of the logits over the classes. Both (B,C,h,w)."""
    return logits.log_softmax(1)


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


def joint(log_probs, prior):
    """p(y,z|x) = p(y|x,z) p(z|x). log_probs: (B,C,h,w), log p(y|x,z); prior: (B,h,w). Returns (B,C,h,w)."""
    return log_probs.exp() * prior[:, None]


def log_marginal(log_probs, prior):
    """log p(y|x) = log sum_z p(y|x,z) p(z|x), safe where p(y|x,z) is below the smallest float.

    log_probs: (B,C,h,w), log p(y|x,z), of all classes or of some. prior: (B,h,w). Returns (B,C).
    """
    reachable = log_probs.detach().masked_fill(prior[:, None] == 0, -torch.inf)
    shift = reachable.amax((2, 3), keepdim=True)  # (B,C,1,1)
    # the clamp changes only locations without prior, whose exp could overflow before it is multiplied by 0
    conditional = (log_probs - shift).clamp(max=0).exp()
    return (conditional * prior[:, None]).sum((2, 3)).log() + shift[..., 0, 0]


def posterior(joint_map, epsilon=1e-10):
    """p(z|x,y) = p(y,z|x) / p(y|x): (...,h,w) -> (...,h,w). epsilon as published."""
    return joint_map / (joint_map.sum((-2, -1), keepdim=True) + epsilon)


def calm_ml_loss(log_row, prior):
    """-log p(y*|x), the mean over the batch. log_row: (B,h,w), log p(y*|x,z) of the true class."""
    return -log_marginal(log_row[:, None], prior).mean()


def calm_em_loss(log_row, prior):
    """-sum_z q(z) log p(y*,z|x), the mean over the batch. The posterior q, the E step, is held constant.

    log_row: (B,h,w), log p(y*|x,z) of the true class; prior: (B,h,w). As published, 1e-8 is added to a prior below 1e-8
    before its logarithm is taken.
    """
    q = posterior(joint(log_row.detach()[:, None], prior.detach()))[:, 0]  # (B,h,w), p(z|x,y*)
    log_prior = torch.where(prior < 1e-8, prior + 1e-8, prior).log()
    return -(q * (log_row + log_prior)).sum((1, 2)).mean()


def pointwise(features, convolution):
    """A 1x1 convolution, computed as a matrix product: (B,D,h,w) -> (B,C,h,w).

    cuDNN rounds the inputs of a float32 convolution to TF32 on recent GPUs; torch's matrix products keep float32
    unless the caller has asked otherwise. Features in channels-last order are not copied. The result has their type.
    """
    weight, bias = (parameter.to(features.dtype) for parameter in (convolution.weight[:, :, 0, 0], convolution.bias))
    with full_precision(features):
        return F.linear(features.movedim(1, -1), weight, bias).movedim(-1, 1)  # weight: (C,D)


# --- the modules ---------------------------------------------------------------------------

PRIORS = {'relu': nn.ReLU, 'softplus': nn.Softplus}  # what makes CALM's attention >= 0
SCORES = {  # what makes probabilities of class scores -> what these probabilities are
    'softmax': 'softmax over the classes', 'sigmoid': 'sigmoid: the p of each label is its own, they do not sum to 1',
    'one_logit': 'one logit: p(class 1) = sigmoid(logit), p(class 0) = 1 − p(class 1)'}


class Activations(NamedTuple):
    """What one forward leaves for predictions, losses and maps, in float32 (float64 if the head's weights are)."""
    features: torch.Tensor              # (B,D,h,w), the backbone's last map
    logits: torch.Tensor                # (B,C,h,w), a 1x1 convolution of the features
    prior: torch.Tensor | None = None   # (B,h,w), p(z|x); None for CAM


class CAM(nn.Module):
    """Class activation mapping: the mean of the logits over the grid, then softmax, or what `scores` says.

    scores: a key of SCORES. With one_logit the classes 0 and 1, no and yes, have the logits -s and s.
    backbone: an nn.Sequential of named stages (wsol.backbones). The stages become children of this module, so that
    state-dict names are the published ones (`layer1...`, `conv_last...`). prior: ignored; only CALM has one.
    """
    default_method = 'vanilla'     # the attribution method that the paper shows for this head
    default_contrast = 'log-odds'  # its contrast method
    scores = 'softmax'

    def __init__(self, backbone, num_features, num_classes, prior=None):
        super().__init__()
        if num_classes == 1:
            raise UserError('num_classes=1: the probability of a single class is always 1; train two, no and yes')
        self.stages = tuple(name for name, _ in backbone.named_children())
        for name, stage in backbone.named_children():
            self.add_module(name, stage)
        self.conv_last = nn.Conv2d(num_features, num_classes, 1)

    def extract_features(self, images):
        """(B,3,H,W) -> (B,D,h,w)."""
        for name in self.stages:
            images = self.get_submodule(name)(images)
        return images

    def in_full(self, features):
        """Features in the precision of a head's arithmetic: float32, or float64 if the weights are. In float16,
        which autocast or half() may have made of features or weights, the losses' epsilons would be 0."""
        return features.to(torch.promote_types(self.conv_last.weight.dtype, torch.float32))

    def head(self, features):
        """(B,D,h,w) -> Activations."""
        features = self.in_full(features)
        return Activations(features, pointwise(features, self.conv_last))

    def activations(self, images):
        """One forward: (B,3,H,W) -> Activations."""
        return self.head(self.extract_features(images))

    def class_scores(self, activations):
        """Activations -> (B,C); `probabilities` makes p(y|x) of them. CAM: logits, CALM: log-probabilities."""
        return activations.logits.mean((2, 3))

    def use_scores(self, scores):
        """Make probabilities by 'softmax' or 'sigmoid' from now on. Raises UserError."""
        if scores not in ('softmax', 'sigmoid'):
            raise UserError(f'no scores "{scores}"; there are softmax and sigmoid')
        if self.scores != 'one_logit':
            self.scores = scores
        elif scores == 'softmax':
            raise UserError('scores=softmax does not suit a network of one logit: the softmax of one number is 1')

    def probabilities(self, scores):
        """Class scores (B,C) -> p(y|x), (B,C)."""
        return scores.softmax(1) if self.scores == 'softmax' else scores.sigmoid()

    def log_probabilities(self, scores):
        """Class scores (B,C) -> log p(y|x), (B,C)."""
        return scores.log_softmax(1) if self.scores == 'softmax' else F.logsigmoid(scores)

    def odds(self, difference):
        """Scores or maps of a class minus those of another -> the part of them in "why this class and not that one":
        the log-odds of the two by softmax, the difference of their logits by sigmoid, the logit for one logit."""
        return difference / 2 if self.scores == 'one_logit' else difference

    def forward(self, images):
        """(B,3,H,W) -> class scores (B,C)."""
        return self.class_scores(self.activations(images))

    def loss(self, images, labels):
        """Training loss () and class scores (B,C) of a batch. labels: (B,) int64; by sigmoid (B,C), 1 where true."""
        # Pool the features, then classify, as Zhou et al. do: the same scores without a (B,C,h,w) map.
        pooled = self.in_full(self.extract_features(images)).mean((2, 3), keepdim=True)  # (B,D,1,1)
        scores = pointwise(pooled, self.conv_last)[..., 0, 0]  # (B,C)
        if self.scores == 'softmax':
            return F.cross_entropy(scores, labels), scores.detach()
        return F.binary_cross_entropy_with_logits(scores, labels.to(scores)), scores.detach()


class CALM(CAM):
    """Class activation latent mapping: p(y|x) = sum_z p(y|x,z) p(z|x), by construction: scores='softmax' keeps it.

    prior: 'relu' (the released code: attention by ReLU, its sum detached) or 'softplus' (the paper's text: softplus,
    then L1 normalisation, whose gradient is kept).
    """
    default_method = 'jointll'
    default_contrast = 'prior-log-odds'
    criterion: Callable    # (log_row (B,h,w), prior (B,h,w)) -> loss (), of CALM_EM and CALM_ML
    prior_training = None  # attention (B,h,w) -> (), which is added to the loss in training mode (wsol.prior_training)

    def __init__(self, backbone, num_features, num_classes, prior='relu'):
        super().__init__(backbone, num_features, num_classes)
        self.attention = nn.Sequential(nn.Conv2d(num_features, 1, 1), PRIORS[prior]())
        self.detach_normaliser = prior == 'relu'

    def attend(self, features):
        """(B,D,h,w) -> attention (B,h,w), >= 0: the prior before it is normalised."""
        return self.attention[1](pointwise(features, self.attention[0]))[:, 0]

    def head(self, features):
        features, logits, _ = super().head(features)
        # The sum is held constant in training, as published; in eval mode gradients explain p(y|x) itself.
        prior = spatial_prior(self.attend(features), self.detach_normaliser and self.training)
        return Activations(features, logits, prior)

    def class_scores(self, activations):
        return log_marginal(log_conditional(activations.logits), activations.prior)

    def use_scores(self, scores):
        if scores != 'softmax':
            raise UserError(f'scores={scores} does not suit {type(self).__name__}, whose p(y|x) sums to 1 anyway')

    def loss(self, images, labels):
        features, logits, prior = self.activations(images)
        log_probs = log_conditional(logits)  # (B,C,h,w), log p(y|x,z)
        grid = labels[:, None, None, None].expand(-1, 1, *logits.shape[2:])  # (B,1,h,w)
        log_row = log_probs.gather(1, grid)[:, 0]  # (B,h,w), log p(y*|x,z)
        loss = self.criterion(log_row, prior)
        if self.prior_training is not None and self.training:
            loss = loss + self.prior_training(self.attend(features))
        with torch.no_grad():
            return loss, log_marginal(log_probs, prior)


class CALM_EM(CALM):
    """CALM trained by expectation-maximisation."""
    criterion = staticmethod(calm_em_loss)


class CALM_ML(CALM):
    """CALM trained by the marginal likelihood."""
    criterion = staticmethod(calm_ml_loss)
