"""Stopped anywhere, on any place, with any number of workers and processes: the next batch is the next one."""

import csv
import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ImageTextDataModule
from datamodules.sources import read_source
from datamodules.sources.source import ReadOptions
from datamodules.sources.write_shards import write_shards
from workbench.errors import UserError

ROWS, BATCH, PER_EPOCH = 26, 4, 6


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    rows = []
    for number in range(ROWS):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
        rows.append((f"{number:03}.png", f"number {number}"))
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filepath", "caption"), *rows])
    write_shards(read_source(str(folder / "pairs.csv"), ReadOptions()), folder / "shards", samples_per_shard=1)
    shards = str(folder / "shards" / "*.tar")  # 26, more than are mixed at a time
    half = [("filepath", "caption"), *rows[:8]]
    with (folder / "half.csv").open("w", newline="") as file:
        csv.writer(file).writerows(half)
    write_shards(read_source(str(folder / "pairs.csv"), ReadOptions()), folder / "one", samples_per_shard=ROWS)
    mixture = [{"path": shards, "weight": 1.0}, {"path": str(folder / "half.csv"), "weight": 1.0}]
    return {"table": str(folder / "pairs.csv"), "shards": shards, "one": str(folder / "one" / "*.tar"),
            "mixture": mixture, "val": str(folder / "half.csv")}  # fmt: skip


class Recorder(L.LightningModule):
    """Writes down each batch's rows and pixels, one file for each process."""

    def __init__(self, folder, stop_after):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.folder, self.stop_after = Path(folder), stop_after

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        step = self.global_step
        self.folder.mkdir(exist_ok=True)
        sums = batch["image"].flatten(1).long().sum(dim=1).tolist()
        with (self.folder / f"{self.global_rank}").open("a") as file:
            file.write(json.dumps([step, list(zip(batch["index"].tolist(), sums, strict=True))]) + "\n")
        return self.weight**2

    def on_train_batch_end(self, *_):
        if self.global_step == self.stop_after:  # in the middle of an epoch, as when the process is killed
            self.trainer.save_checkpoint(self.folder.with_suffix(".ckpt"))


def batches(folder):
    """Return step -> the samples of all processes."""
    found = {}
    for process in sorted(Path(folder).iterdir()):
        for line in process.read_text().splitlines():
            step, samples = json.loads(line)
            found.setdefault(step, []).extend(map(tuple, samples))
    return found


def fit(places, kind, folder, workers=0, processes=1, stop_after=-1, ckpt_path=None, **options):
    data = ImageTextDataModule(
        train=places[kind], val=places["val"],
        **{"batch_size": BATCH, "image_size": 16, "num_workers": workers, "crop_scale": (0.3, 1.0), **options},
    )  # fmt: skip
    trainer = L.Trainer(
        max_epochs=2, max_steps=stop_after, limit_val_batches=0, accelerator="cpu", devices=processes,
        strategy="ddp_fork" if processes > 1 else "auto", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Recorder(folder, stop_after), datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return batches(folder)


@pytest.fixture(scope="module")
def uninterrupted(places, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return {kind: fit(places, kind, folder / kind) for kind in ("table", "shards", "mixture")}


def test_each_sample_once_an_epoch(uninterrupted):
    for kind in ("table", "shards"):
        whole = uninterrupted[kind]
        assert sorted(whole) == list(range(2 * PER_EPOCH))
        for epoch in (0, 1):
            rows = [row for step in range(PER_EPOCH) for row, _ in whole[epoch * PER_EPOCH + step]]
            assert len(set(rows)) == len(rows) == PER_EPOCH * BATCH
    assert uninterrupted["table"] != uninterrupted["shards"], "26 shards are shuffled in windows"


def test_one_shard_is_enough_for_any_number_of_workers_and_processes(places, tmp_path):
    """Elsewhere those that get no shard wait for ever, or it is refused; here rows are shared out, not shards."""
    alone = fit(places, "one", tmp_path / "alone")
    shared = fit(places, "one", tmp_path / "shared", workers=2, processes=2)
    assert sorted(shared) == list(range(2 * PER_EPOCH))
    for step, samples in alone.items():
        assert sorted(shared[step]) == sorted(samples) and len(samples) == BATCH


@pytest.mark.parametrize(
    ("kind", "workers", "processes", "then"),
    [
        ("table", 0, 1, 1),
        ("table", 2, 1, 2),
        ("shards", 0, 1, 1),
        ("shards", 2, 1, 1),
        ("shards", 2, 2, 1),
        ("shards", 0, 1, 2),
        ("mixture", 2, 1, 1),
    ],
)
def test_the_next_batch_is_the_next_one(tmp_path, places, uninterrupted, kind, workers, processes, then):
    whole = uninterrupted[kind]
    before = fit(places, kind, tmp_path / "run", workers, processes, stop_after=9)
    assert before == {step: whole[step] for step in range(9)}
    after = fit(places, kind, tmp_path / "on", workers, then, ckpt_path=tmp_path / "run.ckpt")
    assert after == {step: whole[step] for step in range(9, len(whole))}


def test_another_mixture_or_sampler_is_not_reshuffled_silently(tmp_path, places):
    fit(places, "mixture", tmp_path / "run", stop_after=3)
    ckpt_path = tmp_path / "run.ckpt"
    heavier = {**places, "mixture": [{**places["mixture"][0], "weight": 3.0}, places["mixture"][1]]}
    with pytest.raises(UserError, match=r"samples_of_sources was \[17, 17\] and is \[2[56], [89]\]"):
        fit(heavier, "mixture", tmp_path / "on", ckpt_path=ckpt_path)
    with pytest.raises(UserError, match="avoid_false_negatives was False and is True"):
        fit(places, "mixture", tmp_path / "on", ckpt_path=ckpt_path, avoid_false_negatives=True)
