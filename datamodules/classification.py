"""Labelled pictures: a folder with one folder for each class."""

from pathlib import Path

from PIL import Image

from datamodules.base import ImageDataModule
from datamodules.pairs import Pairs, PictureFiles
from workbench.errors import UserError


class ClassificationDataModule(ImageDataModule):
    """Pictures in `<root>/<class>/`, or in `<root>/train/<class>/` and `<root>/val/<class>/`.

    For zero-shot evaluation it needs nothing but class names; as contrastive data, a picture's caption is its class
    in the first template.

    Args:
        root: the folder. Without `train` and `val` inside, both splits are all of it.
        class_names: what the classes are called, in the order of their sorted folders; null takes the folders' names
            with `_` as a space.
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
        class_names: list[str] | None = None,
        templates: list[str] | None = None,
        batch_size: int = 128,
        image_size: int = 224,
        interpolation: str = "bicubic",
        crop_scale: tuple[float, float] = (0.9, 1.0),
        num_workers: int | None = None,
        seed: int = 0,
    ):
        super().__init__(batch_size, image_size, interpolation, crop_scale, num_workers, seed)
        self.root = Path(root)
        self.class_names = class_names
        self.templates = ["a photo of a {}."] if templates is None else templates

    def load(self) -> dict[str, Pairs]:
        """Find classes and pictures."""
        if not self.root.is_dir():
            raise UserError(f"There is no folder {self.root}.")
        split_folders = {split: self.root / split for split in ("train", "val") if (self.root / split).is_dir()}
        folders = split_folders if len(split_folders) == 2 else {"train": self.root, "val": self.root}
        classes = {split: _subfolders(folder) for split, folder in folders.items()}
        if classes["train"] != classes["val"]:
            different = sorted(set(classes["train"]) ^ set(classes["val"]))
            raise UserError(f"The classes of {self.root}/train and /val differ: {', '.join(different[:5])}.")
        if not classes["train"]:
            raise UserError(f"{self.root} has no folder for a class in it.")
        names = self.class_names or [folder.replace("_", " ") for folder in classes["train"]]
        if len(names) != len(classes["train"]):
            raise UserError(f"{len(names)} class_names for the {len(classes['train'])} class folders of {self.root}.")
        for template in self.templates:
            if template.count("{}") != 1:
                raise UserError(f"A template needs exactly one {{}} for the class name; {template!r} has not.")
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
        captions = [[self.templates[0].format(names[label])] for _, label in found]
        labels = [label for _, label in found]
        return Pairs(PictureFiles([path for path, _ in found]), captions, labels=labels, **self.transforms())


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
