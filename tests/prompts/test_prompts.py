"""Names and templates against their source and its other copies; users' files."""

import hashlib
import importlib.resources
import pickle

import pytest

from workbench import prompts
from workbench.errors import UserError
from workbench.prompts import reading

# Of data/prompts.md and the ImageNet notebook at openai/CLIP d05afc4: classes, templates, and the sha256 of the names
# in their order and of the sorted templates.
OPENAI = {
    "birdsnap": (500, 1, "b03d9d481162", "f3126b8375a9"),
    "caltech101": (102, 34, "e0ecbf33d0f0", "0a6b75d0787f"),
    "cifar10": (10, 18, "bb3914949cec", "d6ee29646b42"),
    "cifar100": (100, 18, "60ae3a3ac135", "d6ee29646b42"),
    "clevr_counts": (8, 1, "3c9410fd14f4", "da3770f103c7"),
    "country211": (211, 5, "027b30d283f3", "1e5fc4f21ec2"),
    "dtd": (47, 8, "681d23b9cd3c", "3e9362b02a3f"),
    "eurosat": (10, 3, "989b723c02a7", "0953ea3fd8c1"),
    "fer2013": (7, 6, "04bed0313253", "2c89a8a2b3ee"),
    "fgvc_aircraft": (100, 2, "e1c9e72060e6", "91522de75ad4"),
    "flowers102": (102, 1, "5429e1ef6e0e", "bfcd4bbb214d"),
    "food101": (101, 1, "9c0eeb5a368b", "77a79bac7d9c"),
    "gtsrb": (43, 3, "953036bc5aed", "1e720b38db04"),
    "hateful_memes": (2, 1, "62a880e9ac28", "16a7fa63385b"),
    "imagenet": (1000, 80, "571ae1c583b4", "a8a4822f2921"),
    "kinetics700": (700, 28, "a34c9fed41f5", "7ff4cc3590e0"),
    "kitti": (4, 1, "ecc16a4f92ee", "44136fa355b3"),
    "mnist": (10, 1, "29dd21f55e46", "c0341e0a1fdf"),
    "oxford_pets": (37, 1, "c6f4365ced9d", "16a0790f0e45"),
    "patch_camelyon": (2, 1, "27352df7ede1", "7c7758b084ef"),
    "resisc45": (45, 18, "3c2177013901", "ddfe50c416a8"),
    "sst2": (2, 1, "2e61aa755804", "9034019e8a14"),
    "stanford_cars": (196, 8, "93d089469409", "816eaf5186e3"),
    "stl10": (10, 2, "08b234ce7b11", "c97a3d1ad581"),
    "sun397": (397, 2, "dd1277b1cfcf", "c97a3d1ad581"),
    "ucf101": (101, 48, "4c5f54cb419a", "db238e0b2b87"),
    "voc2007": (20, 1, "b8c3f06eeba3", "e8e367e769f8"),
}


def digest(lines):
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def test_there_are_imagenet_and_the_26():
    assert prompts.available() == sorted(OPENAI)


@pytest.mark.parametrize("name", OPENAI)
def test_names_and_templates_are_openais(name):
    classes, templates, of_names, of_templates = OPENAI[name]
    names, expanded = prompts.names(name), prompts.templates(name)
    assert (len(names), len(expanded), len(set(expanded))) == (classes, templates, templates)
    assert digest("|".join(each) for each in names) == of_names
    assert digest(sorted(expanded)) == of_templates
    assert prompts.class_names(name) == [first for first, *_ in names]
    assert all(template.count("{}") == 1 for template in expanded)


@pytest.mark.parametrize("name", OPENAI)
def test_each_file_says_where_it_is_from(name):
    file = prompts.read(name)
    assert file.name == name
    assert "openai/CLIP" in file.source and "commit d05afc436d78f1c48dc0dbf8e5980a9d471f35f6" in file.source
    assert file.licence.startswith("MIT, Copyright (c) 2021 OpenAI")


def test_imagenet_is_open_clips():
    theirs = pytest.importorskip("open_clip.zero_shot_metadata")
    assert prompts.class_names("imagenet") == list(theirs.IMAGENET_CLASSNAMES)
    assert set(prompts.templates("imagenet")) == {template("{}") for template in theirs.OPENAI_IMAGENET_TEMPLATES}
    assert prompts.templates("imagenet", "subset7") == [t("{}") for t in theirs.SIMPLE_IMAGENET_TEMPLATES]


def test_imagenet_has_two_names_twice_and_no_other_set_any():
    assert prompts.read("imagenet").collisions == {"missile": (657, 744), "sunglasses": (836, 837)}
    assert [name for name in OPENAI if prompts.read(name).collisions] == ["imagenet"]


