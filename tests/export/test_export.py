"""Each format, written by the command, loaded by the other library and read back by ours."""

import copy
import importlib.util
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import workbench
from workbench.errors import UserError
from workbench.export import open_clip as open_clip_format
from workbench.export import openai, torch_export
from workbench.export.comparison import Encoders, largest_differences
from workbench.main import main
from workbench.models import create_model
from workbench.models.architectures import Architecture, ResNetConfig, TextConfig, ViTConfig
from workbench.tokenizer import tokenize
from workbench.weights import description, read_weights
from workbench.weights.half_precision import to_half

TEXT = TextConfig(64, 1, 3)
MODELS = {
    "vit": Architecture("custom", 32, 32, ViTConfig(8, 64, 2, 1), TEXT),
    "vit gelu": Architecture("custom", 32, 32, ViTConfig(8, 128, 1, 4), TEXT, activation="gelu"),
    "resnet": Architecture("custom", 32, 64, ResNetConfig((1, 2, 1, 1), 8, 4), TEXT),
    "sigmoid": Architecture("custom", 32, 32, ViTConfig(8, 64, 2, 1), TEXT, activation="gelu", logit_bias=True),
    "pictures": Architecture("custom", 32, 32, ViTConfig(8, 64, 1, 1), TEXT, mean=(0.5, 0.5, 0.5), std=(0.2, 0.3, 0.4)),
}
READ_BACK = {
    "openai": "custom.pt",
    "open_clip": ".",
    "huggingface": ".",
    "safetensors": "model.safetensors",
}
CANNOT = {
    ("openai", "vit gelu"): "OpenAI's code has .* with gelu",
    ("openai", "sigmoid"): "OpenAI's code has",
    ("openai", "pictures"): "OpenAI's code normalises pictures with its own mean",
    ("huggingface", "resnet"): "has a ViT as image tower",
    ("huggingface", "sigmoid"): "no logit_bias",
}
FORMATS = ("openai", "open_clip", "huggingface", "onnx", "torch_export", "safetensors")


def model(kind):
    torch.manual_seed(1)
    made = create_model(MODELS[kind])
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        if made.logit_bias is not None:
            made.logit_bias.fill_(-3.25)
    return made.eval()


def checkpoint(kind):
    made = model(kind)
    state_dict = {f"clip.{key}": value for key, value in made.state_dict().items()}
    torch.save({"state_dict": state_dict, "workbench": description(made.architecture)}, "last.ckpt")
    return made


def run(to, *more, verb="export", source="--checkpoint", code=0):
    assert main([verb, source, "last.ckpt", "--to", to, "--output", "out/model", *more]) == code


@pytest.mark.parametrize(
    ("to", "kind"),
    # What programs compute does not depend on how pictures are prepared, nor how on which activation it is.
    [(to, kind) for to in FORMATS for kind in MODELS if to in READ_BACK or kind not in ("pictures", "vit gelu")],
)
def test_every_format_is_written_and_proven(capsys, to, kind):
    made = checkpoint(kind)
    if (to, kind) in CANNOT:
        run(to, code=2)
        assert_refused(capsys, CANNOT[to, kind])
        return
    run(to)
    said = capsys.readouterr().out
    assert "Largest differences: image features " in said and "logits " in said and "Load it with: " in said
    assert [path.name for path in Path("out").iterdir()] == ["model"]
    if to in READ_BACK:
        weights = read_weights(Path("out/model", READ_BACK[to]))
        assert weights.architecture == made.architecture
        for key, value in made.state_dict().items():
            assert torch.equal(weights.state_dict[key], value), key


def assert_refused(capsys, said):
    assert re.search(said, capsys.readouterr().err)
    assert not Path("out").exists() or list(Path("out").iterdir()) == []


@pytest.mark.parametrize("to", ["openai", "open_clip", "huggingface", "safetensors"])
def test_half_precision_is_stored_by_the_rule(to):
    made = checkpoint("vit")
    run(to, "--precision", "fp16")
    found = read_weights(Path("out/model", READ_BACK[to])).state_dict
    for key, value in to_half(copy.deepcopy(made)).state_dict().items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


