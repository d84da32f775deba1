"""OpenAI's format: a state dict that `clip.load(path)` takes (openai/CLIP @ d05afc4), read again by open_clip."""

from pathlib import Path
from typing import Any

import torch

from workbench.errors import UserError
from workbench.export.comparison import Encoders, quietly
from workbench.models import CLIP
from workbench.models.architectures import OPENAI_MEAN, OPENAI_STD, TimmConfig

HALF_ALWAYS = True
"""Their loaders round the weights to half precision, whatever is in the file."""


def write(model: CLIP, folder: Path, origin: dict[str, Any]) -> str:
    """Write `<name>.pt`; return how to load it.

    Raises:
        UserError: their code cannot express the model.
    """
    described = model.architecture
    if isinstance(described.vision, TimmConfig) or described.activation != "quick_gelu" or described.logit_bias:
        raise UserError(
            f"OpenAI's code has ViTs and modified ResNets with quick_gelu and without logit_bias; this is "
            f"{described.name} with {described.activation}. Export it to open_clip, onnx or safetensors."
        )
    if (described.mean, described.std, described.interpolation) != (OPENAI_MEAN, OPENAI_STD, "bicubic"):
        raise UserError(
            "OpenAI's code normalises pictures with its own mean and std and resizes them bicubically; this model "
            f"wants {described.mean}, {described.std} and {described.interpolation}. Export it to open_clip."
        )
    if any(tower.heads != tower.channels // 64 for tower in (described.vision, described.text)):
        raise UserError("OpenAI's code has heads of 64 channels; this model has others. Export it to open_clip.")
    numbers = {"input_resolution": described.image_size, "context_length": described.context_length}
    numbers["vocab_size"] = described.vocab_size
    state_dict = model.state_dict() | {key: torch.tensor(value) for key, value in numbers.items()}
    path = folder / f"{described.name.replace('/', '-').replace('@', '-')}.pt"
    torch.save(state_dict, path)
    return f'clip.load("FOLDER/{path.name}")'


def reload(folder: Path) -> Encoders:
    """Load it with open_clip's reader of OpenAI's files."""
    import open_clip

    path = next(folder.glob("*.pt"))
    with quietly():  # it tries TorchScript first
        model = open_clip.load_openai_model(str(path), precision="fp32", device="cpu").eval()

    def logits(images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        image, text, scale = model(images, tokens)[:3]
        return scale * image @ text.T

    return Encoders(f"open_clip {open_clip.__version__}", model.encode_image, model.encode_text, logits)
