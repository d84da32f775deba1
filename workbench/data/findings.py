"""What a check found, as data."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from workbench.data.duplicates import Groups
from workbench.data.scan import Scan

BREAKS, WARNING, INFORMATION = "breaks training", "warning", "information"
SEVERITIES = (BREAKS, WARNING, INFORMATION)
EXAMPLES = 3
"""Of a finding on the screen."""


@dataclass(frozen=True)
class Finding:
    """One kind of thing in one split, or between two.

    Attributes:
        code: what programs know it by; does not change.
        severity: one of `SEVERITIES`.
        split: train, val or test; `train, val` where it is between them.
        count: how many rows, or groups of them, it concerns.
        total: of so many.
        text: one sentence.
        advice: what to do, which may be nothing.
        examples: the first few places.
        rows: int64, all of the rows, in the numbering of `Seen`.
        groups: rows that belong together, if it is about groups.
    """

    code: str
    severity: str
    split: str
    count: int
    total: int
    text: str
    advice: str = ""
    examples: tuple[str, ...] = ()
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), compare=False, repr=False)
    groups: Groups | None = field(default=None, compare=False, repr=False)


class Seen:
    """The rows of all splits under one numbering: those of the first split, then those of the next, ...

    Args:
        scans: split -> what was seen of it; a split that is another one's rows is left out by the caller.

    Attributes:
        starts: int64 [splits + 1], where each split begins.
        pictures: `PICTURE` [rows].
        split_of: int64 [rows], the number of each row's split.
    """

    def __init__(self, scans: dict[str, Scan]):
        self.scans = scans
        self.names = list(scans)
        self.starts = np.cumsum([0, *(len(each) for each in scans.values())])
        self.pictures = np.concatenate([each.pictures for each in scans.values()])
        self.split_of = np.repeat(np.arange(len(scans)), [len(each) for each in scans.values()])
        self._folders = {name: _folder(scan) for name, scan in scans.items()}

    def within(self, name: str) -> slice:
        """Return the rows of a split."""
        number = self.names.index(name)
        return slice(int(self.starts[number]), int(self.starts[number + 1]))

    def located(self, row: int) -> tuple[str, int]:
        """Return a row's split, and its number there."""
        number = int(self.split_of[row])
        return self.names[number], int(row - self.starts[number])

    def place(self, row: int) -> str:
        """Return where a row is, for people: its picture and where it was written, from the data's folder on."""
        name, inside = self.located(row)
        split = self.scans[name].split
        picture, written = (
            text.removeprefix(self._folders[name]) for text in (split.picture_name(inside), split.place(inside))
        )
        return picture if picture == written else f"{picture} ({written})"

    def reason(self, row: int) -> str:
        """Return why a row's picture cannot be read, if it cannot."""
        name, inside = self.located(row)
        return self.scans[name].reasons.get(inside, "")

    def captions(self, row: int) -> list[str]:
        """Return a row's captions."""
        name, inside = self.located(row)
        return self.scans[name].split.captions(inside)

    def of_rows(
        self,
        code: str,
        severity: str,
        split: str,
        rows: np.ndarray,
        total: int,
        text: str,
        advice: str,
        more: Callable[[int], str] | None = None,
    ) -> list[Finding]:
        """Return a finding about some rows, or none where there are none.

        Args:
            code: see `Finding`, as for `severity`, `split`, `total` and `advice`.
            severity: see `Finding`.
            split: see `Finding`.
            rows: in this numbering.
            total: see `Finding`.
            text: with `{}` for the count, and `[is|are]` where it matters whether that is one.
            advice: see `Finding`.
            more: what an example says of a row beside its place.
        """
        if not len(rows):
            return []
        examples = tuple(_with(self.place(row), more and more(row)) for row in rows[:EXAMPLES].tolist())
        return [Finding(code, severity, split, len(rows), total, said(text, len(rows)), advice, examples, rows)]

    def of_groups(
        self,
        code: str,
        severity: str,
        split: str,
        groups: Groups,
        total: int,
        text: str,
        advice: str,
        more: Callable[[int], str] | None = None,
        count: int | None = None,
    ) -> list[Finding]:
        """Return a finding about groups of rows, or none; counted are all rows but the first of each group.

        The arguments are those of `of_rows`; `count` is another count of rows.
        """
        if not len(groups):
            return []
        count = len(groups.rows) - len(groups) if count is None else count
        examples = tuple(
            _with(
                " = ".join(_few([self.place(row) for row in group[:EXAMPLES].tolist()], len(group))),
                more and more(int(group[0])),
            )
            for group in _first(groups)
        )
        text = said(text, count)
        return [Finding(code, severity, split, count, total, text, advice, examples, groups.rows, groups)]


def _folder(scan: Scan) -> str:
    """Return what the places of a split begin with, if it is of one place: its folder."""
    if len(scan.split.parts) != 1:
        return ""
    place = scan.split.parts[0].name.rstrip("/")
    folder = place if Path(place).is_dir() else place.rpartition("/")[0]
    return f"{folder}/" if folder else ""


def _first(groups: Groups) -> Sequence[np.ndarray]:
    bounds = [*groups.starts[: EXAMPLES + 1].tolist(), len(groups.rows)]
    return [groups.rows[start:end] for start, end in zip(bounds[:EXAMPLES], bounds[1:], strict=False)]


def _few(places: list[str], of: int) -> list[str]:
    return places if of <= len(places) else [*places, f"{of - len(places):,} more"]


def _with(place: str, more: str | None) -> str:
    return f"{place}: {more}" if more else place


def said(text: str, count: int) -> str:
    """Fill a count into a text: `{} [is|are] here` becomes `1 is here`."""
    return re.sub(r"\[([^|\]]*)\|([^\]]*)\]", r"\1" if count == 1 else r"\2", text).format(f"{count:,}")


def shortened(text: str, limit: int = 60) -> str:
    """Return a text on one line, cut where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
