"""Pictures of classes from folders and tables, what the classes are called, and which of them are trained on."""

import csv
import io
import json
import os
import tarfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from callbacks.zero_shot_monitor import ZeroShotMonitor
from datamodules import ClassificationDataModule
from datamodules.pairs import collate
from workbench import prompts
from workbench.errors import Notice, UserError
from workbench.main import main
from workbench.tokenizer import tokenize

QUICK = str(Path(__file__).parent.parent.parent / "experiments" / "quickstart.yaml")


def module(root=None, **options):
    return ClassificationDataModule(
        None if root is None else str(root), **{"batch_size": 2, "image_size": 8, "num_workers": 0, **options}
    )


def loaded(root=None, **options):
    data = module(root, **options)
    data.setup()
    return data


def folders(root, classes):
    """Write pictures, the number of each in its colour, into the folder of each class; return the root."""
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (9, 8), (number, 100, 0)).save(root / name / f"{number:02d}.png")
    return root


def table(rows, header=("filepath", "label"), name="table.csv"):
    """Write a table beside as many pictures as it has rows; its first column is the picture's."""
    Path("pictures").mkdir(exist_ok=True)
    for number in range(len(rows)):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(f"pictures/{number}.png")
    with Path(name).open("w", newline="") as file:
        csv.writer(file).writerows([header, *([f"pictures/{number}.png", row] for number, row in enumerate(rows))])
    return name


def names_of_rows(data, split):
    pairs = data.datasets[split]
    return [Path(pairs.name(row)).relative_to(data.root).as_posix() for row in range(len(pairs))]


def refusal(action, *args, **options):
    with pytest.raises(UserError) as raised:
        action(*args, **options)
    return str(raised.value)


def notices(data, stage="fit"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.setup(stage)
    return [str(each.message) for each in caught if issubclass(each.category, Notice)]


# Folders


def test_a_folder_for_each_class(tmp_path):
    folders(tmp_path / "a", {"red_fox": 2, "cat": 3, ".hidden": 1})
    (tmp_path / "a" / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "a" / "cat" / "._00.png").write_bytes(b"what a Mac leaves")
    (tmp_path / "a" / "cat" / "more").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "cat" / "more" / "X.JPG")
    data = loaded(tmp_path / "a")
    assert data.class_names == ["cat", "red fox"] and data.names == [["cat"], ["red fox"]]
    assert data.templates == ["a photo of a {}."]
    assert names_of_rows(data, "train") == [
        *("cat/00.png", "cat/01.png", "cat/02.png", "cat/more/X.JPG", "red_fox/00.png", "red_fox/01.png"),
    ]
    assert data.datasets["train"].labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert data.datasets["train"].captions[5] == "a photo of a red fox."
    sample = data.datasets["train"][(0, 1)]
    assert sample["image"].shape == (3, 8, 8) and sample["image"].dtype == torch.uint8
    assert sample["label"] == 0 and sample["index"] == 1


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_folders_for_the_splits(tmp_path, val):
    for split, count in (("train", 4), (val, 2), ("test", 3)):
        folders(tmp_path / split, {"cat": count, "dog": 1})
    data = loaded(tmp_path)
    assert {split: len(pairs) for split, pairs in data.datasets.items()} == {"train": 5, "val": 3, "test": 4}
    assert names_of_rows(data, "val")[0] == f"{val}/cat/00.png"


def test_classes_may_be_called_like_splits(tmp_path):
    data = loaded(folders(tmp_path, {"train": 2, "bus": 2}))
    assert data.class_names == ["bus", "train"] and len(data.datasets["train"]) == 4


def test_evaluation_needs_no_training_pictures(tmp_path):
    folders(tmp_path / "test", {"cat": 1, "dog": 1})
    data = loaded(tmp_path)
    assert list(data.datasets) == ["test"]
    assert "nothing to train on; this data has only test" in refusal(data.setup, "fit")
    assert "shots is 1, and there are no training pictures" in refusal(loaded, tmp_path, shots=1)


