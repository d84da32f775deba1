"""The text tower on vectors in the place of tokens, and prompts whose context is learnt."""

import itertools

import pytest
import torch

from workbench import tokenize
from workbench.errors import UserError
from workbench.models import create_model, set_shortcuts
from workbench.models.prompt_learner import PromptLearner
from workbench.tokenizer import EOT, SOT, tokenizer, trim

NAMES = ["red fox", "owl", "merle lappet moth"]


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return create_model("tiny-vit").double().eval().requires_grad_(False)


@pytest.mark.parametrize("trim_text, pooled", list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("width", [77, 20, None])
def test_embedded_tokens_are_encoded_as_tokens(clip, trim_text, pooled, width):
    """Bit for bit, at full width, cut, and cut to the longest, with the shortcuts and without."""
    tokens = tokenize(["a photo of a cat", "an owl on a branch by night, seen from below", "x"])
    tokens = trim(tokens) if width is None else tokens[:, :width]
    set_shortcuts(clip, True)
    clip.trim_text, clip.transformer.pooled_last_block = trim_text, pooled
    found = clip.encode_embedded_text(clip.token_embedding(tokens), tokens.argmax(dim=-1))
    assert torch.equal(found, clip.encode_text(tokens))
    set_shortcuts(clip, True)


def test_only_what_is_needed_is_computed(clip, monkeypatch):
    """Vectors of full width are cut behind the longest text, and what stands behind a text's end changes nothing."""
    tokens = tokenize(["an owl", "a cat and a dog"])
    end, embedded = tokens.argmax(dim=-1), clip.token_embedding(tokens)
    seen = []
    handle = clip.transformer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    expected = clip.encode_embedded_text(embedded, end)
    handle.remove()
    assert seen == [int(end.max()) + 1] == [7]
    behind = torch.arange(77) > end[:, None]
    assert torch.equal(clip.encode_embedded_text(embedded.masked_fill(behind[..., None], 9.0), end), expected)
    with pytest.raises(ValueError, match="78 tokens, but the context length is 77"):
        clip.encode_embedded_text(torch.zeros(1, 78, 64), end[:1])


@pytest.mark.parametrize("class_specific", [False, True])
def test_from_words_it_is_their_prompt(clip, class_specific):
    learner = PromptLearner(NAMES, clip.token_embedding, 77, words="a photo of a", class_specific=class_specific)
    assert learner.context.shape == ((3, 4, 64) if class_specific else (4, 64))
    assert list(learner.state_dict()) == ["context"] == [name for name, _ in learner.named_parameters()]
    found = clip.encode_embedded_text(*learner(clip.token_embedding))
    expected = clip.encode_text(trim(tokenize([f"a photo of a {name}." for name in NAMES])))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("class_specific", [False, True])
def test_context_stands_between_start_and_name(clip, class_specific):
    torch.manual_seed(0)
    learner = PromptLearner(NAMES, clip.token_embedding, 77, class_specific=class_specific)
    assert learner.context.shape == ((3, 16, 64) if class_specific else (16, 64))
    assert 0.018 < float(learner.context.detach().std()) < 0.022
    embedded, end = learner(clip.token_embedding)
    for row, name in enumerate(NAMES):
        behind = torch.tensor([*tokenizer().encode(f"{name}."), EOT])
        assert int(end[row]) == 16 + len(behind)
        assert torch.equal(embedded[row, 0], clip.token_embedding(torch.tensor(SOT)))
        assert torch.equal(embedded[row, 1:17], learner.context[row] if class_specific else learner.context)
        assert torch.equal(embedded[row, 17 : 17 + len(behind)], clip.token_embedding(behind))
    features = clip.encode_embedded_text(embedded, end)
    features[1].square().sum().backward()
    moved = learner.context.grad.abs().sum(dim=-1) > 0
    assert moved.tolist() == ([[False] * 16, [True] * 16, [False] * 16] if class_specific else [True] * 16)
    assert clip.token_embedding.weight.grad is None


def test_starts_of_their_own_differ(clip):
    context = PromptLearner(NAMES, clip.token_embedding, 77, class_specific=True).context
    assert not torch.equal(context[0], context[1])


@pytest.mark.parametrize(
    "options, words",
    [
        ({"context_tokens": 0}, "has 0 tokens"),
        ({"words": " "}, "has 0 tokens"),
        ({"context_tokens": 4, "words": "a photo of a"}, "context_tokens or context_words"),
        (
            {"context_tokens": 71},
            "class 'merle lappet moth' has 78 tokens, more than the context length of 77: start and end, 71 of context,"
            " 5 of the name and a full stop. Take at most 70 context_tokens",
        ),
    ],
)
def test_refused(clip, options, words):
    with pytest.raises(UserError, match=words):
        PromptLearner(NAMES, clip.token_embedding, 77, **options)


def test_longest_context_that_fits(clip):
    learner = PromptLearner(NAMES, clip.token_embedding, 77, context_tokens=70)
    embedded, end = learner(clip.token_embedding)
    assert embedded.shape[1] == 77 and int(end.max()) == 76
    assert clip.encode_embedded_text(embedded, end).isfinite().all()
