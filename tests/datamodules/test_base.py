"""A stopped run goes on with the very next batch; loaders, limits and refusals."""

import csv
import gc
import struct
import zlib

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ImageDataModule, ImageTextDataModule
from datamodules.base import default_workers
from datamodules.openmoji import _Drawn
from datamodules.pairs import Pairs
from workbench.errors import UserError

ROWS, BATCH, PER_EPOCH, EPOCHS = 22, 4, 5, 3


class Noise(ImageDataModule):
    """Random pictures with a number as their caption."""

    def __init__(self, rows=ROWS, word="number", splits=("train", "val"), **options):
        super().__init__(**{"batch_size": BATCH, "image_size": 16, "num_workers": 0, **options})
        self.rows, self.word, self.splits = rows, word, splits

    def load(self):
        pictures = np.random.default_rng(1).integers(0, 256, (self.rows, 20, 20, 3), dtype=np.uint8)
        captions = [[f"{self.word} {n}"] for n in range(self.rows)]
        return {
            split: Pairs(_Drawn(pictures, list(range(self.rows))), captions, **self.transforms())
            for split in self.splits
        }


class Recorder(L.LightningModule):
    """Remembers which rows it saw, and their augmented pixels."""

    def __init__(self, asks_for_steps=False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.asks_for_steps = asks_for_steps
        self.seen, self.validated = [], []

    def configure_optimizers(self):
        if self.asks_for_steps:  # as a task with a schedule does; it starts the loader before the loops are restored
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        self.seen.append((batch["index"].tolist(), int(batch["image"].long().sum())))
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch["index"].tolist())


class KilledError(Exception):
    """Stands for the process's end."""


class SaveAndDie(L.Callback):
    """Write a checkpoint in a hook once so many batches were seen, and end the run there."""

    def __init__(self, hook, batches, path):
        def act(trainer, module, *args, **kwargs):
            if len(module.seen) == batches and not trainer.sanity_checking:
                trainer.save_checkpoint(path)
                raise KilledError

        setattr(self, hook, act)


def fit(data, module=None, callbacks=(), ckpt_path=None, **options):
    module = module or Recorder()
    trainer = L.Trainer(
        **{"max_epochs": EPOCHS, "limit_val_batches": 0, **options},
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return module


@pytest.fixture(scope="module")
def uninterrupted():
    return fit(Noise()).seen


def test_an_uninterrupted_run(uninterrupted):
    assert len(uninterrupted) == EPOCHS * PER_EPOCH
    epochs = [uninterrupted[e * PER_EPOCH : (e + 1) * PER_EPOCH] for e in range(EPOCHS)]
    for epoch in epochs:
        rows = [row for batch, _ in epoch for row in batch]
        assert len(set(rows)) == PER_EPOCH * BATCH
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("asks_for_steps", [False, True], ids=["", "asks_for_steps"])
@pytest.mark.parametrize(
    ("hook", "batches"),
    [
        ("on_train_batch_end", 1),
        ("on_train_batch_end", 7),
        ("on_train_batch_end", 5),  # the last of an epoch
        ("on_train_batch_start", 7),
        ("on_before_optimizer_step", 7),
        ("on_train_epoch_end", 5),
    ],
)
def test_a_killed_run_goes_on_with_the_next_batch(tmp_path, uninterrupted, hook, batches, asks_for_steps, workers):
    if workers and (asks_for_steps, batches) not in [(False, 7), (True, 7)]:
        workers = 0  # once in the middle of an epoch is enough for the price of starting them
    path = tmp_path / "stopped.ckpt"
    stopped = Recorder(asks_for_steps)
    with pytest.raises(KilledError):
        fit(Noise(num_workers=workers), stopped, [SaveAndDie(hook, batches, path)])
    done = batches - 1 if hook == "on_before_optimizer_step" else batches
    assert stopped.seen[:done] == uninterrupted[:done]
    resumed = fit(Noise(num_workers=workers), Recorder(asks_for_steps), ckpt_path=path)
    assert resumed.seen == uninterrupted[done:]


def test_saved_in_a_validation_in_the_middle_of_an_epoch(tmp_path, uninterrupted):
    path = tmp_path / "stopped.ckpt"
    options = {"limit_val_batches": 2, "val_check_interval": 2}
    with pytest.raises(KilledError):
        fit(Noise(), callbacks=[SaveAndDie("on_validation_end", 7, path)], **options)
    assert fit(Noise(), ckpt_path=path, **options).seen == uninterrupted[7:]


def test_resumed_twice_and_finished(tmp_path, uninterrupted):
    """Also with the same datamodule, and a finished run has nothing left to do until max_epochs grows."""
    data, seen = Noise(), []
    ends = [
        (3, None, tmp_path / "a.ckpt"),
        (8, tmp_path / "a.ckpt", tmp_path / "b.ckpt"),
        (15, tmp_path / "b.ckpt", tmp_path / "c.ckpt"),
    ]
    for end, start, path in ends:
        module = Recorder()
        with pytest.raises(KilledError):
            fit(data, module, [SaveAndDie("on_train_batch_end", end - len(seen), path)], ckpt_path=start)
        seen += module.seen
    assert seen == uninterrupted
    assert fit(data, ckpt_path=tmp_path / "c.ckpt").seen == []
    further = fit(data, ckpt_path=tmp_path / "c.ckpt", max_epochs=EPOCHS + 1).seen
    assert len(further) == PER_EPOCH and further != uninterrupted[:PER_EPOCH]
    # Without a checkpoint it starts anew.
    assert fit(data).seen == uninterrupted


def test_shortened_epochs_resume(tmp_path):
    options = {"limit_train_batches": 3}
    whole = fit(Noise(), **options).seen
    assert len(whole) == EPOCHS * 3
    path = tmp_path / "stopped.ckpt"
    with pytest.raises(KilledError):
        fit(Noise(), callbacks=[SaveAndDie("on_train_batch_end", 4, path)], **options)
    assert fit(Noise(), ckpt_path=path, **options).seen == whole[4:]
    with pytest.raises(UserError, match="batches_per_epoch was 3 and is 5"):
        fit(Noise(), ckpt_path=path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 2}, "batch_size was 4 and is 2"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"rows": 23}, "pairs was 22 and is 23"),
        ({"word": "numeral"}, "fingerprint was"),
    ],
)
def test_resuming_with_something_else_is_refused(tmp_path, change, words):
    path = tmp_path / "stopped.ckpt"
    with pytest.raises(KilledError):
        fit(Noise(), callbacks=[SaveAndDie("on_train_batch_end", 3, path)])
    module = Recorder()
    with pytest.raises(UserError, match=words):
        fit(Noise(**change), module, ckpt_path=path)
    assert module.seen == []


