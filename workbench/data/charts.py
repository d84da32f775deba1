"""Bars for the page, as numbers that a template draws."""

from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 520, 150
_MOST_BARS = 60
_LEAST_OCTAVES = 4


@dataclass(frozen=True)
class Bar:
    """One bar, in units of the drawing: left upper corner, width and height, and what it says."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Chart:
    """Bars above an axis.

    Attributes:
        title: of the chart.
        bars: from left to right.
        ticks: position and text of the marks on the axis.
        line: position and text of a vertical line, if there is one.
        highest: text of the highest bar's count.
    """

    title: str
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    line: tuple[float, str] | None
    highest: str


def token_chart(lengths: list[list[int]], context_length: int) -> Chart:
    """Return how many captions have how many tokens.

    Args:
        lengths: pairs of a length and a count.
        context_length: where longer ones are cut.
    """
    values, counts = np.array(lengths, dtype=np.int64).T
    top = int(max(values.max(), min(context_length, 2 * values.max())))
    step = max(1, -(-(top + 1) // _MOST_BARS))
    edges = np.arange(0, top + 1 + step, step)
    heights = np.histogram(values, edges, weights=counts)[0].astype(np.int64)
    titles = [
        f"{low}{'' if step == 1 else f' to {low + step - 1}'} tokens: {count:,}"
        for low, count in zip(edges.tolist(), heights.tolist(), strict=False)
    ]
    line = None
    if context_length <= top:
        line = ((context_length + 1) / edges[-1] * WIDTH, f"{context_length} fit")
    return _chart("Captions by tokens", heights, titles, _round_ticks(0, int(edges[-1])), line)


def side_chart(shorter: np.ndarray, image_size: int) -> Chart | None:
    """Return how many pictures have a shorter side of how many pixels, in steps of half an octave."""
    shorter = shorter[shorter > 0]
    if not len(shorter):
        return None
    octaves = np.log2(shorter)
    low, high = np.floor(octaves.min() * 2) / 2 - 0.5, np.floor(octaves.max() * 2) / 2 + 1
    while high - low < _LEAST_OCTAVES:
        low, high = max(0.0, low - 0.5), high + 0.5
    edges = np.arange(low, high + 0.25, 0.5)
    heights = np.histogram(octaves, edges)[0]
    titles = [
        f"{2**start:.0f} to {2 ** (start + 0.5):.0f} pixels: {count:,}"
        for start, count in zip(edges.tolist(), heights.tolist(), strict=False)
    ]
    span = edges[-1] - edges[0]
    ticks = [((octave - edges[0]) / span, f"{2**octave:.0f}") for octave in edges if float(octave).is_integer()]
    where = (np.log2(image_size) - edges[0]) / span
    line = (where * WIDTH, f"model: {image_size}") if 0 <= where <= 1 else None
    return _chart("Pictures by their shorter side", heights, titles, ticks, line)


def class_chart(counts: dict[str, int]) -> Chart:
    """Return the pictures of each class, the largest class first; of many classes, means of neighbours."""
    names = sorted(counts, key=lambda name: (-counts[name], name))
    parts = np.array_split(np.arange(len(names)), min(_MOST_BARS, len(names)))
    heights = np.array([np.mean([counts[names[n]] for n in part]) for part in parts])
    titles = [
        f"{names[part[0]]}: {counts[names[part[0]]]:,}"
        if len(part) == 1
        else f"{len(part)} classes from {names[part[0]]} to {names[part[-1]]}: {height:,.1f} on average"
        for part, height in zip(parts, heights, strict=True)
    ]
    return _chart("Classes by their pictures", heights, titles, [(0.0, "1"), (1.0, f"{len(names):,}")], None)


def _chart(
    title: str,
    heights: np.ndarray,
    titles: list[str],
    ticks: list[tuple[float, str]],
    line: tuple[float, str] | None,
) -> Chart:
    highest, width = max(float(heights.max()), 1.0), WIDTH / len(heights)
    bars = tuple(
        Bar(number * width + 0.5, HEIGHT * (1 - height / highest), max(width - 1, 0.5), HEIGHT * height / highest, said)
        for number, (height, said) in enumerate(zip(heights.tolist(), titles, strict=True))
        if height
    )
    return Chart(title, bars, tuple((where * WIDTH, text) for where, text in ticks), line, f"{highest:,.0f}")


def _round_ticks(low: int, high: int) -> list[tuple[float, str]]:
    step = next(step for step in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 10_000, 100_000) if high / step <= 8)
    return [((value - low) / (high - low), f"{value:,}") for value in range(low, high, step)]
