import pytest
import torch

from workbench.evaluation import retrieval


def naive(image, text, owner, ks):
    """Sort every row; a wrong one with an equal score stands before the right one."""
    image, text = (torch.nn.functional.normalize(x, dim=-1) for x in (image, text))
    scores = image @ text.T
    found = {}
    for name, matrix, rows, columns in (
        ("image_to_text", scores, range(len(image)), owner.tolist()),
        ("text_to_image", scores.T, owner.tolist(), range(len(image))),
    ):
        columns = list(columns)
        for k in ks:
            hits = 0
            for query, line in zip(rows, matrix.tolist(), strict=True):
                order = sorted(range(len(line)), key=lambda j: (-line[j], columns[j] == query))
                hits += any(columns[j] == query for j in order[:k])
            found[f"{name}_recall@{k}"] = hits / len(matrix)
    return found


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("texts", [1, 3])
def test_equals_the_naive_version(block, texts):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(20, 6, generator=generator)
    owner = torch.arange(20).repeat_interleave(texts)[torch.randperm(20 * texts, generator=generator)]
    text = image[owner] + 1.5 * torch.randn(20 * texts, 6, generator=generator)
    found = retrieval.recall_at_k(image, text, (1, 5), owner, block=block)
    assert found == pytest.approx(naive(image, text, owner, (1, 5)))
    assert 0.1 < found["image_to_text_recall@1"] < 1


def test_pairs_need_no_owner():
    features = torch.randn(9, 4)
    assert set(retrieval.recall_at_k(features, features).values()) == {1.0}
    assert retrieval.recall_at_k(features, features.flip(0), (1,))["image_to_text_recall@1"] == pytest.approx(1 / 9)


def test_collapsed_features_find_nothing():
    """With optimistic ties, a model whose features all coincide would have a recall of 100 %."""
    assert set(retrieval.recall_at_k(torch.ones(30, 4), torch.ones(30, 4)).values()) == {0.0}


def test_chance():
    assert retrieval.chance_recall(5, torch.arange(190)) == pytest.approx(5 / 190)
    assert retrieval.chance_recall(10, torch.arange(4)) == pytest.approx(1.0)
    torch.manual_seed(0)
    found = retrieval.recall_at_k(torch.randn(2000, 16), torch.randn(2000, 16), (20,))
    assert found["image_to_text_recall@20"] == pytest.approx(0.01, abs=0.007)


def test_any_of_a_group_is_a_right_answer():
    torch.manual_seed(0)
    groups = torch.tensor([0, 0, 0, 1, 1, 2])
    text = torch.randn(3, 8)[groups]  # each class has one text
    found = retrieval.recall_at_k(text + 0.01 * torch.randn(6, 8), text, (1,), groups=groups)
    assert found == {"image_to_text_recall@1": 1.0, "text_to_image_recall@1": 1.0}
    assert retrieval.recall_at_k(text, text, (1,))["image_to_text_recall@1"] == pytest.approx(1 / 6)


def test_chance_of_groups_is_that_of_random_features():
    groups = torch.arange(60) % 7 % 5
    torch.manual_seed(0)
    draws = [retrieval.recall_at_k(*torch.randn(2, 60, 8), (3,), groups=groups) for _ in range(60)]
    mean = sum(draw["image_to_text_recall@3"] for draw in draws) / len(draws)
    assert retrieval.chance_recall(3, groups) == pytest.approx(mean, abs=0.02)
    assert retrieval.chance_recall(1, groups) == pytest.approx(
        float((groups[:, None] == groups).float().mean()), rel=1e-6
    )
