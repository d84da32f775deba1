"""OpenAI's own files, in the folder that the environment variable CLIP_WEIGHTS_DIR names.

They are not part of this project and take up to a gigabyte each, so the tests that need them are skipped without that
folder. The logits to find are in `openai_logits.json`; `CLIP_WEIGHTS_WRITE=1` has OpenCLIP's loader, transform and
tokenizer write them there, never ours, so that they stay independent of what they judge.
"""

import json
import math
import os
import warnings
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import workbench
from workbench.models import OPENAI_ARCHITECTURES, create_model
from workbench.models.architectures import Architecture, TextConfig, ViTConfig
from workbench.tokenizer import tokenize
from workbench.weights import zoo

FOLDER = os.environ.get("CLIP_WEIGHTS_DIR") and Path(os.environ["CLIP_WEIGHTS_DIR"]).expanduser().absolute()
WRITE = os.environ.get("CLIP_WEIGHTS_WRITE") == "1"
TABLE = Path(__file__).absolute().with_name("openai_logits.json")
TEXTS = ["a diagram", "a dog", "a photo of a red circle on a striped background."]
# Of logits that are a hundred times a cosine. Both sides compute in fp32; OpenAI's own test of its two loaders allows
# probabilities 0.01 and a tenth of their value.
TOLERANCE = 1e-3


def picture():
    """A red disc on stripes, in numbers that any machine computes alike; neither square nor of any model's size."""
    y, x = np.mgrid[0:300, 0:400]
    stripes = (x // 20 % 2 * 120 + y * 100 // 300).astype(np.uint8)
    pixels = np.stack([stripes, stripes, 255 - stripes], axis=-1)
    pixels[(x - 180) ** 2 + (y - 150) ** 2 < 90**2] = (220, 30, 40)
    return Image.fromarray(pixels)


def logits_of_open_clip(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TorchScript's deprecation
        model = open_clip.load_openai_model(str(path), device="cpu")
    side = model.visual.image_size
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    image = open_clip.image_transform(side, is_train=False, mean=mean, std=std)(picture())
    with torch.no_grad():
        directions, others, scale = model(image[None], open_clip.tokenize(TEXTS))
        return (scale * directions @ others.T)[0].tolist()


def check(name, path, sha256, architecture, table, write=False):
    found = zoo.sha256(path)
    assert found == sha256, f"{path} has sha256 {found}: it is not OpenAI's {name}"
    model, transform = workbench.load(path, device="cpu")
    assert model.architecture == architecture
    rows = json.loads(table.read_text()) if table.is_file() else {}
    if write:
        rows[name] = [round(value, 5) for value in logits_of_open_clip(path)]
        table.write_text(json.dumps(rows, indent=2) + "\n")
    if name not in rows:
        pytest.fail(
            f"{table.name} has no logits for {name}, so only its hash and architecture were checked. Have OpenCLIP "
            f"compute them: CLIP_WEIGHTS_DIR={path.parent} CLIP_WEIGHTS_WRITE=1 pytest {Path(__file__).name}"
        )
    with torch.no_grad():
        logits, _ = model(transform(picture())[None], tokenize(TEXTS))
    torch.testing.assert_close(logits[0], torch.tensor(rows[name]), rtol=0, atol=TOLERANCE)


@pytest.mark.skipif(not FOLDER, reason="CLIP_WEIGHTS_DIR names no folder with OpenAI's files")
@pytest.mark.parametrize("name", zoo.ZOO)
def test_openais_file(name):
    assert not (WRITE and "PYTEST_XDIST_WORKER" in os.environ), "CLIP_WEIGHTS_WRITE writes one file: leave out -n"
    assert any((FOLDER / entry.file).is_file() for entry in zoo.ZOO.values()), f"{FOLDER} has none of the nine files"
    entry = zoo.ZOO[name]
    path = FOLDER / entry.file
    if not path.is_file():
        pytest.skip(f"{FOLDER} has no {entry.file}")
    check(name, path, entry.sha256, OPENAI_ARCHITECTURES[name], TABLE, WRITE)


def test_the_check_itself(tmp_path):
    """A small archive through all its ways: no row, a written row, a read one, a wrong one, and the wrong file."""
    torch.manual_seed(0)
    small = Architecture("custom", 48, 64, ViTConfig(16, 128, 2, 2), TextConfig(128, 2, 2))
    model = create_model(small, temperature_init=0.01).eval()
    path, table = tmp_path / "small.pt", tmp_path / "logits.json"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = torch.randn(1, 3, 64, 64), torch.tensor([[49406, 5, 49407]])
        torch.jit.trace(model, example, check_trace=False).half().save(str(path))
    digest = zoo.sha256(path)
    with pytest.raises(pytest.fail.Exception, match="no logits for small.*CLIP_WEIGHTS_WRITE=1"):
        check("small", path, digest, small, table)
    assert not table.exists()
    table.write_text('{"other": [1.0, 2.0, 3.0]}')
    check("small", path, digest, small, table, write=True)
    check("small", path, digest, small, table)
    rows = json.loads(table.read_text())
    assert rows["other"] == [1.0, 2.0, 3.0] and all(map(math.isfinite, rows["small"]))
    assert len({round(value, 1) for value in rows["small"]}) == len(TEXTS)  # texts that all agree would show nothing
    rows["small"][1] += 0.01
    table.write_text(json.dumps(rows))
    with pytest.raises(AssertionError, match="not close"):
        check("small", path, digest, small, table)
    with pytest.raises(AssertionError, match="not OpenAI's"):
        check("small", path, "0" * 64, small, table)
