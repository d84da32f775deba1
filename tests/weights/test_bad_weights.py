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
from workbench.models import create_model
from workbench.weights import description, read_weights
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


def test_an_empty_folder(tmp_path):
    (tmp_path / "model").mkdir()
    refused(tmp_path / "model", "has no configuration .*no files")


def test_a_folder_with_a_configuration_alone(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    refused(tmp_path, "open_clip_config.json but none of open_clip_model.safetensors")


def test_a_configuration_that_is_no_json(tmp_path, safe):
    save_file(create_model("tiny-vit").state_dict(), safe)
    for text, said in {"{": "no readable JSON", "[]": "holds a list"}.items():
        (tmp_path / "open_clip_config.json").write_text(text)
        with pytest.raises(UserError, match=said):
            read_weights(safe)
