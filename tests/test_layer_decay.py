import pytest

from workbench.errors import UserError
from workbench.layer_decay import layer_multipliers
from workbench.models import create_model
from workbench.optimization import ParameterRule, parameter_groups


def multipliers(architecture, decay=0.5):
    names = [name for name, _ in create_model(architecture).named_parameters()]
    return layer_multipliers([*names, "head.weight"], decay)


def test_vit_and_text_tower():
    found = multipliers("tiny-vit")
    blocks = sorted({name.split(".")[3] for name in found if name.startswith("visual.transformer.resblocks.")})
    for number in blocks:
        assert found[f"visual.transformer.resblocks.{number}.attn.in_proj_weight"] == 0.5 ** (len(blocks) - int(number))
    for name in ("conv1.weight", "class_embedding", "positional_embedding", "ln_pre.bias"):
        assert found[f"visual.{name}"] == 0.5 ** (len(blocks) + 1)
    for name in (
        "visual.ln_post.weight",
        "visual.proj",
        "ln_final.bias",
        "text_projection",
        "logit_scale",
        "head.weight",
    ):
        assert found[name] == 1
    layers = len({name.split(".")[2] for name in found if name.startswith("transformer.resblocks.")})
    assert found["token_embedding.weight"] == found["positional_embedding"] == 0.5 ** (layers + 1)
    assert found["transformer.resblocks.0.mlp.c_fc.weight"] == 0.5**layers


def test_blocks_of_a_resnet_are_counted_over_its_stages():
    found = multipliers("RN50")
    assert found["visual.conv1.weight"] == found["visual.bn3.bias"] == 0.5**17  # 3 + 4 + 6 + 3 blocks
    assert found["visual.layer1.0.conv1.weight"] == found["visual.layer1.0.downsample.0.weight"] == 0.5**16
    assert found["visual.layer2.0.conv1.weight"] == 0.5**13
    assert found["visual.layer4.2.bn3.weight"] == 0.5
    assert found["visual.attnpool.positional_embedding"] == found["visual.attnpool.c_proj.weight"] == 1


def test_rules_and_layers_multiply_and_the_frozen_stays_frozen():
    model = create_model("tiny-vit")
    rules = [ParameterRule(r"visual\.conv1", lr=0.0), ParameterRule(r"visual\.", lr=0.1)]
    groups = parameter_groups(model, 0.2, rules, layer_decay=0.5)
    rate = {name: group["lr_multiplier"] for group in groups for name in group["names"]}
    plain = layer_multipliers(list(dict(model.named_parameters())), 0.5)
    assert "visual.conv1.weight" not in rate
    for name, value in rate.items():
        assert value == pytest.approx(plain[name] * (0.1 if name.startswith("visual.") else 1.0)), name


@pytest.mark.parametrize("decay", [0.0, 1.5, -1.0])
def test_a_wrong_decay(decay):
    with pytest.raises(UserError, match="above 0 and at most 1"):
        multipliers("tiny-vit", decay)


def test_layers_of_timm_are_not_known():
    with pytest.raises(UserError, match="not of timm's"):
        layer_multipliers(["visual.trunk.stem.0.weight", "logit_scale"], 0.7)
