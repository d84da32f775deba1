"""Seconds of the linear probe's whole protocol, ours and scikit-learn's: `python -m benchmarks.linear_probe`.

The protocol is that of the paper: at most 15 strengths on train, each measured on val, and a fit on both. The two take
turns, round by round, on one core; times are CPU times, and medians are reported. scikit-learn runs L-BFGS with
max_iter 1,000 as the paper does, with two tolerances. The paper's was 1e-4 of the gradient of the summed loss, which is
`tol=1e-4 / rows` now that scikit-learn takes the mean; and there is today's default, `tol=1e-4`, which stops early. How
early, is seen by the distance of the last weights from the solution for the strength that was chosen.

Features are digits' pixels, and random ones with what makes CLIP's hard: a mean far from zero, an outlying dimension,
and directions whose sizes fall over a range of twenty.
"""

import argparse
import importlib.metadata
import itertools
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression as Reference
from torch import Tensor

from workbench.evaluation import linear_probe as ours
from workbench.evaluation.logistic_regression import LinearClassifier, LogisticRegression

Rows = tuple[Tensor, Tensor]
TOLERANCE = 1e-4


def features(rows: int, width: int, classes: int, signal: float, seed: int = 0) -> Rows:
    """Return random features [rows, width] and labels; `signal` is the distance of the classes' means."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    sizes = 3 * torch.arange(1, width + 1).float().pow(-0.5)
    means = torch.randn(classes, width, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    found = (torch.randn(rows, width, generator=generator) + signal * means[labels]) * sizes @ axes.T
    found += 0.5 * torch.randn(width, generator=generator)
    found[:, 0] += 10
    return found, labels


def split(rows: Rows) -> tuple[Rows, Rows, Rows]:
    """Return 3 / 6 as train, 1 / 6 as val and 2 / 6 as test, mixed by a fixed seed."""
    order = torch.randperm(len(rows[1]), generator=torch.Generator().manual_seed(0))
    ends = [len(order) * share // 6 for share in (3, 4)]
    return tuple(tuple(part[some] for part in rows) for some in order.tensor_split(ends))


def scikit_learns(train: Rows, val: Rows, tolerance: float) -> tuple[float, float, LinearClassifier]:
    """Return strength, accuracy on val, and the classifier of the protocol, with scikit-learn."""
    (x, y), (val_x, val_y) = ([part.numpy() for part in rows] for rows in (train, val))
    curve: dict[int, float] = {}

    def fit(place: int, x: np.ndarray, y: np.ndarray) -> Reference:
        return Reference(C=10 ** (-place / ours.PER_DECADE), tol=tolerance, max_iter=1000).fit(x, y)

    def best() -> int:
        return max(curve, key=lambda place: (curve[place], place))

    for place in range(48, -49, -16):
        curve[place] = float((fit(place, x, y).predict(val_x) == val_y).mean())
    for step in (8, 4, 2, 1):
        peak = best()
        for place in (peak + step, peak - step):
            if abs(place) <= 48:
                curve[place] = float((fit(place, x, y).predict(val_x) == val_y).mean())
    last = fit(best(), np.concatenate([x, val_x]), np.concatenate([y, val_y]))
    classifier = LinearClassifier(torch.tensor(last.coef_).float(), torch.tensor(last.intercept_).float())
    return 10 ** (best() / ours.PER_DECADE), curve[best()], classifier


def ours_on(train: Rows, val: Rows) -> tuple[float, float, LinearClassifier]:
    """Return the same of our own."""
    found = ours.linear_probe(train, val, int(train[1].max()) + 1)
    return found.strength, found.validation, found.classifier


def measure(rows: Rows, rounds: int) -> dict[str, dict[str, float]]:
    """Return of each way its seconds, what it chose, how well that does, and how far it is from the solution."""
    train, val, test = split(rows)
    both = tuple(torch.cat(parts) for parts in zip(train, val, strict=True))
    exact = LogisticRegression(both[0].double(), both[1], int(rows[1].max()) + 1)
    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours_on(train, val),
        "paper's": lambda: scikit_learns(train, val, TOLERANCE / len(train[1])),
        "default": lambda: scikit_learns(train, val, TOLERANCE),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for _, (name, way) in itertools.product(range(rounds), ways.items()):
        start = time.process_time()
        results[name] = way()
        times[name].append(time.process_time() - start)
    found = {}
    for name, (strength, validation, classifier) in results.items():
        solution = exact.fit(strength, tolerance=1e-7).classifier.weight
        found[name] = {
            "seconds": statistics.median(times[name]),
            "strength": strength,
            "val": validation,
            "test": ours.top1(classifier(test[0]), test[1]),
            "distance": float((classifier.weight.double() - solution).norm() / solution.norm()),
        }
    return found


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return the results in Markdown."""
    lines = [
        "| features | solver | seconds | ours is | strength | val | test | distance from the solution |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    titles = {
        "ours": "ours",
        "paper's": "scikit-learn, the paper's tolerance",
        "default": "scikit-learn, today's default",
    }
    for name, ways in results.items():
        for way, title in titles.items():
            row = ways[way]
            ratio = "" if way == "ours" else f"**{row['seconds'] / ways['ours']['seconds']:.1f}x**"
            lines.append(
                f"| {name} | {title} | {row['seconds']:.2f} | {ratio} | {row['strength']:.2g} | {row['val']:.2%} | "
                f"{row['test']:.2%} | {row['distance']:.1e} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--rounds", type=int, default=3, help="medians are over so many (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=4000, help="of train and val together (default: %(default)s)")
    parser.add_argument("--width", type=int, default=512, help="features of a row (default: %(default)s)")
    options = parser.parse_args()

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=ConvergenceWarning)  # 1,000 iterations are the paper's
    pixels, digits = load_digits(return_X_y=True)
    data = {"digits, 64 x 10 classes": (torch.tensor(pixels).float(), torch.tensor(digits))}
    for classes, signal in ((10, 0.15), (50, 0.25)):
        title = f"random, {options.width} x {classes} classes"
        data[title] = features(options.rows * 3 // 2, options.width, classes, signal)
    results = {name: measure(rows, options.rounds) for name, rows in data.items()}
    versions = {name: importlib.metadata.version(name) for name in ("scikit-learn", "scipy", "numpy", "torch")}
    print(f"{options.rows:,} rows of train and val (digits: 1,198); medians of {options.rounds} interleaved rounds;")
    print(f"Python {platform.python_version()}, {', '.join(map(' '.join, versions.items()))}.\n")
    print(table(results))
    if options.json:
        about = {"rows": options.rows, "width": options.width, "rounds": options.rounds, **versions}
        options.json.write_text(json.dumps({"about": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
