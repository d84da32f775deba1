import math

import pytest
import torch
from torch import nn

from workbench.errors import UserError
from workbench.models import create_model
from workbench.optimization import (
    ParameterRule,
    decays,
    group_table,
    parameter_groups,
    schedule,
    use_fused,
    warmup_steps,
)


def groups_of(rules=(), architecture="tiny-rn"):
    model = create_model(architecture)
    return model, parameter_groups(model, 0.2, rules)


def decay_by_name(groups):
    return {name: group["weight_decay"] for group in groups for name in group["names"]}


def test_papers_decay_rule():
    model, groups = groups_of()
    decay = decay_by_name(groups)
    assert decay["logit_scale"] == 0
    assert decay["ln_final.weight"] == decay["visual.bn1.weight"] == decay["visual.attnpool.q_proj.bias"] == 0
    assert decay["visual.conv1.weight"] == decay["text_projection"] == decay["positional_embedding"] == 0.2
    assert set(decay) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert (decay[name] > 0) == decays(parameter), name


def test_first_row_that_sets_a_value_wins():
    rules = [
        ParameterRule(r"visual\.attnpool\.", lr=0.5),
        ParameterRule(r"visual\.", lr=0.0),
        ParameterRule(r".*positional_embedding", weight_decay=0.0),
        ParameterRule("logit_scale", lr=0.1),
    ]
    model, groups = groups_of(rules)
    rate = {name: group["lr_multiplier"] for group in groups for name in group["names"]}
    assert rate["visual.attnpool.q_proj.weight"] == 0.5
    assert rate["logit_scale"] == 0.1
    assert rate["text_projection"] == 1.0
    assert "visual.conv1.weight" not in rate
    assert not model.visual.conv1.weight.requires_grad
    assert model.visual.attnpool.q_proj.weight.requires_grad
    decay = decay_by_name(groups)
    # lr is decided by row 1, decay by row 3: the two are independent.
    assert decay["visual.attnpool.positional_embedding"] == 0.0
    assert rate["visual.attnpool.positional_embedding"] == 0.5
    table = group_table(model, [group | {"lr": group["lr_multiplier"]} for group in groups])
    assert "frozen" in table and "visual.conv1.weight" in table


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (ParameterRule("vision\\.", lr=0.0), "matches no parameter"),
        (ParameterRule("visual(", lr=0.0), "no regular expression"),
        (ParameterRule(".*", lr=0.0), "every parameter"),
    ],
)
def test_bad_rules(rule, said):
    with pytest.raises(UserError, match=said):
        groups_of([rule])


def test_near_names_are_suggested():
    with pytest.raises(UserError, match="logit_scale"):
        groups_of([ParameterRule("logit_scal_", lr=0.0)])


def test_warmup_in_steps_or_share():
    assert warmup_steps(10, 400) == 10
    assert warmup_steps(0.1, 400) == 40
    assert warmup_steps(0, 400) == 0
    with pytest.raises(UserError, match="400 steps is not shorter than the run of 400"):
        warmup_steps(400, 400)
    with pytest.raises(UserError, match="warmup is -1"):
        warmup_steps(-1, 400)
    with pytest.raises(UserError, match="not shorter"):
        warmup_steps(10_000, 180)


def test_schedules():
    cosine = schedule("cosine", 10, 110)
    assert [cosine(0), cosine(4), cosine(9)] == pytest.approx([0.1, 0.5, 1.0])
    assert cosine(10) == 1.0
    assert cosine(60) == pytest.approx(0.5)
    assert cosine(110) == pytest.approx(0.0, abs=1e-12)
    assert cosine(109) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))
    assert schedule("linear", 0, 100)(25) == pytest.approx(0.75)
    assert schedule("constant", 5, 100)(99) == 1.0
    with pytest.raises(UserError, match="cosine, linear, constant"):
        schedule("cosin", 0, 10)


def test_fused_adamw_equals_the_plain_one():
    torch.manual_seed(0)
    plain = nn.Linear(8, 8).double()
    fused = nn.Linear(8, 8).double()
    fused.load_state_dict(plain.state_dict())
    inputs = torch.randn(4, 8, dtype=torch.float64)
    for model in (plain, fused):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        if model is fused:
            use_fused(optimizer)
            assert optimizer.param_groups[0]["fused"]
        for _ in range(5):
            optimizer.zero_grad()
            model(inputs).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(fused.weight, plain.weight, rtol=1e-12, atol=1e-14)


def test_fused_leaves_a_users_choice_alone():
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(2))], foreach=True)
    use_fused(optimizer)
    assert not optimizer.param_groups[0]["fused"]
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    use_fused(sgd)
    assert not sgd.param_groups[0].get("fused")
