"""What a sample is: augmentation and caption from (seed, epoch, row), text without padding."""

import pickle
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datamodules.openmoji import _Drawn
from datamodules.pairs import Pairs, collate, require
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
    assert list(data.captions) == [variants[0] for variants in CAPTIONS]


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


class Files:
    """Row -> the bytes of a PNG, cut short in the rows that are bad."""

    def __init__(self, rows, bad=()):
        self.rows, self.bad = rows, set(bad)

    def __call__(self, row):
        picture = np.random.default_rng(row).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(picture).save(file := BytesIO(), "png")
        return file.getvalue()[:60] if row in self.bad else file.getvalue()


def with_bad(bad, rows=12, skip=True, **options):
    transforms = TrainingTransform(16, (0.3, 1.0)), EvaluationTransform(16)
    captions = [[f"number {row}"] for row in range(rows)]
    return Pairs(Files(rows, bad), captions, *transforms, seed=4, skip=skip, place="t.csv, line {}".format, **options)


def test_a_damaged_picture_is_named():
    with pytest.raises(UserError, match=r"t.csv, line 3: .*cannot be read"):
        with_bad([3], skip=False)[3]
    with pytest.raises(UserError, match=r"t.csv, line 3: .*cannot be read"):
        with_bad([3], skip=False)[(0, 3)]


@pytest.mark.parametrize("workers", [0, 2])
def test_another_row_takes_the_place_of_a_damaged_one(workers):
    data, keys = with_bad([3, 5]), [[(1, 2), (1, 3), (1, 4)], [(1, 5), (1, 6), (1, 7)], [(2, 3), (2, 0), (2, 1)]]
    batches = list(DataLoader(data, batch_sampler=keys, num_workers=workers, collate_fn=collate))
    assert [len(batch["image"]) for batch in batches] == [3, 3, 3]
    rows = [batch["index"].tolist() for batch in batches]
    assert rows[0][::2] == [2, 4] and rows[1][1:] == [6, 7] and rows[2][1:] == [0, 1]
    assert not {3, 5} & set(sum(rows, [])) and all(len(set(batch)) == 3 for batch in rows)
    assert {each.row for batch in batches for each in batch["skipped"]} == {3, 5}
    assert batches[0]["skipped"][0].place == "t.csv, line 3" and "cannot be read" in batches[0]["skipped"][0].reason
    # The other row is asked for with the same visit, and is what it would be by itself.
    other = rows[0][1]
    assert torch.equal(batches[0]["image"][1], data[(1, other)]["image"])
    assert len({row[0] for row in (rows[1], rows[2])}) == 2, "drawn anew for each visit"


def test_evaluation_leaves_a_damaged_row_out():
    data = with_bad([3])
    batch = collate(data.__getitems__([2, 3, 4]))
    assert batch["index"].tolist() == [2, 4] and [each.row for each in batch["skipped"]] == [3]
    assert "skipped" not in collate(data.__getitems__([2, 4]))
    with pytest.raises(UserError, match="Not one picture of a batch.*line 3"):
        collate(data.__getitems__([3]))


def test_nothing_but_damage():
    with pytest.raises(UserError, match="line 0: .*Nor could"):
        with_bad(range(12))[(0, 0)]


def test_a_batch_of_every_row_there_is():
    batch = collate(with_bad([3], rows=4).__getitems__([(0, row) for row in range(4)]))
    assert len(batch["image"]) == 4 and 3 not in batch["index"].tolist()


def test_rows_that_share_their_captions():
    """Of 12 rows in 2 classes, each draws from its class's captions, which are in memory once."""
    classes = [["a cat", "one cat", "the cat"], ["a dog"]]
    transforms = TrainingTransform(16), EvaluationTransform(16)
    of = np.arange(12) % 2
    data = Pairs(Files(12), classes, *transforms, seed=0, labels=of, caption_of=of)
    assert len(data) == 12 and data.texts == 4
    assert list(data.captions[:3]) == ["a cat", "a dog", "a cat"]
    drawn = {tuple(data[(visit, 4)]["text"].tolist()) for visit in range(30)}
    assert drawn == {tuple(row[row != 0].tolist()) for row in tokenize(classes[0])}
    assert torch.equal(data[5]["text"], data[7]["text"]) and data[5]["label"] == 1
    other = Pairs(Files(12), classes, *transforms, seed=0, labels=of, caption_of=1 - of)
    assert other.fingerprint != data.fingerprint


def test_spawned_workers_get_the_same_samples():
    data = pairs(CAPTIONS)
    loader = DataLoader(
        data, batch_sampler=[[(0, 1), (0, 2)], [(0, 3)]], num_workers=1, collate_fn=collate,
        multiprocessing_context="spawn",
    )  # fmt: skip
    batches = list(loader)
    assert same(batches[0], collate([data[(0, 1)], data[(0, 2)]])) and same(batches[1], collate([data[(0, 3)]]))
    assert list(pickle.loads(pickle.dumps(data.captions))) == list(data.captions)
