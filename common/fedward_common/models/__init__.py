"""Torch models by registered name."""
