"""Sizes and names against OpenAI's, and errors."""

import open_clip
import pytest
import torch

from workbench.errors import UserError
from workbench.models import ARCHITECTURES, OPENAI_ARCHITECTURES, architecture, create_model

TOTALS = {  # counted on models built by openai/CLIP @ d05afc4: total, image tower
    "RN50": (102_007_137, 38_316_896),
    "RN101": (119_688_033, 56_259_936),
    "RN50x4": (178_300_601, 87_137_080),
    "RN50x16": (290_979_217, 167_328_912),
    "RN50x64": (623_258_305, 420_380_352),
    "ViT-B/32": (151_277_313, 87_849_216),
    "ViT-B/16": (149_620_737, 86_192_640),
    "ViT-L/14": (427_616_513, 303_966_208),
    "ViT-L/14@336px": (427_944_193, 304_293_888),
}
BATCHNORM_ELEMENTS = {"RN50": 53_303, "RN101": 105_578, "RN50x4": 109_845, "RN50x16": 194_047, "RN50x64": 410_823}


def count(tensors):
    return sum(tensor.numel() for tensor in tensors)


@pytest.mark.parametrize("name", OPENAI_ARCHITECTURES)
def test_parameter_totals(name):
    with torch.device("meta"):
        model = create_model(name)
    assert (count(model.parameters()), count(model.visual.parameters())) == TOTALS[name]
    assert count(model.buffers()) == BATCHNORM_ELEMENTS.get(name, 0)


def test_all_nine_are_there():
    assert set(OPENAI_ARCHITECTURES) == set(TOTALS)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("RN50", "RN50-quickgelu"),
        ("RN101", "RN101-quickgelu"),
        ("RN50x4", "RN50x4-quickgelu"),
        ("RN50x16", "RN50x16-quickgelu"),
        ("RN50x64", "RN50x64-quickgelu"),
        ("ViT-B/32", "ViT-B-32-quickgelu"),
        ("ViT-B/16", "ViT-B-16-quickgelu"),
        ("ViT-L/14", "ViT-L-14-quickgelu"),
        ("ViT-L/14@336px", "ViT-L-14-336-quickgelu"),
    ],
)
def test_keys_and_shapes(name, theirs):
    with torch.device("meta"):
        ours = {key: value.shape for key, value in create_model(name).state_dict().items()}
        peer = open_clip.model.CLIP(**without_extras(open_clip.get_model_config(theirs)))
    assert ours == {key: value.shape for key, value in peer.state_dict().items() if key != "attn_mask"}


def without_extras(config):
    return {key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")}


def test_unknown_names():
    with pytest.raises(UserError, match="'ViT-B/32'"):
        architecture("ViT-B-32")
    with pytest.raises(UserError, match="convnext_tiny"):
        architecture("timm/convnxt_tiny")
    with pytest.raises(UserError, match="no field imagesize"):
        create_model("tiny-vit", imagesize=64)
    with pytest.raises(UserError, match="quick_gelu or gelu"):
        create_model("tiny-vit", activation="relu")
    with pytest.raises(UserError, match="multiple of 32, for example 64"):
        create_model("tiny-rn", image_size=60)
    with pytest.raises(UserError, match="for ViTs"):
        create_model("tiny-rn", patch_dropout=0.5)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in OPENAI_ARCHITECTURES])
@pytest.mark.parametrize("size", [None, 96])
def test_small_ones_run_at_any_size(name, size):
    model = create_model(name, **({} if size is None else {"image_size": size}))
    side = model.architecture.image_size
    images, tokens = torch.randn(2, 3, side, side), torch.tensor([[49406, 5, 49407], [49406, 49407, 0]])
    logits_per_image, logits_per_text = model(images, tokens)
    assert logits_per_image.shape == (2, 2) and torch.equal(logits_per_image, logits_per_text.T)
    assert model.encode_image(images).shape == (2, model.architecture.embed_dim)


def test_timm_backbone():
    model = create_model("timm/resnet18", image_size=64)
    about = model.architecture
    assert about.mean == (0.485, 0.456, 0.406) and about.activation == "gelu"
    assert model.encode_image(torch.randn(2, 3, 64, 64)).shape == (2, 512)
    vit = create_model("timm/vit_tiny_patch16_224", image_size=32)
    assert vit.encode_image(torch.randn(1, 3, 32, 32)).shape == (1, 512)
    wide = create_model("timm/mobilenetv3_small_050", image_size=64)  # puts out more than its `num_features`
    assert wide.visual.trunk.num_features == 288
    assert wide.encode_image(torch.randn(2, 3, 64, 64)).shape == (2, 512)
    assert all(key.startswith(("visual.trunk.", "visual.proj.")) for key in vit.state_dict() if "visual" in key)


def test_too_long_texts_are_refused():
    with pytest.raises(ValueError, match="78 tokens"):
        create_model("tiny-vit").encode_text(torch.zeros(1, 78, dtype=torch.long))
