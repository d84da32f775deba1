"""Read a file that torch.save wrote, without running anything in it."""

import pickle
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
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} cannot be read as a checkpoint ({first[:120]}): it is damaged, cut short, or something else."
        ) from error
