"""What was skipped is listed, counted and limited, on one process and on two; so are sources and false negatives."""

import csv
from io import BytesIO

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.run_folder import RunLogger
from callbacks.sample_monitor import SkippedSamples, SourceMonitor
from datamodules import ImageDataModule
from datamodules.ordering import Part
from datamodules.pairs import Pairs
from workbench.errors import Notice, UserError

ROWS = 48


class Files:
    def __init__(self, bad):
        self.bad = set(bad)

    def __call__(self, row):
        picture = np.random.default_rng(row).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(picture).save(file := BytesIO(), "png")
        return file.getvalue()[:60] if row in self.bad else file.getvalue()


class SomeBroken(ImageDataModule):
    def __init__(self, bad=(), bad_val=(), parts=None, apart=None, **options):
        super().__init__(**{"batch_size": 8, "image_size": 16, "num_workers": 0, **options})
        self.bad, self.bad_val, self.parts, self.apart = bad, bad_val, parts, apart

    def load(self):
        captions, options = [[f"number {row}"] for row in range(ROWS)], self.transforms()
        train = Pairs(
            Files(self.bad), captions, **options, place="t.csv, line {}".format, parts=self.parts, apart=self.apart
        )
        return {"train": train, "val": Pairs(Files(self.bad_val), captions, **options, place="v.csv, line {}".format)}


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.sizes = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        assert "skipped" not in batch
        self.sizes.append(len(batch["image"]))
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        assert "skipped" not in batch
        self.log("val/rows", float(len(batch["index"])), reduce_fx="sum", batch_size=1)


def fit(data, folder, ckpt_path=None, save=None, **options):
    logger = RunLogger(str(folder), "run")
    logger.folder = folder
    module = Module()
    trainer = L.Trainer(
        **{"max_epochs": 2, "limit_val_batches": 0, "devices": 1, **options},
        accelerator="cpu",
        logger=logger,
        callbacks=[SkippedSamples(), SourceMonitor()],
        log_every_n_steps=2,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    if save is not None:
        trainer.save_checkpoint(save)
    return module, trainer.callback_metrics


def listed(folder):
    with (folder / "skipped.csv").open(newline="") as file:
        return [(line["split"], int(line["row"]), line["place"]) for line in csv.DictReader(file)]


def test_skipped_samples_are_listed_counted_and_replaced(tmp_path):
    with pytest.warns(Notice, match="Skipped: t.csv, line 7: .*cannot be read"):
        module, metrics = fit(SomeBroken(bad=[7, 30], max_skipped=0.05), tmp_path)
    assert module.sizes == [8] * 12
    assert listed(tmp_path) == [("train", 7, "t.csv, line 7"), ("train", 30, "t.csv, line 30")]
    assert metrics["train/skipped_samples"] == 2
    with (tmp_path / "skipped.csv").open() as file:
        assert "cannot be read" in file.read()


def test_nothing_skipped_is_no_list_and_a_zero(tmp_path):
    _, metrics = fit(SomeBroken(), tmp_path)
    assert metrics["train/skipped_samples"] == 0 and not (tmp_path / "skipped.csv").exists()


@pytest.mark.filterwarnings("ignore::workbench.errors.Notice")
def test_too_many_stop_the_run_and_are_listed(tmp_path):
    with pytest.raises(UserError, match=r"3 of the 48 samples of the train split.*2 may be \(5.00%.*data check"):
        fit(SomeBroken(bad=[7, 20, 30, 40], max_skipped=0.05), tmp_path)
    assert len(listed(tmp_path)) == 3


def test_the_first_stops_where_none_may_be_skipped(tmp_path):
    with pytest.raises(UserError, match="t.csv, line 7: .*cannot be read"):
        fit(SomeBroken(bad=[7], on_error="raise", max_skipped=0.5), tmp_path)
    with pytest.raises(UserError, match=r"1 of the 48 .* 0 may be \(0.10%"), pytest.warns(Notice):
        fit(SomeBroken(bad=[7]), tmp_path)  # 0.1 % of 48 is none


@pytest.mark.filterwarnings("ignore::workbench.errors.Notice")
def test_evaluation_is_limited_as_well(tmp_path):
    _, metrics = fit(SomeBroken(bad_val=[3], max_skipped=0.05), tmp_path, limit_val_batches=1.0)
    assert metrics["val/rows"] == ROWS - 1 and listed(tmp_path) == [("val", 3, "v.csv, line 3")]
    with pytest.raises(UserError, match="of the val split could not be read"):
        fit(SomeBroken(bad_val=[3, 4, 5], max_skipped=0.05), tmp_path, limit_val_batches=1.0)


@pytest.mark.filterwarnings("ignore::workbench.errors.Notice")
def test_a_resumed_run_knows_what_was_skipped_before(tmp_path):
    path = tmp_path / "stopped.ckpt"
    fit(SomeBroken(bad=[7, 30], max_skipped=0.05), tmp_path, save=path)
    (tmp_path / "skipped.csv").unlink()
    _, metrics = fit(SomeBroken(max_skipped=0.05), tmp_path, ckpt_path=path, max_epochs=3)
    assert metrics["train/skipped_samples"] == 2 and [row for _, row, _ in listed(tmp_path)] == [7, 30]


@pytest.mark.filterwarnings("ignore::workbench.errors.Notice")
def test_two_processes_count_together(tmp_path):
    """Each meets some of the four, of which two may be skipped: both must stop, neither waiting for the other."""
    with pytest.raises(Exception, match="samples of the train split could not be read, and 2 may be"):
        fit(SomeBroken(bad=[7, 20, 30, 40], max_skipped=0.05), tmp_path, devices=2, strategy="ddp_fork")
    assert len(listed(tmp_path)) >= 3
    fit(SomeBroken(bad=[7, 20], max_skipped=0.05), tmp_path / "few", devices=2, strategy="ddp_fork")
    assert [row for _, row, _ in listed(tmp_path / "few")] == [7, 20]


def test_samples_of_each_source_are_counted_over_a_resumption(tmp_path):
    parts = [Part("large", 40, 1.0), Part("small", 8, 2.0)]
    _, metrics = fit(SomeBroken(parts=parts), tmp_path, save=tmp_path / "stopped.ckpt")
    # 16 and 32 samples an epoch, which is six batches of eight.
    assert (metrics["train/samples/large"], metrics["train/samples/small"]) == (32, 64)
    _, metrics = fit(SomeBroken(parts=parts), tmp_path, ckpt_path=tmp_path / "stopped.ckpt", max_epochs=3)
    assert (metrics["train/samples/large"], metrics["train/samples/small"]) == (48, 96)


def test_false_negatives_are_avoided_and_counted(tmp_path):
    few, many = np.arange(ROWS) // 2, np.arange(ROWS) % 4
    _, metrics = fit(SomeBroken(apart=few, avoid_false_negatives=True), tmp_path)
    assert metrics["train/false_negatives"] == 0
    _, metrics = fit(SomeBroken(apart=many, avoid_false_negatives=True), tmp_path)
    assert metrics["train/false_negatives"] >= 6 * 4
    _, metrics = fit(SomeBroken(apart=few), tmp_path)
    assert "train/false_negatives" not in metrics
