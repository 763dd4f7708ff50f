"""Asking for help must not wait for torch: importing it takes seconds, reading a help text should not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
HEAVY = ("torch", "torchvision", "torchdiffeq", "torch_fidelity", "accelerate", "sklearn", "plotly")


def python(*args: str) -> subprocess.CompletedProcess[str]:
    """Run this Python on the sources beside the tests, whether or not the package is installed."""
    path = os.pathsep.join(filter(None, (str(SRC), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *args], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def imported(report: str) -> set[str]:
    """The module names in what ``python -X importtime`` writes: ``import time: self | cumulative | name``."""
    lines = (line for line in report.splitlines() if line.startswith("import time:"))
    return {line.rsplit("|", 1)[-1].strip() for line in lines}


def test_the_import_report_names_modules() -> None:
    """The checks below would pass on an empty report: this one shows that a module is seen when it is imported."""
    report = python("-X", "importtime", "-c", "import json.decoder").stderr
    assert "json.decoder" in imported(report)
    assert not imported(report) & set(HEAVY)


@pytest.mark.parametrize("args", [("-m", "trilemma", "--help"), ("-c", "import trilemma")], ids=["help", "import"])
def test_starts_without_torch(args: tuple[str, ...]) -> None:
    done = python("-X", "importtime", *args)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not imported(done.stderr) & set(HEAVY)


def test_help_names_the_program() -> None:
    assert "trilemma" in python("-m", "trilemma", "--help").stdout
