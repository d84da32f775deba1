"""What was found, as files: tables, pictures, TensorBoard events, and weights."""

import csv
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.atomic import written_atomically
from workbench.averaging.chart import draw, pixels
from workbench.averaging.tradeoff import Panel, Points, Scores, choose
from workbench.export import safetensors
from workbench.models import CLIP

START = "start.ckpt"
"""In the folder of a run's checkpoints: the weights that it started from."""
_PER_CENT = 100


class Curve:
    """From a start to an end: what the weights between them are worth, and which were chosen.

    Args:
        points: of the curve.
        panel: what was measured.
        keep: see `choose`.

    Attributes:
        alpha: the chosen one.
        rule: by which, in words.
    """

    def __init__(self, points: Points, panel: Panel, keep: float | None = None):
        self.points, self.panel = points, panel
        self.alpha, self.rule = choose(points, keep)

    @property
    def scores(self) -> dict[float, Scores]:
        """What the weights are worth, by alpha."""
        return dict(self.points)

    def write(self, folder: Path, name: str, **about: Any) -> None:
        """Write `<name>.csv` and `<name>.json`, with what else there is to say."""
        rows = [{"alpha": alpha, **as_row(scores)} for alpha, scores in self.points]
        chosen = {"chosen": self.alpha, "rule": self.rule}
        write_tables(folder, name, rows, {**chosen, **about, **self.panel.described()})

    def figure(self) -> Any:
        """Draw it, with matplotlib."""
        points = [(f"{alpha:.2f}", scores) for alpha, scores in self.points]
        chosen = [alpha for alpha, _ in self.points].index(self.alpha)
        return draw(points, chosen, self.panel, "From the start (alpha 0) to the end (alpha 1)", line=True)

    def log(self, writer: Any, tag: str) -> None:
        """Hand target and canary to a `SummaryWriter`, whose axis counts whole steps: alpha in per cent."""
        for alpha, scores in self.points:
            place = round(_PER_CENT * alpha)
            writer.add_scalar(f"{tag}/target", scores.target, place)
            if scores.canary is not None:
                writer.add_scalar(f"{tag}/canary", scores.canary, place)


def as_row(scores: Scores) -> dict[str, float | None]:
    """Return target, canary, each canary and every metric of a model by name."""
    each = {f"canary/{name}": value for name, value in scores.canaries.items()}
    return {"target": scores.target, "canary": scores.canary, **each, **scores.metrics}


def write_tables(folder: Path, name: str, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Write `<name>.csv` with a line for each model, and `<name>.json` with the same and what is said about it."""
    with written_atomically(folder / f"{name}.csv", "w") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    with written_atomically(folder / f"{name}.json", "w") as file:
        json.dump({**about, "models": list(rows)}, file, indent=2)


def write_picture(path: Path, figure: Any) -> None:
    """Write a matplotlib figure as PNG."""
    with written_atomically(path) as file:
        figure.savefig(file, format="png", dpi=110)


def log_picture(writer: Any, tag: str, figure: Any, step: int = 0) -> None:
    """Hand a matplotlib figure to a `SummaryWriter`."""
    writer.add_image(f"{tag}/target_and_canary", pixels(figure), step, dataformats="HWC")
    writer.flush()


def write_weights(path: Path, model: CLIP, origin: Mapping[str, Any]) -> None:
    """Write a model as safetensors that `weights:` and `workbench.load` take, with its description in the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as beside:
        safetensors.write(model, Path(beside), dict(origin))
        written = Path(beside) / "model.safetensors"
        written.chmod(0o644)  # safetensors writes for nobody else
        os.replace(written, path)  # noqa: PTH105 - Path.replace is the same call
