"""Headless Chromium, driven over a pipe by the DevTools protocol: https://chromedevtools.github.io."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None or os.name == "nt", reason="needs chromium on the PATH")


class Browser:
    """A page in headless Chromium, driven over a pipe by the DevTools protocol: https://chromedevtools.github.io."""

    def __init__(self, to: int, answers: int) -> None:
        self._to = to
        self._from = os.fdopen(answers, "rb")
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method and give its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        content = b""
        while not content.endswith(b"\0"):
            byte = self._from.read(1)
            assert byte, "the browser ended"
            content += byte
        answer: dict[str, Any] = json.loads(content[:-1])
        return answer

    def open(self, path: Path) -> None:
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; it is run by the debugger, which the page's policy does not bind."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        end = time.monotonic() + 120
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        text = {"Enter": "\r", "Tab": ""}.get(key, "")
        code = {
            "Enter": 13,
            "Escape": 27,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
            "Tab": 9,
            "m": 77,
        }
        both = {"key": key, "code": key, "windowsVirtualKeyCode": code[key]}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **both)
        self.send("Input.dispatchKeyEvent", type="keyUp", **both)

    def choose(self, name: str, value: str) -> None:
        self.redrawn(
            f"(e => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event('input', {{bubbles: true}})); }})"
            f"(document.getElementById({json.dumps(name)}))"
        )

    def redrawn(self, action: str) -> None:
        """Do something and wait until the gallery has been made anew."""
        found = "document.getElementById('found').textContent"
        self.evaluate(f"{found} = 'waiting'; {action}; 0")
        self.wait(f"{found} !== 'waiting'")

    def names(self) -> list[str]:
        """Of the cards in the gallery."""
        found: list[str] = self.evaluate("[...document.querySelectorAll('#cards .name')].map(e => e.textContent)")
        return found

    def troubles(self) -> list[Any]:
        """Errors, broken rules of the policy, and anything that was asked of the network."""
        kinds = {"Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"}
        found = [event["params"] for event in self.events if event.get("method") in kinds]
        for event in self.events:
            if event.get("method") == "Network.requestWillBeSent":
                url = event["params"]["request"]["url"]
                found += [] if url.startswith(("file:", "data:", "about:")) else [url]
        return found


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    switches = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    switches += " --disable-component-update --disable-sync --remote-debugging-pipe --window-size=1200,900"
    # The protocol is spoken on the descriptors 3 and 4.
    command = f'exec "$0" {switches} --user-data-dir="$1" 3<&{their_in} 4>&{their_out} 2>/dev/null'
    process = subprocess.Popen(
        ["bash", "-c", command, str(CHROMIUM), str(folder / "profile")], pass_fds=(their_in, their_out)
    )
    os.close(their_in)
    os.close(their_out)
    driver = Browser(our_out, our_in)
    try:
        yield driver
    finally:
        os.close(our_out)
        process.terminate()
        process.wait(120)
        driver._from.close()
