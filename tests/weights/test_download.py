"""Fetching from a real server that does what servers do: drop, stall, lie, refuse."""

import contextlib
import errno
import hashlib
import http.server
import io
import os
import random
import re
import resource
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from email.utils import formatdate

import pytest

from workbench.weights import download as module
from workbench.weights.download import DownloadError, download

CONTENT = random.Random(0).randbytes(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
HALF = 8 << 16
GARBAGE = b"garbage" * 1000


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/weights.pt"
        self.asked, self.paths, self.encodings = [], [], []
        self.sent = []
        self.answers, self.usual = [], ranged
        self.over = threading.Event()

    def handle_error(self, *args):
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.headers["Range"])
        self.server.paths.append(self.path)
        self.server.encodings.append(self.headers["Accept-Encoding"])
        self.server.sent.append(0)
        answer = self.server.answers.pop(0) if self.server.answers else self.server.usual
        answer(self)

    def log_message(self, *args):
        pass

    def head(self, status, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def body(self, content):
        self.wfile.write(content)
        self.server.sent[-1] += len(content)

    def start(self):
        asked = self.headers["Range"]
        return int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0

    def begin(self, content, longer=0):
        """Send the head of an honest answer (but for `longer`) and return the bytes that belong to it."""
        start, total = self.start(), len(content) + longer
        if not self.headers["Range"]:
            self.head(200, Content_Length=total)
        elif start >= total:
            self.head(416, Content_Range=f"bytes */{total}")
        else:
            self.head(206, Content_Length=total - start, Content_Range=f"bytes {start}-{total - 1}/{total}")
        return content[start:]


def ranged(handler, content=CONTENT, **lie):
    handler.body(handler.begin(content, **lie))


def rangeless(handler, content=CONTENT):
    handler.head(200, Content_Length=len(content))
    handler.body(content)


def dropped(size, content=CONTENT):
    return lambda handler: handler.body(handler.begin(content)[:size])


def reset(handler):
    handler.body(handler.begin(CONTENT)[:HALF])
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def stalled(size):
    def answer(handler):
        handler.body(handler.begin(CONTENT)[:size])
        handler.wfile.flush()
        handler.server.over.wait(20)

    return answer


def silent(handler):
    handler.server.over.wait(20)


def refused(status, **headers):
    return lambda handler: handler.head(status, Content_Length=0, **headers)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(module, "READ_TIMEOUT", 5)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "weights.pt"


@pytest.fixture
def part(path):
    path.parent.mkdir()
    return path.with_name("weights.pt.part")


def files(path):
    """What is in the folder; the lock is empty, and stays after a failure as others may be waiting for it."""
    return {file.name for file in path.parent.iterdir()} - {"weights.pt.lock"}


def whole(path):
    return path.read_bytes() == CONTENT and list(path.parent.iterdir()) == [path]


def test_fetched_once_and_nothing_else_left(server, path, capfd):
    download(server.url, path, SHA256)
    assert whole(path) and server.asked == [None] and server.encodings == ["identity"]
    download(server.url, str(path), SHA256)
    assert whole(path) and len(server.asked) == 1
    assert capfd.readouterr() == ("", ""), "no progress where there is no terminal"


def test_a_dropped_connection_goes_on_where_it_stopped(server, path):
    server.answers = [dropped(HALF)]
    download(server.url, path, SHA256)
    assert whole(path)
    assert server.asked == [None, f"bytes={HALF}-"] and server.sent == [HALF, len(CONTENT) - HALF]


def test_a_connection_that_is_reset(server, path):
    server.answers = [reset]
    download(server.url, path, SHA256)
    assert whole(path) and len(server.asked) == 2


def test_no_tries_are_used_up_while_the_file_grows(server, path, monkeypatch):
    monkeypatch.setattr(module, "TRIES", 2)
    server.answers = [dropped(1 << 16)] * 10
    download(server.url, path, SHA256)
    assert whole(path) and server.asked[1:] == [f"bytes={i << 16}-" for i in range(1, 11)]


def test_a_range_that_is_shorter_than_the_rest(server, path, part):
    def some(handler):
        start = handler.start()
        handler.head(206, Content_Length=100, Content_Range=f"bytes {start}-{start + 99}/{len(CONTENT)}")
        handler.body(CONTENT[start : start + 100])

    part.write_bytes(CONTENT[:1000])
    server.answers = [some, some]
    download(server.url, path, SHA256)
    assert whole(path) and server.asked == ["bytes=1000-", "bytes=1100-", "bytes=1200-"]


def test_given_up_after_some_tries_and_taken_up_by_the_next_call(server, path):
    server.answers = [dropped(HALF)] + [dropped(0)] * 5
    with pytest.raises(
        DownloadError, match=r"^the connection was dropped, 5 times in a row; the 524kB that came are kept"
    ):
        download(server.url, path, SHA256)
    assert len(server.asked) == 1 + 5 - 1, "the one that brought something is the first of five"
    assert files(path) == {"weights.pt.part"} and path.with_name("weights.pt.part").read_bytes() == CONTENT[:HALF]
    server.answers = []
    download(server.url, path, SHA256)
    assert whole(path) and server.asked[5:] == [f"bytes={HALF}-"]


def test_a_server_without_ranges_that_always_drops_is_given_up(server, path):
    def half(handler):
        handler.head(200, Content_Length=len(CONTENT))
        handler.body(CONTENT[:HALF])

    server.usual = half
    with pytest.raises(DownloadError, match="5 times in a row"):
        download(server.url, path, SHA256)
    assert len(server.asked) == 5


def test_a_length_that_is_too_long_is_a_dropped_connection(server, path):
    server.answers = [lambda handler: ranged(handler, longer=100)]
    download(server.url, path, SHA256)
    assert whole(path) and server.asked[0] is None and server.asked[1].startswith("bytes=")
    assert server.sent[1] < 1 << 16


def test_a_length_that_is_too_short_is_another_file(server, path):
    def answer(handler):
        handler.head(200, Content_Length=HALF)
        handler.body(CONTENT)

    server.usual = answer
    with pytest.raises(DownloadError, match=hashlib.sha256(CONTENT[:HALF]).hexdigest()):
        download(server.url, path, SHA256)
    assert files(path) == set() and len(server.asked) == 1


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_not_asked_again(server, path, status):
    server.usual = refused(status)
    with pytest.raises(DownloadError, match=f"^HTTP {status} [A-Z]"):
        download(server.url, path, SHA256)
    assert server.asked == [None] and files(path) == set()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(server, path, status):
    server.answers = [refused(status)] * 4
    download(server.url, path, SHA256)
    assert whole(path) and len(server.asked) == 5


def test_a_server_that_stays_busy_is_given_up(server, path):
    server.usual = refused(503)
    with pytest.raises(DownloadError, match="^HTTP 503 Service Unavailable, 5 times in a row$"):
        download(server.url, path, SHA256)
    assert len(server.asked) == 5 and files(path) == set()


def test_a_busy_server_leaves_what_came(server, path, part):
    part.write_bytes(CONTENT[:HALF])
    server.answers = [refused(503)]
    download(server.url, path, SHA256)
    assert whole(path) and server.asked == [f"bytes={HALF}-"] * 2


def waits_for(server, path, monkeypatch, answers):
    waits = []
    monkeypatch.setattr(module, "FIRST_WAIT", 1.0)
    monkeypatch.setattr(module.time, "sleep", waits.append)
    server.answers = answers
    download(server.url, path, SHA256)
    return waits


def test_waits_double(server, path, monkeypatch):
    assert waits_for(server, path, monkeypatch, [refused(503)] * 4) == [1, 2, 4, 8]


@pytest.mark.parametrize("told, wait", [("7", 7), ("0", 0), ("3600", 60), ("soon", 1), ("-1", 1)])
def test_retry_after(server, path, monkeypatch, told, wait):
    assert waits_for(server, path, monkeypatch, [refused(429, Retry_After=told)]) == [wait]


@pytest.mark.parametrize("seconds, low, high", [(30, 27, 31), (7200, 60, 60), (-7200, 0, 0)])
def test_retry_after_as_a_date(server, path, monkeypatch, seconds, low, high):
    told = formatdate(time.time() + seconds, usegmt=True)
    (wait,) = waits_for(server, path, monkeypatch, [refused(503, Retry_After=told)])
    assert low <= wait <= high


def test_another_file_is_not_taken(server, path, part):
    path.write_bytes(b"of before")
    server.usual = lambda handler: ranged(handler, OTHER)
    with pytest.raises(DownloadError, match=f"^what came has the sha256 {hashlib.sha256(OTHER).hexdigest()}$"):
        download(server.url, path, SHA256)
    assert files(path) == {"weights.pt"} and path.read_bytes() == b"of before" and len(server.asked) == 1


def test_a_file_with_another_hash_stays_until_the_right_one_is_there(server, path, part):
    def answer(handler):
        handler.body(handler.begin(CONTENT)[:HALF])
        seen.append(path.read_bytes())
        handler.body(CONTENT[HALF:])

    seen, server.usual = [], answer
    path.write_bytes(b"of before")
    download(server.url, path, SHA256)
    assert whole(path) and seen == [b"of before"]


def test_part_of_another_file_is_started_anew_once(server, path, part):
    part.write_bytes(GARBAGE)
    download(server.url, path, SHA256)
    assert whole(path) and server.asked == [f"bytes={len(GARBAGE)}-", None]


def test_part_of_another_file_and_a_wrong_file_too(server, path, part):
    part.write_bytes(GARBAGE)
    server.answers = [lambda handler: ranged(handler, OTHER), dropped(HALF, OTHER)]
    server.usual = lambda handler: ranged(handler, OTHER)
    with pytest.raises(DownloadError, match="what came has the sha256"):
        download(server.url, path, SHA256)
    assert files(path) == set() and server.asked == [f"bytes={len(GARBAGE)}-", None, f"bytes={HALF}-"]


def test_a_wrong_file_that_came_in_one_piece_is_asked_for_once(server, path, part):
    part.write_bytes(CONTENT[:HALF])
    server.answers = [dropped(1 << 16), lambda handler: rangeless(handler, OTHER)]
    with pytest.raises(DownloadError, match="what came has the sha256"):
        download(server.url, path, SHA256)
    assert files(path) == set() and server.asked == [f"bytes={HALF}-", f"bytes={HALF + (1 << 16)}-"]


def test_a_whole_part_needs_no_server(path, part):
    part.write_bytes(CONTENT)
    download("http://127.0.0.1:9/", path, SHA256)
    assert whole(path)


def test_a_server_that_ignores_ranges(server, path, part):
    part.write_bytes(CONTENT[:HALF])
    server.usual = rangeless
    download(server.url, path, SHA256)
    assert whole(path) and server.asked == [f"bytes={HALF}-"]


def test_a_part_that_is_longer_than_the_file(server, path, part):
    part.write_bytes(CONTENT + b"more")
    download(server.url, path, SHA256)
    assert whole(path) and server.asked == [f"bytes={len(CONTENT) + 4}-", None] and server.sent[0] == 0


def test_a_range_that_was_not_asked_for(server, path, part, monkeypatch):
    def answer(handler):
        handler.head(206, Content_Length=HALF, Content_Range=f"bytes 0-{HALF - 1}/{len(CONTENT)}")
        silent(handler)  # who reads the body is told so by another range in the next request

    monkeypatch.setattr(module, "READ_TIMEOUT", 0.2)
    part.write_bytes(CONTENT[:HALF])
    server.answers = [answer]
    download(server.url, path, SHA256)
    assert whole(path) and server.asked == [f"bytes={HALF}-", None]


@pytest.mark.parametrize("answer, resumed", [(stalled(HALF), f"bytes={HALF}-"), (silent, None)])
def test_a_server_that_stalls(server, path, monkeypatch, answer, resumed):
    monkeypatch.setattr(module, "READ_TIMEOUT", 0.2)
    server.answers = [answer]
    started = time.monotonic()
    download(server.url, path, SHA256)
    assert whole(path) and server.asked == [None, resumed] and time.monotonic() - started < 5


def test_the_reason_is_short(server, path, monkeypatch):
    monkeypatch.setattr(module, "READ_TIMEOUT", 0.1)
    server.usual = silent
    with pytest.raises(DownloadError, match="^timed out, 5 times in a row$"):
        download(server.url, path, SHA256)
    server.usual = lambda handler: handler.wfile.write(b"hello\r\n\r\n")
    with pytest.raises(DownloadError, match="^BadStatusLine: hello, 5 times in a row$"):
        download(server.url, path, SHA256)
    with pytest.raises(DownloadError, match="^Connection refused, 5 times in a row$"):
        download("http://127.0.0.1:9/", path, SHA256)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="^proxy: Connection refused, 5 times in a row$"):
        download("http://nowhere.invalid/", path, SHA256)
    assert files(path) == set()


