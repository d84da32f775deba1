"""The patterns that ft_lit.yaml and its header give for what to lock."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from workbench.models import create_model
from workbench.optimization import ParameterRule, parameter_groups

FILE = Path(__file__).parent.parent / "experiments" / "ft_lit.yaml"
IN_HEADER = dict(re.findall(r"^#   ([\w ()]+?) +(\[\{match.*\])$", FILE.read_text(), re.MULTILINE))
EXPECTED = {
    "locked text tower": lambda name: name.startswith(("visual.", "logit_scale")),
    "last two blocks open": lambda name: bool(
        re.search(r"resblocks\.1[01]\.|^visual\.(ln_post|proj)|^ln_final|^text_projection|^logit_scale", name)
    ),
    "LayerNorm only": lambda name: bool(re.search(r"(^|\.)ln_(1|2|pre|post|final)\.", name)),
    "bias only (BitFit)": lambda name: name.endswith("bias"),
}


def trained(rules):
    with torch.device("meta"):
        model = create_model("ViT-B/32")
    groups = parameter_groups(model, 0.1, [ParameterRule(**rule) for rule in rules])
    found = {name for group in groups for name in group["names"]}
    assert found == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return found, {name for name, _ in model.named_parameters()}


def test_the_header_has_them_all():
    assert set(IN_HEADER) == set(EXPECTED)


@pytest.mark.parametrize("what", EXPECTED)
def test_patterns_of_the_header(what):
    found, names = trained(yaml.safe_load(IN_HEADER[what]))
    assert found == {name for name in names if EXPECTED[what](name)}
    assert 0 < len(found) < len(names)


def test_the_image_tower_is_locked():
    found, names = trained(yaml.safe_load(FILE.read_text())["model"]["init_args"]["parameter_rules"])
    assert found == {name for name in names if not name.startswith("visual.")}
