"""Decisions while the server is killed (SIGKILL), again and again, at any moment."""

from __future__ import annotations

import http.client
import json
import random
import sqlite3
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from .serving import Server, serving

if TYPE_CHECKING:
    from pathlib import Path

FOUR_IMAGES = 4


def posted(server: Server, first: int, answered: list[str]) -> None:
    """Post decisions, each with a label of its own, until the server is gone."""
    number = first
    while True:
        name = f"label {number}"
        body = {"decisions": [{"row": number % FOUR_IMAGES, "status": "labeled", "minerals": [name]}]}
        try:
            status, _, _ = server.ask(f"{server.root}api/decide", body)
        except (OSError, http.client.HTTPException):  # it was killed somewhere in the answer
            return
        if status != 200:
            return
        answered.append(name)
        number += 1


def on_disk(results: Path) -> list[str]:
    with closing(sqlite3.connect(results / "review.sqlite")) as db:
        return [json.loads(cell)[0] for (cell,) in db.execute("SELECT minerals FROM decision ORDER BY number")]


@pytest.mark.parametrize("kills", [pytest.param(5, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.soak)])
def test_no_answered_decision_is_lost_however_often_the_server_is_killed(results: Path, kills: int) -> None:
    pytest.importorskip("uvicorn", reason="the extra review is not installed")
    rng = random.Random(0)
    answered: list[str] = []
    for _ in range(kills):
        before = len(answered)
        with serving(results) as server:
            poster = threading.Thread(target=posted, args=[server, before * 10, answered])
            poster.start()
            while len(answered) == before:  # it has not begun
                assert poster.is_alive(), "the first decision was not taken"
                time.sleep(0.001)
            time.sleep(rng.random() * 0.2)
            server.process.kill()
            poster.join()
        found = on_disk(results)
        lost = set(answered) - set(found)
        assert not lost
    assert len(found) - len(answered) <= kills  # at most the one under way at each kill was not answered
    print(f"{len(answered)} decisions answered, {len(found)} on disk, {kills} kills")
