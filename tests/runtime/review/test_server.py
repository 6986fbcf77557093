"""The review's server: what it shows and records, and whom it refuses."""

from __future__ import annotations

import csv
import io
import json
import signal
import socket
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from PIL import Image

from mineral_batch.cli import main
from mineral_batch.results.csv import write_csv
from mineral_batch.review.decisions import Decisions, read_decisions

from .serving import LABELS, NAMES, Server, serving

if TYPE_CHECKING:
    from pathlib import Path


def labeled(row: int, *minerals: str) -> dict[str, object]:
    return {"row": row, "status": "labeled", "minerals": list(minerals)}


def test_every_image_comes_up_once_with_its_candidates_in_order(shared: Server) -> None:
    found = shared.api("api/queue?order=teaches&limit=100")
    assert sorted(item["row"] for item in found["items"]) == list(range(len(NAMES)))
    assert found["total"] == len(NAMES)
    for item in found["items"]:
        values = [candidate["probability"] for candidate in item["candidates"]]
        assert values == sorted(values, reverse=True)


def test_one_mineral_comes_from_sure_to_unsure(shared: Server) -> None:
    items = shared.api("api/queue?order=mineral&label=gold&limit=100")["items"]
    gold = [next(c["probability"] for c in item["candidates"] if c["label"] == "gold") for item in items]
    assert gold == sorted(gold, reverse=True)


def test_images_are_served_by_number_with_hostile_names_and_all(shared: Server) -> None:
    for row in range(len(NAMES)):
        status, content, headers = shared.ask(f"{shared.root}image/{row}")
        assert (status, headers["content-type"]) == (200, "image/jpeg")
        assert Image.open(io.BytesIO(content)).size == (60 + row, 40)


def test_a_decision_is_on_disk_when_it_is_answered_also_after_kill_9(server: Server, results: Path) -> None:
    for row in range(3):
        server.api("api/decide", {"decisions": [labeled(row, "gold", "new mineral")]})
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    decided = read_decisions(results)
    assert [decision.path for decision in decided] == [f"photos/{name}" for name in NAMES[:3]]
    assert {decision.minerals for decision in decided} == {("gold", "new mineral")}
    assert {decision.reviewer for decision in decided} == {"Ada"}


def test_undo_takes_back_the_last_decision_and_keeps_the_record(server: Server, results: Path) -> None:
    server.api("api/decide", {"decisions": [labeled(0, "gold")]})
    server.api("api/decide", {"decisions": [labeled(0, "agate")]})
    assert server.api("api/undo", {})["row"] == 0
    assert server.api("api/item/0")["decision"]["minerals"] == ["gold"]
    assert server.api("api/undo", {})["row"] == 0
    assert server.api("api/item/0")["decision"] is None
    assert server.api("api/undo", {})["row"] is None
    server.process.kill()
    server.process.wait()
    with Decisions(results) as decisions:
        assert decisions._db.execute("SELECT count(*) FROM decision").fetchone()[0] == 4


def test_decided_images_leave_the_queue_and_labels_come_out_at_any_moment(server: Server) -> None:
    server.api("api/decide", {"decisions": [labeled(1, "gold"), labeled(2), {**labeled(3), "status": "unsure"}]})
    server.api("api/decide", {"decisions": [{"row": 4, "status": "rejected", "minerals": ["quartz"]}]})
    left = server.api("api/queue?order=file&undecided=1")["items"]
    assert [item["row"] for item in left] == [0]
    _, content, headers = server.ask(f"{server.root}labels.csv")
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8", "surrogateescape"))))
    assert [(row["path"], row["labels"]) for row in rows] == [
        (f"photos/{NAMES[1]}", "gold"),
        (f"photos/{NAMES[2]}", ""),
    ]
    assert headers["content-type"].startswith("text/csv")


