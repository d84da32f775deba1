"""How fast pictures can be read and prepared on this machine."""

import time
import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image

from datamodules import ImageDataModule
from workbench.data.scan import Scan
from workbench.errors import UserError

_PICTURES, _SECONDS = 400, 3.0


def measure(data: ImageDataModule, train: Scan) -> dict[str, Any]:
    """Read and transform a few hundred pictures as training does, in this process alone.

    Args:
        data: with the transform.
        train: the training rows.

    Returns:
        `pictures` that were read, `pictures_per_second` of one process, and, for as many `workers` as the run would
        have, `expected_pictures_per_second` and `seconds_per_epoch`; nothing where no picture can be read.
    """
    rows = np.flatnonzero(train.readable)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _PICTURES)).astype(np.int64))]
    transform = data.transforms()["training_transform"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loading process
    done, elapsed, start = 0, 0.0, time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            for row in rows.tolist():
                try:
                    transform(train.split.read(row))
                except UserError:  # it went since it was looked at
                    continue
                done, elapsed = done + 1, time.perf_counter() - start
                if elapsed > _SECONDS:
                    break
    finally:
        torch.set_num_threads(threads)
    if not done:
        return {}
    rate, workers = done / elapsed, max(1, data.num_workers)
    return {
        "pictures": done,
        "pictures_per_second": rate,
        "workers": workers,
        "expected_pictures_per_second": rate * workers,
        "seconds_per_epoch": len(train) / (rate * workers),
    }
