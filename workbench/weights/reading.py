"""Read weights from wherever they live into a state dict with OpenAI's keys, and learn what they were trained as."""

import difflib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from workbench.errors import Notice, UserError
from workbench.models import Architecture
from workbench.weights import adapters, family, hub, huggingface, openai_archive, openclip, zoo
from workbench.weights.description import described_architecture
from workbench.weights.files import (
    is_safetensors,
    read_checkpoint,
    read_json,
    read_safetensors,
    refuse_strange_tensors,
)
from workbench.weights.infer_architecture import infer_architecture
from workbench.weights.state_dicts import Weights, without_wrappers

_MOST_ADAPTERS = 8
"""On top of one another; more are a mistake, or a file that names itself."""


def read_weights(source: str | Path, download_root: str | Path | None = None) -> Weights:
    """Read weights; the kind of file is found by looking into it, and nothing in it is run.

    A checkpoint that holds a LoRA adapter alone is merged into the weights that it was trained on, which are read from
    where its run had them.

    Args:
        source: a name of `zoo.ZOO`, `hf-hub:org/name[@revision]`, or the path of a file (of this package's, OpenAI's,
            OpenCLIP's or safetensors) or of a folder of OpenCLIP's or Hugging Face's.
        download_root: see `zoo.find` and `hub.fetch`.

    Raises:
        UserError: no such name or file, or one that cannot be read or is of another family of models; an adapter whose
            base is not there any more.
    """
    read = [_read(source, download_root)]
    while read[-1].adapter is not None and read[-1].adapter.base is not None:
        path, base = read[-1].path, read[-1].adapter.base
        if len(read) > _MOST_ADAPTERS:
            raise UserError(f"{path} is one of more than {_MOST_ADAPTERS} adapters on top of one another.")
        try:
            read.append(_read(base, download_root))
        except UserError as error:
            raise UserError(
                f"{path} holds a LoRA adapter without the weights that it was trained on, {base}, which cannot be had "
                f"(a path starts from the current folder): {error}"
            ) from error
    weights = adapters.merged(read.pop())
    while read:
        weights = adapters.merged(read.pop(), weights)
    return weights


def _read(source: str | Path, download_root: str | Path | None) -> Weights:
    text = str(source)
    if text == "openai":
        raise UserError("`openai` means the weights of the architecture that is asked for; name it, such as RN50.")
    if text in zoo.ZOO:
        return _of_file(zoo.find(text, download_root))
    if text.startswith(hub.PREFIX):
        folder, revision = hub.fetch(text, download_root)
        return replace(_of_folder(folder), revision=revision)
    path = Path(source).expanduser()
    try:
        if text and path.is_dir():
            return _of_folder(path)
        if text and path.is_file():
            return _of_file(path)
    except OSError as error:
        raise UserError(f"{text[:200]} cannot be read ({error.strerror}).") from error
    lower = {name.lower(): name for name in zoo.ZOO}
    near = [lower[name] for name in difflib.get_close_matches(text.lower(), lower, n=1)]
    raise UserError(
        f"There are no weights at {source}{f' (is it {near[0]!r}?)' if near else ''}: give `openai`, one of "
        f"{', '.join(zoo.ZOO)}, hf-hub:org/name, or the path of a checkpoint or of a model's folder."
    )


def _of_folder(folder: Path) -> Weights:
    there = sorted(path.name for path in folder.iterdir())
    configured = [module for module in (openclip, huggingface) if module.CONFIG in there]
    for module in configured:
        if found := next((name for name in module.WEIGHTS if name in there), None):
            return _of_file(folder / found)
    if configured:
        sharded = any(name.endswith(".index.json") for name in there)
        hint = "they are sharded: save them again with a larger max_shard_size." if sharded else "fetch that, too."
        names = " and ".join(f"{module.CONFIG}, but none of {', '.join(module.WEIGHTS)}" for module in configured)
        raise UserError(f"{folder} has {names}; {hint}")
    raise UserError(
        f"{folder} has no configuration ({openclip.CONFIG} of OpenCLIP or {huggingface.CONFIG} of Hugging Face); in it "
        f"are {', '.join(there[:8]) or 'no files'}. Name a file in it instead."
    )


