"""Which lists of class names are the same, and what is said of those that are not."""

import pytest

from workbench import prompts
from workbench.errors import UserError
from workbench.prompts.order import check_class_order, positions


def refusal(found, expected, aliases=None):
    with pytest.raises(UserError) as raised:
        check_class_order(found, expected, "Data", "file.yaml", aliases)
    return str(raised.value)


@pytest.mark.parametrize(
    "found, expected",
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["Cat", "hot_dog", "T-Shirt", "crème brûlée"], ["cat", "hot dog", "t shirt", "creme brulee"]),
        (["HammerThrow", "apse/indoor"], ["Hammer Throw", "apse indoor"]),
        (["photo of cat", "dog"], ["a photo of the cat", "the dog"]),
        (["snoopy", "kite"], ["snoopy (cartoon beagle)", "kite [bird of prey]"]),
        (["passing_in_game", "passing_not_in_game"], ["passing (in game)", "passing (not in game)"]),
        (["missile", "x", "missile"], ["missile", "x", "missile"]),
        (["Missile", "x", "Missile"], ["missile", "x", "missile"]),
        (["a", "A", "the"], ["a", "A", "the"]),  # letters, told apart by case alone
        (["C", "C++", "C#"], ["C", "C++", "C#"]),
        (["写真", "絵"], ["写真", "絵"]),
        (["😀", "😎"], ["😀", "😎"]),
    ],
)
def test_two_spellings_of_one_list(found, expected):
    check_class_order(found, expected, "Data", "file.yaml")
    check_class_order(expected, found, "Data", "file.yaml")


@pytest.mark.parametrize(
    "found, expected",
    [
        (["crane (bird)", "crane (machine)"], ["crane (machine)", "crane (bird)"]),
        (["A", "a"], ["a", "A"]),
        (["C++", "C"], ["C", "C++"]),
        (["😎", "😀"], ["😀", "😎"]),
        (["passing_not_in_game", "passing_in_game"], ["passing (in game)", "passing (not in game)"]),
    ],
)
def test_another_order_is_seen_where_only_details_tell(found, expected):
    assert "in another order" in refusal(found, expected)


def test_what_only_looks_alike_is_not_guessed_at():
    # Without its brackets either could be the crane.
    assert "different classes" in refusal(["crane", "x"], ["crane (bird)", "crane (machine)"])
    assert "different classes" in refusal(["Rose", "ROSE"], ["rose", "x"])
    assert positions(["crane", "x"], ["crane (bird)", "crane (machine)"]) == [None, None]
    assert positions(["Rose", "ROSE"], ["rose", "x"]) == [None, None]
    assert positions(["😀"], ["😎"]) == [None]


def test_another_order_shows_the_first_of_them():
    said = refusal(["b", "a", "d", "e", "c", "f"], list("abcdef"))
    assert said.startswith(
        "Data has the classes of file.yaml in another order, so that labels would be taken for other"
    )
    assert (
        "label 0 is 'b' in the data and 'a' in the prompts, label 1 is 'a' in the data and 'b' in the prompts, "
        "label 2 is 'd' in the data and 'c' in the prompts and 2 more. Put the class names"
    ) in said


def test_other_names():
    said = refusal(["a", "ball moss"], ["a", "air plant"])
    assert said.startswith(
        "Data and file.yaml have different classes: label 1 is 'ball moss' in the data and 'air plant' in the prompts. "
    )
    assert "`aliases`" in said
    said = refusal(["b", "a", "x"], ["a", "b", "c"])
    assert "label 2 is 'x' in the data and 'c' in the prompts; and others are in another order. " in said


def test_another_number():
    said = refusal(["a", "c"], ["b", "a", "c"])
    assert "Data has 2 classes and file.yaml has 3, only file.yaml has 'b', so that labels" in said
    assert "label 0 is 'a' in the data and 'b' in the prompts" in said
    said = refusal(["a", "b", "c"], ["a", "b"])
    assert "Data has 3 classes and file.yaml has 2, only Data has 'c'" in said
    assert "only file.yaml has 'a', 'b', 'c' and 2 more" in refusal([], list("abcde"))


def test_aliases():
    aliases = {"ball moss": "air plant", "unrelated": "not here"}
    check_class_order(["Ball_Moss", "a"], ["air plant", "a"], "Data", "file.yaml", aliases)
    assert "in another order" in refusal(["a", "ball moss"], ["air plant", "a"], aliases)


def test_a_class_said_twice():
    assert "different classes" in refusal(["a", "a"], ["a", "b"])
    assert "different classes" in refusal(["a", "b"], ["a", "a"])


def test_positions_put_names_into_the_datasets_order():
    assert positions(["c", "A", "x", "b"], ["a", "b", "c"]) == [2, 0, None, 1]
    # Where both lists have a name twice, each stays where it is.
    assert positions(["m", "x", "m", "y"], ["m", "y", "m", "x"]) == [0, 3, 2, 1]
    assert positions(["m", "m", "m"], ["x", "m", "m"]) == [None, 1, 2]
    assert positions(["x", "m", "m"], ["m", "y", "z"]) == [None, 0, None]


# torchvision's lists, where it has them in code or makes them from files that can be made here.


def check(found, name):
    file = prompts.read(name)
    check_class_order(found, file.class_names, "torchvision", name, file.aliases)


