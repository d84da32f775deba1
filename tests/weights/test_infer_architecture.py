"""The architecture of a state dict, from shapes alone."""

import open_clip
import pytest
import torch

from workbench.errors import UserError
from workbench.models import ARCHITECTURES, create_model
from workbench.models.architectures import Architecture, ResNetConfig, TextConfig, ViTConfig
from workbench.weights import infer_architecture, openclip


def state_dict(*args, **changes):
    with torch.device("meta"):
        return create_model(*args, **changes).state_dict()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_known_architecture_is_recognised(name):
    assert infer_architecture(state_dict(name), "quick_gelu") == ARCHITECTURES[name]


@pytest.mark.parametrize("name", ["ViT-B/32", "RN50", "tiny-vit"])
def test_changed_sizes_keep_the_name(name):
    changed = infer_architecture(state_dict(name, image_size=288, context_length=20), "gelu")
    assert changed == ARCHITECTURES[name].changed(image_size=288, context_length=20, activation="gelu")


@pytest.mark.parametrize("vision", [ViTConfig(16, 192, 3, 3), ResNetConfig((1, 2, 1, 2), 16, 8)])
def test_an_unknown_one_is_described(vision):
    mine = Architecture("custom", 48, 64, vision, TextConfig(128, 2, 3), context_length=16, vocab_size=1000)
    assert infer_architecture(state_dict(mine), "quick_gelu") == mine


def test_openclips_heads_are_those_of_its_configurations():
    """Shapes do not show them, and with others features are silently wrong."""
    seen = set()
    for name in open_clip.list_models():
        try:
            described = openclip.read_config(open_clip.get_model_config(name), name)
        except UserError:  # of towers that this package does not have
            continue
        found = infer_architecture(state_dict(described), described.activation)
        assert (found.vision, found.text) == (described.vision, described.text), name
        seen.add(name)
    assert {"ViT-H-14", "ViT-L-14", "RN50x64"} <= seen


def test_something_else_is_refused():
    with pytest.raises(UserError, match="not the weights of a CLIP.*ln_final.weight"):
        infer_architecture({"fc.weight": torch.zeros(2, 2)}, "gelu")
    lacking = state_dict("tiny-vit")
    del lacking["text_projection"]
    with pytest.raises(UserError, match="text_projection"):
        infer_architecture(lacking, "gelu")
