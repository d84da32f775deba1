"""From run folders to the rows of a table."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from workbench.errors import UserError

Row = dict[str, Any]
"""Values by column; what is not known is not there. Of a canary the keys are its name with `start`, `now` or `drop`."""

_AVERAGES = {"ExponentialMovingAverage": "EMA", "UniformWeightAverage": "SWA"}
_OF_VAL = ("val/top1", "val/image_to_text_recall@1", "val/loss")
_FOLLOWING = ("image_size", "interpolation", "context_length")  # of the data, which the model settles
_POINTS = 100
_DEEPEST = 2


def find_runs(paths: Sequence[str]) -> list[Path]:
    """Return the folders of runs, each once: of an experiment the newest.

    Raises:
        UserError: there is no run.
    """
    found: dict[Path, None] = {}
    for path in paths:
        folder = Path(path).expanduser()
        runs = _runs_in(folder)
        if not runs:
            what = "holds no run" if folder.is_dir() else "is no folder"
            raise UserError(f"{path} {what}; a run is a folder such as runs/quickstart/0, with a config.yaml.")
        found |= dict.fromkeys(runs)
    return list(found)


def _runs_in(folder: Path, depth: int = 0) -> list[Path]:
    if (folder / "config.yaml").is_file() and (folder / "environment.json").is_file():
        return [folder]
    if depth > _DEEPEST or not folder.is_dir():
        return []
    below = {each: _runs_in(each, depth + 1) for each in sorted(folder.iterdir()) if each.is_dir()}
    numbered = [each for each, runs in below.items() if runs == [each] and each.name.isdigit()]
    if numbered:
        return [max(numbered, key=lambda each: int(each.name))]
    return [run for runs in below.values() for run in runs]


class Run:
    """What a run's folder says of it.

    Args:
        folder: with config.yaml, environment.json, and summary.json unless the run was killed, or still trains.

    Raises:
        UserError: one of them is damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = _read(folder / "config.yaml")
        self.environment = _read(folder / "environment.json")
        path = folder / "summary.json"
        self.summary = _read(path) if path.is_file() else {}

    @property
    def name(self) -> str:
        """Experiment and version."""
        return f"{self.config.get('experiment') or self.folder.parent.name}/{self.folder.name}"

    @property
    def task(self) -> str:
        """The task's class."""
        return _last(str((self.config.get("model") or {}).get("class_path")))

    def settings(self) -> dict[tuple[str, str], Any]:
        """Return the options of the task and of the data by (class, option), without those that are null."""
        found = {}
        for part, left_out in (("model", ()), ("data", _FOLLOWING)):
            of = self.config.get(part) or {}
            options = {key: value for key, value in (of.get("init_args") or {}).items() if key not in left_out}
            found |= {(_last(str(of.get("class_path"))), key): value for key, value in _flat(options)}
        return found

    def row(self, method: str) -> Row:
        """Return the run's row."""
        summary, parameters = self.summary, self.summary.get("parameters") or {}
        target = self._target()
        row: Row = {
            "run": self.name,
            "folder": str(self.folder),
            "method": method,
            **target,
            "trained": parameters.get("trained"),
            "share": parameters["trained"] / parameters["total"] if parameters.get("total") else None,
            "seconds": summary.get("seconds"),
            "steps": summary.get("step"),
            "device": _device(self.environment),
            "status": summary.get("status"),
        }
        for name, watched in (summary.get("watched") or {}).items():
            if watched["metric"] != target.get("target") and not watched["own_data"]:
                row |= {(name, key): watched[key] for key in ("start", "now", "drop")}
        return _known(row)

    def _target(self) -> Row:
        metrics = {name: noted["value"] for name, noted in (self.summary.get("metrics") or {}).items()}
        checkpoint = self.config.get("checkpoint") or {}
        monitor = checkpoint.get("monitor")
        own = [each["metric"] for each in (self.summary.get("watched") or {}).values() if each["own_data"]]
        started = [name for name in (monitor, *own) if f"{name}_start" in metrics]
        name = next((name for name in (*started, monitor, *_OF_VAL) if name in metrics), None)
        if name is None:
            return {}
        is_loss = "loss" in name or (name == monitor and checkpoint.get("mode") == "min")
        split, _, metric = name.rpartition("/")
        # An adapter starts from what CLIP does without it, which is measured beside it.
        start = metrics.get(f"{name}_start", metrics.get(f"{split}/zero_shot_{metric}"))
        return _gain(name, start, metrics[name], points=not is_loss)

    def interpolated(self, row: Row) -> Row | None:
        """Return a row of the weights that `WeightInterpolation` chose; None if there was none."""
        metrics = {name: noted["value"] for name, noted in (self.summary.get("metrics") or {}).items()}
        alpha = metrics.get("interpolation/alpha")
        if alpha is None:
            return None
        path = self.folder / "interpolation.json"
        models = {each["alpha"]: each for each in (_read(path)["models"] if path.is_file() else [])}
        first, chosen = models.get(0.0, {}), models.get(alpha, {})
        watched = self.summary.get("watched") or {}
        target = row["target"] if metrics["interpolation/target_end"] == row.get("end") else "val, interpolated"
        found: Row = {
            "run": row["run"],
            "folder": row["folder"],
            "method": f"{row['method']}, WiSE-FT alpha {alpha:.2f}",
            **_gain(target, metrics["interpolation/target_start"], metrics["interpolation/target_chosen"]),
            **{key: row.get(key) for key in ("trained", "share", "steps", "device", "status")},
        }
        canaries = {key.partition("/")[2] for key in chosen if key.startswith("canary/")}
        pairs = {name: (first.get(f"canary/{name}"), chosen[f"canary/{name}"]) for name in sorted(canaries)}
        if not pairs and "interpolation/canary_chosen" in metrics:  # its file is gone; the mean is there
            named = [name for name, each in watched.items() if not each["own_data"]]
            name = named[0] if len(named) == 1 else "canaries"
            pairs = {name: (metrics["interpolation/canary_start"], metrics["interpolation/canary_chosen"])}
        for name, (start, now) in pairs.items():
            drop = None if start is None else _POINTS * (start - now)
            found |= {(name, "start"): start, (name, "now"): now, (name, "drop"): drop}
        return _known(found)