def test_programs_are_fp32_alone(capsys):
    checkpoint("vit")
    run("onnx", "--precision", "fp16", code=2)
    assert_refused(capsys, "--to onnx writes fp32")


def test_hugging_faces_processor_prepares_what_ours_does():
    import transformers

    checkpoint("pictures")
    run("huggingface")
    processor = transformers.CLIPProcessor.from_pretrained("out/model")
    peer = transformers.CLIPModel.from_pretrained("out/model").eval()
    ours, preprocess = workbench.load("out/model", device="cpu")
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((32, 32))
    texts = ["a photo of a cat", "Two   DOGS & 17 balloons"]
    inputs = processor(text=texts, images=picture, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = ours(preprocess(picture)[None], tokenize(texts))[0]
        torch.testing.assert_close(peer(**inputs).logits_per_image, expected, rtol=1e-4, atol=1e-4)


def test_programs_say_what_is_needed_to_use_them():
    import onnxruntime

    made = checkpoint("sigmoid")
    run("onnx")
    about = json.loads(Path("out/model/clip.json").read_text())
    assert sum(path.stat().st_size for path in Path("out/model").iterdir()) < 1.2 * Path("last.ckpt").stat().st_size
    assert about["image_size"] == 32 and about["logit_bias"] == -3.25
    assert about["logit_scale"] == pytest.approx(float(made.logit_scale.detach().exp()))
    for name in ("image", "text"):
        [entry] = onnxruntime.InferenceSession(f"out/model/{name}.onnx").get_inputs()
        assert entry.name == name and entry.shape[0] == "batch"


@pytest.mark.parametrize("to", ["open_clip", "torch_export"])
def test_a_difference_above_the_tolerance_leaves_nothing(capsys, to, monkeypatch):
    checkpoint("vit")
    module = importlib.import_module(f"workbench.export.{to}")
    write = module.write

    def slightly_wrong(made, folder, origin):
        wrong = copy.deepcopy(made)
        with torch.no_grad():
            wrong.ln_final.weight[0] += 0.1
        return write(wrong, folder, origin)

    monkeypatch.setattr(module, "write", slightly_wrong)
    run(to, code=2)
    assert_refused(capsys, "differs by .*, more than --tolerance 1e-04; nothing is written")


@pytest.mark.parametrize("to", ["openai", "open_clip", "onnx"])  # the others have open_clip's writer
def test_a_disk_that_fills_up_leaves_nothing(to):
    """A real limit on the size of files, which writers meet in their own ways."""
    checkpoint("vit")
    limit = 1_000_000

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [
        sys.executable,
        "-m",
        "workbench",
        "export",
        "--checkpoint",
        "last.ckpt",
        "--to",
        to,
        "--output",
        "out/model",
    ]
    found = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True)
    assert found.returncode == 2 and "cannot be written" in found.stderr and "Traceback" not in found.stderr, (
        found.stderr
    )
    assert list(Path("out").iterdir()) == []


def test_a_disk_that_is_too_small_is_said_before(capsys, monkeypatch):
    checkpoint("vit")
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 10**6))
    run("torch_export", code=2)
    assert_refused(capsys, "needs 2. MB, and 1 MB are free there")


def test_an_output_below_a_file(capsys):
    checkpoint("vit")
    assert main(["export", "--checkpoint", "last.ckpt", "--to", "safetensors", "--output", "last.ckpt/sub"]) == 2
    assert "last.ckpt/sub cannot be written" in capsys.readouterr().err
    assert main(["export", "--checkpoint", "nowhere.ckpt", "--to", "safetensors", "--output", "out"]) == 2
    assert "There is no checkpoint nowhere.ckpt" in capsys.readouterr().err


def test_where_weights_came_from_goes_with_them():
    checkpoint("vit")
    run("safetensors")
    with safe_open("out/model/model.safetensors", "pt") as file:
        origin = json.loads(file.metadata()["workbench"])["weights_source"]
    assert origin["source"] == "last.ckpt" and len(origin["sha256"]) == 64


