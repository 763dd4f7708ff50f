"""A page in headless Chromium, without the network: what it looks like to a script, and what the console says."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")

QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-extensions --enable-logging=stderr --virtual-time-budget=8000"
).split()


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
    command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    done = subprocess.run(
        [*command, *flags, "--dump-dom", asked.as_uri()], capture_output=True, text=True, timeout=100, check=True
    )
    found = re.search(r'<pre id="asked">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    errors = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(html.unescape(found[1])), errors
