"""Pictures beside a table on a server: fetched one by one, again where it does not answer, and from nowhere else."""

import fsspec
import numpy as np
import pytest

from datamodules.sources import read_source
from datamodules.sources.remote_pictures import TRIES, RemotePictures
from datamodules.sources.source import Column, ReadOptions
from workbench.errors import UserError
from workbench.weights import download


@pytest.fixture
def bucket(own_cache, monkeypatch):
    """A file system in memory, with a table and its pictures."""
    monkeypatch.setattr(download, "FIRST_WAIT", 0.001)
    files = fsspec.filesystem("memory")
    for name in ("a.jpg", "d/b ü#?.jpg", "more/c.jpg"):
        files.pipe(f"/bucket/set/{name}", name.encode())
    files.pipe("/bucket/set/pairs.csv", "filepath,caption\na.jpg,None\nd/b ü#?.jpg,1e5\n".encode())
    files.pipe("/bucket/secret.jpg", b"secret")
    yield files
    files.rm("/bucket", recursive=True)


def read(location, **options):
    return read_source(location, ReadOptions(**options))


def pictures(*paths, root="memory://bucket/set"):
    return RemotePictures(Column(list(paths)), root)


def test_a_table_and_its_pictures(bucket):
    source = read("memory://bucket/set/pairs.csv")
    assert [source.pictures.read(row) for row in range(2)] == [b"a.jpg", "d/b ü#?.jpg".encode()]
    assert list(source.captions) == [["None"], ["1e5"]]
    assert source.pictures.name(0) == "memory://bucket/set/a.jpg"
    assert source.place(1) == "memory://bucket/set/pairs.csv, line 3"
    some = source.take(np.array([1]))
    assert some.pictures.read(0) == "d/b ü#?.jpg".encode() and len(some.pictures) == 1
    assert source.pictures.missing([0, 1]) == [] and source.pictures.names().to_pylist() == ["a.jpg", "d/b ü#?.jpg"]


def test_other_roots(bucket, tmp_path):
    (tmp_path / "pairs.csv").write_text("filepath,caption\nset/a.jpg,x\nmemory://bucket/set/more/c.jpg,y\n")
    source = read("pairs.csv", root="memory://bucket")
    assert [source.pictures.read(row) for row in range(2)] == [b"a.jpg", b"more/c.jpg"]
    (tmp_path / "a.jpg").write_bytes(b"here")
    bucket.pipe("/bucket/set/pairs.csv", b"filepath,caption\na.jpg,x\n")
    assert read("memory://bucket/set/pairs.csv", root=".").pictures.read(0) == b"here"


@pytest.mark.parametrize("path", ["../secret.jpg", "d/../../secret.jpg", "/bucket/secret.jpg", ".."])
def test_no_path_leads_out(bucket, path):
    with pytest.raises(UserError, match="leads out of memory://bucket/set"):
        pictures(path).read(0)
    bucket.pipe("/bucket/set/pairs.csv", f"filepath,caption\na.jpg,x\n{path},y\n".encode())
    with pytest.raises(UserError, match="pairs.csv, line 3: .* leads out of memory://bucket/set"):
        read("memory://bucket/set/pairs.csv")


@pytest.mark.parametrize(
    "path", ["a.jpg::file:///etc/passwd", "simplecache::file:///etc/passwd", "file:///etc/passwd", "*.jpg", "a.???"]
)
def test_a_path_is_never_an_address_or_a_pattern(bucket, path):
    with pytest.raises(UserError, match="there is no picture|is not under"):
        pictures(path).read(0)
    with pytest.raises(UserError, match="s3://other/a.jpg is not under memory://bucket/set; name the folder"):
        pictures("s3://other/a.jpg").read(0)


def test_what_is_not_there_is_asked_for_once(bucket, monkeypatch):
    asked = []
    real = type(bucket).cat_file
    monkeypatch.setattr(type(bucket), "cat_file", lambda *args: asked.append(args[1]) or real(*args))
    with pytest.raises(UserError, match=r"there is no picture memory://bucket/set/b.jpg .*--data.root"):
        pictures("b.jpg").read(0)
    assert len(asked) == 1


def test_failures_are_waited_out(bucket, monkeypatch):
    real = type(bucket).cat_file
    failures = []

    def failing(*args):
        if failures:
            raise failures.pop()
        return real(*args)

    monkeypatch.setattr(type(bucket), "cat_file", failing)
    for error in (OSError("reset"), TimeoutError("slow"), RuntimeError("whatever a file system raises")):
        failures[:] = [error] * (TRIES - 1)
        assert pictures("a.jpg").read(0) == b"a.jpg" and not failures
        failures[:] = [error] * TRIES
        with pytest.raises(UserError, match=rf"set/a.jpg cannot be fetched \({type(error).__name__}.*{TRIES} times"):
            pictures("a.jpg").read(0)
    asked = []
    denied = PermissionError("not yours")
    monkeypatch.setattr(type(bucket), "cat_file", lambda *args: asked.append(1) or (_ for _ in ()).throw(denied))
    with pytest.raises(UserError, match=r"no picture memory://bucket/set/a.jpg for us \(not yours\)"):
        pictures("a.jpg").read(0)
    assert asked == [1]


def test_a_package_that_is_missing_is_named(monkeypatch):
    def missing(*args, **options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match="s3://bucket/a.jpg cannot be fetched; install .*s3fs"):
        pictures("a.jpg", root="s3://bucket").read(0)


def test_over_http(file_server, own_cache, monkeypatch):
    file_server.address(
        "set/pairs.jsonl", b'{"image": "a b%20.jpg", "caption": "NA"}\n{"image": "c.jpg", "caption": "x"}\n'
    )
    file_server.address("set/a%20b%2520.jpg", b"picture")
    source = read(f"{file_server.url}/set/pairs.jsonl")
    assert source.pictures.read(0) == b"picture" and list(source.captions) == [["NA"], ["x"]]
    with pytest.raises(UserError, match="there is no picture http://.*/set/c.jpg"):
        source.pictures.read(1)
    refused, busy = [lambda h, *a: h.head(403, Content_Length=0)], [lambda h, *a: h.head(503, Content_Length=0)] * 2
    file_server.answers[:] = refused
    with pytest.raises(UserError, match="no picture .* for us .*403"):
        source.pictures.read(0)
    file_server.answers[:] = busy
    assert source.pictures.read(0) == b"picture"
