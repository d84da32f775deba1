"""Features and every gradient against open_clip on copied random weights."""

import open_clip
import pytest
import torch

from workbench.models import create_model
from workbench.models.architectures import Architecture, ResNetConfig, TextConfig, ViTConfig

TEXT = TextConfig(128, 2, 2)
SMALL = {
    "vit": Architecture("small-vit", 48, 64, ViTConfig(16, 128, 3, 2), TEXT),
    "vit gelu": Architecture("small-vit", 48, 64, ViTConfig(16, 128, 3, 2), TEXT, activation="gelu"),
    "resnet": Architecture("small-rn", 48, 96, ResNetConfig((2, 1, 3, 1), 16, 8), TEXT),
}
FULL = {"RN50": "RN50-quickgelu", "ViT-B/32": "ViT-B-32-quickgelu"}


def peer_of(about):
    vision = {"image_size": about.image_size, "layers": about.vision.layers, "width": about.vision.width}
    if isinstance(about.vision, ViTConfig):
        vision |= {"patch_size": about.vision.patch_size, "head_width": about.vision.width // about.vision.heads}
    else:
        vision |= {"layers": list(about.vision.layers), "head_width": about.vision.width * 32 // about.vision.heads}
    text = {"width": about.text.width, "heads": about.text.heads, "layers": about.text.layers}
    return open_clip.model.CLIP(
        embed_dim=about.embed_dim,
        vision_cfg=open_clip.model.CLIPVisionCfg(**vision),
        text_cfg=open_clip.model.CLIPTextCfg(**text),
        quick_gelu=about.activation == "quick_gelu",
    )


def batch(model, pairs, dtype):
    generator = torch.Generator().manual_seed(1)
    side = model.architecture.image_size
    images = torch.randn(pairs, 3, side, side, generator=generator, dtype=dtype)
    tokens = torch.zeros(pairs, 77, dtype=torch.long)
    for row, words in enumerate([1, 20, 75, 4][:pairs]):
        tokens[row, 0], tokens[row, 1 + words] = 49406, 49407
        tokens[row, 1 : 1 + words] = torch.randint(1, 49406, (words,), generator=generator)
    return images, tokens


def features_and_gradients(model, images, tokens):
    model.zero_grad()
    image, text = model.encode_image(images), model.encode_text(tokens)
    weights = torch.linspace(-1, 1, image.numel(), dtype=image.dtype).view_as(image)
    (image * weights + text * weights.flip(0) * image.detach()).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"image": image.detach(), "text": text.detach()} | gradients


def compare(ours, peer, pairs, dtype, tolerance):
    # A biased start: zero gains and biases would hide a wrong use of them.
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    ours, peer = ours.to(dtype).train(), peer.to(dtype).train()
    state = ours.state_dict()
    peer.load_state_dict({**peer.state_dict(), **state})
    images, tokens = batch(ours, pairs, dtype)
    found, expected = (features_and_gradients(model, images, tokens) for model in (ours, peer))
    assert set(found) == set(expected)
    whole = max(float(value.norm()) for name, value in expected.items() if name not in ("image", "text"))
    for name, value in expected.items():
        # Biases before a normalisation, and of keys, have gradients that are zero but for rounding.
        scale = max(float(value.norm()), 1e-4 * whole)
        assert float((found[name] - value).norm()) <= tolerance * scale, name


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["fp64", "fp32"])
def test_small(kind, dtype, tolerance):
    torch.manual_seed(0)
    if kind == "resnet" and dtype == torch.float32:
        tolerance = 5e-3  # the statistics of four pictures magnify rounding; float64 is the proof
    compare(create_model(SMALL[kind]), peer_of(SMALL[kind]), 4, dtype, tolerance)


@pytest.mark.parametrize("name", FULL)
def test_full_size(name):
    torch.manual_seed(0)
    config = open_clip.get_model_config(FULL[name])
    peer = open_clip.model.CLIP(**{k: config[k] for k in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")})
    ours = create_model(name).eval()
    with torch.no_grad():
        peer.load_state_dict({**peer.state_dict(), **ours.state_dict()})
        images, tokens = batch(ours, 3, torch.float32)
        ours, peer = ours.eval(), peer.eval()
        for encode, inputs in (("encode_image", images), ("encode_text", tokens)):
            found, expected = getattr(ours, encode)(inputs), getattr(peer, encode)(inputs)
            assert float((found - expected).norm() / expected.norm()) <= 1e-5, encode
        theirs = expected_logits(peer, images, tokens)
        torch.testing.assert_close(ours(images, tokens)[0], theirs, rtol=1e-4, atol=1e-4)


def expected_logits(peer, images, tokens):
    image, text, scale = peer(images, tokens)[:3]
    return scale * image @ text.T


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_size_gradients(name):
    torch.manual_seed(0)
    config = open_clip.get_model_config(FULL[name])
    peer = open_clip.model.CLIP(**{k: config[k] for k in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")})
    compare(create_model(name), peer, 4, torch.float32, 1e-3)