def test_folders_that_will_not_do(tmp_path):
    assert "There is no folder" in refusal(loaded, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no folder for a class in it" in refusal(loaded, tmp_path / "empty")
    folders(tmp_path / "b" / "train", {"cat": 1, "dog": 1})
    folders(tmp_path / "b" / "val", {"cat": 1, "dig": 1})
    assert "b/train and /val differ: dig, dog." in refusal(loaded, tmp_path / "b")
    folders(tmp_path / "b" / "valid", {"cat": 1, "dog": 1})
    assert "several are the validation split" in refusal(loaded, tmp_path / "b")
    folders(tmp_path / "c", {"cat": 0, "dog": 0})
    assert "train split has no pair" in refusal(loaded, tmp_path / "c")
    folders(tmp_path / "d", {"cat": 1})
    (tmp_path / "d" / "cat" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    said = refusal(loaded, tmp_path / "d")
    assert "is not UTF-8; rename it" in said and "caf" in said
    assert "Nothing says where the pictures are" in refusal(module)
    assert "the folder that it is in" in refusal(module, dataset="CIFAR10")
    assert "two places for the pictures, dataset and train, val" in refusal(
        module, "x", dataset="CIFAR10", train="a.csv", val="b.csv"
    )


def test_links(tmp_path):
    """A class may be a link to a folder under the root; nothing may lead out of it."""
    folders(tmp_path / "outside", {"dog": 2})
    folders(tmp_path / "root" / "train", {"cat": 2})
    folders(tmp_path / "root" / "val", {"cat": 1})
    folders(tmp_path / "root" / "all", {"dog": 2})
    for split in ("train", "val"):
        (tmp_path / "root" / split / "dog").symlink_to("../all/dog")
    (tmp_path / "link").symlink_to("root")
    data = loaded(tmp_path / "link")
    assert names_of_rows(data, "val")[1:] == ["val/dog/00.png", "val/dog/01.png"]
    assert data.datasets["val"][2]["image"][0, 0, 0] == 1

    one = tmp_path / "root" / "train" / "cat" / "zz.png"
    one.symlink_to(tmp_path / "outside" / "dog" / "00.png")
    data = loaded(tmp_path / "root", on_error="raise")
    assert "zz.png leads out of" in refusal(data.datasets["train"].__getitem__, 2)
    one.rename(one.with_name("00.png"))  # the first is a link, so that all may be
    assert "train/cat/00.png is a link to" in refusal(loaded, tmp_path / "root")
    (tmp_path / "root" / "train" / "cat" / "00.png").unlink()

    (tmp_path / "root" / "train" / "dog").unlink()
    (tmp_path / "root" / "train" / "dog").symlink_to(tmp_path / "outside" / "dog")
    said = refusal(loaded, tmp_path / "root")
    assert "train/dog is a link to" in said and "not under" in said and "--data.train" in said

    folders(tmp_path / "elsewhere", {"cat": 1, "dog": 1})
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "test").symlink_to(tmp_path / "elsewhere")
    assert "root2/test is a link to" in refusal(loaded, tmp_path / "root2")


def test_digits_as_folders_of_pictures(tmp_path):
    """Real pictures, scikit-learn's 1,797 digits, through PNG files and back."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        (tmp_path / str(label)).mkdir(exist_ok=True)
        Image.fromarray((pixels * 15).astype(np.uint8)).save(tmp_path / str(label) / f"{number:04d}.png")
    data = loaded(tmp_path, class_names="mnist", shots=20)
    assert data.class_names == list("0123456789") and data.templates == ['a photo of the number: "{}".']
    assert {split: len(pairs) for split, pairs in data.datasets.items()} == {"train": 200, "val": 40}
    train, val = set(names_of_rows(data, "train")), set(names_of_rows(data, "val"))
    assert not train & val
    for row in range(0, 200, 7):
        number = int(Path(names_of_rows(data, "train")[row]).stem)
        sample = data.datasets["train"][row]
        assert sample["label"] == digits.target[number]
        assert torch.equal(sample["image"][0], torch.tensor(digits.images[number] * 15).to(torch.uint8))


# Tables


def test_labels_are_text(tmp_path):
    name = table(["cat", "None", "1e5", "cat", "NA", "hot_dog", "nan", " cat "])
    data = loaded(train=name)
    assert data.class_names == ["1e5", "NA", "None", "cat", "hot dog", "nan"]
    assert [data.class_names[label] for label in data.datasets["train"].labels] == [
        *("cat", "None", "1e5", "cat", "NA", "hot dog", "nan", "cat"),
    ]
    assert data.datasets["train"].captions[1] == "a photo of a None."
    assert data.datasets["train"][4]["image"][0, 0, 0] == 4


def test_labels_in_the_order_of_the_names():
    name = table(["dog", "cat", "Hot dog", "dog"])
    data = loaded(train=name, class_names=["hot dog", "dog", "unseen", "cat"])
    assert data.datasets["train"].labels.tolist() == [1, 3, 0, 1]
    assert notices(data)[-1] == "There are no training pictures of 'unseen'."


def test_labels_that_are_numbers():
    name = table([2, 0, 1, 10, *range(3, 10)])
    data = loaded(train=name, class_names=[f"class {number}" for number in range(11)])
    assert data.datasets["train"].labels.tolist()[:4] == [2, 0, 1, 10]
    assert data.datasets["train"].captions[3] == "a photo of a class 10."
    with pytest.warns(Notice, match="are numbers, which no picture looks like; .*--data.class_names"):
        data = loaded(train=name)
    assert data.class_names == [str(number) for number in range(11)], "by size"
    assert data.datasets["train"].labels.tolist()[:4] == [2, 0, 1, 10]


def test_numbers_that_are_names():
    """The prompts of CLEVR Counts start with 10, so that its label 3 is class 1."""
    name = table([10, 3, 4, 9])
    data = loaded(train=name, class_names="clevr_counts")
    assert data.datasets["train"].labels.tolist() == [0, 1, 2, 7]
    assert "line 3: the label '11' is not among the prompts clevr_counts" in refusal(
        loaded, train=table([10, 11]), class_names="clevr_counts"
    )


def test_wordnet_ids_are_labels_of_imagenet():
    """Two pairs of classes have one name; which is meant is told by the id alone, though not all are there."""
    name = table(["n04008634", "n01440764", "n04356056"])
    data = loaded(train=name, class_names="imagenet")
    assert data.datasets["train"].labels.tolist() == [744, 0, 837]
    assert "has the name 'missile' twice, so 'missile' could be either" in refusal(
        loaded, train=table(["missile", "tench"]), class_names="imagenet"
    )


def test_further_names_and_aliases_are_labels():
    Path("mine.yaml").write_text(
        "class_names: [cat, [dog, puppy]]\ntemplates: ['a {}']\naliases: {Katze: cat}\n", encoding="utf-8"
    )
    data = loaded(train=table(["puppy", "Katze", "dog", "Dog"]), class_names="mine.yaml")
    assert data.datasets["train"].labels.tolist() == [1, 0, 1, 1]
    assert data.names == [["cat"], ["dog", "puppy"]] and data.templates == ["a {}"]


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        (["cat", "dgo"], {"class_names": ["cat", "dog"]}, "table.csv, line 3: the label 'dgo' is not among class_nam"),
        (["cat", "dgo"], {"class_names": ["cat", "dog"]}, "did you mean 'dog'?"),
        ([0, 5], {"class_names": ["cat", "dog"]}, "line 3: there is no class 5; class_names has 2 names, for the numb"),
        ([1, 2], {"class_names": ["cat", "dog"]}, "line 3: there is no class 2"),
        ([0, "dog"], {"class_names": ["cat", "dog"]}, "line 2: the label '0' is not among"),
        ([0, -1], {"class_names": ["cat", "dog"]}, "line 2: the label '0' is not among"),
        ([1, 2], {}, "2 different numbers from 1 to 2; count the classes from 0 without gaps, or name them"),
        (["cat", ""], {}, "table.csv, line 3: the label is empty"),
        (["cat", "  "], {"class_names": ["cat"]}, "table.csv, line 3: the label is empty"),
        (["cat"], {"label_column": "klass"}, "no column 'klass' (--data.label_column)"),
        (["cat"], {"root": "elsewhere"}, "line 2: there is no picture elsewhere/pictures/0.png"),
    ],
)
def test_labels_that_will_not_do(labels, options, said):
    assert said in refusal(loaded, train=table(labels), **options)


def test_columns_by_name():
    name = table(["cat", "dog"], header=("bild", "art"))
    data = loaded(train=name, image_column="bild", label_column="art")
    assert data.class_names == ["cat", "dog"]
    assert "none of the usual columns (label, class," in refusal(loaded, train=name, image_column="bild")


def test_splits_in_tables():
    train, val = table(["cat", "dog", "dog"]), table(["dog"], name="val.csv")
    data = loaded(train=train, val=val, test=table(["cat"], name="test.csv"))
    assert [data.datasets[split].labels.tolist() for split in ("train", "val", "test")] == [[0, 1, 1], [1], [0]]
    table(["dog", "cow"], name="val.csv")
    assert "val.csv, line 3: the label 'cow' is not among the labels of table.csv." in refusal(
        loaded, train=train, val=val
    )
    data = loaded(val=val, class_names=["cow", "dog"])
    assert data.datasets["val"].labels.tolist() == [1, 0] and list(data.datasets) == ["val"]


def written_as(kind, labels):
    table(labels)  # and the pictures
    paths = [f"pictures/{number}.png" for number in range(len(labels))]
    content = [Path(path).read_bytes() for path in paths]
    if kind == "jsonl":
        lines = [json.dumps({"image": path, "class": label}) for path, label in zip(paths, labels, strict=True)]
        Path("table.jsonl").write_text("\n".join(lines))
        return "table.jsonl"
    if kind == "tar":
        with tarfile.open("shard.tar", "w") as tar:
            for number, label in enumerate(labels):
                for name, data in ((f"{number}.png", content[number]), (f"{number}.cls", str(label).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        return "shard.tar"
    pq.write_table(pa.table({"image": paths if kind == "paths" else content, "label": labels}), "table.parquet")
    return "table.parquet"


@pytest.mark.parametrize("labels", [["cat", "1e5", "cat", "None"], [1, 0, 1, 2]], ids=["names", "numbers"])
@pytest.mark.parametrize("kind", ["jsonl", "tar", "paths", "bytes"])
def test_other_tables(kind, labels):
    names = ["cat", "1e5", "None"] if labels[0] == "cat" else ["x", "y", "z"]
    data = loaded(train=written_as(kind, labels), class_names=names, balanced=True, val_fraction=0.5)
    both = [
        (int(data.datasets[s][r]["image"][0, 0, 0]), int(data.datasets[s][r]["label"]))
        for s in ("train", "val")
        for r in range(len(data.datasets[s]))
    ]
    assert sorted(both) == [(n, names.index(v) if v in names else v) for n, v in enumerate(labels)]


def test_a_place_without_labels():
    Path("folder").mkdir()
    Image.new("RGB", (8, 8)).save("folder/a.png")
    Path("folder/a.txt").write_text("a caption")
    assert "folder has no labels; name the column" in refusal(loaded, train="folder")


# Names and templates


def test_names_from_everywhere(tmp_path):
    root = folders(tmp_path / "r", {"c0": 1, "c1": 1})
    Path("names.txt").write_text("\ufeffwild cat\n\n  café \n", encoding="utf-8")
    Path("templates.txt").write_text("a {}\nthe {}\n")
    Path("mine.yaml").write_text("class_names: [[c0, zero], c1]\ntemplates: ['a (big|small) {}.']\n")
    assert loaded(root, class_names="names.txt").class_names == ["wild cat", "café"]
    assert loaded(root, class_names=["None", "1e5"]).class_names == ["None", "1e5"]
    assert loaded(root, templates="templates.txt").templates == ["a {}", "the {}"]
    assert loaded(root, templates="one {}").templates == ["one {}"]
    assert loaded(root, templates="imagenet").templates == prompts.templates("imagenet")
    assert loaded(root, templates="imagenet:subset7").templates == prompts.templates("imagenet", "subset7")
    data = loaded(root, class_names="mine.yaml")
    assert data.names == [["c0", "zero"], ["c1"]] and data.templates == ["a big {}.", "a small {}."]
    assert loaded(root, class_names="mine.yaml", templates=["{}"]).templates == ["{}"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"class_names": ["a"]}, "class_names has 1 names for the 2 classes of r (cat, dog); give one for each"),
        ({"class_names": ["a", " "]}, "class_names has an empty name, number 1 from 0"),
        ({"class_names": []}, "There is no class name in class_names"),
        ({"class_names": "imagnet"}, "did you mean 'imagenet'"),
        ({"class_names": "names.txt"}, "The class names in names.txt cannot be read"),
        ({"class_names": "nowhere.yaml"}, "There is no file nowhere.yaml"),
        ({"class_names": "cifar10"}, "r has 2 classes and the prompts cifar10 has 10"),
        ({"templates": []}, "There is no template"),
        ({"templates": ["a photo"]}, "exactly one {} for the class name; 'a photo' has not"),
        ({"templates": "a {} and a {}"}, "exactly one {}"),
        ({"templates": "imagenet:subset8"}, "no subset 'subset8'; did you mean 'subset7'?"),
        ({"captions": "all"}, "captions is 'all'; there are sample and first"),
    ],
)
def test_names_and_templates_that_will_not_do(options, said):
    folders(Path("r"), {"cat": 1, "dog": 1})
    assert said in refusal(loaded, "r", **options)


STL10 = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]


def test_folders_in_the_order_of_the_prompts(tmp_path):
    data = loaded(folders(tmp_path, dict.fromkeys(STL10, 1)), class_names="stl10")
    assert data.class_names == STL10 and len(data.templates) == 2


def test_folders_in_another_order_than_the_prompts(tmp_path):
    """EuroSAT's folders, sorted, are in another order than OpenAI's list: the message shows both."""
    own = prompts.read("eurosat").aliases
    said = refusal(loaded, folders(tmp_path, dict.fromkeys(own, 1)), class_names="eurosat")
    assert "in another order" in said and "'AnnualCrop'" in said and "'forest'" in said
    Path("mine.yaml").write_text(f"class_names: [{', '.join(reversed(STL10))}]\ntemplates: ['{{}}']")
    said = refusal(loaded, folders(tmp_path / "stl", dict.fromkeys(STL10, 1)), class_names="mine.yaml")
    assert "in another order" in said and "'airplane'" in said and "'truck'" in said


def test_a_list_in_another_order_than_the_folders(tmp_path):
    """A list renames by position, so that names of other folders are a mistake, and any others are none."""
    root = folders(tmp_path, {"cat": 1, "dog": 1, "fox": 1})
    assert loaded(root, class_names=["kitten", "Dog", "arctic fox"]).class_names == ["kitten", "Dog", "arctic fox"]
    for wrong in (["dog", "cat", "fox"], ["dog", "cat", "arctic fox"]):
        said = refusal(loaded, root, class_names=wrong)
        assert "not in the order" in said and "number 0 is 'cat' there and 'dog' here" in said
        assert said.endswith("in the order of the sorted classes: cat, dog, fox.")


def test_folders_that_are_numbers(tmp_path):
    names = [f"sign {number}" for number in range(43)]
    padded = folders(tmp_path / "padded", {f"{number:05d}": 1 for number in range(43)})
    assert loaded(padded, class_names=names).class_names == names
    assert loaded(padded, class_names="gtsrb").class_names == prompts.class_names("gtsrb")
    plain = folders(tmp_path / "plain", {str(number): 1 for number in range(11)})
    said = refusal(loaded, plain, class_names=names[:11])
    assert "are numbers whose sorted order is 0, 1, 10, 2, 3, 4, ..." in said and "such as 02 and 10" in said
    assert loaded(plain).class_names[2] == "10", "which nobody can get wrong"
    few = folders(tmp_path / "few", {"0": 1, "1": 1, "2": 1})
    assert loaded(few, class_names=["2", "3", "4"]).class_names == ["2", "3", "4"]
    assert "number 0 is '0' there and '2' here" in refusal(loaded, few, class_names=["2", "0", "1"])


def test_imagenets_folders(tmp_path):
    wnids = list(prompts.read("imagenet").aliases)
    for wnid in wnids:
        (tmp_path / "val" / wnid).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "n01440764" / "ILSVRC2012_val_00000293.JPEG")
    data = loaded(tmp_path, class_names="imagenet")
    assert data.class_names == prompts.class_names("imagenet") and len(data.templates) == 80
    (tmp_path / "val" / wnids[3]).rename(tmp_path / "val" / "n99999999")
    said = refusal(loaded, tmp_path, class_names="imagenet")
    assert "different classes" in said and "'n99999999'" in said


# What is trained on


def test_few_shots(tmp_path):
    root = folders(tmp_path, {"cat": 9, "dog": 5, "fox": 30})
    data = loaded(root, shots=3)
    train, val = names_of_rows(data, "train"), names_of_rows(data, "val")
    assert data.datasets["train"].labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.datasets["val"].labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2], "of dogs there are two more"
    assert not set(train) & set(val) and train == sorted(train)
    torch.manual_seed(1)
    assert names_of_rows(loaded(root, shots=3), "train") == train
    assert names_of_rows(loaded(root, shots=3, seed=1), "train") != train
    assert set(train) < set(names_of_rows(loaded(root, shots=5), "train")), "fewer shots are among more"
    assert Counter(loaded(root, shots=5).datasets["val"].labels.tolist()) == {0: 4, 2: 4}
    # Another class changes nothing for the others.
    folders(tmp_path, {"gnu": 3})
    assert set(train) < set(names_of_rows(loaded(root, shots=3), "train"))


def test_few_shots_beside_a_validation_split(tmp_path):
    folders(tmp_path / "train", {"cat": 9, "dog": 9})
    folders(tmp_path / "val", {"cat": 7, "dog": 6})
    data = loaded(tmp_path, shots=2, val_fraction=0.5)
    assert {split: len(pairs) for split, pairs in data.datasets.items()} == {"train": 4, "val": 13}


def test_few_shots_of_what_is_not_held_out(tmp_path):
    data = loaded(folders(tmp_path, {"cat": 20, "dog": 10}), shots=4, val_fraction=0.3)
    assert Counter(data.datasets["val"].labels.tolist()) == {0: 6, 1: 3}
    assert Counter(data.datasets["train"].labels.tolist()) == {0: 4, 1: 4}
    assert not set(names_of_rows(data, "train")) & set(names_of_rows(data, "val"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shots": 3}, "The class 'dog' has 2 training pictures and shots is 3; take at most 2"),
        ({"shots": 0}, "shots is 0"),
        ({"shots": 2, "class_names": ["x", "y"]}, None),
        ({"val_fraction": 0.0}, "val_fraction is 0.0; give a share"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0; give a share"),
    ],
)
def test_subsets_that_cannot_be(tmp_path, options, said):
    root = folders(tmp_path, {"cat": 5, "dog": 2})
    if said is None:
        assert len(loaded(root, **options).datasets["val"]) == 2
    else:
        assert said in refusal(loaded, root, **options)


def test_nothing_left_to_validate_on(tmp_path):
    root = folders(tmp_path, {"cat": 2, "dog": 2})
    assert "no class has more pictures, so that there are none to validate on" in refusal(loaded, root, shots=2)


def test_a_share_of_each_class_is_held_out(tmp_path):
    root = folders(tmp_path, {"cat": 40, "dog": 10, "fox": 2, "gnu": 1})
    data = loaded(root, val_fraction=0.2)
    assert Counter(data.datasets["val"].labels.tolist()) == {0: 8, 1: 2, 2: 1}
    assert Counter(data.datasets["train"].labels.tolist()) == {0: 32, 1: 8, 2: 1, 3: 1}
    train, val = names_of_rows(data, "train"), names_of_rows(data, "val")
    assert len({*train, *val}) == 53 and notices(data) == []
    assert names_of_rows(loaded(root, val_fraction=0.2), "val") == val
    assert names_of_rows(loaded(root, val_fraction=0.2, seed=3), "val") != val


def test_notices_come_once_and_with_training_alone(tmp_path):
    root = folders(tmp_path, {"cat": 2, "dog": 0, "fox": 2})
    data = module(root)
    assert notices(data, None) == []
    assert data.datasets["val"] is data.datasets["train"]
    assert notices(data) == [
        "There is no validation split, so that val is the training pictures themselves; hold some out with "
        "--data.val_fraction 0.1.",
        "There are no training pictures of 'dog'.",
    ]
    assert notices(data) == []


def epochs(data, count):
    data.setup("fit")
    batches = data.training_batches(lambda: 0, lambda: 0)
    return [batches.epoch(epoch) for epoch in range(count)]


def test_balanced_classes(tmp_path):
    """Twelve samples an epoch, four of each class, though they have 9, 2 and 1 pictures."""
    data = module(folders(tmp_path, {"cat": 9, "dog": 2, "fox": 1}), balanced=True, val_fraction=None)
    found = epochs(data, 9)
    labels = data.datasets["train"].labels.numpy()
    for rows, _ in found:
        assert Counter(labels[rows].tolist()) == {0: 4, 1: 4, 2: 4}
    rows = Counter(np.concatenate([rows for rows, _ in found]).tolist())
    assert sorted(rows.values()) == [4] * 9 + [18] * 2 + [36]
    seen = [(row, visit) for rows, visits in found for row, visit in zip(rows.tolist(), visits.tolist(), strict=True)]
    assert len(set(seen)) == len(seen), "each time with another draw"
    plain = epochs(module(tmp_path, val_fraction=None), 2)
    assert all(sorted(rows.tolist()) == list(range(12)) for rows, _ in plain)


def test_balanced_classes_of_which_one_has_no_picture(tmp_path):
    data = module(folders(tmp_path, {"cat": 4, "dog": 0, "fox": 2}), balanced=True)
    for rows, _ in epochs(data, 3):
        assert Counter(data.datasets["train"].labels.numpy()[rows].tolist()) == {0: 3, 2: 3}


def test_balanced_rows_are_sorted_by_class():
    data = loaded(train=table(["b", "a", "c", "a", "b", "b"]), balanced=True)
    assert data.datasets["train"].labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert [data.datasets["train"][row]["image"][0, 0, 0].item() for row in range(6)] == [1, 3, 0, 4, 5, 2]


def test_classes_are_kept_apart(tmp_path):
    folders(tmp_path, dict.fromkeys("abcd", 8))
    together = {}
    for apart in (False, True):
        data = module(tmp_path, batch_size=4, avoid_false_negatives=apart)
        ((rows, _),) = epochs(data, 1)
        batches = data.datasets["train"].labels.numpy()[rows].reshape(8, 4).tolist()
        together[apart] = sum(4 - len(set(batch)) for batch in batches)
    assert together[False] > 4 > together[True]


# Captions


def ids(texts):
    return {tuple(row[row != 0].tolist()) for row in tokenize(texts)}


def drawn(data, row, visits=200):
    return [tuple(data.datasets["train"][(visit, row)]["text"].tolist()) for visit in range(visits)]


def test_captions_are_drawn_from_all_prompts_of_the_class(tmp_path):
    root = folders(tmp_path, {"cat": 2, "dog": 2})
    templates = ["a {}.", "the {}!", "one {}?", "my {}"]
    data = loaded(root, templates=templates)
    found = drawn(data, 2)
    assert set(found) == ids([template.format("dog") for template in templates])
    assert min(Counter(found).values()) > 200 / 4 / 2
    assert found == drawn(loaded(root, templates=templates), 2), "by (seed, visit, row)"
    assert found != drawn(loaded(root, templates=templates, seed=1), 2) and found != drawn(data, 3)
    evaluated = data.datasets["train"][2]
    assert {tuple(evaluated["text"].tolist())} == ids(["a dog."]) and evaluated["label"] == 1
    assert set(drawn(loaded(root, templates=templates, captions="first"), 2)) == ids(["a dog."])


def test_captions_have_all_the_names_of_a_class(tmp_path):
    Path("mine.yaml").write_text("class_names: [cat, [dog, puppy]]\ntemplates: ['a {}', 'the {}']")
    data = loaded(folders(tmp_path, {"cat": 1, "dog": 1}), class_names="mine.yaml")
    assert set(drawn(data, 1)) == ids(["a dog", "the dog", "a puppy", "the puppy"])


def test_captions_take_no_memory_for_each_row(tmp_path):
    """Eighty prompts of two classes are 160 texts, however many pictures there are."""
    data = loaded(folders(tmp_path, {"cat": 30, "dog": 30}), templates="imagenet")
    assert data.datasets["train"].texts == 160
    assert len(data.datasets["train"].captions) == 60


@pytest.mark.parametrize("options", [{}, {"shots": 4, "balanced": True}])
def test_workers_load_the_same(tmp_path, options):
    data = module(folders(tmp_path, {"cat": 12, "dog": 6}), templates="cifar10", batch_size=4, **options)
    data.setup("fit")
    pairs, batches = data.datasets["train"], list(data.training_batches(lambda: 0, lambda: 1).batches(0))
    for workers in (0, 2):
        loader = DataLoader(pairs, batch_sampler=batches, num_workers=workers, collate_fn=collate)
        for keys, batch in zip(batches, loader, strict=True):
            expected = collate([pairs[key] for key in keys])
            assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_a_monitor_takes_it(tmp_path):
    data = module(folders(tmp_path, {"cat": 3, "dog": 3}), templates="imagenet:subset7")
    monitor = ZeroShotMonitor(data, name="pets")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)  # evaluated on, it needs no validation split
        monitor.data.prepare_data()
        monitor.data.setup()
    batches = list(monitor.data.evaluation_dataloader(monitor.split))
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [0, 0, 0, 1, 1, 1]


def test_on_the_command_line(tmp_path, capsys):
    """The arguments are the YAML's keys, and a mistake is one sentence."""
    folders(tmp_path / "pets", {"cat": 3, "dog": 5})
    Path("more.yaml").write_text(
        "data:\n  class_path: ClassificationDataModule\n  init_args:\n    root: pets\n    class_names: [cat, dog]\n"
        "    templates: imagenet:subset7\n    shots: 4\n    val_fraction: null\n    balanced: true\n"
        "    captions: first\n"
    )
    tiny = ["--model.init_args.architecture", "tiny-vit", "--trainer.accelerator", "cpu", "--trainer.callbacks", "[]"]
    assert main(["fit", "--config", QUICK, *tiny, "--config", "more.yaml"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert lines == [
        "error: The class 'cat' has 3 training pictures and shots is 4; take at most 3, or give it more pictures, or "
        "leave the class out."
    ]
