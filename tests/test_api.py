"""The Python interface, used as the README says."""

import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import workbench
from workbench.errors import UserError
from workbench.models import create_model
from workbench.weights import zoo


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def test_names():
    assert workbench.available_models() == [
        *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"),
        *("ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"),
    ]
    assert dir(workbench) == ["__version__", "available_models", "create_model", "load", "tokenize"]
    assert [getattr(workbench, name) for name in dir(workbench)]
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        workbench.lod  # noqa: B018


def checkpoint(path, name="tiny-vit", **changes):
    model = create_model(name, **changes)
    about = {
        "architecture": name,
        **{key: getattr(model.architecture, key) for key in ("activation", "image_size", "context_length")},
        "embed_dim": model.architecture.embed_dim,
    }
    state_dict = {f"clip.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state_dict, "workbench": about}, path)
    return model.eval()


@pytest.mark.parametrize("changes", [{}, {"image_size": 48, "activation": "gelu", "context_length": 20}])
def test_load_use_and_compare(tmp_path, changes):
    trained = checkpoint(tmp_path / "c.ckpt", **changes)
    model, preprocess = workbench.load(tmp_path / "c.ckpt", device="cpu")
    assert not model.training and model.dtype == torch.float32
    assert model.architecture == trained.architecture
    image = preprocess(picture()).unsqueeze(0)
    text = workbench.tokenize(["a diagram", "a dog", "a cat"], context_length=model.architecture.context_length)
    with torch.no_grad():
        logits_per_image, logits_per_text = model(image, text)
        expected, _ = trained(image, text)
    assert image.shape[-1] == model.architecture.image_size
    assert logits_per_image.shape == (1, 3) and logits_per_text.shape == (3, 1)
    assert torch.equal(logits_per_image, expected)


def test_the_files_own_preparation_of_pictures_is_used(tmp_path):
    checkpoint(tmp_path / "c.ckpt")
    saved = torch.load(tmp_path / "c.ckpt", weights_only=True)
    saved["workbench"] |= {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear"}
    torch.save(saved, tmp_path / "c.ckpt")
    model, preprocess = workbench.load(tmp_path / "c.ckpt", device="cpu")
    assert model.architecture.mean == (0.5, 0.5, 0.5) and model.architecture.interpolation == "bilinear"
    white = preprocess(Image.new("RGB", (32, 32), "white"))
    assert torch.equal(white, torch.full((3, 32, 32), 2.0))


def test_an_archive_of_openais_says_enough_by_its_shapes(tmp_path, monkeypatch):
    source = create_model("tiny-vit", image_size=40).eval()
    example = torch.randn(1, 3, 40, 40), torch.tensor([[49406, 5, 49407]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and OpenAI's files are made of it
        torch.jit.trace(source, example, check_trace=False).save(str(tmp_path / "tiny.pt"))
    model, _ = workbench.load(tmp_path / "tiny.pt", device="cpu")
    assert model.architecture == source.architecture
    monkeypatch.setitem(zoo.ZOO, "ViT-B/32", zoo.Entry("tiny.pt", zoo.sha256(tmp_path / "tiny.pt")))
    model, _ = workbench.load("ViT-B/32", device="cpu", download_root=tmp_path)
    assert torch.equal(model.visual.conv1.weight, source.visual.conv1.weight)


def test_a_bare_state_dict_must_be_told_its_activation(tmp_path):
    source = create_model("tiny-vit", activation="gelu")
    torch.save(source.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(UserError, match=r"does not say which activation .*create_model\('tiny-vit', "):
        workbench.load(tmp_path / "bare.pt")
    with pytest.raises(UserError, match="does not say which activation"):
        workbench.create_model("tiny-vit", weights=tmp_path / "bare.pt")
    model = workbench.create_model("tiny-vit", weights=tmp_path / "bare.pt", activation="gelu")
    assert model.architecture.activation == "gelu"
    assert torch.equal(model.text_projection, source.text_projection)


def test_load_of_nothing():
    with pytest.raises(UserError, match=r"is it 'RN50'\?"):
        workbench.load("rn50")


def test_a_device_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU that torch can use, so device 'cuda:0'"):
        workbench.load(tmp_path / "never read", device="cuda:0")


def test_create_model():
    assert workbench.create_model("tiny-vit", image_size=16).visual.positional_embedding.shape == (5, 64)
    with torch.device("meta"):
        assert workbench.create_model("ViT-L/14").logit_scale.is_meta


def test_tokens_are_a_batch():
    assert workbench.tokenize("hello world").tolist()[0][:4] == [49406, 3306, 1002, 49407]


def test_loading_leaves_random_state_alone(tmp_path):
    checkpoint(tmp_path / "c.ckpt")
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    workbench.load(tmp_path / "c.ckpt", device="cpu")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