def test_the_proxy_of_the_environment(server, path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/weights.pt"))
    download("http://nowhere.invalid/weights.pt", path, SHA256)
    assert whole(path) and server.paths == ["http://nowhere.invalid/weights.pt"]


@pytest.mark.parametrize("url", ["nonsense", "gopher://127.0.0.1/", "http://"])
def test_no_address(path, url):
    with pytest.raises(DownloadError, match=url) as raised:
        download(url, path, SHA256)
    assert "in a row" not in str(raised.value) and files(path) == set()


def test_names_that_cannot_be_written(server, path):
    path.mkdir(parents=True)
    with pytest.raises(DownloadError, match="is a folder"):
        download(server.url, path, SHA256)
    (path / "file").touch()
    with pytest.raises(DownloadError, match=r"(Not a directory|File exists).*file"):
        download(server.url, path / "file" / "weights.pt", SHA256)
    assert server.asked == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("resumed", [False, True])
def test_progress_on_a_terminal(server, path, part, monkeypatch, resumed):
    def answer(handler):
        rest = handler.begin(CONTENT)
        for begin in range(0, len(rest), 1 << 16):
            time.sleep(0.03)
            handler.body(rest[begin : begin + (1 << 16)])

    if resumed:
        part.write_bytes(CONTENT[:HALF])
    server.answers, server.usual = [refused(503)], answer
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Terminal())
        patch.setattr(module, "FIRST_WAIT", 0.3)
        download(server.url, path, SHA256)
        lines = sys.stderr.getvalue().split("\r")
    assert any("HTTP 503 Service Unavailable, again in 0 s" in line for line in lines)
    shown = [
        re.match(r"weights\.pt: +(\d+)%.*/1\.00M \[\d\d:\d\d<(\d\d:\d\d), +[\d.]+[kM]B/s\]", line) for line in lines
    ]
    percents = [int(match[1]) for match in shown if match]
    assert len(percents) >= 2 and percents == sorted(percents) and (percents[0] >= 52) == resumed, lines
    assert lines[-2].strip() == "" and lines[-1] == "", "and gone at the end"


