"""Labelled pictures: a folder with one folder for each class."""

from pathlib import Path

from PIL import Image

from datamodules.base import ImageDataModule
from datamodules.pairs import Pairs, PictureFiles
from workbench.errors import UserError

_SPLITS = ("train", "val", "test")


class ClassificationDataModule(ImageDataModule):
    """Pictures in `<root>/<class>/`, or in `<root>/<split>/<class>/` with the splits train, val and test, or some.

    For zero-shot evaluation it needs nothing but class names; as contrastive data, a picture's caption is its class
    in the first template.

    Args:
        root: the folder. Where it has classes rather than splits inside, train and val are both all of it.
        class_names: what the classes are called, in the order of their sorted folders: a list, or the path of a text
            file with one a line; null takes the folders' names with `_` as a space.
        templates: prompts with `{}` for the name.
        batch_size: see `ImageDataModule`, as for `image_size`, `interpolation`, `crop_scale`, `num_workers`, `seed`.
        image_size: see `ImageDataModule`.
        interpolation: see `ImageDataModule`.
        crop_scale: see `ImageDataModule`.
        num_workers: see `ImageDataModule`.
        seed: see `ImageDataModule`.
    """

    def __init__(
        self,
        root: str,
        class_names: list[str] | str | None = None,
        templates: list[str] | None = None,
        batch_size: int = 128,
        image_size: int = 224,
        interpolation: str = "bicubic",
        crop_scale: tuple[float, float] | None = (0.9, 1.0),
        num_workers: int | None = None,
        seed: int = 0,
    ):
        super().__init__(batch_size, image_size, interpolation, crop_scale, num_workers, seed)
        self.root = Path(root)
        self.class_names = _lines(Path(class_names)) if isinstance(class_names, str) else class_names
        self.templates = ["a photo of a {}."] if templates is None else templates

    def load(self) -> dict[str, Pairs]:
        """Find classes and pictures."""
        if not self.root.is_dir():
            raise UserError(f"There is no folder {self.root}.")
        if not self.templates:
            raise UserError("There is no template; give at least one, such as 'a photo of a {}.'.")
        for template in self.templates:
            if template.count("{}") != 1:
                raise UserError(f"A template needs exactly one {{}} for the class name; {template!r} has not.")
        inside = _subfolders(self.root)
        # A class may be called `train`, too.
        if {"train", "val"} <= set(inside) or (inside and set(inside) <= set(_SPLITS)):
            folders = {split: self.root / split for split in _SPLITS if split in inside}
        else:
            folders = {"train": self.root, "val": self.root}
        classes = {split: _subfolders(folder) for split, folder in folders.items()}
        first, expected = next(iter(classes.items()))
        if not expected:
            raise UserError(f"{folders[first]} has no folder for a class in it.")
        for split, found in classes.items():
            if different := sorted(set(found) ^ set(expected)):
                raise UserError(f"The classes of {self.root}/{first} and /{split} differ: {', '.join(different[:5])}.")
        names = self.class_names or [folder.replace("_", " ") for folder in expected]
        if len(names) != len(expected):
            raise UserError(f"{len(names)} class_names for the {len(expected)} class folders of {self.root}.")
        self.class_names = names
        return {split: self._pairs(folder, classes[split], names) for split, folder in folders.items()}

    def _pairs(self, folder: Path, classes: list[str], names: list[str]) -> Pairs:
        known = Image.registered_extensions()
        found = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in known and path.is_file()
        ]
        captions = [[self.templates[0].replace("{}", names[label])] for _, label in found]
        labels = [label for _, label in found]
        return Pairs(PictureFiles([path for path, _ in found]), captions, labels=labels, **self.transforms())


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The class names in {file} cannot be read: {error}.") from error
