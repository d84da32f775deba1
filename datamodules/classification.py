"""Labelled pictures: folders of classes, tables with labels, and torchvision's data sets."""

from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.base import ImageDataModule
from datamodules.class_folders import read_class_folders
from datamodules.class_names import DEFAULT_TEMPLATES, ClassNames, names_of, read_class_names, read_templates
from datamodules.class_tables import read_class_tables
from datamodules.labelled import Labelled
from datamodules.ordering import Part
from datamodules.pairs import Pairs
from datamodules.sources.source import CAPTIONS, Column, ReadOptions
from datamodules.subsets import few_shots, hold_out, one_part_for_each_class
from datamodules.torchvision_sets import find_set, prepare, read_set
from workbench.errors import Notice, UserError

CAPTIONS_OF_A_PICTURE = ("sample", "first")
_SPLITS = ("train", "val", "test")
_SHOWN = 5


class ClassificationDataModule(ImageDataModule):
    """Pictures of classes: for zero-shot evaluation, linear probes, and as contrastive data.

    There are three places for them:

    - `root` alone: a folder with one folder for each class, `<root>/<class>/`, or `<root>/<split>/<class>/` with the
      splits train, val and test, or some. Labels are in the order of the sorted folders.
    - `dataset` and `root`: one of torchvision's data sets, see `datamodules.torchvision_sets.SETS`, with its official
      splits and labels. SUN397, Caltech101 and EuroSAT have none there: a fifth of each class, always the same, is
      `test`. DTD is split 1 of 10; OxfordIIITPet's trainval is `train`; CLEVR's test has no labels, so `val` it is.
    - `train`, `val`, `test`: tables of pictures and labels, in any format that `ImageTextDataModule` reads. Labels are
      text: names of classes, in the order of `class_names`, or else sorted; or they are numbers from 0 on.

    As contrastive data, each training picture's caption is one of its class's prompts, drawn for each visit from the
    seed (Goyal et al. 2023, FLYP). Its label is in the batch, by which `ContrastiveTask` takes pictures of one class
    for positives of each other; with `positives: pair` they are negatives, as FLYP has it. `avoid_false_negatives`
    keeps them apart, where there are classes enough.

    Args:
        root: the folder of the classes, or what torchvision calls root, or where the tables' picture paths start from.
        dataset: name of a torchvision data set, whatever the case.
        download: fetch it, if it is not there.
        train: table of the training pictures.
        val: table of the validation pictures.
        test: table of the test pictures.
        image_column: header of the picture paths or bytes; null takes the usual names.
        label_column: header of the labels; null takes the usual names.
        class_names: what the classes are called in prompts, by label: a list; the path of a text file with one a line;
            a prompt set of `workbench.prompts`, such as `imagenet`; or a YAML file like those. A prompt set's names
            must be the data's own, in its order, where it has any; WordNet's ids are known to `imagenet`. Null takes
            the data set's prompt set, which is put into the order of its labels; else the data's own names with `_` as
            a space.
        templates: prompts with `{}` for the name: a list, a prompt, the path of a text file with one a line, a prompt
            set, one of its subsets (`imagenet:subset7`), or a YAML file; null takes those of the class names or of the
            data set, else `a photo of a {}.`.
        captions: of training pictures: `sample` draws one of the prompts, `first` always takes the first, as
            evaluation does.
        shots: train on so many pictures of each class, chosen by the seed; null takes all.
        val_fraction: share of each class's training pictures that becomes the validation split where there is none,
            chosen by the seed. Null takes min(shots, 4) further pictures of each class (Zhou et al. 2022, CoOp), or,
            without shots, the training pictures themselves.
        balanced: give each class the same share of an epoch, which stays as long: small classes come again, with new
            crops, before large ones are through.
        common: see `ImageDataModule`; the seed also chooses shots and what is held out.

    Attributes:
        names: all the names of each class, of which `class_names` has the first.
    """

    def __init__(
        self,
        root: str | None = None,
        class_names: list[str] | str | None = None,
        templates: list[str] | str | None = None,
        dataset: str | None = None,
        download: bool = False,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        captions: str = "sample",
        shots: int | None = None,
        val_fraction: float | None = None,
        balanced: bool = False,
        **common,
    ):
        super().__init__(**common)
        if captions not in CAPTIONS_OF_A_PICTURE:
            raise UserError(f"captions is {captions!r}; there are {' and '.join(CAPTIONS_OF_A_PICTURE)}.")
        self.root, self.download = root, download
        self.dataset = None if dataset is None else find_set(dataset)
        self.tables = {
            split: place for split, place in zip(_SPLITS, (train, val, test), strict=True) if place is not None
        }
        self.read_options = ReadOptions(image_column, label_column=label_column, root=root)
        self.given_names, self.given_templates = class_names, templates
        self.one_of_captions = captions
        self.shots, self.val_fraction, self.balanced = shots, val_fraction, balanced
        self.names: list[list[str]] = []
        self._notices: list[str] = []
        self._require_one_place()

    def _require_one_place(self) -> None:
        if self.dataset is not None and self.tables:
            raise UserError(
                f"There are two places for the pictures, dataset and {', '.join(self.tables)}; leave one out."
            )
        if self.root is None and not self.tables:
            wanted = "--data.root, the folder that it is in or is fetched into" if self.dataset else "--data.root"
            raise UserError(
                f"Nothing says where the pictures are; give {wanted}"
                f"{'' if self.dataset else ', a folder with one folder for each class, or tables with --data.train'}."
            )

    def prepare_data(self) -> None:
        """Fetch or unpack a data set; called by one process of each machine."""
        if self.dataset is not None:
            prepare(self.dataset, self._folder(), self.download)

    def setup(self, stage: str | None = None) -> None:
        """Load the splits once, and say what a training run should know of them."""
        super().setup(stage)
        if stage == "fit":
            while self._notices:
                rank_zero_warn(self._notices.pop(0), category=Notice)

    def load(self) -> dict[str, Pairs]:
        """Find classes and pictures."""
        given = None if self.given_names is None else read_class_names(self.given_names)
        splits, self.names, templates = self._read(given)
        self.class_names = [first for first, *_ in self.names]
        self.templates = self._chosen_templates(given, templates)
        if "train" in splits:
            splits = self._with_val(splits)
        elif self.shots is not None:
            raise UserError(f"shots is {self.shots}, and there are no training pictures to choose from.")
        found = {split: self._pairs(each, train=split == "train") for split, each in splits.items()}
        if "train" in found and "val" not in found:
            found["val"] = found["train"]
        return {split: found[split] for split in _SPLITS if split in found}

    def _read(self, given: ClassNames | None) -> tuple[dict[str, Labelled], list[list[str]], str | None]:
        """Return the splits, the names of the classes, and the data's own prompt set, if it has one."""
        if self.tables:
            return *read_class_tables(self.tables, self.read_options, given), None
        if self.dataset is not None:
            return read_set(self.dataset, self._folder(), given)
        splits, classes = read_class_folders(self._folder())
        return splits, names_of(classes, given, str(self._folder())), None

    def _folder(self) -> Path:
        return Path(self.root).expanduser()

    def _chosen_templates(self, given: ClassNames | None, prompt_set: str | None) -> list[str]:
        if self.given_templates is not None:
            return read_templates(self.given_templates)
        if given is not None and given.templates is not None:
            return given.templates
        return DEFAULT_TEMPLATES if prompt_set is None else read_templates(prompt_set)

    def _with_val(self, splits: dict[str, Labelled]) -> dict[str, Labelled]:
        """Choose what to train on, and to validate on where the data does not say."""
        splits, others = dict(splits), None
        if "val" not in splits and self.val_fraction is not None:
            splits["train"], splits["val"] = hold_out(splits["train"], self.val_fraction, self.seed)
        if self.shots is not None:
            splits["train"], others = few_shots(splits["train"], self.shots, self.seed, self.class_names)
        if "val" not in splits and others is not None:
            if not len(others):
                raise UserError(
                    f"shots is {self.shots} and no class has more pictures, so that there are none to validate on; "
                    "take fewer, or give a validation split."
                )
            splits["val"] = others
        if "val" not in splits:
            self._notices.append(
                "There is no validation split, so that val is the training pictures themselves; hold some out with "
                "--data.val_fraction 0.1."
            )
        without = np.flatnonzero(splits["train"].counts(len(self.names)) == 0)
        if len(without):
            shown = ", ".join(repr(self.class_names[label]) for label in without[:_SHOWN])
            more = f" and {len(without) - _SHOWN} more" if len(without) > _SHOWN else ""
            self._notices.append(f"There are no training pictures of {shown}{more}.")
        return splits

    def _pairs(self, labelled: Labelled, train: bool) -> Pairs:
        self.look_for_pictures(labelled.source)
        if train and self.balanced:
            labelled, parts = one_part_for_each_class(labelled, self.class_names)
        else:
            parts = [Part(labelled.source.name, len(labelled), block_starts=labelled.source.block_starts)]
        source = labelled.source
        return Pairs(
            source.pictures.read,
            Column(self._prompts(), CAPTIONS),
            place=source.place,
            name=source.pictures.name,
            parts=parts,
            labels=labelled.labels,
            caption_of=labelled.labels,
            **self.transforms(),
        )

    def _prompts(self) -> list[list[str]]:
        """Return what the captions of each class are drawn from."""
        if self.one_of_captions == "first":
            return [[self.templates[0].replace("{}", name)] for name in self.class_names]
        return [[template.replace("{}", name) for name in names for template in self.templates] for names in self.names]
