"""From a table of picture paths and captions to a source, after a look at every row."""

import functools
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.sources.columns import shown_as
from datamodules.sources.remote import is_remote
from datamodules.sources.remote_pictures import RemotePictures
from datamodules.sources.source import Column, PictureFiles, Pictures, ReadOptions, Source
from datamodules.sources.table_file import TableFile
from workbench.errors import UserError

LONGEST = 1 << 20
"""Bytes of the longest cell that is taken for a caption, a path or a class: beyond it a quote was left open."""
_LONGEST_PATH = 4096  # PATH_MAX of Linux

Place = Callable[[int], str]


def path_source(
    table: TableFile, options: ReadOptions, paths: pa.Array, captions: pa.Array, labels: pa.Array | None, place: Any
) -> Source:
    """Return the source of a table that names picture files.

    Whether the files exist is not looked at here: see `Pictures.missing`.

    Args:
        table: where the rows are from.
        options: with the root, if it is not the table's folder.
        paths: large_string [N], relative to the root or absolute.
        captions: `CAPTIONS` [N].
        labels: large_string [N], or None.
        place: row -> where it was written; has `take`.

    Raises:
        UserError: no row, an empty cell, a path out of the root; it names the first such rows.
    """
    root = table.root(options)
    if options.lenient:
        captions = lenient_texts(captions, labels, place)
        _require_sound(paths, "picture path", place)
        paths = pc.fill_null(paths, "")
    else:
        require_texts(captions, labels, table.name, place)
        _require_paths(paths, root, place)
    pictures = pictures_under(root, Column(paths))
    return Source(table.name, pictures, Column(captions), place, None if labels is None else Column(labels))


def single_captions(texts: pa.Array) -> pa.Array:
    """Return large_string [N] as `CAPTIONS` [N], one for each row, without copying the text."""
    return pa.ListArray.from_arrays(pa.array(np.arange(len(texts) + 1), pa.int32()), texts)


def pictures_under(root: str, paths: Column) -> Pictures:
    """Return the pictures in files under a folder, here or on a server."""
    return RemotePictures(paths, root) if is_remote(root) else PictureFiles(paths, root)


def fault_finder(root: str) -> Callable[[str], str | None]:
    """Return what says what is wrong with the path of a picture under a folder, or None; for one pass over a table."""
    return partial(RemotePictures.fault, root=root) if is_remote(root) else _LocalFault(root)


def require_texts(captions: pa.Array, labels: pa.Array | None, name: str, place: Place) -> None:
    """Refuse a table of no rows; rows with no caption, an empty one, or one that is no text, and likewise for labels.

    Args:
        captions: `CAPTIONS` [N].
        labels: large_string [N], or None.
        name: of the table, for messages.
        place: row -> where it was written.

    Raises:
        UserError: there are some; it names the first ones and how many more there are.
    """
    if not len(captions):
        raise UserError(f"{name} has no row; it needs one for each picture and its caption.")
    if labels is not None:
        _require_sound(labels, "label", place)
        _refuse(_filled(labels), "label", place)
    texts = captions.flatten()

    def rows(chosen: pa.Array) -> list[int]:
        return pc.list_parent_indices(captions).filter(chosen).unique().to_pylist()

    unsound = _first_unsound(texts)
    if unsound is not None:
        raise UserError(_no_text(pc.list_parent_indices(captions)[unsound].as_py(), "caption", place))
    _refuse(pc.not_equal(pc.fill_null(pc.list_value_length(captions), 0), 0), "caption", place)
    full = _filled(texts)
    if not pc.all(full).as_py():
        raise UserError(_empty(rows(pc.invert(full)), "caption", place))
    long = pc.greater(pc.binary_length(texts), LONGEST)
    if pc.any(long).as_py():
        raise UserError(
            f"{place(rows(long)[0])}: the caption is longer than {LONGEST} bytes; cut it or take the row out."
        )


