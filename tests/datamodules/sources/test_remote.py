"""Patterns, and copies from a real server that does what servers do; eviction under readers."""

import errno
import functools
import multiprocessing
import os
import random
import threading
import time
import warnings
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from datamodules.sources import remote
from datamodules.sources.remote import current_version, expand, is_remote, local_copy, local_path, open_copy
from workbench.errors import Notice, UserError
from workbench.weights import download
from workbench.weights.download import Version

CONTENT = random.Random(0).randbytes(400_000)
HALF = 3 << 16


@pytest.fixture(autouse=True)
def nothing_known(own_cache, monkeypatch):
    monkeypatch.setattr(remote, "_unreachable", set())
    monkeypatch.setattr(download, "FIRST_WAIT", 0.01)


@pytest.fixture
def cache(own_cache):
    return own_cache / "remote"


def copies(cache):
    return sorted(path.name for path in cache.iterdir() if path.is_file() and path.suffix != ".version")


# Locations


@pytest.mark.parametrize(
    "location, remotely",
    [
        ("https://host/a.tar", True),
        ("HTTP://host/a.tar", True),
        ("s3://bucket/{0..1}.tar", True),
        ("hf://datasets/a/b", True),
        ("simplecache::s3://bucket/a", True),
        ("file:///a.tar", False),
        ("C:\\data\\a.tar", False),
        ("C:/data/a.tar", False),
        ("c://data/a.tar", False),
        ("/a/b.tar", False),
        ("a::b/c.tar", False),
        ("", False),
    ],
)
def test_what_is_remote(location, remotely):
    assert is_remote(location) == remotely


