"""OpenCLIP's files, made by open_clip itself, and its configurations."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

import workbench
from workbench.errors import UserError
from workbench.models import ARCHITECTURES, OPENAI_ARCHITECTURES
from workbench.models.architectures import ResNetConfig, ViTConfig
from workbench.weights import openclip, read_weights

VIT = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
RESNET = VIT | {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}}
KINDS = {
    "vit": VIT,
    "vit quick_gelu": VIT | {"quick_gelu": True},
    "resnet": RESNET,
    "sigmoid": VIT | {"init_logit_bias": -10.0},
    "custom text": VIT | {"custom_text": True, "quick_gelu": True},
}


def peer(config):
    torch.manual_seed(1)
    kind = open_clip.model.CustomTextCLIP if config.get("custom_text") else open_clip.model.CLIP
    return kind(**{key: value for key, value in config.items() if key != "custom_text"}).eval()


def folder(path, config, state_dict, pictures=None):
    path.mkdir()
    about = {"model_cfg": config} | ({"preprocess_cfg": pictures} if pictures else {})
    (path / "open_clip_config.json").write_text(json.dumps(about))
    save_file({key: value.contiguous() for key, value in state_dict.items()}, path / "open_clip_model.safetensors")
    return path


def assert_same_logits(model, other):
    images = torch.randn(3, 3, model.architecture.image_size, model.architecture.image_size)
    tokens = workbench.tokenize(["a red circle", "rain", "one two three four five"])
    with torch.no_grad():
        image, text, scale, *bias = other(images, tokens)
        expected = scale * image @ text.T + (bias[0] if bias else 0.0)
        torch.testing.assert_close(model(images, tokens)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder(tmp_path, kind):
    other = peer(KINDS[kind])
    model, _ = workbench.load(folder(tmp_path / "model", KINDS[kind], other.state_dict()), device="cpu")
    assert model.architecture.activation == ("quick_gelu" if KINDS[kind].get("quick_gelu") else "gelu")
    if kind == "sigmoid":
        with torch.no_grad():
            other.logit_bias.fill_(-3.5)
            model.logit_bias.fill_(-3.5)
    assert_same_logits(model, other)


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pt"])
def test_a_file_with_its_configuration_beside_it(tmp_path, suffix):
    other = peer(VIT)
    path = tmp_path / f"small.{suffix}"
    if suffix == "safetensors":
        save_file(other.state_dict(), path)
    else:
        torch.save(other.state_dict(), path)
    (tmp_path / "small.json").write_text(json.dumps(VIT))
    assert_same_logits(workbench.load(path, device="cpu")[0], other)


def test_pictures_are_prepared_as_the_configuration_says(tmp_path):
    pictures = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "shortest"}
    path = folder(tmp_path / "model", VIT, peer(VIT).state_dict(), pictures)
    model, _ = workbench.load(path, device="cpu")
    described = model.architecture
    assert described.mean == described.std == (0.5, 0.5, 0.5) and described.interpolation == "bilinear"
    assert workbench.create_model("tiny-vit", weights=path).architecture == described
    with pytest.raises(UserError, match=r"normalised with mean \(0.5, 0.5, 0.5\)"):
        workbench.create_model("tiny-vit", weights=path, mean=(0.4, 0.4, 0.4))


@pytest.mark.parametrize(
    ("name", "activation"),
    [("2024-model_ViT-B-32-lr_1e-4", "gelu"), ("2024-model_ViT-B-32-quickgelu-lr_1e-4", "quick_gelu")],
)
def test_a_training_checkpoint(tmp_path, name, activation):
    other = peer(VIT | {"quick_gelu": activation == "quick_gelu"})
    optimizer = torch.optim.AdamW(other.parameters())
    saved = {
        "epoch": 3,
        "name": name,
        "state_dict": {f"module.{key}": value for key, value in other.state_dict().items()},
        "optimizer": optimizer.state_dict(),
    }
    torch.save(saved, tmp_path / "epoch_3.pt")
    weights = read_weights(tmp_path / "epoch_3.pt")
    assert (weights.architecture.activation, weights.stated) == (activation, activation == "quick_gelu")
    if activation == "gelu":
        with pytest.warns(UserWarning, match="does not say its activation; taken as gelu"):
            model, _ = workbench.load(tmp_path / "epoch_3.pt", device="cpu")
        # A rule is no statement: who knows better can say so.
        known = workbench.create_model("tiny-vit", weights=tmp_path / "epoch_3.pt", activation="quick_gelu")
        assert known.architecture.activation == "quick_gelu"
    else:
        model, _ = workbench.load(tmp_path / "epoch_3.pt", device="cpu")
        with pytest.raises(UserError, match="trained with quick_gelu and the model has gelu"):
            workbench.create_model("tiny-vit", weights=tmp_path / "epoch_3.pt", activation="gelu")
    assert_same_logits(model, other)


def test_a_checkpoint_of_somebody_elses_trainer_hides_its_activation(tmp_path):
    torch.save({"epoch": 1, "loss": 0.3, "state_dict": peer(VIT).state_dict()}, tmp_path / "mine.pt")
    with pytest.raises(UserError, match="does not say which activation"):
        workbench.load(tmp_path / "mine.pt")


def test_how_pictures_are_resized_is_the_weights(tmp_path):
    path = folder(tmp_path / "model", VIT, peer(VIT).state_dict(), {"interpolation": "bilinear"})
    assert workbench.create_model("tiny-vit", weights=path).architecture.interpolation == "bilinear"
    with pytest.raises(UserError, match="resized by bilinear; the model is for .*bicubic"):
        workbench.create_model("tiny-vit", weights=path, interpolation="bicubic")


def test_a_bias_is_the_weights_under_any_name(tmp_path):
    path = folder(tmp_path / "model", KINDS["sigmoid"], peer(KINDS["sigmoid"]).state_dict())
    assert workbench.create_model("tiny-vit", weights=path).logit_bias is not None


def test_published_configurations_of_openais_architectures():
    for name in OPENAI_ARCHITECTURES:
        theirs = name.replace("/", "-").replace("@336px", "-336") + "-quickgelu"
        found = openclip.read_config(open_clip.get_model_config(theirs), theirs)
        assert found == ARCHITECTURES[name]
        assert openclip.read_config(openclip.write_config(found), "ours") == found


def test_every_configuration_of_theirs_is_read_or_refused_for_a_reason():
    read, refused = [], []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        try:
            found = openclip.read_config(config, name)
        except UserError as error:
            assert name in str(error) and "which this package's towers do not have" in str(error)
            refused.append(name)
        else:
            with torch.device("meta"):
                ours = workbench.create_model("ViT-B/32").__class__(found)
                theirs = open_clip.model.CLIP(
                    **{key: value for key, value in config.items() if key not in ("custom_text", "init_logit_scale")}
                )
            shapes = {key: value.shape for key, value in theirs.state_dict().items()}
            assert {key: value.shape for key, value in ours.state_dict().items()} == shapes, name
            read.append(name)
    assert {"ViT-H-14", "ViT-L-14-336", "RN50", "ViT-B-32-256"} <= set(read)
    assert {"coca_ViT-B-32", "convnext_base", "ViT-B-16-SigLIP", "ViT-bigG-14", "xlm-roberta-base-ViT-B-32"} <= set(
        refused
    )


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("vision_cfg", {"timm_model_name": "convnext_base"}, "timm_model_name is 'convnext_base'.*timm/<backbone>"),
        ("vision_cfg", {"mlp_ratio": 3.0}, "vision_cfg.mlp_ratio is 3.0"),
        ("vision_cfg", {"image_size": [32, 64]}, "squares alone"),
        ("text_cfg", {"pool_type": "last"}, "text_cfg.pool_type is 'last'"),
        ("text_cfg", {"invented": 1}, "text_cfg.invented is 1"),
        ("text_cfg", {"width": None}, "width is None; it must be a whole number"),
    ],
)
def test_parts_that_our_towers_lack(part, change, said):
    with pytest.raises(UserError, match=said):
        openclip.read_config(VIT | {part: VIT[part] | change}, "x.json")


def test_incomplete_configurations():
    with pytest.raises(UserError, match="x.json is no complete configuration .*vision_cfg"):
        openclip.read_config({"embed_dim": 3}, "x.json")
    with pytest.raises(UserError, match="resized by 'squash'"):
        openclip.read_config({"model_cfg": VIT, "preprocess_cfg": {"resize_mode": "squash"}}, "x.json")


def test_heads_are_those_of_the_configuration():
    found = openclip.read_config(VIT | {"vision_cfg": VIT["vision_cfg"] | {"head_width": 16}}, "x")
    assert found.vision == ViTConfig(8, 64, 2, 4) and found.name == "custom"
    assert openclip.read_config(RESNET, "x").vision == ResNetConfig((1, 1, 1, 1), 8, 4)
