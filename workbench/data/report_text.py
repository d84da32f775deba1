"""A check for the screen."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from workbench.data.checking import Check
from workbench.data.findings import BREAKS, EXAMPLES, SEVERITIES, Finding

_TITLES = {
    "breaks training": "WOULD BREAK TRAINING",
    "warning": "WARNINGS",
    "information": "FOR INFORMATION",
}
_WIDEST = 120
_JOINERS = "\u200c\u200d"  # of scripts and emoji


def report_text(check: Check) -> str:
    """Return findings by severity with examples and what to do, below the data's numbers."""
    width = min(_WIDEST, max(60, shutil.get_terminal_size((_WIDEST, 24)).columns))
    lines = [printable(check.plan.name), *_numbers(check, width), *(f"note: {notice}" for notice in check.plan.notices)]
    for severity in SEVERITIES:
        found = [finding for finding in check.findings if finding.severity == severity]
        if found:
            lines += ["", _TITLES[severity]]
            column = max(len(finding.split) for finding in found) + 2
            for finding in found:
                lines += _finding(finding, column, width)
    return "\n".join([*lines, "", *what_next(check)])


def _numbers(check: Check, width: int) -> Iterator[str]:
    column = max(map(len, (*check.statistics, "batches"))) + 2
    for name, told in _told(check):
        yield from _wrapped(f"  {name:<{column}}", told, width)


def _told(check: Check) -> Iterator[tuple[str, str]]:
    """Yield lines of numbers, and what stands before each."""
    for name, found in check.statistics.items():
        pictures = found["pictures"]
        told = f"{pictures['rows']:,} rows"
        if pictures["bytes"]:
            told += f", {readable_bytes(pictures['bytes'])} of pictures"
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in list(pictures["formats"].items())[:4])
        yield name, told + (f" ({kinds})" if kinds else "")
        if pictures["width"]:
            sides = " x ".join(f"{pictures[side]['median']:.0f}" for side in ("width", "height"))
            yield "", f"median picture {sides} pixels; {_captions(found['captions'], check.plan.data.context_length)}"
        if "classes" in found:
            classes = found["classes"]
            yield (
                "",
                f"{classes['classes']:,} classes of {classes['min']:,} to {classes['max']:,} pictures, median "
                f"{classes['median']:g}",
            )
    batches, measured = check.batches, check.measured
    if batches.get("steps"):
        yield "batches", f"{batches['steps']:,} of {batches['batch_size']:,} an epoch"
    if "pictures_per_second" in measured:
        yield (
            "speed",
            f"{measured['pictures_per_second']:,.0f} pictures/s in one process; with {measured['workers']} about "
            f"{measured['expected_pictures_per_second']:,.0f}/s, an epoch of reading in "
            f"{readable_seconds(measured['seconds_per_epoch'])}",
        )


def _captions(captions: Mapping[str, Any], context_length: int) -> str:
    if not captions["captions"]:
        return "no captions"
    tokens = captions["tokens"]
    return (
        f"{captions['captions']:,} captions, {captions['different']:,} different, of {tokens['median']:g} tokens "
        f"(95 %: {tokens['95%']:g}, longest {tokens['max']}; {context_length} fit)"
    )


def _finding(finding: Finding, column: int, width: int) -> Iterator[str]:
    yield from _wrapped(f"  {finding.split:<{column}}", finding.text, width)
    indent = " " * (column + 4)
    for example in finding.examples[:EXAMPLES]:
        yield from _wrapped(indent, _shortened(example, 2 * (width - len(indent))), width)
    if len(finding.examples) == EXAMPLES and finding.count > EXAMPLES:
        yield f"{indent}..."
    if finding.advice:
        yield from _wrapped(f"{' ' * (column + 2)}-> ", finding.advice, width)


def _wrapped(first: str, text: str, width: int) -> list[str]:
    wrapper = textwrap.TextWrapper(width, first, " " * len(first), break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(printable(text))


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def what_next(check: Check) -> list[str]:
    """Return what to do now, one line each."""
    counts = {severity: sum(f.severity == severity for f in check.findings) for severity in SEVERITIES}
    if counts[BREAKS]:
        lines = [f"Training on this would fail: {_counted(counts[BREAKS], 'finding')}."]
    elif counts["warning"]:
        lines = [f"This can be trained on; look at {_counted(counts['warning'], 'warning')}."]
    else:
        lines = ["This can be trained on."]
    this = check.plan.command
    if FIXED & {finding.code for finding in check.findings}:
        lines.append(
            "A table of train without what is broken, repeated or held out: python -m workbench data check "
            f"{this} --fix cleaned.csv"
        )
    lines.append(f"See what the model sees: python -m workbench data show {this}")
    return lines


FIXED = {
    *("missing-pictures", "empty-files", "truncated-pictures", "unreadable-pictures", "refused-pictures"),
    *("pictures-outside-root", "empty-captions", "blank-captions", "repeated-pairs", "shared-pictures"),
    "shared-captions",
}
"""Codes of what `--fix` leaves out."""


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def printable(text: str) -> str:
    """Return a text without characters that would move the cursor, colour the screen or turn the direction."""
    return "".join(char if char.isprintable() or char in _JOINERS else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"


def readable_bytes(count: float) -> str:
    """Return a size in the unit that suits it."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def readable_seconds(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
