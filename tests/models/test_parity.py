"""Features, logits and every gradient against open_clip on copied random weights."""

from dataclasses import replace

import open_clip
import pytest
import torch

from workbench.models import OPENAI_ARCHITECTURES, create_model
from workbench.models.architectures import Architecture, ResNetConfig, TextConfig, ViTConfig

TEXT = TextConfig(128, 2, 2)
SMALL = {
    "vit": Architecture("small-vit", 48, 64, ViTConfig(16, 128, 3, 2), TEXT),
    "vit gelu": Architecture("small-vit", 48, 64, ViTConfig(16, 128, 3, 2), TEXT, activation="gelu"),
    "resnet": Architecture("small-rn", 48, 96, ResNetConfig((2, 1, 3, 1), 16, 8), TEXT),
}
FULL = ("RN50", "ViT-B/32")


def shallow(about):
    """One or two layers where the released model has many; widths, heads and picture size stay."""
    layers = 2 if isinstance(about.vision, ViTConfig) else (1, 1, 1, 1)  # the last layer of a ViT runs its own form
    return replace(about, vision=replace(about.vision, layers=layers), text=replace(about.text, layers=1))


SHALLOW = [name for name in OPENAI_ARCHITECTURES if name not in FULL]


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


def config_of(name):
    """OpenCLIP's own description of one of the nine."""
    config = open_clip.get_model_config(f"{name.replace('/', '-').replace('@336px', '-336')}-quickgelu")
    return {key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")}


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
    if isinstance(model, open_clip.model.CLIP):  # which leaves the product to its losses
        directions, others, scale = model(images, tokens)
        logits = scale * directions @ others.T
    else:
        logits, transposed = model(images, tokens)
        assert torch.equal(transposed, logits.T)
    weights = torch.linspace(-1, 1, image.numel(), dtype=image.dtype).view_as(image)
    of_logits = torch.linspace(0.5, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    loss = (image * weights + text * weights.flip(0) * image.detach()).sum() + (logits * of_logits).sum()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"image": image.detach(), "text": text.detach(), "logits": logits.detach()} | gradients


def assert_equal(ours, peer, pairs, dtype, tolerance):
    images, tokens = batch(ours, pairs, dtype)
    found, expected = (features_and_gradients(model, images, tokens) for model in (ours, peer))
    assert set(found) == set(expected) and {name for name, _ in peer.named_parameters()} < set(expected)
    for name, value in expected.items():
        if name == "visual.attnpool.k_proj.bias":  # adds the same to every score: zero but for rounding
            bound = 1e-4 * float(expected["visual.attnpool.k_proj.weight"].norm())
            assert float(found[name].norm()) <= bound and float(value.norm()) <= bound
        elif name == "logit_scale":  # a sum of logits of both signs, whose rounding is theirs
            assert float((found[name] - value).abs()) <= tolerance * float(expected["logits"].abs().sum())
        else:
            assert float((found[name] - value).norm()) <= tolerance * float(value.norm()), name


def shaken(model):
    """A biased start: gains of one or zero and biases of zero would hide a wrong use of them."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_small(kind, dtype, tolerance):
    torch.manual_seed(0)
    ours, peer = shaken(create_model(SMALL[kind])).to(dtype), peer_of(SMALL[kind]).to(dtype)
    peer.load_state_dict({**peer.state_dict(), **ours.state_dict()})
    # The statistics of four pictures magnify rounding a thousandfold, so batch normalisation trains in float64 only.
    training = kind != "resnet" or dtype == torch.float64
    assert_equal(ours.train(training), peer.train(training), 4, dtype, tolerance)
    for name, value in peer.named_buffers():
        if "running" in name:
            torch.testing.assert_close(ours.get_buffer(name), value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", SHALLOW)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_the_other_seven_at_their_widths(name, dtype, tolerance):
    torch.manual_seed(0)
    about, config = shallow(OPENAI_ARCHITECTURES[name]), config_of(name)
    # Ten times slower on RN50x64's pictures; convolutions are the same at any size, position embeddings are not.
    if dtype == torch.float64 or "RN50x" in name:
        about = about.changed(image_size=2 * getattr(about.vision, "patch_size", 32))
    vision, text = {"layers": about.vision.layers, "image_size": about.image_size}, {"layers": about.text.layers}
    ours = shaken(create_model(about)).to(dtype)
    with torch.device("meta"):
        peer = open_clip.model.CLIP(
            **config | {"vision_cfg": config["vision_cfg"] | vision, "text_cfg": config["text_cfg"] | text}
        )
    assert_equal(ours.eval(), sharing(peer, ours).eval(), 2, dtype, tolerance)


@pytest.mark.parametrize("name", FULL)
def test_full_size(name):
    torch.manual_seed(0)
    ours = shaken(create_model(name)).eval()
    with torch.device("meta"):
        peer = open_clip.model.CLIP(**config_of(name))
    assert_equal(ours, sharing(peer, ours).eval(), 2, torch.float32, 1e-5)


def sharing(peer, ours):
    """Let a peer built without memory use the weights of ours."""
    peer.load_state_dict(ours.state_dict(), assign=True)
    peer.attn_mask = torch.full((77, 77), -torch.inf, dtype=ours.logit_scale.dtype).triu(1)  # no part of a state dict
    return peer
