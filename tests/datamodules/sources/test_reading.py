"""The same pairs from every kind of place; what is there is found by looking, and said where it is nothing."""

import csv
import gzip
import io
import json
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import datamodules
from datamodules.sources import read_source
from datamodules.sources.source import ReadOptions
from workbench.errors import UserError
from workbench.preprocessing import load_picture

CAPTIONS = ["None", "NA", "null", "1e5", "true", "=1+1", "trailing  ", 'a "q", so', "a; b | c", "it's", "a dog 🐕 猫"]
BROKEN = "two\nlines"
"""A caption that a line of a text file cannot have."""
ROWS = [(f"pictures/{n:02}.png", text) for n, text in enumerate([*CAPTIONS, BROKEN])]


@pytest.fixture
def contents(tmp_path):
    """The bytes of the pictures of `ROWS`, which are there."""
    (tmp_path / "pictures").mkdir()
    for n, (path, _) in enumerate(ROWS):
        Image.new("RGB", (4, 4), (n * 20, 0, 0)).save(path)
    return [(tmp_path / path).read_bytes() for path, _ in ROWS]


def read(location, **options):
    return read_source(location, ReadOptions(**options))


def refusal(location, **options):
    with pytest.raises(UserError) as error:
        read(location, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def delimited_text(delimiter, quoting=csv.QUOTE_MINIMAL):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, quoting=quoting).writerows([("filepath", "caption"), *ROWS])
    return text.getvalue().encode()


def write(name, content):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content)
    return name


def parquet_of(images, name="pairs.parquet", kind=None):
    pq.write_table(
        pa.table({"image": pa.array(images, kind), "caption": [text for _, text in ROWS]}), name, row_group_size=5
    )
    return name


