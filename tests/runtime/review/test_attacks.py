"""Requests, files and names that a page, a program or a table of somebody else may send at the review's server."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import time
from pathlib import Path
from xml.etree import ElementTree
from zipfile import ZipFile

import pytest
from click.testing import CliRunner
from PIL import Image

from mineral_batch.cli import main
from mineral_batch.results.csv import write_csv
from mineral_batch.review.decisions import Decisions

from .serving import LABELS, NAMES, Server, serving

pytestmark = pytest.mark.slow

SECONDS_FOR_A_HEAD = 10
SCRIPT = '"><script>alert(1)</script>'


def raw(server: Server, text: str) -> tuple[int, dict[str, str], bytes]:
    """What a request, sent as it is, is answered: status, headers, body; the connection must end by itself."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(text.replace("\n", "\r\n").encode("latin-1"))
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(status.split()[1]), {name.lower(): value for name, value in headers.items()}, body


def host(server: Server) -> str:
    return f"Host: 127.0.0.1:{server.port}"


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:{port}"])
def test_a_web_socket_is_not_opened(shared: Server, origin: str) -> None:
    status, headers, _ = raw(
        shared,
        f"GET {shared.root}api/state HTTP/1.1\n{host(shared)}\nOrigin: {origin.format(port=shared.port)}\n"
        "Connection: Upgrade, close\nUpgrade: websocket\nSec-WebSocket-Version: 13\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n\n",
    )
    assert status == 200  # as if nothing had been asked
    assert "upgrade" not in headers


def test_http_1_0_needs_the_host_too(shared: Server) -> None:
    assert raw(shared, f"GET {shared.root}api/state HTTP/1.0\n\n")[0] == 403
    assert raw(shared, f"GET {shared.root}api/state HTTP/1.0\n{host(shared)}\n\n")[0] == 200


@pytest.mark.parametrize(
    "request_line",
    [
        "GET {root} HTTP/1.1\nHost: 127.0.0.1:{port}\nHost: evil.example",
        "GET {root} HTTP/1.1",
        "GET {root} HTTP/1.1\nHost: 127.0.0.1:{port}\n folded: x",
        "GET {root}\0 HTTP/1.1\nHost: 127.0.0.1:{port}",
        "POST {root}api/undo HTTP/1.1\nHost: 127.0.0.1:{port}\nContent-Length: 5\nTransfer-Encoding: chunked",
        "\x16\x03\x01\x02",
    ],
    ids=["two hosts", "no host", "folded", "NUL", "smuggling", "TLS"],
)
def test_a_malformed_request_is_refused(shared: Server, request_line: str) -> None:
    text = request_line.format(root=shared.root, port=shared.port)
    status, _, _ = raw(shared, f"{text}\nConnection: close\n\n")
    assert status in (400, 403)
    assert shared.api("api/state")["images"] == len(NAMES)


def test_an_absolute_address_of_another_host_is_nothing(shared: Server) -> None:
    status, _, body = raw(
        shared, f"GET http://evil.example{shared.root}api/state HTTP/1.1\n{host(shared)}\nConnection: close\n\n"
    )
    assert status == 404
    assert b"labels" not in body


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PUT", "DELETE", "PATCH", "CONNECT", "FOO"])
def test_other_methods_are_refused_and_no_other_site_is_allowed(shared: Server, method: str) -> None:
    for origin in ("http://evil.example", f"http://127.0.0.1:{shared.port}"):
        status, _, headers = shared.ask(f"{shared.root}api/decide", method=method, headers={"Origin": origin})
        assert status in (403, 405)
        assert not [name for name in headers if name.startswith("access-control")]


def test_head_has_the_headers_and_no_body(shared: Server) -> None:
    for path in ("", "api/state", "image/0", "labels.csv"):
        status, body, headers = shared.ask(shared.root + path, method="HEAD")
        assert (status, body) == (200, b"")
        assert "default-src 'none'" in headers["content-security-policy"]
    assert shared.ask("/x", method="HEAD")[0] == 404


@pytest.mark.parametrize("ranges", ["bytes=0-9", "bytes=-1", "bytes=0-,0-,0-", "bytes=9999999-", "x"])
def test_a_range_gives_the_whole(shared: Server, ranges: str) -> None:
    whole = shared.ask(f"{shared.root}image/0")[1]
    status, body, _ = shared.ask(f"{shared.root}image/0", headers={"Range": ranges})
    assert (status, body) == (200, whole)


