"""The encoders as programs that need neither this package nor Python: `torch.export`, and ONNX for onnxruntime.

Each is a file of its own, `image` and `text`, with any batch size; what else is needed to use them is in `clip.json`.
"""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.export.comparison import quietly, scaled_cosines
from workbench.models import CLIP
from workbench.weights import description

ABOUT = "clip.json"


class _TextEncoder(nn.Module):
    def __init__(self, model: CLIP):
        super().__init__()
        self.model = model
        del model.visual  # programs hold all that their module has

    def forward(self, text: Tensor) -> Tensor:
        return self.model.encode_text(text)


def programs(model: CLIP) -> Iterator[tuple[str, torch.export.ExportedProgram]]:
    """Yield both encoders by name, as programs for any number of pictures or texts of the full context length."""
    model = copy.deepcopy(model).eval()
    model.trim_text = False  # how long the longest text is, is no part of a program
    size, length = model.architecture.image_size, model.architecture.context_length
    tokens = torch.zeros(2, length, dtype=torch.long)
    tokens[:, 0], tokens[0, 2], tokens[1, length - 1] = 1, 3, 3
    batch = torch.export.Dim("batch", min=1, max=2**31)  # older torch refuses a size without end
    # The text encoder takes the image tower off the model.
    for name, module, example in (
        ("image", model.visual, torch.zeros(2, 3, size, size)),
        ("text", _TextEncoder(model), tokens),
    ):
        with quietly():
            yield name, torch.export.export(module, (example,), dynamic_shapes=({0: batch},))


def write_about(model: CLIP, folder: Path, origin: dict[str, Any]) -> None:
    """Write what a user of the programs must know: sizes, mean, std, the temperature, and where they come from."""
    bias = 0.0 if model.logit_bias is None else float(model.logit_bias)
    about = description(model.architecture) | {
        "logit_scale": float(model.logit_scale.detach().exp()),
        "logit_bias": bias,
        "weights_source": origin,
        "inputs": {
            "image": "float32 [batch, 3, image_size, image_size], (pixel / 255 - mean) / std",
            "text": "int64 [batch, context_length], token ids, 0 behind the end",
        },
        "outputs": "float32 [batch, embed_dim], not normalised; logits = logit_scale * cosine + logit_bias",
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=2), encoding="utf-8")


def logits(folder: Path, encode_image: Callable, encode_text: Callable) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the logits as `clip.json` says that they are made."""
    about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    scale, bias = torch.tensor(about["logit_scale"]), about["logit_bias"]
    return lambda images, tokens: scaled_cosines(encode_image(images), encode_text(tokens), scale, bias)
