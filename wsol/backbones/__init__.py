"""Backbones: networks up to their last map."""
