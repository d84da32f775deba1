"""Folders of Hugging Face's CLIPModel, made by transformers itself."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import workbench
from workbench.errors import Notice, UserError
from workbench.models import ARCHITECTURES, create_model
from workbench.weights import huggingface

BOTH = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "hidden_act": "gelu"}
TEXT = BOTH | {"num_attention_heads": 2, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
VISION = BOTH | {"num_attention_heads": 4, "image_size": 48, "patch_size": 8}


def folder(path, activation="gelu", safe=True):
    torch.manual_seed(1)
    text, vision = (part | {"hidden_act": activation} for part in (TEXT, VISION))
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
    peer = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    peer.save_pretrained(path)
    if not safe:
        torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
        (path / "model.safetensors").unlink()
    size = {"shortest_edge": 48}
    transformers.CLIPImageProcessor(size=size, crop_size={"height": 48, "width": 48}).save_pretrained(path)
    return path, peer


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_a_folder(tmp_path, activation, safe):
    path, peer = folder(tmp_path / "model", activation, safe)
    model, preprocess = workbench.load(path, device="cpu")
    assert model.architecture.activation == activation and model.architecture.vision.heads == 4
    images, tokens = torch.randn(2, 3, 48, 48), workbench.tokenize(["a red circle", "rain"]).long()
    with torch.no_grad():
        found = peer(input_ids=tokens, pixel_values=images)
        torch.testing.assert_close(model(images, tokens)[0], found.logits_per_image, rtol=1e-5, atol=1e-5)


def test_the_files_own_preparation_of_pictures(tmp_path):
    path, _ = folder(tmp_path / "model")
    about = json.loads((path / "preprocessor_config.json").read_text())
    about |= {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5], "resample": 2}
    (path / "preprocessor_config.json").write_text(json.dumps(about))
    described = workbench.load(path, device="cpu")[0].architecture
    assert (described.mean, described.interpolation) == ((0.1, 0.2, 0.3), "bilinear")


def test_what_transformers_5_writes_in_place_of_the_preprocessor(tmp_path):
    path, _ = folder(tmp_path / "model")
    about = json.loads((path / "preprocessor_config.json").read_text())
    (path / "preprocessor_config.json").unlink()
    about |= {"image_mean": [0.1, 0.2, 0.3], "resample": 2}
    (path / "processor_config.json").write_text(
        json.dumps({"image_processor": about, "processor_class": "CLIPProcessor"})
    )
    described = workbench.load(path, device="cpu")[0].architecture
    assert (described.mean, described.interpolation) == ((0.1, 0.2, 0.3), "bilinear")


@pytest.mark.parametrize(
    "change",
    [
        {"size": {"height": 48, "width": 48}},
        {"size": {"shortest_edge": 64}},
        {"do_center_crop": False},
        {"do_resize": False},
        {"rescale_factor": 1 / 127.5},
    ],
)
def test_pictures_that_are_prepared_otherwise_are_refused(tmp_path, change):
    path, _ = folder(tmp_path / "model")
    about = json.loads((path / "preprocessor_config.json").read_text()) | change
    (path / "preprocessor_config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="Pictures are prepared in a way that this package does not have"):
        workbench.load(path)


def test_that_nothing_is_said_of_pictures_is_said(tmp_path):
    path, _ = folder(tmp_path / "model")
    (path / "preprocessor_config.json").unlink()
    with pytest.warns(Notice, match="no preprocessor_config.json: pictures are prepared as for OpenAI's"):
        workbench.load(path, device="cpu")


def test_resizing_that_the_other_does_not_have(tmp_path):
    path, _ = folder(tmp_path / "model")
    about = json.loads((path / "preprocessor_config.json").read_text()) | {"resample": 9}
    (path / "preprocessor_config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="preprocessor's resample is 9"):
        workbench.load(path)
    with pytest.raises(UserError, match="cannot resize by nearest-exact"):
        huggingface.write_preprocessor(ARCHITECTURES["tiny-vit"].changed(interpolation="nearest-exact"))


def test_sharded_weights_are_named(tmp_path):
    path, peer = folder(tmp_path / "model")
    (path / "model.safetensors").unlink()
    peer.save_pretrained(path, max_shard_size="5MB")
    with pytest.raises(UserError, match="sharded: save them again with a larger max_shard_size"):
        workbench.load(path)


def test_a_folder_with_both_configurations_is_of_the_weights_that_are_there(tmp_path):
    path, _ = folder(tmp_path / "model")
    (path / "open_clip_config.json").write_text("{}")
    assert workbench.load(path, device="cpu")[0].architecture.vision.heads == 4


def test_keys_there_and_back_bit_for_bit():
    model = create_model("tiny-vit")
    theirs = huggingface.from_openai_keys(model.state_dict())
    back = huggingface.to_openai_keys(theirs)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-L/14@336px", "tiny-vit"])
def test_configurations_there_and_back(name):
    described = ARCHITECTURES[name].changed(interpolation="bilinear", mean=(0.5, 0.5, 0.5))
    config, pictures = huggingface.write_config(described), huggingface.write_preprocessor(described)
    assert huggingface.read_config(config, pictures, "x") == described


def test_the_keys_are_those_of_transformers():
    described = ARCHITECTURES["ViT-B/16"]
    with torch.device("meta"):
        peer = transformers.CLIPModel(transformers.CLIPConfig(**huggingface.write_config(described)))
        ours = huggingface.from_openai_keys(create_model(described).state_dict())
    shapes = {key: value.shape for key, value in peer.state_dict().items()}
    assert {key: value.shape for key, value in ours.items()} == shapes


def test_a_configuration_of_2021_means_what_it_says_twice():
    found = huggingface.read_config(
        {"model_type": "clip", "text_config": {"hidden_size": 512}, "text_config_dict": TEXT, "vision_config": VISION}
        | {"projection_dim": 32},
        None,
        "x",
    )
    assert found.text.width == 64 and found.vision.heads == 4
    twice = {"text_config": {"hidden_act": "gelu"}, "text_config_dict": {"hidden_size": 512}}
    theirs = transformers.CLIPConfig(**twice).text_config.hidden_act
    assert theirs == "quick_gelu", "what the second leaves out has its default, whatever the first says"
    assert huggingface.read_config({"model_type": "clip", **twice}, None, "x").activation == theirs
    assert huggingface.read_config({"model_type": "clip"}, None, "x") == ARCHITECTURES["ViT-B/32"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "siglip"}, "x is of a 'siglip'"),
        ({"text_config": TEXT | {"hidden_act": "quick_gelu"}}, "activation is gelu and quick_gelu"),
        ({"vision_config": VISION | {"intermediate_size": 100}}, "vision_config.intermediate_size is 100"),
        ({"text_config": TEXT | {"layer_norm_eps": 1e-6}}, "text_config.layer_norm_eps is 1e-06"),
        ({"vision_config": 3}, "no complete configuration"),
    ],
)
def test_other_models_are_refused(change, said):
    config = {"model_type": "clip", "text_config": TEXT, "vision_config": VISION} | change
    with pytest.raises(UserError, match=said):
        huggingface.read_config(config, None, "x")


def test_a_missing_part_is_named(tmp_path):
    path, _ = folder(tmp_path / "model")
    tensors = load_file(path / "model.safetensors")
    del tensors["text_model.encoder.layers.1.self_attn.k_proj.weight"]
    save_file(tensors | {"text_model.extra": torch.zeros(1)}, path / "model.safetensors")
    with pytest.raises(UserError, match=r"1 missing \(transformer.resblocks.1.attn.in_proj_weight\).*1 unexpected"):
        workbench.load(path, device="cpu")


def test_a_file_without_its_configuration(tmp_path):
    path, _ = folder(tmp_path / "model")
    (path / "config.json").unlink()
    with pytest.raises(UserError, match="keys but no config.json beside it"):
        workbench.load(path / "model.safetensors")
    with pytest.raises(UserError, match="has no configuration .*in it are model.safetensors"):
        workbench.load(path)


def test_models_that_it_cannot_express():
    with pytest.raises(UserError, match="RN50 has not; export it to open_clip"):
        huggingface.write_config(ARCHITECTURES["RN50"])
    with pytest.raises(UserError, match="no logit_bias"):
        huggingface.write_config(ARCHITECTURES["tiny-vit"].changed(logit_bias=True))
