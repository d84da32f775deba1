"""Labelled pictures in tables: labels are names of classes, or their numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.class_names import ClassNames, are_numbers, names_of, nearest
from datamodules.labelled import Labelled
from datamodules.sources import read_source
from datamodules.sources.source import ReadOptions, Source
from workbench.errors import Notice, UserError


def read_class_tables(
    places: Mapping[str, str], options: ReadOptions, given: ClassNames | None
) -> tuple[dict[str, Labelled], list[list[str]]]:
    """Read tables of pictures and labels.

    A label is text, whatever it looks like: the name of its class. Where all labels are whole numbers, and none of them
    is a name in `given`, they count the classes from 0.

    Args:
        places: split -> anything that `read_source` reads.
        options: names of columns, and the root of the picture paths.
        given: what the classes are called, by number; None takes the labels of the first split, sorted.

    Returns:
        split -> its pictures, and the names of each class.

    Raises:
        UserError: a table cannot be read, or a label is none of the classes; it names the line.
    """
    options = replace(options, captions=False)
    tables = [_Table(read_source(place, options)) for place in places.values()]
    if given is None:
        numbers, names = _by_themselves(tables)
    else:
        numbers, names = _by_names(tables, given), given.names
    return {split: table.labelled(numbers) for split, table in zip(places, tables, strict=True)}, names


class _Table:
    """A table and its different labels, in the order in which they first come."""

    def __init__(self, source: Source):
        if source.labels is None:
            raise UserError(f"{source.name} has no labels; name the column that has them with --data.label_column.")
        encoded = pc.utf8_trim_whitespace(source.labels.array).dictionary_encode()
        encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        self.source = source
        self.texts: list[str] = encoded.dictionary.to_pylist()
        self._indices = encoded.indices.to_numpy()

    def place(self, text: str) -> str:
        """Return where a label first comes."""
        return self.source.place(int(np.argmax(self._indices == self.texts.index(text))))

    def labelled(self, numbers: Mapping[str, int]) -> Labelled:
        """Return the pictures with their labels as numbers."""
        return Labelled(self.source, np.array([numbers[text] for text in self.texts], dtype=np.int64)[self._indices])


def _by_themselves(tables: Sequence[_Table]) -> tuple[dict[str, int], list[list[str]]]:
    first, texts = tables[0], _texts(tables)
    if are_numbers(texts):
        found = sorted({int(text) for text in texts})
        if found != list(range(len(found))):
            raise UserError(
                f"The labels of {first.source.name} are {len(found)} different numbers from {found[0]} to {found[-1]}; "
                "count the classes from 0 without gaps, or name them all with --data.class_names."
            )
        rank_zero_warn(
            f"The classes of {first.source.name} are numbers, which no picture looks like; say what they are called "
            "with --data.class_names.",
            category=Notice,
        )
        return {text: int(text) for text in texts}, [[str(number)] for number in found]
    classes = sorted(first.texts)
    _require_known(tables, set(classes), f"the labels of {first.source.name}", classes)
    return {text: label for label, text in enumerate(classes)}, names_of(classes, None, first.source.name)


def _by_names(tables: Sequence[_Table], given: ClassNames) -> dict[str, int]:
    texts, classes = _texts(tables), given.first
    placed = {text: label for text, label in zip(texts, given.places(texts), strict=True) if label is not None}
    if not placed and are_numbers(texts):
        for table in tables:
            for text in table.texts:
                if int(text) >= len(classes):
                    raise UserError(
                        f"{table.place(text)}: there is no class {text}; {given.where} has {len(classes)} names, for "
                        f"the numbers from 0 to {len(classes) - 1}."
                    )
        return {text: int(text) for text in texts}
    _require_known(tables, set(placed), given.where, classes)
    return placed


def _require_known(tables: Sequence[_Table], known: set[str], where: str, classes: Sequence[str]) -> None:
    for table in tables:
        for text in table.texts:
            if text not in known:
                raise UserError(f"{table.place(text)}: the label {text!r} is not among {where}{nearest(text, classes)}")


def _texts(tables: Sequence[_Table]) -> list[str]:
    return sorted({text for table in tables for text in table.texts})