def test_ctrl_c_leaves_a_table_of_labels_that_evaluate_reads(server: Server, results: Path) -> None:
    server.api("api/decide", {"decisions": [labeled(row, "quartz") for row in range(3)]})
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(300) == 0, server.process.stderr.read()
    done = CliRunner().invoke(
        main, ["evaluate", str(results / "predictions.csv"), str(results / "labels.csv"), "--bootstrap", "0"]
    )
    assert done.exit_code == 0, done.output


def test_a_second_session_is_refused_in_one_line(server: Server, results: Path) -> None:
    done = CliRunner().invoke(main, ["review", str(results), "--no-browser"])
    assert done.exit_code == 1
    assert "another review of" in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_an_image_that_vanished_is_said_and_the_others_stay(server: Server, results: Path) -> None:
    (results.parent / "photos" / NAMES[0]).unlink()
    status, content, _ = server.ask(f"{server.root}image/0")
    assert status == 404
    assert b"no longer there" in content
    assert server.ask(f"{server.root}image/1")[0] == 200


@pytest.mark.parametrize(
    "path", ["/", "/api/state", "/wrong-token/api/state", "/wrong-token/", "/../../etc/passwd", "/%2e%2e/etc/passwd"]
)
def test_without_the_token_there_is_nothing(shared: Server, path: str) -> None:
    status, content, _ = shared.ask(path)
    assert status == 404
    assert b"root:" not in content


@pytest.mark.parametrize(
    "path",
    [
        "../predictions.csv",
        "review.sqlite",
        "%2e%2e/predictions.csv",
        "..%2f..%2fetc%2fpasswd",
        "image/../../x",
        "image/99",
        "image/-1",
        "image/a",
        "map/0/0",
        "page.html",
        "../review.sqlite",
    ],
)
def test_no_path_leads_out_of_the_run(shared: Server, path: str) -> None:
    status, content, _ = shared.ask(shared.root + path)
    assert status in (307, 404)
    assert b"SQLite" not in content
    assert b"agate," not in content


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", ""])
def test_another_host_name_is_refused_which_defeats_dns_rebinding(shared: Server, host: str) -> None:
    status, _, _ = shared.ask(shared.root + "api/state", headers={"Host": host.format(port=shared.port)})
    assert status in (400, 403)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
    ],
)
def test_a_post_that_is_not_from_the_page_changes_nothing(shared: Server, headers: dict[str, str]) -> None:
    body = {"decisions": [labeled(0, "gold")]}
    assert shared.ask(f"{shared.root}api/decide", body, headers=headers)[0] == 403
    assert shared.api("api/item/0")["decision"] is None


@pytest.mark.parametrize("body", [[], {}, {"decisions": [{"row": 0}]}, {"decisions": 3}, {"decisions": [labeled(99)]}])
def test_a_post_that_is_not_understood_is_an_answer_not_a_traceback(shared: Server, body: object) -> None:
    status, content, _ = shared.ask(f"{shared.root}api/decide", body)
    assert status in (400, 404)
    assert b"Traceback" not in content


@pytest.mark.parametrize("name", ["", " ", "a;b", "x" * 101, "tab\tinside\n\x00"])
def test_a_label_that_no_table_can_hold_is_refused(shared: Server, name: str) -> None:
    assert shared.ask(f"{shared.root}api/decide", {"decisions": [labeled(0, name)]})[0] == 404
    assert shared.api("api/item/0")["decision"] is None


def test_a_body_of_ten_megabytes_is_refused(shared: Server) -> None:
    status, content, _ = shared.ask(f"{shared.root}api/decide", {"decisions": ["x" * 10_000_000]})
    assert status == 400
    assert b"more than" in content
    assert shared.api("api/state")["images"] == len(NAMES)


