"""Rows as a table: for the screen, for a text, for a program, for a paper."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from workbench.report.reading import Row

_PLAIN = ("run", "folder", "method", "target", "start", "end", "gained")
_AFTER = ("trained", "share", "seconds", "steps", "device", "status")
_OF_CANARY = ("start", "now", "drop")
_WORDS = ("run", "method", "target", "device", "status")
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}
_ESCAPED = str.maketrans(_LATEX)


def _columns(rows: Sequence[Row]) -> list[Any]:
    canaries = dict.fromkeys(key[0] for row in rows for key in row if isinstance(key, tuple))
    return [*_PLAIN, *((name, what) for name in canaries for what in _OF_CANARY), *_AFTER]


def _shown(key: Any, row: Row) -> str:
    """Return a cell for people: shares as per cent, but losses as they are; gains and drops in points."""
    value, what = row.get(key), key[1] if isinstance(key, tuple) else key
    if value is None:
        return ""
    if what in ("start", "end", "now"):
        return f"{value:.3f}" if key in ("start", "end") and "loss" in row["target"] else f"{value:.1%}"
    if what in ("gained", "drop"):
        return f"{value:+.1f}"
    if what == "share":
        return f"{value:.2%}"
    if what == "seconds":
        return f"{int(value) // 3600}:{int(value) // 60 % 60:02}:{int(value) % 60:02}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table(rows: Sequence[Row]) -> tuple[list[Any], list[str], list[list[str]]]:
    """Return keys, headers and cells for people, without columns that are empty."""
    keys = [key for key in _columns(rows) if key != "folder" and any(key in row for row in rows)]
    titles = {"seconds": "time"}
    headers = [" ".join(key) if isinstance(key, tuple) else titles.get(key, key) for key in keys]
    return keys, headers, [[_shown(key, row) for key in keys] for row in rows]


def as_text(rows: Sequence[Row]) -> str:
    """Return columns that are aligned with spaces."""
    keys, headers, cells = _table(rows)
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    lines = []
    for line in (headers, ["-" * width for width in widths], *cells):
        padded = (
            cell.ljust(width) if key in _WORDS else cell.rjust(width)
            for key, cell, width in zip(keys, line, widths, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines) + "\n"


def as_markdown(rows: Sequence[Row]) -> str:
    """Return a table of GitHub's Markdown."""
    keys, headers, cells = _table(rows)
    rule = ["---" if key in _WORDS else "---:" for key in keys]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (headers, rule, *cells)]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def as_csv(rows: Sequence[Row]) -> str:
    """Return every column with its numbers as they are: shares, points, seconds."""
    file = io.StringIO()
    keys = _columns(rows)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([" ".join(key) if isinstance(key, tuple) else key for key in keys])
    writer.writerows([row.get(key, "") for key in keys] for row in rows)
    return file.getvalue()


def as_latex(rows: Sequence[Row]) -> str:
    """Return a `tabular` with the rules of the package booktabs."""
    keys, *table = _table(rows)
    headers, *cells = ([cell.translate(_ESCAPED) for cell in line] for line in (table[0], *table[1]))
    lines = [" & ".join(line) + r" \\" for line in (headers, *cells)]
    columns = "".join("l" if key in _WORDS else "r" for key in keys)
    body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}"]) + "\n"


FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "csv": as_csv,
    "latex": as_latex,
}
"""What makes a table of rows."""
