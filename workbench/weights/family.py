"""What a state dict is of, by its keys."""

import re
from collections.abc import Collection

# Tried in order, against the start of a key.
_OTHERS = {
    r".*\blora_([AB]|up|down)\b": "a LoRA adapter, which needs its base model",
    r"text_model\.head\.|vision_model\.head\.": "SigLIP of Hugging Face",
    r"visual\.head\.": "an OpenCLIP model with a timm image tower",
    r"text\.transformer\.(embeddings|encoder|shared)\.": "an OpenCLIP model with a Hugging Face text tower",
    r"visual\.blocks\.\d": "EVA-CLIP",
    r"text_decoder\.|visual_encoder\.|qformer\.": "BLIP, CoCa or another model that writes captions",
    r"first_stage_model\.|model\.diffusion_model\.|cond_stage_model\.": "Stable Diffusion",
    r"bert\.|embeddings\.word_embeddings|encoder\.layer\.\d+\.attention": "BERT or a relative of it",
    r"blocks\.\d+\.attn\.qkv": "a ViT of timm, without a text tower",
    r"layer1\.0\.conv1": "a ResNet of torchvision or timm, without a text tower",
    r"model\.layers\.\d+\.self_attn|(transformer\.)?h\.\d+\.attn": "a language model",
}
_HALVES = {
    r"vision_model\.": "the image tower of a Hugging Face CLIP alone",
    r"text_model\.": "the text tower of a Hugging Face CLIP alone",
    r"visual\.": "the image tower of a CLIP alone",
    r"(transformer\.resblocks|token_embedding)\.": "the text tower of a CLIP alone",
}


def other_family(keys: Collection[str]) -> str | None:
    """Return in words what a state dict seems to be of; None where it has both towers, under OpenAI's keys."""
    if not keys:
        return "nothing, as there is no tensor in it"
    if found := _first(_OTHERS, keys):
        return found
    text = any(key.startswith(("transformer.resblocks.", "token_embedding.")) for key in keys)
    if text and any(key.startswith("visual.") for key in keys):
        return None
    return _first(_HALVES, keys) or f"something with keys such as {', '.join(list(keys)[:3])}"


def _first(patterns: dict[str, str], keys: Collection[str]) -> str | None:
    return next((what for pattern, what in patterns.items() if any(re.match(pattern, key) for key in keys)), None)
