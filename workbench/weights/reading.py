"""Read weights from wherever they live into a state dict with OpenAI's keys, and learn what they were trained as."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from workbench.errors import UserError
from workbench.models import Architecture
from workbench.weights import family, hub, huggingface, openai_archive, openclip, zoo
from workbench.weights.description import described_architecture
from workbench.weights.files import is_safetensors, read_checkpoint, read_safetensors
from workbench.weights.infer_architecture import infer_architecture


@dataclass
class Weights:
    """A state dict with OpenAI's keys, and what is known about it.

    Attributes:
        state_dict: in the type it was stored in.
        path: the file.
        architecture: what they were trained as; None where nothing says the activation.
        source: whose they are, in words.
        stated: the file says its activation; else it is its source's rule.
        revision: the commit of the hub.
    """

    state_dict: dict[str, Tensor]
    path: Path
    architecture: Architecture | None
    source: str
    stated: bool = True
    revision: str | None = None

    def provenance(self, asked: str) -> dict[str, Any]:
        """Return where they come from, as plain values: what was asked for, the file's sha256, the hub's commit."""
        found = {"source": asked, "kind": self.source, "sha256": zoo.sha256(self.path)}
        return found | ({"revision": self.revision} if self.revision else {})


def read_weights(source: str | Path, download_root: str | Path | None = None) -> Weights:
    """Read weights; the kind of file is found by looking into it, and nothing in it is run.

    Args:
        source: a name of `zoo.ZOO`, `hf-hub:org/name[@revision]`, or the path of a file (of this package's, OpenAI's,
            OpenCLIP's or safetensors) or of a folder of OpenCLIP's or Hugging Face's.
        download_root: see `zoo.find` and `hub.fetch`.

    Raises:
        UserError: no such name or file, or one that cannot be read or is of another family of models.
    """
    text = str(source)
    if text in zoo.ZOO:
        return _of_file(zoo.find(text, download_root))
    if text.startswith(hub.PREFIX):
        folder, revision = hub.fetch(text, download_root)
        return replace(_of_folder(folder), revision=revision)
    path = Path(source).expanduser()
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        return _of_file(path)
    lower = {name.lower(): name for name in zoo.ZOO}
    near = [lower[name] for name in difflib.get_close_matches(text.lower(), lower, n=1)]
    raise UserError(
        f"There are no weights at {source}{f' (is it {near[0]!r}?)' if near else ''}: give `openai`, one of "
        f"{', '.join(zoo.ZOO)}, hf-hub:org/name, or the path of a checkpoint or of a model's folder."
    )


def _of_folder(folder: Path) -> Weights:
    for module in (openclip, huggingface):
        if (folder / module.CONFIG).is_file():
            path = next((folder / name for name in module.WEIGHTS if (folder / name).is_file()), None)
            if path is None:
                raise UserError(f"{folder} has a {module.CONFIG} but none of {', '.join(module.WEIGHTS)}.")
            return _of_file(path)
    there = sorted(path.name for path in folder.iterdir())
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


def _unpacked(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str | None]:
    """Return a file's state dict, what it says of itself, and the name of the run if OpenCLIP's trainer wrote it."""
    if is_safetensors(path):
        return *read_safetensors(path), None
    loaded, about, run = read_checkpoint(path), {}, None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        about = loaded.get("workbench", {})
        if "epoch" in loaded and not any(key in loaded for key in ("workbench", "pytorch-lightning_version")):
            run = str(loaded.get("name", ""))
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"{path} holds no state dict: it is a checkpoint of something else.")
    return loaded, about, run


def _of_state_dict(loaded: dict[str, Tensor], about: dict[str, Any], run: str | None, path: Path) -> Weights:
    found, module = _with_openai_keys(_without_wrappers(loaded), path)
    state_dict = {key: value for key, value in found.items() if key not in openai_archive.NOT_WEIGHTS}
    if about:
        return Weights(state_dict, path, described_architecture(about), "this package's")
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


def _without_wrappers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what DDP, torch.compile and tasks put in front of every key."""
    for prefix in ("module.", "_orig_mod.", "clip.", "model."):
        if state_dict and all(key.startswith(prefix) for key in state_dict):
            return _without_wrappers({key.removeprefix(prefix): value for key, value in state_dict.items()})
    return dict(state_dict)


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
        about = _json(config)
        if module is huggingface:
            preprocessor = path.parent / huggingface.PREPROCESSOR
            pictures = _json(preprocessor) if preprocessor.is_file() else None
            return huggingface.read_config(about, pictures, str(config))
        if "vision_cfg" in about.get("model_cfg", about):
            return openclip.read_config(about, str(config))
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no readable JSON ({error}).") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is no configuration: it holds a {type(found).__name__}.")
    return found
