"""CLIP in PyTorch: both image towers, the text tower, the architectures and their initialisation."""

from workbench.models.architectures import (
    ARCHITECTURES,
    DEFAULT_ARCHITECTURE,
    OPENAI_ARCHITECTURES,
    Architecture,
    architecture,
)
from workbench.models.clip import CLIP, compile_blocks, create_model, set_shortcuts

__all__ = [
    "ARCHITECTURES",
    "DEFAULT_ARCHITECTURE",
    "OPENAI_ARCHITECTURES",
    "CLIP",
    "Architecture",
    "architecture",
    "compile_blocks",
    "create_model",
    "set_shortcuts",
]
