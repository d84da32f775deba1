"""Pairs from a table of your own: one row for each picture and its caption."""

import csv
import difflib
from pathlib import Path

import torch

from datamodules.base import ImageDataModule
from datamodules.pairs import Pairs, PictureFiles
from workbench.errors import UserError
from workbench.randomness import mixed_seed

_IMAGE_COLUMNS = ("filepath", "image", "image_path", "path", "file", "filename", "file_name", "img", "picture")
_CAPTION_COLUMNS = ("caption", "title", "text", "name", "description", "label", "sentence")
_DELIMITERS = "\t,;|"


class ImageTextDataModule(ImageDataModule):
    """Pairs from delimited text files: CSV, TSV, or with `;` or `|`; the delimiter is found by looking.

    Every caption is text: `None`, `NA` and `1e5` stay what they are. Every picture must exist before training starts.

    Args:
        train: path of the training table, with a header.
        val: path of the validation table; null holds out `val_fraction` of the training table.
        batch_size: see `ImageDataModule`, as for `image_size`, `interpolation`, `crop_scale`, `num_workers`, `seed`.
        image_size: see `ImageDataModule`.
        interpolation: see `ImageDataModule`.
        crop_scale: see `ImageDataModule`.
        num_workers: see `ImageDataModule`.
        seed: see `ImageDataModule`; also chooses what is held out.
        val_fraction: share of the rows that is held out when `val` is null. Rows that have a caption or a picture in
            common stay together, so that val has neither of train's.
        image_column: header of the picture paths; null takes the usual names.
        caption_column: header of the captions; null takes the usual names.
        root: folder that relative paths start from; null takes the table's own. Paths may not leave it, unless
            they are absolute and `root` is `/`.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        batch_size: int = 128,
        image_size: int = 224,
        interpolation: str = "bicubic",
        crop_scale: tuple[float, float] | None = (0.9, 1.0),
        num_workers: int | None = None,
        seed: int = 0,
        val_fraction: float = 0.1,
        image_column: str | None = None,
        caption_column: str | None = None,
        root: str | None = None,
    ):
        super().__init__(batch_size, image_size, interpolation, crop_scale, num_workers, seed)
        self.train, self.val, self.val_fraction = train, val, val_fraction
        self.image_column, self.caption_column, self.root = image_column, caption_column, root

    def load(self) -> dict[str, Pairs]:
        """Read the tables."""
        train = self._read(Path(self.train))
        if self.val is not None:
            splits = {"train": train, "val": self._read(Path(self.val))}
        else:
            splits = self._split(train)
        return {
            split: Pairs(PictureFiles([path for path, _ in rows]), [[text] for _, text in rows], **self.transforms())
            for split, rows in splits.items()
        }

    def _read(self, table: Path) -> list[tuple[Path, str]]:
        try:
            with table.open(encoding="utf-8-sig", newline="") as file:
                first = file.readline()
                delimiter = max(_DELIMITERS, key=first.count)
                file.seek(0)
                reader = csv.DictReader(file, delimiter=delimiter, strict=True)
                columns = list(reader.fieldnames or [])
                image = _column(columns, self.image_column, _IMAGE_COLUMNS, "image_column", table)
                caption = _column(columns, self.caption_column, _CAPTION_COLUMNS, "caption_column", table)
                rows = []
                for row in reader:
                    if None in row:
                        raise UserError(
                            f"{table}, line {reader.line_num}: there are more cells than the header's {len(columns)}; "
                            f"put a cell that has {delimiter!r} in it between double quotes."
                        )
                    rows.append((reader.line_num, row[image], row[caption]))
        except FileNotFoundError as error:
            raise UserError(f"The table {table} does not exist.") from error
        except csv.Error as error:
            raise UserError(
                f"{table}, line {reader.line_num}: {error}; a cell with a double quote in it goes between double "
                "quotes, and the quote is doubled."
            ) from error
        except (UnicodeDecodeError, OSError) as error:
            raise UserError(
                f"The table {table} cannot be read ({error}); it must be UTF-8 text with a header."
            ) from error
        root = Path(self.root) if self.root is not None else table.parent
        resolved = root.resolve()
        return [self._pair(root, resolved, f"{table}, line {line}", path, text) for line, path, text in rows]

    @staticmethod
    def _pair(root: Path, resolved: Path, where: str, path: str | None, caption: str | None) -> tuple[Path, str]:
        if not path or not caption or not caption.strip():
            what = "picture path" if not path else "caption"
            raise UserError(f"{where}: the {what} is empty; fill it in or take the row out.")
        whole = root / path
        try:
            inside, there = whole.resolve().is_relative_to(resolved), whole.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, links in a circle
            raise UserError(f"{where}: {path[:100]!r} cannot be a path ({error}).") from error
        if not inside:
            raise UserError(f"{where}: {path} leads out of {root}; name a folder above it with --data.root.")
        if not there:
            raise UserError(
                f"{where}: there is no picture {whole}; relative paths start from {root} (--data.root changes it)."
            )
        return whole, caption

    def _split(self, rows: list[tuple[Path, str]]) -> dict[str, list[tuple[Path, str]]]:
        """Hold groups of rows out, so that no caption and no picture is in both splits."""
        groups = _connected(rows)
        wanted = round(len(rows) * self.val_fraction)
        generator = torch.Generator().manual_seed(mixed_seed(self.seed))
        held_out: set[int] = set()
        for number in torch.randperm(len(groups), generator=generator).tolist():
            if len(held_out) + len(groups[number]) <= wanted:
                held_out.update(groups[number])
        if not 0 < len(held_out) < len(rows):
            raise UserError(
                f"val_fraction {self.val_fraction} of {len(rows)} rows in {len(groups)} groups that share no caption "
                "and no picture leaves a split empty; give --data.val, or a fraction that does not."
            )
        return {
            "train": [row for number, row in enumerate(rows) if number not in held_out],
            "val": [row for number, row in enumerate(rows) if number in held_out],
        }


def _connected(rows: list[tuple[Path, str]]) -> list[list[int]]:
    """Group the rows that a picture or a caption, however spelt to the tokenizer, connects, directly or not."""
    leader = list(range(len(rows)))

    def find(row: int) -> int:
        while leader[row] != row:
            leader[row] = leader[leader[row]]
            row = leader[row]
        return row

    first: dict[Path | str, int] = {}
    for row, (path, caption) in enumerate(rows):
        for key in (path, " ".join(caption.lower().split())):
            leader[find(row)] = find(first.setdefault(key, row))
    groups: dict[int, list[int]] = {}
    for row in range(len(rows)):
        groups.setdefault(find(row), []).append(row)
    return list(groups.values())


def _column(columns: list[str], wanted: str | None, usual: tuple[str, ...], option: str, table: Path) -> str:
    if wanted is not None:
        if wanted in columns:
            return wanted
        near = difflib.get_close_matches(wanted, columns, n=1)
        raise UserError(
            f"{table} has no column {wanted!r}{f'; did you mean {near[0]!r}' if near else ''}? "
            f"It has {', '.join(columns)}."
        )
    lower = {column.lower().strip(): column for column in columns}
    found = next((lower[name] for name in usual if name in lower), None)
    if found is None:
        raise UserError(
            f"{table} has none of the usual columns ({', '.join(usual[:4])}, ...); it has {', '.join(columns)}. "
            f"Say which it is with --data.{option}."
        )
    return found
