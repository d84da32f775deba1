"""Read a file that torch.save wrote, without running anything in it."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from workbench.errors import UserError


def read_checkpoint(path: Path) -> Any:
    """Return what is in a checkpoint file: tensors, containers and plain values.

    Raises:
        UserError: there is no such file, or it is damaged, or holds anything else.
    """
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}.")
    refuse_bombs(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch compares no checksums
            if damaged is not None:
                raise ValueError(f"{damaged} does not have its checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} cannot be read as a checkpoint ({first[:120]}): it is damaged, cut short, or something else."
        ) from error


def refuse_bombs(path: Path) -> None:
    """Refuse an archive whose parts would be larger in memory than the file.

    torch stores numbers and pickles as they are and compresses source code alone, which is never read here.

    Raises:
        UserError: a part is compressed, or several claim the same bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [part for part in archive.infolist() if "/code/" not in part.filename]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # no zip, or a damaged one: its reader says so
    packed = next((part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise UserError(f"{path}: its part {packed} is compressed, which no checkpoint's is; the file is refused.")
    claimed, size = sum(part.file_size for part in parts), path.stat().st_size
    if claimed > size:
        raise UserError(f"{path}: its parts claim {claimed} bytes, more than the file's {size}; the file is refused.")
