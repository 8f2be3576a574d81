"""`download` from a small server that answers as the Hub does, in a process of its own."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from llama_nb import presets
from llama_nb.checkpoint import open_checkpoint
from llama_nb.checkpoint.save import convert
from llama_nb.download import UNGATED, cached, download
from llama_nb.errors import InputError

TINY = presets.get("tiny")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _repository(model, folder):
    """Put into a folder what a model's repository holds, needed or not."""
    convert(model.path, folder, dtype="float32", max_shard_bytes=300_000)
    (folder / "original").mkdir()
    for name in ("tokenizer.json", "README.md", "pytorch_model.bin", "onnx.safetensors.txt"):
        (folder / name).write_text(name)
    for name in ("params.json", "tokenizer.model", "consolidated.00.pth", "extra.txt"):
        (folder / "original" / name).write_text(name)


class Hub(BaseHTTPRequestHandler):
    """The few answers that `snapshot_download` needs."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path, self.headers.get("Range")))
        if hub.refusal:
            status, code, message = hub.refusal
            headers = {"X-Error-Code": code, "X-Error-Message": message}
            return self._send(status, json.dumps({"error": message}).encode(), headers, body)
        files = {str(p.relative_to(hub.folder)): p for p in hub.folder.rglob("*") if p.is_file()}
        if path.startswith("/api/models/owner/model/tree/"):
            listed = [self._entry(name, files[name], "path") for name in files]
            return self._send(200, json.dumps(listed).encode(), {}, body)
        if path.startswith("/api/models/owner/model"):
            listed = [self._entry(name, files[name], "rfilename") for name in files]
            info = {"id": "owner/model", "sha": COMMIT, "siblings": listed}
            return self._send(200, json.dumps(info).encode(), {}, body)
        start = f"/owner/model/resolve/{COMMIT}/"
        if path.startswith(start) and path.removeprefix(start) in files:
            return self._file(files[path.removeprefix(start)], body)
        missing = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
        return self._send(404, b"{}", missing, body)

    def _entry(self, name, path, key):
        content = path.read_bytes()
        return {
            key: name,
            "type": "file",
            "size": len(content),
            "oid": hashlib.sha1(content).hexdigest(),
            "blobId": hashlib.sha1(content).hexdigest(),
        }

    def _file(self, path, body):
        content = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        headers["Accept-Ranges"] = "bytes"
        asked, status, total = self.headers.get("Range"), 200, len(content)
        if asked:
            first = int(asked.removeprefix("bytes=").rstrip("-").split("-")[0])
            headers["Content-Range"] = f"bytes {first}-{total - 1}/{total}"
            content, status = content[first:], 206
        hub = self.server.hub
        if body and hub.cut.get(path.name, 0):
            hub.cut[path.name] -= 1
            self._send(status, content, headers, body, keep=len(content) // 2)
            self.close_connection = True
            return None
        return self._send(status, content, headers, body)

    def _send(self, status, content, headers, body, keep=None):
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), "Content-Type": "text/plain", **headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content[:keep])


@pytest.fixture
def hub(tmp_path, write_model):
    """A Hub with one model, and the command that asks it."""
    _repository(write_model(tmp_path / "model", TINY), tmp_path / "repository")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    hub = SimpleNamespace(folder=tmp_path / "repository", asked=[], refusal=None, cut={})
    server.hub = hub
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"

    def start(*arguments, environment=(), **options):
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        place = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "no_proxy": "*"}
        command = [sys.executable, "-m", "llama_nb", "download", *map(str, arguments)]
        return subprocess.Popen(command, env={**keep, **place, **dict(environment)}, **options)

    def run(*arguments, **environment):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with start(*arguments, environment=environment, **pipes) as process:
            out, err = process.communicate()
        return SimpleNamespace(returncode=process.returncode, stdout=out, stderr=err)

    hub.start, hub.run = start, run
    yield hub
    server.shutdown()
    server.server_close()


def _fetched(hub):
    """The files whose content was asked for."""
    return [p.rpartition("/")[2] for verb, p, _ in hub.asked if verb == "GET" and "/resolve/" in p]


def _refused(done, *says):
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("llama-nb: ") and "Traceback" not in done.stderr
    assert all(text in last for text in says), last


NEEDED = {
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
}


def test_a_model_into_the_cache(hub, tmp_path, monkeypatch):
    done = hub.run("owner/model")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    folder = tmp_path / "home/hub/models--owner--model/snapshots" / COMMIT
    assert line == str(folder)
    assert {path.name for path in folder.iterdir()} == NEEDED
    assert set(_fetched(hub)) == NEEDED
    checkpoint = open_checkpoint(folder)
    checkpoint.check()
    assert checkpoint.config == TINY
    hub.asked.clear()
    assert hub.run("owner/model").stdout == done.stdout
    assert _fetched(hub) == []
    # And it is found by its name from now on, without the network.
    where = {"cache_dir": tmp_path / "home/hub"}
    with monkeypatch.context() as patch:
        import huggingface_hub

        find = huggingface_hub.try_to_load_from_cache
        patch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a: find(*a, **where))
        assert cached("owner/model") == folder
        assert cached("owner/other") is None


def test_a_model_into_a_folder(hub, tmp_path):
    from safetensors.numpy import load_file, save_file

    # The connection breaks in a file that is longer than the 10 MB that the library keeps.
    file = hub.folder / "model-00001-of-00002.safetensors"
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(6_000_000, "f")}
    save_file(load_file(file) | frequencies, file)
    hub.cut = {file.name: 1}
    arguments = ("owner/model", "--to", tmp_path / "to", "--revision", "main")
    done = hub.run(*arguments)
    if done.returncode:  # Newer libraries try again by themselves, older ones leave it to us.
        _refused(done, "could not be fetched", "run the same command again")
        done = hub.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'to'}\n"
    names = {path.name for path in (tmp_path / "to").iterdir() if path.is_file()}
    assert names - {".gitignore"} == NEEDED
    for name in NEEDED:
        assert (tmp_path / "to" / name).read_bytes() == (hub.folder / name).read_bytes()
    # What had come before the break was not asked for again.
    ranges = [r for verb, p, r in hub.asked if verb == "GET" and file.name in p]
    assert len(ranges) == 2 and ranges[0] is None
    assert int(ranges[1].removeprefix("bytes=").removesuffix("-")) >= 10 * 2**20
    open_checkpoint(tmp_path / "to").check()


def test_interrupted_and_run_again(hub, tmp_path):
    last = "model-00002-of-00002.safetensors"
    hub.cut = {last: 100}  # The library tries again and again; so end it as a user would.
    arguments = ("owner/model", "--to", tmp_path / "to")
    process = hub.start(*arguments, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not all((tmp_path / "to" / name).is_file() for name in NEEDED - {last}):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not (tmp_path / "to" / last).exists()
    hub.cut = {}
    hub.asked.clear()
    done = hub.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert _fetched(hub) == [last]
    open_checkpoint(tmp_path / "to").check()


def test_metas_own_files(hub, tmp_path):
    done = hub.run("owner/model", "--original")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "home/hub/models--owner--model/snapshots" / COMMIT / "original"
    assert done.stdout == f"{folder}\n"
    names = {"params.json", "tokenizer.model", "consolidated.00.pth"}
    assert {path.name for path in folder.iterdir()} == names
    assert {path.name for path in folder.parent.iterdir()} == {"original"}


def test_a_gated_repository(hub):
    message = "Access to model owner/model is restricted. You must be authenticated to access it."
    hub.refusal = (403, "GatedRepo", message)
    done = hub.run("owner/model")
    _refused(done, "owner/model is gated", f"{hub.url}/owner/model", "HF_TOKEN", UNGATED)


def test_a_repository_that_is_not_there(hub):
    _refused(hub.run("owner/other"), "owner/other is not on the Hub, or is private", "HF_TOKEN")


def test_a_revision_that_is_not_there(hub):
    hub.refusal = (404, "RevisionNotFound", "Invalid rev id: v9")
    _refused(hub.run("owner/model", "--revision", "v9"), "owner/model has no revision 'v9'")


def test_a_repository_without_safetensors(hub):
    for path in hub.folder.glob("*.safetensors"):
        path.unlink()
    _refused(hub.run("owner/model"), "owner/model has no safetensors files")


def test_no_network(hub, tmp_path):
    nowhere = "http://127.0.0.1:9"
    done = hub.run("owner/model", HF_ENDPOINT=nowhere)
    _refused(done, "owner/model could not be fetched", "check the network")
    # A folder that an earlier run left unfinished is no model either.
    (tmp_path / "to").mkdir()
    shutil.copy(hub.folder / "config.json", tmp_path / "to")
    done = hub.run("owner/model", "--to", tmp_path / "to", HF_ENDPOINT=nowhere)
    _refused(done, "owner/model could not be fetched")
    done = hub.run("owner/model", HF_HUB_OFFLINE="1")
    _refused(done, "owner/model could not be fetched", "offline")


def test_a_folder_that_cannot_be_written(hub, tmp_path):
    (tmp_path / "file").write_text("mine")
    _refused(hub.run("owner/model", "--to", tmp_path / "file"), f"{tmp_path / 'file'}")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk(hub, tmp_path, monkeypatch):
    import huggingface_hub

    info = SimpleNamespace(
        sha=COMMIT, siblings=[SimpleNamespace(rfilename="model.safetensors", size=16_000_000_000)]
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **options: info)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    with pytest.raises(
        InputError, match="16,000,000,000 bytes are to be fetched and 1,000,000,000"
    ):
        download("owner/model", tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("name", ["llama3-8b", "", "/", "a/", "a/b/c", "owner/na me", "owner/.."])
def test_names_that_are_none(name):
    with pytest.raises(InputError, match="repository"):
        download(name)