def test_a_checkpoint_can_be_evaluated_on_any_data(tmp_path):
    path = tmp_path / "stopped.ckpt"
    with pytest.raises(KilledError):
        fit(Noise(), callbacks=[SaveAndDie("on_train_batch_end", 3, path)])
    module = Recorder()
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    trainer.validate(module, datamodule=Noise(rows=9, splits=("val",)), ckpt_path=path, verbose=False)
    assert sum(module.validated, []) == list(range(9))


def test_overfitting_repeats_the_same_batches():
    seen = fit(Noise(), overfit_batches=2).seen
    assert len(seen) == EPOCHS * 2 and seen[:2] * EPOCHS == seen


def test_steps_of_an_epoch():
    data = Noise()
    data.setup("fit")
    assert data.batches_per_epoch == PER_EPOCH


def test_evaluation_loaders():
    data = Noise(splits=("train", "val", "test"))
    data.setup()
    all_rows = torch.cat([batch["index"] for batch in data.evaluation_dataloader("train")])
    assert all_rows.tolist() == list(range(ROWS))
    chosen = [batch["index"].tolist() for batch in data.evaluation_dataloader("train", samples=9)]
    assert sum(chosen, []) == sorted(set(sum(chosen, []))) and sum(map(len, chosen)) == 9
    assert sum(chosen, []) != list(range(9))
    assert chosen == [batch["index"].tolist() for batch in data.evaluation_dataloader("train", samples=9)]
    first = next(iter(data.evaluation_dataloader("val")))["image"]
    assert torch.equal(first, next(iter(data.test_dataloader()))["image"])
    assert torch.equal(first[3], data.datasets["val"][3]["image"])


def test_processes_share_an_evaluation_out(monkeypatch):
    found = []
    for rank in range(4):
        monkeypatch.setattr("datamodules.base.rank", lambda rank=rank: rank)
        monkeypatch.setattr("datamodules.base.world_size", lambda: 4)
        data = Noise()
        data.setup()
        found += [row for batch in data.evaluation_dataloader("val") for row in batch["index"].tolist()]
    assert sorted(found) == list(range(ROWS))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 23}, ["23", "22 pairs"]),
        ({"batch_size": 1}, ["batch_size is 1"]),
        ({"rows": 0}, ["train split has no pair"]),
        ({"splits": ("val",)}, ["nothing to train on", "only val"]),
    ],
)
def test_refusals(options, words):
    with pytest.raises(UserError) as error:
        Noise(**options).setup("fit")
    for word in words:
        assert word in str(error.value)


