"""A page in headless Chromium, without the network: what it looks like to a script, and what the console says.

``visit`` asks one question of a page that nobody touches. ``opened`` holds it open as a ``Tab``, with keys to press, a
colour scheme, a width and paper: over Chromium's debugging pipe, which speaks JSON with a zero byte after each message.
"""

from __future__ import annotations

import contextlib
import fcntl
import html
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")

QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-extensions --enable-logging=stderr"
).split()
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"
PATIENCE = 60.0  # seconds for an answer

KEYS = {"Enter": ("Enter", 13, "\r"), " ": ("Space", 32, " "), "Tab": ("Tab", 9, "")}  # code, number and text

# Chromium reads its pipe as file 3 and writes it as file 4.
PIPED = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def visit(page: Path, script: str, tmp_path: Path, *flags: str) -> tuple[Any, list[str]]:
    """The value of ``script``, the body of a function that runs once the page is drawn, and the console's errors.

    No name of a host resolves, so a request that left the page would be an error.
    """
    assert CHROMIUM is not None
    asked = tmp_path / "asked.html"
    probe = (
        "<script>addEventListener('load', () => setTimeout(() => {"
        "const result = document.createElement('pre'); result.id = 'asked';"
        f"result.textContent = JSON.stringify((() => {{ {script} }})()); document.body.append(result);"
        "}, 1000));</script>"
    )
    text = page.read_text(encoding="utf-8")
    asked.write_text(text.replace("</body>", probe + "</body>"), encoding="utf-8")
    command = [CHROMIUM, *QUIET, "--virtual-time-budget=8000", f"--user-data-dir={tmp_path / 'profile'}", OFFLINE]
    done = subprocess.run(
        [*command, *flags, "--dump-dom", asked.as_uri()], capture_output=True, text=True, timeout=100, check=True
    )
    found = re.search(r'<pre id="asked">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    errors = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(html.unescape(found[1])), errors


class Tab:
    """An open page. ``events`` are those that came so far: (name, content)."""

    def __init__(self, answers: int, commands: int) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._answers, self._commands = answers, commands
        self._read, self._last, self._session = b"", 0, ""

    def send(self, command: str, **content: Any) -> dict[str, Any]:
        """One command of the DevTools protocol and its answer. Raises RuntimeError when it is refused."""
        self._last += 1
        message = {"id": self._last, "method": command, "params": content}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") != self._last:
                continue
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['message']}")
            result: dict[str, Any] = answer["result"]
            return result

    def show(self, page: Path, *, size: tuple[int, int], scheme: str, media: str) -> None:
        """Open the page and wait until it is drawn."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        width, height = size
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 640
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", media=media, features=features)
        for part in ("Page", "Runtime", "Log"):
            self.send(f"{part}.enable")
        self.send("Page.navigate", url=page.as_uri())
        while not any(name == "Page.loadEventFired" for name, _ in self.events):
            self._next()
        self.settle()

    @property
    def errors(self) -> list[dict[str, Any]]:
        """What the console says of the page so far."""
        loud = {"Runtime.exceptionThrown", "Log.entryAdded"}
        return [about for name, about in self.events if name in loud]

    def settle(self) -> None:
        """Wait until what was started is drawn."""
        self.run("await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 100)));")

    def run(self, script: str) -> Any:
        """The value of ``script``, the body of an async function. Raises RuntimeError when it throws."""
        expression = f"(async () => {{ {script} }})()"
        found = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"].get("description", script))
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """A key goes down and up, as from a keyboard: whatever has the focus gets it."""
        code, number, text = KEYS[key]
        about = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.send("Input.dispatchKeyEvent", type="keyUp", **about)
        self.settle()

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))
            part = os.read(self._answers, 1 << 20) if ready else b""
            if not part:
                raise TimeoutError(f"no answer from Chromium in {PATIENCE:.0f} s, or it has ended")
            self._read += part
        text, self._read = self._read.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self.events.append((message["method"], message.get("params", {})))
        return message


def _pipe() -> tuple[int, int]:
    """Its end to read and its end to write, both above the numbers that Chromium's own get."""
    ends = os.pipe()
    read, write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return read, write


@contextlib.contextmanager
def opened(
    page: Path, tmp_path: Path, *, size: tuple[int, int] = (1280, 900), scheme: str = "light", media: str = ""
) -> Iterator[Tab]:
    """The page in a window of so many pixels, in a colour ``scheme``, for a ``media`` (print, say); without network."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'opened'}", OFFLINE, "--remote-debugging-pipe"]
    (inward, commands), (answers, outward) = _pipe(), _pipe()
    started = [sys.executable, "-c", PIPED, str(inward), str(outward), *command]
    with subprocess.Popen(started, pass_fds=(inward, outward), stderr=subprocess.DEVNULL) as browser:
        os.close(inward)
        os.close(outward)
        tab = Tab(answers, commands)
        try:
            tab.show(page, size=size, scheme=scheme, media=media)
            yield tab
        finally:
            os.close(commands)  # at its end Chromium ends as well
            os.close(answers)
            try:
                browser.wait(10)
            except subprocess.TimeoutExpired:
                browser.kill()
