"""Read a file of tensors, without running anything in it, and say what it is when it holds none."""

import json
import re
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
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked:
            raise UserError(
                f"{path} asks to load {asked[1]}, which no weights need; it is refused, and nothing in it was run."
            ) from error
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


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors of a safetensors file, and the JSON of its entry `workbench`; None if it has none.

    Raises:
        UserError: it is damaged, cut short, or its header claims what is not there.
    """
    refuse_no_weights(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("workbench")
            about = None if text is None else json.loads(text)
            return {key: file.get_tensor(key) for key in file.keys()}, about  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError, RuntimeError, RecursionError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} cannot be read as safetensors ({first[:120]}): its header does not fit its content; it is damaged "
            "or cut short. Fetch it again."
        ) from error


def refuse_strange_tensors(state_dict: dict[str, Any], path: Path) -> None:
    """Refuse tensors that no weights are: some claim more numbers than their bytes, others cannot be copied.

    Raises:
        UserError: a key is no text, or a tensor is repeated in place, sparse, without values, or of no number's type.
    """
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{path} has the key {key!r}, which names no parameter.")
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        number = value.is_floating_point() or (value.dtype == torch.int64 and value.numel() <= 1)
        if not plain or not number or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{path}: its {key} is no tensor that a parameter could be ({value.dtype}); it is refused.")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no readable JSON ({str(error)[:120]}).") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is no configuration: it holds a {type(found).__name__}.")
    return found


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
