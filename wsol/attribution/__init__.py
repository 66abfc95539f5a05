"""Attribution methods: one call gives the maps of any of them."""
from . import activations, gradients, perturbation  # noqa: F401  they register themselves
from .maps import attribution_maps  # noqa: F401
