"""Read a file of tensors, without running anything in it, and say what it is when it holds none."""

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench.errors import UserError

_HEADER = 512


def read_checkpoint(path: Path, lazily: bool = False) -> Any:
    """Return what is in a file that torch.save wrote: tensors, containers and plain values.

    Args:
        path: the file.
        lazily: leave the numbers in the file until they are used, and their checksums unchecked.

    Raises:
        UserError: there is no such file, or it is damaged, or holds anything else.
    """
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}.")
    refuse_no_weights(path)
    refuse_bombs(path)
    try:
        if zipfile.is_zipfile(path) and lazily:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch compares no checksums
            if damaged is not None:
                raise ValueError(f"{damaged} does not have its checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        first = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise UserError(
            f"{path} cannot be read as a checkpoint ({first[:120]}): it is damaged, cut short, or something else."
        ) from error


def is_safetensors(path: Path) -> bool:
    """Tell whether a file is of the safetensors format, by its name or by its first bytes."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a safetensors file, and the JSON of its entry `workbench`, if it has one.

    Raises:
        UserError: it is damaged, cut short, or its header claims what is not there.
    """
    refuse_no_weights(path)
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("workbench", "{}"))
            return {key: file.get_tensor(key) for key in file.keys()}, about  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} cannot be read as safetensors ({first[:120]}): its header does not fit its content; it is damaged "
            "or cut short. Fetch it again."
        ) from error


def refuse_no_weights(path: Path) -> None:
    """Refuse what is often saved in place of weights.

    Raises:
        UserError: the file is empty, a pointer of Git LFS, or a web page.
    """
    with path.open("rb") as file:
        start = file.read(_HEADER)
    text = start.lstrip().lower()
    if not start:
        raise UserError(f"{path} is empty; fetch it again (it is damaged, cut short, or was never written).")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path} is a pointer of Git LFS, not the weights: run `git lfs pull` in its folder, or fetch the file "
            "itself."
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(
            f"{path} is a web page, probably the server's error message, not weights: open it in a browser to see what "
            "the server said, and fetch the file again."
        )


def refuse_bombs(path: Path) -> None:
    """Refuse an archive whose parts would be larger in memory than the file.

    torch stores numbers and pickles as they are and compresses source code alone, which is never read here.

    Raises:
        UserError: a part is compressed, or several claim the same bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [part for part in archive.infolist() if part.filename.split("/")[1:2] != ["code"]]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # no zip, or a damaged one: its reader says so
    packed = next((part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise UserError(f"{path}: its part {packed} is compressed, which no checkpoint's is; the file is refused.")
    claimed, size = sum(part.file_size for part in parts), path.stat().st_size
    if claimed > size:
        raise UserError(f"{path}: its parts claim {claimed} bytes, more than the file's {size}; the file is refused.")
