"""The nine against OpenCLIP's models: what their shapes say, and what shapes cannot say."""

import open_clip
import pytest
import torch
from torch import nn

from workbench.models import ARCHITECTURES, OPENAI_ARCHITECTURES, create_model
from workbench.models.layers import Attention, QuickGELU, Transformer
from workbench.weights import infer_architecture

TEXT_PARTS = {  # width -> parameters of the blocks and of the token embedding, counted on OpenAI's models
    512: (37_828_608, 25_296_896),
    640: (59_082_240, 31_621_120),
    768: (85_054_464, 37_945_344),
    1024: (151_154_688, 50_593_792),
}


def peer_of(name):
    """OpenCLIP's model, without memory for its numbers."""
    config = open_clip.get_model_config(f"{name.replace('/', '-').replace('@336px', '-336')}-quickgelu")
    with torch.device("meta"):
        return open_clip.model.CLIP(**{k: config[k] for k in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")})


def ours_of(name):
    with torch.device("meta"):
        return create_model(name)


@pytest.mark.parametrize("name", OPENAI_ARCHITECTURES)
def test_the_peers_state_dict_is_recognised(name):
    state_dict = {key: value for key, value in peer_of(name).state_dict().items() if key != "attn_mask"}
    assert infer_architecture(state_dict, "quick_gelu") == ARCHITECTURES[name]


@pytest.mark.parametrize("name", OPENAI_ARCHITECTURES)
def test_parts_of_the_text_tower(name):
    model = ours_of(name)
    parts = [sum(p.numel() for p in part.parameters()) for part in (model.transformer, model.token_embedding)]
    assert tuple(parts) == TEXT_PARTS[model.architecture.text.width]
    assert (model.context_length, model.token_embedding.num_embeddings) == (77, 49408)


def settings(model):
    """What weights do not show but outputs depend on, by the name of the module that it is true of."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            found[name] = module.kernel_size, module.stride, module.padding, module.dilation, module.groups
        elif isinstance(module, nn.BatchNorm2d):
            found[name] = module.eps, module.momentum, module.affine
        elif isinstance(module, nn.LayerNorm):
            found[name] = module.eps, tuple(module.normalized_shape)
        elif isinstance(module, nn.AvgPool2d):
            found[name] = module.kernel_size, module.stride
        elif isinstance(module, Attention):
            found[name] = module.heads
        elif isinstance(module, nn.MultiheadAttention):
            found[name] = module.num_heads
        elif name.endswith("attnpool"):
            found[name] = module.heads if hasattr(module, "heads") else module.num_heads
        elif name.endswith("mlp.gelu"):
            found[name] = type(module).__name__
    return found


@pytest.mark.parametrize("name", OPENAI_ARCHITECTURES)
def test_what_shapes_do_not_show(name):
    ours, peer = ours_of(name), peer_of(name)
    assert settings(ours) == settings(peer)
    assert QuickGELU.__name__ in settings(ours).values()
    causal = {n: m.resblocks[0].attn.causal for n, m in ours.named_modules() if isinstance(m, Transformer)}
    assert causal == {"transformer": True} | ({"visual.transformer": False} if "ViT" in name else {})