def _of_file(path: Path) -> Weights:
    try:
        if openai_archive.is_torchscript(path):
            return _openais(openai_archive.read_torchscript(path), path)
        return _of_state_dict(*_unpacked(path), path)
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from error


def _unpacked(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None, str | None]:
    """Return a file's state dict, what it says of itself, and the name of the run if OpenCLIP's trainer wrote it."""
    if is_safetensors(path):
        return *read_safetensors(path), None
    loaded, about, run = read_checkpoint(path), None, None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        about = loaded.get("workbench")
        if isinstance(loaded.get("name"), str) and "epoch" in loaded and "optimizer" in loaded:
            run = loaded["name"]
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"{path} holds no state dict: it is a checkpoint of something else.")
    return loaded, about, run


def _of_state_dict(loaded: dict[str, Tensor], about: dict[str, Any] | None, run: str | None, path: Path) -> Weights:
    refuse_strange_tensors(loaded, path)
    loaded = without_wrappers(loaded)
    described = None if about is None else described_architecture(about)
    if about is not None and (adapter := adapters.described_adapter(about, path)) is not None:
        return Weights(loaded, path, described, "this package's", adapter=adapter)
    found, module = _with_openai_keys(loaded, path)
    state_dict = {key: value for key, value in found.items() if key not in openai_archive.NOT_WEIGHTS}
    if about is not None:
        return Weights(state_dict, path, described, "this package's")
    config = _config_beside(path, module)
    if config is not None:
        return Weights(state_dict, path, config, "Hugging Face's" if module is huggingface else "OpenCLIP's")
    if module is huggingface:
        raise UserError(
            f"{path} has Hugging Face's keys but no {huggingface.CONFIG} beside it, which says heads and activation; "
            "fetch that, too."
        )
    if len(found) - len(state_dict) == len(openai_archive.NOT_WEIGHTS):  # taken out of an archive of OpenAI's
        return _openais(state_dict, path)
    says = "quickgelu" in f"{run} {path.name}".lower()
    if run is None and not says:
        return Weights(state_dict, path, None, "unknown")
    inferred = infer_architecture(state_dict, "quick_gelu" if says else "gelu")
    return Weights(state_dict, path, inferred, "training checkpoints of OpenCLIP's", stated=says)


def _openais(state_dict: dict[str, Tensor], path: Path) -> Weights:
    return Weights(state_dict, path, infer_architecture(state_dict, "quick_gelu"), "OpenAI's")


def _with_openai_keys(state_dict: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], Any]:
    """Return the state dict under OpenAI's keys, and the module whose keys it had."""
    module = huggingface if any(key.startswith(huggingface.MARK) for key in state_dict) else openclip
    found = module.to_openai_keys(state_dict)
    other = family.other_family(found)
    if other is not None:
        raise UserError(f"{path} is no CLIP that this package reads: it looks like {other}.")
    return found, module


def _config_beside(path: Path, module: Any) -> Architecture | None:
    """Return what a configuration beside a file says: of the folder, or called after the file."""
    for config in (path.parent / module.CONFIG, path.with_suffix(".json")):
        if not config.is_file():
            continue
        about = read_json(config)
        if module is huggingface:
            names = (huggingface.PREPROCESSOR, huggingface.PROCESSOR)
            pictures = next((path.parent / name for name in names if (path.parent / name).is_file()), None)
            if pictures is None:
                text = f"{path.parent} has no {names[0]}: pictures are prepared as for OpenAI's models."
                warnings.warn(Notice(text), stacklevel=2)
            return huggingface.read_config(about, pictures and read_json(pictures), str(config))
        if "model_cfg" in about or "vision_cfg" in about:
            return openclip.read_config(about, str(config))
    return None
