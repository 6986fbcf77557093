"""Models by URL: copied once, checked, and used without the store."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler

import pytest
from click.testing import CliRunner

from mineral_batch.cli import main
from mineral_batch.engines.registry import PLAN_SUFFIXES
from mineral_batch.errors import DataError
from mineral_batch.storage import download, models
from mineral_batch.storage.interface import Entry
from mineral_batch.storage.models import fetch
from mineral_batch.storage.store import open_store
from mineral_batch.storage.stream import Stream

from ...fakes.web_server import address, serving


@pytest.mark.slow
def test_a_model_is_copied_once_checked_and_used_offline(s3, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = open_store("s3://photos")
    store.put("m/model.onnx", b"first")
    copy = fetch("s3://photos/m/model.onnx")
    assert copy.name == "model.onnx"
    assert copy.read_bytes() == b"first"
    copy.write_bytes(b"damaged")
    assert fetch("s3://photos/m/model.onnx").read_bytes() == b"first"
    store.put("m/model.onnx", b"second")
    assert fetch("s3://photos/m/model.onnx").read_bytes() == b"second"

    def gone(*_):
        raise models.UnreachableError("no answer")

    monkeypatch.setattr(type(store), "head", gone)
    assert fetch("s3://photos/m/model.onnx").read_bytes() == b"second"
    assert "using the copy made earlier" in caplog.text


@pytest.mark.slow
def test_an_engine_comes_with_its_description(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = open_store("s3://photos")
    store.put("m/model.plan", b"engine")
    with pytest.raises(DataError, match=r"no such object: s3://photos/m/model\.plan\.json"):
        fetch("s3://photos/m/model.plan")
    store.put("m/model.plan.json", b"{}")
    copy = fetch("s3://photos/m/model.plan")
    assert copy.read_bytes() == b"engine"
    assert copy.with_name("model.plan.json").read_bytes() == b"{}"
    assert models.ENGINES == PLAN_SUFFIXES


class _Halves(BaseHTTPRequestHandler):
    """Sends a model of 3 MB; the connection breaks in the middle of the first `broken` answers."""

    content = bytes(range(256)) * 12_000
    broken = 0
    together = threading.Barrier(1)

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.send_header("ETag", '"one"')
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        type(self).together.wait(120)
        if type(self).broken > 0:
            type(self).broken -= 1
            self.wfile.write(self.content[: 2**21])
            self.close_connection = True
        else:
            self.wfile.write(self.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def halves(monkeypatch, tmp_path):
    pytest.importorskip("urllib3")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with serving(_Halves) as server:
        yield f"{address(server)}/m.onnx"


def test_an_interrupted_download_leaves_nothing_wrong(halves, tmp_path, monkeypatch):
    monkeypatch.setattr(_Halves, "broken", 1)
    with pytest.raises(DataError, match="no answer from the server") as error:
        fetch(halves)
    assert "\n" not in str(error.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert fetch(halves).read_bytes() == _Halves.content


def test_a_download_that_was_killed_is_swept_away_a_day_later(halves, tmp_path):
    folder = fetch(halves).parent
    old, young = folder / ".m.onnx.aa.part", folder / ".m.onnx.bb.part"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    (folder / "m.onnx").write_bytes(b"damaged")
    assert fetch(halves).read_bytes() == _Halves.content
    assert (old.exists(), young.exists()) == (False, True)


def test_two_downloads_at_once_give_one_whole_copy(halves, tmp_path, monkeypatch):
    monkeypatch.setattr(_Halves, "together", threading.Barrier(2))
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(fetch, [halves, halves]))
    assert paths[0] == paths[1]
    assert paths[0].read_bytes() == _Halves.content
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["m.onnx", "m.onnx.sha256"]


def test_a_large_model_is_never_in_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    blocks = 64

    class Big:
        root = "s3://models"

        def head(self, key):
            return Entry(key, blocks * 2**20, 1, '"x"')

        def open(self, key, check=None):
            return Stream((bytes(2**20) for _ in range(blocks)), lambda error: error)

    for module in (models, download):
        monkeypatch.setattr(module, "open_store", lambda url: Big())
    tracemalloc.start()
    try:
        copy = fetch("s3://models/big.onnx")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert copy.stat().st_size == blocks * 2**20
    assert peak < 8 * 2**20


def test_a_path_stays_one(tmp_path):
    assert fetch(tmp_path / "m.onnx") == tmp_path / "m.onnx"
    assert fetch(f"file://{tmp_path}/m.onnx") == tmp_path / "m.onnx"


class _Hub(BaseHTTPRequestHandler):
    """A Hub with one repository that has one file; `no` is not there."""

    content = b"a model"

    def do_HEAD(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        known = self.path.startswith("/me/mine/resolve/") and self.path.endswith("/model.onnx")
        self.send_response(200 if known else 404)
        if known:
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        elif self.path.startswith("/me/mine/"):
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("X-Error-Code", "RepoNotFound")
        body = self.content if known else json.dumps({"error": "no"}).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    with serving(_Hub) as server:
        server.asked = []
        template = address(server) + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", address(server))
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "huggingface"))
        yield server


@pytest.mark.slow
def test_models_of_the_hub(hub):
    path = fetch("hf://me/mine")
    assert path.read_bytes() == b"a model"
    assert fetch("hf://me/mine@main/model.onnx") == path
    with pytest.raises(DataError, match="no such file"):
        fetch("hf://me/mine/other.onnx")
    with pytest.raises(DataError, match="no such repository"):
        fetch("hf://me/nothing")
    path.resolve().write_bytes(b"changed")
    with pytest.raises(DataError, match="damaged"):
        fetch("hf://me/mine")


@pytest.mark.slow
def test_a_mirror_and_a_token_are_taken_from_the_environment_as_by_the_hubs_own_tools(hub, tmp_path):
    environment = os.environ | {
        "HF_ENDPOINT": address(hub),
        "HF_TOKEN": "hf_hidden",
        "HF_HOME": str(tmp_path / "home"),
    }
    command = [sys.executable, "-m", "mineral_batch", "info", "hf://me/mine@v2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "not an ONNX" in done.stderr or "model.onnx" in done.stderr  # it is no model, but it has come
    asked = {path for path, _ in hub.asked}
    assert "/me/mine/resolve/v2/model.onnx" in asked
    assert all(token == "Bearer hf_hidden" for path, token in hub.asked if "/resolve/v2/" in path)
    assert "hf_hidden" not in done.stdout + done.stderr


@pytest.mark.parametrize("text", ["hf://one", "hf://a/b/", "hf://a b/c"])
def test_what_is_no_file_of_the_hub(text):
    with pytest.raises(DataError, match="write it as hf://"):
        fetch(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "s3:///x"], "no bucket in the URL s3:///x"),
        (["predict", "ftp://host/x"], "unknown kind of URL: ftp://host/x"),
        (["predict", "s3://bucket/*.jpg"], "patterns are not expanded in URLs"),
        (["info", "hf://one"], "not a file on the Hub"),
        (["explain", "a.jpg", "-o", "s3://bucket/maps"], "s3://bucket/maps is a URL: name a file or folder on this"),
        (
            ["report", "results", "-o", "s3://bucket/r.html"],
            "s3://bucket/r.html is a URL: name a file or folder on this",
        ),
        (["check", "s3://bucket/results"], "s3://bucket/results is a URL: name a file or folder on this"),
    ],
)
def test_bad_urls_are_one_line(arguments, message):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output