def lenient_texts(captions: pa.Array, labels: pa.Array | None, place: Place) -> pa.Array:
    """Return captions with the empty text where a row has none, instead of refusing it.

    Args:
        captions: `CAPTIONS` [N].
        labels: large_string [N], or None; they must be as for `require_texts`.
        place: row -> where it was written.

    Raises:
        UserError: a text that is no UTF-8, or no label.
    """
    if labels is not None:
        _require_sound(labels, "label", place)
        _refuse(_filled(labels), "label", place)
    texts = captions.flatten()
    unsound = _first_unsound(texts)
    if unsound is not None:
        raise UserError(_no_text(pc.list_parent_indices(captions)[unsound].as_py(), "caption", place))
    if not texts.null_count and pc.all(pc.greater(pc.fill_null(pc.list_value_length(captions), 0), 0)).as_py():
        return captions
    return pa.array([[text or "" for text in row or ()] or [""] for row in captions.to_pylist()], captions.type)


def _filled(texts: pa.Array) -> pa.Array:
    """Return whether each text is there and has more than white space."""
    blank = pc.or_(pc.equal(pc.binary_length(texts), 0), pc.utf8_is_space(texts))
    return pc.invert(pc.fill_null(blank, True))


def _refuse(good: pa.Array, what: str, place: Place) -> None:
    if not pc.all(good).as_py():
        raise UserError(_empty(np.flatnonzero(~good.to_numpy(zero_copy_only=False)).tolist(), what, place))


def _empty(rows: list[int], what: str, place: Place) -> str:
    said = f"{place(rows[0])}: the {what} is empty; fill it in or take the row out."
    if len(rows) == 1:
        return said
    return f"{said} There are {len(rows)} such rows, the next one is {place(rows[1])}."


def _no_text(row: int, what: str, place: Place) -> str:
    return f"{place(row)}: the {what} is not UTF-8 text; write the file again with text in that column."


def _require_sound(texts: pa.Array, what: str, place: Place) -> None:
    row = _first_unsound(texts)
    if row is not None:
        raise UserError(_no_text(row, what, place))


def _first_unsound(texts: pa.Array) -> int | None:
    """Return the first text that is not UTF-8: files of other programs may call text what is none."""
    if _sound(texts):
        return None
    low, high = 0, len(texts)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if not _sound(texts[low:middle]) else (middle, high)
    return low


def _sound(texts: pa.Array) -> bool:
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _require_paths(paths: pa.Array, root: str, place: Place) -> None:
    """Look at all paths at once, and one by one at those alone that could be wrong."""
    _require_sound(paths, "picture path", place)
    _refuse(_filled(paths), "picture path", place)
    fault = fault_finder(root)
    for row in np.flatnonzero(_suspicious(paths, root).to_numpy(zero_copy_only=False)).tolist():
        said = fault(paths[row].as_py())
        if said is not None:
            raise UserError(f"{place(row)}: {said}")


def _suspicious(paths: pa.Array, root: str) -> pa.Array:
    """Return which paths could lead out of the root, or be none; most have none of these signs, so the test is fast."""
    signs = [
        pc.match_substring(paths, ".."),
        pc.match_substring(paths, "://"),
        pc.match_substring(paths, "\0"),
        pc.greater(pc.binary_length(paths), _LONGEST_PATH),
    ]
    if is_remote(root):
        signs.append(pc.starts_with(paths, "/"))
    else:
        inside = os.path.abspath(root).rstrip(os.sep) + os.sep  # noqa: PTH100 - links stay as they are written
        absolute = pc.starts_with(paths, os.sep)
        signs.append(pc.and_(absolute, pc.invert(pc.starts_with(paths, inside))))
    return functools.reduce(pc.or_, signs)


class _LocalFault:
    """What is wrong with a path on this machine, or None; what its last part links to is seen when it is read."""

    def __init__(self, root: str):
        self.root = root
        self.inside = os.path.realpath(root).rstrip(os.sep) + os.sep
        self.real = functools.lru_cache(maxsize=1024)(os.path.realpath)

    def __call__(self, path: str) -> str | None:
        if is_remote(path):
            return (
                f"{shown_as(path)} is an address and not a file; download the pictures first, for example with "
                "img2dataset, and train on what it writes."
            )
        if "\0" in path:
            return f"{path[:100]!r} cannot be a path (a zero byte)."
        if len(os.fsencode(path)) > _LONGEST_PATH:
            return f"{path[:100]!r} cannot be a path ({len(path)} characters)."
        folder, last = os.path.split(os.path.join(self.root, path))  # noqa: PTH118 - `..` and links stay
        if last == ".." or not f"{self.real(folder).rstrip(os.sep)}{os.sep}".startswith(self.inside):
            return f"{shown_as(path)} leads out of {self.root}; name a folder above it with --data.root."
        return None