# The file is loaded by its path, as importing it from its package imports torch, eight times.
CHILD = f"""
import importlib.util, os, resource, sys
spec = importlib.util.spec_from_file_location("download", {module.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert "torch" not in sys.modules
url, path, sha256 = sys.argv[1:4]
print("ready", flush=True)
sys.stdin.readline()
try:
    module.download(url, path, sha256)
except module.DownloadError as error:
    print(error, sorted(os.listdir(os.path.dirname(path))), sep="\\n")
"""


@contextlib.contextmanager
def children(count, *args, before=(), **options):
    command = [*before, sys.executable, "-c", CHILD, *map(str, args)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(subprocess.Popen(command, **pipes, **options)) for _ in range(count)]
        try:
            yield started
        finally:
            for child in started:
                child.kill()


def test_eight_processes_fetch_once(server, path):
    def answer(handler):
        rest = handler.begin(CONTENT)
        handler.body(rest[:HALF])
        time.sleep(0.3)
        handler.body(rest[HALF:])

    server.usual = answer
    with children(8, server.url, path, SHA256) as started:
        assert [child.stdout.readline() for child in started] == ["ready\n"] * 8
        for child in started:
            child.stdin.write("\n")
            child.stdin.flush()
        assert [child.communicate()[0] for child in started] == [""] * 8
        assert [child.returncode for child in started] == [0] * 8
    assert whole(path) and server.asked == [None]