def test_silent_and_slow_connections_are_ended_and_keep_nobody_out(shared: Server) -> None:
    silent = [socket.create_connection(("127.0.0.1", shared.port)) for _ in range(300)]
    dripping = socket.create_connection(("127.0.0.1", shared.port))
    ends = time.monotonic() + SECONDS_FOR_A_HEAD + 5
    dripping.settimeout(0.5)
    is_open = True
    while is_open and time.monotonic() < ends:  # a byte of a head, now and then
        try:
            dripping.sendall(b"G")
            is_open = dripping.recv(1) != b""
        except TimeoutError:
            continue
        except OSError:
            is_open = False
    assert not is_open
    assert shared.api("api/state")["images"] == len(NAMES)
    for connection in silent:
        connection.settimeout(5)
        assert connection.recv(1) == b""
        connection.close()
    dripping.close()


def test_a_huge_head_is_refused(shared: Server) -> None:
    with socket.create_connection(("127.0.0.1", shared.port), timeout=30) as connection:
        connection.sendall(f"GET {shared.root} HTTP/1.1\r\nX: {'x' * 200_000}".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 400")
    assert shared.api("api/state")["images"] == len(NAMES)


# --- files that are no photographs ---------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/etc/passwd", "/dev/zero", "/proc/self/environ", ".", "loop"])
def test_a_photograph_that_became_a_link_to_another_file_is_not_served(
    server: Server, results: Path, target: str
) -> None:
    photo = results.parent / "photos" / NAMES[0]
    photo.unlink()
    photo.symlink_to(photo if target == "loop" else target)
    for kind in ("image", "thumbnail"):
        status, content, headers = server.ask(f"{server.root}{kind}/0")
        assert status == 404
        assert b"root:" not in content
        assert b"PATH" not in content
        assert headers["content-type"].startswith("text/plain")
    assert server.ask(f"{server.root}image/1")[0] == 200


def test_a_photograph_that_became_a_pipe_holds_up_nobody(server: Server, results: Path) -> None:
    photo = results.parent / "photos" / NAMES[0]
    photo.unlink()
    os.mkfifo(photo)
    assert server.ask(f"{server.root}image/0")[0] == 404


@pytest.mark.parametrize(
    "content",
    [
        b"<html><script>alert(1)</script>",
        b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>',
        b"%PDF-1.7\n",
        b"",
    ],
)
def test_what_only_is_called_a_photograph_is_a_line_of_text(server: Server, results: Path, content: bytes) -> None:
    (results.parent / "photos" / NAMES[0]).write_bytes(content)
    status, body, headers = server.ask(f"{server.root}image/0")
    assert status == 404
    assert (headers["content-type"].split(";")[0], headers["x-content-type-options"]) == ("text/plain", "nosniff")
    assert b"<" not in body


def test_what_a_photograph_carries_besides_pixels_stays_behind(server: Server, results: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = SCRIPT
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "JPEG", exif=exif, comment=SCRIPT.encode())
    assert b"<script" in file.getvalue()
    (results.parent / "photos" / NAMES[0]).write_bytes(file.getvalue() + SCRIPT.encode())
    status, body, headers = server.ask(f"{server.root}image/0")
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    assert b"<script" not in body


def explained(results: Path, overlay: str) -> Path:
    folder = results.parent / "maps"
    folder.mkdir()
    table = (results / "predictions.csv").read_text("utf-8", "surrogateescape")
    scores = next(csv.DictReader(table.splitlines()))
    row = (scores["path"], "quartz", scores["quartz"], overlay)
    write_csv(folder / "maps.csv", ("path", "mineral", "probability", "overlay"), [row])
    return folder


@pytest.mark.parametrize("overlay", ["/etc/passwd", "../results/predictions.csv", "../photos/a.jpg", "none.png", "."])
def test_a_table_of_maps_cannot_name_another_file(results: Path, overlay: str) -> None:
    pytest.importorskip("uvicorn", reason="the extra review is not installed")
    with serving(results, "--explained", str(explained(results, overlay))) as server:
        status, content, _ = server.ask(f"{server.root}map/0/0")
        assert status == 404
        assert b"root:" not in content
        assert b"minerals" not in content


# --- names ---------------------------------------------------------------------------------------------


def test_a_line_end_in_a_name_makes_no_header(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="the extra review is not installed")
    folder = tmp_path / "results"
    folder.mkdir()
    name = "a\r\nX-Evil: 1\r\n\r\n<script>.jpg"
    write_csv(folder / "predictions.csv", ("path", "minerals", *LABELS), [(name, "", 0.1, 0.2, 0.3)])
    with serving(folder, "--reviewer", "Eve\r\nX-Evil: 2") as server:
        server.api("api/decide", {"decisions": [{"row": 0, "status": "labeled", "minerals": ["gold"]}]})
        for path in ("image/0", "api/item/0", "labels.csv", "api/state"):
            _, _, headers = server.ask(server.root + path)
            assert "x-evil" not in headers
        row = next(csv.DictReader(io.StringIO(server.ask(f"{server.root}labels.csv")[1].decode(), newline="")))
        assert row["path"] == name


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "-2", "@SUM(A1)", "＝1"])
def test_a_label_that_a_spreadsheet_would_run_is_refused(shared: Server, name: str) -> None:
    body = {"decisions": [{"row": 0, "status": "labeled", "minerals": [name]}]}
    status, content, _ = shared.ask(f"{shared.root}api/decide", body)
    assert status == 404
    assert b"formula" in content


