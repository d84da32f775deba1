"""The classification data sets of torchvision, by name, with their official splits.

`SETS` is all that is known of them: the constructor's arguments for each split, where torchvision looks, which of its
attributes has the pictures, and which prompts of `workbench.prompts` are the data set's. What torchvision has no class
for, or no single label of, is in `REFUSED` with the reason.

Pictures that are files are read as files, by us; torchvision only says where they are.
"""

import difflib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.class_names import ClassNames, names_by_match, names_of, read_class_names
from datamodules.labelled import Labelled, labelled, picture_files
from datamodules.sources.source import Pictures
from datamodules.stored_arrays import ArrayPictures, HDF5Pictures
from datamodules.subsets import hold_out
from workbench.errors import UserError

TEST_SHARE = 0.2
"""Of each class, where torchvision has all pictures in one."""
TEST_SEED = 0
"""Of that split: not the run's, so that runs of several seeds are tested on the same pictures."""

_Rows = tuple[Sequence[Any] | np.ndarray | Pictures, Sequence[Any] | np.ndarray]
"""Paths, or an array of pixels, or pictures; and as many labels."""


# What torchvision's objects keep, for want of a method that tells a picture's file.


def _image_files(data: Any) -> _Rows:
    return data._image_files, data._labels


def _samples(data: Any) -> _Rows:
    found = data.samples if hasattr(data, "samples") else data._samples
    return [path for path, _ in found], [label for _, label in found]


def _sorted_image_files(data: Any) -> _Rows:
    found = sorted(zip(map(str, data._image_files), data._labels, strict=True))  # they come as the disk has them
    return [path for path, _ in found], [label for _, label in found]


def _pets(data: Any) -> _Rows:
    return data._images, data._labels


def _caltech(data: Any) -> _Rows:
    folder = f"{data.root}/101_ObjectCategories"
    names = [data.categories[label] for label in data.y]
    return [f"{folder}/{name}/image_{n:04d}.jpg" for name, n in zip(names, data.index, strict=True)], data.y


def _data_and_targets(data: Any) -> _Rows:
    return np.asarray(data.data), data.targets


def _channels_first(data: Any) -> _Rows:
    return data.data.transpose(0, 2, 3, 1), data.labels


def _fer(data: Any) -> _Rows:
    labels = [label for _, label in data._samples]
    if None in labels:
        raise UserError("the file of the test pictures has no labels; take fer2013.csv or icml_face_data.csv, which do")
    return np.stack([pixels.numpy() for pixels, _ in data._samples]), labels


def _pcam(data: Any) -> _Rows:
    import h5py

    pictures, targets = (data._base_folder / data._FILES[data._split][what][0] for what in ("images", "targets"))
    with h5py.File(targets) as file:
        labels = file["y"][:].reshape(-1)
    return HDF5Pictures(pictures, "x", np.arange(len(labels))), labels


def _by_split(*splits: str, **written: str) -> dict[str, dict[str, Any]]:
    return {split: {"split": split} for split in splits} | {split: {"split": name} for split, name in written.items()}


_BY_FLAG = {"train": {"train": True}, "test": {"train": False}}
_ALL_IN_ONE: dict[str, dict[str, Any]] = {"all": {}}
_DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class TorchvisionSet:
    """What there is to know of a data set.

    Attributes:
        folder: under the root, where torchvision looks.
        splits: ours -> keyword arguments of the constructor; `all` alone where there is no official one.
        rows: object -> pictures and labels.
        prompts: name of its prompt set, if it has one.
        classes: attribute with the names of the classes, or the names; None where it has numbers only.
        first_label: label of the first class.
        unused_prompts: names of the prompt set that it has no pictures of.
        packages: that torchvision needs for it.
        by_hand: where to get it, if torchvision cannot fetch it.
        unpacks: what its constructor unpacks from archives, under the root.
    """

    folder: str
    splits: Mapping[str, Mapping[str, Any]]
    rows: Callable[[Any], _Rows]
    prompts: str | None = None
    classes: str | tuple[str, ...] | None = "classes"
    first_label: int = 0
    unused_prompts: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    by_hand: str | None = None
    unpacks: tuple[str, ...] = ()


