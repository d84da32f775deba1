"""Tables whose columns have an Arrow type, Parquet's and Hugging Face's: what each can be, and the text in them."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.sources.building import CaptionBuilder, TextBuilder, is_list
from datamodules.sources.columns import Columns, First, choose_columns
from datamodules.sources.pairs_table import lenient_texts, path_source, require_texts
from datamodules.sources.source import Column, Pictures, ReadOptions, Source
from datamodules.sources.table_file import TableFile
from workbench.errors import UserError

ClassNames = Mapping[str, list[str]]
"""Column -> what its numbers stand for, where they are classes."""


def class_names(features: Any) -> ClassNames:
    """Return the class names in a Hugging Face description of features, a parsed JSON that may be anything."""
    found = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            found[column] = names
    return found


def class_names_of_schema(schema: pa.Schema) -> ClassNames:
    """Return those that `datasets` wrote into an Arrow schema."""
    try:
        return class_names(json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column has texts."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view"


def is_stored(kind: pa.DataType) -> bool:
    """Return whether a column has pictures as bytes, alone or in a structure with a path."""
    if pa.types.is_struct(kind):
        names = [kind.field(number).name for number in range(kind.num_fields)]
        return "bytes" in names and is_stored(kind.field(names.index("bytes")).type)
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or str(kind) == "binary_view"
    )


def choose_typed_columns(
    schema: pa.Schema, names: ClassNames, options: ReadOptions, table: str, first: Callable[[], First]
) -> Columns:
    """Return the columns as `choose_columns` does, of those whose type allows it.

    Args:
        schema: of the table.
        names: its classes'.
        options: with the names that the user gave.
        table: its name, for messages.
        first: returns the first values of some columns; asked only for a message.

    Raises:
        UserError: as `choose_columns`; a column that was named has a type that cannot be read.
    """

    def kind(column: str) -> pa.DataType:
        return schema.field(schema.names.index(column)).type

    def can_be_picture(column: str) -> bool:
        return is_text(kind(column)) or is_stored(kind(column))

    def can_be_caption(column: str) -> bool:
        of = kind(column)
        return is_text(of.value_type if is_list(of) else of) or (column in names and can_be_label(column))

    def can_be_label(column: str) -> bool:
        return is_text(kind(column)) or pa.types.is_integer(kind(column))

    columns = choose_columns(schema.names, options, table, first, can_be_picture, can_be_caption, can_be_label)
    for column, can_be, what in (
        (columns.image, can_be_picture, "a picture is bytes, a structure of bytes and path, or a path"),
        (columns.caption if options.captions else None, can_be_caption, "a caption is text, or a list of texts"),
        (columns.label, can_be_label, "a label is text or a whole number"),
    ):
        if column is not None and not can_be(column):
            raise UserError(f"The column {column!r} of {table} is of type {str(kind(column))[:200]}; {what}.")
    return columns


class TextRows:
    """The text in some columns of a typed table, gathered batch by batch.

    Args:
        columns: where it is.
        paths: whether the picture column's paths are part of it.
    """

    def __init__(self, columns: Columns, paths: bool):
        self.columns = columns
        self._paths = TextBuilder() if paths else None
        self._captions = CaptionBuilder()
        self._labels = None if columns.label is None else TextBuilder()

    def append(self, batch: pa.RecordBatch, names: ClassNames) -> None:
        """Add the rows of a batch that has the columns, whose classes are called `names`."""
        if self._paths is not None:
            image = batch.column(self.columns.image)
            self._paths.append(pc.struct_field(image, "path") if pa.types.is_struct(image.type) else image)
        self._captions.append(_as_text(batch.column(self.columns.caption), names.get(self.columns.caption)))
        if self._labels is not None:
            self._labels.append(_as_text(batch.column(self.columns.label), names.get(self.columns.label)))

    def source(
        self,
        table: TableFile,
        options: ReadOptions,
        place: Any,
        pictures: Pictures | None,
        block_starts: np.ndarray | None = None,
    ) -> Source:
        """Return the source of all rows; the arguments are those of `Source`.

        Args:
            table: where the rows are from.
            options: with the root, if it is not the table's folder.
            place: row -> where it was written.
            pictures: those that are stored; None takes the files that the paths name.
            block_starts: of the stored pictures.

        Raises:
            UserError: no row, an empty cell, a path out of the root; it names the first such rows.
        """
        captions, labels = self._captions.finish(), None if self._labels is None else self._labels.finish()
        if pictures is None:
            assert self._paths is not None
            return path_source(table, options, self._paths.finish(), captions, labels, place)
        if options.lenient:
            captions = lenient_texts(captions, labels, place)
        else:
            require_texts(captions, labels, table.name, place)
        column = None if labels is None else Column(labels)
        return Source(table.name, pictures, Column(captions), place, column, block_starts)


def _as_text(values: pa.Array, names: list[str] | None) -> pa.Array:
    """Return whole numbers as text, what they stand for where they have `names`; everything else as it is."""
    if not pa.types.is_integer(values.type):
        return values
    if names is None:
        return values.cast(pa.large_string())
    known = pc.and_(pc.greater_equal(values, 0), pc.less(values, len(names)))
    return pa.array(names, pa.large_string()).take(pc.if_else(known, values, None).cast(pa.int64()))
