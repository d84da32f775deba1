"""Labelled pictures in one folder for each class, with or without folders for the splits above them."""

import os
from collections.abc import Iterator
from pathlib import Path

from datamodules.labelled import Labelled, labelled, picture_files
from datamodules.sources.columns import picture_suffixes
from workbench.errors import UserError

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SHOWN = 5


def read_class_folders(root: Path) -> tuple[dict[str, Labelled], list[str]]:
    """Find pictures in `<root>/<class>/`, or in `<root>/<split>/<class>/`, at any depth.

    Folders are splits where all of them are called train, val (or valid, validation) and test, or where train and val
    are among them. Hidden files and folders are left out, and links to folders inside a class. A class may be a link to
    a folder that lies under the root.

    Args:
        root: the folder.

    Returns:
        split -> its pictures, only `train` where there are no splits; and the classes' folders in sorted order, which
        is that of the labels.

    Raises:
        UserError: no such folder, no class in it, splits of different classes, or links that lead out of it.
    """
    if not root.is_dir():
        raise UserError(f"There is no folder {root}.")
    folders = _split_folders(root)
    classes = {split: _subfolders(folder) for split, folder in folders.items()}
    first, expected = next(iter(classes.items()))
    if not expected:
        raise UserError(f"{folders[first]} has no folder for a class in it.")
    for split, found in classes.items():
        if different := sorted(set(found) ^ set(expected)):
            more = ", ..." if len(different) > _SHOWN else "."
            raise UserError(
                f"The classes of {folders[first]} and /{folders[split].name} differ: "
                f"{', '.join(different[:_SHOWN])}{more}"
            )
    return {split: _read(folder, expected, root) for split, folder in folders.items()}, expected


def _split_folders(root: Path) -> dict[str, Path]:
    inside = _subfolders(root)
    named = [name for name in inside if name in _SPLITS]
    splits = {_SPLITS[name] for name in named}
    # A class may be called `train`, too.
    if not named or not ({"train", "val"} <= splits or len(named) == len(inside)):
        return {"train": root}
    if len(splits) < len(named):
        raise UserError(f"{root} has {' and '.join(named)}, of which several are the validation split; keep one.")
    folders = {_SPLITS[name]: root / name for name in named}
    return {split: folders[split] for split in ("train", "val", "test") if split in folders}


def _read(folder: Path, classes: list[str], root: Path) -> Labelled:
    paths: list[str] = []
    labels: list[int] = []
    _require_inside(folder, root)
    for label, name in enumerate(classes):
        _require_inside(folder / name, root)
        found = list(_pictures(folder / name))
        if found:  # where one is a link, all are
            _require_inside(Path(found[0]), root)
        paths += found
        labels += [label] * len(found)
    return labelled(str(folder), picture_files(paths, root), labels, classes)


def _require_inside(path: Path, root: Path) -> None:
    """Refuse a link out of the root here, as its pictures would be refused one by one when they are read."""
    if path != root and path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"{path} is a link to {path.resolve()}, which is not under {root}; move what it leads to there, or name "
            "the pictures in a table (--data.train) and give a --data.root above all of them."
        )


def _pictures(folder: Path) -> Iterator[str]:
    suffixes = picture_suffixes()
    for where, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and f".{name.rpartition('.')[2].lower()}" in suffixes:
                yield f"{where}/{name}"


def _refuse(error: OSError) -> None:
    raise UserError(f"The folder {error.filename} cannot be read ({error.strerror}).") from error


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read ({error.strerror}).") from error
