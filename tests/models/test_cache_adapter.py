"""The cache's logits against its formula, term by term."""

import math

import pytest
import torch
import torch.nn.functional as F

from workbench.models.cache_adapter import CacheAdapter, cache_logits

N, K, C, D = 7, 11, 4, 5


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    features, keys = (
        F.normalize(torch.randn(rows, D, dtype=torch.float64, generator=generator), dim=-1) for rows in (N, K)
    )
    labels = torch.randint(C - 1, (K,), generator=generator)  # the last class has no key
    return features, keys, labels


@pytest.mark.parametrize("beta", [0.0, 1.0, 5.5])
def test_formula(drawn, beta):
    features, keys, labels = drawn
    found = cache_logits(features @ keys.T, labels, C, beta)
    for row in range(N):
        expected = [0.0] * C
        for key in range(K):
            cosine = sum(float(features[row, d] * keys[key, d]) for d in range(D))
            expected[int(labels[key])] += math.exp(-beta * (1 - cosine))
        assert found[row].tolist() == pytest.approx(expected, abs=1e-12)
    one_hot = F.one_hot(labels, C).double()
    torch.testing.assert_close(found, (-beta * (1 - features @ keys.T)).exp() @ one_hot, rtol=1e-12, atol=1e-12)


def test_gradient_of_the_keys(drawn):
    features, keys, labels = drawn
    adapter = CacheAdapter(K, D, C).double()
    adapter.fill(keys, labels)
    target = torch.arange(N) % C
    F.cross_entropy(adapter(features, 1.17, 2.0), target).backward()
    plain = keys.clone().requires_grad_()
    logits = 1.17 * (-2.0 * (1 - features @ plain.T)).exp() @ F.one_hot(labels, C).double()
    F.cross_entropy(logits, target).backward()
    assert float(plain.grad.norm()) > 0
    torch.testing.assert_close(adapter.keys.grad, plain.grad, rtol=1e-12, atol=1e-14)


def test_without_weight_it_adds_nothing(drawn):
    features, keys, labels = drawn
    adapter = CacheAdapter(K, D, C).double()
    adapter.fill(keys, labels)
    zero_shot = torch.randn(N, C, dtype=torch.float64)
    assert torch.equal(zero_shot + adapter(features, 0.0, 5.5), zero_shot)
    assert torch.equal(zero_shot + adapter(features, adapter.alpha, adapter.beta), zero_shot), "before one is chosen"


def test_state_dict_has_what_could_be_parameters():
    assert list(CacheAdapter(K, D, C).state_dict()) == ["keys", "alpha", "beta"]
