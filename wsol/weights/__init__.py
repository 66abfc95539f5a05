"""Weights as people store them: files read without executing anything, the state dict in them, and its network."""
