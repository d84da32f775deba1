"""Which file is used, where it is looked for, and what is said when there is none."""

import hashlib
import http.server
import re
import socketserver
import threading
import warnings
from pathlib import Path

import pytest

from workbench.errors import UserError
from workbench.models import OPENAI_ARCHITECTURES
from workbench.weights import download, zoo

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


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Another home, a quick downloader, and no warning that a test does not expect."""
    monkeypatch.setattr(download, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CLIP_WORKBENCH_CACHE", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield tmp_path / "home"


@pytest.fixture
def openais(home):
    """The file of OpenAI's own package."""
    path = home / ".cache" / "clip" / "RN50.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    return path


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


def test_the_folder_is_that_of_the_option_the_variable_or_the_user(server, home, tmp_path, monkeypatch):
    assert zoo.find("RN50", "~/mine") == home / "mine" / "RN50.pt"
    monkeypatch.setenv("CLIP_WORKBENCH_CACHE", str(tmp_path / "variable"))
    assert zoo.find("RN50") == tmp_path / "variable" / "RN50.pt"
    assert zoo.find("RN50", tmp_path / "option") == tmp_path / "option" / "RN50.pt"
    monkeypatch.delenv("CLIP_WORKBENCH_CACHE")
    assert zoo.find("RN50") == home / ".cache" / "clip" / "RN50.pt"
    assert len(server.asked) == 4


def test_what_openais_package_fetched_is_used_in_place(server, openais, tmp_path, monkeypatch):
    assert zoo.find("RN50", tmp_path / "option") == openais
    monkeypatch.setenv("CLIP_WORKBENCH_CACHE", str(tmp_path / "variable"))
    assert zoo.find("RN50") == openais
    assert server.asked == [] and not (tmp_path / "option").exists()


def test_the_chosen_folder_comes_before_openais(server, openais, tmp_path):
    mine = tmp_path / "RN50.pt"
    mine.write_bytes(CONTENT)
    assert zoo.find("RN50", tmp_path) == mine
    mine.write_bytes(b"something else")
    with pytest.warns(UserWarning):
        assert zoo.find("RN50", tmp_path) == mine
    assert mine.read_bytes() == CONTENT and len(server.asked) == 1


def test_a_wrong_file_of_openais_package_is_left_alone(server, openais, tmp_path, monkeypatch):
    openais.write_bytes(b"something else")
    assert zoo.find("RN50", tmp_path / "1") == tmp_path / "1" / "RN50.pt"
    assert openais.read_bytes() == b"something else"
    openais.unlink()
    openais.mkdir()
    assert zoo.find("RN50", tmp_path / "2") == tmp_path / "2" / "RN50.pt"
    monkeypatch.setattr(Path, "expanduser", no_home)
    assert zoo.find("RN50", tmp_path / "3") == tmp_path / "3" / "RN50.pt"
    assert len(server.asked) == 3


def no_home(path):
    if str(path).startswith("~"):
        raise RuntimeError("Could not determine home directory.")
    return path


def test_a_file_of_another_hash_is_fetched_again(server, tmp_path):
    path = tmp_path / "RN50.pt"
    path.write_bytes(b"something else")
    wrong = hashlib.sha256(b"something else").hexdigest()
    with pytest.warns(UserWarning, match=f"{path} is not OpenAI's RN50.pt .*{wrong}.* again") as warned:
        assert zoo.find("RN50", tmp_path) == path
    assert path.read_bytes() == CONTENT and len(server.asked) == 1
    assert warned[0].filename == __file__


def test_a_file_of_another_hash_stays_when_the_right_one_cannot_be_had(server, tmp_path):
    server.answer = lambda handler: handler.send_error(404)
    path = tmp_path / "RN50.pt"
    path.write_bytes(b"something else")
    wrong = hashlib.sha256(b"something else").hexdigest()
    said = f"^{path} is not OpenAI's RN50.pt .*{wrong}.* the right one could not be fetched .HTTP 404.*{ENTRY.sha256}"
    with pytest.warns(UserWarning), pytest.raises(UserError, match=said):
        zoo.find("RN50", tmp_path)
    assert path.read_bytes() == b"something else"


ANSWERS = {
    "not found": (lambda handler: handler.send_error(404), "HTTP 404 Not Found"),
    "another file": (lambda handler: whole(handler, b"something else"), "what came has the sha256"),
    "cut short": (
        lambda handler: whole(handler, CONTENT[:100], claimed=len(CONTENT)),
        "the connection was dropped, 5 times",
    ),
    "no HTTP": (lambda handler: handler.wfile.write(b"hello\r\n\r\n"), "BadStatusLine: hello"),
    "nothing": (lambda handler: None, "RemoteDisconnected"),
}


@pytest.mark.parametrize("answer, why", ANSWERS.values(), ids=ANSWERS)
def test_what_cannot_be_had_is_said_and_nothing_is_left(server, tmp_path, answer, why):
    server.answer = answer
    with pytest.raises(UserError) as raised:
        zoo.find("RN50", tmp_path / "cache")
    said = str(raised.value)
    for needed in (
        "The weights of RN50 are not on this machine",
        f"could not be fetched ({why}",
        f"Get RN50.pt from {ENTRY.url} (sha256 {ENTRY.sha256})",
        f"put it at {tmp_path / 'cache' / 'RN50.pt'};",
        "--model.init_args.weights null",
    ):
        assert needed in said
    assert said.count("\n") == 0
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] in ([], ["RN50.pt.lock"])


def test_no_server_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_WORKBENCH_ZOO_URL", "http://127.0.0.1:9/mirror")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    url = re.escape(zoo.ZOO["ViT-B/32"].url)
    with pytest.raises(
        UserError, match=rf"could not be fetched \(Connection refused.*{url} .*at {tmp_path}/ViT-B-32.pt"
    ):
        zoo.find("ViT-B/32", tmp_path)