HOSTILE = (SCRIPT, "../../evil", "/tmp/evil", "]]><x>&amp\\", "a|b, 'c' {{7*7}}")


def test_a_hostile_label_is_text_in_every_export(results: Path, tmp_path: Path) -> None:
    with Decisions(results) as decisions:
        decisions.decide(f"photos/{NAMES[0]}", "labeled", HOSTILE, machine=["gold"], reviewer=SCRIPT)
    before = {path for path in tmp_path.rglob("*") if path.is_relative_to(results) is False}

    def deliver(form: str, *options: str) -> None:
        done = CliRunner().invoke(main, ["deliver", str(results), "--as", form, "--photos", str(tmp_path), *options])
        assert done.exit_code == 0, done.output

    for form in ("label-studio", "cvat", "coco", "fiftyone", "folders", "csv-excel", "darwin-core", "dwca"):
        deliver(form)
    assert {path for path in tmp_path.rglob("*") if path.is_relative_to(results) is False} == before
    config = ElementTree.parse(results / "label-studio" / "config.xml")
    assert {*HOSTILE} <= {choice.get("value") for choice in config.iter("Choice")}
    cvat = ElementTree.parse(results / "cvat" / "annotations.xml")
    assert {*HOSTILE} <= {tag.get("label") for tag in cvat.iter("tag")}
    for file in ("coco/annotations/labels_default.json", "fiftyone/labels.json", "label-studio/tasks.json"):
        assert json.loads((results / file).read_bytes())
    for archive in ("darwin-core.zip", "dwca.zip"):
        with ZipFile(results / archive) as content:
            for name in content.namelist():
                if name.endswith(".xml"):
                    assert b"<script>" not in content.read(name)
                    ElementTree.fromstring(content.read(name))
    deliver("xmp")
    sidecars = [*(results / "xmp").rglob("*.xmp")]
    texts = {element.text for file in sidecars for element in ElementTree.parse(file).iter()}
    assert SCRIPT in texts


def test_a_hostile_label_is_a_string_in_a_workbook(results: Path, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl", reason="the extra deliver is not installed")
    with Decisions(results) as decisions:
        decisions.decide(f"photos/{NAMES[0]}", "labeled", HOSTILE, machine=[], reviewer="=1+1")
    done = CliRunner().invoke(main, ["deliver", str(results), "--as", "excel", "--photos", str(tmp_path)])
    assert done.exit_code == 0, done.output
    sheets = openpyxl.load_workbook(results / "minerals.xlsx")
    cells = [cell for sheet in sheets for row in sheet.iter_rows() for cell in row]
    assert not [cell.value for cell in cells if cell.data_type == "f" and "HYPERLINK" not in cell.value]
    assert any(SCRIPT in str(cell.value) for cell in cells)
