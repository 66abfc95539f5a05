"""An optional term in CALM's loss, the entropy of p(z|x): it makes CALM look at fewer or more locations.

It acts in training only. The network does not change, so its weights load anywhere.

    model.prior_training = parse('entropy:-1')      # model.loss adds it in training mode
"""
import math
from functools import partial

import torch

from wsol.errors import UserError
from wsol.heads import spatial_prior


def entropy(attention, weight):
    """weight times -sum_z p(z|x) log p(z|x), in nats, the mean over the images: attention (B,h,w) -> ().

    A weight above 0 sharpens p(z|x), a weight below 0 spreads it. The gradient includes that of the attention's sum,
    even if the loss holds this sum constant.
    """
    prior = spatial_prior(attention, detach_normaliser=False)
    log_prior = torch.where(prior > 0, prior, 1).log()  # 0 log 0 is 0, and so is its gradient
    return -weight * (prior * log_prior).sum((1, 2)).mean()


def parse(text):
    """'entropy:WEIGHT' -> a function attention (B,h,w) -> (). Raises UserError."""
    name, _, number = (part.strip() for part in text.partition(':'))
    try:
        weight = float(number) if number.isascii() and '_' not in number else math.nan
    except ValueError:
        weight = math.nan
    if name != 'entropy' or not math.isfinite(weight):
        raise UserError(f'"{text}" is not entropy:WEIGHT, such as entropy:-1')
    return partial(entropy, weight=weight)
