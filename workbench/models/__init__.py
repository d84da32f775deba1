"""CLIP in PyTorch: both image towers, the text tower, the architectures and their initialisation."""

from workbench.models.architectures import (
    ARCHITECTURES,
    DEFAULT_ARCHITECTURE,
    OPENAI_ARCHITECTURES,
    Architecture,
    architecture,
)
from workbench.models.clip import CLIP, compile_blocks, create_model, set_shortcuts
from workbench.models.lora import LoRA, add_lora, merge_lora, unmerge_lora

__all__ = [
    "ARCHITECTURES",
    "DEFAULT_ARCHITECTURE",
    "OPENAI_ARCHITECTURES",
    "CLIP",
    "Architecture",
    "LoRA",
    "add_lora",
    "architecture",
    "compile_blocks",
    "create_model",
    "merge_lora",
    "set_shortcuts",
    "unmerge_lora",
]
