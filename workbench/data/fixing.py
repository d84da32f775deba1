"""`data check --fix`: the training rows without what is broken, repeated, or in val or test."""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from datamodules.sources.remote_pictures import RemotePictures
from datamodules.sources.source import CAPTIONS, Column, PictureFiles, Source
from datamodules.sources.write_shards import write_shards
from workbench.atomic import written_atomically
from workbench.data.captions import Trait
from workbench.data.checking import Check
from workbench.data.planning import Plan
from workbench.data.repeat_findings import captions_of_rows, contents
from workbench.data.scan import Scan
from workbench.data.splits import Split
from workbench.errors import UserError

_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
_LINES_AT_ONCE = 10_000
_BYTES_AT_ONCE = 64 << 20
"""Of a row group of pictures; a reader has a whole one in memory."""


@dataclass(frozen=True)
class Kept:
    """What stays of a split.

    Attributes:
        rows: int64, ascending.
        captions: bool [captions]: which stay, where each row has its own.
        left_out: why rows were left out -> how many.
    """

    rows: np.ndarray
    captions: np.ndarray
    left_out: dict[str, int]


def require_fixable(plan: Plan, output: Path) -> None:
    """Refuse what cannot be written.

    Raises:
        UserError: something is there, the suffix is unknown, or a table would have to hold the pictures.
    """
    if output.exists():
        raise UserError(f"--fix {output} exists; name a file or folder that does not.")
    if output.suffix and output.suffix not in _TABLES:
        raise UserError(f"--fix {output}: give a table ({', '.join(_TABLES)}), or a folder for shards.")
    if "train" not in plan.splits:
        raise UserError(f"--fix writes the training rows, and {plan.name} has none.")
    if output.suffix in (".csv", ".tsv", ".jsonl") and _root(plan.splits["train"]) is None:
        raise UserError(
            f"--fix {output}: the pictures of {plan.name} are no files that a table could name; give a folder, for "
            "shards, or a .parquet."
        )


def write_fixed(check: Check, output: Path) -> list[str]:
    """Write the training rows that are worth keeping, and return what to say of it.

    Raises:
        UserError: nothing would be left, or it cannot be written.
    """
    train = check.seen.scans["train"]
    kept = what_stays(check)
    said = [f"{count:,} {why}" for why, count in kept.left_out.items()]
    left_out = f"Left out: {'; '.join(said)}." if said else "Nothing was left out."
    if not len(kept.rows):
        raise UserError(f"--fix would leave nothing of {check.plan.name}. {left_out}")
    root = None
    try:
        if not output.suffix:
            write_shards(_source(train, kept), output)
        elif (root := _root(train.split)) is None:
            _write_stored(train, kept, output)
        else:
            root = _write_table(train, kept, output, root)
    except OSError as error:
        raise UserError(f"--fix {output} cannot be written ({error.strerror}).") from error
    option = "" if root in (None, str(output.parent)) else f" --data.root {root}"
    how = "ImageTextDataModule" if train.split.labels is None else "ClassificationDataModule"
    if train.split.labels is not None:
        option += " --data.label_column label"
    return [
        f"Written: {output}, {len(kept.rows):,} of the {len(train):,} training rows. {left_out}",
        f"Check it: python -m workbench data check {output}{option}",
        f"Train on it: python -m workbench fit --config ... --data {how} --data.train {output}{option}",
    ]


def what_stays(check: Check) -> Kept:
    """Choose the rows and captions of train to keep: each row that goes has one reason, the first that holds."""
    scans = check.seen.scans
    train, others = scans["train"], [scan for name, scan in scans.items() if name != "train"]
    rows = np.arange(len(train))
    shown = contents(train.pictures)
    classes = train.split.labels is not None
    filled = train.captions["traits"] & (Trait.EMPTY | Trait.BLANK) == 0
    stays, left_out = np.ones(len(train), dtype=bool), dict[str, int]()

    def leave_out(why: str, go: np.ndarray) -> None:
        if (count := int((stays & go).sum())) > 0:
            left_out[why] = count
        stays[go] = False

    leave_out("whose picture cannot be read", ~train.readable)
    held = np.concatenate([np.zeros(0, np.uint64), *(contents(scan.pictures) for scan in others)])
    leave_out("whose picture is in val or test", np.isin(shown, held[held != 0]))
    if classes:
        again = _again(np.stack([shown, train.split.labels.astype(np.uint64)], axis=1), stays)
        leave_out("that repeat a picture and its class", again)
        return Kept(rows[stays], filled, left_out)
    row_of = train.rows_of_captions()
    texts = np.concatenate([np.zeros(0, np.uint64), *(captions_of_rows(scan, "spelling")[1] for scan in others)])
    leave_out(
        "whose caption is in val or test", _any(row_of, np.isin(train.captions["spelling"], texts) & filled, rows)
    )
    leave_out("whose captions are empty", ~_any(row_of, filled, rows))
    again = _again(np.stack([shown[row_of], train.captions["text"]], axis=1), filled & stays[row_of])
    filled &= ~again
    leave_out("that repeat a picture and its caption", ~_any(row_of, filled, rows))
    return Kept(rows[stays], filled, left_out)


