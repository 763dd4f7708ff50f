"""kill -9 at any moment: what has its name is whole, one step is lost at most, the end is that of an unbroken run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nursery import MOMENTS
from same_run import assert_same_run, quick_plan
from trilemma.engine.train import train

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")


def trained(folder: Path, images: int, kills: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What became of one training after the other; the last one is left alone."""
    tests = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(tests.parent / "src"), str(tests)])
    command = [sys.executable, "-m", "nursery", str(folder), "ddgan", str(images), json.dumps([*kills, {}])]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    attempts: list[dict[str, Any]] = json.loads(done.stdout)
    return attempts


def check(attempts: list[dict[str, Any]]) -> None:
    """Every process but the last was killed, and each went on from the newest checkpoint that it found."""
    saved = 0
    for number, attempt in enumerate(attempts):
        last = number == len(attempts) - 1
        assert attempt["status"] == (0 if last else -signal.SIGKILL), attempt
        assert attempt["finished"] is last, attempt
        steps = attempt["steps"]
        assert steps == list(range(saved + 1, saved + 1 + len(steps))), attempt
        newest = max(attempt["saved"], default=0)
        # There is a checkpoint after each step; the last step told may have been killed before its own.
        assert newest in ({steps[-1] - 1, steps[-1]} if steps else {saved}), attempt
        saved = newest
    assert attempts[-1]["temporary"] == []


def moments(seed: int, count: int) -> list[dict[str, Any]]:
    """At a random time after a random step, some of them before the first."""
    draw = random.Random(seed)
    steps = [draw.choice([0, 0, 1, 2, 3]) for _ in range(count)]
    return [{"after": after, "delay": draw.uniform(0.0, 0.03 if after else 0.1)} for after in steps]


@pytest.mark.parametrize(
    ("seed", "count", "steps"), [(0, 4, 64), pytest.param(1, 25, 320, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_kills_at_random_moments(tmp_path: Path, seed: int, count: int, steps: int) -> None:
    attempts = trained(tmp_path / "killed", 8 * steps, moments(seed, count))
    check(attempts)
    train(quick_plan(images=8 * steps), tmp_path / "unbroken")
    assert_same_run(tmp_path / "killed", tmp_path / "unbroken")


def test_kills_while_files_are_written(tmp_path: Path, points: Path) -> None:
    """Each kind of file at its worst moment, each training going on from what the one before left behind."""
    names = [
        *("before config.json", "sample grid before its name", "checkpoint half written"),
        *("checkpoint before its name", "log.jsonl before its name", "checkpoint after its name"),
        *("log half a line", "model before its name"),
    ]
    assert sorted(names) == sorted(MOMENTS)
    # The second checkpoint of its process where it is one: there is one before to go on from.
    second = ("checkpoint before its name", "log half a line")
    kills = [{"moment": name, "count": 2 if name in second else 1} for name in names]
    attempts = trained(tmp_path / "killed", 8 * 4, kills)
    assert [attempt["status"] for attempt in attempts] == [-signal.SIGKILL] * len(kills) + [0]
    left = {attempt["kill"].get("moment"): attempt["temporary"] for attempt in attempts}
    for name in names:
        expected = 0 if name in ("checkpoint after its name", "log half a line") else 1
        assert len(left[name]) == expected, (name, left[name])  # and those from before are gone
    assert attempts[0]["config"] is False and attempts[1]["config"] == "ddgan"
    newest = [max(attempt["saved"], default=0) for attempt in attempts]
    assert newest == sorted(newest) and newest[-1] == 4
    assert left[None] == []
    assert_same_run(tmp_path / "killed", points)
