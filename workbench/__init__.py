"""The CLIP workbench: pre-train, fine-tune, probe and evaluate CLIP.

In Python, without Lightning: `load`, `create_model`, `available_models`, `tokenize`.
On the command line: `python -m workbench`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "available_models": "workbench.api",
    "create_model": "workbench.api",
    "load": "workbench.api",
    "tokenize": "workbench.tokenizer",
}
__all__ = ["__version__", *sorted(_LAZY)]


def __getattr__(name: str) -> Any:
    """Import on first use: the command line answers `--help` without torch."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
