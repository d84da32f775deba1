"""`python -m workbench interpolate`: WiSE-FT and model soups."""

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.tensorboard import SummaryWriter

from workbench import interpolation
from workbench.averaging.chart import draw
from workbench.averaging.outputs import free_folder, written_whole
from workbench.averaging.records import Curve, as_row, log_picture, write_picture, write_tables, write_weights
from workbench.averaging.run_data import panel_of, run_config
from workbench.averaging.sources import Source, ingredients, read_model, read_start
from workbench.averaging.tradeoff import Panel, Scores, require_keep, trace
from workbench.errors import UserError
from workbench.evaluation.encoding import ModelEncoder
from workbench.models import CLIP

_CHOSEN = "chosen.safetensors"
_CURVE = "curve"
_SOUP = "soup"
_WIDEST = 40


def interpolate(
    end: str | None = None,
    start: str | None = None,
    soup: str | list[str] | None = None,
    method: Literal["greedy", "uniform"] = "greedy",
    alphas: int = 11,
    keep: float | None = None,
    experiment: str | None = None,
    output: str | None = None,
) -> int:
    """Average weights, and choose on validation data: WiSE-FT between two models, or a soup of several.

    WiSE-FT (arXiv 2109.01903) measures (1 - alpha) start + alpha end, target against canary:
    --end runs/ft/0/checkpoints/last.ckpt. A soup (arXiv 2203.05482) is the mean of models that were fine-tuned from one
    start: --soup 'runs/tune/*/checkpoints/best.ckpt'. The target is the experiment's val split: zero-shot top-1 where
    it has classes, recall@1 both ways where it has pairs. Canaries are its ZeroShotMonitors and RetrievalMonitors that
    have data of their own. Test data are refused. Models are fp32.

    Args:
        end: the fine-tuned model; anything that `weights:` takes.
        start: what it was fine-tuned from; null takes what its run started from.
        soup: two models or more, in place of start and end: a pattern of files, or a list.
        method: of the soup: uniform takes all; greedy, from the best to the worst, those that do not lower the target.
        alphas: how many between start and end, evenly spaced, both included.
        keep: share of each canary's value at the start that has to be left, such as 0.95; the best target of those is
            taken. null takes the best mean of target and canary.
        experiment: YAML that data and monitors are taken from; null takes the config.yaml of the run that the
            fine-tuned model, or the first of the soup, lies in.
        output: a folder that does not exist, or is empty; null takes `interpolation` in the run of the end.
    """
    if soup is None and end is None:
        raise UserError("Give --end, the fine-tuned model, with or without --start; or --soup, two models or more.")
    if soup is not None:
        if (end, start, keep) != (None, None, None):
            raise UserError("--soup is the mean of several models, and --end, --start and --keep are for two.")
        return _soup(ingredients(soup), method, experiment, output)
    steps = interpolation.alphas(alphas)
    own = run_config(end)
    config = _config(experiment, own, end)
    folder = free_folder(output, own.parent / "interpolation" if own is not None else None)
    last = read_model(end)
    return _curve(read_start(start, last), last, steps, keep, panel_of(config, last.model.architecture), folder)


def _config(experiment: str | None, own: Path | None, model: str) -> Path:
    """Return the YAML to take data from: what was asked for, else the run's."""
    if experiment is not None:
        if not Path(experiment).is_file():
            raise UserError(f"--experiment {experiment} does not exist; name a YAML with data and monitors.")
        return Path(experiment)
    if own is None:
        raise UserError(
            f"{model} lies in no run folder, whose config.yaml would say what to measure on; give --experiment, a YAML "
            "with data and monitors."
        )
    return own


