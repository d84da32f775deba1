"""A folder of pictures, at any depth, each with its captions in a text file of the same name: `a.jpg` and `a.txt`.

img2dataset's `files` format is one; the `.json` beside each picture is not needed.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from datamodules.sources.building import ROWS_AT_ONCE, CaptionBuilder, TextBuilder
from datamodules.sources.columns import listed, picture_suffixes
from datamodules.sources.pairs_table import LONGEST, lenient_texts, require_texts
from datamodules.sources.source import Column, PictureFiles, ReadOptions, Source
from workbench.errors import UserError

CAPTIONS_SUFFIX = ".txt"
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".csv.gz", ".tsv.gz", ".jsonl.gz")
_EXAMPLES = 3


@dataclass
class _Lone:
    """What has no counterpart: how many there are, and the first few."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, names: list[str]) -> None:
        self.count += len(names)
        self.examples += names[: max(0, _EXAMPLES - len(self.examples))]


@dataclass
class _Listing:
    """What is in a folder and those inside it, without hidden files and what links lead out of it.

    Attributes:
        suffixes: how many files there are of each suffix, in lower case with the dot.
        outside: how many links lead out of the folder.
        at_the_top: how many pictures lie in the folder itself.
        tables: the first few files that may be tables.
    """

    suffixes: Counter[str] = field(default_factory=Counter)
    outside: int = 0
    at_the_top: int = 0
    tables: list[str] = field(default_factory=list)

    @property
    def pictures(self) -> int:
        """How many pictures there are."""
        return sum(count for suffix, count in self.suffixes.items() if suffix in picture_suffixes())

    def __str__(self) -> str:
        """Say what there is, such as `12 .jpg and 3 .npy`."""
        found = [f"{count} {suffix or 'without a suffix'}" for suffix, count in self.suffixes.most_common(5)]
        said = " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found or ["no file"])
        return f"{said}, and {self.outside} links that lead out of it" if self.outside else said


@dataclass(frozen=True)
class _Beside:
    """Row -> the file with its captions, for messages."""

    pictures: PictureFiles

    def __call__(self, row: int) -> str:
        return _stem(self.pictures.name(row)) + CAPTIONS_SUFFIX

    def take(self, rows: np.ndarray) -> "_Beside":
        return _Beside(self.pictures.take(rows))


def read_folder(folder: str, options: ReadOptions) -> Source:
    """Read a folder of pictures with text files beside them.

    Args:
        folder: the folder; links that lead out of it are not followed.
        options: whether the first line of a text file is the caption, or all are, as alternatives.

    Raises:
        UserError: there are none, some have no counterpart, or a text file cannot be read.
    """
    if options.sidecar not in ("first", "all"):
        raise UserError(f"sidecar is {options.sidecar!r}; it is 'first' or 'all', the lines of a text file to take.")
    paths, listing, no_captions, no_picture = TextBuilder(), _Listing(), _Lone(), _Lone()
    for inside, names in _walk(folder, listing):
        pictures, texts = _matching(names)
        if not inside:
            listing.at_the_top = len(pictures)
        no_captions.add([inside + name for name in pictures if _stem(name) not in texts])
        no_picture.add([inside + name + CAPTIONS_SUFFIX for name in sorted(texts - set(map(_stem, pictures)))])
        paths.append(pa.array([inside + name for name in pictures], pa.large_string()))
    if not listing.pictures or no_captions.count == listing.pictures:
        raise UserError(_no_pairs(folder, listing))
    if (no_captions.count or no_picture.count) and not options.lenient:
        raise UserError(_no_counterpart(folder, no_captions, no_picture, listing))
    files = PictureFiles(Column(paths.finish()), folder)
    captions = _read_captions(files, options.sidecar == "all", options.lenient)
    place = _Beside(files)
    if options.lenient:
        captions = lenient_texts(captions, None, place)
    else:
        require_texts(captions, None, folder, place)
    return Source(folder, files, Column(captions), place)