def check_permuted(found, name, differing):
    file = prompts.read(name)
    with pytest.raises(UserError, match="in another order"):
        check(found, name)
    order = positions(found, file.class_names, file.aliases)
    assert sorted(order) == list(range(len(found)))
    assert sum(place != index for index, place in enumerate(order)) == differing
    check(file.class_names, name)
    check_class_order(found, [file.class_names[place] for place in order], "torchvision", name, file.aliases)


@pytest.fixture
def torchvision_datasets():
    return pytest.importorskip("torchvision.datasets")


def test_lists_that_torchvision_has_in_code(torchvision_datasets):
    check(torchvision_datasets.Flowers102.classes, "flowers102")
    check(torchvision_datasets.MNIST.classes, "mnist")


def touched(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_sst2_and_country211_by_their_folders(torchvision_datasets, tmp_path):
    for label in ("positive", "negative"):
        touched(tmp_path / "rendered-sst2" / "test" / label / "0.png")
    check(torchvision_datasets.RenderedSST2(tmp_path, split="test").classes, "sst2")
    for code in prompts.read("country211").aliases:
        touched(tmp_path / "country211" / "test" / code / "0.jpg")
    found = torchvision_datasets.Country211(tmp_path, split="test").classes
    check(found, "country211")
    assert (found[142], prompts.class_names("country211")[142]) == ("NO", "Norway")


def test_eurosat_goes_by_its_folders(torchvision_datasets, tmp_path):
    folders = (
        "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River SeaLake"
    )
    for folder in folders.split():
        touched(tmp_path / "eurosat" / "2750" / folder / "0.jpg")
    check_permuted(torchvision_datasets.EuroSAT(tmp_path).classes, "eurosat", differing=10)


def test_caltech_goes_by_its_folders_without_the_background(torchvision_datasets, tmp_path):
    file = prompts.read("caltech101")
    folder_of = {name: name.replace(" ", "_") for name in file.class_names}
    folder_of["snoopy (cartoon beagle)"] = "snoopy"
    folder_of |= {name: folder for folder, name in file.aliases.items()}
    for folder in folder_of.values():
        touched(tmp_path / "caltech101" / "101_ObjectCategories" / folder / "image_0001.jpg")
    (tmp_path / "caltech101" / "Annotations").mkdir()
    found = torchvision_datasets.Caltech101(tmp_path).categories
    check(["BACKGROUND_Google", *found], "caltech101")
    with pytest.raises(UserError, match="has 101 classes and caltech101 has 102, only caltech101 has 'background'"):
        check(found, "caltech101")
    # As TFDS and VTAB sort them.
    check_permuted(sorted(["BACKGROUND_Google", *found], key=str.lower), "caltech101", differing=67)


def test_pets_go_by_their_ids(torchvision_datasets, tmp_path):
    # The dataset numbers its breeds from 1, in alphabetical order.
    breeds = sorted((name.replace(" ", "_") for name in prompts.class_names("oxford_pets")), key=str.lower)
    (tmp_path / "oxford-iiit-pet" / "annotations").mkdir(parents=True)
    (tmp_path / "oxford-iiit-pet" / "images").mkdir()
    lines = [f"{breed}_1 {number} 1 1\n" for number, breed in enumerate(breeds, 1)]
    (tmp_path / "oxford-iiit-pet" / "annotations" / "trainval.txt").write_text("".join(lines))
    found = torchvision_datasets.OxfordIIITPet(tmp_path).classes
    assert found[:2] == ["Abyssinian", "American Bulldog"]
    check_permuted(found, "oxford_pets", differing=33)


def test_imagenet_goes_by_its_folders():
    check(sorted(prompts.read("imagenet").aliases), "imagenet")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "dtd", "food101", "resisc45"])
def test_sets_in_alphabetical_order_as_their_datasets_are(name):
    check(sorted(each.replace(" ", "_") for each in prompts.class_names(name)), name)


def test_voc_in_the_alphabetical_order_of_the_dataset():
    check_permuted(sorted(prompts.class_names("voc2007")), "voc2007", differing=8)


def test_kinetics_by_torchvisions_folders():
    folders = [
        name.replace(" ", "_").replace("'", "").replace("(", "").replace(")", "")
        for name in prompts.class_names("kinetics700")
    ]
    check(folders, "kinetics700")
    check_permuted(sorted(folders), "kinetics700", differing=5)


def test_ucf_by_its_folders_and_by_its_own_list():
    names = prompts.class_names("ucf101")
    check(sorted(name.replace(" ", "") for name in names), "ucf101")
    own = names.copy()
    own[34:36], own[46:48] = ["Hammering", "HammerThrow"], ["JumpingJack", "JumpRope"]
    check_permuted(own, "ucf101", differing=4)


def test_sun_has_its_jails_the_other_way_round():
    own = [name.replace(" ", "_") for name in prompts.class_names("sun397")]
    assert own[206:208] == ["jail_cell", "jail_indoor"]
    own[206:208] = ["jail/indoor", "jail_cell"]
    check_permuted(own, "sun397", differing=2)


def test_emotions_by_sorted_folders():
    check(["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"], "fer2013")
    check_permuted(["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"], "fer2013", differing=3)


def test_counts_by_number():
    check_permuted([str(number) for number in range(3, 11)], "clevr_counts", differing=8)
    check_permuted(["three", "four", "five", "six", "seven", "eight", "nine", "ten"], "clevr_counts", differing=8)
