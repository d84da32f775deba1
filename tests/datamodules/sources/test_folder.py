"""Folders of pictures with text files beside them."""

import pytest
from PIL import Image

from datamodules.sources import read_source
from datamodules.sources.columns import picture_suffixes
from datamodules.sources.source import ReadOptions
from workbench.errors import UserError


def make(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


def read(location, **options):
    return read_source(str(location), ReadOptions(**options))


def refusal(location, **options):
    with pytest.raises(UserError) as error:
        read(location, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_first_lines_and_all_lines(tmp_path):
    texts = {
        "a": "None",
        "b": "NA\r\nnull\r\n\r\n",
        "c": "\ufeff  1e5  \ntrue",
        "d": '=1+1 "q"\n',
        "e": "a dog 🐕\u2028more\x0bof it\rsecond",
    }
    folder = make(tmp_path / "f", {f"{n}.jpg": n for n in texts} | {f"{n}.txt": text for n, text in texts.items()})
    first = read(folder)
    expected = ["None", "NA", "  1e5  ", '=1+1 "q"', "a dog 🐕\u2028more\x0bof it"]
    assert list(first.captions) == [[text] for text in expected]
    assert [first.pictures.read(row) for row in range(5)] == [b"a", b"b", b"c", b"d", b"e"]
    assert first.place(1) == f"{folder}/b.txt" and first.take([4, 1]).place(1) == f"{folder}/b.txt"
    assert list(read(folder, sidecar="all").captions) == [
        [expected[0]],
        [expected[1], "null"],
        [expected[2], "true"],
        [expected[3]],
        [expected[4], "second"],
    ]
    assert "sidecar is 'some'; it is 'first' or 'all'" in refusal(folder, sidecar="some")


def test_any_depth_in_the_order_of_names(tmp_path):
    names = ["b/x.JPG", "a.png", "b/c/y.webp", "b.a/z.png", "z.jpeg", "A.tiff"]
    files = {name: name for name in names} | {f"{name.rpartition('.')[0]}.txt": name for name in names}
    hidden = {".hidden/h.jpg": "h", "b/._x.JPG": "mac", ".DS_Store": "x"}
    folder = make(tmp_path / "f", files | hidden | {"notes.md": "x", "b/x.json": "{}"})
    found = [text for (text,) in read(folder).captions]
    assert found == ["A.tiff", "a.png", "z.jpeg", "b/x.JPG", "b/c/y.webp", "b.a/z.png"]


def test_img2dataset_files(tmp_path):
    files = {"00000.parquet": "PAR1", "00000_stats.json": "{}"}
    for key in ("00000/000000000", "00000/000000012", "00001/000010000"):
        files |= {f"{key}.jpg": key, f"{key}.txt": f"caption of {key}", f"{key}.json": '{"status": "success"}'}
    source = read(make(tmp_path / "f", files))
    assert [text for (text,) in source.captions] == [
        f"caption of 0000{key}" for key in ("0/000000000", "0/000000012", "1/000010000")
    ]
    assert source.pictures.read(1) == b"00000/000000012"


def test_links_that_lead_out_are_not_followed(tmp_path):
    outside = make(tmp_path / "outside", {"a.jpg": "secret", "a.txt": "secret", "deep/b.jpg": "x", "deep/b.txt": "x"})
    folder = tmp_path / "f"
    make(folder, {"in.jpg": "in", "in.txt": "in", "sub/c.jpg": "c", "sub/c.txt": "c"})
    (folder / "deep").symlink_to(f"{outside}/deep")
    (folder / "a.jpg").symlink_to(f"{outside}/a.jpg")
    (folder / "a.txt").symlink_to(f"{outside}/a.txt")
    (folder / "sub" / "circle").symlink_to(folder)
    (folder / "link.jpg").symlink_to("in.jpg")
    (folder / "link.txt").symlink_to("in.txt")
    source = read(folder)
    assert [text for (text,) in source.captions] == ["in", "in", "c"]
    (folder / "a.jpg").unlink()
    make(folder, {"a.jpg": "inside"})
    said = refusal(folder)
    assert "1 of 4 pictures have no .txt (a.jpg)" in said and "2 links that lead out of it are not followed" in said
    (folder / "link.jpg").unlink()
    (folder / "link.jpg").symlink_to(f"{outside}/a.jpg")
    with pytest.raises(UserError, match="leads out"):
        source.pictures.read(1)


def test_what_has_no_counterpart(tmp_path):
    files = {f"{n}.jpg": "x" for n in range(9)} | {f"{n}.txt": "x" for n in range(5, 11)}
    said = refusal(make(tmp_path / "f", files))
    assert "5 of 9 pictures have no .txt (0.jpg, 1.jpg, 2.jpg, ...)" in said
    assert "2 .txt have no picture (10.txt, 9.txt)" in said


def test_wrong_captions(tmp_path):
    folder = tmp_path / "f"
    make(folder, {"a.jpg": "x", "a.txt": "fine", "b.jpg": "x", "b.txt": "\n  "})
    assert f"{folder}/b.txt: the caption is empty" in refusal(folder)
    assert f"{folder}/b.txt: the caption is empty" in refusal(folder, sidecar="all")
    make(folder, {"b.txt": "café".encode("latin-1")})
    assert f"{folder}/b.txt is not UTF-8 text" in refusal(folder)
    make(folder, {"b.txt": b"x" * (1 << 20) + "é".encode()})
    assert f"{folder}/b.txt is longer than" in refusal(folder)


def test_folders_of_something_else(tmp_path):
    (tmp_path / "f").mkdir()
    assert refusal("f") == "f is empty."
    make(tmp_path / "f", {"a.npy": "x", "b.npy": "x", "c": "x"})
    said = refusal("f")
    assert "f holds 2 .npy and 1 without a suffix. Looked for were" in said and "Parquet" in said
    make(tmp_path / "f", {"a.jpg": "x", "b.jpg": "x"})
    said = refusal("f")
    assert "2 .jpg" in said and "and no .txt" in said and "text file beside it" in said
    make(tmp_path / "f", {"sub/pairs.csv": "x"})
    assert "name the table itself: f/sub/pairs.csv" in refusal("f")
    make(tmp_path / "g", {"cat/a.jpg": "x", "dog/b.jpg": "x"})
    said = refusal("g")
    assert "ClassificationDataModule" in said and "--data.root g" in said and "2 .jpg" in said
    make(tmp_path / "h", {"train/a.jpg": "x", "train/a.txt": "x", "test/b.jpg": "x", "test/b.txt": "x"})
    assert refusal("h") == "h holds the splits test, train; name one, such as h/test."
    assert len(read("h/train")) == 1


def test_suffixes_are_those_of_pictures_that_can_be_decoded():
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".ppm"} <= picture_suffixes()
    assert not {".txt", ".pdf", ".mpg", ".eps", ".h5", ".json", ""} & picture_suffixes()
    assert picture_suffixes() <= set(Image.registered_extensions())
