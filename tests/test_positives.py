import pytest
import torch

from workbench import losses
from workbench.errors import UserError
from workbench.positives import caption_numbers, check_positives, positive_groups
from workbench.tokenizer import tokenize, trim


def test_equal_captions_have_equal_numbers_however_they_are_padded():
    texts = ["a dog", "a cat", "a dog", "dog a", "a dog a", ""]
    tokens = tokenize(texts)
    numbers = caption_numbers(tokens)
    assert numbers[0] == numbers[2]
    assert len(set(numbers.tolist())) == 5
    assert torch.equal(caption_numbers(trim(tokens)), numbers)


def test_many_texts_have_as_many_numbers():
    tokens = torch.cartesian_prod(torch.arange(200), torch.arange(200), torch.arange(20)).int()
    assert len(caption_numbers(tokens).unique()) == len(tokens)


def test_labels_decide_where_there_are_some():
    batch = {"text": tokenize(["a", "b"]), "label": torch.tensor([4, 4])}
    assert positive_groups(batch, None).tolist() == [4, 4]
    assert positive_groups(batch, "label").tolist() == [4, 4]
    assert positive_groups(batch, "pair") is None
    assert len(set(positive_groups(batch, "caption").tolist())) == 2
    del batch["label"]
    assert positive_groups(batch, None) is None
    with pytest.raises(UserError, match="the data have none"):
        positive_groups(batch, "label")


def test_a_wrong_choice():
    with pytest.raises(UserError, match="positives is 'class'; choose one of pair, label, caption"):
        check_positives("class")


def test_the_loss_of_unique_captions_is_the_plain_one():
    image, text = torch.randn(2, 6, 4, dtype=torch.float64)
    groups = caption_numbers(tokenize(list("abcdef")))
    scale = torch.tensor(9.0, dtype=torch.float64)
    torch.testing.assert_close(
        losses.multi_positive(image, text, scale, groups), losses.contrastive(image, text, scale), rtol=1e-14, atol=0
    )
