"""Parquet: paths and bytes, one file and several; stored pictures are read a row group at a time, in any process."""

import json
import multiprocessing
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.sources import parquet, read_source
from datamodules.sources.source import ReadOptions
from workbench.errors import UserError

CAPTIONS = ["None", "NA", "null", "1e5", "true", "=1+1", "trailing  ", 'a "q"', "two\nlines", "a dog 🐕"]
BYTES = [bytes([n]) * (1000 + n) for n in range(10)]
IN_BYTES = {
    "binary": (pa.binary(), BYTES),
    "large_binary": (pa.large_binary(), BYTES),
    "struct": (
        pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        [{"bytes": content, "path": "same.jpg"} for content in BYTES],
    ),
}


def write(path, images=BYTES, captions=CAPTIONS, kind=None, size=4, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": pa.array(images, kind), "caption": pa.array(captions, pa.string()), **columns})
    pq.write_table(table, path, row_group_size=size)
    return str(path)


def read(location, **options):
    return read_source(str(location), ReadOptions(**options))


def refusal(location, **options):
    with pytest.raises(UserError) as error:
        read(location, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def contents(source):
    return [source.pictures.read(row) for row in range(len(source))]


@pytest.mark.parametrize("kind", IN_BYTES)
def test_stored_pictures(tmp_path, kind):
    source = read(write(tmp_path / "a.parquet", IN_BYTES[kind][1], kind=IN_BYTES[kind][0]))
    assert contents(source) == BYTES and [caption for (caption,) in source.captions] == CAPTIONS
    assert source.block_starts.tolist() == [0, 4, 8]
    assert source.place(5) == f"{tmp_path}/a.parquet, row 6" and source.pictures.name(5) == f"{tmp_path}/a.parquet/6"
    assert len(set(source.pictures.names().to_pylist())) == 10, "no two rows are known to have one picture"
    some = source.take(np.array([1, 2, 9]))
    assert contents(some) == [BYTES[n] for n in (1, 2, 9)] and some.captions[2] == ["a dog 🐕"]
    assert some.place(2) == f"{tmp_path}/a.parquet, row 10" and some.block_starts.tolist() == [0, 2]
    assert contents(some.take([2])) == [BYTES[9]]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_paths(tmp_path, kind):
    write(tmp_path / "a.parquet", ["a.jpg"] * 9 + ["b.jpg"], kind=kind)
    (tmp_path / "a.jpg").write_bytes(b"picture")
    source = read(tmp_path / "a.parquet")
    assert source.pictures.read(8) == b"picture" and source.pictures.missing(range(10)) == [9]
    assert source.block_starts is None and source.place(9) == f"{tmp_path}/a.parquet, row 10"


def test_structures_with_paths_alone_and_with_some(tmp_path):
    kind = IN_BYTES["struct"][0]
    (tmp_path / "a.jpg").write_bytes(b"picture")
    only = [{"bytes": None, "path": "a.jpg"}] * 10
    source = read(write(tmp_path / "a.parquet", only, kind=kind))
    assert source.block_starts is None and source.pictures.paths[3] == "a.jpg" and contents(source) == [b"picture"] * 10
    some = [
        *only[:7],
        {"bytes": b"7", "path": None},
        {"bytes": None, "path": None},
        {"bytes": None, "path": "../x.jpg"},
    ]
    source = read(write(tmp_path / "b.parquet", some, kind=kind))
    assert contents(source.take(range(8))) == [b"picture"] * 7 + [b"7"]
    with pytest.raises(UserError, match=r"b.parquet, row 9: there is no picture"):
        source.pictures.read(8)
    with pytest.raises(UserError, match=r"b.parquet, row 10: ../x.jpg leads out"):
        source.pictures.read(9)


def test_several_captions_and_classes(tmp_path):
    lists = [[text, "second"] for text in CAPTIONS]
    features = {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}, "image": {"_type": "Image"}}
    table = pa.table({"image": BYTES, "captions": lists, "label": [0, 1] * 5, "number": range(10)})
    schema = table.schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table.cast(schema), tmp_path / "a.parquet")
    source = read(tmp_path / "a.parquet", label_column="label")
    assert list(source.captions) == lists and source.labels[:3] == ["cat", "dog", "cat"]
    assert list(read(tmp_path / "a.parquet", caption_column="label").captions)[1] == ["dog"]
    assert list(read(tmp_path / "a.parquet", captions=False).captions)[1] == ["dog"]
    assert read(tmp_path / "a.parquet", label_column="number").labels[9] == "9"


