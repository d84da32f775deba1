"""Which column of a table has the pictures, which the captions, which the class."""

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from PIL import Image

from datamodules.sources.remote import is_remote
from datamodules.sources.source import ReadOptions
from workbench.errors import UserError

IMAGE_COLUMNS = (
    *("filepath", "image", "image_path", "path", "file", "filename", "file_name", "img", "picture"),
    *("image_file", "image_name", "img_path", "filepaths", "jpg", "jpeg", "png", "webp"),
)
"""Usual names of the picture column; the earlier one is taken. `jpg` is img2dataset's, `file_name` COCO's."""
CAPTION_COLUMNS = (
    *("caption", "captions", "title", "text", "texts", "txt", "name", "description", "sentence", "sentences"),
    *("alt_text", "alt", "prompt", "comment", "label"),
)
"""Usual names of the caption column; the earlier one is taken. `txt` is img2dataset's."""

LABEL_COLUMNS = ("label", "class", "class_name", "category", "target", "labels", "classname", "cls", "y", "fine_label")
"""Usual names of the class's column; the earlier one is taken. `cls` is WebDataset's, `fine_label` CIFAR-100's."""

# Pillow tells these by name and has no decoder of its own: data and film, or drawings that need another program.
_NO_PICTURES = {".bufr", ".grib", ".h5", ".hdf", ".mpg", ".mpeg", ".eps", ".ps", ".wmf", ".emf"}
_SHOWN = 30

First = Mapping[str, Sequence[Any]]
"""Column -> its first few values, from which likely columns are suggested."""


@dataclass(frozen=True)
class Columns:
    """The columns to read; `label` is None where none was asked for, and `caption` is the same where there is none."""

    image: str
    caption: str
    label: str | None


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """Return the suffixes of files that Pillow can decode, in lower case with their dot."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN) - _NO_PICTURES


def choose_columns(
    columns: Sequence[str],
    options: ReadOptions,
    table: str,
    first: Callable[[], First],
    can_be_picture: Callable[[str], bool] = lambda column: True,
    can_be_caption: Callable[[str], bool] = lambda column: True,
    can_be_label: Callable[[str], bool] = lambda column: True,
) -> Columns:
    """Return the columns that the user named, else those with usual names.

    Args:
        columns: all that there are.
        options: with the names that the user gave.
        table: name of the table, for messages.
        first: returns the first values of the columns; asked only for a message.
        can_be_picture: whether a column's type allows it, where columns have types. One that does not is returned
            if it alone has a usual name: the type is then what is wrong.
        can_be_caption: likewise.
        can_be_label: likewise.

    Raises:
        UserError: a named column is not there, or there is no name to go by.
    """
    named = {options.image_column, options.caption_column, options.label_column} - {None}
    label = None
    if options.label_column is not None:
        label = _named(columns, options.label_column, "label_column", table)

    def column(wanted: str | None, usual: tuple[str, ...], option: str, can_be: Callable[[str], bool]) -> str:
        if wanted is not None:
            return _named(columns, wanted, option, table)
        lower = {name.lower().strip(): name for name in reversed(columns) if name not in named}
        found = [lower[name] for name in usual if name in lower]
        fitting = [name for name in found if can_be(name)]
        if not fitting:
            likely = [name for name in _likely(first(), option) if can_be(name)]
            if likely or not found:
                raise UserError(_none_usual(columns, usual, option, table, first(), likely))
        return _once(columns, (fitting or found)[0], option, table)

    image = column(options.image_column, IMAGE_COLUMNS, "image_column", can_be_picture)
    if not options.captions:
        label = column(options.label_column, LABEL_COLUMNS, "label_column", can_be_label)
        return Columns(image, label, label)
    return Columns(image, column(options.caption_column, CAPTION_COLUMNS, "caption_column", can_be_caption), label)


def looks_like_a_picture(value: Any) -> bool:
    """Return whether a cell could be a picture's path."""
    return isinstance(value, str) and PurePath(value.strip()).suffix.lower() in picture_suffixes()


def listed(names: Sequence[str], shown: int = _SHOWN) -> str:
    """Return names for a message: the first few and how many more."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(shown_as(name, 100) for name in names[:shown]) + more


def shown_as(text: str, most: int = 200) -> str:
    """Return what a file has written for a message: its first characters, none of which a terminal obeys."""
    return text[:most] if text.isprintable() else repr(text[:most])


def _named(columns: Sequence[str], wanted: str, option: str, table: str) -> str:
    if wanted in columns:
        return _once(columns, wanted, option, table)
    near = difflib.get_close_matches(wanted, columns, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise UserError(f"{table} has no column {wanted!r} (--data.{option}){hint} It has {listed(columns)}.")


def _once(columns: Sequence[str], name: str, option: str, table: str) -> str:
    if columns.count(name) > 1:
        raise UserError(
            f"{table} has {columns.count(name)} columns called {name!r}; rename them, or name another with "
            f"--data.{option}."
        )
    return name


def _none_usual(
    columns: Sequence[str], usual: tuple[str, ...], option: str, table: str, first: First, likely: Sequence[str]
) -> str:
    head = f"{table} has none of the usual columns ({', '.join(usual[:4])}, ...); it has {listed(columns)}."
    if any(looks_like_a_picture(column) for column in columns):
        return f"{head} Its first line looks like a row; put a header above it, such as: filepath, caption."
    if likely:
        kind = "pictures" if option == "image_column" else "captions"
        return f"{head} {likely[0]!r} looks like {kind}; if it is, say so with --data.{option} {likely[0]!r}."
    if option == "image_column" and any(map(_is_address, (value for values in first.values() for value in values))):
        return f"{head} It has addresses of pictures; download these first, for example with img2dataset."
    return f"{head} Say which it is with --data.{option}."


def _likely(first: First, option: str) -> list[str]:
    """Return the columns whose values look like it; nothing tells classes from other words and numbers."""
    return {"image_column": _likely_pictures, "caption_column": _likely_captions}.get(option, lambda first: [])(first)


def _likely_pictures(first: First) -> list[str]:
    def likely(values: Sequence[Any]) -> bool:
        found = [looks_like_a_picture(value) and not _is_address(value) for value in values]
        return sum(found) * 2 > len(found)

    return [column for column, values in first.items() if likely(values)]


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and is_remote(value.strip())


def _likely_captions(first: First) -> list[str]:
    """Columns of sentences, those with the most words first."""

    def words(values: Sequence[Any]) -> float:
        texts = [value[0] if isinstance(value, list) and value else value for value in values]
        if not texts or any(not isinstance(text, str) or looks_like_a_picture(text) for text in texts):
            return 0
        return sum(len([word for word in text.split() if word.isalpha()]) for text in texts) / len(texts)

    counts = {column: words(values) for column, values in first.items()}
    return sorted((column for column in counts if counts[column] > 1), key=lambda column: -counts[column])