def test_a_full_disk_leaves_nothing(capsys, monkeypatch):
    checkpoint("vit")

    def full(made, folder, origin):
        (folder / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(open_clip_format, "write", full)
    run("open_clip", code=2)
    assert_refused(capsys, "cannot be written .No space left on device")


def test_a_folder_with_something_in_it_is_left_alone(capsys):
    checkpoint("vit")
    Path("out/model").mkdir(parents=True)
    Path("out/model/mine.txt").write_text("mine")
    run("safetensors", code=2)
    assert "out/model exists" in capsys.readouterr().err
    assert Path("out/model/mine.txt").read_text() == "mine"


def test_a_missing_library_is_named(capsys, monkeypatch):
    checkpoint("vit")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    run("onnx", code=2)
    assert_refused(capsys, r"needs onnxruntime, which is not installed: pip install 'clip-workbench\[export\]'")


def test_convert_takes_any_weights_and_an_activation_for_those_that_hide_it(capsys):
    made = model("vit gelu")
    torch.save(made.state_dict(), "last.ckpt")
    run("safetensors", verb="convert", source="--source", code=2)
    assert_refused(capsys, "does not say which activation")
    run("safetensors", "--activation", "gelu", verb="convert", source="--source")
    found, _ = workbench.load("out/model/model.safetensors", device="cpu")
    assert found.architecture.activation == "gelu"
    assert torch.equal(found.text_projection, made.text_projection)


def test_programs_hold_the_weights_to_the_bit(tmp_path):
    made = model("vit")
    torch_export.write(made, tmp_path, {})
    image, text = (torch.export.load(tmp_path / f"{name}.pt2").state_dict for name in ("image", "text"))
    found = {f"visual.{key}": value for key, value in image.items()}
    found |= {key.removeprefix("model."): value for key, value in text.items()}
    assert found.keys() == made.state_dict().keys()
    assert all(torch.equal(found[key], value) for key, value in made.state_dict().items())


def test_there_and_back_through_every_format_is_the_same_to_the_bit():
    made = checkpoint("vit")
    source = "last.ckpt"
    for to in ("openai", "open_clip", "huggingface", "safetensors"):
        assert main(["convert", "--source", source, "--to", to, "--output", to]) == 0
        source = str(Path(to, READ_BACK[to]))
    for key, value in read_weights(source).state_dict.items():
        assert torch.equal(value, made.state_dict()[key]), key


@pytest.mark.parametrize(
    ("change", "said"),
    [({"vision": ViTConfig(8, 64, 2, 2)}, "heads of 64"), ({"text": TextConfig(64, 4, 1)}, "heads of 64")],
)
def test_openai_has_heads_of_64(tmp_path, change, said):
    with pytest.raises(UserError, match=said):
        openai.write(create_model(MODELS["vit"].changed(**change)), tmp_path, {})


def test_a_timm_tower_goes_where_programs_go(tmp_path):
    made = create_model("timm/resnet10t", image_size=32).eval()
    torch_export.write(made, tmp_path, {})
    assert max(largest_differences(made, torch_export.reload(tmp_path)).values()) < 1e-4


def test_the_comparison_notices():
    made = model("vit")
    same = Encoders("ours", made.encode_image, made.encode_text, lambda images, tokens: made(images, tokens)[0])
    assert max(largest_differences(made, same).values()) == 0
    for part, wrong in {
        "encode_image": lambda images: made.encode_image(images) * 1.001,
        "encode_text": lambda tokens: made.encode_text(tokens) * torch.nan,
        "logits": lambda images, tokens: made(images, tokens)[1],
    }.items():
        other = copy.copy(same)
        setattr(other, part, wrong)
        assert max(largest_differences(made, other).values()) > 5e-4, part


def test_what_torch_cannot_turn_into_onnx_is_said(capsys, monkeypatch):
    checkpoint("vit")

    def refuse(*args, **kwargs):
        raise torch.onnx.OnnxExporterError("Failed to convert")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    run("onnx", code=2)
    assert_refused(capsys, r"torch .* cannot turn the image tower into ONNX \(Failed to convert\)")
