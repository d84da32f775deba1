"""A check as one page for a browser: it holds all that it shows, and runs nothing."""

import base64
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from workbench.atomic import written_atomically
from workbench.data.charts import HEIGHT, WIDTH, class_chart, side_chart, token_chart
from workbench.data.checking import Check
from workbench.data.findings import SEVERITIES, Finding, Seen, shortened
from workbench.data.pictures import Status
from workbench.data.report_text import printable, readable_bytes, readable_seconds, what_next
from workbench.decoding import open_picture, readable
from workbench.errors import UserError

TEMPLATE = "report.html.j2"
_ROWS, _GROUPS, _OF_A_GROUP, _SAMPLE = 6, 3, 4, 24
_SIDE, _QUALITY = 168, 80
_LETTERS = 160


@dataclass(frozen=True)
class Shown:
    """A row on the page.

    Attributes:
        place: where it is.
        caption: its captions.
        picture: a data URL, or empty where there is none.
        reason: why there is none.
        split: of the row.
    """

    place: str
    caption: str
    picture: str
    reason: str
    split: str


def write_html(check: Check, path: Path, seed: int = 0) -> None:
    """Write the page.

    Args:
        check: what was found.
        path: of the page.
        seed: of the pairs that are shown as a sample.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # captions, names of files and of classes are whatever somebody wrote
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown_as_it_is,
    )
    environment.filters |= {"bytes": readable_bytes, "seconds": readable_seconds}
    text = environment.get_template(TEMPLATE).render(_values(check, seed))
    with written_atomically(path, "w") as file:
        file.write(text)


def _shown_as_it_is(value: Any) -> Any:
    """Return a text without control characters; what a template made is left alone."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _values(check: Check, seed: int) -> dict[str, Any]:
    shown = _Thumbnails(check.seen)
    return {
        "name": check.plan.name,
        "breaks": check.breaks,
        "notices": check.plan.notices,
        "next": what_next(check),
        "settings": check.plan.data,
        "statistics": check.statistics,
        "batches": check.batches,
        "measured": check.measured,
        "groups": [
            (
                severity,
                [(finding, _examples(shown, finding)) for finding in check.findings if finding.severity == severity],
            )
            for severity in SEVERITIES
        ],
        "charts": {name: _charts(check, name) for name in check.statistics},
        "sample": [shown(row) for row in _sample(check.seen, seed)],
        "seed": seed,
        "width": WIDTH,
        "height": HEIGHT,
    }


def _with_examples(check: Check, shown: "_Thumbnails", severity: str) -> list[tuple[Finding, list[list[Shown]]]]:
    found = [finding for finding in check.findings if finding.severity == severity]
    return [(finding, _examples(shown, finding)) for finding in found]


def _examples(shown: "_Thumbnails", finding: Finding) -> list[list[Shown]]:
    """Return rows that are shown, those of a group together."""
    if finding.groups is None:
        return [[shown(row)] for row in finding.rows[:_ROWS].tolist()]
    starts = finding.groups.starts
    bounds = [*starts[: _GROUPS + 1].tolist(), len(finding.rows)][: _GROUPS + 1]
    return [
        [shown(row) for row in finding.rows[start : min(end, start + _OF_A_GROUP)].tolist()]
        for start, end in zip(bounds, bounds[1:], strict=False)
    ]


def _charts(check: Check, name: str) -> list[Any]:
    statistics, data = check.statistics[name], check.plan.data
    charts = []
    if statistics["captions"]["captions"]:
        charts.append(token_chart(statistics["captions"]["lengths"], data.context_length))
    pictures = check.seen.scans[name].pictures
    shorter = np.minimum(pictures["width"], pictures["height"])[pictures["status"] == Status.READABLE]
    charts.append(side_chart(shorter, data.image_size))
    if "classes" in statistics:
        charts.append(class_chart(statistics["classes"]["counts"]))
    return [chart for chart in charts if chart is not None]


def _sample(seen: Seen, seed: int) -> list[int]:
    rows = np.flatnonzero(seen.pictures["status"] == Status.READABLE)
    return np.sort(np.random.default_rng(seed).permutation(rows)[:_SAMPLE]).tolist()


class _Thumbnails:
    """Row -> what is shown of it; a row that comes again is read once."""

    def __init__(self, seen: Seen):
        self.seen = seen
        self._known: dict[int, Shown] = {}

    def __call__(self, row: int) -> Shown:
        if row not in self._known:
            name, inside = self.seen.located(row)
            picture = ""
            if self.seen.pictures["status"][row] == Status.READABLE:
                picture = _data_url(self.seen.scans[name].split.read, inside)
            reason = "" if picture else shortened(self.seen.reason(row) or "cannot be read", _LETTERS)
            captions = " / ".join(repr(text) if not text.strip() else text for text in self.seen.captions(row)[:3])
            caption = shortened(captions, _LETTERS)
            self._known[row] = Shown(self.seen.place(row), caption, picture, reason, name)
        return self._known[row]


def _data_url(read: Any, row: int) -> str:
    """Return a small JPEG of a picture as a URL; empty if it cannot be read any more."""
    try:
        content = read(row)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with open_picture(content if isinstance(content, Image.Image) else io.BytesIO(content)) as opened:
                opened.draft("RGB", (2 * _SIDE, 2 * _SIDE))
                picture = readable(opened).convert("RGB")
    except (UserError, OSError, ValueError, Image.DecompressionBombError):
        return ""
    picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
