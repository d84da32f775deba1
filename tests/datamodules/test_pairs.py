"""What a sample is: augmentation and caption from (seed, epoch, row), text without padding."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datamodules.openmoji import _Drawn
from datamodules.pairs import Pairs, PictureFiles, collate, require
from workbench.errors import UserError
from workbench.preprocessing import EvaluationTransform, TrainingTransform
from workbench.tokenizer import EOT, SOT, count_truncated, tokenize


def pairs(captions, seed=0, context_length=77, labels=None):
    pictures = np.random.default_rng(0).integers(0, 256, (len(captions), 40, 40, 3), dtype=np.uint8)
    return Pairs(
        _Drawn(pictures, list(range(len(captions)))),
        captions,
        TrainingTransform(32, (0.3, 1.0)),
        EvaluationTransform(32),
        seed=seed,
        labels=labels,
        context_length=context_length,
    )


CAPTIONS = [[f"number {n}", f"Nummer {n}", f"numéro {n} de tous"] for n in range(12)]


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in one) and one.keys() == other.keys()


def test_training_samples_depend_on_seed_epoch_and_row_alone():
    data = pairs(CAPTIONS)
    expected = [data[(1, row)] for row in range(12)]
    torch.manual_seed(5)
    torch.rand(3)
    for row in reversed(range(12)):
        assert same(data[(1, row)], expected[row])
    assert not same(data[(2, 0)], expected[0])
    assert not same(pairs(CAPTIONS, seed=1)[(1, 0)], expected[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_do_not_change_samples(workers):
    data = pairs(CAPTIONS)
    keys = [[(3, row) for row in range(start, start + 4)] for start in (0, 4, 8)]
    batches = list(DataLoader(data, batch_sampler=keys, num_workers=workers, collate_fn=collate))
    assert all(
        same(batch, collate([data[key] for key in batch_keys])) for batch, batch_keys in zip(batches, keys, strict=True)
    )


def test_loading_leaves_every_random_state_alone(monkeypatch):
    """Loading in the training process must not reseed its dropout, on the CPU or on a GPU."""

    def reseeded(seed):
        raise AssertionError("a GPU's random state was touched")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded)
    data = pairs(CAPTIONS)
    before = torch.get_rng_state()
    data[(0, 3)]
    data[3]
    assert torch.equal(torch.get_rng_state(), before)


def test_captions_are_drawn_for_training_and_first_for_evaluation():
    data = pairs(CAPTIONS)
    variants = {tuple(tokenize(text)[0, : len(data[(e, 4)]["text"])].tolist()) for text in CAPTIONS[4] for e in [0]}
    assert variants
    drawn = [tuple(data[(epoch, 4)]["text"].tolist()) for epoch in range(40)]
    expected = {tuple(row[row != 0].tolist()) for row in tokenize(CAPTIONS[4])}
    assert set(drawn) == expected
    assert all(drawn.count(text) >= 5 for text in expected)
    assert torch.equal(data[4]["text"], tokenize(CAPTIONS[4][0])[0, : len(data[4]["text"])])
    assert data.captions == [variants[0] for variants in CAPTIONS]


def test_a_batch():
    data = pairs([["a"], ["two words"], ["three words here"]], labels=[2, 0, 1])
    batch = collate([data[row] for row in (2, 0, 1)])
    assert batch["image"].shape == (3, 3, 32, 32) and batch["image"].dtype == torch.uint8
    assert batch["text"].dtype == torch.int32 and torch.equal(
        batch["text"], tokenize(["three words here", "a", "two words"])[:, :5]
    )
    assert batch["index"].tolist() == [2, 0, 1] and batch["index"].dtype == torch.int64
    assert batch["label"].tolist() == [1, 2, 0] and batch["label"].dtype == torch.int64
    assert "label" not in pairs(CAPTIONS)[0]


def test_long_captions_are_cut_with_their_end_and_counted(monkeypatch):
    monkeypatch.setattr("datamodules.pairs._TEXTS_AT_ONCE", 3)
    texts = [" ".join(["word"] * n) for n in range(12)]
    data = pairs([[text] for text in texts], context_length=8)
    assert data.truncated == count_truncated(texts, 8) == 5 and data.texts == 12
    whole = tokenize(texts, 8, truncate=True)
    for row, expected in enumerate(whole):
        text = data[row]["text"]
        assert text[0] == SOT and text[-1] == EOT
        assert torch.equal(text, expected[: len(text)]) and not expected[len(text) :].any()


def test_fingerprint_knows_captions_and_their_order():
    texts = [["one"], ["two"], ["three"]]
    prints = {pairs(variant).fingerprint for variant in (texts, texts[::-1], texts[:2], [["one two"], ["three"]])}
    assert len(prints) == 4
    assert pairs(texts, seed=9).fingerprint == pairs(texts).fingerprint


def test_empty_split():
    empty = pairs([])
    assert len(empty) == 0
    with pytest.raises(UserError, match="val split has no pair"):
        require(empty, "val")


def test_a_damaged_picture_is_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    read = PictureFiles([tmp_path / "good.png", tmp_path / "bad.png"])
    assert read(0).size == (8, 8)
    with pytest.raises(UserError, match="bad.png"):
        read(1)
