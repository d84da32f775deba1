"""Fetching, against a real server; nothing half-written, nothing unchecked."""

import hashlib
import http.server
import socketserver
import threading
from pathlib import Path

import pytest

from workbench.errors import UserError
from workbench.models import OPENAI_ARCHITECTURES
from workbench.weights import zoo

CONTENT = b"weights" * 1000
ENTRY = zoo.Entry("RN50.pt", hashlib.sha256(CONTENT).hexdigest())


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.server.answer(self)

    def log_message(self, *args):
        pass


def whole(handler, content=CONTENT, claimed=None):
    handler.send_response(200)
    handler.send_header("Content-Length", str(claimed or len(content)))
    handler.end_headers()
    handler.wfile.write(content)


@pytest.fixture
def server(monkeypatch):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.answer = [], whole
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("CLIP_WORKBENCH_ZOO_URL", f"http://127.0.0.1:{server.server_address[1]}/mirror")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setitem(zoo.ZOO, "RN50", ENTRY)
        yield server
        server.shutdown()


def test_the_zoo_is_openais():
    assert list(zoo.ZOO) == list(OPENAI_ARCHITECTURES)
    assert all(len(bytes.fromhex(entry.sha256)) == 32 for entry in zoo.ZOO.values())
    assert len({entry.sha256 for entry in zoo.ZOO.values()}) == 9
    assert zoo.ZOO["ViT-L/14@336px"].url == (
        "https://openaipublic.azureedge.net/clip/models/"
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt"
    )


def test_fetched_once_then_kept(server, tmp_path):
    path = zoo.find("RN50", tmp_path / "cache")
    assert path == tmp_path / "cache" / "RN50.pt" and path.read_bytes() == CONTENT
    assert server.asked == [f"/mirror/{ENTRY.sha256}/RN50.pt"]
    assert zoo.find("RN50", tmp_path / "cache") == path
    assert len(server.asked) == 1


def test_the_folder_is_that_of_the_option_the_variable_or_the_user(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert zoo.find("RN50") == tmp_path / "home" / ".cache" / "clip" / "RN50.pt"
    assert zoo.find("RN50", "~/mine") == tmp_path / "home" / "mine" / "RN50.pt"
    monkeypatch.setenv("CLIP_WORKBENCH_CACHE", str(tmp_path / "variable"))
    assert zoo.find("RN50") == tmp_path / "variable" / "RN50.pt"
    assert zoo.find("RN50", tmp_path / "option") == tmp_path / "option" / "RN50.pt"


def test_a_file_of_another_hash_is_not_used(server, tmp_path):
    (tmp_path / "RN50.pt").write_bytes(b"something else")
    with pytest.raises(UserError, match="is not OpenAI's RN50.pt: its sha256 is .*Delete it"):
        zoo.find("RN50", tmp_path)
    assert server.asked == []


ANSWERS = {
    "not found": lambda handler: handler.send_error(404),
    "another file": lambda handler: whole(handler, b"something else"),
    "cut short": lambda handler: whole(handler, CONTENT[:100], claimed=len(CONTENT)),
    "no HTTP": lambda handler: handler.wfile.write(b"hello\r\n\r\n"),
    "nothing": lambda handler: None,
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_what_cannot_be_had_is_said_and_nothing_is_left(server, tmp_path, answer):
    server.answer = answer
    with pytest.raises(UserError) as raised:
        zoo.find("RN50", tmp_path / "cache")
    said = str(raised.value)
    for needed in (
        "RN50.pt",
        f"/mirror/{ENTRY.sha256}/RN50.pt",
        f"sha256 {ENTRY.sha256}",
        str(tmp_path / "cache" / "RN50.pt"),
        "--model.init_args.weights null",
    ):
        assert needed in said
    assert [path for path in Path(tmp_path).rglob("*") if path.is_file()] == []


def test_no_server_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_WORKBENCH_ZOO_URL", "http://127.0.0.1:9/mirror")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(UserError, match="could not be fetched .*refused"):
        zoo.find("ViT-B/32", tmp_path)