def test_imagenets_aliases_are_the_wordnet_ids_in_the_order_of_labels():
    timm = pytest.importorskip("timm.data")
    synsets = importlib.resources.files(timm).joinpath("_info/imagenet_synsets.txt").read_text().split()
    aliases = prompts.read("imagenet").aliases
    assert list(aliases) == synsets == sorted(synsets)
    assert aliases["n01440764"] == "tench" and aliases["n15075141"] == "toilet paper"


def test_several_names_of_a_class():
    assert prompts.names("fer2013")[3:6] == [
        ["happy", "smiling"],
        ["sad", "depressed"],
        ["surprised", "shocked", "spooked"],
    ]
    assert prompts.class_names("fer2013")[3:6] == ["happy", "sad", "surprised"]


# A user's file.


@pytest.fixture
def written(tmp_path):
    def write(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_everything_that_a_file_may_hold(written):
    path = written(
        "class_names: [cat, [dog, puppy], no, 10, 1.0, 2020-01-01, ~, 'ice: cream', 写真]\n"
        "templates: ['a (good |)photo of {}', '{}!']\n"
        "template_subsets: {short: ['{}!']}\n"
        "aliases: {Katze: cat, nein: no}\n"
        "source: me\nlicence: CC0\nnotes: none\n"
    )
    file = prompts.read(path)
    assert file.names[:2] == (("cat",), ("dog", "puppy"))
    assert file.class_names == ["cat", "dog", "no", "10", "1.0", "2020-01-01", "~", "ice: cream", "写真"]
    assert file.templates == ("a good photo of {}", "a photo of {}", "{}!")
    assert file.template_subsets == {"short": ("{}!",)}
    assert file.aliases == {"Katze": "cat", "nein": "no"}
    assert (file.name, file.source, file.licence, file.notes) == ("mine", "me", "CC0", "none")
    assert prompts.read(str(path)) == file
    assert prompts.templates(path, "short") == ["{}!"]
    assert pickle.loads(pickle.dumps(file)) == file


def test_the_least_that_a_file_must_hold(written):
    file = prompts.read(written("\ufeffclass_names:\n- a b\ntemplates:\n- a photo of {}\n", "mine.yml"))
    assert (file.name, file.class_names, file.templates) == ("mine", ["a b"], ("a photo of {}",))
    assert (file.aliases, file.template_subsets, file.source, file.collisions) == ({}, {}, "", {})


def test_aliases_as_a_list_are_one_a_class(written):
    file = prompts.read(written("class_names: [a, b, a]\ntemplates: ['{}']\naliases: [n1, n2, n3]"))
    assert file.aliases == {"n1": "a", "n2": "b", "n3": "a"}
    assert file.collisions == {"a": (0, 2)}


def test_a_second_name_may_collide_too(written):
    assert prompts.read(written("class_names: [[a, b, b], [b, c], d]\ntemplates: ['{}']")).collisions == {"b": (0, 1)}


def test_what_is_returned_is_the_callers_own():
    prompts.class_names("mnist").clear()
    prompts.templates("mnist").clear()
    prompts.names("mnist")[0].clear()
    assert prompts.names("mnist")[0] == ["0"] and len(prompts.templates("mnist")) == 1


HEAD = "class_names: [a, b]\ntemplates: ['{}']\n"


@pytest.mark.parametrize(
    "text, said",
    [
        ("- a\n- b", "must be a YAML mapping with the keys class_names and templates"),
        ("", "must be a YAML mapping"),
        ("a text", "must be a YAML mapping"),
        ("class_names: [a", "is not YAML that can be read: expected ',' or ']'"),
        ("class_names: [a]\ntemplates:\n- {} x", "(line 3); put quotes round"),
        (HEAD + "templates: ['a {}']", "the key 'templates' is there twice"),
        ("a: 1\n---\nb: 2", "is not YAML that can be read: but found another document (line 2)"),
        (b"\xff\xfe\x00", "is not text in UTF-8"),
        (b"class_names: [a\x00]", "is not YAML that can be read: special characters"),
        ("[" * 20_000, "nested too deeply"),
        ("&a [*a]", "is not YAML that can be read: found unconstructable recursive node"),
        ("class_names: [a]", "has no templates; give a list"),
        ("templates: [a]", "has no class_names; give a list"),
        ("source: a", "has no class_names and no templates; give a list"),
        ("template: [a]\nclass_names: [a]", "has the key 'template'; did you mean 'templates'?"),
        (HEAD + "zzz: 1", "has the key 'zzz'; the keys are class_names, templates, template_subsets"),
        ("class_names: []\ntemplates: ['{}']", "class_names must be a list of the class names"),
        ("class_names: a\ntemplates: ['{}']", "and is the text 'a'"),
        ("class_names:\ntemplates: ['{}']", "and is empty"),
        ("class_names: {a: b}\ntemplates: ['{}']", "and is a mapping"),
        ("class_names: [a, kite: bird]\ntemplates: ['{}']", "class_names[1] must be text, and is a mapping; quote"),
        ("class_names: [a, '']\ntemplates: ['{}']", "class_names[1] is empty"),
        ("class_names:\n- a\n-\ntemplates: ['{}']", "class_names[1] is empty"),
        ("class_names: [a, []]\ntemplates: ['{}']", "class_names[1] is an empty list"),
        ("class_names: [a, [b, [c]]]\ntemplates: ['{}']", "class_names[1] must be text, and is a list"),
        ("class_names: [a]\ntemplates: []", "templates must be a list of templates such as"),
        ("class_names: [a]\ntemplates: [{}]", "templates[0] must be text, and is a mapping; quote"),
        ("class_names: [a]\ntemplates: [a, '{}']", "mine.yaml: templates[0]: The template 'a' has no {}"),
        ("class_names: [a]\ntemplates: ['{}', '{} (a']", "templates[1]: The template '{} (a' has at character 4 a ("),
        ("class_names: [a]\ntemplates: ['{}', '(a |){}']", "templates[1] gives '{}', which templates[0] has given"),
        (HEAD + "template_subsets: [a]", "template_subsets must map"),
        (HEAD + "template_subsets: {s: []}", "template_subsets.s must be a list"),
        (HEAD + "template_subsets: {s: ['a {}']}", "template_subsets.s has 'a {}', which is not among the templates"),
        (HEAD + "aliases: x", "aliases must map"),
        (HEAD + "aliases: [x]", "aliases is a list of 1 for 2 classes"),
        (HEAD + "aliases: [x, x]", "aliases lists a spelling for two classes"),
        (HEAD + "aliases: {x: c}", "aliases.x is 'c', which is no class name"),
        ("class_names: [airplane]\ntemplates: ['{}']\naliases: {x: aeroplane}", "did you mean 'airplane'?"),
        (HEAD + "aliases: {a: b}", "aliases calls 'a' another name of 'b', and it is a class of its own"),
        (HEAD + "aliases: {x: [a]}", "aliases.x must be text, and is a list"),
        (HEAD + "notes: [a]", "notes must be text, and is a list"),
        # Many names in few characters.
        (f"class_names: [&a [{'x,' * 2000}]{', *a' * 2000}]\ntemplates: ['{{}}']", "more than 100000 names"),
        (
            "class_names: [a]\ntemplates: ["
            + ",".join(
                f"'{part} (0|1|2|3|4|5|6|7|8|9)(0|1|2|3|4|5|6|7|8|9)(0|1|2|3|4|5|6|7|8|9) {{}}'" for part in range(11)
            )
            + "]",
            "templates stand for more than 10000 prompts",
        ),
    ],
)
def test_a_file_that_will_not_do(written, text, said):
    with pytest.raises(UserError) as raised:
        prompts.read(written(text))
    assert said in str(raised.value)
    assert "mine.yaml" in str(raised.value)


def test_a_file_too_large_is_not_read_whole(written, monkeypatch):
    monkeypatch.setattr(reading, "_MOST_BYTES", 2**20)
    assert prompts.class_names(written((HEAD + "#").encode().ljust(2**20, b"x"))) == ["a", "b"]
    with pytest.raises(UserError, match="mine.yaml is larger than 1 MiB"):
        prompts.read(written((HEAD + "#").encode().ljust(2**20 + 1, b"x")))


@pytest.mark.parametrize(
    "name, said", [("imagnet", "did you mean 'imagenet'"), ("STANFORD-CARS", "mean 'stanford_cars'")]
)
def test_a_name_that_is_nearly_one(name, said):
    with pytest.raises(UserError, match=said):
        prompts.class_names(name)


def test_a_name_that_is_none():
    with pytest.raises(UserError, match="no prompts called 'zzz'; there are birdsnap, .*voc2007. A file of your own"):
        prompts.read("zzz")


def test_a_file_that_is_not_there(written, tmp_path):
    written(HEAD)
    with pytest.raises(UserError, match="There is no file .*mime.yaml; did you mean .*mine.yaml"):
        prompts.read(tmp_path / "mime.yaml")
    with pytest.raises(UserError, match="There is no file nowhere/x.yaml; mend the path"):
        prompts.read("nowhere/x.yaml")
    with pytest.raises(UserError, match="There is no file"):
        prompts.read(tmp_path)


def test_a_subset_that_is_not_there():
    with pytest.raises(UserError, match="'imagenet' have no subset 'subset'; did you mean 'subset7'"):
        prompts.templates("imagenet", "subset")
    with pytest.raises(UserError, match="no subset 'x'; there is subset7"):
        prompts.templates("imagenet", "x")
    with pytest.raises(UserError, match="they have none"):
        prompts.templates("mnist", "x")
