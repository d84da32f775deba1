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


def test_no_family_is_idle():
    used = set()
    for name in ("tiny-vit", "tiny-rn", "timm/resnet18"):
        with torch.device("meta"):
            model = create_model(name)
        vit = hasattr(model.visual, "class_embedding")
        used |= {family(key, vit) for key, _ in model.named_parameters()}
    assert used - {None} == set(FAMILIES)


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
    assert parameters["logit_scale"].item() == pytest.approx(math.log(1 / 0.07))
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
    parameters = {key: value.detach() for key, value in build("mini-vit").items()}
    reference = torch.nn.MultiheadAttention(VIT_WIDTH, 2)
    ours = parameters["visual.transformer.resblocks.0.attn.in_proj_weight"]
    assert float(ours.abs().max()) == pytest.approx(float(reference.in_proj_weight.detach().abs().max()), rel=0.01)
    linear = torch.nn.Linear(VIT_WIDTH, 4 * VIT_WIDTH)
    for kind in ("weight", "bias"):
        ours = parameters[f"visual.transformer.resblocks.0.mlp.c_fc.{kind}"]
        assert float(ours.abs().max()) == pytest.approx(float(getattr(linear, kind).detach().abs().max()), rel=0.03)


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


# family -> a tensor of it, in one of the models that the test builds.
EXAMPLES = {
    "token_embedding": "token_embedding.weight",
    "text_position": "positional_embedding",
    "text_attention_in": "transformer.resblocks.1.attn.in_proj_weight",
    "text_mlp_in": "transformer.resblocks.1.mlp.c_fc.weight",
    "text_residual_out": "transformer.resblocks.1.mlp.c_proj.weight",
    "text_projection": "text_projection",
    "vit_patch": "visual.conv1.weight",
    "vit_embeddings": "visual.positional_embedding",
    "vit_attention_in": "visual.transformer.resblocks.2.attn.in_proj_weight",
    "vit_mlp_in": "visual.transformer.resblocks.2.mlp.c_fc.weight",
    "vit_residual_out": "visual.transformer.resblocks.2.mlp.c_proj.weight",
    "vit_projection": "visual.proj",
    "resnet_convs": "visual.layer2.0.conv2.weight",
    "attention_pool": "visual.attnpool.v_proj.weight",
    "attention_pool_position": "visual.attnpool.positional_embedding",
    "timm_projection": "visual.proj.weight",
    "resnet_residual_norms": "visual.layer2.0.bn3.weight",
    "norm_gains": "visual.layer2.0.bn2.weight",
    "norm_biases": "transformer.resblocks.0.ln_2.bias",
    "attention_biases": "transformer.resblocks.0.attn.out_proj.bias",
    "linear_biases": "transformer.resblocks.0.mlp.c_fc.bias",
}


def uniform(fan_in):
    return "uniform", (3 * fan_in) ** -0.5


def xavier(width):
    return "uniform", (2 / (4 * width)) ** 0.5


EVERYWHERE = {
    "norm_gains": ("constant", 1.0),
    "norm_biases": ("constant", 0.0),
    "attention_biases": ("constant", 0.0),
}
PYTORCH = EVERYWHERE | {
    "token_embedding": ("normal", 1.0),
    "text_position": ("normal", 1.0),
    "text_attention_in": xavier(WIDTH),
    "text_mlp_in": uniform(WIDTH),
    "text_residual_out": uniform(4 * WIDTH),
    "text_projection": uniform(WIDTH),
    "vit_patch": uniform(3 * 8 * 8),
    "vit_embeddings": ("normal", 1.0),
    "vit_attention_in": xavier(VIT_WIDTH),
    "vit_mlp_in": uniform(VIT_WIDTH),
    "vit_residual_out": uniform(4 * VIT_WIDTH),
    "vit_projection": uniform(VIT_WIDTH),
    "resnet_convs": uniform(48 * 9),
    "resnet_residual_norms": ("constant", 1.0),
    "attention_pool": uniform(POOL),
    "attention_pool_position": ("normal", 1.0),
    "linear_biases": uniform(WIDTH),
    "timm_projection": uniform(512),
}
OPENAI = PYTORCH | {
    "token_embedding": ("normal", 0.02),
    "text_position": ("normal", 0.01),
    "text_attention_in": ("normal", WIDTH**-0.5),
    "text_mlp_in": ("normal", (2 * WIDTH) ** -0.5),
    "text_residual_out": ("normal", WIDTH**-0.5 * (2 * LAYERS) ** -0.5),
    "text_projection": ("normal", WIDTH**-0.5),
    "vit_embeddings": ("normal", VIT_WIDTH**-0.5),
    "vit_projection": ("normal", VIT_WIDTH**-0.5),
    "resnet_residual_norms": ("constant", 0.0),
    "attention_pool": ("normal", POOL**-0.5),
    "attention_pool_position": ("normal", POOL**-0.5),
}
NO_MATRIX = ("resnet_residual_norms", "norm_gains", "norm_biases", "attention_biases", "linear_biases")
EXPECTED = {
    "openai": OPENAI,
    "pytorch": PYTORCH,
    "truncated_normal": PYTORCH
    | {key: ("truncated", 0.0176) for key in EXAMPLES if key not in NO_MATRIX}
    | {"linear_biases": ("constant", 0.0)},
    "no_depth_scaling": OPENAI | {"text_residual_out": ("normal", WIDTH**-0.5)},
    "zero_residual": OPENAI | dict.fromkeys(("text_residual_out", "vit_residual_out"), ("constant", 0.0)),
}
LARGEST = {"uniform": (1.6, 1.733), "normal": (2.1, 6.5), "truncated": (1.95, 2.35)}  # in standard deviations


@pytest.mark.parametrize("preset", PRESETS)
def test_every_family(preset):
    assert set(EXPECTED[preset]) == set(EXAMPLES) == set(FAMILIES) - {"logit_scale"}
    models = [build(name, preset) for name in ("mini-vit", "mini-rn", "timm/resnet18")]
    for key, (kind, size) in EXPECTED[preset].items():
        name = EXAMPLES[key]
        (parameter, *_) = [
            model[name] for model in models if name in model and family(name, "visual.class_embedding" in model) == key
        ]
        if kind == "constant":
            assert bool((parameter == size).all()), key
            continue
        assert_std(parameter, size, key)
        low, high = LARGEST[kind]
        assert low < float(parameter.detach().abs().max()) / size < high, key
