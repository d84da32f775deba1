"""Weights from where they live into a model, and out of it into the formats of others."""

from workbench.weights.adapters import refuse_other_base, tensors_sha256
from workbench.weights.description import described_architecture, description
from workbench.weights.infer_architecture import infer_architecture
from workbench.weights.loading import (
    architecture_for,
    checkpoint_architecture,
    named,
    put_weights,
    under_demands,
)
from workbench.weights.reading import read_weights
from workbench.weights.state_dicts import Weights

__all__ = [
    "Weights",
    "architecture_for",
    "checkpoint_architecture",
    "described_architecture",
    "description",
    "infer_architecture",
    "named",
    "put_weights",
    "read_weights",
    "refuse_other_base",
    "tensors_sha256",
    "under_demands",
]
