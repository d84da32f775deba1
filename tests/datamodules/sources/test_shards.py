"""Samples of tar shards: grouping, captions, the kept index, remote shards, and reading in workers."""

import functools
import io
import json
import multiprocessing
import os
import pickle
import random
import tarfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.sources import remote, shard_samples, shards, tar_members
from datamodules.sources.shards import read_shards
from datamodules.sources.source import CAPTIONS, Column, ReadOptions, Source
from datamodules.sources.write_shards import write_shards
from workbench.errors import Notice, UserError

NOTHING_SAID = ReadOptions()


@pytest.fixture(autouse=True)
def nothing_known(own_cache, monkeypatch):
    monkeypatch.setattr(remote, "_unreachable", set())


def pack(path, members):
    """Write a tar of (name, content) and return its path."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            content = content if isinstance(content, bytes) else content.encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return str(path)


def sample(key, text=None, /, **told):
    members = [(f"{key}.jpg", f"picture {key}"), (f"{key}.txt", text or f"caption {key}")]
    return members + ([(f"{key}.json", json.dumps(told))] if told else [])


def several(count, folder="set", samples=5):
    """Write shards of samples `<shard>-<n>`, and return their folder."""
    for shard in range(count):
        members = [member for number in range(samples) for member in sample(f"{shard}-{number}")]
        pack(f"{folder}/{shard:03d}.tar", members)
    return folder


def read(members, **options):
    return read_shards(pack("one.tar", members), ReadOptions(**options))


def captions(source):
    return source.captions.array.to_pylist()


class Seen:
    """Counts the archives that are opened to be indexed."""

    def __init__(self, monkeypatch):
        self.opened = []

        def opened(shard, show=False, real=tar_members.Shard.open):
            self.opened.append(Path(shard.location).name)
            return real(shard, show)

        monkeypatch.setattr(tar_members.Shard, "open", opened)


@pytest.fixture
def seen(monkeypatch):
    return Seen(monkeypatch)


# What a sample is


def test_a_folder_of_shards():
    source = read_shards(several(3), NOTHING_SAID)
    assert len(source) == 15 and source.name == "set" and source.labels is None
    assert source.captions.array.type == CAPTIONS
    assert captions(source) == [[f"caption {shard}-{number}"] for shard in range(3) for number in range(5)]
    assert [source.pictures.read(row) for row in (0, 7, 14)] == [b"picture 0-0", b"picture 1-2", b"picture 2-4"]
    assert source.pictures.name(7) == source.place(7) == "set/001.tar/1-2.jpg"
    assert source.pictures.names().to_pylist()[6:8] == ["1/1-1.jpg", "1/1-2.jpg"]
    assert source.block_starts.tolist() == [0, 5, 10]


@pytest.mark.parametrize("location", ["set/*.tar", "set/{000..002}.tar", "set/", "set/*"])
def test_patterns(location):
    folder = several(3)
    for name in ("000_stats.json", "._000.tar", ".001.tar.17.tmp"):
        Path(folder, name).touch()
    assert captions(read_shards(location, NOTHING_SAID)) == captions(read_shards(folder, NOTHING_SAID))
    assert len(read_shards("set/001.tar", NOTHING_SAID)) == 5


def test_some_of_the_rows():
    source = read_shards(several(3), NOTHING_SAID).take([1, 3, 11, 12])
    assert captions(source) == [["caption 0-1"], ["caption 0-3"], ["caption 2-1"], ["caption 2-2"]]
    assert source.pictures.read(2) == b"picture 2-1" and source.place(2) == "set/002.tar/2-1.jpg"
    assert source.block_starts.tolist() == [0, 2]


def test_grouping_by_webdatasets_rule():
    source = read(
        [
            ("readme", "no ending"),
            ("__meta__/info.json", "[]"),
            (".hidden.jpg", "x"),
            ("a/b.c/1.jpg", "one"),
            ("a/b.c/1.txt", "first"),
            ("a/b.c/1.seg.png", "not its picture"),
            ("a/1.JPG", "two"),
            ("a/1.TXT", "second"),
            ("./1.webp", "three"),
            ("./1.txt", "third"),
        ]
    )
    assert captions(source) == [["first"], ["second"], ["third"]]
    assert [source.pictures.read(row) for row in range(3)] == [b"one", b"two", b"three"]


@pytest.mark.parametrize("ending", shard_samples.PICTURES)
def test_endings_of_pictures(ending):
    assert read([("1.txt", "caption"), (f"1.{ending}", "x")]).pictures.read(0) == b"x"


def test_several_pictures_of_a_sample():
    members = [("1.jpg", "x"), ("1.png", "y"), ("1.depth.png", "z"), ("1.txt", "caption")]
    with pytest.raises(
        UserError, match=r"several pictures of the sample 1 \(1.jpg, 1.png\); --data\.image_column names the ending"
    ):
        read(members)
    assert read(members, image_column="png").pictures.read(0) == b"y"
    assert read(members, image_column=".depth.png").pictures.read(0) == b"z"


def test_members_that_lie_apart():
    with pytest.raises(UserError, match=r"^one\.tar/1\.txt comes after other samples: .* must follow one another\.$"):
        read([("1.jpg", "x"), ("2.jpg", "x"), ("1.txt", "x"), ("2.txt", "x")])
    with pytest.raises(UserError, match=r"^one\.tar/1\.jpg is the second jpg of its sample"):
        read([("1.jpg", "x"), ("1.jpg", "x")])


# Captions


@pytest.mark.parametrize(
    "text, caption",
    [
        ("None", "None"),
        ("NA\n", "NA"),
        ("1e5\r\n", "1e5"),
        ("two\nlines\n", "two\nlines"),
        ("two ends\n\n", "two ends\n"),
        (" spaces ", " spaces "),
        ("\ufeffmarked", "marked"),
        ("größer 🎉", "größer 🎉"),
    ],
)
def test_captions_are_text(text, caption):
    assert captions(read(sample("1", text))) == [[caption]]
    if not text.startswith("\ufeff"):
        assert captions(read([("1.jpg", "x"), ("1.json", json.dumps({"caption": text}))])) == [[text]]


def test_lines_as_captions():
    assert captions(read(sample("1", "one\n\ntwo\r\nthree"), sidecar="all")) == [["one", "two", "three"]]


@pytest.mark.parametrize(
    "told, found",
    [
        ({"caption": "a", "title": "b"}, ["a"]),
        ({"title": "b", "text": "a"}, ["a"]),
        ({"description": "a", "width": 3}, ["a"]),
        ({"captions": ["a", "b"]}, ["a", "b"]),
        ({"texts": ["a", " ", "b"]}, ["a", "b"]),
        ({"caption": ["a"]}, ["a"]),
        ({"caption": "old", "captions": ["a", "b"]}, ["a", "b"]),
    ],
)
def test_captions_in_json(told, found):
    assert captions(read([("1.jpg", "x"), ("1.json", json.dumps(told))])) == [found]


def test_text_comes_before_json_unless_that_has_several():
    assert captions(read(sample("1", "text", caption="json"))) == [["text"]]
    assert captions(read(sample("1", "text", captions=["a", "b"]))) == [["a", "b"]]
    assert captions(read(sample("1", "text", captions=[]))) == [["text"]]
    assert captions(read(sample("1", "text", captions=3))) == [["text"]]
    assert captions(read([*sample("1", "text"), ("1.json", "broken")])) == [["text"]], "nobody asked for it"


def test_a_caption_by_name():
    members = [*sample("1", "text", prompt="json", caption="other"), ("1.alt.txt", "alternative")]
    assert captions(read(members, caption_column="prompt")) == [["json"]]
    assert captions(read(members, caption_column="alt.txt")) == [["alternative"]]
    with pytest.raises(UserError, match="has no caption"):
        read(members, caption_column="promt")


@pytest.mark.parametrize("value", [None, 3, 1.5, True, {"a": 1}, ["a", None], ["a", 3]])
def test_what_is_no_caption(value):
    with pytest.raises(UserError, match=r"^one\.tar/1\.json has .* for 'caption', which is no text; --data\.caption_"):
        read([("1.jpg", "x"), ("1.json", json.dumps({"caption": value}))])


@pytest.mark.parametrize(
    "member, what",
    [
        (("1.json", "{"), r"1\.json is no JSON \(Expecting"),
        (("1.json", "[" * 100_000), r"1\.json is no JSON \("),
        (("1.json", b"\xff\xfe\xff"), r"1\.json is no JSON \("),
        (("1.json", '{"caption": "\\ud83d"}'), r"1\.json has .* which is no text"),
        (("1.txt", b"caf\xe9"), r"1\.txt is not in UTF-8 \(unexpected end of data at byte 3\)"),
        (("1.txt", b"x" * 2000), r"1\.txt has 2,000 bytes, more than any caption"),
    ],
)
def test_members_that_cannot_be_read(member, what, monkeypatch):
    monkeypatch.setattr(shard_samples, "LONGEST_TEXT", 1999 if len(member[1]) < 3000 else 200_000)
    with pytest.raises(UserError, match=rf"^one\.tar/{what}"):
        read([("1.jpg", "x"), member])


def test_labels():
    members = sample("1", label="cat", number=7) + [("2.jpg", "x"), ("2.txt", "x"), ("2.json", '{"label": 3}')]
    source = read(members, label_column="label")
    assert source.labels.array.to_pylist() == ["cat", "3"] and read(members).labels is None
    assert read([*sample("1"), ("1.cls", "5\n")], label_column="cls").labels[0] == "5"
    with pytest.raises(UserError, match=r"1 of the 2 samples .*: one\.tar/2 has no label \(jpg, txt, json\)"):
        read(members, label_column="number")
    with pytest.raises(UserError, match=r"one\.tar/1 has no label"):
        read(sample("1", label=""), label_column="label")
    with pytest.raises(UserError, match=r"one\.tar/1\.json has true for 'label', which is no class"):
        read(sample("1", label=True), label_column="label")


# What lacks something


def test_samples_that_lack_something_are_counted():
    pack("set/0.tar", [("1.txt", "a"), ("2.jpg", "x"), ("3.jpg", "x"), ("3.txt", " \n"), *sample("4")])
    pack("set/1.tar", [(f"{number}.txt", "a") for number in range(10)])
    for _ in range(2):  # the second time from the index that is kept
        with pytest.raises(UserError) as raised:
            read_shards("set", NOTHING_SAID)
        assert str(raised.value) == (
            "13 of the 14 samples in set lack something: set/0.tar/1 has no picture (txt); set/0.tar/2 has no caption "
            "(jpg); set/0.tar/3 has no caption (jpg, txt); set/1.tar/0 has no picture (txt); set/1.tar/1 has no "
            "picture (txt); .... Leave them out of the shards, or name what they have with --data.image_column or "
            "--data.caption_column."
        )


def test_what_img2dataset_could_not_fetch_is_left_out():
    failed = [("2.txt", "a"), ("2.json", '{"status": "failed_to_download", "caption": "a"}')]
    members = [*sample("1", status="success"), *failed, *sample("3", status="failed_to_resize")]
    for _ in range(2):
        with pytest.warns(Notice, match=r"^1 samples of one\.tar are left out: img2dataset could not fetch"):
            source = read(members)
        assert captions(source) == [["caption 1"], ["caption 3"]] and source.pictures.read(1) == b"picture 3"
    with (
        pytest.raises(UserError, match=r"no samples but those that img2dataset could not fetch"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        read(failed)


def test_a_shard_of_which_nothing_is_left():
    pack("set/0.tar", sample("1"))
    pack("set/1.tar", [("2.json", '{"status": "failed_to_download"}')])
    pack("set/2.tar", sample("3"))
    with pytest.warns(Notice):
        source = read_shards("set", NOTHING_SAID)
    assert source.block_starts.tolist() == [0, 1] and source.place(1) == "set/2.tar/3.jpg"


def test_shards_that_are_none():
    with pytest.raises(UserError, match=r"^one\.tar has no samples"):
        read([])
    with pytest.raises(UserError, match=r"^one\.tar has no samples: no member is called key\.ending\.$"):
        read([("readme", "x")])
    Path("empty").mkdir()
    with pytest.raises(UserError, match="no tar shards in empty, but nothing"):
        read_shards("empty", NOTHING_SAID)
    Path("empty/0.txt").touch()
    with pytest.raises(UserError, match=r"no tar shards in empty, but 0\.txt"):
        read_shards("empty", NOTHING_SAID)
    with pytest.raises(UserError, match="nothing at nowhere/"):
        read_shards("nowhere/*.tar", NOTHING_SAID)
    with tarfile.open("empty/0.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("1.jpg"))
    with pytest.raises(UserError, match=r"0\.tar\.gz is compressed \(gzip\)"):
        read_shards("empty", NOTHING_SAID)


def test_one_bad_shard_among_many():
    folder = several(12)
    path = Path(folder, "007.tar")
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match=r"^set/007\.tar is cut short"):
        read_shards(folder, NOTHING_SAID)
    path.write_bytes(Path(folder, "006.tar").read_bytes()[:2048])
    with pytest.warns(Notice, match=r"^1 shards of set have no end mark, the first set/007\.tar: they may have been"):
        assert len(read_shards(folder, NOTHING_SAID)) == 11 * 5 + 1
    path.unlink()
    path.symlink_to("/nowhere")
    with pytest.raises(UserError, match=r"007\.tar cannot be read \(No such file"):
        read_shards(folder, NOTHING_SAID)


# The index that is kept


def test_a_shard_is_indexed_once(seen, own_cache):
    folder = several(3)
    before = read_shards(folder, NOTHING_SAID)
    assert sorted(seen.opened) == ["000.tar", "001.tar", "002.tar"] and len(list((own_cache / "shards").iterdir())) == 3
    again = read_shards(f"{Path.cwd()}/set/*.tar", NOTHING_SAID)
    assert len(seen.opened) == 3 and captions(again) == captions(before)
    assert again.pictures.read(7) == b"picture 1-2"


def test_shards_are_indexed_anew_for_other_questions(seen):
    folder = several(1)
    for options in (
        {},
        {"sidecar": "all"},
        {"image_column": "jpg"},
        {"caption_column": "txt"},
        {"label_column": "txt"},
    ):
        read_shards(folder, ReadOptions(**options))
    assert len(seen.opened) == 5
    read_shards(folder, ReadOptions(sidecar="all"))
    assert len(seen.opened) == 5


def test_a_changed_shard_is_indexed_anew(seen, own_cache):
    folder = several(3)
    read_shards(folder, NOTHING_SAID)
    pack("set/001.tar", sample("new"))
    source = read_shards(folder, NOTHING_SAID)
    assert seen.opened[3:] == ["001.tar"] and len(source) == 11 and source.pictures.read(5) == b"picture new"
    os.utime("set/002.tar")
    read_shards(folder, NOTHING_SAID)
    assert seen.opened[5:] == ["002.tar"] and len(list((own_cache / "shards").iterdir())) == 3


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_spoilt_index_is_made_anew(seen, own_cache, damage):
    folder = several(1)
    read_shards(folder, NOTHING_SAID)
    (kept,) = (own_cache / "shards").iterdir()
    kept.write_bytes(kept.read_bytes()[:-50] if damage is None else damage)
    assert len(read_shards(folder, NOTHING_SAID)) == 5 and len(seen.opened) == 2


def test_without_a_cache(own_cache, seen):
    own_cache.parent.mkdir()
    own_cache.touch()
    assert len(read_shards(several(1), NOTHING_SAID)) == 5


# Reading


def test_a_shard_that_changes_under_a_reader(own_cache):
    source = read_shards(several(2), NOTHING_SAID)
    assert source.pictures.read(0) == b"picture 0-0"
    later = time.time_ns() + 10**9
    os.utime("set/000.tar", ns=(later, later))
    for _ in range(2):
        with pytest.raises(UserError, match=r"^set/000\.tar changed since it was indexed; start again"):
            source.pictures.read(0)
    assert source.pictures.missing(range(10)) == list(range(5))
    pack("set/001.tar", sample("new"))
    with pytest.raises(UserError, match=r"^set/001\.tar changed"):
        source.pictures.read(5)
    Path("set/001.tar").unlink()
    with pytest.raises(UserError, match=r"^set/001\.tar cannot be read \(No such file"):
        source.pictures.read(6)
    assert source.pictures.missing([3, 7]) == [3, 7] and source.pictures.missing([]) == []


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_few_files_stay_open(monkeypatch):
    monkeypatch.setattr(tar_members, "MOST_OPEN", 4)
    source = read_shards(several(10, samples=2), NOTHING_SAID)
    before = open_files()
    for row in [*range(20), *random.Random(0).choices(range(20), k=100)]:
        assert source.pictures.read(row) == f"picture {row // 2}-{row % 2}".encode()
        assert open_files() <= before + 4
    for row in (*range(20), 12, 0):
        source.pictures.read(row)
    assert list(source.pictures._open) == [8, 9, 6, 0], "those that were used last"
    del source
    assert open_files() == before


def test_threads_that_read_at_once(monkeypatch):
    monkeypatch.setattr(tar_members, "MOST_OPEN", 1)
    source = read_shards(several(10, samples=2), NOTHING_SAID)
    wrong = []

    def work(seed):
        try:
            for row in random.Random(seed).choices(range(20), k=300):
                if source.pictures.read(row) != f"picture {row // 2}-{row % 2}".encode():
                    wrong.append(row)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_copy_for_another_process_has_nothing_open():
    source = read_shards(several(2), NOTHING_SAID)
    source.pictures.read(0)
    copy = pickle.loads(pickle.dumps(source))
    assert not copy.pictures._open and source.pictures._open
    assert copy.pictures.read(9) == b"picture 1-4" and captions(copy) == captions(source)
    assert copy.place(9) == "set/001.tar/1-4.jpg"


def test_a_fork_keeps_nothing_of_its_parents_open():
    source = read_shards(several(2), NOTHING_SAID)
    source.pictures.read(0)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=lambda: queue.put((source.pictures.read(5), list(source.pictures._open))))
    process.start()
    content, opened = queue.get(timeout=20)
    process.join()
    assert content == b"picture 1-0" and opened == [1] and list(source.pictures._open) == [0]
    assert source.pictures.read(1) == b"picture 0-1"


class Reader(Dataset):
    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, row):
        return row, os.getpid(), self.pictures.read(row)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers(start):
    source = read_shards(several(6), NOTHING_SAID)
    assert source.pictures.read(0) == b"picture 0-0", "so that a file is open when they start"
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0)).tolist()
    loader = DataLoader(
        *(Reader(source.pictures), 3), sampler=order, num_workers=2, multiprocessing_context=start, collate_fn=list
    )
    found = [item for batch in loader for item in batch]
    assert [(row, content) for row, _, content in found] == [
        (row, f"picture {row // 5}-{row % 5}".encode()) for row in order
    ]
    assert len({process for _, process, _ in found}) == 2 and os.getpid() not in {process for _, process, _ in found}
    assert source.pictures.read(0) == b"picture 0-0", "the workers closed only what was theirs"


# Remote shards


def serve(file_server, folder, under="s"):
    for path in Path(folder).iterdir():
        file_server.address(f"{under}/{path.name}", path.read_bytes())
    return f"{file_server.url}/{under}"


def test_remote_shards(file_server, own_cache, caplog):
    address = serve(file_server, several(3))
    with caplog.at_level("INFO"):
        source = read_shards(f"{address}/{{000..002}}.tar", NOTHING_SAID)
    assert "3 shards (6.14e-05 GB) of http" in caplog.text and "are fetched once, to" in caplog.text
    assert captions(source) == captions(read_shards("set", NOTHING_SAID))
    assert [source.pictures.read(row) for row in (0, 14)] == [b"picture 0-0", b"picture 2-4"]
    assert source.place(0) == f"{address}/000.tar/0-0.jpg" and source.pictures.missing(range(15)) == []
    fetched = [asked for asked in file_server.asked if asked[0].endswith(".tar")]
    assert sorted(fetched) == [(f"s/00{number}.tar", 0) for number in range(3)]
    caplog.clear()
    again = read_shards(f"{address}/*.tar", NOTHING_SAID)
    assert captions(again) == captions(source) and again.pictures.read(3) == b"picture 0-3"
    assert (
        "fetched" not in caplog.text and len([asked for asked in file_server.asked if asked[0].endswith(".tar")]) == 3
    )


def test_remote_shards_of_a_server_that_fails_in_the_middle(file_server, own_cache, monkeypatch):
    """Both when they are indexed and when one that has gone from the cache is read."""
    # How much is asked for again is tested in test_remote.
    monkeypatch.setattr(shards, "_THREADS", 1)
    address = serve(file_server, several(2))
    half = len(file_server.files["s/000.tar"]) // 2
    breaks = functools.partial(file_server.whole, size=half)
    file_server.answers.append(breaks)
    source = read_shards(f"{address}/{{000..001}}.tar", NOTHING_SAID)
    assert [path for path, _ in file_server.asked].count("s/000.tar") == 2
    for path in (own_cache / "remote").glob("*.tar"):
        path.unlink()
    file_server.asked.clear()
    file_server.answers.append(breaks)
    expected = [f"picture {row // 5}-{row % 5}".encode() for row in range(10)]
    assert [source.pictures.read(row) for row in range(10)] == expected
    assert [path for path, _ in file_server.asked] == ["s/000.tar", "s/000.tar", "s/001.tar"]


def test_a_remote_shard_that_was_deleted_is_fetched_again(file_server, own_cache):
    source = read_shards(f"{serve(file_server, several(2))}/{{000..001}}.tar", NOTHING_SAID)
    assert source.pictures.read(0) == b"picture 0-0"
    for path in (own_cache / "remote").glob("*.tar"):
        path.unlink()
    file_server.asked.clear()
    assert source.pictures.read(1) == b"picture 0-1" and file_server.asked == [], "what is open can be read"
    assert source.pictures.read(5) == b"picture 1-0" and file_server.asked == [("s/001.tar", 0)]


def test_a_remote_shard_that_changed(file_server, own_cache):
    address = serve(file_server, several(2))
    source = read_shards(f"{address}/{{000..001}}.tar", NOTHING_SAID)
    file_server.files["s/001.tar"] = Path(pack("new.tar", sample("new"))).read_bytes()
    assert source.pictures.read(5) == b"picture 1-0", "there is a copy of what was indexed"
    for path in (own_cache / "remote").glob("*.tar"):
        path.unlink()
    source.pictures._open.clear()
    with pytest.raises(UserError, match=r"/s/001\.tar is not what it was: it changed on the server\. Start again"):
        source.pictures.read(5)
    again = read_shards(f"{address}/{{000..001}}.tar", NOTHING_SAID)
    assert len(again) == 6 and again.pictures.read(5) == b"picture new"


def test_more_shards_than_the_cache_holds(file_server, own_cache, monkeypatch):
    address = serve(file_server, several(5))
    size = len(file_server.files["s/000.tar"])
    monkeypatch.setenv("CLIP_WORKBENCH_REMOTE_CACHE_GB", str(2.5 * size / 1e9))
    monkeypatch.setattr(tar_members, "MOST_COPIES_OPEN", 1)
    monkeypatch.setattr(shards, "_THREADS", 1)
    with pytest.warns(Notice, match=r"0\.000102 GB and the cache holds 5\.12e-05 GB, so every epoch fetches"):
        source = read_shards(f"{address}/{{000..004}}.tar", NOTHING_SAID)
    for row in [*range(25), *random.Random(0).choices(range(25), k=25)]:
        assert source.pictures.read(row) == f"picture {row // 5}-{row % 5}".encode()
        assert len(list((own_cache / "remote").glob("*.tar"))) <= 2


def test_remote_shards_that_are_not_there(file_server):
    address = serve(file_server, several(1))
    with pytest.raises(UserError, match=r"/s/001\.tar could not be fetched \(HTTP 404"):
        read_shards(f"{address}/{{000..001}}.tar", NOTHING_SAID)
    with pytest.raises(UserError, match=r"nothing at http.*/t/\*\.tar|t/\*\.tar cannot be looked up"):
        read_shards(f"{file_server.url}/t/", NOTHING_SAID)


# The index beside shards of ours


def written(folder="ours", labels=None):
    source = read_shards(several(2), NOTHING_SAID)
    pictures = Prefixed(source.pictures)
    labels = None if labels is None else Column(labels)
    write_shards(Source("set", pictures, source.captions, source.place, labels), folder, samples_per_shard=4)
    return folder


class Prefixed:
    """Pictures that begin like a JPEG."""

    def __init__(self, pictures):
        self.pictures = pictures
        self.name = pictures.name

    def read(self, row):
        return b"\xff\xd8\xff" + self.pictures.read(row)


def test_remote_shards_with_an_index_are_fetched_when_they_are_read(file_server):
    address = serve(file_server, written())
    expected = read_shards("ours", NOTHING_SAID)
    for location, rows in ((f"{address}/{{00000..00002}}.tar", 10), (address, 10), (f"{address}/00001.tar", 4)):
        source = read_shards(location, NOTHING_SAID)
        assert {path for path, _ in file_server.asked} == {"s/index.parquet"} and len(source) == rows
    assert captions(source) == captions(expected)[4:8] and source.block_starts.tolist() == [0]
    assert source.pictures.read(1) == expected.pictures.read(5)
    assert [path for path, _ in file_server.asked][1:] == ["s/00001.tar"]


def test_an_index_that_fits_is_used(seen):
    folder = written()
    seen.opened.clear()
    source = read_shards(folder, NOTHING_SAID)
    assert seen.opened == [] and captions(source) == captions(read_shards("set", NOTHING_SAID))
    assert source.block_starts.tolist() == [0, 4, 8]
    assert captions(read_shards(f"{folder}/{{00000,00002}}.tar", NOTHING_SAID)) == (
        captions(source)[:4] + captions(source)[8:]
    )
    assert seen.opened == []
    os.chdir(folder)
    assert len(read_shards("00001.tar", NOTHING_SAID)) == 4 and seen.opened == []


@pytest.mark.parametrize(
    "options", [{"sidecar": "all"}, {"image_column": "jpg"}, {"caption_column": "txt"}, {"label_column": "cls"}]
)
def test_an_index_that_was_not_made_for_the_question_is_not_used(seen, options):
    folder = written()
    seen.opened.clear()
    if "label_column" in options:
        with pytest.raises(UserError, match="has no label"):
            read_shards(folder, ReadOptions(**options))
    else:
        assert len(read_shards(folder, ReadOptions(**options))) == 10
    assert len(seen.opened) == 3


def test_labels_of_an_index(seen):
    folder = written(labels=[str(number) for number in range(10)])
    seen.opened.clear()
    source = read_shards(folder, ReadOptions(label_column="label"))
    assert source.labels.array.to_pylist() == [str(number) for number in range(10)] and seen.opened == []
    with pytest.raises(UserError, match="has no label"):
        read_shards(folder, ReadOptions(label_column="cls"))
    assert captions(read_shards(folder, ReadOptions(label_column="label", captions=False)))[3] == ["3"]
    Path(folder, "index.parquet").unlink()
    assert read_shards(folder, ReadOptions(label_column="label")).labels.array.equals(source.labels.array)


def test_shards_that_were_written_since_their_index(seen):
    folder = written()
    path = Path(folder, "00001.tar")
    content = path.read_bytes()
    time.sleep(0.02)
    path.write_bytes(content.replace(b"caption 0-4", b"another one"))
    seen.opened.clear()
    assert ["another one"] in captions(read_shards(folder, NOTHING_SAID)) and len(seen.opened) == 3


def damage_sizes(table, told):
    told["sizes"]["00000.tar"] += 1


def damage_version(table, told):
    told["version"] = 99


def damage_names(table, told):
    told["sizes"]["../x.tar"] = 5


def column(name, values):
    def damage(table, told):
        return table.set_column(table.schema.get_field_index(name), name, [values(table[name].to_pylist())])

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        damage_sizes,
        damage_version,
        damage_names,
        lambda table, told: told.clear(),
        lambda table, told: table.drop_columns("captions"),
        lambda table, told: table.slice(0, 0),
        lambda table, told: table.slice(0, 5),
        lambda table, told: table.take(list(range(10))[::-1]),
        column("offset", lambda values: [-1, *values[1:]]),
        column("offset", lambda values: [1 << 62, *values[1:]]),
        column("size", lambda values: [1 << 62, *values[1:]]),
        column("size", lambda values: [-1, *values[1:]]),
        column("size", lambda values: [None, *values[1:]]),
        column("captions", lambda values: [[], *values[1:]]),
        column("captions", lambda values: [[None], *values[1:]]),
        column("captions", lambda values: [None, *values[1:]]),
        column("captions", lambda values: list(range(10))),
        column("member", lambda values: [None, *values[1:]]),
    ],
)
def test_an_index_that_does_not_fit_is_not_used(seen, damage):
    folder = written()
    path = Path(folder, "index.parquet")
    table = pq.read_table(path)
    told = json.loads(table.schema.metadata[shards.WRITTEN_METADATA])
    damaged = damage(table, told)
    table = table if damaged is None else damaged
    pq.write_table(table.replace_schema_metadata({shards.WRITTEN_METADATA: json.dumps(told)}), path)
    seen.opened.clear()
    source = read_shards(folder, NOTHING_SAID)
    assert len(seen.opened) == 3 and captions(source) == captions(read_shards("set", NOTHING_SAID))


def test_a_file_that_is_called_like_an_index(seen):
    folder = several(1, "plain")
    Path(folder, "index.parquet").write_bytes(b"nonsense")
    assert len(read_shards(folder, NOTHING_SAID)) == 5
    pq.write_table(pq.read_table(f"{written()}/index.parquet").replace_schema_metadata(), f"{folder}/index.parquet")
    assert len(read_shards(folder, NOTHING_SAID)) == 5


def test_blocks_are_whole():
    source = read_shards(several(4, samples=3), NOTHING_SAID)
    assert np.diff([*source.block_starts, len(source)]).tolist() == [3, 3, 3, 3]
