"""A check for programs."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workbench.atomic import written_atomically
from workbench.data.checking import Check
from workbench.data.findings import Finding, Seen

VERSION = 1
"""Rises when a key changes its meaning or goes."""


def write_json(check: Check, path: Path) -> None:
    """Write all of a check; what depends on the machine is under `measured` alone."""
    with written_atomically(path, "w") as file:
        json.dump(as_values(check), file, indent=1, ensure_ascii=False)
        file.write("\n")


def as_values(check: Check) -> dict[str, Any]:
    """Return all of a check as values that `json.dump` writes; those of rows are made on the way."""
    data = check.plan.data
    return {
        "version": VERSION,
        "target": check.plan.name,
        "breaks_training": check.breaks,
        "settings": {
            "batch_size": data.batch_size,
            "image_size": data.image_size,
            "context_length": data.context_length,
            "avoid_false_negatives": data.avoid_false_negatives,
            "max_skipped": data.on_error.budget,
            "max_pixels": data.max_pixels,
            "seed": data.seed,
        },
        "refused": check.plan.refused,
        "notices": list(check.plan.notices),
        "splits": dict(check.statistics),
        "batches": dict(check.batches),
        "findings": [_finding(check.seen, finding) for finding in check.findings],
        "measured": dict(check.measured),
    }


def _finding(seen: Seen, finding: Finding) -> dict[str, Any]:
    values: dict[str, Any] = {
        "code": finding.code,
        "severity": finding.severity,
        "split": finding.split,
        "count": finding.count,
        "total": finding.total,
        "text": finding.text,
        "advice": finding.advice,
        "examples": list(finding.examples),
    }
    if finding.groups is not None:
        groups = finding.groups
        values["groups"] = _Lazy(lambda: ([_row(seen, row) for row in group.tolist()] for group in groups), len(groups))
    else:
        values["rows"] = _Lazy(lambda: (_row(seen, row) for row in finding.rows.tolist()), len(finding.rows))
    return values


class _Lazy(list):  # a list is what the encoder takes for one
    """Values that are made when they are written: of millions of rows they would fill the memory."""

    def __init__(self, values: Callable[[], Iterator[Any]], count: int):
        super().__init__()
        self.values, self.count = values, count

    def __iter__(self) -> Iterator[Any]:
        return self.values()

    def __len__(self) -> int:
        return self.count


def _row(seen: Seen, row: int) -> dict[str, Any]:
    name, inside = seen.located(row)
    split = seen.scans[name].split
    values = {"split": name, "row": inside, "place": split.place(inside), "picture": split.picture_name(inside)}
    reason = seen.reason(row)
    return {**values, "reason": reason} if reason else values
