"""Target against canary, as a picture (Wortsman et al. 2022, arXiv 2109.01903, figure 1)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.averaging.tradeoff import Panel, Scores

_INK, _MARK = "#1f4e79", "#157f3b"


def draw(points: Sequence[tuple[str, Scores]], chosen: int, panel: Panel, title: str, line: bool) -> Any:
    """Return a matplotlib figure of models by what they gain and what they keep.

    Args:
        points: names and scores.
        chosen: which of them is marked.
        panel: what was measured; without canaries, targets are drawn in order.
        title: above it.
        line: join the points.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    targets = [100 * scores.target for _, scores in points]
    if panel.canaries:
        across = [100 * scores.canary for _, scores in points]
        axes.set_xlabel(f"canary: {', '.join(f'{each.name} ({each.metric})' for each in panel.canaries)}, %")
    else:
        across = list(range(len(points)))
        axes.set_xticks(across, [name for name, _ in points], rotation=45, ha="right")
    axes.plot(across, targets, "o-" if line else "o", color=_INK, markersize=5, linewidth=1)
    axes.plot(across[chosen], targets[chosen], "*", color=_MARK, markersize=18, label=f"chosen: {points[chosen][0]}")
    for (name, _), x, y in zip(points, across, targets, strict=True):
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(6, 5), fontsize=8, color="#555555")
    axes.set_ylabel(f"target: {panel.target.name} ({panel.target.metric}), %")
    axes.set_title(title, fontsize=11)
    axes.margins(0.12)  # room for the names
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    return figure


def pixels(figure: Any) -> np.ndarray:
    """Return a figure as uint8 [H, W, 3], for TensorBoard."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]