SETS = {
    "CIFAR10": TorchvisionSet("cifar-10-batches-py", _BY_FLAG, _data_and_targets, "cifar10"),
    "CIFAR100": TorchvisionSet("cifar-100-python", _BY_FLAG, _data_and_targets, "cifar100"),
    "MNIST": TorchvisionSet("MNIST", _BY_FLAG, _data_and_targets, "mnist"),
    "FashionMNIST": TorchvisionSet("FashionMNIST", _BY_FLAG, _data_and_targets),
    # Its third part, of 531,131 easier pictures, is left out.
    "SVHN": TorchvisionSet(".", _by_split("train", "test"), _channels_first, classes=_DIGITS, packages=("scipy",)),
    # Its 100,000 pictures without labels are left out; torchvision wants their file all the same.
    "STL10": TorchvisionSet("stl10_binary", _by_split("train", "test"), _channels_first, "stl10"),
    "Food101": TorchvisionSet("food-101", _by_split("train", "test"), _image_files, "food101"),
    "SUN397": TorchvisionSet("SUN397", _ALL_IN_ONE, _sorted_image_files, "sun397"),
    "StanfordCars": TorchvisionSet(
        "stanford_cars",
        _by_split("train", "test"),
        _samples,
        "stanford_cars",
        packages=("scipy",),
        by_hand="its original address is gone, and https://github.com/pytorch/vision/issues/7545 says where others "
        "have it",
    ),
    "FGVCAircraft": TorchvisionSet(
        "fgvc-aircraft-2013b", _by_split("train", "val", "test"), _image_files, "fgvc_aircraft"
    ),
    "DTD": TorchvisionSet("dtd", _by_split("train", "val", "test"), _image_files, "dtd"),
    "OxfordIIITPet": TorchvisionSet("oxford-iiit-pet", _by_split("test", train="trainval"), _pets, "oxford_pets"),
    "Caltech101": TorchvisionSet(
        "caltech101", _ALL_IN_ONE, _caltech, "caltech101", "categories", unused_prompts=("background",)
    ),
    "Flowers102": TorchvisionSet(
        "flowers-102", _by_split("train", "val", "test"), _image_files, "flowers102", packages=("scipy",)
    ),
    "FER2013": TorchvisionSet(
        "fer2013",
        _by_split("train", "test"),
        _fer,
        "fer2013",
        classes=None,
        by_hand="fer2013.csv is at https://www.kaggle.com/c/"
        "challenges-in-representation-learning-facial-expression-recognition-challenge",
    ),
    "EuroSAT": TorchvisionSet("eurosat", _ALL_IN_ONE, _samples, "eurosat"),
    "GTSRB": TorchvisionSet("gtsrb", _by_split("train", "test"), _samples, "gtsrb", classes=None),
    "Country211": TorchvisionSet("country211", _by_split("train", "test", val="valid"), _samples, "country211"),
    "PCAM": TorchvisionSet(
        "pcam", _by_split("train", "val", "test"), _pcam, "patch_camelyon", classes=None, packages=("h5py",)
    ),
    "RenderedSST2": TorchvisionSet("rendered-sst2", _by_split("train", "val", "test"), _samples, "sst2"),
    # The labels of its test pictures were never given out.
    "CLEVRClassification": TorchvisionSet(
        "clevr",
        _by_split("train", "val"),
        _image_files,
        "clevr_counts",
        classes=("3", "4", "5", "6", "7", "8", "9", "10"),
        first_label=3,
    ),
    "ImageNet": TorchvisionSet(
        ".",
        _by_split("train", "val"),
        _samples,
        "imagenet",
        "wnids",
        packages=("scipy",),
        by_hand="https://image-net.org gives its archives to those who sign up; where only the folders of classes are "
        "there, leave the data set out and give their folder as --data.root with --data.class_names imagenet",
        unpacks=("meta.bin", "train", "val"),
    ),
}

_MANY_LABELS = "its pictures have several classes each, and a picture has one here"
_VIDEO = "it is video, and a sample is a picture here; write one frame of each into a folder for its class"
_NOT_THERE = "torchvision does not have it; put its pictures into a folder for each class"
REFUSED = {
    "VOC2007": _MANY_LABELS,
    "VOCDetection": _MANY_LABELS,
    "VOCSegmentation": _MANY_LABELS,
    "CelebA": _MANY_LABELS,
    "CocoDetection": _MANY_LABELS,
    "Kinetics": _VIDEO,
    "Kinetics700": _VIDEO,
    "UCF101": _VIDEO,
    "HMDB51": _VIDEO,
    "KITTI": "torchvision has its boxes, and not the distance of the nearest car, which is the class in the paper",
    "Birdsnap": _NOT_THERE,
    "RESISC45": _NOT_THERE,
    "HatefulMemes": _NOT_THERE,
}


def find_set(name: str) -> str:
    """Return the key of `SETS` for a data set's name, or its prompts', whatever the case and punctuation.

    Raises:
        UserError: there is none; with the reason, or the nearest name.
    """
    known = {_plain(known.prompts): key for key, known in SETS.items() if known.prompts} | {
        _plain(key): key for key in SETS
    }
    if _plain(name) in known:
        return known[_plain(name)]
    reason = {_plain(key): (key, reason) for key, reason in REFUSED.items()}.get(_plain(name))
    if reason:
        raise UserError(f"{reason[0]} is no data set of this kind: {reason[1]}.")
    near = difflib.get_close_matches(_plain(name), known, n=1)
    hint = f"; did you mean {known[near[0]]!r}?" if near else "."
    raise UserError(f"There is no data set {name!r}{hint} There are {', '.join(SETS)}.")


def prepare(key: str, root: Path, download: bool) -> None:
    """Fetch a data set, if that is wanted and it is not there, and unpack it; for one process at a time.

    Raises:
        UserError: it cannot be fetched.
    """
    known = SETS[key]
    if download and known.by_hand and not _folder(key, root).is_dir():
        raise UserError(f"torchvision cannot fetch {key}: {known.by_hand}. It belongs into {_folder(key, root)}.")
    fetch = {"download": True} if download and not known.by_hand else {}
    if fetch or not all((root / name).exists() for name in known.unpacks):
        for options in known.splits.values():
            _constructed(key, root, {**options, **fetch})


