"""Each exact shortcut against the plain form, in float64: features, gradients, and what must be zero."""

import copy

import pytest
import torch
from torch import nn

from workbench.chunking import held_running_statistics
from workbench.models import compile_blocks, create_model, set_shortcuts, text_transformer
from workbench.models.layers import LayerNorm, QuickGELU, Transformer
from workbench.models.modified_resnet import AttentionPool2d, ModifiedResNet

VOCABULARY = 100  # small, as what is tested does not depend on it


def tokens_of(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(len(lengths), 77, dtype=torch.int32)
    for row, words in enumerate(lengths):
        tokens[row, 0], tokens[row, 1 + words] = VOCABULARY - 2, VOCABULARY - 1
        tokens[row, 1 : 1 + words] = torch.randint(1, VOCABULARY - 2, (words,), generator=generator, dtype=torch.int32)
    return tokens


def outcome(model, images, tokens):
    model.zero_grad()
    image, text = model.encode_image(images), model.encode_text(tokens)
    weights = torch.linspace(-1, 1, image.numel(), dtype=image.dtype).view_as(image)
    (image * weights + text * weights.flip(0)).sum().backward()
    return {"image": image.detach(), "text": text.detach()} | {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def assert_same(found, expected, tolerance=1e-12):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert float((found[name] - value).norm()) <= tolerance * max(1.0, float(value.norm())), name


def switches(model):
    yield "text trimming", model, "trim_text"
    for module in model.modules():
        if isinstance(module, Transformer):
            yield "last block", module, "pooled_last_block"
        elif isinstance(module, AttentionPool2d):
            yield "single query", module, "single_query"
        elif isinstance(module, ModifiedResNet):
            yield "channels last", module, "channels_last"


@pytest.mark.parametrize("architecture", ["tiny-vit", "tiny-rn"])
@pytest.mark.parametrize("lengths", [[0, 3, 20, 7], [75, 75, 75, 75], [0, 0, 0, 0], [1, 75, 0, 40]], ids=str)
def test_shortcuts_change_nothing(architecture, lengths):
    torch.manual_seed(0)
    model = create_model(architecture, vocab_size=VOCABULARY).double()
    with torch.no_grad():  # zero gains hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    images, tokens = torch.randn(4, 3, 32, 32, dtype=torch.float64), tokens_of(lengths)
    set_shortcuts(model, False)
    plain = outcome(model, images, tokens)
    expected = {"text trimming", "last block"} | (
        {"single query", "channels last"} if architecture == "tiny-rn" else set()
    )
    assert {name for name, _, _ in switches(model)} == expected
    for _, module, attribute in switches(model):
        assert getattr(module, attribute) is False
        setattr(module, attribute, True)
        assert_same(outcome(model, images, tokens), plain)
        setattr(module, attribute, False)
    set_shortcuts(model, True)
    assert_same(outcome(model, images, tokens), plain)
    # A loader's trimmed batch is the same batch.
    trimmed = tokens[:, : max(lengths) + 2]
    assert_same(outcome(model, images, trimmed), plain)


def test_positions_behind_the_longest_text_get_no_gradient():
    model = create_model("tiny-vit", vocab_size=VOCABULARY).double()
    found = outcome(model, torch.randn(2, 3, 32, 32, dtype=torch.float64), tokens_of([3, 8]))
    gradient = found["positional_embedding"]
    assert bool((gradient[10:] == 0).all()) and bool((gradient[:10] != 0).any(dim=1).all())


def test_text_tower_computes_only_what_it_needs(monkeypatch):
    model = create_model("tiny-vit", vocab_size=VOCABULARY)
    seen = []
    model.transformer.resblocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    model.encode_text(tokens_of([3, 8]))
    model.trim_text = False
    model.encode_text(tokens_of([3, 8]))
    assert seen == [10, 77]


def test_lengths_on_a_gpu_are_few_and_change_nothing(monkeypatch):
    lengths = {longest: text_transformer.computed_length(longest, 77, "cuda") for longest in range(2, 78)}
    assert sorted(set(lengths.values())) == [8, 16, 24, 32, 40, 48, 56, 64, 72, 77]
    assert all(longest <= length < longest + 8 for longest, length in lengths.items())
    assert text_transformer.computed_length(11, 77, "cpu") == 11
    model = create_model("tiny-vit", vocab_size=VOCABULARY).double()
    tokens, trimmed = tokens_of([3, 8]), tokens_of([3, 8])[:, :10]
    plain = model.encode_text(tokens)
    monkeypatch.setattr(text_transformer, "computed_length", lambda longest, context, kind: lengths[longest])
    for text in (tokens, trimmed):
        torch.testing.assert_close(model.encode_text(text), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("architecture", ["tiny-vit", "tiny-rn"])
def test_gradient_checkpointing_changes_nothing(architecture):
    images, tokens = torch.randn(4, 3, 32, 32, dtype=torch.float64), tokens_of([0, 3, 20, 7])
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = create_model(architecture, vocab_size=VOCABULARY, gradient_checkpointing=recompute).double()
        found.append(outcome(model, images, tokens) | {k: v.double() for k, v in model.named_buffers()})
    assert_same(found[1], found[0])


def test_statistics_can_be_held():
    norm = nn.BatchNorm2d(3)
    norm(torch.randn(4, 3, 2, 2))
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    with held_running_statistics(norm):
        norm(torch.randn(4, 3, 2, 2))
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    norm(torch.randn(4, 3, 2, 2))
    assert int(norm.num_batches_tracked) == 2 and not torch.equal(norm.running_mean, before["running_mean"])


def test_patch_dropout():
    torch.manual_seed(0)
    model = create_model("tiny-vit", vocab_size=VOCABULARY, patch_dropout=0.75)
    seen = []
    model.visual.ln_pre.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    images = torch.randn(3, 3, 32, 32)
    model.train().encode_image(images)
    model.eval().encode_image(images)
    few, all_of_them = seen
    assert few.shape[1] == 1 + 4 and all_of_them.shape[1] == 1 + 16
    assert torch.equal(few[:, 0], all_of_them[:, 0]), "the class token stays"
    for row in range(3):
        kept = {tuple(token.tolist()) for token in few[row, 1:]}
        assert len(kept) == 4 and kept <= {tuple(token.tolist()) for token in all_of_them[row, 1:]}


def test_layer_norm_is_fp32_inside():
    torch.manual_seed(0)
    x = 100 + torch.randn(4, 64)
    ours, plain = LayerNorm(64), nn.LayerNorm(64)
    for layer in (ours, plain):
        nn.init.constant_(layer.weight, 1.25), nn.init.constant_(layer.bias, -0.5)  # exact in half precision
    assert torch.equal(ours(x), plain(x))
    for dtype in (torch.float16, torch.bfloat16):
        expected = plain(x.to(dtype).float()).to(dtype)
        for layer in (ours, copy.deepcopy(ours).to(dtype)):  # OpenAI's half models keep fp32 here, `.half()` does not
            half = layer(x.to(dtype))
            assert half.dtype == dtype and torch.equal(half, expected)


def test_quick_gelu():
    x = torch.linspace(-8, 8, 101, dtype=torch.float64, requires_grad=True)
    expected = x * torch.sigmoid(1.702 * x)
    torch.testing.assert_close(QuickGELU()(x), expected, rtol=1e-14, atol=1e-15)
    found, wanted = (torch.autograd.grad(y.sum(), x)[0] for y in (QuickGELU()(x), expected))
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-15)
    assert torch.autograd.gradcheck(QuickGELU(), x)


def test_bf16_autocast_and_half_weights():
    model = create_model("tiny-vit", vocab_size=VOCABULARY).eval()
    images, tokens = torch.randn(2, 3, 32, 32), tokens_of([3, 8])
    plain = model.encode_image(images), model.encode_text(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = model.encode_image(images), model.encode_text(tokens)
    model.bfloat16()
    half = model.encode_image(images), model.encode_text(tokens)
    assert model.dtype == torch.bfloat16
    for found in (cast, half):
        for feature, expected in zip(found, plain, strict=True):
            assert torch.nn.functional.cosine_similarity(feature.float(), expected).min() > 0.999


@pytest.mark.parametrize("architecture", ["tiny-vit", "tiny-rn"])
def test_compilation_keeps_the_names(architecture):
    model = create_model(architecture, vocab_size=VOCABULARY)
    keys = list(model.state_dict())
    compile_blocks(model)
    assert list(model.state_dict()) == keys
    blocks = [name for name, module in model.named_modules() if module._compiled_call_impl is not None]
    assert len(blocks) == 4 if architecture == "tiny-vit" else 2 + 4


@pytest.mark.slow
def test_compiled_blocks():
    torch.manual_seed(0)
    model = create_model("tiny-vit", vocab_size=VOCABULARY)
    images, tokens = torch.randn(2, 3, 32, 32), tokens_of([3, 8])
    keys, plain = list(model.state_dict()), model.encode_image(images)
    compile_blocks(model)
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model.encode_image(images), plain, rtol=1e-4, atol=1e-5)
    model.encode_text(tokens).sum().backward()
