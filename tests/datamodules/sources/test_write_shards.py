"""Any source as shards, read back by `read_shards` and by `tarfile`."""

import hashlib
import io
import json
import os
import random
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from datamodules.sources import write_shards as module
from datamodules.sources.shards import WRITTEN_INDEX, read_shards
from datamodules.sources.source import CAPTIONS, Column, PictureFiles, Places, ReadOptions, Source
from datamodules.sources.write_shards import ending_of, write_shards
from workbench.errors import UserError

CAPTIONS_OF = [
    ["a cat"],
    ["a dog", "ein Hund", "🐕"],
    ["None"],
    ["ends\n"],
    ["ends\r"],
    ["two\nlines"],
    ["\ufeffmarked"],
    [" spaces "],
    ['quote " and \\ and \0'],
    ["again", "again"],
]


@pytest.fixture(autouse=True)
def empty_cache(own_cache):
    return own_cache


def picture(kind="JPEG", size=8, seed=0):
    file = io.BytesIO()
    Image.frombytes("RGB", (size, size), random.Random(seed).randbytes(size * size * 3)).save(file, kind)
    return file.getvalue()


def source(captions=CAPTIONS_OF, pictures=None, labels=None, folder="pictures"):
    """Return a source of files whose names say nothing of their format."""
    pictures = [picture(seed=row) for row in range(len(captions))] if pictures is None else pictures
    Path(folder).mkdir(exist_ok=True)
    for row, content in enumerate(pictures):
        Path(folder, f"{row}.bin").write_bytes(content)
    files = PictureFiles(Column([f"{row}.bin" for row in range(len(captions))]), folder)
    labels = None if labels is None else Column(labels)
    return Source("pairs.csv", files, Column(captions, CAPTIONS), Places("pairs.csv"), labels)


def same(found, expected):
    assert found.captions.array.equals(expected.captions.array)
    for row in range(len(expected)):
        assert found.pictures.read(row) == expected.pictures.read(row)
    return True


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}


def test_read_back_with_the_index_and_without():
    written = write_shards(source(), "out", samples_per_shard=4)
    assert written == [Path("out/00000.tar"), Path("out/00001.tar"), Path("out/00002.tar")]
    assert sorted(os.listdir("out")) == ["00000.tar", "00001.tar", "00002.tar", WRITTEN_INDEX]  # noqa: PTH208
    with_index = read_shards("out", ReadOptions())
    assert same(with_index, source()) and with_index.block_starts.tolist() == [0, 4, 8]
    Path("out", WRITTEN_INDEX).unlink()
    without = read_shards("out", ReadOptions())
    assert same(without, source()) and without.block_starts.tolist() == [0, 4, 8]
    for row in range(10):
        assert with_index.pictures.name(row) == without.pictures.name(row) == f"out/0000{row // 4}.tar/{row:09d}.jpg"


@pytest.mark.parametrize("with_index", [True, False])
def test_labels(with_index):
    labels = ["cat", "7", "0", "größer", *"abcdef"]
    write_shards(source(labels=labels), "out")
    if not with_index:
        Path("out", WRITTEN_INDEX).unlink()
    found = read_shards("out", ReadOptions(label_column="label"))
    assert found.labels.array.to_pylist() == labels and same(found, source())


def test_as_tarfile_and_webdataset_see_it():
    write_shards(source(labels=list("0123456789")), "out")
    with tarfile.open("out/00000.tar", "r:") as archive:
        members = archive.getmembers()
        contents = {member.name: archive.extractfile(member).read() for member in members}
    keys = [member.name.partition(".")[0] for member in members]
    assert keys == sorted(keys) and sorted(set(keys)) == [f"{row:09d}" for row in range(10)]
    assert all(
        (member.mtime, member.uid, member.gid, member.mode, member.uname) == (0, 0, 0, 0o644, "") for member in members
    )
    for row, captions in enumerate(CAPTIONS_OF):
        Image.open(io.BytesIO(contents[f"{row:09d}.jpg"])).load()
        assert contents[f"{row:09d}.txt"].decode() == captions[0]
        assert json.loads(contents[f"{row:09d}.json"]) == {"captions": captions, "label": str(row)}


def test_json_only_where_it_is_needed():
    write_shards(source(), "out")
    with tarfile.open("out/00000.tar") as archive:
        has_json = [int(name[:9]) for name in archive.getnames() if name.endswith(".json")]
    assert has_json == [1, 3, 4, 6, 9]


def test_the_index():
    written = write_shards(source(), "out", samples_per_shard=4)
    table = pq.read_table("out/index.parquet")
    assert table["shard"].to_pylist() == [f"0000{row // 4}.tar" for row in range(10)]
    assert table["key"].to_pylist() == [f"{row:09d}" for row in range(10)] and table["label"].null_count == 10
    assert table["captions"].to_pylist() == CAPTIONS_OF
    told = json.loads(table.schema.metadata[b"clip_workbench_shards"])
    assert told == {"version": 1, "sizes": {path.name: path.stat().st_size for path in written}}
    for shard, offset, size, member in zip(
        *(table[name].to_pylist() for name in ("shard", "offset", "size", "member")), strict=True
    ):
        with tarfile.open(f"out/{shard}") as archive:
            entry = archive.getmember(member)
            assert (entry.offset_data, entry.size) == (offset, size)


