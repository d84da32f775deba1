"""`data show` draws the very batch that a run trains on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import workbench.data.showing as showing
from workbench.main import main
from workbench.tokenizer import tokenizer

YAML = """
model: {class_path: ContrastiveTask, init_args: {architecture: tiny-vit, context_length: 8}}
data:
  class_path: ImageTextDataModule
  init_args: {train: pairs.csv, val: val.csv, batch_size: 4, seed: 5, num_workers: 0, crop_scale: [0.3, 1.0]}
trainer: {limit_train_batches: 2, max_steps: 5, accelerator: cpu, limit_val_batches: 0, callbacks: []}
"""


@pytest.fixture
def drawn_batches(pairs, monkeypatch):
    """Write an experiment of 3 batches an epoch, of which 2 are trained; return what `show` draws."""
    pairs("pairs.csv", range(12), caption="a long caption of the picture with the name {}")
    pairs("val.csv", range(20, 26))
    Path("mine.yaml").write_text(YAML)
    found, figure = [], showing.figure

    def kept(images, texts, title):
        found.append((images, texts))
        return figure(images, texts, title)

    monkeypatch.setattr(showing, "figure", kept)
    return found


def test_the_same_batches_as_a_run(drawn_batches, monkeypatch, capsys):
    from workbench.tasks import ContrastiveTask

    trained = []
    step = ContrastiveTask.training_step
    monkeypatch.setattr(
        ContrastiveTask,
        "training_step",
        lambda self, batch, number: (
            trained.append({key: value.clone() for key, value in batch.items()}) or step(self, batch, number)
        ),
    )
    assert main(["fit", "--config", "mine.yaml"]) == 0
    assert len(trained) == 5
    for number in (0, 1, 3, 4):
        assert main(["data", "show", "mine.yaml", "--step", str(number), "--output", f"{number}.png"]) == 0
        images, texts = drawn_batches.pop()
        assert np.array_equal(images, trained[number]["image"].numpy().transpose(0, 2, 3, 1))
        # Cut at the model's 8 tokens, start and end included.
        expected = [f"{tokenizer().decode(tokens[1:])} |" for tokens in trained[number]["text"].numpy()]
        assert texts == expected and texts[0] == "a long caption of the picture |"
        with Image.open(f"{number}.png") as picture:
            assert picture.format == "PNG" and min(picture.size) > 100
    said = capsys.readouterr().out
    assert "epoch 2" in said and "pairs.csv, line " in said and "a long caption of the picture |" in said


def test_other_splits_and_places(drawn_batches, capsys):
    assert main(["data", "show", "mine.yaml", "--split", "val", "--step", "1"]) == 0
    assert [text[:14] for text in drawn_batches[0][1]] == ["picture of the"] * 2
    assert Path("batch.png").is_file()
    assert main(["data", "show", "pairs.csv", "--pictures", "3", "--model.architecture", "tiny-vit"]) == 0
    assert len(drawn_batches[1][0]) == 3 and drawn_batches[1][0].shape[1:] == (32, 32, 3)
    assert "3 of the 11 pairs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--split", "tset"], ["'tset'", "train, val"]),
        (["--split", "val", "--step", "2"], ["2 batches"]),
        (["--step", "-1"], ["step is -1"]),
        (["--output", "batch.jpg"], [".png"]),
        (["--output", "mine.yaml/batch.png"], ["cannot be written"]),
        (["--batch_size", "13"], ["13", "larger than the training set"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_mistakes(drawn_batches, capsys, args, words):
    assert main(["data", "show", "mine.yaml", *args]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    for word in words:
        assert word in said


def test_dollar_signs_are_no_formula(drawn_batches):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    drawn = showing.figure(images, ["costs $5 or $6_x^", r"$\frac{$"], r"a$\b{$")
    drawn.canvas.draw()