def test_a_process_that_is_killed_leaves_what_came(server, path):
    server.answers = [stalled(HALF)]
    part = path.with_name("weights.pt.part")
    with children(1, server.url, path, SHA256) as (child,):
        child.stdin.write("\n")
        child.stdin.flush()
        until = time.monotonic() + 20
        while not (part.is_file() and part.stat().st_size == HALF) and time.monotonic() < until:
            time.sleep(0.01)
    assert files(path) == {"weights.pt.part"}
    download(server.url, path, SHA256)
    assert whole(path) and server.asked == [None, f"bytes={HALF}-"]


def test_a_disk_quota(server, path):
    """A limit on file size stands for a quota."""
    limit = 300_000
    options = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))}
    with children(1, server.url, path, SHA256, **options) as (child,):
        said, left = child.communicate("\n")[0].splitlines()[1:]
    assert re.fullmatch(rf"the disk is full \(.+\): [\d.]+[kMGT]?B are free in {path.parent}, .* takes 1\.00MB", said)
    assert os.strerror(errno.EFBIG) in said and left == "['weights.pt.lock']"


def test_a_full_disk(server, path, part):
    mount = f'mount -t tmpfs -o size=512k none {path.parent} && exec "$@"'
    before = ("unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh")
    try:
        able = subprocess.run([*before, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        able = False
    if not able:
        pytest.skip("no file system of one's own here")
    with children(1, server.url, path, SHA256, before=before) as (child,):
        said, left = child.communicate("\n")[0].splitlines()[1:]
    assert said.startswith(f"the disk is full ({os.strerror(errno.ENOSPC)}): 524kB are free") and "1.00MB" in said
    assert left == "['weights.pt.lock']"
