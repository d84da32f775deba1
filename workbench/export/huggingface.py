"""Hugging Face's format: a folder for `CLIPModel` and `CLIPProcessor` of transformers."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from workbench.errors import UserError
from workbench.export.comparison import Encoders, refuse_other_pictures
from workbench.models import CLIP
from workbench.tokenizer import SPECIAL, tokenize, vocabulary
from workbench.weights import huggingface

_TEXTS = ["a photo of a cat", "Two dogs, and 17 RED   balloons!", "the artist's caf\N{LATIN SMALL LETTER E WITH ACUTE}"]


def write(model: CLIP, folder: Path, origin: dict[str, Any]) -> str:
    """Write configuration, weights, tokenizer and preprocessor; return how to load them."""
    config = huggingface.write_config(model.architecture)
    dtype = str(model.text_projection.dtype).removeprefix("torch.")
    files = {
        huggingface.CONFIG: config | {"torch_dtype": dtype},
        huggingface.PREPROCESSOR: huggingface.write_preprocessor(model.architecture),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    save_file(
        huggingface.from_openai_keys({key: value.detach() for key, value in model.state_dict().items()}),
        folder / huggingface.WEIGHTS[0],
        {"format": "pt"},
    )
    _write_tokenizer(folder, model.architecture.context_length)
    return 'transformers.CLIPModel.from_pretrained("FOLDER"), transformers.CLIPProcessor.from_pretrained("FOLDER")'


def _write_tokenizer(folder: Path, context_length: int) -> None:
    """Write the vocabulary in the two files that every release of transformers reads."""
    symbols, merges = vocabulary()
    start, end = SPECIAL
    about = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": context_length,
        "bos_token": start,
        "eos_token": end,
        "unk_token": end,
        "pad_token": end,
    }
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    for name, content in {
        "vocab.json": json.dumps(symbols | SPECIAL, ensure_ascii=False),
        "merges.txt": "\n".join(lines) + "\n",
        "tokenizer_config.json": json.dumps(about, indent=2),
    }.items():
        (folder / name).write_text(content, encoding="utf-8")


def reload(folder: Path) -> Encoders:
    """Load it with transformers, and compare tokenizer and preprocessor with ours on the way.

    Raises:
        UserError: they give other tokens or pictures than ours.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    _compare_processor(transformers.CLIPProcessor.from_pretrained(folder), folder)

    def encode_image(images: torch.Tensor) -> torch.Tensor:
        return model.visual_projection(model.vision_model(pixel_values=images).pooler_output)

    def encode_text(tokens: torch.Tensor) -> torch.Tensor:
        return model.text_projection(model.text_model(input_ids=tokens).pooler_output)

    return Encoders(
        f"transformers {transformers.__version__}",
        encode_image,
        encode_text,
        lambda images, tokens: model(input_ids=tokens, pixel_values=images).logits_per_image,
    )


def _compare_processor(processor: object, folder: Path) -> None:
    about = json.loads((folder / huggingface.CONFIG).read_text(encoding="utf-8"))
    pictures = json.loads((folder / huggingface.PREPROCESSOR).read_text(encoding="utf-8"))
    described = huggingface.read_config(about, pictures, str(folder))
    found = processor(text=_TEXTS, return_tensors="pt", padding="max_length", truncation=True)
    ours = tokenize(_TEXTS, described.context_length).long()
    length = int(ours.argmax(dim=-1).max()) + 1  # they pad with the end, we with 0
    theirs = found["input_ids"][:, :length]
    if not bool(((theirs == ours[:, :length]) | (ours[:, :length] == 0)).all()):
        raise UserError("The tokenizer that transformers reads gives other tokens than ours.")
    refuse_other_pictures(
        described, lambda picture: processor(images=picture, return_tensors="pt")["pixel_values"][0], "transformers"
    )
