"""A server of files in memory, which knows ranges and can be told to fail."""

import hashlib
import http.server
import re
import socketserver
import threading

import pytest

from workbench.weights import download


class FileServer(socketserver.ThreadingTCPServer):
    """Serves `files` (path -> bytes); `answers` are taken, one a request, in place of the usual one.

    `asked` has (path, first byte) of every request but those for the first byte alone, which are in `probed`.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.files, self.tags, self.answers, self.probe_answers = {}, {}, [], []
        self.asked, self.probed = [], []
        self.tagged = True

    def handle_error(self, *args):
        pass

    def address(self, path, content=None):
        """Return a file's address; with content, put it there."""
        if content is not None:
            self.files[path] = content
        return f"{self.url}/{path}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path, asked = self.path.partition("?")[0].lstrip("/"), self.headers["Range"]
        probe = asked == "bytes=0-0"
        answers = self.server.probe_answers if probe else self.server.answers
        if probe:
            self.server.probed.append(path)
        else:
            self.server.asked.append((path, int(re.fullmatch(r"bytes=(\d+)-.*", asked)[1]) if asked else 0))
        answer = answers.pop(0) if answers else whole
        answer(self, path, asked)

    def do_HEAD(self):
        self.head_only = True
        whole(self, self.path.partition("?")[0].lstrip("/"), None)

    def log_message(self, *args):
        pass

    def head(self, status, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def listing(self, folder):
        inside = sorted({name[len(folder) :].split("/")[0] for name in self.server.files if name.startswith(folder)})
        page = "".join(f'<a href="{name}">{name}</a>\n' for name in inside).encode()
        self.head(200, Content_Length=len(page), Content_Type="text/html")
        self.send_body(page)

    def send_body(self, content):
        if not getattr(self, "head_only", False):
            self.wfile.write(content)


def whole(handler, path, asked, size=None, longer=0, content=None):
    """Answer as one should; but for `size`, after which the connection drops, and a length that is `longer`."""
    server = handler.server
    if path.endswith("/") or not path:
        return handler.listing(path)
    content = server.files.get(path) if content is None else content
    if content is None:
        return handler.head(404, Content_Length=0)
    tag = server.tags.get(path, f'"{hashlib.sha256(content).hexdigest()[:8]}"')
    headers = {"ETag": tag} if server.tagged else {}
    total = len(content) + longer
    if not asked:
        handler.head(200, Content_Length=total, Accept_Ranges="bytes", **headers)
        return handler.send_body(content[:size])
    first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", asked).groups()
    first, last = int(first), min(int(last or total - 1), total - 1)
    if first >= total:
        return handler.head(416, Content_Range=f"bytes */{total}", Content_Length=0, **headers)
    length = last - first + 1
    handler.head(206, Content_Length=length, Content_Range=f"bytes {first}-{last}/{total}", **headers)
    return handler.send_body(content[first : last + 1][:size])


@pytest.fixture
def file_server(monkeypatch):
    monkeypatch.setattr(download, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(download, "READ_TIMEOUT", 5)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with FileServer() as server:
        server.whole = whole
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clip-workbench"