def _curve(first: Source, last: Source, alphas: list[float], keep: float | None, panel: Panel, folder: Path) -> int:
    require_keep(keep, panel.canaries)
    panel.require_possible()
    model = _on_device(last.model)
    start, end = first.model.state_dict(), last.model.state_dict()
    print(f"From {first.name} (alpha 0) to {last.name} (alpha 1), on validation data.")
    print(_head("alpha", 5, panel))
    points = []
    for alpha, scores in trace(model, ModelEncoder(model), panel, start, end, alphas):
        points.append((alpha, scores))
        print(_line(f"{alpha:.2f}", 5, scores), flush=True)
    curve = Curve(points, panel, keep)
    interpolation.interpolate_into(model, start, end, curve.alpha)
    between = {"start": first.origin, "end": last.origin}
    with written_whole(folder) as beside:
        curve.write(beside, _CURVE, **between)
        with SummaryWriter(str(beside)) as writer:
            curve.log(writer, _CURVE)
            _picture(beside, _CURVE, curve.figure(), writer)
        origin = {"source": "interpolation", "alpha": curve.alpha, "rule": curve.rule, **between}
        write_weights(beside / _CHOSEN, model, origin)
    return _said(f"alpha {curve.alpha:.2f}, {curve.rule}", curve.scores[curve.alpha], folder)


def _soup(names: list[str], method: str, experiment: str | None, output: str | None) -> int:
    config, folder = _config(experiment, run_config(names[0]), names[0]), free_folder(output, None)
    first = read_model(names[0])
    panel = panel_of(config, first.model.architecture)
    panel.require_possible()
    model = _on_device(first.model)
    encoder, width = ModelEncoder(model), min(_WIDEST, max(map(len, names)))

    def read(number: int) -> Source:
        return first if number == 0 else read_model(names[number], first)

    def evaluate(state_dict: interpolation.StateDict) -> Scores:
        model.load_state_dict(state_dict)
        return panel(encoder)

    print(f"{len(names)} models, on validation data.\n{_head('model', width, panel)}")
    points, origins = [], []
    for number, name in enumerate(names):
        source = read(number)
        origins.append(source.origin)
        points.append((name, evaluate(source.model.state_dict())))
        print(_line(name, width, points[-1][1]), flush=True)
    everyone = range(len(names))
    if method == "uniform":
        kept = list(everyone)
        mean = interpolation.uniform_soup(read(number).model.state_dict() for number in everyone)
    else:
        mean, kept, _ = interpolation.greedy_soup(
            [lambda number=number: read(number).model.state_dict() for number in everyone],
            [scores.target for _, scores in points],
            lambda state_dict: evaluate(state_dict).target,
        )
    label, rule = f"{method} soup", f"the mean of {len(kept)} of {len(names)} models"
    points.append((label, evaluate(mean)))
    print(_line(label, width, points[-1][1]), flush=True)
    about = {"method": method, "rule": rule, "kept": [names[number] for number in kept], "ingredients": origins}
    numbered = [*((str(number), scores) for number, (_, scores) in enumerate(points[:-1])), points[-1]]
    with written_whole(folder) as beside:
        rows = [{"model": name, **as_row(scores)} for name, scores in points]
        write_tables(beside, _SOUP, rows, {**about, **panel.described()})
        with SummaryWriter(str(beside)) as writer:
            figure = draw(numbered, len(names), panel, f"{len(names)} models by number, and their {label}", line=False)
            _picture(beside, _SOUP, figure, writer)
        write_weights(beside / _CHOSEN, model, {"source": label, **about})
    return _said(f"{label}, {rule}", points[-1][1], folder)


def _on_device(model: CLIP) -> CLIP:
    """Return a copy where models are fast."""
    return copy.deepcopy(model).to("cuda" if torch.cuda.is_available() else "cpu")


def _picture(folder: Path, name: str, figure: Any, writer: SummaryWriter) -> None:
    write_picture(folder / f"{name}.png", figure)
    log_picture(writer, name, figure)


def _head(first: str, width: int, panel: Panel) -> str:
    names = ["target", *(f"canary {measure.name}" for measure in panel.canaries)]
    return "  ".join([f"{first:<{width}}", *(f"{name:>8}" for name in names)])


def _line(name: str, width: int, scores: Scores) -> str:
    values = {"target": scores.target, **{f"canary {key}": value for key, value in scores.canaries.items()}}
    shown = name if len(name) <= width else f"...{name[3 - width :]}"
    return "  ".join([f"{shown:<{width}}", *(f"{value:>{max(8, len(key))}.1%}" for key, value in values.items())])


def _said(what: str, scores: Scores, folder: Path) -> int:
    print(f"Chosen: {what}: {scores}.")
    print(f"Written to {folder}; start from it with --model.init_args.weights {folder / _CHOSEN}")
    return 0