def test_the_same_bytes_every_time():
    pairs = source(pictures=[b"\xff\xd8\xff" + bytes(1000 * row) for row in range(10)])
    write_shards(pairs, "one", samples_per_shard=3)
    write_shards(pairs, Path("two"), samples_per_shard=3)
    assert digests("one") == digests("two") and len(digests("one")) == 5
    assert digests("one")["00000.tar"].startswith("3bbde6cd21268cf1"), "the form of shards changed"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF", "PPM"])
def test_endings_by_the_first_bytes(kind):
    ending = {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind.lower())
    try:
        content = picture(kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {kind}")
    assert ending_of(content) == ending
    write_shards(source([["x"]], [content]), "out")
    found = read_shards("out", ReadOptions())
    assert found.pictures.name(0) == f"out/00000.tar/000000000.{ending}" and found.pictures.read(0) == content


def test_shards_of_a_size():
    pictures = [b"\xff\xd8\xff" + bytes(size) for size in (3000, 3000, 3000, 30_000, 100, 100, 20_000, 100, 9000, 1)]
    written = write_shards(source(pictures=pictures), "out", max_bytes=20480, prefix="train-")
    assert [path.name for path in written] == [f"train-0000{number}.tar" for number in range(len(written))]
    found = read_shards("out", ReadOptions())
    assert same(found, source(pictures=pictures)) and found.block_starts.tolist() == [0, 3, 4, 6, 7]
    assert [path.stat().st_size for path in written] == [20480, 40960, 10240, 30720, 20480]
    written = write_shards(source(pictures=pictures), "small", max_bytes=1)
    assert len(written) == 10 and same(read_shards("small", ReadOptions()), source(pictures=pictures))


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"samples_per_shard": 0}, "samples_per_shard is 0"),
        ({"max_bytes": 0}, "max_bytes 0"),
        ({"prefix": "a/b"}, "prefix is 'a/b'"),
        ({"prefix": "../"}, "prefix is"),
        ({"prefix": "."}, "prefix is"),
        ({"output": "s3://bucket/shards"}, "written to this machine"),
    ],
)
def test_arguments_that_cannot_be(arguments, match):
    with pytest.raises(UserError, match=match):
        write_shards(source(), **({"output": "out"} | arguments))
    assert not Path("out").exists()


def test_a_folder_that_is_not_empty(tmp_path):
    Path("out").mkdir()
    write_shards(source(), "out")
    before = digests("out")
    with pytest.raises(UserError, match=r"^out is not empty; give a new folder"):
        write_shards(source(), "out")
    assert digests("out") == before
    Path("file").touch()
    with pytest.raises(UserError, match=r"shards cannot be written to file \(File exists"):
        write_shards(source(), "file")
    with pytest.raises(UserError, match=r"shards cannot be written to file/out \(Not a directory"):
        write_shards(source(), "file/out")


@pytest.mark.parametrize("made_before", [True, False])
@pytest.mark.parametrize(
    "spoil, match",
    [
        (lambda: Path("pictures/7.bin").unlink(), r"there is no picture pictures/7\.bin"),
        (
            lambda: Path("pictures/7.bin").write_bytes(b"<svg>"),
            r"7\.bin \(pairs\.csv, line 8\) is in no format .*b'<svg>'",
        ),
        (lambda: Path("pictures/7.bin").write_bytes(b""), "is in no format"),
    ],
)
def test_a_picture_that_cannot_be_written(spoil, match, made_before):
    pairs = source()
    spoil()
    if made_before:
        Path("out").mkdir()
    with pytest.raises(UserError, match=match):
        write_shards(pairs, "out", samples_per_shard=3)
    assert list(Path("out").iterdir()) == [] if made_before else not Path("out").exists()


@pytest.mark.parametrize("captions", [[["a"], ["a", " "]], [["a"], [""]], [["a"], []]])
def test_an_empty_caption(captions):
    with pytest.raises(UserError, match=r"^pairs\.csv, line 2 has an empty caption; leave it out"):
        write_shards(source(captions), "out")
    with pytest.raises(UserError, match=r"^pairs\.csv, line 1 has an empty label"):
        write_shards(source([["a"], ["b"]], labels=["", "x"]), "out")
    assert not Path("out").exists()


def test_nothing_to_write():
    with pytest.raises(UserError, match=r"^pairs\.csv has no samples to write"):
        write_shards(source([]), "out")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_stays_of_what_was_broken_off(monkeypatch, error):
    def broken(*_):
        raise error

    monkeypatch.setattr(module, "_write_index", broken)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError
    with pytest.raises(expected, match=r"written to out \(No space left on device, .* GB are free\)|^$"):
        write_shards(source(), "out", samples_per_shard=3)
    assert not Path("out").exists()


def test_more_shards_than_names(monkeypatch):
    monkeypatch.setattr(module, "_MOST_SHARDS", 3)
    with pytest.raises(UserError, match="more than 3 shards; raise samples_per_shard"):
        write_shards(source(), "out", samples_per_shard=3)
    assert not Path("out").exists()
    write_shards(source(), "out", samples_per_shard=4)


def test_shards_of_shards():
    write_shards(source(), "one", samples_per_shard=4)
    write_shards(read_shards("one", ReadOptions()), "two", samples_per_shard=3)
    assert same(read_shards("two", ReadOptions()), source())
