"""Backbones: networks up to their last map."""
from wsol.backbones import _torchvision  # noqa: F401  before torchvision, whose import it mends
