"""What is not the weights of a CLIP, or not all of them, is refused in one sentence that says what it is."""

import json
import struct

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

import workbench
from workbench.errors import UserError
from workbench.models import ARCHITECTURES, create_model
from workbench.weights import checkpoint_architecture, description, openclip, read_weights
from workbench.weights.family import other_family


def refused(path, said):
    with pytest.raises(UserError, match=said) as raised:
        workbench.load(path)
    assert "\n" not in str(raised.value) and path.name in str(raised.value)


def test_a_pointer_of_git_lfs(tmp_path):
    for name in ("model.safetensors", "ViT-B-32.pt"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:40d3\nsize 353976522\n")
        refused(tmp_path / name, "pointer of Git LFS.*git lfs pull")


@pytest.mark.parametrize("text", ["<!DOCTYPE html><html>404</html>", "\n <html>", "<?xml version='1.0'?><Error/>"])
def test_an_error_page_saved_as_weights(tmp_path, text):
    for name in ("RN50.pt", "model.safetensors"):
        (tmp_path / name).write_text(text)
        refused(tmp_path / name, "web page")


@pytest.mark.parametrize("name", ["empty.pt", "empty.safetensors"])
def test_an_empty_file(tmp_path, name):
    (tmp_path / name).touch()
    refused(tmp_path / name, "is empty")


@pytest.fixture
def safe(tmp_path):
    save_file(create_model("tiny-vit").state_dict(), tmp_path / "m.safetensors", {"workbench": "{}"})
    return tmp_path / "m.safetensors"


def with_header(path, change):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


LIES = {
    "more rows than there are": lambda header: header["ln_final.weight"].update(shape=[10**9]),
    "bytes beyond the end": lambda header: header["ln_final.weight"].update(data_offsets=[0, 10**12]),
    "overlapping": lambda header: header["ln_final.weight"].update(
        data_offsets=header["ln_final.bias"]["data_offsets"]
    ),
    "a type that does not exist": lambda header: header["ln_final.weight"].update(dtype="F33"),
    "no tensor": lambda header: header.update({"ln_final.weight": 3}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies(safe, lie):
    with_header(safe, LIES[lie])
    refused(safe, "cannot be read as safetensors")


@pytest.mark.parametrize("share", [0.0001, 0.5, 0.999])
def test_safetensors_cut_short(safe, share):
    data = safe.read_bytes()
    safe.write_bytes(data[: max(1, int(share * len(data)))])
    refused(safe, "cannot be read as safetensors")


def test_a_header_longer_than_the_file(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    refused(path, "cannot be read as safetensors")


@pytest.mark.parametrize("about", ["[1]", "3", "not json", '{"architecture": "tiny-vit", "activation": "relu"}'])
def test_a_description_that_makes_no_sense(tmp_path, about):
    path = tmp_path / "m.safetensors"
    save_file(create_model("tiny-vit").state_dict(), path, {"workbench": about})
    refused(path, "cannot be read|makes no sense|unknown|does not say")


def test_descriptions_with_wrong_parts(tmp_path):
    model = create_model("tiny-vit")
    good = description(model.architecture)
    for change in ({"vision": {"kind": "cnn"}}, {"text": {"width": "64", "heads": 2, "layers": 2}}, {"text": None}):
        torch.save({"state_dict": model.state_dict(), "workbench": good | change}, tmp_path / "c.ckpt")
        refused(tmp_path / "c.ckpt", "makes no sense|whole number")


OTHERS = {
    "ResNet of torchvision": lambda: torchvision.models.resnet18().state_dict(),
    "ViT of timm": lambda: timm.create_model("vit_tiny_patch16_224").state_dict(),
    "LoRA adapter": lambda: {"base.q.lora_A.weight": torch.zeros(1)},
    "SigLIP": lambda: {"vision_model.head.probe": torch.zeros(1), "text_model.head.weight": torch.zeros(1)},
    "timm image tower": lambda: {"visual.head.proj.weight": torch.zeros(1), "visual.trunk.a": torch.zeros(1)},
    "image tower of a CLIP alone": lambda: {"visual.conv1.weight": torch.zeros(1)},
    "keys such as a, b": lambda: {"a": torch.zeros(1), "b": torch.zeros(1)},
    "no tensor": dict,
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_family_is_named(tmp_path, what):
    torch.save(OTHERS[what](), tmp_path / "other.pt")
    refused(tmp_path / "other.pt", f"no CLIP that this package reads.*{what}")


def test_every_architecture_of_ours_is_a_clip():
    for name in ("tiny-vit", "tiny-rn", "timm/resnet18"):
        assert other_family(create_model(name).state_dict().keys()) is None


def changed_config(tmp_path, safe, **changes):
    """A file with the configuration of OpenCLIP's beside it, some of whose entries are wrong."""
    save_file(create_model("tiny-vit").state_dict(), safe)
    config = {"model_cfg": openclip.write_config(ARCHITECTURES["tiny-vit"])["model_cfg"]}
    for key, value in changes.items():
        *path, last = key.split("__")
        place = config
        for part in path:
            place = place[part]
        place[last] = value
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))


NONSENSE = {
    "model_cfg": [None, True, 0, 2.5, [], "x"],
    "model_cfg__vision_cfg": [None, [], 3],
    "model_cfg__vision_cfg__image_size": [float("inf"), -8, 33, "x", None, 10**9],
    "model_cfg__vision_cfg__head_width": [0, -1, 48, 10**9, "x"],
    "model_cfg__vision_cfg__layers": [10**9, [1, 2], -1, 1.5, True],
    "model_cfg__vision_cfg__width": [10**9, 0, "64"],
    "model_cfg__text_cfg__heads": [3, 10**9, 0],
    "model_cfg__text_cfg__context_length": [10**12, 0],
    "model_cfg__text_cfg__vocab_size": [10**11],
    "model_cfg__embed_dim": [10**9, None],
    "preprocess_cfg": [
        {"mean": "x"},
        {"mean": [0.5]},
        {"std": [0, 0, 0]},
        {"mean": [1e400] * 3},
        {"interpolation": "foo"},
    ],
}


@pytest.mark.parametrize("key", NONSENSE)
def test_configurations_that_no_model_has(tmp_path, safe, key):
    for value in NONSENSE[key]:
        changed_config(tmp_path, safe, **{key: value})
        with pytest.raises(UserError) as raised:
            workbench.load(safe)
        assert "\n" not in str(raised.value), value


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": 3},
        {
            "architecture": "tiny-vit",
            "vision": {"kind": "vit", "patch_size": 8, "width": 64, "layers": 10**7, "heads": 2},
        },
        {"vision": {"kind": "resnet", "layers": 3, "width": 8, "heads": 4}},
        {"vision": {"kind": "timm", "name": "hf-hub:attacker/evil"}},
        {"vision": {"kind": "timm", "name": "local-dir:/tmp/evil"}},
        {"vision": {"kind": "timm", "name": 5}},
        {"image_size": 8 * 10**9},
        {"image_size": 4096, "embed_dim": 60000},
        {"logit_bias": "yes"},
        {"mean": None},
        {"std": [0.0, 0.0, 0.0]},
        {"mean": [10**400, 0, 0]},
        {"activation": ["gelu"]},
    ],
)
def test_descriptions_that_no_model_has(tmp_path, change):
    model = create_model("tiny-vit")
    state_dict = {f"clip.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state_dict, "workbench": description(model.architecture) | change}, tmp_path / "c.ckpt")
    with pytest.raises(UserError):
        workbench.load(tmp_path / "c.ckpt")
    with pytest.raises(UserError):
        checkpoint_architecture(tmp_path / "c.ckpt")


STRANGE = {
    "repeated in place": lambda value: value[:1, :1].clone().expand(value.shape),
    "sparse": lambda value: value.to_sparse(),
    "without values": lambda value: value.to("meta"),
    "complex": lambda value: value.to(torch.complex64),
    "integers": lambda value: value.to(torch.int8),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_tensors_that_no_parameter_could_be(tmp_path, kind):
    state_dict = create_model("tiny-vit").state_dict()
    state_dict["text_projection"] = STRANGE[kind](state_dict["text_projection"])
    torch.save(state_dict, tmp_path / "strange.pt")
    refused(tmp_path / "strange.pt", "text_projection is no tensor that a parameter could be|cannot be read")


def test_a_run_without_a_state_dict(tmp_path):
    about = description(ARCHITECTURES["tiny-vit"])
    for content in ({}, {"state_dict": [1]}, {"state_dict": {1: torch.zeros(1)}}, {"state_dict": {"clip.a": 1}}):
        torch.save({"workbench": about} | content, tmp_path / "c.ckpt")
        with pytest.raises(UserError):
            checkpoint_architecture(tmp_path / "c.ckpt")


def test_keys_that_name_no_parameter(tmp_path):
    torch.save({1: torch.zeros(1)}, tmp_path / "numbered.pt")
    refused(tmp_path / "numbered.pt", "has the key 1")
    torch.save({"module." * 3000 + "x": torch.zeros(1)}, tmp_path / "deep.pt")
    refused(tmp_path / "deep.pt", "no CLIP")


@pytest.mark.parametrize("shape", [(), (5,), (3, 3, 64), (0, 64), (51, 64)])
def test_position_embeddings_of_no_shape(tmp_path, shape):
    for key in ("positional_embedding", "visual.positional_embedding"):
        state_dict = create_model("tiny-vit").state_dict()
        state_dict[key] = torch.zeros(shape)
        torch.save(state_dict, tmp_path / "positions.pt")
        if key == "positional_embedding" and shape == (51, 64):
            continue  # a shorter context
        with pytest.raises(UserError):
            workbench.create_model(
                "tiny-vit", weights=tmp_path / "positions.pt", activation="gelu", interpolate_positions=True
            )


@pytest.mark.parametrize("source", ["", "x" * 5000, "openai"])
def test_names_of_nothing(source):
    with pytest.raises(UserError):
        workbench.load(source)


def test_an_empty_folder(tmp_path):
    (tmp_path / "model").mkdir()
    refused(tmp_path / "model", "has no configuration .*no files")


def test_a_folder_with_a_configuration_alone(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    refused(tmp_path, "open_clip_config.json, but none of open_clip_model.safetensors")


def test_a_configuration_that_is_no_json(tmp_path, safe):
    save_file(create_model("tiny-vit").state_dict(), safe)
    for text, said in {"{": "no readable JSON", "[]": "holds a list"}.items():
        (tmp_path / "open_clip_config.json").write_text(text)
        with pytest.raises(UserError, match=said):
            read_weights(safe)