def test_several_files(tmp_path):
    write(tmp_path / "d" / "b.parquet", BYTES[6:], CAPTIONS[6:], size=3)
    write(tmp_path / "d" / "a.parquet", BYTES[:6], CAPTIONS[:6])
    for name in ("aa", "z"):  # They have a row group of no rows.
        write(tmp_path / "d" / f"{name}.parquet", [], [], kind=pa.binary())
    for location in ("d", "d/*.parquet", "d/{a,aa,b,z}.parquet"):
        source = read(location)
        assert contents(source) == BYTES and [text for (text,) in source.captions] == CAPTIONS
        assert source.block_starts.tolist() == [0, 4, 6, 9] and source.place(7) == "d/b.parquet, row 2"
    write(tmp_path / "d" / "c.parquet", ["a.jpg"], ["x"])
    assert "'image' is of type binary in d/a.parquet and string in d/c.parquet" in refusal("d")
    pq.write_table(pa.table({"image": BYTES, "text": CAPTIONS}), "d/c.parquet")
    assert "d/c.parquet has no column 'caption'" in refusal("d")


def test_the_hubs_layout(tmp_path):
    hub = tmp_path / "datasets--a--b"
    (hub / "blobs").mkdir(parents=True)
    write(hub / "blobs" / "0123")
    for split in ("train", "test"):
        file = hub / "snapshots" / "abc" / "data" / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to("../../../blobs/0123")
    (hub / "snapshots" / "old").mkdir()
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("abc")
    said = refusal(hub)
    assert "holds the splits test (1 file), train (1 file)" in said and "data/train-*.parquet" in said
    assert contents(read(hub / "snapshots" / "abc" / "data" / "train-*.parquet")) == BYTES
    file.unlink()
    assert contents(read(hub)) == BYTES
    (hub / "refs" / "main").unlink()
    assert "has 2 snapshots" in refusal(hub)


# Reading lazily


@pytest.fixture
def groups_read(monkeypatch):
    """Which row groups were read of the pictures; any other way of reading them is an error."""
    read, real, batches = [], pq.ParquetFile.read_row_group, pq.ParquetFile.iter_batches

    def read_row_group(file, number, columns, **options):
        assert all(column.startswith("image") for column in columns)
        read.append(number)
        return real(file, number, columns=columns, **options)

    def iter_batches(file, size, columns, **options):
        assert not any(column.startswith("image") for column in columns)
        return batches(file, size, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", read_row_group)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    monkeypatch.setattr(pq.ParquetFile, "read", None)
    return read


def test_a_row_group_is_read_when_it_is_needed(tmp_path, groups_read):
    images = [bytes(100_000) for _ in range(50)]
    source = read(write(tmp_path / "a.parquet", images, ["x"] * 50, size=5))
    assert groups_read == []
    for row in (12, 10, 14, 11):
        source.pictures.read(row)
    assert groups_read == [2]
    before = pa.total_allocated_bytes()
    for row in range(50):
        source.pictures.read(row)
    assert groups_read == [2, 0, 1, 3, 4, 5, 6, 7, 8, 9], "the last four are kept"
    assert pa.total_allocated_bytes() - before < 4 * 600_000
    source.pictures.read(49)
    source.pictures.read(0)
    assert groups_read[-1] == 0


def test_kept_row_groups_are_bounded_in_bytes(tmp_path, groups_read, monkeypatch):
    monkeypatch.setattr("datamodules.sources.stored_pictures._KEPT_BYTES", 5000)
    source = read(write(tmp_path / "a.parquet", BYTES, size=2))
    for row in (0, 2, 4, 6, 8, 6, 4, 2, 0):
        source.pictures.read(row)
    assert groups_read == [0, 1, 2, 3, 4, 2, 1, 0], "two of 2,000 bytes and what describes them"


def test_large_row_groups_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "LARGEST_GROUP", 5000)
    write(tmp_path / "a.parquet", size=2)
    read(tmp_path / "a.parquet")
    write(tmp_path / "a.parquet", size=5)
    assert "pictures in a row group" in refusal(tmp_path / "a.parquet")


