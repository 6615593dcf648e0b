"""A headless Chromium, controlled through two pipes by the DevTools protocol; only the browser is needed."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Page:
    """A page of the browser; `events` are all that it has reported."""

    commands: BinaryIO
    answers: BinaryIO
    session: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    _commands_sent: int = 0

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Give a command and wait for its answer."""
        self._commands_sent += 1
        message = {"id": self._commands_sent, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        self.commands.write(json.dumps(message).encode() + b"\0")
        self.commands.flush()
        while (answer := self._next()).get("id") != self._commands_sent:
            self.events.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, address: str) -> None:
        """Open an address and wait until it is loaded."""
        self.call("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value_of(self, expression: str) -> Any:
        """Evaluate JavaScript in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def events_of(self, *methods: str) -> list[dict[str, Any]]:
        """The parameters of the events of these kinds."""
        return [event["params"] for event in self.events if event["method"] in methods]

    def _next(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self.answers.read(1)) != b"\0":
            if not byte:
                raise EOFError("the browser has gone")
            message += byte
        answer: dict[str, Any] = json.loads(message)
        return answer


@contextmanager
def open_page(address: str, profile: Path, *, width: int, scheme: str, media: str = "screen") -> Iterator[Page]:
    """Open an address in a new browser, on a screen or on paper of that width, in the light or the dark scheme."""
    browser = find_browser()
    assert browser is not None
    (from_us, commands), (answers, to_us) = os.pipe(), os.pipe()
    # As root, as in most containers, the browser does not start with its sandbox.
    line = f'exec "$@" 3<&{from_us} 4>&{to_us}'
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
    program = ["/bin/bash", "-c", line, "sh", browser, *options, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(program, pass_fds=(from_us, to_us), stderr=subprocess.DEVNULL)
    os.close(from_us)
    os.close(to_us)
    with os.fdopen(commands, "wb") as writer, os.fdopen(answers, "rb") as reader:
        try:
            page = Page(writer, reader)
            target = page.call("Target.createTarget", url="about:blank")["targetId"]
            page.session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
            page.call("Emulation.setDeviceMetricsOverride", **size)
            scheme_is = [{"name": "prefers-color-scheme", "value": scheme}]
            page.call("Emulation.setEmulatedMedia", media=media, features=scheme_is)
            page.open(address)
            yield page
        finally:
            process.terminate()
            process.wait(timeout=30)
