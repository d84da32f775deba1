"""Pairs of your own, from whatever they are kept in."""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch

from datamodules import several_captions as several
from datamodules.base import ImageDataModule
from datamodules.grouping import by_caption_and_picture
from datamodules.pairs import Pairs
from datamodules.sources import read_source
from datamodules.sources.source import ReadOptions, Source
from workbench.errors import UserError
from workbench.randomness import mixed_seed

SEVERAL_CAPTIONS = ("sample", "all")


class Weighted(TypedDict):
    """One source of a mixture. Not a dataclass: the command line would read a table as the file that configures it.

    Attributes:
        path: where it is.
        weight: its share of an epoch's samples, relative to the other sources'.
    """

    path: str
    weight: float


class ImageTextDataModule(ImageDataModule):
    """Pairs from tables, folders and shards; what a place holds is found by looking.

    Places are: CSV, TSV and other delimited text with a header; JSON lines; Parquet; a folder of pictures with captions
    in `.txt` files beside them; tar shards, also as a pattern (`shards/{000..015}.tar`, `shards/*.tar`); a folder that
    Hugging Face `datasets` saved. Tables and shards may be remote (`https://...`, `s3://...`).

    Every caption is text: `None`, `NA` and `1e5` stay what they are. `python -m workbench data check` looks at every
    picture and caption before a run does.

    Args:
        train: a place, a list of places, or a mixture: a list of `{path: ..., weight: ...}`. An epoch of a mixture has
            as many samples as its sources have rows, and each source its share of them.
        val: places of the validation pairs; null holds out `val_fraction` of the training pairs.
        test: places of the test pairs, if any.
        val_fraction: share of the rows that is held out when `val` is null. Rows that have a caption or a picture in
            common stay together, so that val has neither of train's.
        several_captions: of one picture: `sample` draws one of them for each epoch, from the seed; `all` takes each as
            a training pair of its own, with the picture's number as its label, by which `ContrastiveTask` takes a
            picture's pairs for positives of each other.
        image_column: header of the picture paths or bytes; null takes the usual names.
        caption_column: header of the captions; null takes the usual names.
        root: folder that relative paths start from; null takes the table's own. Paths may not leave it, unless
            they are absolute and `root` is `/`.
        sidecar: lines of a caption file beside a picture: `first`, or `all`, each another caption.
        common: see `ImageDataModule`; the seed also chooses what is held out.
    """

    def __init__(
        self,
        train: str | list[str | Weighted],
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        val_fraction: float = 0.1,
        several_captions: str = "sample",
        image_column: str | None = None,
        caption_column: str | None = None,
        root: str | None = None,
        sidecar: str = "first",
        **common: Any,
    ):
        super().__init__(**common)
        self.train, self.val, self.test, self.val_fraction = train, val, test, val_fraction
        if several_captions not in SEVERAL_CAPTIONS:
            raise UserError(f"several_captions is {several_captions!r}; there are {' and '.join(SEVERAL_CAPTIONS)}.")
        self.several_captions = several_captions
        self.read_options = ReadOptions(image_column, caption_column, root=root, sidecar=sidecar)

    def load(self) -> dict[str, Pairs]:
        """Read the places."""
        places = self.train if isinstance(self.train, list) else [self.train]
        weights = [place["weight"] if isinstance(place, dict) else None for place in places]
        sources = {"train": self._read([place["path"] if isinstance(place, dict) else place for place in places])}
        for split, value in (("val", self.val), ("test", self.test)):
            if value is not None:
                sources[split] = self._read(value if isinstance(value, list) else [value])
        if self.val is None:
            sources["train"], sources["val"] = self._split(sources["train"])
        return {
            "train": self._training(sources.pop("train"), weights),
            **{split: self.pairs(found) for split, found in sources.items()},
        }

    def _read(self, places: Sequence[str]) -> list[Source]:
        if not places:
            raise UserError("A split of the data is an empty list; name at least one place.")
        found = [several.one_row_for_each_picture(read_source(place, self.read_options)) for place in places]
        for source in found:
            self.look_for_pictures(source)
        return found

    def _training(self, sources: list[Source], weights: list[float | None]) -> Pairs:
        labels = None
        if self.several_captions == "all":
            repeated = [several.one_row_for_each_caption(source) for source in sources]
            starts = np.cumsum([0, *map(len, sources)])
            sources = [source for source, _ in repeated]
            labels = np.concatenate([picture + start for (_, picture), start in zip(repeated, starts, strict=False)])
        apart = by_caption_and_picture(sources) if self.avoid_false_negatives else None
        return self.pairs(sources, weights, labels=labels, apart=apart)

    def _split(self, sources: list[Source]) -> tuple[list[Source], list[Source]]:
        """Hold groups of rows out, so that no caption and no picture is in both splits."""
        groups, sizes = np.unique(by_caption_and_picture(sources), return_counts=True, return_inverse=True)[1:]
        rows = len(groups)
        wanted = round(rows * self.val_fraction)
        generator = torch.Generator().manual_seed(mixed_seed(self.seed))
        chosen, held_out = np.zeros(len(sizes), dtype=bool), 0
        for group in torch.randperm(len(sizes), generator=generator).tolist():
            if held_out == wanted:
                break
            if held_out + sizes[group] <= wanted:
                chosen[group] = True
                held_out += sizes[group]
        if not 0 < held_out < rows:
            raise UserError(
                f"val_fraction {self.val_fraction} of {rows} rows in {len(sizes)} groups that share no caption "
                "and no picture leaves a split empty; give --data.val, or a fraction that does not."
            )
        starts = np.cumsum([0, *map(len, sources)])
        in_val = [chosen[groups[start:end]] for start, end in zip(starts, starts[1:], strict=False)]
        train = [source.take(np.flatnonzero(~held)) for source, held in zip(sources, in_val, strict=True)]
        val = [source.take(np.flatnonzero(held)) for source, held in zip(sources, in_val, strict=True)]
        return train, [source for source in val if len(source)]
