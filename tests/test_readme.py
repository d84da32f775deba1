"""The README's Python and its commands on one's own data, from its own text, on small weights in place of OpenAI's."""

import csv
import functools
import http.server
import json
import pickle
import re
import shlex
import threading
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from datamodules.sources import read_source
from datamodules.sources.source import ReadOptions
from datamodules.sources.write_shards import write_shards
from workbench.main import main
from workbench.models import create_model
from workbench.weights import zoo

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
OWN_DATA = README.split("\n## Your own data\n")[1].split("\n## ")[0]
OWN_DATA_COMMANDS = re.findall(r"^ *(python -m workbench .*)$", OWN_DATA, re.MULTILINE)
ROOT = Path(__file__).parent.parent
ROWS = 80


@pytest.fixture(autouse=True)
def small_weights(tmp_path, monkeypatch):
    """An archive as OpenAI's are, under the name of one of theirs."""
    torch.manual_seed(0)
    model = create_model("tiny-vit").eval()
    with torch.no_grad():
        model.visual.proj.mul_(30)  # to the size of trained features, which the probe's regularisation is for
    example = torch.randn(1, 3, 32, 32), torch.tensor([[49406, 5, 49407]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and OpenAI's files are made of it
        torch.jit.trace(model, example, check_trace=False).save(str(tmp_path / "tiny.pt"))
    monkeypatch.setitem(zoo.ZOO, "ViT-B/32", zoo.Entry("tiny.pt", zoo.sha256(tmp_path / "tiny.pt")))
    monkeypatch.setenv("CLIP_WORKBENCH_CACHE", str(tmp_path))


def block(word):
    [found] = [text for text in BLOCKS if word in text]
    return found


def test_zero_shot_prediction(capsys):
    Image.new("RGB", (50, 40), "red").save("picture.png")
    names = {}
    exec(block("Label probabilities"), names)
    assert names["image_features"].shape == (1, 32) and names["text_features"].shape == (3, 32)
    assert names["logits_per_text"].shape == (3, 1)
    assert names["probabilities"].shape == (1, 3) and abs(names["probabilities"].sum() - 1) < 1e-5
    assert capsys.readouterr().out.startswith("Label probabilities: [[0.")


def test_linear_probe(capsys):
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:200], digits.target[:200], strict=True)):
        folder = Path("pictures", "test" if number % 4 == 0 else "train", str(label))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype("uint8")).resize((40, 40)).save(folder / f"{number}.png")
    exec(block("LogisticRegression"), {})
    accuracy = float(re.fullmatch(r"Accuracy: ([\d.]+)%\n", capsys.readouterr().out)[1])
    assert accuracy > 50, "random features of pictures tell ten digits apart, ten times better than chance"


def test_every_block_of_python_is_run_here():
    assert len(BLOCKS) == 2


def test_the_api_is_openais():
    """What their README's examples call, as they call it: CIFAR-100 by name, one text at a time."""
    import workbench as clip

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, preprocess = clip.load("ViT-B/32", device)
    classes = ["apple", "aquarium fish", "baby", "bear", "beaver", "bed"]
    image_input = preprocess(Image.new("RGB", (32, 32), "green")).unsqueeze(0).to(device)
    text_inputs = torch.cat([clip.tokenize(f"a photo of a {name}") for name in classes]).to(device)
    with torch.no_grad():
        image_features = model.encode_image(image_input)
        text_features = model.encode_text(text_inputs)
    image_features /= image_features.norm(dim=-1, keepdim=True)
    text_features /= text_features.norm(dim=-1, keepdim=True)
    similarity = (100.0 * image_features @ text_features.T).softmax(dim=-1)
    values, indices = similarity[0].topk(5)
    assert len(set(indices.tolist())) == 5 and bool((values[:-1] >= values[1:]).all())
    assert clip.available_models()[0] == "RN50"
    assert clip.tokenize(["x"], context_length=10, truncate=True).shape == (1, 10)


# Your own data


def pairs_csv():
    Path("pictures").mkdir()
    names = [f"{number:03}.png" for number in range(ROWS)]
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(Path("pictures", name))
        Path("pictures", name).with_suffix(".txt").write_text(f"picture {number}\n")
    with Path("pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("filepath", "title"), *((f"pictures/{name}", f"picture {n}") for n, name in enumerate(names))]
        )


def example_org(monkeypatch):
    """Serve pairs.parquet from this folder."""
    contents = [Path("pictures", f"{number:03}.png").read_bytes() for number in range(ROWS)]
    table = pa.table({"image": pa.array(contents, pa.binary()), "caption": [f"picture {n}" for n in range(ROWS)]})
    pq.write_table(table, "pairs.parquet")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(Path.cwd()))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}/"


def classes():
    for number in range(ROWS):
        folder = Path("classes", f"kind_{number % 4}")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 36), (number, 9, 200)).save(folder / f"{number}.png")


def cifar(monkeypatch):
    """CIFAR-10's layout with few pictures, whose checksums are of course others."""
    folder = Path("cifar", "cifar-10-batches-py")
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        batch = {"data": random.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": [n % 10 for n in range(20)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)


@pytest.mark.parametrize("command", OWN_DATA_COMMANDS, ids=lambda command: " ".join(command.split()[3:])[:80])
def test_your_own_data(command, monkeypatch, capsys):
    pairs_csv()
    server = None
    if "shards" in command:
        write_shards(read_source("pairs.csv", ReadOptions()), "shards", samples_per_shard=20)
    elif "example.org" in command:
        server, url = example_org(monkeypatch)
        command = command.replace("https://example.org/", url)
    elif "classes/" in command:
        classes()
    elif "CIFAR10" in command:
        cifar(monkeypatch)
    words = [str(ROOT / word) if word.startswith("experiments/") else word for word in shlex.split(command)[3:]]
    if words[0] == "fit":
        words += shlex.split(
            "--model.init_args.architecture tiny-rn --model.init_args.weights null --trainer.accelerator cpu "
            "--data.num_workers 0 --trainer.max_epochs -1 --trainer.max_steps 2 --trainer.limit_val_batches 1 "
            "--trainer.log_every_n_steps 1"
        )
    assert main(words) == 0, capsys.readouterr().err
    if words[0] == "fit":
        summary = json.loads(Path("runs/ft_rn50/0/summary.json").read_text())
        assert (summary["status"], summary["step"]) == ("finished", 2)
        assert summary["metrics"]["train/skipped_samples"]["value"] == 0
    if server is not None:
        server.shutdown()


def test_all_commands_are_run_here():
    assert len(OWN_DATA_COMMANDS) == 7
    assert sum(" data check " in command for command in OWN_DATA_COMMANDS) == 1
