"""Plain safetensors: OpenAI's keys, with the description of the model in the header."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from workbench.export.comparison import Encoders
from workbench.models import CLIP, create_model
from workbench.weights import description, put_weights, read_weights


def write(model: CLIP, folder: Path, origin: dict[str, Any]) -> str:
    """Write `model.safetensors`; return how to load it."""
    about = json.dumps(description(model.architecture) | {"weights_source": origin})
    tensors = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"workbench": about})
    return 'workbench.load("FOLDER/model.safetensors")'


def reload(folder: Path) -> Encoders:
    """Load it with the safetensors library into a new model."""
    import safetensors

    weights = read_weights(folder / "model.safetensors")
    model = create_model(weights.architecture).eval()
    put_weights(model, weights)
    return Encoders(
        f"safetensors {safetensors.__version__}",
        model.encode_image,
        model.encode_text,
        lambda images, tokens: model(images, tokens)[0],
    )
