"""The rows of a data set as a run would have them, with everything that is wrong with them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.base import ImageDataModule
from datamodules.labelled import Labelled
from datamodules.ordering import Part
from datamodules.pairs import Pairs
from datamodules.skipping import OnError
from datamodules.sources.source import CAPTIONS, Column, JoinedPictures, JoinedPlaces, Source
from workbench.errors import UserError


@dataclass(frozen=True)
class Split:
    """One split; can be sent to other processes.

    Attributes:
        name: train, val or test.
        read: row -> the bytes of its picture's file, or the picture.
        picture_name: row -> what its picture is called.
        place: row -> where it was written.
        texts: what captions are drawn from: [entries] of type `CAPTIONS`.
        entry_of: int64 [rows]: which entry of `texts` is a row's, where rows share theirs (classes); None: its own.
        labels: int64 [rows], of classification data.
        classes: what they are called, by label.
        sources: that it was read from, where rows have their own captions.
        parts: how an epoch goes through it.
    """

    name: str
    read: Callable[[int], Any]
    picture_name: Callable[[int], str]
    place: Callable[[int], str]
    texts: Column
    entry_of: np.ndarray | None = None
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    parts: tuple[Part, ...] = ()

    def __len__(self) -> int:
        return len(self.texts) if self.entry_of is None else len(self.entry_of)

    def entry(self, row: int) -> int:
        """Return the entry of `texts` that is a row's."""
        return row if self.entry_of is None else int(self.entry_of[row])

    def captions(self, row: int) -> list[str]:
        """Return a row's captions; a class's prompts for a picture of it."""
        return [text or "" for text in self.texts[self.entry(row)]]

    def caption_counts(self) -> np.ndarray:
        """Return how many captions each entry has, int64 [entries]."""
        return pc.fill_null(pc.list_value_length(self.texts.array), 0).to_numpy().astype(np.int64)


class _OnAnyError(OnError):
    """Lets a data set load whatever pictures are missing."""

    def allowed(self, rows: int) -> int:
        """Return all."""
        return rows


def load_splits(data: ImageDataModule) -> tuple[dict[str, Split], str | None]:
    """Load a datamodule's splits; also return why it would refuse to train on them, if it does.

    Where the readers refuse rows, they are read leniently: all rows stay.

    Raises:
        UserError: there is nothing to look at: no such file, no such column.
    """
    budget, data.on_error = data.on_error, _OnAnyError()
    try:
        try:
            return _loaded(data), None
        except UserError as error:
            refused = str(error)
        options = getattr(data, "read_options", None)
        if options is None:
            raise UserError(refused)
        data.read_options = replace(options, lenient=True)
        try:
            return _loaded(data), refused
        finally:
            data.read_options = options
    finally:
        data.on_error = budget


def _loaded(data: ImageDataModule) -> dict[str, Split]:
    """Call `load`, but keep the sources instead of making data sets of them, which forget the texts."""
    data.pairs = _recorded
    try:
        found = data.load()
    finally:
        del data.pairs
    seen: dict[int, Split] = {}
    for name, each in found.items():
        if id(each) not in seen:
            seen[id(each)] = _of_pairs(name, each, data) if isinstance(each, Pairs) else replace(each, name=name)
    return {name: seen[id(each)] for name, each in found.items()}


def _recorded(sources: Sequence[Source], weights: Sequence[float | None] | None = None, **options: Any) -> Split:
    """Stand in for `ImageDataModule.pairs`."""
    split = of_sources("", sources, weights)
    labels = options.get("labels")
    return split if labels is None else replace(split, labels=np.asarray(labels, dtype=np.int64))


def of_sources(name: str, sources: Sequence[Source], weights: Sequence[float | None] | None = None) -> Split:
    """Return the rows of some sources, one after another, as a split."""
    parts = [
        Part(source.name, len(source), weight, source.block_starts)
        for source, weight in zip(sources, weights or [None] * len(sources), strict=True)
    ]
    pictures = sources[0].pictures if len(sources) == 1 else JoinedPictures([source.pictures for source in sources])
    return Split(
        name,
        pictures.read,
        pictures.name,
        sources[0].place if len(sources) == 1 else JoinedPlaces([(len(each), each.place) for each in sources]),
        sources[0].captions if len(sources) == 1 else Column.joined([source.captions for source in sources]),
        sources=tuple(sources),
        parts=tuple(parts),
    )


def _of_pairs(name: str, pairs: Pairs, data: ImageDataModule) -> Split:
    """Return the rows of a data set; of captions it keeps only the first as text, but classes have their prompts."""
    texts, entry_of = Column(_lists(pairs.captions.array), CAPTIONS), None
    labels = None if pairs.labels is None else pairs.labels.numpy()
    if labels is not None and data.class_names:
        prompts = [[template.replace("{}", name) for template in data.templates or ()] for name in data.class_names]
        texts, entry_of = Column(prompts, CAPTIONS), labels
    # Rows of pictures in memory have nothing but a number, and each split counts its own.
    place = partial("{} row {}".format, name) if pairs.name is None else pairs.place
    return Split(
        name,
        pairs.picture,
        pairs.name or place,
        place,
        texts,
        entry_of,
        labels,
        tuple(data.class_names or ()),
        parts=tuple(pairs.parts),
    )


def of_labelled(name: str, labelled: Labelled, classes: Sequence[str]) -> Split:
    """Return labelled pictures as a split whose captions are the names of the classes."""
    source = labelled.source
    return Split(
        name,
        source.pictures.read,
        source.pictures.name,
        source.place,
        Column([[each] for each in classes], CAPTIONS),
        labelled.labels,
        labelled.labels,
        tuple(classes),
        parts=(Part(source.name, len(source), block_starts=source.block_starts),),
    )


def _lists(texts: pa.Array) -> pa.Array:
    """Return one list for each text."""
    return pa.ListArray.from_arrays(pa.array(np.arange(len(texts) + 1), pa.int32()), texts.cast(pa.large_string()))
