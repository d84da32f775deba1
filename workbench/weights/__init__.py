"""Weights from where they live into a model."""

from workbench.weights.infer_architecture import infer_architecture
from workbench.weights.loading import Weights, load_weights, put_weights, read_weights

__all__ = ["Weights", "infer_architecture", "load_weights", "put_weights", "read_weights"]