def _walk(folder: str, listing: _Listing) -> Iterator[tuple[str, list[str]]]:
    """Yield folders, as relative paths that end with `/` (the first one is empty), with their files, both sorted."""
    top = os.path.realpath(folder).rstrip(os.sep) + os.sep
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            with os.scandir(Path(folder, inside)) as found:
                entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            raise UserError(f"The folder {Path(folder, inside)} cannot be read ({error}).") from error
        within = [
            entry for entry in entries if not entry.is_symlink() or (os.path.realpath(entry) + os.sep).startswith(top)
        ]
        listing.outside += len(entries) - len(within)
        names = [entry.name for entry in within if entry.is_file()]
        listing.tables += [inside + name for name in names if name.endswith(_TABLES)][: _EXAMPLES - len(listing.tables)]
        listing.suffixes.update(_parts(name)[1] for name in names)
        yield inside, names
        # Folders that links inside lead to are seen where they are.
        folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        waiting += [f"{inside}{name}/" for name in reversed(folders)]


def _matching(names: list[str]) -> tuple[list[str], set[str]]:
    """Return the names of pictures, and the stems of text files."""
    pictures = [name for name in names if _parts(name)[1] in picture_suffixes()]
    return pictures, {_stem(name) for name in names if name.endswith(CAPTIONS_SUFFIX)}


def _parts(name: str) -> tuple[str, str]:
    """Return a name without its suffix, and the suffix in lower case with its dot; faster than a Path for millions."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, dot + suffix.lower()) if dot else (name, "")


def _stem(name: str) -> str:
    return _parts(name)[0]


def _read_captions(files: PictureFiles, every_line: bool, lenient: bool) -> pa.Array:
    captions = CaptionBuilder()
    for first in range(0, len(files), ROWS_AT_ONCE):
        rows = range(first, min(first + ROWS_AT_ONCE, len(files)))
        beside = [_stem(files.name(row)) + CAPTIONS_SUFFIX for row in rows]
        texts = [[] if lenient and not Path(path).exists() else _lines(path, every_line) for path in beside]
        captions.append(pa.array(texts, pa.list_(pa.large_string())))
    return captions.finish()


def _lines(path: str, every_line: bool) -> list[str]:
    """Return the first line, or all that are not empty."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(LONGEST + 1)
        if len(content) > LONGEST:
            raise UserError(f"{path} is longer than {LONGEST} bytes, so it is no caption; take it out, or cut it.")
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    # Not `splitlines`, which ends lines at characters that are part of a text.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line for line in lines if line.strip()] if every_line else lines[:1]


# Messages


def _no_pairs(folder: str, listing: _Listing) -> str:
    """Say what a folder without a single pair has instead."""
    if not listing.suffixes and not listing.outside:
        return f"{folder} is empty."
    if listing.tables:
        named = " or ".join(f"{folder}/{table}" for table in listing.tables)
        return f"{folder} holds {listing}, and no picture with its captions beside it; name the table itself: {named}."
    if not listing.pictures:
        return (
            f"{folder} holds {listing}. Looked for were pictures with a .txt beside each, Parquet, tar shards, a data "
            "set that `datasets` saved, and a metadata.csv or metadata.jsonl."
        )
    if not listing.suffixes[CAPTIONS_SUFFIX] and not listing.at_the_top:
        return (
            f"{folder} holds {listing} in folders, and no .txt. If each folder is a class, ClassificationDataModule "
            f"reads it: --data ClassificationDataModule --data.root {folder}."
        )
    return (
        f"{folder} holds {listing}, and no {'picture has a .txt of its name' if listing.suffixes['.txt'] else '.txt'}; "
        "put each picture's captions into a text file beside it with its name, or name a table that has them."
    )


def _no_counterpart(folder: str, no_captions: _Lone, no_picture: _Lone, listing: _Listing) -> str:
    said = []
    if no_captions.count:
        said.append(f"{no_captions.count} of {listing.pictures} pictures have no .txt ({_examples(no_captions)})")
    if no_picture.count:
        said.append(f"{no_picture.count} .txt have no picture ({_examples(no_picture)})")
    links = f" {listing.outside} links that lead out of it are not followed." if listing.outside else ""
    return f"{folder}: {' and '.join(said)}; add what is missing, or take these files out.{links}"


def _examples(lone: _Lone) -> str:
    return listed(lone.examples) + (", ..." if lone.count > len(lone.examples) else "")
