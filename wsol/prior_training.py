"""What may be done to CALM's p(z|x) in training, and only there, to change where it looks.

Each entry of MEASURES takes the attention (B,h,w), >= 0, and its own number, and gives the attention that is normalised
to p(z|x), and what is added to the loss. Nothing of it is in the network: its weights load anywhere, and evaluations
know nothing of it.

    model.prior_training = parse('drop:0.5,entropy:0.1')      # a CALM's; model.loss heeds it in training mode
"""
from collections.abc import Callable
from typing import NamedTuple

import torch

from wsol.errors import UserError
from wsol.heads import spatial_prior

MEASURES = {}


class Measure(NamedTuple):
    """apply(attention (B,h,w), number) -> attention (B,h,w), summand of the loss (); which numbers it takes."""
    apply: Callable
    kind: type
    takes: Callable  # number -> bool
    words: str       # the same for the reader


def measure(name, kind, takes, words):
    """Make a function the measure `name`."""
    def enter(apply):
        MEASURES[name] = Measure(apply, kind, takes, words)
        return apply
    return enter


def _keep(attention, kept):
    """The attention where kept (B,h,w) bool, else 0; an image of which nothing would be left keeps all."""
    is_left = (attention.detach() * kept).sum((1, 2), keepdim=True) > 0  # (B,1,1)
    return attention * (kept | ~is_left)


def _strongest(attention, number):
    """(B,h,w) bool: the `number` strongest locations of each image."""
    flat = attention.detach().flatten(1)
    places = flat.topk(min(number, flat.shape[1]), dim=1).indices
    return torch.zeros_like(flat, dtype=torch.bool).scatter(1, places, True).view_as(attention)


@measure('entropy', float, lambda weight: abs(weight) < float('inf'), 'a number')
def entropy(attention, weight):
    """weight times -sum_z p(z|x) log p(z|x), in nats, the mean over the images: above 0 it sharpens p(z|x), below 0 it
    spreads it. With its whole gradient, even where the loss holds the attention's sum constant."""
    prior = spatial_prior(attention, detach_normaliser=False)
    logarithm = torch.where(prior > 0, prior, 1).log()  # 0 log 0 is 0, and so is its gradient
    return attention, -weight * (prior * logarithm).sum((1, 2)).mean()


@measure('drop', float, lambda probability: 0 <= probability < 1, 'a probability in [0, 1)')
def drop(attention, probability):
    """Each location has attention 0 with this probability, independently: dropout of locations."""
    return _keep(attention, torch.rand_like(attention) >= probability), 0.0


@measure('drop_top', float, lambda probability: 0 <= probability <= 1, 'a probability in [0, 1]')
def drop_top(attention, probability):
    """The same for the strongest tenth of an image's locations alone, at least one: ACMIL's masking of the top
    instances (Zhang et al., ECCV 2024), whose number is fixed there."""
    top = _strongest(attention, max(1, attention[0].numel() // 10))
    return _keep(attention, ~top | (torch.rand_like(attention) >= probability)), 0.0


@measure('top', int, lambda number: number >= 1, 'an integer from 1 up')
def top(attention, number):
    """Only the `number` strongest locations of each image keep their attention."""
    return _keep(attention, _strongest(attention, number)), 0.0


def _parse_one(word):
    name, _, text = (part.strip() for part in word.partition(':'))
    if name not in MEASURES:
        raise UserError(f'"{word}" is not one of {", ".join(f"{known}:VALUE" for known in MEASURES)}')
    own = MEASURES[name]
    try:
        number = own.kind(text)
    except ValueError:
        number = None
    if number is None or not own.takes(number):
        raise UserError(f'{name} takes {own.words}, not "{text}"')
    return own.apply, number


def parse(text):
    """'NAME:VALUE,NAME:VALUE' -> a function attention (B,h,w) -> attention (B,h,w), summand of the loss (): the
    measures one after the other. What they draw is drawn from torch's own state. Raises UserError."""
    steps = [_parse_one(word) for word in text.split(',')]

    def apply(attention):
        total = 0.0
        for step, number in steps:
            attention, summand = step(attention, number)
            total = total + summand
        return attention, total
    return apply
