"""The folder that a command writes: whole, or not there."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from workbench.errors import UserError


def free_folder(output: str | None, default: Path | None) -> Path:
    """Return the folder to write.

    Args:
        output: what was asked for.
        default: else; None where there is none.

    Raises:
        UserError: there is something in it, it cannot be written, or nothing says which.
    """
    if output is None and default is None:
        raise UserError("Nothing says where to write; give --output, a folder that does not exist.")
    folder = default if output is None else Path(output).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists; name a folder that does not, or is empty, with --output.")
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):  # said now, not after hours of measuring
        raise UserError(f"{folder} cannot be written: {there} is no folder that may be written to.")
    return folder


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Yield a folder beside, which takes the name when everything is in it; on failure nothing is left.

    Raises:
        UserError: it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            yield beside
            beside.chmod(0o755)  # mkdtemp's is for nobody else
            os.replace(beside, folder)  # noqa: PTH105 - Path.replace is the same call
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{folder} cannot be written ({reason}); nothing is left of it.") from error
