"""Every preset's distributions, family by family."""

import math

import pytest
import torch

from workbench.errors import UserError
from workbench.models import ARCHITECTURES, create_model
from workbench.models.initialization import FAMILIES, PRESETS, family


@pytest.mark.parametrize("name", [*ARCHITECTURES, "timm/resnet18"])
def test_every_parameter_has_a_family(name):
    with torch.device("meta"):
        model = create_model(name)
    vit = hasattr(model.visual, "class_embedding")
    for key, _ in model.named_parameters():
        assert key.startswith("visual.trunk.") or family(key, vit) in FAMILIES, key


WIDTH, LAYERS, VIT_WIDTH, POOL = 128, 2, 128, 768
NORMAL = {  # FACTS of openai/CLIP: standard deviation by parameter name
    "token_embedding.weight": 0.02,
    "positional_embedding": 0.01,
    "transformer.resblocks.0.attn.in_proj_weight": WIDTH**-0.5,
    "transformer.resblocks.1.attn.out_proj.weight": WIDTH**-0.5 * (2 * LAYERS) ** -0.5,
    "transformer.resblocks.1.mlp.c_proj.weight": WIDTH**-0.5 * (2 * LAYERS) ** -0.5,
    "transformer.resblocks.0.mlp.c_fc.weight": (2 * WIDTH) ** -0.5,
    "text_projection": WIDTH**-0.5,
}
VIT = {
    "visual.positional_embedding": VIT_WIDTH**-0.5,
    "visual.proj": VIT_WIDTH**-0.5,
    # PyTorch's defaults: Xavier uniform over [3w, w], Kaiming uniform within 1 / sqrt(fan_in).
    "visual.transformer.resblocks.0.attn.in_proj_weight": math.sqrt(2 / (4 * VIT_WIDTH)),
    "visual.transformer.resblocks.0.attn.out_proj.weight": (3 * VIT_WIDTH) ** -0.5,
    "visual.transformer.resblocks.0.mlp.c_fc.weight": (3 * VIT_WIDTH) ** -0.5,
    "visual.conv1.weight": (3 * 3 * 8 * 8) ** -0.5,
}
RESNET = {
    "visual.attnpool.q_proj.weight": POOL**-0.5,
    "visual.attnpool.c_proj.weight": POOL**-0.5,
    "visual.attnpool.positional_embedding": POOL**-0.5,
    "visual.layer3.0.conv2.weight": (3 * 96 * 9) ** -0.5,
}


def build(name, init="openai"):
    torch.manual_seed(0)
    return dict(create_model(name, init=init).named_parameters())


def assert_std(parameter, expected, name):
    tolerance = 0.03 + 3 / math.sqrt(2 * parameter.numel())
    assert float(parameter.detach().std()) == pytest.approx(expected, rel=tolerance), name
    assert abs(float(parameter.detach().mean())) < 5 * expected / math.sqrt(parameter.numel()), name


@pytest.mark.parametrize(("name", "expected"), [("mini-vit", NORMAL | VIT), ("mini-rn", NORMAL | RESNET)])
def test_openai(name, expected):
    parameters = build(name)
    for key, std in expected.items():
        assert_std(parameters[key], std, key)
    assert float(parameters["logit_scale"]) == pytest.approx(math.log(1 / 0.07))
    for key, value in parameters.items():
        if key.endswith(("in_proj_bias", "out_proj.bias")) or ("ln_" in key and key.endswith("bias")):
            assert not value.any(), key
        if ("ln_" in key or ".bn" in key) and key.endswith("weight"):
            zero = key.endswith("bn3.weight") and ".layer" in key
            assert bool((value == (0 if zero else 1)).all()), key
    if name == "mini-rn":
        assert bool((parameters["visual.bn3.weight"] == 1).all()), "the stem's is no residual branch"


def test_vit_blocks_are_those_of_pytorch():
    """Drawn like nn.MultiheadAttention and nn.Linear draw: same bounds, uniform."""
    parameters = build("mini-vit")
    reference = torch.nn.MultiheadAttention(VIT_WIDTH, 2)
    ours = parameters["visual.transformer.resblocks.0.attn.in_proj_weight"]
    assert float(ours.abs().max()) == pytest.approx(float(reference.in_proj_weight.abs().max()), rel=0.01)
    linear = torch.nn.Linear(VIT_WIDTH, 4 * VIT_WIDTH)
    for kind in ("weight", "bias"):
        ours = parameters[f"visual.transformer.resblocks.0.mlp.c_fc.{kind}"]
        assert float(ours.abs().max()) == pytest.approx(float(getattr(linear, kind).abs().max()), rel=0.03)


def test_truncated_normal():
    for name in ("mini-vit", "mini-rn"):
        for key, value in build(name, "truncated_normal").items():
            if value.ndim >= 2:
                assert float(value.abs().max()) <= 0.04 and float(value.std()) == pytest.approx(0.0176, rel=0.1), key


def test_no_depth_scaling():
    parameters, openai = build("mini-vit", "no_depth_scaling"), build("mini-vit")
    for key, value in parameters.items():
        if key.startswith("transformer.") and key.endswith(("out_proj.weight", "c_proj.weight")):
            assert_std(value, WIDTH**-0.5, key)
        elif value.numel() > 1000:
            assert float(value.std()) == pytest.approx(float(openai[key].std()), rel=0.05, abs=1e-9), key


def test_zero_residual():
    model = create_model("mini-vit", init="zero_residual")
    for key, value in model.named_parameters():
        if key.endswith(("attn.out_proj.weight", "mlp.c_proj.weight")):
            assert not value.any(), key
    # The attention branch is silent; the MLP's output bias is all that a block adds.
    x = torch.randn(2, 5, 128)
    block = model.transformer.resblocks[0]
    torch.testing.assert_close(block(x), x + block.mlp.c_proj.bias)


def test_pytorch():
    parameters = build("mini-rn", "pytorch")
    assert_std(parameters["token_embedding.weight"], 1.0, "token_embedding.weight")
    assert bool((parameters["visual.layer1.0.bn3.weight"] == 1).all())
    assert_std(parameters["text_projection"], (3 * WIDTH) ** -0.5, "text_projection")


def test_table_of_families():
    parameters = build("mini-vit", {"token_embedding": "truncated_normal", "*": "pytorch"})
    assert float(parameters["token_embedding.weight"].abs().max()) <= 0.04
    assert_std(parameters["positional_embedding"], 1.0, "positional_embedding")
    default = build("mini-vit", {"token_embedding": "pytorch"})
    assert_std(default["positional_embedding"], 0.01, "positional_embedding")


def test_seed_decides():
    one, same = build("tiny-vit"), build("tiny-vit")
    assert all(torch.equal(one[key], same[key]) for key in one)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_finite_and_run(preset):
    model = create_model("tiny-rn", init=preset)
    features = model.encode_image(torch.randn(4, 3, 32, 32))
    assert bool(torch.isfinite(features).all())


def test_mistakes():
    with pytest.raises(UserError, match="openai, pytorch"):
        create_model("tiny-vit", init="kaiming")
    with pytest.raises(UserError, match="no tensor family 'text'"):
        create_model("tiny-vit", init={"text": "pytorch"})
    with pytest.raises(UserError, match="above 0"):
        create_model("tiny-vit", temperature_init=-1)