def rows_of(folders: Sequence[Path]) -> list[Row]:
    """Return the rows of runs, in their order."""
    runs = [Run(folder) for folder in folders]
    rows = []
    for run, method in zip(runs, _methods(runs), strict=True):
        row = run.row(method)
        rows += [each for each in (row, run.interpolated(row)) if each is not None]
    return rows


def _methods(runs: Sequence[Run]) -> Iterator[str]:
    """Yield each run's task, averages, and the settings in which runs of its task, or on its data, differ."""
    settings = [run.settings() for run in runs]
    classes = [{owner for owner, _ in each} for each in settings]
    for run, own in zip(runs, settings, strict=True):
        differing = []
        for (owner, key), value in own.items():
            others = [each.get((owner, key)) for each, known in zip(settings, classes, strict=True) if owner in known]
            if any(other != value for other in others):
                differing.append(f"{key}={value if isinstance(value, str) else json.dumps(value)}")
        callbacks = (run.config.get("trainer") or {}).get("callbacks") or []
        names = (_last(str(each.get("class_path"))) for each in callbacks if isinstance(each, dict))
        yield " ".join([run.task, *(_AVERAGES[name] for name in names if name in _AVERAGES), *differing])


def _flat(options: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and their values, as one writes them on the command line but for `init_args`."""
    for key, value in options.items():
        path = before if key == "init_args" else f"{before}.{key}".lstrip(".")
        if isinstance(value, dict):
            yield from _flat(value, path)
        elif value is not None:
            yield path, value


def _gain(name: str, start: float | None, end: float, points: bool = True) -> Row:
    gained = None if start is None or not points else _POINTS * (end - start)
    return {"target": name, "start": start, "end": end, "gained": gained}


def _known(row: Row) -> Row:
    return {key: value for key, value in row.items() if value is not None}


def _device(environment: Mapping[str, Any]) -> str | None:
    gpus, cores = environment.get("gpus"), environment.get("cores")
    if gpus:
        return gpus[0] if len(gpus) == 1 else f"{len(gpus)} x {gpus[0]}"
    return f"CPU, {cores} cores" if cores else None


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        found = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}); the run folder is damaged.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}; the run folder is damaged.")
    return found
