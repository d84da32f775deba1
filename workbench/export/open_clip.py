"""OpenCLIP's format: a folder with its configuration and safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from workbench.export.comparison import Encoders, refuse_other_pictures
from workbench.models import CLIP
from workbench.weights import openclip


def write(model: CLIP, folder: Path, origin: dict[str, Any]) -> str:
    """Write `open_clip_config.json` and `open_clip_model.safetensors`; return how to load them."""
    config = openclip.write_config(model.architecture)
    (folder / openclip.CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    tensors = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / openclip.WEIGHTS[0], {"format": "pt"})
    return 'open_clip.create_model_and_transforms("local-dir:FOLDER")'


def reload(folder: Path) -> Encoders:
    """Load it with open_clip, and compare how it prepares a picture with ours on the way.

    Raises:
        UserError: it prepares another picture than ours.
    """
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", device="cpu")
    model.eval()
    config = json.loads((folder / openclip.CONFIG).read_text(encoding="utf-8"))
    refuse_other_pictures(openclip.read_config(config, openclip.CONFIG), transform, "open_clip")

    def logits(images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        image, text, scale, *bias = model(images, tokens)
        return scale * image @ text.T + (bias[0] if bias else 0.0)

    return Encoders(f"open_clip {open_clip.__version__}", model.encode_image, model.encode_text, logits)