def _any(row_of: np.ndarray, chosen: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return for each row whether one of its captions is chosen."""
    return np.bincount(row_of[chosen], minlength=len(rows)) > 0


def _again(keys: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return which of the rows among some come after another of them with equal keys [N, 2], bool [N]."""
    where = np.flatnonzero(among)
    order = where[np.lexsort((where, keys[where, 1], keys[where, 0]))]
    again = np.zeros(len(keys), dtype=bool)
    again[order[1:]] = (keys[order][1:] == keys[order][:-1]).all(axis=1)
    return again


# What is written


def _captions(train: Scan, kept: Kept, row: int) -> list[str]:
    """Return the captions of a row that stay; of classification data, the first prompt of its class."""
    captions = train.split.captions(row)
    if train.split.entry_of is not None:
        return captions[:1]
    start = int(train.starts[row])
    return [text for text, stays in zip(captions, kept.captions[start : start + len(captions)], strict=True) if stays]


def _label(split: Split, row: int) -> str | None:
    return None if split.labels is None else split.classes[int(split.labels[row])]


def _pictures(split: Split) -> list[Any]:
    """Return the objects that read the pictures."""
    return [source.pictures for source in split.sources] or [getattr(split.read, "__self__", None)]


def _root(split: Split) -> str | None:
    """Return where the paths of pictures in files start: an address, or `/`; None where they are no files."""
    pictures = _pictures(split)
    if all(isinstance(each, PictureFiles) for each in pictures):
        return os.sep
    roots = {each.root for each in pictures if isinstance(each, RemotePictures)}
    return roots.pop() if len(roots) == 1 and all(isinstance(each, RemotePictures) for each in pictures) else None


def _write_table(train: Scan, kept: Kept, output: Path, root: str) -> str:
    """Write a line for each caption, and return where its paths start: the table's folder, if all are in it."""
    names = [train.split.picture_name(row) for row in kept.rows.tolist()]
    if root == os.sep:
        folder = os.path.realpath(output.parent)
        real = [os.path.realpath(name) for name in names]
        if all(name.startswith(folder.rstrip(os.sep) + os.sep) for name in real):
            names, root = [os.path.relpath(name, folder) for name in real], str(output.parent)
        else:
            names = [str(Path(name).absolute()) for name in names]
    columns = ["filepath", "caption", *([] if train.split.labels is None else ["label"])]
    with written_atomically(output, "wb" if output.suffix == ".parquet" else "w") as file:
        lines = _lines(train, kept, names)
        if output.suffix == ".jsonl":
            for line in lines:
                file.write(json.dumps(dict(zip(columns, line, strict=True)), ensure_ascii=False) + "\n")
        elif output.suffix == ".parquet":
            _write_parquet(file, pa.schema([(name, pa.large_string()) for name in columns]), lines)
        else:
            writer = csv.writer(file, delimiter="\t" if output.suffix == ".tsv" else ",", lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(lines)
    return root


def _lines(train: Scan, kept: Kept, names: Sequence[str]) -> Iterator[list[str]]:
    for row, name in zip(kept.rows.tolist(), names, strict=True):
        label = _label(train.split, row)
        for caption in _captions(train, kept, row):
            yield [name, caption] if label is None else [name, caption, label]


def _write_parquet(file: Any, schema: pa.Schema, lines: Iterator[list[Any]]) -> None:
    """Write row groups of so many lines, or of so many bytes of pictures."""
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        some: list[list[Any]] = []
        size = 0
        for line in lines:
            some.append(line)
            size += len(line[0])
            if len(some) == _LINES_AT_ONCE or size > _BYTES_AT_ONCE:
                writer.write_table(_table(schema, some))
                some, size = [], 0
        if some:
            writer.write_table(_table(schema, some))


def _table(schema: pa.Schema, lines: list[list[Any]]) -> pa.Table:
    return pa.table([list(column) for column in zip(*lines, strict=True)], schema=schema)


def _write_stored(train: Scan, kept: Kept, output: Path) -> None:
    """Write a Parquet with the pictures in it, a line for each, and a list of captions."""
    fields = [("image", pa.large_binary()), ("caption", CAPTIONS)]
    if train.split.labels is not None:
        fields.append(("label", pa.large_string()))

    def lines() -> Iterator[list[Any]]:
        for row in tqdm(kept.rows.tolist(), desc="writing", unit="row", delay=1, leave=False, disable=None):
            label = _label(train.split, row)
            line = [_encoded(train.split.read(row)), _captions(train, kept, row)]
            yield line if label is None else [*line, label]

    with written_atomically(output) as file:
        _write_parquet(file, pa.schema(fields), lines())


def _encoded(picture: Any) -> bytes:
    """Return a picture's file; one that is no file becomes a PNG."""
    if not isinstance(picture, Image.Image):
        return picture
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


class ChosenPictures:
    """The pictures of some rows of a split, as files.

    Args:
        split: which reads them.
        rows: int64.
    """

    def __init__(self, split: Split, rows: np.ndarray):
        self.split, self.rows = split, rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> bytes:
        """Return the bytes of a picture's file."""
        return _encoded(self.split.read(int(self.rows[row])))

    def name(self, row: int) -> str:
        """Return what it is called."""
        return self.split.picture_name(int(self.rows[row]))


def chosen_source(split: Split, rows: np.ndarray, captions: Sequence[Sequence[str]]) -> Source:
    """Return rows of a split as a source that can be written.

    Args:
        split: the rows.
        rows: int64, which of them.
        captions: of each of these.
    """
    labels = None
    if split.labels is not None:
        labels = Column([_label(split, row) for row in rows.tolist()], pa.large_string())
    return Source(
        split.name,
        ChosenPictures(split, rows),
        Column(list(captions), CAPTIONS),
        lambda row: split.place(int(rows[row])),
        labels,
    )


def _source(train: Scan, kept: Kept) -> Source:
    return chosen_source(train.split, kept.rows, [_captions(train, kept, row) for row in kept.rows.tolist()])
