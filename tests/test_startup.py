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


@pytest.mark.parametrize(
    "args",
    [("-m", "trilemma", "--help"), ("-c", "import trilemma"), ("-m", "trilemma", "list")],
    ids=["help", "import", "list"],
)
def test_starts_without_torch(args: tuple[str, ...]) -> None:
    done = python("-X", "importtime", *args)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not imported(done.stderr) & set(HEAVY)


def test_help_names_the_program() -> None:
    assert "trilemma" in python("-m", "trilemma", "--help").stdout


def test_a_list_says_what_the_packages_say() -> None:
    """It is read from their text, so that they need not be imported."""
    from trilemma.data import catalogue
    from trilemma.listing import listing

    assert listing()["data"] == catalogue()


def test_commands_wait_for_nothing_they_do_not_need() -> None:
    """Sampling needs torch; what scores samples and draws reports takes longer to import than torch itself."""
    code = "import trilemma.commands, trilemma.engine.generator, trilemma.engine.outputs"
    done = python("-X", "importtime", "-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not imported(done.stderr) & ({*HEAVY, "scipy"} - {"torch"})


@pytest.mark.parametrize(("code", "seconds"), [("import trilemma", 0.1), ("import trilemma.cli", 0.3)])
def test_starting_is_quick(code: str, seconds: float) -> None:
    """Beyond what Python itself takes; the best of a few tries, as machines are busy."""

    def took(code: str) -> float:
        line = f"import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)"
        return float(python("-c", line).stdout)

    assert min(took(code) for _ in range(3)) < seconds