def test_paths_of_local_locations(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("file:///a%20b/c.tar") == "/a b/c.tar" and local_path("~/a") == "/home/me/a"
    assert local_path(Path("a/b%20c")) == "a/b%20c"


# Patterns


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("{008..011}.tar", ["008.tar", "009.tar", "010.tar", "011.tar"]),
        ("{9..11}.tar", ["10.tar", "11.tar", "9.tar"]),
        ("{3..1}", ["1", "2", "3"]),
        ("{00..10..5}", ["00", "05", "10"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("{a,b{1,2}}x", ["ax", "b1x", "b2x"]),
        ("{train-{0..1},val-{0..0}}.tar", ["train-0.tar", "train-1.tar", "val-0.tar"]),
        ("{a,}x", ["ax", "x"]),
        ("{a,a}", ["a"]),
        ("{x}", ["{x}"]),
        ("{x{0..1}}", ["{x0}", "{x1}"]),
        ("{0..", ["{0.."]),
        ("}{0..1}", ["}0", "}1"]),
        ("a.tar?x={1,2}&y=*", ["a.tar?x=1&y=*", "a.tar?x=2&y=*"]),
    ],
)
def test_braces_of_an_address(pattern, names):
    assert expand(f"https://host/{pattern}") == [f"https://host/{name}" for name in names]


def test_local_patterns(tmp_path):
    for name in ("a/000.tar", "a/001.tar", "a/b/002.tar", "a/x[1].tar", "a/{0..1}.tar", "a/note.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert expand("a/{000..001}.tar") == ["a/000.tar", "a/001.tar"]
    assert expand("a/*.tar") == ["a/000.tar", "a/001.tar", "a/x[1].tar", "a/{0..1}.tar"]
    assert expand("a/**/0*.tar") == ["a/000.tar", "a/001.tar", "a/b/002.tar"]
    assert expand("a/{b/,}00[12].tar") == ["a/001.tar", "a/b/002.tar"]
    assert expand("a/x[1].tar") == ["a/x[1].tar"] and expand("a/{0..1}.tar") == ["a/{0..1}.tar"], "it is there"
    assert expand(tmp_path / "a/000.tar") == [str(tmp_path / "a/000.tar")]
    assert expand(f"file://{tmp_path}/a/0*.tar") == [f"{tmp_path}/a/000.tar", f"{tmp_path}/a/001.tar"]
    assert expand("a") == ["a"]


def test_patterns_that_find_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"^there is nothing at a/\*\.tar\. a is empty\.$"):
        expand("a/*.tar")
    for number in range(7):
        (tmp_path / f"a/{number}.tar").touch()
    with pytest.raises(UserError, match=r"^there is nothing at a/\*\.zip\. a has 0.tar, 1.tar, .*4.tar, \.\.\.\.$"):
        expand("a/*.zip")
    with pytest.raises(UserError, match=r"nothing at c/d\.tar\. There is no folder c either\.$"):
        expand("c/d.tar")
    with pytest.raises(
        UserError, match=r"^3 of the 10 files that a/\{0\.\.9\}\.tar names .* the first a/7.tar\. a has"
    ):
        expand("a/{0..9}.tar")
    with pytest.raises(UserError, match="nothing at a\0b"):
        expand("a\0b")
    with pytest.raises(UserError, match="would run a program"):
        expand("pipe:curl https://host/a.tar")


@pytest.mark.parametrize("pattern", ["{0..99999999999}", "{0..1000}{0..1000}", "{0..999}{a,b}{0..999}"])
def test_patterns_that_name_too_much(pattern):
    started = time.monotonic()
    with pytest.raises(UserError, match="more than 1,000,000 files"):
        expand(f"https://host/{pattern}")
    assert time.monotonic() - started < 2


def test_remote_patterns(file_server):
    for name in ("s/000.tar", "s/001.tar", "s/readme.txt"):
        file_server.address(name, b"x")
    assert expand(f"{file_server.url}/s/*.tar") == [f"{file_server.url}/s/00{i}.tar" for i in range(2)]
    with pytest.raises(UserError, match=r"nothing at http.*/s/\*\.zip\. .*/s/ has 000.tar, 001.tar, readme.txt\.$"):
        expand(f"{file_server.url}/s/*.zip")
    memory = fsspec.filesystem("memory")
    memory.pipe({"/remote/0.tar": b"", "/remote/1.tar": b"", "/remote/x": b""})
    assert expand("memory://remote/[01].tar") == ["memory:///remote/0.tar", "memory:///remote/1.tar"]


def test_protocols_that_nobody_speaks():
    with pytest.raises(UserError, match=r"^s3://bucket/a\.tar cannot be read: pip install s3fs"):
        local_copy("s3://bucket/a.tar")
    with pytest.raises(UserError, match="pip install gcsfs"):
        expand("gs://bucket/*.tar")
    with pytest.raises(UserError, match="^nonsense://a cannot be read .*nonsense"):
        local_copy("nonsense://a")
    with pytest.raises(UserError, match=r"http://\["):
        local_copy("http://[")


# Copies


def test_fetched_once(file_server, cache):
    url = file_server.address("a/b.tar", CONTENT)
    path = local_copy(url)
    assert path.read_bytes() == CONTENT and path.parent == cache and path.name.endswith("-b.tar")
    assert local_copy(url) == path and file_server.asked == [("a/b.tar", 0)]
    probes = len(file_server.probed)
    assert local_copy(url, version=current_version(url)) == path and len(file_server.probed) == probes + 1
    assert local_copy(url, cache.parent / "elsewhere").parent == cache.parent / "elsewhere"
    assert copies(cache) == [path.name]


def test_two_files_of_one_name(file_server):
    one, two = file_server.address("a/x.tar", b"1"), file_server.address("b/x.tar", b"2")
    assert (local_copy(one).read_bytes(), local_copy(two).read_bytes()) == (b"1", b"2")


def test_names_that_no_file_can_have(file_server, cache):
    name = "~;!" + "x" * 300
    path = local_copy(file_server.address(name, b"1") + "?a=/../b")
    assert path.read_bytes() == b"1" and path.parent == cache and len(path.name) < 120


def test_a_dropped_connection_goes_on_where_it_stopped(file_server):
    url = file_server.address("b.tar", CONTENT)
    file_server.answers = [functools.partial(file_server.whole, size=HALF)] * 2
    assert local_copy(url).read_bytes() == CONTENT
    assert file_server.asked == [("b.tar", 0), ("b.tar", HALF), ("b.tar", 2 * HALF)]


def busy(handler, path, asked):
    handler.head(503, Content_Length=0)


def test_a_server_that_is_busy_first(file_server):
    url = file_server.address("b.tar", CONTENT)
    file_server.probe_answers, file_server.answers = [busy], [busy] * 2
    assert local_copy(url).read_bytes() == CONTENT and len(file_server.asked) == 3 and len(file_server.probed) == 2


def test_a_server_that_stays_busy(file_server, cache):
    url = file_server.address("b.tar", CONTENT)
    file_server.probe_answers = [busy] * 5
    with pytest.raises(
        UserError, match=r"b\.tar could not be fetched \(HTTP 503 .*, 5 times in a row\); check the con"
    ):
        local_copy(url)
    file_server.answers = [functools.partial(file_server.whole, size=HALF)] + [busy] * 5
    with pytest.raises(UserError, match=r"5 times in a row; the 197kB that came are kept for the next start"):
        local_copy(url)
    file_server.answers, file_server.asked = [], []
    assert local_copy(url).read_bytes() == CONTENT and file_server.asked == [("b.tar", HALF)]


@pytest.mark.parametrize("status", [403, 404])
def test_refusals_are_not_asked_again(file_server, cache, status):
    file_server.probe_answers = [lambda handler, *_: handler.head(status, Content_Length=0)]
    with pytest.raises(UserError, match=rf"/b\.tar could not be fetched \(HTTP {status} .*\); check the address"):
        local_copy(file_server.address("b.tar"))
    assert len(file_server.probed) == 1


def test_a_length_that_is_a_lie(file_server):
    url = file_server.address("b.tar", CONTENT)
    file_server.answers = [functools.partial(file_server.whole, longer=-100)]
    assert local_copy(url).read_bytes() == CONTENT, "another length is another file, so asked for anew"
    url = file_server.address("c.tar", CONTENT)
    file_server.probe_answers = [functools.partial(file_server.whole, longer=100)] * 3
    with pytest.raises(UserError, match="changes while it is fetched"):
        local_copy(url)
    url = file_server.address("d.tar", CONTENT)
    longer = functools.partial(file_server.whole, longer=100)
    file_server.probe_answers, file_server.answers = [longer], [longer] * 20
    with pytest.raises(UserError, match=r"d\.tar could not be fetched .*5 times in a row"):
        local_copy(url)


def test_a_server_that_tells_no_length(file_server):
    def endless(handler, path, asked):
        handler.head(200)
        handler.send_body(CONTENT)

    url = file_server.address("b.tar", CONTENT)
    file_server.probe_answers, file_server.answers = [endless] * 2, [endless]
    assert local_copy(url).read_bytes() == CONTENT
    local_copy(url)
    assert len(file_server.asked) == 1


def test_a_length_that_is_told_once(file_server):
    def unannounced(content):
        def answer(handler, path, asked):
            handler.head(200)
            handler.send_body(content)

        return answer

    url = file_server.address("b.tar", CONTENT)
    file_server.answers = [unannounced(CONTENT[:HALF])]
    assert local_copy(url).read_bytes() == CONTENT
    assert file_server.asked == [("b.tar", 0), ("b.tar", HALF)], "that was not the end"
    url = file_server.address("c.tar", CONTENT)
    file_server.answers = [unannounced(CONTENT + b"more")]
    with pytest.raises(UserError, match=r"c\.tar could not be fetched \(400004 bytes came and 400000 were announced\)"):
        local_copy(url)


def test_a_part_that_is_longer_than_the_file(file_server, cache):
    url = file_server.address("b.tar", CONTENT)
    path = local_copy(url)
    path.unlink()
    Path(f"{path}.part").write_bytes(CONTENT + b"more")
    assert local_copy(url).read_bytes() == CONTENT and file_server.asked == [("b.tar", 0)] * 2


def test_a_server_without_ranges(file_server):
    def rangeless(handler, path, asked):
        file_server.whole(handler, path, None)

    url = file_server.address("b.tar", CONTENT)
    file_server.probe_answers = [rangeless]
    file_server.answers = [functools.partial(file_server.whole, size=HALF), rangeless]
    assert local_copy(url).read_bytes() == CONTENT and len(file_server.asked) == 2


def test_an_empty_file(file_server):
    assert local_copy(file_server.address("b.tar", b"")).read_bytes() == b""


def test_a_file_that_changed_is_fetched_anew(file_server, cache):
    url = file_server.address("b.tar", CONTENT)
    before = current_version(url)
    first = local_copy(url)
    file_server.files["b.tar"] = CONTENT[::-1]
    assert local_copy(url).read_bytes() == CONTENT[::-1] and len(file_server.asked) == 2
    assert local_copy(url, version=before) == first and first.read_bytes() == CONTENT, "the old copy is still there"
    first.unlink()
    with pytest.raises(UserError, match=r"b\.tar is not what it was: it changed on the server\. Start again"):
        local_copy(url, version=before)
    assert first.name not in copies(cache) and f"{first.name}.part" not in copies(cache)


def test_a_file_without_a_tag_that_changed_its_size(file_server):
    file_server.tagged = False
    url = file_server.address("b.tar", CONTENT)
    local_copy(url)
    local_copy(url)
    assert len(file_server.asked) == 1
    file_server.files["b.tar"] = CONTENT + b"x"
    assert local_copy(url).read_bytes() == CONTENT + b"x"


def test_a_file_that_changes_while_it_is_fetched(file_server, cache):
    def dropped_and_changed(handler, path, asked):
        file_server.whole(handler, path, asked, size=HALF)
        file_server.files[path] = CONTENT[::-1]

    url = file_server.address("b.tar", CONTENT)
    file_server.answers = [dropped_and_changed]
    assert local_copy(url).read_bytes() == CONTENT[::-1]
    assert file_server.asked == [("b.tar", 0), ("b.tar", HALF), ("b.tar", 0)] and len(copies(cache)) == 1


def test_part_of_a_file_without_a_tag_is_not_continued(file_server, cache):
    file_server.tagged = False
    url = file_server.address("b.tar", CONTENT)
    file_server.answers = [functools.partial(file_server.whole, size=HALF)] + [busy] * 5
    with pytest.raises(UserError):
        local_copy(url)
    file_server.asked, file_server.answers = [], []
    assert local_copy(url).read_bytes() == CONTENT and file_server.asked == [("b.tar", 0)]


def test_a_server_that_cannot_be_reached(file_server):
    urls = [file_server.address(f"{number}.tar", CONTENT) for number in range(3)]
    first = [local_copy(url) for url in urls[:2]]
    file_server.shutdown()
    file_server.server_close()
    with pytest.warns(
        Notice, match=r"http://127\.0\.0\.1:\d+ cannot be asked \(Connection refused\); what was"
    ) as said:
        assert [local_copy(url) for url in urls[:2]] == first
    assert len(said) == 1 and first[0].read_bytes() == CONTENT
    assert local_copy(urls[0], version=current_version(urls[0])) == first[0]
    with pytest.raises(UserError, match=r"2\.tar could not be fetched \(Connection refused\)"):
        local_copy(urls[2])
    remote._unreachable.clear()
    with pytest.raises(UserError, match=r"2\.tar could not be fetched \(Connection refused, 5 times in a row\)"):
        local_copy(urls[2])


def test_a_full_disk(file_server, cache, monkeypatch):
    def full(part, piece):
        raise OSError(errno.ENOSPC, "No space left on device")

    url = file_server.address("b.tar", CONTENT)
    memory = fsspec.filesystem("memory")
    memory.pipe("/full.tar", CONTENT)
    for address in (url, "memory://full.tar"):
        with monkeypatch.context() as patch:
            patch.setattr(download.Part, "add", full)
            with pytest.raises(
                UserError, match=r"could not be fetched: the disk is full \(No space.*400kB\. Make room"
            ):
                local_copy(address)
        assert copies(cache) == []
    assert local_copy(url).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_made(file_server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"b\.tar cannot be kept in .*file.*; let XDG_CACHE_HOME"):
        local_copy(file_server.address("b.tar", CONTENT), tmp_path / "file")


def fetch_and_compare(url, queue):
    try:
        queue.put(local_copy(url).read_bytes() == CONTENT)
    except BaseException as error:
        queue.put(repr(error))


def test_processes_and_threads_that_fetch_at_once(file_server):
    def slow(handler, path, asked):
        file_server.whole(handler, path, asked, size=HALF)
        time.sleep(0.2)

    url = file_server.address("b.tar", CONTENT)
    file_server.answers = [slow]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    started = [context.Process(target=fetch_and_compare, args=(url, queue)) for _ in range(3)]
    for process in started:
        process.start()
    threads = [threading.Thread(target=fetch_and_compare, args=(url, queue)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert [queue.get(timeout=20) for _ in range(6)] == [True] * 6
    for worker in (*started, *threads):
        worker.join()
    assert sorted(file_server.asked) == [("b.tar", 0), ("b.tar", HALF)]


# Other protocols


class Flaky(MemoryFileSystem):
    """Files that break off, once."""

    protocol = "flaky"
    store = {"/a.tar": CONTENT}
    breaks, opened = [], []

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("flaky://").lstrip("/")

    def info(self, path, **_):
        path = self._strip_protocol(path)
        if path not in self.store:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(self.store[path]), "type": "file", "ETag": str(hash(self.store[path]))}

    def open(self, path, mode="rb", **_):
        return FlakyFile(self.store[self._strip_protocol(path)])


class FlakyFile:
    def __init__(self, content):
        self.content, self.at = content, 0

    def seek(self, at):
        self.at = at
        Flaky.opened.append(at)

    def read(self, size):
        if Flaky.breaks and self.at >= HALF:
            Flaky.breaks.pop()
            raise RuntimeError("the line is dead")
        piece = self.content[self.at : self.at + min(size, HALF)]
        self.at += len(piece)
        return piece

    def close(self):
        pass


@pytest.fixture
def flaky(monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(Flaky, "store", {"/a.tar": CONTENT})
    monkeypatch.setattr(Flaky, "breaks", [])
    monkeypatch.setattr(Flaky, "opened", [])
    return Flaky


def test_other_protocols(flaky):
    flaky.breaks = [1]
    path = local_copy("flaky://a.tar")
    assert path.read_bytes() == CONTENT and flaky.opened == [0, HALF]
    assert local_copy("flaky://a.tar") == path and len(flaky.opened) == 2
    flaky.store["/a.tar"] = CONTENT[::-1]
    assert local_copy("flaky://a.tar").read_bytes() == CONTENT[::-1]
    with pytest.raises(UserError, match=r"flaky://b.tar could not be fetched \(it is not there\); check the address"):
        local_copy("flaky://b.tar")


def test_other_protocols_that_stay_dead(flaky):
    flaky.breaks = [1] * 9
    with pytest.raises(UserError, match=r"\(RuntimeError: the line is dead, 5 times in a row; the 197kB that came are"):
        local_copy("flaky://a.tar")


# Eviction


def limit(monkeypatch, size):
    monkeypatch.setenv("CLIP_WORKBENCH_REMOTE_CACHE_GB", str(size / 1e9))


def used(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.fixture
def filled(file_server, monkeypatch):
    """Three copies, the first not used for longest, in a cache that has no room for a fourth."""
    limit(monkeypatch, 3.5 * len(CONTENT))
    urls = [file_server.address(f"{number}.tar", CONTENT) for number in range(4)]
    paths = [local_copy(url) for url in urls[:3]]
    for path, seconds in zip(paths, (300, 200, 100), strict=True):
        used(path, seconds)
    return urls, paths


def test_what_was_not_used_for_longest_goes(filled, cache):
    urls, paths = filled
    assert local_copy(urls[0]) == paths[0], "so the second is the oldest now"
    fourth = local_copy(urls[3])
    assert copies(cache) == sorted(path.name for path in (paths[0], paths[2], fourth))
    assert len(list(cache.glob("*.version"))) == 3


def test_room_is_made_before_it_is_taken(filled, file_server, cache):
    def answer(handler, path, asked):
        before.extend(copies(cache))
        file_server.whole(handler, path, asked)

    urls, paths = filled
    before, file_server.answers = [], [answer]
    local_copy(urls[3])
    assert paths[0].name not in before and {paths[1].name, paths[2].name} <= set(before)


def test_what_is_in_use_stays(filled, cache):
    urls, paths = filled
    descriptors = [open_copy(url, current_version(url)) for url in urls[:2]]
    for path in paths[:2]:
        used(path, 300)
    local_copy(urls[3])
    assert [path.exists() for path in paths] == [True, True, False]
    for descriptor in descriptors:
        os.close(descriptor)
    local_copy(urls[2])
    assert [path.exists() for path in paths].count(True) == 2 and paths[2].exists(), "now one of them goes"


def open_until_told(url, version, ready, over):
    open_copy(url, version)
    ready.set()
    over.wait(20)


def test_what_another_process_uses_stays(filled):
    urls, paths = filled
    context = multiprocessing.get_context("fork")
    ready, over = context.Event(), context.Event()
    process = context.Process(target=open_until_told, args=(urls[0], current_version(urls[0]), ready, over))
    process.start()
    assert ready.wait(20)
    used(paths[0], 300)
    local_copy(urls[3])
    assert [path.exists() for path in paths] == [True, False, True]
    over.set()
    process.join()


def test_a_reader_of_what_was_deleted(filled, file_server):
    urls, paths = filled
    version = current_version(urls[0])
    descriptor = open_copy(urls[0], version)
    paths[0].unlink()
    assert os.pread(descriptor, len(CONTENT), 0) == CONTENT
    os.close(descriptor)
    file_server.asked = []
    os.close(open_copy(urls[0], version))
    assert file_server.asked == [("0.tar", 0)], "fetched again"


def test_what_is_being_fetched_stays(filled, file_server, cache, monkeypatch):
    urls, _ = filled
    halfway, go = threading.Event(), threading.Event()

    def slow(handler, path, asked):
        content = file_server.files[path]
        handler.head(200, Content_Length=len(content), ETag='"slow"')
        handler.send_body(content[:HALF])
        halfway.set()
        go.wait(20)
        handler.send_body(content[HALF:])

    file_server.tags["3.tar"] = '"slow"'
    file_server.answers = [slow]
    thread = threading.Thread(target=local_copy, args=(urls[3],))
    thread.start()
    assert halfway.wait(20)
    until = time.monotonic() + 20
    while not any(path.stat().st_size == HALF for path in cache.glob("*.part")) and time.monotonic() < until:
        time.sleep(0.01)
    (part,) = cache.glob("*.part")
    used(part, 1000)
    limit(monkeypatch, 2.6 * len(CONTENT))  # so two must go
    local_copy(file_server.address("4.tar", CONTENT))
    assert part.exists()
    go.set()
    thread.join()
    assert local_copy(urls[3]).read_bytes() == CONTENT and sum(map(os.path.getsize, cache.glob("*.tar"))) <= 1_400_000


def test_what_was_left_of_a_fetch_goes(filled, file_server, cache):
    urls, paths = filled
    paths[0].unlink()
    file_server.answers = [functools.partial(file_server.whole, size=HALF)] + [busy] * 5
    with pytest.raises(UserError):
        local_copy(urls[3])
    file_server.answers = []
    (part,) = cache.glob("*.part")
    used(part, 400)
    for number in (4, 5):
        local_copy(file_server.address(f"{number}.tar", CONTENT))
    assert not part.exists()


def test_a_file_that_is_larger_than_the_cache(file_server, monkeypatch):
    limit(monkeypatch, 300_000)
    with pytest.raises(
        UserError, match=r"b\.tar has 0\.0004 GB, more than all copies may have together \(0\.0003 GB\)"
    ):
        local_copy(file_server.address("b.tar", CONTENT))


@pytest.mark.parametrize("told", ["much", "0", "-1", "inf", "nan"])
def test_a_limit_that_is_none(file_server, monkeypatch, told):
    monkeypatch.setenv("CLIP_WORKBENCH_REMOTE_CACHE_GB", told)
    with pytest.raises(UserError, match=f"CLIP_WORKBENCH_REMOTE_CACHE_GB is '{told}'; give gigabytes"):
        local_copy(file_server.address("b.tar", CONTENT))


def test_a_copy_that_is_deleted_whenever_it_was_fetched(file_server, monkeypatch):
    def fetched_and_gone(*args, real=local_copy):
        path = real(*args)
        path.unlink()
        return path

    url = file_server.address("b.tar", b"x")
    version = current_version(url)
    monkeypatch.setattr(remote, "local_copy", fetched_and_gone)
    with pytest.raises(UserError, match="fetched and deleted again and again"):
        open_copy(url, version)


def test_a_spoilt_copy_is_fetched_again(file_server):
    url = file_server.address("b.tar", CONTENT)
    local_copy(url).write_bytes(CONTENT[:100])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert local_copy(url).read_bytes() == CONTENT
    assert Version(5, "a").differs(Version(6)) and not Version(5, "a").differs(Version(5))
