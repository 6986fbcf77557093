"""The review command as a process, and requests to it."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LABELS = ("agate", "gold", "quartz")
#: Names that must never become markup, and one that is not UTF-8.
NAMES = ("a.jpg", "b<img src=x onerror=alert(1)>.jpg", 'c"quoted".jpg', "d'; DROP TABLE decision.jpg", "e\udcff.jpg")


@dataclass
class Server:
    process: subprocess.Popen[str]
    address: str

    @property
    def port(self) -> int:
        return int(re.search(r":(\d+)/", self.address)[1])

    @property
    def root(self) -> str:
        return "/" + self.address.split("/", 3)[3]

    def ask(
        self, path: str, body: Any = None, *, method: str = "", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        sent = {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"} | (headers or {})
        content = None if body is None else json.dumps(body)
        with closing(connection):
            connection.request(method or ("GET" if body is None else "POST"), path, content, sent)
            with connection.getresponse() as answer:
                return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}

    def api(self, path: str, body: Any = None) -> Any:
        status, content, _ = self.ask(self.root + path, body)
        assert status == 200, content
        return json.loads(content)


@contextmanager
def serving(results: Path, *options: str) -> Iterator[Server]:
    command = [
        sys.executable,
        "-c",
        "from mineral_batch.cli import main; main()",
        "review",
        str(results),
        "--no-browser",
        *options,
    ]
    with subprocess.Popen(command, cwd=results.parent, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = ""
            while not (found := re.search(r"http://\S+", said)):
                line = process.stderr.readline()
                assert line, said  # it ended
                said += line
            yield Server(process, found[0])
        finally:
            process.kill()