def _read_in_worker(pictures, rows, answers):
    answers.put([pictures.read(row) for row in rows])


def test_a_forked_process_reads_too(tmp_path):
    pictures = read(write(tmp_path / "a.parquet")).take([0, 5, 9]).pictures
    pictures.read(1)  # Opened here, it must not be used there.
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    worker = context.Process(target=_read_in_worker, args=(pictures, [2, 0, 1], answers))
    worker.start()
    assert answers.get() == [BYTES[9], BYTES[0], BYTES[5]]
    worker.join()
    assert worker.exitcode == 0


def test_a_forked_process_opens_files_of_its_own(tmp_path, monkeypatch):
    pictures = read(write(tmp_path / "a.parquet")).pictures
    pictures.read(0)
    opened = []
    monkeypatch.setattr(parquet, "_open", lambda table: opened.append(table.name) or pq.ParquetFile(table.location))
    pictures.read(1)
    assert opened == []
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert pictures.read(1) == BYTES[1] and len(opened) == 1


def test_what_is_pickled_is_small(tmp_path):
    pictures = read(write(tmp_path / "a.parquet", [bytes(100_000)] * 10)).pictures
    pictures.read(0)
    assert len(pickle.dumps(pictures)) < 5000
    assert pickle.loads(pickle.dumps(pictures)).read(3) == bytes(100_000)


# What is wrong


def test_wrong_files(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    assert "a.parquet cannot be read as Parquet" in refusal("a.parquet")
    write(tmp_path / "a.parquet", number=range(10))
    said = refusal("a.parquet", caption_column="number")
    assert "The column 'number' of a.parquet is of type int64; a caption is text" in said
    assert "'number' of a.parquet is of type int64; a picture is bytes" in refusal("a.parquet", image_column="number")
    pq.write_table(pa.table({"image": [1, 2], "bild": ["a.jpg", "b.jpg"], "caption": ["x", "y"]}), "b.parquet")
    said = refusal("b.parquet")
    assert "it has image, bild, caption" in said and "--data.image_column 'bild'" in said
    write(tmp_path / "c.parquet", captions=[*CAPTIONS[:8], None, " "])
    said = refusal("c.parquet")
    assert "c.parquet, row 9: the caption is empty" in said and "2 such rows, the next one is c.parquet, row 10" in said
    pq.write_table(pa.table({"image": [1, 2], "number": [3, 4], "caption": ["x", "y"]}), "b.parquet")
    assert "The column 'image' of b.parquet is of type int64; a picture is" in refusal("b.parquet")
    write(tmp_path / "d.parquet", [], [], kind=pa.binary())
    assert "d.parquet has no row" in refusal("d.parquet")


def test_text_that_is_none(tmp_path):
    """Parquet calls bytes text without looking at them."""
    texts = pa.array([b"fine", "café".encode(), "café".encode("latin-1")]).view(pa.string())
    pq.write_table(pa.table({"image": BYTES[:3], "caption": texts}), "a.parquet")
    assert "a.parquet, row 3: the caption is not UTF-8 text" in refusal("a.parquet")
    pq.write_table(pa.table({"image": texts, "caption": CAPTIONS[:3]}), "a.parquet")
    assert "a.parquet, row 3: the picture path is not UTF-8 text" in refusal("a.parquet")


def test_a_file_that_is_replaced_is_told(tmp_path):
    source = read(write(tmp_path / "a.parquet", size=2))
    write(tmp_path / "a.parquet", BYTES[:3], CAPTIONS[:3], size=1)
    with pytest.raises(UserError, match=r"a.parquet, row 10: the picture cannot be read"):
        source.pictures.read(9)