def test_a_slow_client_holds_up_nobody(shared: Server) -> None:
    head = (
        f"POST {shared.root}api/decide HTTP/1.1\r\nHost: 127.0.0.1:{shared.port}\r\n"
        f"Origin: http://127.0.0.1:{shared.port}\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    )
    slow = [socket.create_connection(("127.0.0.1", shared.port)) for _ in range(20)]
    for connection in slow:
        connection.sendall(head.encode() + b"{")
    assert shared.api("api/state")["images"] == len(NAMES)
    for connection in slow:
        connection.close()


def test_every_answer_forbids_what_the_page_does_not_need(shared: Server) -> None:
    for path in ("", "review.js", "api/state", "image/0", "nothing"):
        _, _, headers = shared.ask(shared.root + path)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
    page = shared.ask(shared.root)[1].decode()
    assert "http://" not in page
    assert "https://" not in page


@pytest.mark.slow
@pytest.mark.parametrize("how", ["option", "run"])
def test_a_broader_name_is_shown_and_can_be_accepted(how: str, results: Path) -> None:
    """Agate and quartz are unsure, both are quartz; by --level, or as the run had it."""
    pytest.importorskip("uvicorn", reason="the extra review is not installed")
    rows = [(f"photos/{NAMES[0]}", "", 0.45, 0.0, 0.45), (f"photos/{NAMES[1]}", "", 0.3, 0.0, 0.3)]
    write_csv(results / "predictions.csv", ("path", "minerals", *LABELS), rows)
    if how == "run":
        (results / "run.json").write_text(json.dumps({"level": "species"}))
    with serving(results, *(("--level", "species") if how == "option" else ())) as server:
        items = server.api("api/queue?order=file")["items"]
        assert [item["machine"] for item in items] == [["quartz"], []]
        choice = {"row": items[0]["row"], "status": "labeled", "minerals": items[0]["machine"]}
        server.api("api/decide", {"decisions": [choice]})
        labels = server.ask(server.root + "labels.csv")[1].decode()
    (row,) = csv.DictReader(io.StringIO(labels))
    assert (row["labels"], row["machine_labels"]) == ("quartz", "quartz")


def test_existing_labels_are_shown_and_likely_mistakes_come_first(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="the extra review is not installed")
    labels = tmp_path / "labels.csv"
    labels.write_text('path,labels\na.jpg,gold\n"photos/c""quoted"".jpg",\n')
    with serving(results, "--labels", str(labels)) as server:
        items = server.api("api/queue?order=mistakes")["items"]
        assert {item["row"] for item in items} <= {0, 2}
        assert server.api("api/item/0")["given"] == ["gold"]
        assert server.api("api/item/1")["given"] is None


def test_existing_labels_stay_in_the_table_unless_somebody_decided_otherwise(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="the extra review is not installed")
    labels = tmp_path / "labels.csv"
    labels.write_text('path,labels\nphotos/a.jpg,gold\nc"quoted".jpg,quartz;agate\n')
    with serving(results, "--labels", str(labels), "--reviewer", "Ada") as server:
        left = server.api("api/queue?order=file&undecided=1")["items"]
        assert [item["row"] for item in left] == [1, 3, 4]
        server.api("api/decide", {"decisions": [labeled(0, "agate"), labeled(1, "gold")]})
        _, content, _ = server.ask(f"{server.root}labels.csv")
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8", "surrogateescape"))))
    assert [(row["path"], row["labels"], row["reviewer"]) for row in rows] == [
        (f"photos/{NAMES[0]}", "agate", "Ada"),
        (f"photos/{NAMES[1]}", "gold", "Ada"),
        (f"photos/{NAMES[2]}", "quartz;agate", ""),
    ]
    out = tmp_path / "out.csv"
    done = CliRunner().invoke(main, ["review", str(results), "--labels", str(labels), "--export", str(out)])
    assert done.exit_code == 0, done.output
    assert out.read_bytes() == content


def test_the_other_columns_of_existing_labels_stay(results: Path, tmp_path: Path) -> None:
    """A split that is lost turns the test photographs into training ones, and nobody sees it."""
    labels = tmp_path / "labels.csv"
    labels.write_text("File;Mineral;Subset;specimen;time\nphotos/a.jpg;gold;test;M-1;1999\nother.jpg;gold;test;M-9;\n")
    with Decisions(results) as decisions:
        for row, names in ((0, ["agate"]), (1, ["gold"])):
            decisions.decide(f"photos/{NAMES[row]}", "labeled", names, machine=["quartz"], reviewer="Ada")
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    for given, out in ((labels, first), (first, second)):  # the second round changes nothing
        done = CliRunner().invoke(main, ["review", str(results), "--labels", str(given), "--export", str(out)])
        assert done.exit_code == 0, done.output
        with out.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = list(csv.DictReader(file))
        others = {row["path"]: (row["labels"], row["split"], row["specimen"], row["given_time"]) for row in rows}
        assert others == {
            f"photos/{NAMES[0]}": ("agate", "test", "M-1", "1999"),
            f"photos/{NAMES[1]}": ("gold", "", "", ""),
            "other.jpg": ("gold", "test", "M-9", ""),  # not in the run
        }
        assert [row["reviewer"] for row in rows] == ["Ada", "Ada", ""]
        assert "1 row of --labels about images that are not in this run: kept" in done.output
    figures = tmp_path / "figures.json"
    arguments = ["evaluate", str(results), str(first), "--bootstrap", "0", "--json", str(figures), "--split"]
    assert CliRunner().invoke(main, [*arguments, "test"]).exit_code == 0
    assert json.loads(figures.read_text())["images"] == 1
    assert "no rows of split 'val'; it has test" in CliRunner().invoke(main, [*arguments, "val"]).output


KEPT = "1 row of --labels about images that are not in this run: kept in the table as they were"


def test_rows_about_other_images_stay_and_lead_to_their_files(results: Path, tmp_path: Path) -> None:
    """The collection's table holds more than the folder that was predicted."""
    collection = tmp_path / "collection"
    collection.mkdir()
    Image.new("RGB", (8, 8)).save(collection / "far.jpg")
    labels, out = collection / "labels.csv", tmp_path / "out.csv"
    labels.write_text("path,labels,note\nphotos/a.jpg,gold,x\nfar.jpg,feldspar,y\ngone.jpg,?,z\n", encoding="utf-8")
    done = CliRunner().invoke(main, ["review", str(results), "--labels", str(labels), "--export", str(out)])
    assert done.exit_code == 0, done.output
    assert f"0 images decided; 1 existing label kept: {out}\n2 rows of --labels" in done.output
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [(row["path"], row["labels"], row["note"]) for row in rows] == [
        ("photos/a.jpg", "gold", "x"),
        (str(collection / "far.jpg"), "feldspar", "y"),
        ("gone.jpg", "?", "z"),
    ]
    again = tmp_path / "again.csv"
    CliRunner().invoke(main, ["review", str(results), "--labels", str(out), "--export", str(again)])
    assert again.read_text() == out.read_text()


def test_what_people_wrote_into_a_table_is_not_replaced(results: Path, tmp_path: Path) -> None:
    """A table of their own that --export names by mistake, or labels.csv after somebody added a row to it."""
    out = tmp_path / "mine.csv"

    def export(*options: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["review", str(results), "--export", str(out), *options])
        assert done.exit_code == 0 or done.output.count("\n") == 1
        return done.exit_code, done.output

    def decide(names: list[str]) -> None:
        with Decisions(results) as decisions:
            decisions.decide(f"photos/{NAMES[0]}", "labeled", names, machine=["quartz"], reviewer="Ada")

    own = "path,labels\nphotos/a.jpg,gold\nelsewhere.jpg,topaz\n"
    out.write_text(own)
    code, said = export()
    assert (code, out.read_text()) == (1, own)
    assert "has 2 of 2 rows (the first: photos/a.jpg) that this review did not write" in said
    assert f"write both to a new one: --labels {out} --export NEW.csv" in said
    advised = export("--labels", str(out))
    assert advised == (0, f"0 images decided; 1 existing label kept: {out}\n{KEPT}\n")
    out.write_text("<html>")
    code, said = export()
    assert code == 1
    assert "it is not a table of labels. The decisions are kept; write them to a new file with --export NEW.csv" in said
    assert "--labels" not in said
    assert out.read_text() == "<html>"
    out.unlink()
    for names in (["agate"], ["gold"]):  # what the review itself wrote is replaced, also an answer that was changed
        decide(names)
        assert export()[0] == 0
    with Decisions(results) as decisions:
        decisions.undo(reviewer="Ada")
    assert export()[0] == 0
    edited = out.read_text() + "photos/b.jpg,quartz,,,\n"
    out.write_text(edited)
    assert "has 1 of 2 rows (the first: photos/b.jpg)" in export()[1]
    assert out.read_text() == edited
    out.write_text("path,labels,split\nphotos/a.jpg,agate,test\n")
    assert "columns (split)" in export()[1]
    assert export("--labels", str(out))[0] == 0  # keeps them
    assert ",split\n" in out.read_text()


def test_what_nobody_decides_again_keeps_its_reviewer(results: Path, tmp_path: Path) -> None:
    labels, out = tmp_path / "labels.csv", tmp_path / "out.csv"
    text = (
        "path,labels,machine_labels,reviewer,time,split\nphotos/a.jpg,gold,agate,Ada,2026-11-01T10:00:00+00:00,test\n"
    )
    labels.write_text(text)
    done = CliRunner().invoke(main, ["review", str(results), "--labels", str(labels), "--export", str(out)])
    assert done.exit_code == 0, done.output
    assert out.read_text() == text


def test_the_word_of_an_earlier_release_is_read(results: Path, tmp_path: Path) -> None:
    with Decisions(results) as decisions:
        decisions.decide("photos/a.jpg", "label" + "led", ["gold"], machine=[], reviewer="Ada")
    assert [decision.status for decision in read_decisions(results)] == ["labeled"]
    with Decisions(results) as decisions:
        assert dict(decisions.counts) == {"labeled": 1}
        assert decisions.undo(reviewer="Ada")
        assert not len(decisions)


def test_a_page_of_decisions_is_taken_whole_or_not_at_all(shared: Server) -> None:
    body = {"decisions": [labeled(0, "gold"), labeled(1, "a;b")]}
    assert shared.ask(f"{shared.root}api/decide", body)[0] == 404
    assert shared.api("api/item/0")["decision"] is None


def test_what_is_left_of_a_mineral_is_what_the_grid_shows(server: Server) -> None:
    def shown(label: str) -> list[int]:
        found = server.api(f"api/queue?order=mineral&label={label}&limit=100&undecided=1&called=1")
        return [item["row"] for item in found["items"]]

    left = server.api("api/left")
    assert left == {label: len(shown(label)) for label in ("agate", "gold", "quartz")}
    assert left["quartz"] > 0
    server.api("api/decide", {"decisions": [labeled(shown("quartz")[0], "gold")]})
    assert server.api("api/left") == {**left, "quartz": left["quartz"] - 1}


def test_counts_are_those_of_the_decisions_in_force(server: Server) -> None:
    server.api("api/decide", {"decisions": [labeled(0, "gold"), {**labeled(1), "status": "unsure"}]})
    again = {"decisions": [{**labeled(0), "status": "unsure"}]}
    assert server.api("api/decide", again)["counts"] == {"labeled": 0, "unsure": 2, "rejected": 0}
    assert server.api("api/undo", {})["counts"] == {"labeled": 1, "unsure": 1, "rejected": 0}


def test_exporting_without_a_review_writes_an_empty_table(results: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["review", str(results), "--export", str(tmp_path / "out.csv")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out.csv").read_text() == "path,labels,machine_labels,reviewer,time\n"


def test_wrong_results_and_a_taken_port_are_one_line(tmp_path: Path, results: Path) -> None:
    assert "no predictions.csv" in CliRunner().invoke(main, ["review", str(tmp_path), "--no-browser"]).output
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = CliRunner().invoke(main, ["review", str(results), "--no-browser", "--port", port])
    assert done.exit_code == 1
    assert f"cannot serve on port {port}" in done.output
    assert json.dumps(done.output).count("\\n") == 1
