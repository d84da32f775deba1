"""LoRA against what it stands for, W + (alpha / rank) B A, in float64: values, gradients, and what must not change."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from workbench.chunking import encode_in_chunks
from workbench.errors import UserError
from workbench.gradient_equivalence import example_batch
from workbench.models import create_model, set_shortcuts
from workbench.models.layers import Attention
from workbench.models.lora import (
    DEFAULT_MATCH,
    MARK,
    LoRA,
    add_lora,
    merge_lora,
    merged_state_dict,
    open_parameters,
    unmerge_lora,
)
from workbench.optimization import ParameterRule

VOCABULARY = 100


def base_of(architecture="tiny-vit", **options):
    torch.manual_seed(0)
    model = create_model(architecture, vocab_size=VOCABULARY, **options)
    with torch.no_grad():  # zero gains hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def adapted(base, lora, trained=True):
    """Return a copy with an adapter; as after training, or as it starts."""
    model = copy.deepcopy(base)
    torch.manual_seed(1)
    add_lora(model, lora)
    if trained:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if MARK in name:
                    parameter.normal_(std=0.2)
    return model


def features(model, images, tokens):
    return model.encode_image(images), model.encode_text(tokens)


def largest(found, expected):
    return max(float((a - b).detach().abs().max()) for a, b in zip(found, expected, strict=True))


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("shortcuts", [True, False])
@pytest.mark.parametrize("architecture", ["tiny-vit", "tiny-rn"])
def test_starts_as_the_base_bit_for_bit(architecture, shortcuts):
    base = base_of(architecture).eval()
    images, tokens = example_batch(base, 6)
    for lora in (LoRA(), LoRA(parts="qv", rank=1)):
        model = adapted(base, lora, trained=False).train()  # which batch normalisation does not follow
        for each in (base, model):
            set_shortcuts(each, shortcuts)
        for found, expected in zip(features(model, images, tokens), features(base, images, tokens), strict=True):
            assert torch.equal(found.view(torch.int32), expected.view(torch.int32))
        state = model.state_dict()
        assert {name for name in state if MARK not in name} == set(base.state_dict())
        assert all(torch.equal(state[name], value) for name, value in base.state_dict().items())


@pytest.mark.parametrize("parts", ["qkv", "qv", "k"])
@pytest.mark.parametrize("architecture", ["tiny-vit", "tiny-rn"])
def test_is_the_base_with_other_weights(architecture, parts):
    """Values in every form of the layers, and gradients of A and B, are those of W + (alpha / rank) B A."""
    lora = LoRA(parts=parts, rank=3, alpha=7.0)
    base = base_of(architecture).double().eval()
    model = adapted(base, lora)
    images, tokens = example_batch(base, 5)
    images = images.double()
    pairs = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters() if MARK in name}
    weights = merged_state_dict({**base.state_dict(), **pairs}, lora.alpha)
    assert weights.keys() == base.state_dict().keys()
    changed = {name for name, value in base.state_dict().items() if not torch.equal(value, weights[name])}
    assert changed == set(adapted_weights(model)) and changed
    width = base.transformer.resblocks[0].ln_1.weight.numel()
    inside = weights["transformer.resblocks.0.attn.in_proj_weight"] - base.transformer.resblocks[0].attn.in_proj_weight
    kept = [part for part, rows in zip("qkv", inside.split(width), strict=True) if bool((rows == 0).all())]
    assert "".join(kept) == "".join(part for part in "qkv" if part not in parts)

    expected = functional_call(base, weights, (images, tokens))
    sum((logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum() for logits in expected).backward()
    for shortcuts in (True, False):
        set_shortcuts(model, shortcuts)
        model.zero_grad()
        found = model(images, tokens)
        assert largest(found, expected) <= 1e-12
        sum((logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum() for logits in found).backward()
        assert trained_names(model) == set(pairs)
        for name, parameter in model.named_parameters():
            if MARK not in name:
                assert parameter.grad is None
                continue
            difference = (parameter.grad - pairs[name].grad).norm()
            assert float(difference) <= 1e-11 * float(pairs[name].grad.norm()), name


def adapted_weights(model):
    for name, _ in model.named_parameters():
        if name.endswith(".A"):
            layer, _, place = name.partition(MARK)
            yield f"{layer}.weight" if place == "A" else f"{layer}.in_proj_weight"


def test_who_reads_a_weight_gets_the_adapted_one():
    """A path that does not call the layers must not pass the adapter by."""
    model = adapted(base_of().double(), LoRA(parts="qv"))
    block = model.visual.transformer.resblocks[0]
    x = torch.randn(2, 5, 64, dtype=torch.float64)
    fused = F.linear(x, block.attn.in_proj_weight, block.attn.in_proj_bias)
    assert largest([torch.cat(block.attn.project(x, "qkv"), dim=-1)], [fused]) <= 1e-12
    assert largest(Attention.project(block.attn, x, "kv"), block.attn.project(x, "kv")) <= 1e-12
    assert largest([block.mlp.c_fc(x)], [F.linear(x, block.mlp.c_fc.weight, block.mlp.c_fc.bias)]) <= 1e-12


@pytest.mark.parametrize("architecture", ["tiny-vit", "tiny-rn"])
@pytest.mark.parametrize("lora", [LoRA(), LoRA(parts="kv", rank=2, alpha=3.0)])
def test_merging_and_unmerging(architecture, lora):
    base = base_of(architecture).double().eval()
    model = adapted(base, lora)
    images, tokens = example_batch(base, 4)
    images, before = images.double(), {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = features(model, images, tokens)
        assert largest(expected, features(base, images, tokens)) > 1e-3
        adapter = merge_lora(model)
        kinds = [[type(m) for m in each.modules() if not isinstance(m, nn.BatchNorm2d)] for each in (model, base)]
        assert kinds[0] == kinds[1]
        assert list(model.state_dict()) == list(base.state_dict())
        assert largest(features(model, images, tokens), expected) <= 1e-12
        for name, value in merged_state_dict(before, lora.alpha).items():
            assert torch.equal(model.state_dict()[name], value), name
        unmerge_lora(model, lora, adapter)
        assert largest(features(model, images, tokens), expected) <= 1e-12
    assert set(model.state_dict()) == set(before)
    for name, value in model.state_dict().items():
        assert float((value - before[name]).abs().max()) <= 1e-12, name


def test_merged_weights_are_rounded_once():
    base = base_of()
    model = adapted(base, LoRA())
    exact = copy.deepcopy(model).double()
    for each in (model, exact):
        merge_lora(each)
    for name, value in exact.state_dict().items():
        assert torch.equal(model.state_dict()[name], value.to(model.state_dict()[name].dtype)), name


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}])
def test_chunks_give_the_gradient_of_the_whole_batch(options):
    base = base_of(**options).double()
    images, tokens = example_batch(base, 8)
    images, found = images.double(), []
    for chunk in (None, 3):
        model = adapted(base, LoRA()).train()
        image = encode_in_chunks(model.encode_image, images, chunk=chunk, module=model.visual)
        text = encode_in_chunks(model.encode_text, tokens, chunk=chunk)
        F.cross_entropy(F.normalize(image) @ F.normalize(text).T, torch.arange(8)).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and all(MARK in name for name in found[0])
    for name, gradient in found[0].items():
        assert float((gradient - found[1][name]).norm()) <= 1e-11 * max(1e-3, float(gradient.norm())), name


def test_statistics_of_a_frozen_base_do_not_move():
    base = base_of("tiny-rn").eval()
    model = adapted(base, LoRA()).train()
    images, _ = example_batch(base, 4)
    with torch.no_grad():
        assert not torch.equal(model.encode_image(images), base.encode_image(images))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in base.state_dict().items())


def test_what_is_adapted():
    model = base_of()
    add_lora(model, LoRA(match=[r"visual\.transformer\..*attn", r"transformer\.resblocks\.1\.mlp\.c_fc"], parts="qv"))
    assert set(adapted_weights(model)) == {
        *(
            f"visual.transformer.resblocks.{n}.attn.{name}"
            for n in (0, 1)
            for name in ("in_proj_weight", "out_proj.weight")
        ),
        "transformer.resblocks.1.mlp.c_fc.weight",
    }
    assert set(model.visual.transformer.resblocks[0].attn.lora) == {"q", "v"}
    resnet = base_of("tiny-rn")
    add_lora(resnet, LoRA(parts="qv"))
    pool = {name for name in adapted_weights(resnet) if name.startswith("visual.")}
    assert pool == {f"visual.attnpool.{part}_proj.weight" for part in "qvc"}


def test_counts_on_the_meta_device_are_those_of_the_experiment():
    """The header of experiments/ft_lora.yaml."""
    for rank, trained in ((2, 552_960), (8, 2_211_840), (16, 4_423_680)):
        with torch.device("meta"):
            model = create_model("ViT-B/32")
            add_lora(model, LoRA(rank=rank))
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        assert sum(sizes[name] for name in trained_names(model)) == trained
        assert sum(sizes.values()) == 151_277_313 + trained


@pytest.mark.parametrize(
    ("architecture", "lora", "words"),
    [
        ("tiny-vit", LoRA(match=[r"visula\.proj"]), [r"'visula\\.proj' matches no parameter", "visual.proj"]),
        ("tiny-vit", LoRA(match=["("]), ["lora.match", "no regular expression"]),
        ("tiny-vit", LoRA(match=[]), ["nothing to train"]),
        ("tiny-vit", LoRA(match=[DEFAULT_MATCH, ".*bias"]), ["'.*bias' matches no weight"]),
        ("tiny-vit", LoRA(match=[r"visual\."]), ["positional_embedding", "no weight of a linear map", "Narrow"]),
        ("tiny-vit", LoRA(match=[r"visual\.conv1"]), ["visual.conv1.weight, a convolution"]),
        ("tiny-rn", LoRA(match=[r"visual\.layer1"]), ["visual.layer1.0.conv1.weight, a convolution"]),
        ("tiny-rn", LoRA(match=[r"visual\.attnpool\.k_proj"], parts="qv"), ["matches no weight", "'qv'"]),
        ("tiny-vit", LoRA(parts="qw"), ["lora.parts is 'qw'"]),
        ("tiny-vit", LoRA(parts="qq"), ["lora.parts"]),
        ("tiny-vit", LoRA(parts=""), ["lora.parts"]),
        ("tiny-vit", LoRA(rank=0), ["lora.rank is 0"]),
        ("tiny-vit", LoRA(alpha=float("nan")), ["lora.alpha"]),
        ("tiny-vit", LoRA(rank=65), ["lora.rank 65", "(192, 64)"]),
    ],
)
def test_refused(architecture, lora, words):
    model = base_of(architecture)
    before = set(model.state_dict())
    with pytest.raises(UserError) as refusal:
        add_lora(model, lora)
    assert all(word in str(refusal.value) for word in words), refusal.value
    assert set(model.state_dict()) == before and all(parameter.requires_grad for parameter in model.parameters())


def test_a_backbone_of_timm_is_adapted_by_its_own_names():
    with torch.device("meta"):
        model = create_model("timm/vit_tiny_patch16_224")
        with pytest.raises(UserError, match=r"visual.trunk.cls_token, no weight.*trunk\\.blocks"):
            add_lora(model, LoRA())
        add_lora(model, LoRA(match=[r"visual\.trunk\.blocks\..*\.attn\."]))
    names = set(adapted_weights(model))
    assert len(names) == 24 and "visual.trunk.blocks.0.attn.qkv.weight" in names


def test_rules_open_what_they_name_and_set_the_rate_of_the_rest():
    rows = [
        ParameterRule(r"visual\.ln_post", weight_decay=0.0),  # says nothing of a rate
        ParameterRule(r"visual\.ln_post\.bias", lr=0.0),
        ParameterRule(r".*\.ln_2\.bias", lr=0.5),
        ParameterRule("logit_scale", lr=0.1),
        ParameterRule(r"visual\.", lr=0.1),  # of the adapter, too: it opens nothing
        ParameterRule(".*", lr=1.0),
    ]
    model = base_of()
    add_lora(model, LoRA())
    adapter = trained_names(model)
    open_parameters(model, rows)
    towers = ("transformer", "visual.transformer")
    opened = {f"{tower}.resblocks.{number}.ln_2.bias" for tower in towers for number in (0, 1)}
    assert trained_names(model) - adapter == {"logit_scale", *opened}
    add_lora(other := base_of(), LoRA())
    open_parameters(other, rows[-2:])
    assert trained_names(other) == adapter


def test_an_adapter_of_a_file_that_does_not_fit():
    model = adapted(base_of(), LoRA())
    state, name = model.state_dict(), "transformer.resblocks.0.attn.lora.q.A"
    for value in (torch.zeros(8, 3), torch.zeros(2, 64), torch.zeros(8), torch.zeros(0, 64)):
        with pytest.raises(UserError, match="does not fit its weights: transformer.resblocks.0.attn.lora.q.A"):
            merged_state_dict(state | {name: value}, 1.0)
    for other in ("transformer.resblocks.0.attn.lora.qk.A", "transformer.lora.A"):
        with pytest.raises(UserError, match="does not fit"):
            merged_state_dict(state | {other: state[name], other[:-1] + "B": state[name[:-1] + "B"]}, 1.0)


def test_compiles():
    model = adapted(base_of(), LoRA()).eval()
    block = model.visual.transformer.resblocks[0]
    x = torch.randn(2, 5, 64)
    whole = torch.compile(block, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(x), block(x))
