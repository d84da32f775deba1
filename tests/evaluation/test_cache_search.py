"""The search of alpha and beta against trying each pair."""

import pytest
import torch
import torch.nn.functional as F

from workbench.evaluation.cache_search import search, spaced

ALPHAS, BETAS = [0.0, 0.3, 1.0, 3.0], [0.5, 2.0, 6.0]


def drawn(seed, rows=60, keys=24, classes=5, width=8):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator)
    labels, key_labels = (torch.randint(classes, (count,), generator=generator) for count in (rows, keys))
    features, stored = (
        F.normalize(centres[of] + 1.5 * torch.randn(len(of), width, generator=generator), dim=-1)
        for of in (labels, key_labels)
    )
    zero_shot = 2 * F.one_hot(labels, classes) + 2 * torch.randn(rows, classes, generator=generator)
    return features, zero_shot, labels, stored, key_labels


def tried(features, zero_shot, labels, keys, key_labels):
    """Return the number of right ones of each pair, betas first."""
    found = {}
    for beta in BETAS:
        for alpha in ALPHAS:
            cache = torch.exp(-beta * (1 - features @ keys.T)) @ F.one_hot(key_labels, zero_shot.shape[1]).float()
            found[alpha, beta] = int(((zero_shot + alpha * cache).argmax(dim=1) == labels).sum())
    return found


@pytest.mark.parametrize("block", [None, 1, 7])
def test_finds_what_trying_all_finds(block):
    chosen = set()
    for seed in range(12):
        rows = drawn(seed)
        right = tried(*rows)
        found = search(*rows, ALPHAS, BETAS, block=block)
        assert right[found] == max(right.values()) and found == max(right, key=right.get), seed
        chosen.add(found)
    assert len(chosen) > 4, "else the comparison says little"


def test_first_of_equal_ones():
    features, zero_shot, labels, keys, key_labels = drawn(0)
    sure = 1000.0 * F.one_hot(labels, 5)
    assert search(features, sure, labels, keys, key_labels, ALPHAS, BETAS) == (0.0, 0.5)
    assert search(features, sure, labels, keys, key_labels, [2.0], [3.0]) == (2.0, 3.0)


def test_ties_of_classes_do_not_win():
    """With nothing but equal logits, only a cache that tells the classes apart is right."""
    features = F.one_hot(torch.tensor([0, 1, 2]), 3).float()
    labels = torch.arange(3)
    assert search(features, torch.zeros(3, 3), labels, features, labels, [0.0, 1.0], [0.0, 1.0]) == (1.0, 1.0)


def test_published_values():
    """Of gaopengcuhk/Tip-Adapter, utils.py: search_scale [7, 3], search_step [200, 20]."""
    betas, alphas = spaced(0.1, 7, 200), spaced(0.1, 3, 20)
    assert (len(betas), len(alphas)) == (200, 20)
    assert betas == pytest.approx([i * (7 - 0.1) / 200 + 0.1 for i in range(200)])
    assert (alphas[0], alphas[-1]) == pytest.approx((0.1, 2.855))
    assert spaced(1.5, 1.5, 1) == [1.5]
