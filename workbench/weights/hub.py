"""Weights of the Hugging Face hub: `hf-hub:org/name`, or `hf-hub:org/name@revision`."""

import os
import re
from pathlib import Path
from types import ModuleType

from workbench.errors import UserError
from workbench.weights import huggingface, openclip
from workbench.weights.files import read_json

PREFIX = "hf-hub:"
ALLOW_BIN = "CLIP_WORKBENCH_ALLOW_BIN"
_REFERENCE = re.compile(r"hf-hub:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def fetch(reference: str, download_root: str | Path | None = None) -> tuple[Path, str]:
    """Fetch a model's configuration and weights, and nothing else, into the hub's own cache.

    Files of pickles (`.bin`) are taken only where the environment variable `CLIP_WORKBENCH_ALLOW_BIN` is 1; they are
    read without running anything in them all the same.

    Args:
        reference: `hf-hub:org/name`, with `@` and a branch, tag or commit; without, the newest of the main branch.
        download_root: the cache; None takes the hub's (`HF_HOME`, else `~/.cache/huggingface`).

    Returns:
        The folder, and the commit that was fetched: with `@<commit>` it will always be these files.

    Raises:
        UserError: no such model, no network, or no weights that this package reads.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise UserError(f"{reference} is not of the form hf-hub:org/name or hf-hub:org/name@revision.")
    model, revision = match[1], match[2]
    refused: list[UserError] = []
    for module in (openclip, huggingface):
        try:
            return _fetch(module, model, revision, download_root)
        except UserError as error:  # a model may have the other's files alone, or those alone on this machine
            refused.append(error)
    raise next((error for error in refused if not isinstance(error, _MissingError)), refused[0])


class _MissingError(UserError):
    """The model has no files of a kind."""


def _fetch(module: ModuleType, model: str, revision: str | None, download_root: str | Path | None) -> tuple[Path, str]:
    config = _file(model, module.CONFIG, revision, download_root)
    if config is None:
        raise _MissingError(
            f"{model} has neither {openclip.CONFIG} nor {huggingface.CONFIG}: it is no CLIP of OpenCLIP's or of "
            "Hugging Face's."
        )
    _refuse_other_models(module, config)  # before gigabytes are fetched
    commit = config.parent.name
    if module is huggingface and _file(model, huggingface.PREPROCESSOR, commit, download_root) is None:
        _file(model, huggingface.PROCESSOR, commit, download_root)
    safe = [name for name in module.WEIGHTS if name.endswith(".safetensors")]
    wanted = module.WEIGHTS if os.environ.get(ALLOW_BIN) == "1" else safe
    if any(_file(model, name, commit, download_root) is not None for name in wanted):
        return config.parent, commit
    raise UserError(
        f"{model} at {commit} has none of {', '.join(wanted)}. If it has weights as .bin, {ALLOW_BIN}=1 fetches them; "
        "they are read without running anything in them."
    )


def _refuse_other_models(module: ModuleType, config: Path) -> None:
    about = read_json(config)
    if module is huggingface:
        huggingface.read_config(about, None, config.name)
    else:
        openclip.read_config(about, config.name)


def _file(model: str, name: str, revision: str | None, download_root: str | Path | None) -> Path | None:
    """Fetch a file; None if the model has none of that name."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache  # a quarter of a second
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(hf_hub_download(model, name, revision=revision, cache_dir=download_root))
    except LocalEntryNotFoundError as error:  # an EntryNotFoundError, too
        known = try_to_load_from_cache(model, name, cache_dir=download_root, revision=revision or "main")
        if known is not None and not isinstance(known, str):  # the hub said once that there is none
            return None
        why = str(error).splitlines()[0]
        raise UserError(
            f"{name} of {model} is not on this machine and the hub ({os.environ.get('HF_ENDPOINT', 'huggingface.co')}) "
            f"cannot be reached ({why}). Fetch the model's folder where there is a network (`hf download {model}`), "
            "and give its path in place of hf-hub:."
        ) from error
    except EntryNotFoundError:
        return None
    except GatedRepoError as error:
        raise UserError(f"{model} is gated: accept its licence on the hub and log in with `hf auth login`.") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{model} has no revision {revision!r}.") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"The hub has no model {model} that you may see; is the name right?") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"{name} of {model} could not be fetched: {str(error).splitlines()[0]}") from error
