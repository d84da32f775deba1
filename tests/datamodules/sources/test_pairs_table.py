"""Picture paths of a table: none leads out of the root, and what could not be a path is told before training."""

from pathlib import Path

import pyarrow as pa
import pytest

from datamodules.sources import pairs_table
from datamodules.sources.pairs_table import path_source, single_captions
from datamodules.sources.source import Places, ReadOptions
from datamodules.sources.table_file import TableFile
from workbench.errors import UserError


def source(paths, root=None, folder=".", captions=None, labels=None):
    paths = pa.array(paths, pa.large_string())
    captions = single_captions(pa.array(captions or ["x"] * len(paths), pa.large_string()))
    labels = None if labels is None else pa.array(labels, pa.large_string())
    table = TableFile("pairs.csv", "pairs.csv", folder)
    return path_source(table, ReadOptions(root=root), paths, captions, labels, Places("pairs.csv"))


def refusal(paths, **options):
    with pytest.raises(UserError) as error:
        source(paths, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "path", ["../a.jpg", "d/../../a.jpg", "/etc/passwd", "d/..", "..", "d/../..", "link/a.jpg", "link/../a.jpg"]
)
def test_paths_that_lead_out(tmp_path, path):
    (tmp_path / "f" / "d").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "f" / "link").symlink_to(tmp_path / "outside")
    if path == "link/a.jpg":  # What a name leads to is looked at when it is read.
        (tmp_path / "outside" / "a.jpg").write_bytes(b"secret")
        with pytest.raises(UserError, match="link/a.jpg leads out of f; name a folder above it with --data.root"):
            source([path], folder="f").pictures.read(0)
    else:
        said = refusal(["d/a.jpg", "b.jpg", path], folder="f")
        assert said == f"pairs.csv, line 3: {path} leads out of f; name a folder above it with --data.root."


def test_paths_that_stay_inside(tmp_path):
    (tmp_path / "f" / "d").mkdir(parents=True)
    (tmp_path / "other").symlink_to(tmp_path / "f")
    (tmp_path / "f" / "a.jpg").write_bytes(b"a")
    paths = ["a.jpg", "./a.jpg", "d/../a.jpg", f"{tmp_path}/f/a.jpg", f"{tmp_path}/other/a.jpg", "a..b.jpg", "c:d.jpg"]
    for folder in ("f", f"{tmp_path}/f", "other", "f/"):
        pictures = source(paths, folder=folder).pictures
        assert [pictures.read(row) for row in range(5)] == [b"a"] * 5
        assert pictures.missing(range(7)) == [5, 6]
    assert source(["f/a.jpg", f"{tmp_path}/f/a.jpg"], root=f"{tmp_path}/f/..").pictures.read(1) == b"a"
    assert source([f"{tmp_path}/f/a.jpg", "../../etc/passwd"], folder="f", root="/").pictures.read(0) == b"a"
    assert source(["f/a.jpg"], folder="f", root=".").pictures.read(0) == b"a"


def test_home_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jpg").write_bytes(b"a")
    assert source(["a.jpg"], folder="f", root="~").pictures.read(0) == b"a"


def test_what_is_no_path():
    assert "line 2: 'a\\x00b.jpg' cannot be a path (a zero byte)" in refusal(["a.jpg", "a\0b.jpg"])
    said = refusal(["x" * 5000])
    assert "cannot be a path (5000 characters)" in said and len(said) < 300
    for address in ("http://example.com/a.jpg", "HTTPS://example.com/a.jpg", "s3://bucket/a.jpg"):
        said = refusal(["a.jpg", address])
        assert f"line 2: {address} is an address" in said and "img2dataset" in said
    said = refusal(["../a\n\x1b[2Jb.jpg"])
    assert said.startswith("pairs.csv, line 1: '../a\\n\\x1b[2Jb.jpg' leads out")
    said = refusal(["a.jpg", "", None, "  "])
    assert "line 2: the picture path is empty" in said and "There are 3 such rows" in said


def test_labels_and_captions():
    assert "line 2: the label is empty" in refusal(["a", "b"], labels=["cat", None])
    assert "line 1: the caption is empty" in refusal(["a", "b"], captions=["\u3000\x1f", "x"])
    assert source(["a", "b"], labels=["7", "None"]).labels[:] == ["7", "None"]
    assert "pairs.csv has no row" in refusal([])


def test_only_suspicious_paths_are_looked_at_one_by_one(monkeypatch):
    asked = []
    monkeypatch.setattr(pairs_table, "_LocalFault", lambda root: lambda path: asked.append(path))
    inside = f"{Path.cwd()}/a.jpg"
    source(["a.jpg", "b/c.jpg", inside, "..", "/a", "a..b", "x" * 5000, "s3://a", "a\0"])
    assert asked == ["..", "/a", "a..b", "x" * 5000, "s3://a", "a\0"]
