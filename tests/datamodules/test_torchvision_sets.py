"""Every data set of the table, in a small copy in its own layout on the disk, read by the installed torchvision."""

import importlib.util
import inspect
import json
import pickle
import struct
import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets

from datamodules import ClassificationDataModule
from datamodules.pairs import collate
from datamodules.torchvision_sets import REFUSED, SETS, find_set
from workbench import prompts
from workbench.errors import UserError

savemat = pytest.importorskip("scipy.io").savemat


def colour(label):
    """What the pictures of a class are filled with, so that a picture tells its class."""
    return (label % 251, label // 251 * 60, 7)


def grey(label):
    return label * 20 + 3


def picture(path, label, kind="PNG"):
    """Write a picture; PNG whatever the suffix, as JPEG would change the colour, and Pillow goes by the content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 5), colour(label)).save(path, kind)


def text(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def pixels(labels, height=32):
    """Pictures of classes, uint8 [N, H, H, 3]: filled on the left, so that columns are told from rows."""
    pictures = np.zeros((len(labels), height, height, 3), np.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        picture[:, : height // 2] = colour(label)
    return pictures


def underscored(name):
    return [each.replace(" ", "_") for each in prompts.class_names(name)]


def cifar(folder, files, meta, labels_key):
    def make(root):
        names = prompts.class_names("cifar10" if len(files) > 2 else "cifar100")
        labels = list(range(len(names)))
        (root / folder).mkdir()
        for file in files:
            entry = {"data": pixels(labels).transpose(0, 3, 1, 2).reshape(len(labels), -1), labels_key: labels}
            (root / folder / file).write_bytes(pickle.dumps(entry))
        (root / folder / meta[0]).write_bytes(pickle.dumps({meta[1]: names}))
        return names

    return make


def mnist(key):
    def make(root):
        for part in ("train", "t10k"):
            images = np.stack([np.full((28, 28), grey(label), np.uint8) for label in range(10)])
            raw = root / key / "raw"
            raw.mkdir(parents=True, exist_ok=True)
            header = struct.pack(">4i", 0x803, 10, 28, 28)
            (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, 10) + bytes(range(10)))
        return [str(n) for n in range(10)] if key == "MNIST" else datasets.FashionMNIST.classes

    return make


def svhn(root):
    for split in ("train", "test"):
        numbers = np.array([[10], *[[n] for n in range(1, 10)]], np.uint8)  # 10 stands for the digit 0
        savemat(root / f"{split}_32x32.mat", {"X": pixels(range(10)).transpose(1, 2, 3, 0), "y": numbers})
    return [str(n) for n in range(10)]


def stl10(root):
    names = prompts.class_names("stl10")
    text(root / "stl10_binary" / "class_names.txt", names)
    for split in ("train", "test"):
        stored = pixels(range(10), 96).transpose(0, 3, 2, 1)
        (root / "stl10_binary" / f"{split}_X.bin").write_bytes(stored.tobytes())
        (root / "stl10_binary" / f"{split}_y.bin").write_bytes(bytes(range(1, 11)))
    (root / "stl10_binary" / "unlabeled_X.bin").write_bytes(b"")
    return names


def food101(root):
    names = underscored("food101")
    for part, split in enumerate(("train", "test")):
        found = {name: [f"{name}/{number}{part}" for number in (3, 1)] for name in reversed(names)}
        (root / "food-101" / "meta").mkdir(parents=True, exist_ok=True)
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(found))
        for name, files in found.items():
            for file in files:
                picture(root / "food-101" / "images" / f"{file}.jpg", names.index(name))
    return prompts.class_names("food101")


def sun397(root):
    # As in the original: a letter's folder, and `outdoor` below the class where there is one indoors, too.
    names = [name.replace(" ", "_") for name in prompts.class_names("sun397")]
    for end in ("indoor", "outdoor", "interior", "exterior"):
        names = [name[: -len(end) - 1] + "/" + end if name.endswith(f"_{end}") else name for name in names]
    at = names.index("jail_cell")  # the original's order of these two differs from OpenAI's
    names[at], names[at + 1] = names[at + 1], names[at]
    text(root / "SUN397" / "ClassName.txt", [f"/{name[0]}/{name}" for name in names])
    for label, name in enumerate(names):
        for number in range(2):
            picture(root / "SUN397" / name[0] / name / f"sun_a{label}{number}.jpg", label)
    return [name.replace("/", " ").replace("_", " ") for name in names]


def stanford_cars(root):
    names = prompts.class_names("stanford_cars")
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    kind = [("bbox_x1", "i4"), ("bbox_y1", "i4"), ("bbox_x2", "i4"), ("bbox_y2", "i4"), ("class", "i4"), ("fname", "O")]
    for split, path in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = [(1, 1, 4, 5, label + 1, f"{label + 1:05d}.jpg") for label in range(len(names))]
        savemat(base / path, {"annotations": np.array(rows, kind)[None]})
        for label in range(len(names)):
            picture(base / f"cars_{split}" / f"{label + 1:05d}.jpg", label)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(names, object)[None]})
    return names


def fgvc_aircraft(root):
    names = prompts.class_names("fgvc_aircraft")
    data = root / "fgvc-aircraft-2013b" / "data"
    text(data / "variants.txt", names)
    for part, split in enumerate(("train", "val", "test")):
        rows = {f"{part}{label:06d}": label for label in range(len(names))}
        text(data / f"images_variant_{split}.txt", [f"{file} {names[label]}" for file, label in rows.items()])
        for file, label in rows.items():
            picture(data / "images" / f"{file}.jpg", label)
    return names


def dtd(root):
    names = prompts.class_names("dtd")
    for part, split in enumerate(("train", "val", "test")):
        files = [f"{name}/{name}_{part:04d}.jpg" for name in reversed(names)]
        text(root / "dtd" / "dtd" / "labels" / f"{split}1.txt", files)
        for file in files:
            picture(root / "dtd" / "dtd" / "images" / file, names.index(file.split("/")[0]))
    return names


# In the order of the data set's ids, cats and dogs mixed.
PETS = [
    *("Abyssinian", "american_bulldog", "american_pit_bull_terrier", "basset_hound", "beagle", "Bengal", "Birman"),
    *("Bombay", "boxer", "British_Shorthair", "chihuahua", "Egyptian_Mau", "english_cocker_spaniel", "english_setter"),
    *("german_shorthaired", "great_pyrenees", "havanese", "japanese_chin", "keeshond", "leonberger", "Maine_Coon"),
    *("miniature_pinscher", "newfoundland", "Persian", "pomeranian", "pug", "Ragdoll", "Russian_Blue"),
    *("saint_bernard", "samoyed", "scottish_terrier", "shiba_inu", "Siamese", "Sphynx"),
    *("staffordshire_bull_terrier", "wheaten_terrier", "yorkshire_terrier"),
]


def pets(root):
    for part, split in enumerate(("trainval", "test")):
        rows = [f"{name}_{part} {label + 1} {1 if name[0].isupper() else 2} 1" for label, name in enumerate(PETS)]
        text(root / "oxford-iiit-pet" / "annotations" / f"{split}.txt", rows)
        for label, name in enumerate(PETS):
            picture(root / "oxford-iiit-pet" / "images" / f"{name}_{part}.jpg", label)
    known = {name.casefold(): name for name in prompts.class_names("oxford_pets")}
    return [known[name.replace("_", " ").casefold()] for name in PETS]


def caltech101(root):
    file = prompts.read("caltech101")
    own = {name: spelling for spelling, name in file.aliases.items()}
    folders = sorted(own.get(name, name.replace(" ", "_")) for name in file.class_names)
    for folder in folders:
        for number in range(1, 3):
            label = folders.index(folder) - (folder > "BACKGROUND_Google")
            picture(root / "caltech101" / "101_ObjectCategories" / folder / f"image_{number:04d}.jpg", label)
    folders.remove("BACKGROUND_Google")
    return [file.aliases.get(folder, folder.replace("_", " ")) for folder in folders]


def flowers102(root):
    base = root / "flowers-102"
    parts = np.arange(306).reshape(3, 102) + 1
    for number in range(306):
        picture(base / "jpg" / f"image_{number + 1:05d}.jpg", number % 102)
    savemat(base / "imagelabels.mat", {"labels": np.tile(np.arange(1, 103), 3)[None]})
    savemat(base / "setid.mat", {"trnid": parts[:1], "valid": parts[1:2], "tstid": parts[2:]})
    return prompts.class_names("flowers102")


def fer2013(root):
    rows = [
        f"{label},{' '.join([str(grey(label))] * 48 * 48)},{usage}"
        for usage in ("Training", "PublicTest", "PrivateTest")
        for label in range(7)
    ]
    text(root / "fer2013" / "fer2013.csv", ["emotion,pixels,Usage", *rows])
    return prompts.class_names("fer2013")


EUROSAT = {
    "AnnualCrop": "annual crop land",
    "Forest": "forest",
    "HerbaceousVegetation": "brushland or shrubland",
    "Highway": "highway or road",
    "Industrial": "industrial buildings or commercial buildings",
    "Pasture": "pasture land",
    "PermanentCrop": "permanent crop land",
    "Residential": "residential buildings or homes or apartments",
    "River": "river",
    "SeaLake": "lake or sea",
}


def eurosat(root):
    for label, name in enumerate(EUROSAT):
        for number in range(1, 11):
            picture(root / "eurosat" / "2750" / name / f"{name}_{number}.jpg", label)
    return list(EUROSAT.values())


def gtsrb(root):
    base = root / "gtsrb"
    for label in range(43):
        picture(base / "GTSRB" / "Training" / f"{label:05d}" / "00000_00000.ppm", label, "PPM")
        picture(base / "GTSRB" / "Final_Test" / "Images" / f"{label:05d}.ppm", label, "PPM")
    rows = [f"{label:05d}.ppm;4;5;0;0;4;5;{label}" for label in range(43)]
    text(base / "GT-final_test.csv", ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId", *rows])
    return prompts.class_names("gtsrb")


def country211(root):
    codes = list(prompts.read("country211").aliases)
    for split in ("train", "valid", "test"):
        for label, code in enumerate(codes):
            picture(root / "country211" / split / code / f"{label}.jpg", label)
    return prompts.class_names("country211")


def rendered_sst2(root):
    for split in ("train", "valid", "test"):
        for label, name in enumerate(("negative", "positive")):
            picture(root / "rendered-sst2" / split / name / "17.png", label)
    return ["negative", "positive"]


def clevr(root):
    base = root / "clevr" / "CLEVR_v1.0"
    for split in ("train", "val"):
        scenes = []
        for label in range(8):
            name = f"CLEVR_{split}_{label:06d}.png"
            picture(base / "images" / split / name, label)
            scenes.append({"image_filename": name, "objects": [{}] * (label + 3)})
        (base / "scenes").mkdir(exist_ok=True)
        (base / "scenes" / f"CLEVR_{split}_scenes.json").write_text(json.dumps({"scenes": scenes}))
    return [str(count) for count in range(3, 11)]


def imagenet(root):
    wnids = list(prompts.read("imagenet").aliases)
    torch.save((dict.fromkeys(wnids, ("a word",)), []), root / "meta.bin")
    for split in ("train", "val"):
        for label, wnid in enumerate(wnids):
            picture(root / split / wnid / "1.JPEG", label)
    return prompts.class_names("imagenet")


def pcam(root):
    h5py = pytest.importorskip("h5py")
    (root / "pcam").mkdir()
    for split in ("train", "valid", "test"):
        for part, values in (("x", pixels([0, 1, 1], 96)), ("y", np.array([0, 1, 1]).reshape(-1, 1, 1, 1))):
            with h5py.File(root / "pcam" / f"camelyonpatch_level_2_split_{split}_{part}.h5", "w") as file:
                file[part] = values
    return prompts.class_names("patch_camelyon")


MAKERS = {
    "CIFAR10": cifar(
        "cifar-10-batches-py",
        [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"],
        ("batches.meta", "label_names"),
        "labels",
    ),
    "CIFAR100": cifar("cifar-100-python", ["train", "test"], ("meta", "fine_label_names"), "fine_labels"),
    "MNIST": mnist("MNIST"),
    "FashionMNIST": mnist("FashionMNIST"),
    "SVHN": svhn,
    "STL10": stl10,
    "Food101": food101,
    "SUN397": sun397,
    "StanfordCars": stanford_cars,
    "FGVCAircraft": fgvc_aircraft,
    "DTD": dtd,
    "OxfordIIITPet": pets,
    "Caltech101": caltech101,
    "Flowers102": flowers102,
    "FER2013": fer2013,
    "EuroSAT": eurosat,
    "GTSRB": gtsrb,
    "Country211": country211,
    "PCAM": pcam,
    "RenderedSST2": rendered_sst2,
    "CLEVRClassification": clevr,
    "ImageNet": imagenet,
}
GREY = ("MNIST", "FashionMNIST", "FER2013")


@pytest.fixture(autouse=True)
def any_checksum(monkeypatch):
    """Let a file be whole if it is there: torchvision insists on the md5 of the originals of these five."""
    for module in ("cifar", "stl10", "svhn", "flowers102", "fer2013"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: Path(path).is_file()
        )


def module(key, root, **options):
    return ClassificationDataModule(
        str(root), dataset=key, **{"batch_size": 2, "image_size": 8, "num_workers": 0, **options}
    )


def test_every_entry_has_a_copy_here():
    assert sorted(MAKERS) == sorted(SETS)


@pytest.mark.parametrize("key", SETS)
def test_keywords_are_the_installed_torchvisions(key):
    known = SETS[key]
    signature = inspect.signature(getattr(datasets, key))
    for options in known.splits.values():
        signature.bind(root="", **options, **({} if known.by_hand else {"download": True}))
    if not known.by_hand:
        assert "download" in signature.parameters
    assert known.prompts is None or known.prompts in prompts.available()


@pytest.mark.parametrize("key", SETS)
def test_pictures_labels_and_names_belong_together(key, tmp_path):
    names = MAKERS[key](tmp_path)
    data = module(key, tmp_path)
    data.prepare_data()
    data.setup()
    assert data.class_names == [name.replace("_", " ") for name in names]
    splits = {"train", "test"} if "all" in SETS[key].splits else set(SETS[key].splits)
    assert set(data.datasets) == splits | {"val"}
    for split in splits:
        pairs = data.datasets[split]
        found = Counter(pairs.labels.tolist())
        # Of every class there is one; a class of two has one in either part of a set without splits.
        assert sorted(found) == list(range(len(names)))
        for row in range(0, len(pairs), max(1, len(pairs) // 50)):
            sample = pairs[row]
            label = int(sample["label"])
            wanted = (grey(label),) * 3 if key in GREY else colour(label)
            assert sample["image"].shape == (3, 8, 8)
            assert (sample["image"][:, :, 0] == torch.tensor(wanted)[:, None]).all(), (split, row)
            assert pairs.captions[row] == data.templates[0].replace("{}", data.names[label][0])
        pickle.loads(pickle.dumps(pairs.picture))(0)


def test_templates_are_the_sets(tmp_path):
    eurosat(tmp_path)
    data = module("EuroSAT", tmp_path)
    data.setup()
    assert data.templates == prompts.templates("eurosat")
    assert data.datasets["train"].texts == 30


def test_a_set_with_several_names_of_a_class(tmp_path):
    fer2013(tmp_path)
    data = module("FER2013", tmp_path)
    data.setup()
    assert data.names[3] == ["happy", "smiling"] and data.class_names[3] == "happy"
    drawn = {tuple(data.datasets["train"][(visit, 3)]["text"].tolist()) for visit in range(80)}
    assert len(drawn) == 2 * 6
    assert len(data.datasets["test"]) == 14, "public and private test"


@pytest.mark.parametrize("written", ["CIFAR10", "cifar-10", "cifar_10", " Cifar 10 "])
def test_names_of_sets(written):
    assert find_set(written) == "CIFAR10"


def test_the_prompt_sets_name_will_do():
    assert [find_set(name) for name in ("oxford_pets", "sst2", "patch_camelyon", "clevr_counts")] == [
        *("OxfordIIITPet", "RenderedSST2", "PCAM", "CLEVRClassification"),
    ]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("CIFAR11", "no data set 'CIFAR11'; did you mean 'CIFAR1.*There are CIFAR10, CIFAR100, MNIST"),
        ("voc2007", "VOC2007 is no data set of this kind: its pictures have several classes each"),
        ("Kinetics", "it is video"),
        ("birdsnap", "torchvision does not have it; put its pictures into a folder"),
        ("zzz", "no data set 'zzz'. There are"),
    ],
)
def test_no_such_set(written, said, tmp_path):
    with pytest.raises(UserError, match=said):
        module(written, tmp_path)


def test_what_is_refused_is_not_offered():
    assert not set(REFUSED) & set(SETS)


def test_a_set_that_is_not_there(tmp_path):
    data = module("food101", tmp_path)
    data.prepare_data()
    with pytest.raises(UserError, match=f"Food101 is not in {tmp_path}: there is no folder .*food-101; .*--data.down"):
        data.setup()
    assert list(tmp_path.iterdir()) == [], "torchvision makes folders on its way"


def test_the_folder_inside_is_not_torchvisions_root(tmp_path):
    food101(tmp_path)
    with pytest.raises(UserError, match=f"Food101 is not in .*give the folder above as --data.root, {tmp_path},"):
        module("Food101", tmp_path / "food-101").setup()


def test_a_set_that_is_not_whole(tmp_path, monkeypatch):
    cifar10 = MAKERS["CIFAR10"]
    cifar10(tmp_path)
    monkeypatch.undo()  # with the checksums of the originals
    with pytest.raises(UserError) as raised:
        module("CIFAR10", tmp_path).setup()
    assert "CIFAR10 in" in str(raised.value) and "not whole, or was changed (Dataset not found or" in str(raised.value)
    assert "download=True" not in str(raised.value) and "--data.download true" in str(raised.value)


def test_a_file_of_a_set_is_missing(tmp_path):
    gtsrb(tmp_path)
    (tmp_path / "gtsrb" / "GT-final_test.csv").unlink()
    with pytest.raises(UserError, match="GTSRB in .* is not whole.*GT-final_test.csv"):
        module("GTSRB", tmp_path).setup()


def test_a_picture_of_a_set_is_missing(tmp_path):
    pets(tmp_path)
    (tmp_path / "oxford-iiit-pet" / "images" / "beagle_0.jpg").unlink()
    with pytest.raises(UserError, match="OxfordIIITPet train, picture 5: there is no picture .*beagle_0.jpg"):
        module("OxfordIIITPet", tmp_path).setup()


def test_splits_that_do_not_have_the_same_classes(tmp_path):
    """torchvision numbers the breeds that it meets, so that one less shifts all labels after it."""
    pets(tmp_path)
    path = tmp_path / "oxford-iiit-pet" / "annotations" / "test.txt"
    text(path, path.read_text().splitlines()[1:])
    with pytest.raises(UserError, match="not whole: its splits have .* classes"):
        module("OxfordIIITPet", tmp_path).setup()


def test_classes_that_the_prompts_do_not_have(tmp_path):
    for label, name in enumerate(("Forest", "Moon")):
        picture(tmp_path / "eurosat" / "2750" / name / "1.jpg", label)
    with pytest.raises(UserError, match="EuroSAT has 2 classes and the prompts eurosat has 10.*'Moon'"):
        module("EuroSAT", tmp_path).setup()


def test_labels_out_of_range(tmp_path):
    gtsrb(tmp_path)
    picture(tmp_path / "gtsrb" / "GTSRB" / "Training" / "00099" / "00000_00000.ppm", 99, "PPM")
    with pytest.raises(UserError, match="GTSRB train, picture 44: the label 43 is none of the 43 classes"):
        module("GTSRB", tmp_path).setup()


def test_test_pictures_without_labels(tmp_path):
    (tmp_path / "fer2013").mkdir()
    text(tmp_path / "fer2013" / "train.csv", ["emotion,pixels", f"0,{' '.join(['9'] * 48 * 48)}"])
    text(tmp_path / "fer2013" / "test.csv", ["pixels", " ".join(["9"] * 48 * 48)])
    with pytest.raises(UserError, match="FER2013 in .*fer2013: the file of the test pictures has no labels; take fer"):
        module("FER2013", tmp_path).setup()


def test_a_package_that_torchvision_needs(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("h5py", "scipy") else real(name))
    for key, package in (("PCAM", "h5py"), ("Flowers102", "scipy")):
        with pytest.raises(UserError, match=f"torchvision reads {key} with {package}: pip install {package}."):
            module(key, tmp_path).setup()


def test_one_picture_at_a_time_from_hdf5(tmp_path, monkeypatch):
    """A stand-in for h5py, which few have, over the files that numpy writes."""

    class File(dict):
        def __init__(self, path, mode="r"):
            with np.load(path) as stored:
                super().__init__(stored)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    fake = types.ModuleType("h5py")
    fake.File, fake.__spec__ = File, importlib.util.spec_from_loader("h5py", None)
    monkeypatch.setitem(sys.modules, "h5py", fake)
    (tmp_path / "pcam").mkdir()
    for split in ("train", "valid", "test"):
        for part, values in (("x", pixels([1, 0, 1], 96)), ("y", np.array([1, 0, 1]).reshape(-1, 1, 1, 1))):
            with (tmp_path / "pcam" / f"camelyonpatch_level_2_split_{split}_{part}.h5").open("wb") as file:
                np.savez(file, **{part: values})
    data = module("PCAM", tmp_path, shots=1, val_fraction=None)
    data.setup()
    assert data.class_names == prompts.class_names("patch_camelyon")
    for split in ("train", "val", "test"):
        for sample in (data.datasets[split][row] for row in range(len(data.datasets[split]))):
            assert sample["image"][:, 0, 0].tolist() == list(colour(int(sample["label"])))
    assert pickle.loads(pickle.dumps(data.datasets["val"].picture))(0).size == (96, 96)
    (tmp_path / "pcam" / "camelyonpatch_level_2_split_test_x.h5").unlink()
    with pytest.raises(UserError, match=r"test_x.h5\[2\] cannot be read"):
        data.datasets["test"].picture(2)


def test_names_instead_of_the_sets_own(tmp_path):
    rendered_sst2(tmp_path)
    data = module("RenderedSST2", tmp_path, class_names=["an angry review", "a happy review"], templates="{}, in print")
    data.setup()
    assert data.datasets["val"].captions[1] == "a happy review, in print"
    with pytest.raises(UserError, match="class_names is not in the order of the classes of RenderedSST2: number 0"):
        module("RenderedSST2", tmp_path, class_names=["positive", "negative"]).setup()
    with pytest.raises(UserError, match="class_names has 3 names for the 2 classes of RenderedSST2"):
        module("RenderedSST2", tmp_path, class_names=["a", "b", "c"]).setup()


def test_naming_the_sets_own_prompts_is_naming_none(tmp_path):
    eurosat(tmp_path)
    data = module("EuroSAT", tmp_path, class_names="eurosat")
    data.setup()
    assert data.class_names == list(EUROSAT.values())
    with pytest.raises(UserError, match="EuroSAT and the prompts cifar10 have different classes: .*'AnnualCrop'"):
        module("EuroSAT", tmp_path, class_names="cifar10").setup()


def test_names_where_a_set_has_numbers(tmp_path):
    gtsrb(tmp_path)
    data = module("GTSRB", tmp_path, class_names=[f"sign {n}" for n in range(43)])
    data.setup()
    assert data.class_names[42] == "sign 42"
    with pytest.raises(UserError, match="class_names has 3 names for the 43 classes of GTSRB"):
        module("GTSRB", tmp_path, class_names=["a", "b", "c"]).setup()


def test_the_test_split_of_a_set_without_one_is_the_same_for_every_seed(tmp_path):
    eurosat(tmp_path)
    found = []
    for seed in (0, 1):
        data = module("EuroSAT", tmp_path, seed=seed, val_fraction=0.25)
        data.setup()
        names = {
            split: {data.datasets[split].picture.__self__.name(row) for row in range(len(data.datasets[split]))}
            for split in ("train", "val", "test")
        }
        assert {split: len(each) for split, each in names.items()} == {"train": 60, "val": 20, "test": 20}
        assert not names["train"] & names["test"] and not names["val"] & names["test"]
        assert Counter(data.datasets["test"].labels.tolist()) == dict.fromkeys(range(10), 2)
        found.append(names)
    assert found[0]["test"] == found[1]["test"] and found[0]["val"] != found[1]["val"]


def test_a_subset_of_an_array(tmp_path):
    """Of fifty pictures of ten classes, three of each, and others of each that are held out before."""
    MAKERS["CIFAR10"](tmp_path)
    data = module("CIFAR10", tmp_path, shots=3, val_fraction=0.2)
    data.setup()
    found = set()
    for split, count in (("train", 3), ("val", 1)):
        pairs = data.datasets[split]
        assert Counter(pairs.labels.tolist()) == dict.fromkeys(range(10), count)
        for row in range(len(pairs)):
            assert pairs[row]["image"][:, 0, 0].tolist() == list(colour(int(pairs.labels[row])))
            found.add(pairs.name(row))
    assert len(found) == 40 and all(name.startswith("CIFAR10[") for name in found)


def test_a_spawned_worker_reads_the_same(tmp_path):
    """What a worker is sent is the array by handle, not a copy for each, and no object for each row."""
    MAKERS["CIFAR10"](tmp_path)
    data = module("CIFAR10", tmp_path)
    data.setup()
    pairs, keys = data.datasets["train"], [[(1, 3), (1, 9)], [(2, 0), (1, 4)]]
    here = [collate([pairs[key] for key in some]) for some in keys]
    options = {"num_workers": 1, "collate_fn": collate, "multiprocessing_context": "spawn"}
    there = list(DataLoader(pairs, batch_sampler=keys, **options))
    for one, other in zip(here, there, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("image", "text", "label", "index"))
    assert pairs.picture.__self__.pixels.is_shared()


def test_fetching(tmp_path, monkeypatch):
    asked = []

    def fetched(url, download_root, filename=None, md5=None, **_):
        asked.append(url)
        dtd(tmp_path)

    monkeypatch.setattr("torchvision.datasets.dtd.download_and_extract_archive", fetched)
    data = module("DTD", tmp_path, download=True)
    data.prepare_data()
    data.setup()
    assert len(asked) == 1 and len(data.datasets["val"]) == 47


def test_fetching_that_fails(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr("torchvision.datasets.dtd.download_and_extract_archive", refused)
    with pytest.raises(UserError, match="DTD could not be fetched into .*Name or service not known"):
        module("DTD", tmp_path, download=True).prepare_data()


@pytest.mark.parametrize("key", ["StanfordCars", "FER2013"])
def test_what_must_be_fetched_by_hand(tmp_path, key):
    with pytest.raises(UserError, match=f"torchvision cannot fetch {key}: .*https://.* It belongs into {tmp_path}"):
        module(key, tmp_path, download=True).prepare_data()
    with pytest.raises(UserError, match=f"{key} is not in {tmp_path}: there is no folder .*; .*https://"):
        module(key, tmp_path).setup()


def test_imagenet_is_unpacked_once(tmp_path, monkeypatch):
    imagenet(tmp_path)
    monkeypatch.setattr(datasets, "ImageNet", lambda **_: pytest.fail("it was read"))
    module("ImageNet", tmp_path).prepare_data()
    (tmp_path / "meta.bin").unlink()
    asked = []
    monkeypatch.setattr(datasets, "ImageNet", lambda **options: asked.append(options["split"]))
    module("ImageNet", tmp_path).prepare_data()
    assert asked == ["train", "val"]


def test_imagenet_without_its_archives(tmp_path):
    with pytest.raises(UserError, match="ImageNet in .*devkit.*--data.class_names imagenet"):
        module("ImageNet", tmp_path).prepare_data()
