"""From a file into a model: kinds of file, what does not fit, what must match besides shapes."""

import warnings

import pytest
import torch

from workbench.errors import UserError
from workbench.models import create_model
from workbench.models.position_embedding import interpolate
from workbench.tokenizer import content_hash
from workbench.weights import named, put_weights, read_weights, zoo

ABOUT = {"architecture": "tiny-vit", "activation": "quick_gelu", "image_size": 32, "tokenizer": content_hash()}


def load_weights(target, source, download_root=None, **options):
    weights = read_weights(named(source, target.architecture.name), download_root)
    return weights.provenance(str(source), put_weights(target, weights, **options))


def model(name="tiny-vit", seed=0, **changes):
    torch.manual_seed(seed)
    return create_model(name, **changes).eval()


def saved(path, source, about=ABOUT, prefix="clip."):
    """Write a checkpoint as the training does."""
    torch.save({"state_dict": {prefix + k: v for k, v in source.state_dict().items()}, "workbench": about}, path)
    return path


def archived(path, source):
    """Write an archive as OpenAI's files are: TorchScript in half precision, with numbers beside the weights."""
    for name in ("input_resolution", "vocab_size"):
        vars(source).pop(name, None)
        source.register_buffer(name, torch.tensor(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = torch.randn(1, 3, 32, 32), torch.tensor([[49406, 5, 49407]])
        torch.jit.trace(source, example, check_trace=False).half().save(str(path))
    return path


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[key], value.to(ours[key].dtype)), key


def test_our_checkpoint(tmp_path):
    source, target = model(seed=1), model(seed=2)
    path = saved(tmp_path / "c.ckpt", source)
    result = load_weights(target, path)
    same(target.state_dict(), source.state_dict())
    assert result == {
        "source": str(path),
        "kind": "this package's",
        "sha256": zoo.sha256(path),
        "interpolated": {},
    }
    assert read_weights(path).architecture == source.architecture


def test_the_kind_is_seen_in_the_file_not_in_its_name(tmp_path):
    source = model(seed=1)
    assert read_weights(saved(tmp_path / "a.pt", source)).source == "this package's"
    found = read_weights(archived(tmp_path / "b.ckpt", model(seed=1)))
    assert (found.source, found.architecture) == ("OpenAI's", source.architecture)
    same(found.state_dict, {key: value.half() for key, value in source.state_dict().items()})


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
def test_half_weights_become_fp32_masters_and_give_the_same_features(tmp_path, name):
    path = archived(tmp_path / "openai.pt", model(name, seed=1))
    source, target = model(name, seed=1), model(name, seed=2)
    load_weights(target, path)
    assert {p.dtype for p in target.parameters()} == {torch.float32}
    images, tokens = torch.randn(2, 3, 32, 32), torch.tensor([[49406, 320, 1125, 49407], [49406, 5, 49407, 0]])
    with torch.no_grad():
        for ours, theirs in zip(target(images, tokens), source(images, tokens), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name, before, after", [("tiny-vit", 32, 48), ("tiny-rn", 64, 32)])
def test_another_image_size_is_interpolated_on_request_and_said(tmp_path, name, before, after):
    source, target = model(name, image_size=before), model(name, image_size=after)
    path = saved(tmp_path / "c.ckpt", source, ABOUT | {"architecture": name, "image_size": before})
    before_loading = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(UserError, match="another image size .* rows for .* interpolate_positions"):
        load_weights(target, path)
    same(target.state_dict(), before_loading)
    [(key, sides)] = load_weights(target, path, interpolate_positions=True)["interpolated"].items()
    step = 8 if name == "tiny-vit" else 32
    assert sides == [before // step, after // step]
    assert torch.equal(target.state_dict()[key], interpolate(source.state_dict()[key], after // step))


def test_another_activation_is_refused(tmp_path):
    path = saved(tmp_path / "c.ckpt", model(activation="gelu"), ABOUT | {"activation": "gelu"})
    with pytest.raises(UserError, match="trained with gelu and the model has quick_gelu"):
        load_weights(model(), path)
    with pytest.raises(UserError, match="trained with quick_gelu and the model has gelu"):
        load_weights(model(activation="gelu"), archived(tmp_path / "openai.pt", model()))


def test_another_vocabulary_is_refused(tmp_path):
    path = saved(tmp_path / "c.ckpt", model(), ABOUT | {"tokenizer": "0" * 64})
    with pytest.raises(UserError, match="another vocabulary"):
        load_weights(model(), path)


def test_what_does_not_fit_is_listed_and_nothing_is_changed(tmp_path):
    state_dict = model(seed=1).state_dict()
    for key in ("ln_final.weight", "logit_scale"):
        del state_dict[key]
    state_dict |= {f"extra.{number}": torch.zeros(1) for number in range(5)}
    state_dict["text_projection"] = torch.zeros(64, 7)
    torch.save({"state_dict": state_dict, "workbench": ABOUT}, tmp_path / "c.ckpt")
    target = model(seed=2)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(UserError) as raised:
        load_weights(target, tmp_path / "c.ckpt")
    said = str(raised.value)
    assert "are not those of tiny-vit: 2 missing (logit_scale, ln_final.weight)" in said
    assert "5 unexpected (extra.0, extra.1, extra.2, ...)" in said
    assert "1 of another shape (text_projection (64, 7) for (64, 32))" in said
    same(target.state_dict(), before)


def test_the_counter_of_old_batch_norms_may_be_missing(tmp_path):
    source, target = model("tiny-rn", seed=1), model("tiny-rn", seed=2)
    kept = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(kept) < len(source.state_dict())
    torch.save({"state_dict": kept, "workbench": ABOUT | {"architecture": "tiny-rn"}}, tmp_path / "c.ckpt")
    load_weights(target, tmp_path / "c.ckpt")
    same(target.state_dict(), source.state_dict())


def test_openai_means_the_entry_of_the_models_architecture(tmp_path, monkeypatch):
    archived(tmp_path / "tiny.pt", model(seed=1))
    monkeypatch.setitem(zoo.ZOO, "tiny-vit", zoo.Entry("tiny.pt", zoo.sha256(tmp_path / "tiny.pt")))
    by_option, by_variable = model(seed=2), model(seed=3)
    assert load_weights(by_option, "openai", tmp_path)["source"] == "openai"
    monkeypatch.setenv("CLIP_WORKBENCH_CACHE", str(tmp_path))
    assert load_weights(by_variable, "tiny-vit")["sha256"] == zoo.ZOO["tiny-vit"].sha256
    same(by_option.state_dict(), by_variable.state_dict())
    with pytest.raises(UserError, match="released no weights for tiny-rn; it did for RN50, "):
        load_weights(model("tiny-rn"), "openai")


def test_a_name_that_is_nothing_suggests_the_nearest():
    with pytest.raises(UserError, match=r"no weights at ViT-B-32 \(is it 'ViT-B/32'\?\)"):
        load_weights(model(), "ViT-B-32")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": {"a": "text"}}, "text"])
def test_a_checkpoint_of_something_else(tmp_path, content):
    torch.save(content, tmp_path / "c.ckpt")
    with pytest.raises(UserError, match="holds no state dict"):
        read_weights(tmp_path / "c.ckpt")
