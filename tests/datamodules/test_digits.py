"""Digits of scikit-learn as classes: the same pictures, in splits that do not depend on how they are used."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from datamodules import DigitsDataModule
from workbench.errors import UserError
from workbench.main import main

QUICK = str(Path(__file__).parent.parent.parent / "experiments" / "quickstart.yaml")


def data(**options):
    module = DigitsDataModule(**{"image_size": 8, "num_workers": 0, "batch_size": 32, **options})
    module.setup("fit")
    return module


def pictures_of(module, split):
    """Return the pictures of a split, uint8 [N, 8, 8], and their labels."""
    pairs = module.datasets[split]
    return torch.stack([pairs[row]["image"][0] for row in range(len(pairs))]).numpy(), pairs.labels.numpy()


def test_each_digit_of_scikit_learn_is_in_one_split():
    module, theirs = data(), load_digits()
    found = [pictures_of(module, split) for split in ("train", "val", "test")]
    assert [len(labels) for _, labels in found] == [1295, 143, 359]
    pixels, labels = (np.concatenate(each) for each in zip(*found, strict=True))
    expected = np.round(theirs.images * 255 / 16).astype(np.uint8)
    assert pixels.max() == 255 and pixels.min() == 0
    ours = sorted(picture.tobytes() + bytes([label]) for picture, label in zip(pixels, labels, strict=True))
    assert ours == sorted(
        picture.tobytes() + bytes([label]) for picture, label in zip(expected, theirs.target, strict=True)
    )
    for _, labels in found:
        counts = np.bincount(labels, minlength=10)
        assert counts.max() - counts.min() <= 0.15 * counts.mean(), "each digit has its share of each split"


def test_the_seed_chooses_val_and_never_test():
    one, same, other = (data(seed=seed) for seed in (0, 0, 1))
    for split, differs in (("train", True), ("val", True), ("test", False)):
        first, second, third = (pictures_of(module, split)[0] for module in (one, same, other))
        assert np.array_equal(first, second)
        assert np.array_equal(first, third) != differs
    assert len(data(val_fraction=0.5).datasets["val"]) == pytest.approx(1438 / 2, abs=5)


def test_captions_are_prompts_of_mnist():
    module = data()
    assert module.class_names == [str(digit) for digit in range(10)]
    assert module.templates == ['a photo of the number: "{}".']
    train = module.datasets["train"]
    for row in (0, 500, 1000):
        assert train.captions[row] == f'a photo of the number: "{int(train.labels[row])}".'
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    named = data(class_names=words, templates=["the digit {}", "a written {}"])
    assert named.class_names == words
    assert {named.datasets["train"][visit, 0]["text"].tolist()[1] for visit in range(20)}.__len__() == 2
    with pytest.raises(UserError, match="2 names for the 10 classes of the digits"):
        data(class_names=["odd", "even"])


def test_shots_and_balance_are_those_of_classification():
    module = data(shots=4)
    assert np.bincount(module.datasets["train"].labels).tolist() == [4] * 10
    assert len(module.datasets["val"]) == 143
    parts = data(balanced=True).datasets["train"].parts
    assert [part.name for part in parts] == [str(digit) for digit in range(10)]
    assert {part.weight for part in parts} == {1.0}


def test_places_of_pictures_are_no_options(capsys):
    options = ["--model.init_args.architecture", "tiny-vit", "--data", "DigitsDataModule", "--data.root", "digits/"]
    assert main(["fit", "--config", QUICK, *options]) == 2
    assert "root" in capsys.readouterr().err


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "sklearn" else find(name))
    with pytest.raises(UserError, match=r"needs scikit-learn.*pip install 'clip-workbench\[demo\]'"):
        data()
