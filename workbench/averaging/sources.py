"""The models that are averaged: from what was asked for to weights in fp32 that belong together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.averaging.records import START
from workbench.errors import UserError
from workbench.interpolation import refuse_not_finite, refuse_other_model
from workbench.models import CLIP, create_model
from workbench.weights import architecture_for, named, put_weights, read_weights
from workbench.weights.files import is_safetensors, read_checkpoint


@dataclass
class Source:
    """A model that was read.

    Attributes:
        name: what was asked for.
        model: in fp32, on the CPU.
        origin: where it comes from, as plain values.
    """

    name: str
    model: CLIP
    origin: dict[str, Any]


def read_model(name: str, like: Source | None = None, resample: bool = False) -> Source:
    """Read a model from anything that `workbench.load` takes.

    Args:
        name: of weights, or a path; with `like`, `openai` is the zoo's of the same architecture.
        like: the model that it has to fit.
        resample: take position embeddings of another size, as a run with `interpolate_positions` did.

    Raises:
        UserError: it cannot be had or read, is another model, or has numbers that are not finite.
    """
    theirs = None if like is None else like.model.architecture
    weights = read_weights(named(name, theirs.name if theirs else None))
    described = theirs if resample else architecture_for(weights)
    if like is not None:
        refuse_other_model(described, theirs, (name, like.name))
    model = create_model(described).eval()
    resampled = put_weights(model, weights, resample)
    refuse_not_finite(model.state_dict(), name)
    return Source(name, model, weights.provenance(name, resampled))


def read_start(name: str | None, end: Source) -> Source:
    """Read the model that another was fine-tuned from.

    Args:
        name: of weights, or a path; None takes what the run of `end` started from: the file that `WeightInterpolation`
            keeps beside its checkpoints, or what they say.
        end: the fine-tuned model.

    Raises:
        UserError: nothing says what it was, or it is not any more what it was; or as `read_model`.
    """
    if name is not None:
        return read_model(name, end)
    path = Path(end.name).expanduser()
    if (path.parent / START).is_file():
        return read_model(str(path.parent / START), end)
    said = _weights_source(path)
    if not said.get("source"):
        raise UserError(f"Nothing says what {end.name} was fine-tuned from; give --start, such as --start openai.")
    start = read_model(said["source"], end, resample=bool(said.get("interpolated")))
    if start.origin["sha256"] != said.get("sha256"):
        raise UserError(
            f"{end.name} was fine-tuned from {start.name}, which is another file now: its sha256 differs; give --start."
        )
    return start


def _weights_source(path: Path) -> dict[str, Any]:
    """Return what a checkpoint of a run says that the run started from."""
    if not path.is_file() or is_safetensors(path):
        return {}
    found = read_checkpoint(path, lazily=True)
    about = found.get("workbench") if isinstance(found, dict) else None
    source = about.get("weights_source") if isinstance(about, dict) else None
    return source if isinstance(source, dict) else {}


def ingredients(soup: str | Sequence[str]) -> list[str]:
    """Return the models of a soup: each name, and the files of each pattern in order.

    Raises:
        UserError: fewer than two, one that is there twice, or a pattern without a file.
    """
    found: list[str] = []
    for each in [soup] if isinstance(soup, str) else soup:
        there = _matching(each) if set(each) & set("*?[") else [each]
        if not there:
            raise UserError(f"--soup {each}: there is no such file.")
        found += there
    twice = next((each for each in found if found.count(each) > 1), None)
    if twice is not None:
        raise UserError(f"--soup has {twice} twice.")
    if len(found) < 2:
        raise UserError(
            f"--soup has only {found[0] if found else 'an empty list'}; name two models or more: "
            "--soup 'runs/tune/*/checkpoints/best.ckpt', or --soup '[a.ckpt, b.ckpt]'."
        )
    return found


def _matching(pattern: str) -> list[str]:
    path = Path(pattern).expanduser()
    return sorted(str(found) for found in Path(path.anchor).glob(str(path.relative_to(path.anchor))))
