"""Features of a frozen model, kept on the disk under a hash of everything that they follow from."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from workbench.atomic import written_atomically
from workbench.errors import UserError

_FORM = 1
"""Of the files, and of what is in them: raised where the same model and pictures would give other features."""


class Pictures(Protocol):
    """A split of labelled pictures, such as the datamodules' `Pairs`."""

    labels: Tensor | None

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """Return what a row's picture is called: a path, or something that no file has."""

    def picture(self, row: int) -> Image.Image | bytes:
        """Return a row's picture, or the bytes of its file."""


def identity(pictures: Pictures) -> str:
    """Return a hash of which pictures these are, in which order and of which classes, without decoding them.

    A file is known by its path, size and time of change; a picture in a table, an archive or an array by its content.
    """
    digest = hashlib.sha256()
    for row in range(len(pictures)):
        name = pictures.name(row)
        try:
            about = os.stat(name)  # noqa: PTH116 - called once for each picture
            digest.update(f"{name} {about.st_size} {about.st_mtime_ns};".encode())
        except (OSError, ValueError):
            digest.update(f"{name} {_content(pictures, row)};".encode())
    digest.update(repr(None if pictures.labels is None else pictures.labels.tolist()).encode())
    return digest.hexdigest()


def _content(pictures: Pictures, row: int) -> str:
    try:
        picture = pictures.picture(row)
    except UserError as error:  # it is left out when the split is encoded
        return str(error)
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).hexdigest()
    return f"{picture.mode} {picture.size} {hashlib.sha256(picture.tobytes()).hexdigest()}"


class FeatureCache:
    """A folder of safetensors files.

    Args:
        folder: null takes `clip-workbench/features` in `XDG_CACHE_HOME`, else in `~/.cache`.
    """

    def __init__(self, folder: str | Path | None = None):
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        self.folder = Path(folder or Path(home, "clip-workbench", "features")).expanduser()

    def path(self, **about: Any) -> Path:
        """Return the file of what features follow from, plain values that JSON can write."""
        text = json.dumps({"form": _FORM, **about}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.safetensors"

    @staticmethod
    def read(path: Path) -> dict[str, Tensor] | None:
        """Return the tensors of a file; None where there is none, or one that is damaged."""
        try:
            with safe_open(path, framework="pt") as file:
                found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
                recorded = (file.metadata() or {}).get("sha256")
        except (SafetensorError, OSError, ValueError, RuntimeError):
            return None
        return found if recorded == _digest(found) else None

    @staticmethod
    def write(path: Path, tensors: dict[str, Tensor]) -> None:
        """Write a file, whole or not at all.

        Raises:
            OSError: the folder cannot be written to.
        """
        tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        with written_atomically(path) as file:
            file.write(save(tensors, {"sha256": _digest(tensors)}))


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)};".encode())
        digest.update(tensors[key].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
