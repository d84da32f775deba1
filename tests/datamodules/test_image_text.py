"""Pairs of one's own: mixtures, several captions, what is held out, and the same samples from every kind of place."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ImageTextDataModule
from datamodules.sources import read_source
from datamodules.sources.source import ReadOptions
from datamodules.sources.write_shards import write_shards
from workbench.errors import Notice, UserError
from workbench.tokenizer import tokenize

ROWS = 24


def write_pictures(folder, count, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")


def write_table(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("filepath", "caption"), *rows])
    return str(path)


@pytest.fixture
def table(tmp_path):
    write_pictures(tmp_path / "pictures", ROWS)
    return write_table(tmp_path / "pairs.csv", [(f"pictures/{n:03}.png", f"number {n}") for n in range(ROWS)])


def data(train, stage="fit", **options):
    module = ImageTextDataModule(
        train=train, **{"batch_size": 4, "image_size": 16, "num_workers": 0, "crop_scale": (0.3, 1.0), **options}
    )
    module.setup(stage)
    return module


def texts(pairs):
    return list(pairs.captions)


def batches(module, epochs=1):
    sampler = module.training_batches(lambda: 0, lambda: len(module.datasets["train"]) // module.batch_size)
    return [keys for epoch in range(epochs) for keys in sampler.batches(epoch)]


# Places


def as_json_lines(folder, rows):
    lines = [json.dumps({"image": path, "caption": text}) for path, text in rows]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return str(folder / "pairs.jsonl")


def as_parquet(folder, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    contents = [(folder / path).read_bytes() for path, _ in rows]
    found = pa.table({"image": pa.array(contents, pa.binary()), "caption": [text for _, text in rows]})
    pq.write_table(found, folder / "pairs.parquet", row_group_size=5)
    return str(folder / "pairs.parquet")


def as_sidecars(folder, rows):
    for path, text in rows:
        (folder / path).with_suffix(".txt").write_text(text)
    return str(folder / "pictures")


def as_shards(folder, rows):
    write_table(folder / "for_shards.csv", rows)
    write_shards(read_source(str(folder / "for_shards.csv"), ReadOptions()), folder / "shards", samples_per_shard=5)
    return str(folder / "shards" / "{00000..00004}.tar")


PLACES = {f.__name__[3:]: f for f in (as_json_lines, as_parquet, as_sidecars, as_shards)}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("workers", [0, 2])
def test_every_kind_of_place_gives_the_samples_of_the_table(tmp_path, table, kind, workers):
    with Path(table).open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    expected, found = data(table), data(PLACES[kind](tmp_path, rows), num_workers=workers)
    assert texts(found.datasets["train"]) == texts(expected.datasets["train"])
    assert found.datasets["train"].fingerprint == expected.datasets["train"].fingerprint
    keys = batches(expected)
    assert keys == batches(found)
    loader = found._loader("train", batch_sampler=keys)
    for batch, batch_keys in zip(loader, keys, strict=True):
        plain = [expected.datasets["train"][key] for key in batch_keys]
        assert torch.equal(batch["image"], torch.stack([sample["image"] for sample in plain]))
        assert batch["index"].tolist() == [int(sample["index"]) for sample in plain]


def test_lists_of_places_and_further_splits(tmp_path, table):
    write_pictures(tmp_path / "more", 6, first=100)
    more = write_table(tmp_path / "more.csv", [(f"more/{n}.png", f"number {n}") for n in range(100, 106)])
    module = data([table, more], val=[more], test=table)
    assert {split: len(pairs) for split, pairs in module.datasets.items()} == {"train": 30, "val": 6, "test": 24}
    assert texts(module.datasets["train"])[-1] == "number 105"
    assert module.datasets["train"].place(24) == f"{more}, line 2"
    assert {row for keys in batches(module) for _, row in keys} <= set(range(30))
    assert torch.equal(module.datasets["train"][25]["image"], module.datasets["val"][1]["image"])


def test_a_mixture(tmp_path, table):
    write_pictures(tmp_path / "more", 6, first=100)
    more = write_table(tmp_path / "more.csv", [(f"more/{n}.png", f"number {n}") for n in range(100, 106)])
    module = data([{"path": table, "weight": 1.0}, {"path": more, "weight": 1.0}], val=table, batch_size=6)
    rows = [row for keys in batches(module, 2) for _, row in keys]
    assert sum(row >= 24 for row in rows) == 30, "half of each epoch of 30"
    with pytest.raises(UserError, match="all sources of a mixture"):
        batches(data([{"path": table, "weight": 1.0}, more], val=table))


# Several captions


def repeated(tmp_path):
    write_pictures(tmp_path / "pictures", 8)
    rows = [(f"pictures/{n:03}.png", f"number {n} {word}") for word in ("one", "two", "three") for n in range(8)]
    return write_table(tmp_path / "repeated.csv", rows), write_table(tmp_path / "val.csv", rows[:3])


def test_one_of_several_captions_is_drawn_for_each_epoch(tmp_path):
    table, val = repeated(tmp_path)
    train = data(table, val=val).datasets["train"]
    assert len(train) == 8 and train.texts == 24 and train.labels is None
    drawn = [tuple(train[(epoch, 5)]["text"].tolist()) for epoch in range(30)]
    expected = tokenize([f"number 5 {word}" for word in ("one", "two", "three")])
    assert set(drawn) == {tuple(row[row != 0].tolist()) for row in expected}
    assert texts(train)[5] == "number 5 one"


def test_all_captions_are_pairs_and_positives_of_each_other(tmp_path):
    table, val = repeated(tmp_path)
    module = data(table, val=val, several_captions="all", avoid_false_negatives=True)
    train = module.datasets["train"]
    assert len(train) == 24 and len(module.datasets["val"]) == 3
    assert texts(train)[:4] == ["number 0 one", "number 0 two", "number 0 three", "number 1 one"]
    assert train[4]["label"] == train[5]["label"] == 1
    assert torch.equal(train[4]["image"], train[3]["image"])
    assert module.batches is None and batches(module) and module.batches.collisions(0) == 0
    with pytest.raises(UserError, match="several_captions is 'some'; there are sample and all"):
        data(table, several_captions="some")


# What is held out


def test_held_out_rows_share_nothing_with_the_rest(tmp_path):
    write_pictures(tmp_path / "pictures", 30)
    rows = [(f"pictures/{n:03}.png", f"caption {n // 2}") for n in range(30)]
    rows += [(f"pictures/{n:03}.png", f"of it {n}") for n in range(5)]
    module = data(write_table(tmp_path / "pairs.csv", rows), val_fraction=0.3)
    train, val = (module.datasets[split] for split in ("train", "val"))
    assert len(train) + len(val) == 30 and len(val) in (8, 9, 10)
    assert not set(texts(train)) & set(texts(val))
    again = data(str(tmp_path / "pairs.csv"), val_fraction=0.3)
    other = data(str(tmp_path / "pairs.csv"), val_fraction=0.3, seed=1)
    assert texts(again.datasets["val"]) == texts(val) != texts(other.datasets["val"])


def test_over_several_places_as_well(tmp_path, table):
    write_pictures(tmp_path / "more", ROWS, first=100)
    more = write_table(tmp_path / "more.csv", [(f"more/{n + 100}.png", f"Number  {n}") for n in range(ROWS)])
    module = data([table, more], val_fraction=0.25)
    train, val = ({text.lower().replace("  ", " ") for text in texts(module.datasets[s])} for s in ("train", "val"))
    assert len(module.datasets["val"]) == 12 and not train & val


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_nothing_may_be_left_empty(table, fraction):
    with pytest.raises(UserError, match="leaves a split empty"):
        data(table, val_fraction=fraction)


# What is wrong


def test_missing_pictures(tmp_path, table):
    for number in (3, 4):
        (tmp_path / "pictures" / f"{number:03}.png").unlink()
    with pytest.raises(UserError, match=r"line 5: there is no picture .*003.png.*2 of the 24 looked for"):
        data(table, val=table)
    with pytest.warns(Notice, match="003.png"):
        module = data(table, val=table, max_skipped=0.1)
        for _ in module._loader("train", batch_sampler=batches(module)):
            pass
    assert len(module.skipped) == 2


def test_a_damaged_picture_is_named_with_its_line_and_path(tmp_path, table):
    (tmp_path / "pictures" / "003.png").write_bytes(b"<html>404</html>")
    module = data(table, val=table, on_error="raise")
    with pytest.raises(UserError, match=r"pairs.csv, line 5: .*pictures/003.png: .*cannot be read"):
        module.datasets["val"][3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_error": "ignore"}, "on_error is 'ignore'; there are skip and raise"),
        ({"max_skipped": 1.5}, "max_skipped is 1.5"),
        ({"batch_size": 25}, "batch_size 25 .* 24 pairs"),
        ({"decode": "fast"}, "decode is 'fast'"),
        ({"val": []}, "empty list"),
    ],
)
def test_impossible_options(table, options, words):
    with pytest.raises(UserError, match=words):
        data(table, **{"val": table, **options})
