"""What every source of pictures shares: batches, loaders, and a check that a resumed run has the same data."""

import functools
import gc
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from datamodules.ordering import EpochOrder, Part
from datamodules.pairs import Pairs, collate, require
from datamodules.sampling import EvaluationRows, TrainingBatches, check_batch_size
from datamodules.skipping import OnError, SkippedSamples
from datamodules.sources.source import Column, JoinedPictures, JoinedPlaces, Source
from workbench.distributed import rank, world_size
from workbench.errors import Notice, UserError
from workbench.preprocessing import EvaluationTransform, TrainingTransform
from workbench.randomness import mixed_seed

# Ours is: its position is a function of the batches trained so far.
warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")

_EVALUATION_BATCH = 256
_LOOKED_AT = 10_000
"""Pictures of a source that are looked for before training; `data check` looks into all."""
_SAID = 3
"""Skipped samples that are told one by one."""


class ImageDataModule(L.LightningDataModule):
    """Base of the datamodules; a subclass fills `datasets` in `load`.

    Args:
        batch_size: pairs of one training step over all processes: each takes its share, so results do not depend
            on how many there are.
        image_size: pixels. On the command line it follows the model's, whatever is set here.
        interpolation: of resizing, a name of torchvision's `InterpolationMode`.
        crop_scale: bounds of the random training crop's share of the picture's area; null takes the paper's crop, see
            `TrainingTransform`.
        num_workers: loading processes for each training process; null takes one core less than there are for it, at
            most 8, so none on a small machine, where a worker would take the core from the training.
        seed: of permutations, splits and augmentation.
        decode: of training pictures: `scaled` decodes no more of a JPEG than the crop needs, see `TrainingTransform`;
            `exact` decodes all of it. Evaluation is always exact.
        on_error: what happens to a sample that cannot be read: `skip` notes it in the run folder and goes on with
            another in its place, `raise` stops.
        max_skipped: share of a split's samples that may be skipped before the run stops.
        max_pixels: of a stored picture, width x height; one with more is refused by its header, before it is decoded,
            and counts as one that cannot be read. Null leaves it to Pillow's limit against decompression bombs (179
            million), which holds in any case.
        avoid_false_negatives: keep two pairs with the same caption, picture or class out of one batch, where possible.

    Attributes:
        context_length: tokens of a caption, the model's.
        datasets: split -> `Pairs`, after `setup`: `train`, `val`, and `test` where there is one.
        class_names: of classification data, in the order of its labels; None for pairs.
        templates: prompts with `{}` for the class name; None for pairs.
        skipped: samples that could not be read, of all splits.
    """

    def __init__(
        self,
        batch_size: int = 128,
        image_size: int = 224,
        interpolation: str = "bicubic",
        crop_scale: tuple[float, float] | None = (0.9, 1.0),
        num_workers: int | None = None,
        seed: int = 0,
        decode: str = "scaled",
        on_error: str = "skip",
        max_skipped: float = 0.001,
        max_pixels: int | None = None,
        avoid_false_negatives: bool = False,
    ):
        super().__init__()
        self.batch_size, self.image_size, self.interpolation = batch_size, image_size, interpolation
        self.crop_scale, self.seed, self.decode = crop_scale, seed, decode
        self.avoid_false_negatives = avoid_false_negatives
        if max_pixels is not None and max_pixels < 1:
            raise UserError(f"max_pixels is {max_pixels}; give at least 1, or null for no limit but Pillow's.")
        self.max_pixels = max_pixels
        self.on_error = OnError(on_error, max_skipped)
        self.skipped = SkippedSamples(self.on_error)
        self.context_length = 77
        self.num_workers = default_workers() if num_workers is None else num_workers
        self.datasets: dict[str, Pairs] = {}
        self.class_names: list[str] | None = None
        self.templates: list[str] | None = None
        self.batches: TrainingBatches | None = None
        self._trained = 0

    # For subclasses

    def load(self) -> dict[str, Pairs]:
        """Return the splits."""
        raise NotImplementedError

    def transforms(self) -> dict[str, Any]:
        """Return the keyword arguments of `Pairs` that all subclasses share."""
        return {
            "training_transform": TrainingTransform(
                self.image_size,
                None if self.crop_scale is None else tuple(self.crop_scale),
                interpolation=self.interpolation,
                decode=self.decode,
                max_pixels=self.max_pixels,
            ),
            "evaluation_transform": EvaluationTransform(self.image_size, self.interpolation, self.max_pixels),
            "seed": self.seed,
            "context_length": self.context_length,
            "skip": self.on_error.action == "skip",
        }

    def pairs(self, sources: Sequence[Source], weights: Sequence[float | None] | None = None, **options: Any) -> Pairs:
        """Return the rows of some sources as one data set.

        Args:
            sources: at least one.
            weights: of each in an epoch, see `Part`.
            options: of `Pairs`, beside those of `transforms`.
        """
        parts = [
            Part(source.name, len(source), weight, source.block_starts)
            for source, weight in zip(sources, weights or [None] * len(sources), strict=True)
        ]
        if len(sources) == 1:
            pictures, captions, place = sources[0].pictures, sources[0].captions, sources[0].place
        else:
            pictures = JoinedPictures([source.pictures for source in sources])
            captions = Column.joined([source.captions for source in sources])
            place = JoinedPlaces([(len(source), source.place) for source in sources])
        shared = {"place": place, "name": pictures.name, "parts": parts, **self.transforms()}
        return Pairs(pictures.read, captions, **{**shared, **options})

    def look_for_pictures(self, source: Source) -> None:
        """Look whether the picture files of a source are there, of a large one some.

        Raises:
            UserError: more of them are missing than may be skipped.
        """
        rows = np.unique(np.linspace(0, len(source) - 1, min(len(source), _LOOKED_AT)).astype(np.int64)).tolist()
        missing = source.pictures.missing(rows)
        if len(missing) > self.on_error.allowed(len(rows)):
            row = missing[0]
            try:
                source.pictures.read(row)
                why = f"there is no picture {source.pictures.name(row)}."
            except UserError as error:
                why = str(error)
            more = "" if len(missing) == 1 else f" So it is with {len(missing):,} of the {len(rows):,} looked for."
            raise UserError(f"{source.place(row)}: {why}{more}")

    def follow(self, other: Any) -> None:
        """Prepare pictures and texts as another does: a model's `Architecture`, or a datamodule; before `setup`."""
        for setting in ("image_size", "interpolation", "context_length"):
            setattr(self, setting, getattr(other, setting))

    # What the Trainer calls

    def setup(self, stage: str | None = None) -> None:
        """Load the splits once, and refuse what cannot be trained on."""
        if not self.datasets:
            self.datasets = self.load()
            for split, pairs in self.datasets.items():
                require(pairs, split)
                self.skipped.rows[split] = len(pairs)
                if pairs.truncated:
                    share = pairs.truncated / pairs.texts
                    rank_zero_info(
                        f"{pairs.truncated:,} captions of the {split} split ({share:.1%}) are longer than "
                        f"{pairs.context_length} tokens and are cut."
                    )
        self._trained = 0
        if stage == "fit":
            if "train" not in self.datasets:
                raise UserError(f"There is nothing to train on; this data has only {', '.join(self.datasets)}.")
            check_batch_size(len(self.datasets["train"]), self.batch_size, world_size())

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch, as many as the Trainer's `limit_train_batches` lets through."""
        batches = len(self.datasets["train"]) // self.batch_size
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        # A number above 1 is one of batches, even where the parser has made a float of it.
        return min(batches, int(limit)) if isinstance(limit, int) or limit > 1 else int(batches * limit)

    @property
    def trained(self) -> int:
        """Batches that the run has trained so far, over all epochs, with those before it was resumed."""
        if self.trainer is None:
            return self._trained
        # `processed` counts a batch before the hooks that save after it, and not yet in those before it. The Trainer
        # learns late of a resumption: a task that asks it for the number of steps starts the loader before that
        # (Lightning #20550).
        return max(self._trained, self.trainer.fit_loop.epoch_loop.batch_progress.total.processed)

    def train_dataloader(self) -> DataLoader:
        """Return the training loader; see `TrainingBatches` for what it yields."""
        trainer = self.trainer
        # Our samplers share the rows out themselves, and identically for any number of processes.
        trainer._accelerator_connector.use_distributed_sampler = False
        batches = self.training_batches(
            trained=lambda: 0 if trainer.overfit_batches else self.trained,
            batches_per_epoch=lambda: self.batches_per_epoch,
        )
        return self._loader("train", batch_sampler=batches)

    def training_batches(self, trained: Callable[[], int], batches_per_epoch: Callable[[], int]) -> TrainingBatches:
        """Return the sampler of this process; see `TrainingBatches` for the arguments."""
        pairs = self.datasets["train"]
        self.batches = TrainingBatches(
            EpochOrder(pairs.parts, self.seed),
            self.batch_size,
            trained,
            batches_per_epoch,
            rank=rank(),
            world_size=world_size(),
            apart=pairs.apart if self.avoid_false_negatives else None,
        )
        return self.batches

    def val_dataloader(self) -> DataLoader:
        """Return a loader of the whole val split."""
        return self.evaluation_dataloader("val")

    def test_dataloader(self) -> DataLoader:
        """Return a loader of the test split, or of val where there is none."""
        return self.evaluation_dataloader("test" if "test" in self.datasets else "val")

    def evaluation_dataloader(self, split: str, samples: int | None = None) -> DataLoader:
        """Return a loader of a split under the evaluation transform, each row once over all processes.

        Args:
            split: a key of `datasets`.
            samples: take so many rows, chosen by the seed alone; None takes all, in order.

        Raises:
            UserError: no such split, no samples, or fewer rows than processes.
        """
        if split not in self.datasets:
            raise UserError(f"There is no split {split!r}; this data has {', '.join(self.datasets)}.")
        if samples is not None and samples < 1:
            raise UserError(f"samples is {samples}; take at least 1, or null for all.")
        rows = range(len(self.datasets[split]))
        if samples is not None and samples < len(rows):
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, samples))
            rows = torch.randperm(len(rows), generator=generator)[:samples].sort().values.tolist()
        if len(rows) < world_size():
            raise UserError(
                f"The {split} split has {len(rows)} rows to measure on and there are {world_size()} processes, each of "
                "which needs one; give it more rows, or fewer --trainer.devices."
            )
        if self.trainer is not None:
            self.trainer._accelerator_connector.use_distributed_sampler = False
        return self._loader(
            split,
            sampler=EvaluationRows(rows, rank(), world_size()),
            batch_size=max(1, min(_EVALUATION_BATCH, self.batch_size)),
        )

    def teardown(self, stage: str | None = None) -> None:
        """Let the garbage collector look again at what it was kept from while workers ran."""
        gc.unfreeze()

    def _loader(self, split: str, **options: Any) -> DataLoader:
        if self.num_workers > 0:
            # The collector writes into every object that it looks at, and the first write after the fork copies a page
            # that the workers would have shared: hundreds of MB, the more the larger the data.
            gc.collect()
            gc.freeze()
        loader = _Loader(
            self.datasets[split],
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0 and split == "train",
            pin_memory=torch.cuda.is_available(),
            **options,
        )
        loader.note = functools.partial(self._note_skipped, split)
        return loader

    def _note_skipped(self, split: str, skipped: Sequence[tuple[int, str, str]]) -> None:
        for new in self.skipped.add(split, skipped):
            if len(self.skipped) <= _SAID:
                more = (
                    " Further ones are listed in the run folder, in skipped.csv." if len(self.skipped) == _SAID else ""
                )
                warnings.warn(f"Skipped: {new.place}: {new.reason}{more}", Notice, stacklevel=2)
        if world_size() == 1:  # else the processes stop together, see callbacks.skipped_samples
            self.skipped.require_few()

    # Resuming

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and what must be the same for the next batch to be the next one."""
        return {"trained": self.trained, **self._identity()}

    def _identity(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "batches_per_epoch": self.batches_per_epoch,
            "seed": self.seed,
            "pairs": len(self.datasets["train"]),
            "samples_of_sources": EpochOrder(self.datasets["train"].parts, self.seed).samples,
            "avoid_false_negatives": self.avoid_false_negatives,
            "fingerprint": self.datasets["train"].fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; evaluation has no position, and may be of any data.

        Raises:
            UserError: other data, batches or seed than the checkpoint's, which would reshuffle silently.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        now = self._identity()
        different = [key for key, value in now.items() if state.get(key) != value]
        if different:
            said = "; ".join(f"{key} was {state.get(key)} and is {now[key]}" for key in different)
            raise UserError(
                f"The run cannot go on exactly where it stopped, as its data changed: {said}. Restore them, or start a "
                "new run from the checkpoint's weights with --model.init_args.weights."
            )
        self._trained = state["trained"]


class _Loader(DataLoader):
    """A loader that hands what was skipped to `note` instead of the model."""

    note: Callable[[Sequence[tuple[int, str, str]]], None]

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            skipped = batch.pop("skipped", None)
            if skipped:
                self.note(skipped)
            yield batch


def default_workers() -> int:
    """Return the number of loading processes for each training process on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = max(1, torch.cuda.device_count())
    share = cores // processes
    return 0 if share <= 2 else min(8, share - 1)
