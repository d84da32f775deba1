"""`torch.export` programs: `image.pt2` and `text.pt2`, for torch alone, AOTInductor or ExecuTorch."""

from pathlib import Path
from typing import Any

import torch

from workbench.export.comparison import Encoders, quietly
from workbench.export.programs import logits, programs, write_about
from workbench.models import CLIP


def write(model: CLIP, folder: Path, origin: dict[str, Any]) -> str:
    """Write both programs and `clip.json`; return how to load them."""
    for name, program in programs(model):
        with quietly():
            torch.export.save(program, folder / f"{name}.pt2")
    write_about(model, folder, origin)
    return 'torch.export.load("FOLDER/image.pt2").module()'


def reload(folder: Path) -> Encoders:
    """Load both with torch."""
    with quietly():
        image, text = (torch.export.load(folder / f"{name}.pt2").module() for name in ("image", "text"))
    return Encoders(f"torch {torch.__version__}", image, text, logits(folder, image, text))
