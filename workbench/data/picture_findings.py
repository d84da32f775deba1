"""What is wrong, or unusual, with pictures."""

import numpy as np

from workbench.data.findings import BREAKS, INFORMATION, WARNING, Finding, Seen, shortened
from workbench.data.pictures import DEEP, FORMATS, MODES, Mark, Status
from workbench.data.planning import Plan

TINY = 32
"""Pixels of the shorter side, below which there is hardly anything to see."""
HUGE = 25_000_000
"""Pixels, above which reading takes a tenth of a second and more."""
LONG, VERY_LONG = 4, 64
"""Longer side by shorter one; beyond the second, transforms leave the ends out."""

_UNREADABLE = {
    Status.MISSING: (
        "missing-pictures",
        "[is|are] not there",
        "Restore them, or check the root of the paths (--data.root).",
    ),
    Status.EMPTY: ("empty-files", "[is a file|are files] of 0 bytes", "Fetch them again, or take their rows out."),
    Status.TRUNCATED: ("truncated-pictures", "[is|are] cut short", "Fetch them again, or take their rows out."),
    Status.UNREADABLE: ("unreadable-pictures", "cannot be read", "Fetch them again, or take their rows out."),
    Status.BOMB: (
        "refused-pictures",
        "[has|have] too many pixels: refused, as a decompression bomb is",
        "Make them smaller, or take their rows out.",
    ),
}


def picture_findings(seen: Seen, plan: Plan, name: str) -> list[Finding]:
    """Return the findings about the pictures of a split."""
    return [*_unreadable(seen, plan, name), *_unusual(seen, plan, name)]


def _unreadable(seen: Seen, plan: Plan, name: str) -> list[Finding]:
    within = seen.within(name)
    status = seen.pictures["status"][within]
    total, broken = len(status), int((status != Status.READABLE).sum())
    allowed = plan.data.on_error.allowed(total)
    severity = BREAKS if broken > allowed else WARNING
    budget = f" {allowed:,} of {total:,} may be skipped in training (--data.max_skipped)."
    found = []
    for number, (code, what, advice) in _UNREADABLE.items():
        rows = np.flatnonzero(status == number) + within.start
        found += seen.of_rows(
            code,
            severity,
            name,
            rows,
            total,
            f"{{}} of {total:,} pictures {what}.",
            advice + budget,
            None if number in (Status.MISSING, Status.EMPTY) else lambda row: shortened(seen.reason(row), 100),
        )
    outside = np.flatnonzero(status == Status.OUTSIDE) + within.start
    found += seen.of_rows(
        "pictures-outside-root",
        BREAKS if plan.refused is not None else severity,
        name,
        outside,
        total,
        f"{{}} of {total:,} pictures [lies|lie] outside the root of the paths and [is|are] not opened.",
        "Move them, or name a folder above all pictures with --data.root.",
    )
    return found


def _unusual(seen: Seen, plan: Plan, name: str) -> list[Finding]:
    within = seen.within(name)
    pictures = seen.pictures[within]
    total, size = len(pictures), plan.data.image_size
    there = pictures["status"] == Status.READABLE
    width, height = pictures["width"].astype(np.int64), pictures["height"].astype(np.int64)
    shorter, longer = np.minimum(width, height), np.maximum(width, height)
    marks, mode = pictures["marks"], pictures["mode"]
    long = longer / np.maximum(shorter, 1)

    def side(row: int) -> str:
        return f"{seen.pictures['width'][row]} x {seen.pictures['height'][row]}"

    kinds = [
        (
            "tiny-pictures",
            WARNING,
            shorter < TINY,
            f"[has|have] a side of less than {TINY} pixels",
            f"They are enlarged to {size} pixels; leave them out unless they are meant to be so small.",
            side,
        ),
        (
            "small-pictures",
            INFORMATION,
            (shorter >= TINY) & (shorter < size),
            f"[has|have] a side of less than the model's {size} pixels",
            "They are enlarged.",
            side,
        ),
        (
            "huge-pictures",
            INFORMATION,
            width * height > HUGE,
            f"[has|have] more than {HUGE // 10**6} million pixels",
            "They are slow to decode; store them at twice the model's size.",
            side,
        ),
        (
            "long-pictures",
            INFORMATION,
            (long > LONG) & (long <= VERY_LONG),
            f"[is|are] more than {LONG} times as long as wide",
            "Evaluation sees the middle alone.",
            side,
        ),
        (
            "very-long-pictures",
            WARNING,
            long > VERY_LONG,
            f"[is|are] more than {VERY_LONG} times as long as wide",
            "Hardly anything of them is seen; leave them out, or cut them into pieces.",
            side,
        ),
        (
            "animated-pictures",
            INFORMATION,
            marks & Mark.ANIMATED > 0,
            "[has|have] several frames",
            "The first one is taken.",
            None,
        ),
        (
            "one-colour-pictures",
            WARNING,
            marks & Mark.ONE_COLOUR > 0,
            "[is|are] of one colour",
            "There is nothing in them to learn; look whether they stand for pictures that could not be had.",
            None,
        ),
        (
            "turned-pictures",
            INFORMATION,
            marks & Mark.TURNED > 0,
            "[is|are] stored turned (EXIF)",
            "They are turned upright.",
            None,
        ),
        (
            "transparent-pictures",
            INFORMATION,
            marks & Mark.TRANSPARENT > 0,
            "[is|are] transparent in places",
            "They are laid on white.",
            None,
        ),
        ("palette-pictures", INFORMATION, mode == MODES.index("P"), "[has|have] a palette", "", None),
        (
            "cmyk-pictures",
            INFORMATION,
            mode == MODES.index("CMYK"),
            "[is|are] in CMYK, the colours of print",
            "They are converted to RGB without a colour profile.",
            None,
        ),
        (
            "deep-pictures",
            INFORMATION,
            np.isin(mode, DEEP),
            "[has|have] more than 8 bits a channel",
            "Their range is scaled to 8 bits.",
            None,
        ),
    ]
    found = []
    for code, severity, chosen, what, advice, more in kinds:
        rows = np.flatnonzero(there & chosen) + within.start
        found += seen.of_rows(code, severity, name, rows, total, f"{{}} of {total:,} pictures {what}.", advice, more)
    return found


def picture_statistics(pictures: np.ndarray) -> dict[str, object]:
    """Return counts and sizes of `PICTURE` [N]: plain values, for a report."""
    there = pictures[pictures["status"] == Status.READABLE]
    return {
        "rows": len(pictures),
        "readable": len(there),
        "bytes": int(pictures["bytes"].sum()),
        "formats": _counted(FORMATS, there["format"]),
        "modes": _counted(MODES, there["mode"]),
        "turned": int((there["marks"] & Mark.TURNED > 0).sum()),
        "animated": int((there["marks"] & Mark.ANIMATED > 0).sum()),
        "transparent": int((there["marks"] & Mark.TRANSPARENT > 0).sum()),
        "width": _range(there["width"]),
        "height": _range(there["height"]),
        "bytes_of_a_picture": _range(there["bytes"]),
    }


def _counted(names: tuple[str, ...], numbers: np.ndarray) -> dict[str, int]:
    counts = np.bincount(numbers, minlength=len(names))
    return {
        names[number] or "in memory": int(counts[number])
        for number in np.argsort(-counts, kind="stable")
        if counts[number]
    }


def _range(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}
