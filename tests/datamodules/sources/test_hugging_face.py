"""Folders as `datasets` saves them: mapped, of one split or named by one; the layout is that of datasets 5.2."""

import json
import multiprocessing
import pickle

import numpy as np
import pyarrow as pa
import pytest

from datamodules.sources import hugging_face, read_source
from datamodules.sources.source import ReadOptions
from workbench.errors import UserError

CAPTIONS = ["None", "NA", "null", "1e5", "true", "=1+1", "trailing  ", 'a "q"', "two\nlines", "a dog 🐕"]
BYTES = [bytes([n]) * (1000 + n) for n in range(10)]
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
STORED = [{"bytes": content, "path": f"{n}.png"} for n, content in enumerate(BYTES)]
FEATURES = {
    "image": {"_type": "Image"},
    "caption": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
}


def save(folder, images=STORED, captions=CAPTIONS, shards=2, features=FEATURES, batch=3, kind=IMAGE, **columns):
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"label": pa.array([0, 1] * 5)[: len(captions)], **columns}
    table = pa.table({"image": pa.array(images, kind), "caption": captions, **columns})
    names = [f"data-{n:05}-of-{shards:05}.arrow" for n in range(shards)]
    step = -(-len(table) // shards)
    for n, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table[n * step : (n + 1) * step], max_chunksize=batch)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return str(folder)


def read(location, **options):
    return read_source(str(location), ReadOptions(**options))


def refusal(location, **options):
    with pytest.raises(UserError) as error:
        read(location, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def contents(source):
    return [source.pictures.read(row) for row in range(len(source))]


@pytest.mark.parametrize("kind", [IMAGE, pa.binary(), pa.large_binary()])
def test_stored_pictures(tmp_path, kind):
    source = read(save(tmp_path / "saved", STORED if kind == IMAGE else BYTES, kind=kind), label_column="label")
    assert contents(source) == BYTES and [caption for (caption,) in source.captions] == CAPTIONS
    assert source.labels[:3] == ["cat", "dog", "cat"] and source.block_starts is None
    assert source.place(6) == f"{tmp_path}/saved/data-00001-of-00002.arrow, row 2"
    some = source.take([9, 0, 4, 4])
    assert contents(some) == [BYTES[n] for n in (9, 0, 4, 4)] and some.place(0).endswith("row 5")
    assert len(set(source.pictures.names().to_pylist())) == 10 and source.pictures.missing(range(10)) == []


def test_paths_and_captions_of_classes(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"picture")
    paths = [{"bytes": None, "path": "a.jpg"}] * 9 + [{"bytes": None, "path": "b.jpg"}]
    location = save(tmp_path / "saved", paths, features=None)
    source = read(location, root=str(tmp_path))
    assert source.pictures.read(3) == b"picture" and source.pictures.missing(range(10)) == [9]
    location = save(tmp_path / "saved", ["a.jpg"] * 10, kind=pa.string())
    source = read(location, root=str(tmp_path), caption_column="label")
    assert source.pictures.read(3) == b"picture" and list(source.captions)[:2] == [["cat"], ["dog"]]
    kept = [{"bytes": b"x", "path": None}, {"bytes": None, "path": None}]
    source = read(save(tmp_path / "saved", [*paths[:8], *kept]), root=str(tmp_path))
    assert contents(source.take(range(9))) == [b"picture"] * 8 + [b"x"] and source.pictures.missing([8, 9]) == [9]


def test_splits(tmp_path):
    save(tmp_path / "d" / "train")
    save(tmp_path / "d" / "test", STORED[:2], CAPTIONS[:2])
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert refusal("d") == "d has the splits train, test; name one, such as d/train."
    assert refusal("d/val") == "d has no split 'val'; it has train, test."
    assert len(read("d/train")) == 10 and len(read("d/test/")) == 2
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["test"]}')
    assert len(read("d")) == 2
    (tmp_path / "d" / "dataset_dict.json").unlink()
    (tmp_path / "d" / "train").rename(tmp_path / "d" / "more")
    assert "d is no data set that `datasets` saved, but d/more is" in refusal("d")


