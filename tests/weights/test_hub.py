"""`hf-hub:` against a server on 127.0.0.1 that answers as the hub does, through huggingface_hub itself."""

import hashlib
import http.server
import json
import os
import socketserver
import subprocess
import sys
import threading
import urllib.parse

import pytest
import torch
from safetensors.torch import save

from workbench.models import create_model
from workbench.weights import huggingface, openclip

COMMIT, OLD = "a" * 40, "b" * 40


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        parts = urllib.parse.unquote(self.path).strip("/").split("/")
        self.server.asked.append((self.command, self.path))
        if len(parts) != 5 or parts[2] != "resolve" or "/".join(parts[:2]) not in self.server.models:
            self.refuse("RepoNotFound")
            return
        files, revision = self.server.models["/".join(parts[:2])], parts[3]
        if revision not in ("main", COMMIT, OLD):
            self.refuse("RevisionNotFound")
            return
        if parts[4] not in files:
            self.refuse("EntryNotFound")
            return
        body = files[parts[4]]
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT if revision == "main" else revision)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def refuse(self, code):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        if code == "EntryNotFound":
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.models = [], {}
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def fetch(hub, tmp_path, reference, allow_bin=False, offline=False):
    """In a process of its own: huggingface_hub reads its environment once."""
    code = (
        "import sys, torch; from workbench.errors import UserError; from workbench.weights import read_weights\n"
        "try:\n w = read_weights(sys.argv[1]); print(w.source, w.architecture.name, w.architecture.activation,"
        " w.provenance('x')['revision'], float(w.state_dict['text_projection'].sum()))\n"
        "except UserError as error: print(error); sys.exit(2)"
    )
    env = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "no_proxy": "127.0.0.1",
        "CLIP_WORKBENCH_ALLOW_BIN": "1" if allow_bin else "0",
    }
    found = subprocess.run([sys.executable, "-c", code, reference], env=env, capture_output=True, text=True)
    return found.returncode, found.stdout.strip(), found.stderr


def openclips(**more):
    torch.manual_seed(1)
    model = create_model("tiny-vit", activation="gelu")
    config = json.dumps(openclip.write_config(model.architecture)).encode()
    return model, {"open_clip_config.json": config, "open_clip_model.safetensors": save(model.state_dict()), **more}


def expected(model, source, name="tiny-vit", revision=COMMIT):
    return f"{source} {name} {model.architecture.activation} {revision} {float(model.text_projection.detach().sum())}"


def test_a_model_of_openclips_then_again_without_fetching(hub, tmp_path):
    model, files = openclips(**{"open_clip_pytorch_model.bin": b"never asked for", "README.md": b"nor this"})
    hub.models["org/name"] = files
    assert fetch(hub, tmp_path, "hf-hub:org/name")[:2] == (0, expected(model, "OpenCLIP's"))
    got = [path for command, path in hub.asked if command == "GET"]
    assert {path.split("/")[-1] for path in got} == {"open_clip_config.json", "open_clip_model.safetensors"}
    # The weights are those of the commit that the configuration is of, whatever happens to `main` meanwhile.
    assert all(f"/resolve/{COMMIT}/" in path for path in got if path.endswith("safetensors"))
    hub.asked.clear()
    assert fetch(hub, tmp_path, "hf-hub:org/name")[0] == 0
    assert [path for command, path in hub.asked if command == "GET"] == []
    # Without a network, what was fetched is still there.
    assert fetch(hub, tmp_path, "hf-hub:org/name", offline=True)[:2] == (0, expected(model, "OpenCLIP's"))


def test_a_model_of_hugging_faces_at_a_revision(hub, tmp_path):
    model = create_model("tiny-vit")
    hub.models["org/name"] = {
        "config.json": json.dumps(huggingface.write_config(model.architecture)).encode(),
        "preprocessor_config.json": json.dumps(huggingface.write_preprocessor(model.architecture)).encode(),
        "model.safetensors": save(huggingface.from_openai_keys(model.state_dict())),
    }
    code, said, _ = fetch(hub, tmp_path, f"hf-hub:org/name@{OLD}")
    assert (code, said) == (0, expected(model, "Hugging Face's", revision=OLD))


def huggings(model):
    return {
        "config.json": json.dumps(huggingface.write_config(model.architecture)).encode(),
        "model.safetensors": save(huggingface.from_openai_keys(model.state_dict())),
    }


def test_what_was_fetched_of_hugging_faces_is_there_without_a_network(hub, tmp_path):
    model = create_model("tiny-vit")
    hub.models["org/name"] = huggings(model)
    for offline in (False, True):
        said = fetch(hub, tmp_path, "hf-hub:org/name", offline=offline)
        assert said[:2] == (0, expected(model, "Hugging Face's")), said


def test_a_model_with_openclips_pickle_and_hugging_faces_safetensors(hub, tmp_path):
    model, files = openclips()
    del files["open_clip_model.safetensors"]
    hub.models["org/name"] = files | huggings(model) | {"open_clip_pytorch_model.bin": b"never asked for"}
    assert fetch(hub, tmp_path, "hf-hub:org/name")[:2] == (0, expected(model, "Hugging Face's"))


def test_pickles_are_taken_on_request_alone(hub, tmp_path):
    model, files = openclips()
    torch.save(model.state_dict(), tmp_path / "m.bin")
    del files["open_clip_model.safetensors"]
    hub.models["org/name"] = files | {"open_clip_pytorch_model.bin": (tmp_path / "m.bin").read_bytes()}
    code, said, _ = fetch(hub, tmp_path, "hf-hub:org/name")
    assert code == 2 and "CLIP_WORKBENCH_ALLOW_BIN=1" in said
    assert not any(path.endswith(".bin") for _, path in hub.asked)
    assert fetch(hub, tmp_path, "hf-hub:org/name", allow_bin=True)[:2] == (0, expected(model, "OpenCLIP's"))


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("hf-hub:org/nothing", "no model org/nothing"),
        ("hf-hub:org/other", "neither open_clip_config.json nor config.json"),
        ("hf-hub:org/name@nowhere", "no revision 'nowhere'"),
        ("hf-hub:name", "not of the form hf-hub:org/name"),
        ("hf-hub:../x", "not"),
        ("hf-hub:a--b/c", "a--b/c"),
        ("hf-hub:org/broken", "no readable JSON"),
        ("hf-hub:org/siglip", "'siglip', not of a CLIPModel"),
    ],
)
def test_what_cannot_be_had(hub, tmp_path, reference, said):
    hub.models |= {"org/name": openclips()[1], "org/other": {"README.md": b""}}
    hub.models["org/broken"] = {"config.json": b"{"}
    hub.models["org/siglip"] = {
        "config.json": b'{"model_type": "siglip"}',
        "model.safetensors": save(openclips()[0].state_dict()),
    }
    code, text, trace = fetch(hub, tmp_path, reference)
    assert (code, text.count("\n"), trace) == (2, 0, "") and said in text


def test_no_network(hub, tmp_path):
    code, text, _ = fetch(hub, tmp_path, "hf-hub:org/name", offline=True)
    assert code == 2 and "cannot be reached" in text and "give its path in place of hf-hub:" in text
