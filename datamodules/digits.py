"""Handwritten digits that ship inside scikit-learn: a small classification set that needs no download.

Pictures: 1,797 of 13 writers, 8 x 8, from the UCI repository's Optical Recognition of Handwritten Digits (Alpaydin and
Kaynak 1998, https://doi.org/10.24432/C50P49, CC BY 4.0; its test part), as `sklearn.datasets.load_digits` returns them.
Prompts: those of MNIST.
"""

import importlib.util
from typing import Any

import numpy as np

from datamodules.class_names import ClassNames, names_of, read_class_names
from datamodules.classification import ClassificationDataModule
from datamodules.labelled import Labelled, labelled
from datamodules.stored_arrays import ArrayPictures
from datamodules.subsets import hold_out
from workbench.errors import UserError

PROMPTS = "mnist"
TEST_SHARE = 0.2
"""Of each digit."""
TEST_SEED = 0
"""Of that split: not the run's, so that runs of several seeds are tested on the same pictures."""
_INK = 16
"""Of a pixel that is all ink; 0 is paper."""


class DigitsDataModule(ClassificationDataModule):
    """1,797 handwritten digits, grey on black, 8 x 8 pixels enlarged: train, val and test by class.

    A fifth of each digit, always the same, is test; of the rest, `val_fraction` is val: by default 1,295, 143 and 359
    pictures. The same writers are in all three. To watch a run that trains on something else, each split will do.

    Args:
        class_names: see `ClassificationDataModule`; null takes '0' to '9'.
        templates: see `ClassificationDataModule`; null takes MNIST's.
        captions: see `ClassificationDataModule`.
        shots: see `ClassificationDataModule`.
        val_fraction: share of each digit's pictures, test apart, that is val, chosen by the seed.
        balanced: see `ClassificationDataModule`.
        common: see `ImageDataModule`; the seed also chooses shots and val.
    """

    def __init__(
        self,
        class_names: list[str] | str | None = None,
        templates: list[str] | str | None = None,
        captions: str = "sample",
        shots: int | None = None,
        val_fraction: float = 0.1,
        balanced: bool = False,
        **common: Any,
    ):
        # The places of the base are named, so that they are no options here.
        super().__init__(
            root=None,
            dataset=None,
            download=False,
            train=None,
            val=None,
            test=None,
            image_column=None,
            label_column=None,
            class_names=class_names,
            templates=templates,
            captions=captions,
            shots=shots,
            val_fraction=val_fraction,
            balanced=balanced,
            **common,
        )

    def _require_one_place(self) -> None:
        """There is one."""

    def _read(self, given: ClassNames | None) -> tuple[dict[str, Labelled], list[list[str]], str | None]:
        pixels, digits = _load()
        prompts = read_class_names(PROMPTS)
        pictures = labelled("digits", ArrayPictures(pixels, "digits"), digits, prompts.first)
        rest, test = hold_out(pictures, TEST_SHARE, TEST_SEED)
        names = prompts.names if given is None else names_of(prompts.first, given, "the digits")
        return {"train": rest, "test": test}, names, PROMPTS


def _load() -> tuple[np.ndarray, np.ndarray]:
    """Return pixels, uint8 [1797, 8, 8], and digits, int64 [1797]."""
    if importlib.util.find_spec("sklearn") is None:
        raise UserError(
            "DigitsDataModule needs scikit-learn, which has the pictures and which the extra `demo` installs: "
            "pip install 'clip-workbench[demo]', or pip install scikit-learn."
        )
    from sklearn.datasets import load_digits

    found = load_digits()
    return np.round(found.images * (255 / _INK)).astype(np.uint8), found.target.astype(np.int64)