def test_pictures_are_mapped_and_not_loaded(tmp_path):
    before = pa.total_allocated_bytes()
    source = read(save(tmp_path / "saved", [bytes(1_000_000)] * 10, kind=pa.binary()))
    assert contents(source) == [bytes(1_000_000)] * 10
    assert pa.total_allocated_bytes() - before < 100_000
    assert len(pickle.dumps(source.pictures)) < 5000
    assert pickle.loads(pickle.dumps(source.pictures)).read(9) == bytes(1_000_000)


def _read_in_worker(pictures, rows, answers):
    answers.put([pictures.read(row) for row in rows])


def test_a_forked_process_reads_too(tmp_path):
    pictures = read(save(tmp_path / "saved")).pictures
    pictures.read(0)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    worker = context.Process(target=_read_in_worker, args=(pictures, [9, 0], answers))
    worker.start()
    assert answers.get() == [BYTES[9], BYTES[0]]
    worker.join()
    assert worker.exitcode == 0


def test_wrong_folders(tmp_path):
    folder = tmp_path / "saved"
    save(folder)
    for name in ("../saved/data-00000-of-00002.arrow", "..", "", None, str(folder / "data-00000-of-00002.arrow")):
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        assert "state.json names" in refusal(folder) and "no file beside it" in refusal(folder)
    for state in ("{", "[]", "{}", '{"_data_files": 7}', '{"_data_files": ["a"]}', "[" * 100_000):
        (folder / "state.json").write_text(state)
        assert "state.json" in refusal(folder) and "save the data set again" in refusal(folder)
    save(folder)
    (folder / "data-00001-of-00002.arrow").write_bytes(b"nothing")
    assert "data-00001-of-00002.arrow cannot be read as an Arrow stream" in refusal(folder)
    (folder / "data-00001-of-00002.arrow").unlink()
    assert "data-00001-of-00002.arrow cannot be read as an Arrow stream" in refusal(folder)
    (folder / "dataset_info.json").unlink()
    assert "no picture" in refusal(folder) or "Looked for" in refusal(folder)
    (tmp_path / "dataset_dict.json").write_text('{"splits": 7}')
    assert "names no splits" in refusal(tmp_path)


def test_wrong_rows(tmp_path):
    folder = tmp_path / "saved"
    assert "row 5: the caption is empty" in refusal(save(folder, captions=[*CAPTIONS[:9], None]))
    label = pa.array([0, 1, 0, -1, None, 7, 0, 0, 0, 0])
    said = refusal(save(folder, label=label), label_column="label")
    assert "data-00000-of-00002.arrow, row 4: the label is empty" in said and "3 such rows" in said
    assert "has no row" in refusal(save(folder, [], pa.array([], pa.string()), label=pa.array([], pa.int64())))
    assert "of type int64; a caption is text" in refusal(save(folder, features=None), caption_column="label")
    said = refusal(save(folder, number=pa.array(range(10))), caption_column="nmber")
    assert "no column 'nmber' (--data.caption_column); did you mean 'number'? It has image, caption" in said


def test_offsets_that_lead_out_of_the_file_are_refused(tmp_path):
    """The file is mapped as it is: an offset that is wrong would read other memory."""
    folder = tmp_path / "saved"
    save(folder, BYTES, shards=1, batch=10, kind=pa.binary())
    file = folder / "data-00000-of-00001.arrow"
    ends = np.cumsum([0, *map(len, BYTES)]).astype(np.int32)
    damaged = ends.copy()
    damaged[5] = 1 << 30
    assert file.read_bytes().count(ends.tobytes()) == 1
    file.write_bytes(file.read_bytes().replace(ends.tobytes(), damaged.tobytes()))
    assert "data-00000-of-00001.arrow is damaged" in refusal(folder)


def test_what_changes_later_is_told(tmp_path):
    source = read(save(tmp_path / "saved"))
    (tmp_path / "saved" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UserError, match="data-00001-of-00002.arrow cannot be read"):
        source.pictures.read(9)
    assert hugging_face.is_saved_dataset(tmp_path / "saved")
