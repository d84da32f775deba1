import pytest
import torch
import torch.nn.functional as F

from workbench.errors import UserError
from workbench.evaluation.zero_shot import classifier, top_k_correct


def encode(texts):
    """A vector for each text that depends on nothing but the text."""
    rows = [torch.randn(8, generator=torch.Generator().manual_seed(sum(text.encode()) + len(text))) for text in texts]
    return 3 * torch.stack(rows)


def test_mean_of_normalised_prompts():
    names, templates = ["cat", "dog", "cat"], ["a {}.", "the big {} {sic}"]
    found = classifier(encode, names, templates, batch_size=2)
    for row, name in zip(found, names, strict=True):
        mean = F.normalize(encode([template.replace("{}", name) for template in templates]), dim=-1).mean(dim=0)
        torch.testing.assert_close(row, F.normalize(mean, dim=0))
    assert torch.equal(found[0], found[2])


def test_each_prompt_is_encoded_once_and_sorted_by_length():
    seen = []

    def counting(texts):
        seen.extend(texts)
        return encode(texts)

    classifier(counting, ["b", "aaaa", "b", "cc"], ["{}", "x {}"], batch_size=3)
    assert len(seen) == len(set(seen)) == 6
    assert [len(text) for text in seen] == sorted(len(text) for text in seen)


def test_top_k():
    weights = torch.eye(4)
    features = torch.tensor([[4.0, 3, 2, 1], [4, 3, 2, 1], [4, 3, 2, 1], [1, 1, 1, 1]])
    labels = torch.tensor([0, 1, 3, 2])
    assert top_k_correct(features, weights, labels, 1).tolist() == [True, False, False, False]
    assert top_k_correct(features, weights, labels, 2).tolist() == [True, True, False, False]
    assert top_k_correct(features, weights, labels, 4).tolist() == [True, True, True, True]


def test_mistakes():
    with pytest.raises(UserError, match="'a photo'"):
        classifier(encode, ["cat"], ["a photo"])
    with pytest.raises(UserError, match="no.*|none"):
        classifier(encode, [], ["{}"])
    with pytest.raises(UserError, match="at least one template"):
        classifier(encode, ["cat"], [])
