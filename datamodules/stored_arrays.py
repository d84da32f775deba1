"""Pictures that a data set keeps as arrays, in memory or in an HDF5 file, rather than as picture files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from workbench.errors import UserError


class ArrayPictures:
    """Pictures in one array; workers share it, those that are spawned, too.

    Args:
        pixels: uint8 [N, H, W] grey, or [N, H, W, 3] RGB.
        name: of the array, for messages.
        rows: those of the pixels that count, int64; None takes all.
    """

    def __init__(self, pixels: np.ndarray | torch.Tensor, name: str, rows: np.ndarray | None = None):
        # Tensors, which torch sends to spawned workers by handle.
        self.pixels = torch.as_tensor(pixels)
        self.title = name
        self.rows = torch.arange(len(self.pixels)) if rows is None else torch.as_tensor(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> Image.Image:
        """Return a picture."""
        return Image.fromarray(self.pixels[self.rows[row]].numpy())

    def name(self, row: int) -> str:
        """Return the name of the array and the number in it."""
        return f"{self.title}[{int(self.rows[row])}]"

    def names(self) -> pa.Array:
        """Return the numbers in the array."""
        return pa.array(self.rows.numpy()).cast(pa.string())

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Return none: an array has all its rows."""
        return []

    def take(self, rows: Sequence[int] | np.ndarray) -> "ArrayPictures":
        """Return some rows of the same array."""
        return ArrayPictures(self.pixels, self.title, self.rows[torch.as_tensor(rows)].numpy())


class HDF5Pictures:
    """Pictures in a data set of an HDF5 file, read from the disk one by one.

    Args:
        path: of the file.
        key: of the data set in it, uint8 [N, H, W, 3].
        rows: those that count, int64.
    """

    def __init__(self, path: Path, key: str, rows: np.ndarray):
        self.path, self.key, self.rows = path, key, torch.as_tensor(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> Image.Image:
        """Read a picture.

        Raises:
            UserError: the file is not there or damaged.
        """
        import h5py

        try:
            # Opened anew, as a handle may not be shared with the processes that are forked.
            with h5py.File(self.path) as file:
                return Image.fromarray(file[self.key][int(self.rows[row])])
        except (OSError, KeyError) as error:
            raise UserError(f"Picture {self.name(row)} cannot be read ({error}).") from error

    def name(self, row: int) -> str:
        """Return the file and the number in it."""
        return f"{self.path}[{int(self.rows[row])}]"

    def names(self) -> pa.Array:
        """Return the numbers in the file."""
        return pa.array(self.rows.numpy()).cast(pa.string())

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Return all of the rows where the file is gone, else none."""
        return [] if self.path.is_file() else list(rows)

    def take(self, rows: Sequence[int] | np.ndarray) -> "HDF5Pictures":
        """Return some rows of the same file."""
        return HDF5Pictures(self.path, self.key, self.rows[torch.as_tensor(rows)].numpy())
