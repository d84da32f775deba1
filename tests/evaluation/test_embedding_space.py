import math

import pytest
import torch

from workbench.evaluation.embedding_space import alignment, modality_gap, uniformity


def test_alignment():
    x = torch.tensor([[1.0, 0], [0, 2]])
    y = torch.tensor([[0.0, 3], [0, 1]])
    assert alignment(x, x) == pytest.approx(0, abs=1e-6)
    assert alignment(x, y) == pytest.approx((2 + 0) / 2)


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_uniformity_equals_its_definition(block):
    x = torch.nn.functional.normalize(torch.randn(40, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    expected = torch.pdist(x.double()).square().mul(-2).exp().mean().log()
    assert uniformity(3 * x, block) == pytest.approx(float(expected), rel=1e-5)


def test_uniformity_of_collapse_and_spread():
    assert uniformity(torch.ones(10, 3)) == pytest.approx(0, abs=1e-4)
    torch.manual_seed(0)
    assert uniformity(torch.randn(500, 64)) == pytest.approx(-4 + 4 * 2 / 64, abs=0.1)


def test_modality_gap():
    x = torch.tensor([[1.0, 0], [1, 0]])
    assert modality_gap(x, x) == 0
    assert modality_gap(x, torch.tensor([[0.0, 1], [0, 1]])) == pytest.approx(math.sqrt(2))