def saved(contents):
    table = pa.table({"image": [{"bytes": c, "path": None} for c in contents], "caption": [text for _, text in ROWS]})
    Path("saved").mkdir(exist_ok=True)
    with pa.OSFile("saved/data-00000-of-00001.arrow", "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=5)
    write("saved/state.json", b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    write("saved/dataset_info.json", b"{}")
    return "saved"


def json_lines(texts):
    return "\n".join(json.dumps({"file_name": path, "caption": text}) for path, text in texts).encode()


def sidecars(contents):
    for path, text in ROWS[:-1]:
        write(path.replace(".png", ".txt"), (text + "\n").encode())
    Path(ROWS[-1][0]).unlink()
    return "pictures"


def shards(contents):
    with tarfile.open("pairs-000.tar", "w") as tar:
        for (path, text), content in zip(ROWS, contents, strict=True):
            for name, data in ((f"{path[9:11]}.png", content), (f"{path[9:11]}.txt", text.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return "pairs-000.tar"


PLACES = {
    "csv": lambda contents: write("pairs.csv", delimited_text(",")),
    "tsv": lambda contents: write("pairs.tsv", delimited_text("\t", csv.QUOTE_ALL)),
    "semicolons": lambda contents: write("pairs.txt", delimited_text(";")),
    "no suffix": lambda contents: write("pairs", delimited_text("|")),
    "csv.gz": lambda contents: write("pairs.csv.gz", gzip.compress(delimited_text(","))),
    "jsonl": lambda contents: write("pairs.jsonl", json_lines(ROWS)),
    "json lists": lambda contents: write("pairs.txt", json_lines([(path, [text]) for path, text in ROWS])),
    "jsonl.gz": lambda contents: write("pairs.gz", gzip.compress(json_lines(ROWS))),
    "parquet of paths": lambda contents: parquet_of([path for path, _ in ROWS]),
    "parquet": lambda contents: parquet_of(contents),
    "parquet of structures": lambda contents: parquet_of([{"bytes": c, "path": "x"} for c in contents], "pairs"),
    "saved": saved,
    "sidecars": sidecars,
    "shards": shards,
}


@pytest.mark.parametrize("kind", PLACES)
def test_the_same_pairs_from_every_kind_of_place(contents, kind):
    source = read(PLACES[kind](contents))
    rows = len(ROWS) - (kind == "sidecars")
    assert list(source.captions) == [[text] for _, text in ROWS][:rows]
    assert [source.pictures.read(row) for row in range(rows)] == contents[:rows]
    assert [load_picture(source.pictures.read(row)).getpixel((0, 0))[0] for row in range(3)] == [0, 20, 40]
    assert source.captions.array.type == pa.list_(pa.large_string()) and len(source.pictures.names()) == rows
    assert len({source.place(row) for row in range(rows)}) == rows
    some = source.take([1, 4, 10])
    assert list(some.captions) == [[ROWS[row][1]] for row in (1, 4, 10)]
    assert [some.pictures.read(row) for row in range(3)] == [contents[row] for row in (1, 4, 10)]
    assert some.place(1) == source.place(4) and some.pictures.name(2) == source.pictures.name(10)


_OTHER_PROCESS = """
import pickle, sys, types
package = sys.modules["datamodules"] = types.ModuleType("datamodules")
package.__path__ = [sys.argv[1]]  # Without what it imports, which takes seconds.
sources = pickle.load(sys.stdin.buffer)
found = [(list(one.captions), [one.pictures.read(row) for row in range(6)], one.place(3)) for one in sources]
sys.stdout.buffer.write(pickle.dumps(found))
"""


def test_another_process_reads_them_too(contents):
    sources = [read(PLACES[kind](contents)).take(range(1, 7)) for kind in ("csv", "parquet", "saved")]
    for source in sources:
        source.pictures.read(0)  # What this opens must not be sent.
    done = subprocess.run(
        [sys.executable, "-c", _OTHER_PROCESS, *datamodules.__path__],
        input=pickle.dumps(sources),
        capture_output=True,
        check=True,
    )
    for (captions, pictures, place), source in zip(pickle.loads(done.stdout), sources, strict=True):
        assert captions == [[text] for _, text in ROWS[1:7]] and pictures == contents[1:7]
        assert place == source.place(3)


def test_labels_without_captions(contents):
    write("pairs.csv", b"image,class\npictures/00.png,None\npictures/01.png,7\n")
    write("pairs.jsonl", b'{"image": "pictures/00.png", "class": "None"}\n{"image": "pictures/01.png", "class": 7}\n')
    pq.write_table(pa.table({"image": contents[:2], "class": ["None", "7"]}), "pairs.parquet")
    for location in ("pairs.csv", "pairs.jsonl", "pairs.parquet"):
        assert read(location, captions=False).labels[:] == ["None", "7"]
        assert "--data.label_column" in refusal(location, captions=False, label_column="klass")
    pq.write_table(pa.table({"image": contents[:2], "class": [1, 7]}), "pairs.parquet")
    source = read("pairs.parquet", captions=False)
    assert source.labels[:] == ["1", "7"] and source.pictures.read(1) == contents[1]


def test_a_folder_with_its_metadata(contents):
    write(
        "pictures/metadata.jsonl", b'{"file_name": "03.png", "text": "three"}\n{"file_name": "01.png", "text": "one"}'
    )
    source = read("pictures")
    assert list(source.captions) == [["three"], ["one"]] and source.pictures.read(0) == contents[3]
    Path("above").mkdir()
    Path("pictures").rename("above/pictures")
    assert refusal("above") == "above itself has nothing that is read, but above/pictures has; name that."


def test_shards_in_folders_and_patterns(contents, monkeypatch):
    asked = []
    monkeypatch.setattr("datamodules.sources.shards.read_shards", lambda location, options: asked.append(location))
    for name in ("s/000.tar", "s/001.tar", "s/000.parquet", "s/000_stats.json"):
        write(name, b"x")
    patterns = ("s", "s/*.tar", "s/{000..001}.tar", "s/000.tar", "memory://b/s/{000..001}.tar", "https://b/{0,1}.tar")
    for location in patterns:
        read(location)
    assert asked == list(patterns)


def test_remote_folders(contents, own_cache, monkeypatch):
    files = fsspec.filesystem("memory")
    asked = []
    monkeypatch.setattr("datamodules.sources.shards.read_shards", lambda location, options: asked.append(location))
    try:
        files.pipe("/folder/parquet/a.parquet", Path(parquet_of(contents)).read_bytes())
        source = read("memory://folder/parquet")
        assert source.pictures.read(7) == contents[7] and source.block_starts.tolist() == [0, 5, 10]
        assert source.place(7).endswith("folder/parquet/a.parquet, row 8")
        assert read("memory://folder/parquet/*.parquet").pictures.read(7) == contents[7]
        files.pipe("/folder/shards/0.tar", b"x")
        files.pipe("/folder/shards/0.parquet", b"x")
        for location in ("memory://folder/shards", "https://example.com/shards"):
            read(location)
            assert asked.pop() == location
    finally:
        files.rm("/folder", recursive=True)


def test_a_remote_table_of_stored_pictures_is_had_again_when_its_copy_went(contents, own_cache):
    files = fsspec.filesystem("memory")
    try:
        files.pipe("/folder/a.parquet", Path(parquet_of(contents)).read_bytes())
        source = read("memory://folder/a.parquet")
        for copy in (own_cache / "remote").glob("*"):
            if copy.is_file():
                copy.unlink()
        assert source.pictures.read(11) == contents[11]
    finally:
        files.rm("/folder", recursive=True)


FOREIGN = {
    "empty": (b"", "is empty"),
    "zip": (b"PK\x03\x04" + bytes(50), "is a zip archive"),
    "page": (b"<!DOCTYPE html>\n<html>", "is a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "list": (b' [\n{"image": "a.jpg"}]', "is one JSON list"),
    "nothing": (bytes(range(256)) * 20, "cannot be read as UTF-8|is UTF-16|single column|not UTF-8"),
    "tar.gz": (gzip.compress(bytes(257) + b"ustar" + bytes(500)), "compressed as a whole"),
    "arrow": (b"ARROW1\0\0", "is an Arrow file"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_files_of_something_else(tmp_path, kind):
    content, words = FOREIGN[kind]
    write("pairs.dat", content)
    said = refusal("pairs.dat")
    assert said.startswith("pairs.dat") and any(word in said for word in words.split("|")), said


def test_places_that_are_not_there(contents):
    said = refusal("pears.csv")
    assert "there is nothing at pears.csv" in said
    assert "there is nothing at nowhere/*.tar" in refusal("nowhere/*.tar")
    assert "is a picture" in refusal("pictures/00.png")
    assert "neither a file nor a folder" in refusal("/dev/null")
    for name in ("a.csv", "b.csv"):
        write(name, b"image,caption\npictures/00.png,x\n")
    said = refusal("*.csv")
    assert "*.csv stands for 2 files (a.csv, b.csv)" in said and "[one.csv, two.csv]" in said
    assert len(read("[a].cs?")) == 1
    assert len(read("file://" + str(Path("a.csv").resolve()))) == 1
