"""Ranks and accuracies of small tables that can be counted by hand."""

import math

import pytest
import torch

from workbench.evaluation import classification


def test_outcomes():
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [1.0, 1.0, 0.0], [math.nan, 0.0, 0.0]])
    loss, ranks = classification.outcomes(logits, torch.tensor([0, 1, 0, 1]))
    assert ranks.tolist() == [0, 2, 1, 2], "a tie and NaN count against the row"
    assert float(loss[0]) == pytest.approx(math.log(1 + math.exp(-2) + math.exp(-1)))


def test_accuracies():
    ranks, labels = torch.tensor([0, 0, 0, 1, 7, 0]), torch.tensor([0, 0, 0, 0, 2, 2])
    found = classification.accuracies(ranks, labels, 3)  # class 1 has no rows
    assert found == {"top1": pytest.approx(4 / 6), "mean_per_class": pytest.approx((3 / 4 + 1 / 2) / 2)}
    assert classification.accuracies(ranks, labels, 11)["top5"] == pytest.approx(5 / 6)


def test_chance():
    assert classification.chance(20) == {
        "loss": pytest.approx(math.log(20)),
        "top1": 0.05,
        "top5": 0.25,
        "mean_per_class": 0.05,
    }
    assert classification.chance(3)["top5"] == 1.0