def read_set(key: str, root: Path, given: ClassNames | None) -> tuple[dict[str, Labelled], list[list[str]], str | None]:
    """Read the splits of a data set that is on the disk.

    Where it has its own prompts they are matched by name, so that labels stay torchvision's, whatever the order in
    which OpenAI had them.

    Args:
        key: of `SETS`.
        root: what torchvision calls root.
        given: names of the classes instead of the data set's prompts, in the order of its labels.

    Returns:
        split -> pictures, the names of each class, and the name of the prompt set, if it has one.

    Raises:
        UserError: it is not there, or is not whole, or its classes are not those of the prompts.
    """
    known = SETS[key]
    found: dict[str, tuple[Pictures, np.ndarray]] = {}
    classes: dict[str, list[str]] = {}
    for split, options in known.splits.items():
        data = _constructed(key, root, options)
        found[split] = _rows(key, root, data)
        classes[split] = _classes(known, data)
    own = next(iter(classes.values()))
    for split, others in classes.items():
        if others != own:
            raise UserError(
                f"{key} in {_folder(key, root)} is not whole: its splits have {len(own)} and {len(others)} classes "
                f"({split}), or other ones."
            )
    prompts = None if known.prompts is None else read_class_names(known.prompts)
    names = _names(key, own, given, prompts)
    splits = {}
    for split, (pictures, labels) in found.items():
        _require_labels(key, split, labels, len(names))
        called = own or [first for first, *_ in names]
        splits[split] = labelled(str(_folder(key, root)), pictures, labels, called, f"{key} {split}")
    if "all" in splits:
        splits["train"], splits["test"] = hold_out(splits.pop("all"), TEST_SHARE, TEST_SEED)
    return splits, names, known.prompts


def _names(key: str, own: list[str], given: ClassNames | None, prompts: ClassNames | None) -> list[list[str]]:
    known = SETS[key]
    if prompts is not None and (given is None or given.where == prompts.where):
        return names_by_match(own, prompts, key, known.unused_prompts) if own else prompts.names
    # Numbers alone have no names to compare with; how many there are is known from the prompts.
    numbers = own or [str(label) for label in range(len(prompts.names) if prompts else 0)]
    return names_of(numbers, given, key)


def _constructed(key: str, root: Path, options: Mapping[str, Any]) -> Any:
    known, folder = SETS[key], _folder(key, root)
    missing = [package for package in known.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"torchvision reads {key} with {' and '.join(missing)}: pip install {' '.join(missing)}.")
    fetching = bool(options.get("download"))
    if not folder.is_dir() and not fetching:
        raise UserError(f"{key} is not in {root}: there is no folder {folder}; {_what_to_do(key, root)}.")
    from torchvision import datasets

    try:
        return getattr(datasets, key)(root=str(root), **options)
    except Exception as error:  # whatever pickle, csv, json, tar, scipy and the network raise
        said = " ".join((str(error) or type(error).__name__).split()).rstrip(".")
        if fetching:
            raise UserError(f"{key} could not be fetched into {root} ({said}).") from error
        said = said.removesuffix(" You can use download=True to download it").rstrip(".")
        raise UserError(
            f"{key} in {folder} is not whole, or was changed ({said}); {_what_to_do(key, root)}."
        ) from error


def _what_to_do(key: str, root: Path) -> str:
    known = SETS[key]
    if known.by_hand:
        return known.by_hand
    above = f", or give the folder above as --data.root, {root.parent}," if root.name == known.folder else ""
    return f"fetch it with --data.download true{above} or put it there as torchvision's {key} has it"


def _folder(key: str, root: Path) -> Path:
    return root / SETS[key].folder


def _rows(key: str, root: Path, data: Any) -> tuple[Pictures, np.ndarray]:
    try:
        pictures, labels = SETS[key].rows(data)
    except UserError as error:
        raise UserError(f"{key} in {_folder(key, root)}: {error}.") from error
    numbers = np.asarray(labels, dtype=np.int64) - SETS[key].first_label
    if isinstance(pictures, np.ndarray):
        return ArrayPictures(np.ascontiguousarray(pictures), key), numbers
    if isinstance(pictures, list):
        return picture_files(list(map(str, pictures)), root), numbers
    return pictures, numbers


def _classes(known: TorchvisionSet, data: Any) -> list[str]:
    if known.classes is None:
        return []
    return list(getattr(data, known.classes) if isinstance(known.classes, str) else known.classes)


def _require_labels(key: str, split: str, labels: np.ndarray, classes: int) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        first = SETS[key].first_label
        raise UserError(
            f"{key} {split}, picture {wrong[0] + 1}: the label {labels[wrong[0]] + first} is none of the {classes} "
            f"classes, from {first} on."
        )


def _plain(name: str | None) -> str:
    return re.sub(r"[\W_]", "", name or "").casefold()
