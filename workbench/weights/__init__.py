"""Weights from where they live into a model."""

from workbench.weights.loading import load_weights, read_weights

__all__ = ["load_weights", "read_weights"]
