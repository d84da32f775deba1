"""OpenCLIP's format: a folder with its configuration and safetensors."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from workbench.export.comparison import Encoders
from workbench.models import CLIP
from workbench.weights import openclip


def write(model: CLIP, folder: Path) -> str:
    """Write `open_clip_config.json` and `open_clip_model.safetensors`; return how to load them."""
    config = openclip.write_config(model.architecture)
    (folder / openclip.CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    tensors = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / openclip.WEIGHTS[0], {"format": "pt"})
    return 'open_clip.create_model_and_transforms("local-dir:FOLDER")'


def reload(folder: Path) -> Encoders:
    """Load it with open_clip."""
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}", device="cpu").eval()

    def logits(images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        image, text, scale, *bias = model(images, tokens)
        return scale * image @ text.T + (bias[0] if bias else 0.0)

    return Encoders(f"open_clip {open_clip.__version__}", model.encode_image, model.encode_text, logits)
