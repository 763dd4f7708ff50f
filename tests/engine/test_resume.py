"""A stop is no event: a resumed run is an unbroken one bit for bit, and other settings do not resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from same_run import Killed, assert_same_run, killed_at, log, quick_plan
from tiny import weights
from trilemma.data import Dataset
from trilemma.engine.checkpoint import checkpoints
from trilemma.engine.run import Run
from trilemma.engine.train import Plan, train
from trilemma.errors import RunError


@pytest.mark.parametrize("steps", [(1,), (4,), (2, 2, 5)], ids=str)
def test_a_resumed_run_is_an_unbroken_one(unbroken: tuple[Plan, Path], tmp_path: Path, steps: tuple[int, ...]) -> None:
    plan, expected = unbroken
    for index, step in enumerate(steps):
        torch.manual_seed(1000 + index)  # what ran before in the process must not matter
        with pytest.raises(Killed):
            train(plan, tmp_path / "run", resume=index > 0, report=killed_at(step))
        assert not (tmp_path / "run" / "model.safetensors").exists()
    train(plan, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", expected)


CHILD = """
import sys, time
from pathlib import Path
from same_run import quick_plan
from trilemma.engine.train import train

def report(progress):
    print(progress.step, flush=True)
    time.sleep(0.5 if progress.step > 2 else 0.0)

train(quick_plan(sys.argv[1]), Path(sys.argv[2]), report=report)
"""


def test_a_killed_process_is_continued(tmp_path: Path, points: Path) -> None:
    """kill -9 in the middle of a run, at a moment nobody chose."""
    tests = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(tests.parent / "src"), str(tests)])
    command = [sys.executable, "-c", CHILD, "ddgan", str(tmp_path / "run")]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= 3:
                break
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "model.safetensors").exists()
    train(quick_plan(), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", points)


def test_a_finished_run_is_left_alone(unbroken: tuple[Plan, Path]) -> None:
    plan, folder = unbroken
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    train(plan, folder, resume=True)
    assert {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()
    } == before


def test_a_longer_budget_trains_on(tmp_path: Path) -> None:
    train(quick_plan(images=16), tmp_path / "run")
    train(quick_plan(images=32), tmp_path / "run", resume=True)
    assert [record["images"] for record in log(tmp_path / "run")] == [8, 16, 24, 32]
    assert Run(tmp_path / "run").config()["training"]["images"] == 32


def test_a_finished_run_without_checkpoints_is_not_trained_over(tmp_path: Path) -> None:
    train(quick_plan(images=16), tmp_path / "run")
    for path in checkpoints(tmp_path / "run" / "checkpoints"):
        path.unlink()
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match="no checkpoint left"):
        train(quick_plan(images=32), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_the_same_seed_gives_the_same_run_and_another_does_not(tmp_path: Path) -> None:
    plan = quick_plan(images=16)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(replace(plan, seed=seed), tmp_path / name)
        torch.rand(7)
    a, b, c = (weights(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


def other_data(data: Dataset) -> Dataset:
    return replace(data, digest="0" * 64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plan: replace(plan, options=replace(plan.options, lazy_reg=2)), "another options"),
        (lambda plan: replace(plan, data=other_data(plan.data)), "another data"),
        (lambda plan: replace(plan, seed=1), "another seed"),
        (lambda plan: replace(plan, training=replace(plan.training, batch_size=4)), "another training.batch_size"),
        (lambda plan: replace(quick_plan("ddpm"), data=other_data(plan.data)), "another method, options, data"),
    ],
)
def test_other_settings_do_not_resume(tmp_path: Path, change: Callable[[Plan], Plan], words: str) -> None:
    plan = quick_plan(images=8)
    train(plan, tmp_path / "run")
    with pytest.raises(RunError, match=words):
        train(change(plan), tmp_path / "run", resume=True)


def test_a_damaged_checkpoint_is_one_line_and_the_one_before_goes_on(tmp_path: Path, points: Path) -> None:
    plan = quick_plan()
    with pytest.raises(Killed):
        train(plan, tmp_path / "run", report=killed_at(4))
    newest = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(RunError, match="step-000000003.safetensors is not a whole checkpoint .* delete it to resume"):
        train(plan, tmp_path / "run", resume=True)
    newest.unlink()
    train(plan, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", points)