def test_batches_that_the_processes_cannot_share(monkeypatch):
    monkeypatch.setattr("datamodules.base.world_size", lambda: 3)
    with pytest.raises(UserError, match="cannot be shared by 3; try 3"):
        Noise().setup("fit")


def test_unknown_splits_and_samples():
    data = Noise()
    data.setup()
    with pytest.raises(UserError, match="no split 'dev'; this data has train, val"):
        data.evaluation_dataloader("dev")
    with pytest.raises(UserError, match="samples is 0"):
        data.evaluation_dataloader("val", samples=0)


def test_each_process_needs_a_row(monkeypatch):
    data = Noise()
    data.setup()
    monkeypatch.setattr("datamodules.base.world_size", lambda: 3)
    with pytest.raises(UserError, match="val split has 2 rows .* 3 processes"):
        data.evaluation_dataloader("val", samples=2)


def test_truncated_captions_are_reported_once(monkeypatch):
    said = []
    monkeypatch.setattr("datamodules.base.rank_zero_info", said.append)
    data = Noise(word="long " * 100, splits=("train",))
    data.setup("fit")
    data.setup("fit")
    assert len(said) == 1 and "22 captions" in said[0] and "100.0%" in said[0] and "77 tokens" in said[0]


@pytest.fixture
def of_every_size(tmp_path):
    """Write a table of 24 pictures: the fifth has more pixels than the others, and the tenth claims to."""
    generator = np.random.default_rng(0)
    rows = [("filepath", "caption")]
    for number in range(24):
        height = 300 if number == 4 else 20
        pixels = generator.integers(0, 256, (height, 300 if number == 4 else 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
        rows.append((f"{number}.jpg", f"number {number}"))
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"0")]
    framed = [struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in chunks]
    (tmp_path / "9.jpg").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(tmp_path / "pairs.csv")


def of_limited_pictures(table, **options):
    options = {"batch_size": 4, "image_size": 16, "num_workers": 0, "max_skipped": 0.1, **options}
    return ImageTextDataModule(train=table, val=table, **options)


@pytest.mark.parametrize("decode", ["scaled", "exact"])
@pytest.mark.filterwarnings("ignore::workbench.errors.Notice")
def test_pictures_over_the_limit_are_skipped_in_training_and_evaluation(of_every_size, decode):
    data, module = of_limited_pictures(of_every_size, max_pixels=1000, decode=decode), Recorder()
    fit(data, module, max_epochs=2, limit_val_batches=1.0)
    rows = {row for batch, _ in module.seen for row in batch}
    assert [len(batch) for batch, _ in module.seen] == [4] * 12 and len(rows) == 22 and not {4, 9} & rows
    assert sum(module.validated[-6:], []) == [row for row in range(24) if row not in (4, 9)]
    listed = data.skipped.table()
    assert [(split, row) for split, row, *_ in listed] == [("train", 4), ("train", 9), ("val", 4), ("val", 9)]
    assert "300 x 300 pixels are more than the 1,000 that --data.max_pixels allows" in listed[0][-1]


def test_a_picture_over_the_limit_stops_a_run_that_skips_nothing(of_every_size):
    data = of_limited_pictures(of_every_size, max_pixels=1000, on_error="raise")
    with pytest.raises(UserError, match=r"pairs\.csv, line (6|11): .*[49]\.jpg: .* is refused: "):
        fit(data, max_epochs=1)
    with pytest.raises(UserError, match=r"line 6: .*4\.jpg: .*300 x 300 pixels .*--data.max_pixels"):
        data.datasets["train"][0, 4]


@pytest.mark.parametrize("max_pixels", [0, -1])
def test_a_limit_that_leaves_nothing(max_pixels):
    with pytest.raises(UserError, match=f"max_pixels is {max_pixels}; give at least 1"):
        Noise(max_pixels=max_pixels)


@pytest.mark.parametrize(("cores", "gpus", "workers"), [(1, 0, 0), (2, 0, 0), (4, 0, 3), (64, 0, 8), (64, 16, 3)])
def test_default_workers(monkeypatch, cores, gpus, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(cores), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert default_workers() == workers


@pytest.mark.parametrize("workers", [0, 1])
def test_the_collector_leaves_shared_pages_alone_while_workers_run(workers):
    """Else it would write into them, and each would be copied."""
    gc.unfreeze()
    data = Noise(batch_size=BATCH, num_workers=workers)
    data.setup()
    data.evaluation_dataloader("val")
    assert (gc.get_freeze_count() > 10_000) == (workers > 0)
    data.teardown()
    assert gc.get_freeze_count() < 10_000
