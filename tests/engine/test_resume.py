"""A stop is no event: a resumed run is an unbroken one bit for bit, and other settings do not resume."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from same_run import Killed, assert_same_run, flat, image_plan, killed_at, log, quick_plan
from tiny import weights
from trilemma.data import Dataset
from trilemma.engine import budget, loop
from trilemma.engine.budget import Budget
from trilemma.engine.checkpoint import checkpoints, flatten, load_checkpoint
from trilemma.engine.loop import Progress
from trilemma.engine.run import Run
from trilemma.engine.train import Plan, train
from trilemma.errors import RunError
from trilemma.methods import method_class


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


def test_a_run_of_a_version_with_fewer_options_resumes(tmp_path: Path) -> None:
    """An option that came later has its default there, and no other value fits the run."""
    folder = tmp_path / "run"
    plan = quick_plan(images=8)
    train(plan, folder)
    config = Run(folder).config()
    assert config["options"].pop("lazy_reg") == plan.options.lazy_reg
    assert plan.options.lazy_reg != type(plan.options)().lazy_reg
    Run(folder).write_config(config)
    with pytest.raises(RunError, match="another options"):
        train(plan, folder, resume=True)
    usual = replace(plan, options=replace(plan.options, lazy_reg=type(plan.options)().lazy_reg))
    assert train(usual, folder, resume=True).folder == folder


# Damage


def stopped(folder: Path, step: int = 4, **changes: Any) -> list[Path]:
    """A run that ended in the middle of a step, and its checkpoints: of the steps before that one, three at most."""
    with pytest.raises(Killed):
        train(quick_plan(**changes), folder, report=killed_at(step))
    return checkpoints(folder / "checkpoints")


def warned(folder: Path) -> list[str]:
    """Resume, and what was said of it."""
    said: list[str] = []

    def report(progress: Progress) -> None:
        said.extend(progress.warnings)

    train(quick_plan(), folder, resume=True, report=report)
    return said


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999, "cut"])
def test_a_damaged_checkpoint_is_named_and_the_newest_whole_one_goes_on(
    tmp_path: Path, points: Path, count: int, share: float | str
) -> None:
    saved = stopped(tmp_path / "run")
    for path in saved[-count:]:
        if share == "cut":
            path.write_bytes(path.read_bytes()[:1000])
        else:
            flip(path, int(float(share) * path.stat().st_size))
    damaged = {path.with_suffix(".damaged"): path.read_bytes() for path in saved[-count:]}
    said = warned(tmp_path / "run")
    assert len(said) == count and all("\n" not in words for words in said)
    for words, path in zip(said, reversed(saved), strict=False):
        assert words == f"{path} is damaged, it is now {path.stem}.damaged: going on from {saved[-count - 1].name}"
    assert {path: path.read_bytes() for path in damaged} == damaged  # kept, but in nobody's way
    assert_same_run(tmp_path / "run", points)


def test_damaged_checkpoints_alone_are_one_line_and_stay(tmp_path: Path) -> None:
    saved = stopped(tmp_path / "run")
    for path in saved:
        flip(path, path.stat().st_size // 2)
    before = {path: path.read_bytes() for path in saved}
    with pytest.raises(RunError, match="checkpoints: no checkpoint is whole .*step-000000003.* restore one") as caught:
        train(quick_plan(), tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in saved} == before


@pytest.mark.parametrize(
    ("change", "left", "words"),
    [
        (lambda lines: [lines[0], b"\xff\x00 no record\n", *lines[1:]], [1, 2, 3], "1 damaged line(s)"),
        (lambda lines: [lines[0], lines[1].replace(b'"', b"'", 1), *lines[2:]], [1, 3], "1 damaged line(s)"),
        (lambda lines: [lines[0].rstrip(b"\n") + b" ", *lines[1:]], [3], "1 damaged line(s)"),
        (lambda lines: [b"\n", *lines, b" \n"], [1, 2, 3], ""),
        (lambda lines: [b"3\n", b'{"step": "two"}\n', *lines], [1, 2, 3], "2 damaged line(s)"),
        (lambda lines: [*lines, b'{"step": 4, "ima'], [1, 2, 3], ""),  # the usual end of a kill: no damage
        (lambda lines: [], [], ""),
    ],
)
def test_a_damaged_log_is_told_and_what_is_whole_is_kept(
    tmp_path: Path, points: Path, change: Callable[[list[bytes]], list[bytes]], left: list[int], words: str
) -> None:
    stopped(tmp_path / "run")
    path = tmp_path / "run" / "log.jsonl"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    said = warned(tmp_path / "run")
    assert said == ([f"{path}: {words}, left out"] if words else [])
    records = log(tmp_path / "run")
    assert [record["step"] for record in records] == [*left, 4]
    assert all(record in log(points) for record in records)


def test_what_a_kill_left_half_written_is_cleared(tmp_path: Path, points: Path) -> None:
    stopped(tmp_path / "run")
    names = (
        ".log-abcdefgh.tmp.jsonl",
        "checkpoints/.step-000000004-ab_d3f9h.tmp.safetensors",
        "samples/.0k-00000000.tmp.png",
    )
    for name in names:
        (tmp_path / "run" / name).write_bytes(b"half")
    (tmp_path / "run" / ".mine.json").write_text("{}")
    with pytest.raises(RunError, match="holds a run already"):  # perhaps it is being trained right now
        train(quick_plan(), tmp_path / "run")
    assert all((tmp_path / "run" / name).exists() for name in names)
    assert warned(tmp_path / "run") == []
    assert [path.name for path in (tmp_path / "run").rglob(".*")] == [".mine.json"]
    assert_same_run(tmp_path / "run", points)


# All that is in a checkpoint


def test_a_longer_training_that_is_killed_before_its_end_is_not_taken_for_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last step is in the log and in a checkpoint, and there are weights: those of the shorter training."""
    train(quick_plan(images=16), tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_weights", lambda *args: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(quick_plan(), tmp_path / "run", resume=True)
    assert log(tmp_path / "run")[-1]["step"] == 4
    train(quick_plan(), tmp_path / "run", resume=True)
    assert Run(tmp_path / "run").finished_step() == 4
    content = load_checkpoint(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    for key, value in weights(tmp_path / "run" / "model.safetensors").items():
        assert torch.equal(content["average"][f"module.{key}"], value), key


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_a_method_may_draw_from_any_global_generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: Callable[[], float]
) -> None:
    kind = method_class("ddgan")
    step = kind.step

    def noisy(self: Any, *args: Any) -> dict[str, Tensor]:
        losses = step(self, *args)
        with torch.no_grad():
            next(self.generator.parameters()).add_(draw())
        return losses

    monkeypatch.setattr(kind, "step", noisy)
    train(quick_plan(), tmp_path / "unbroken")
    stopped(tmp_path / "run", 3)
    train(quick_plan(), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")


def test_snapshots_leave_all_random_states_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = loop.save_grid

    def noisy(*args: Any, **kwargs: Any) -> None:
        torch.rand(3), np.random.rand(3), random.random()  # noqa: B018
        draw(*args, **kwargs)

    monkeypatch.setattr(loop, "save_grid", noisy)
    for count in (1, 4):
        train(quick_plan(snapshots=count), tmp_path / str(count))
    states = [load_checkpoint(checkpoints(tmp_path / name / "checkpoints")[-1])["random"] for name in "14"]
    for one, other in zip(*(flat(state).items() for state in states), strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1]) if isinstance(one[1], Tensor) else one[1] == other[1]


def test_what_the_watch_saw_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last digit: what it says depends on all that it saw."""
    monkeypatch.setattr(loop, "WATCH_SHARE", 1e6)
    monkeypatch.setattr(loop, "LEAST_WATCHED", 20)
    plan = replace(image_plan("ddgan"), training=replace(image_plan("ddgan").training, snapshots=5, watch_samples=50))
    train(plan, tmp_path / "unbroken")
    for index, step in enumerate((3, 5)):
        with pytest.raises(Killed):
            train(plan, tmp_path / "run", resume=index > 0, report=killed_at(step))
    train(plan, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")
    looks = load_checkpoint(checkpoints(tmp_path / "run" / "checkpoints")[-1])["shown"]["looks"]
    assert len(looks) == 5
    assert any("warnings" in record for record in log(tmp_path / "run"))


def test_another_machine_goes_on_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path / "run")
    machine = loop.machine
    monkeypatch.setattr(loop, "machine", lambda accelerator: {**machine(accelerator), "threads": 64, "torch": "9.9"})
    (words,) = warned(tmp_path / "run")
    threads = torch.get_num_threads()
    assert words.startswith(
        f"trained so far with threads {threads}, now 64; torch {torch.__version__}, now 9.9: not bit"
    )
    assert warned(tmp_path / "run") == []  # finished: there is nothing to go on with


def test_a_checkpoint_of_an_earlier_version_goes_on(tmp_path: Path, points: Path) -> None:
    """Without a checksum, and without what was added since."""
    for path in stopped(tmp_path / "run"):
        state = load_checkpoint(path)
        state = {key: value for key, value in state.items() if key not in ("others", "shown", "machine")}
        state["random"] = {"cpu": state["random"]["cpu"]}
        tensors: dict[str, Tensor] = {}
        structure = json.dumps(flatten(state, tensors))
        path.unlink()  # what was read may still lie in it
        save_file(tensors, path, {"structure": structure})
    assert warned(tmp_path / "run") == []
    assert_same_run(tmp_path / "run", points)


def test_a_run_finished_by_an_earlier_version_is_left_alone(tmp_path: Path) -> None:
    """Its weights do not say after which step they were saved."""
    train(quick_plan(), tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    kept = {key: value.clone() for key, value in weights(path).items()}
    save_file(kept, path)
    before = path.stat().st_mtime_ns
    train(quick_plan(), tmp_path / "run", resume=True)
    assert path.stat().st_mtime_ns == before
    assert Run(tmp_path / "run").finished_step() is None


def test_a_budget_of_minutes_counts_time_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run has what is left of it: not a second of the pauses, nor of the time between."""
    now = 0.0
    monkeypatch.setattr(budget.time, "perf_counter", lambda: now)
    kind = method_class("ddgan")
    step, shares = kind.step, []

    def slow(self: Any, batch: Any, progress: float, tools: Any) -> dict[str, Tensor]:
        nonlocal now
        shares.append(progress)
        now += 6.0
        return step(self, batch, progress, tools)

    def paused(at: int) -> Callable[[Progress], None]:
        def report(progress: Progress) -> None:
            nonlocal now
            now += 1000.0
            if progress.step == at:
                raise Killed

        return report

    monkeypatch.setattr(kind, "step", slow)
    plan = replace(quick_plan(), budget=Budget(minutes=0.4))  # four steps of six seconds
    for index, at in enumerate((2, 3)):
        with pytest.raises(Killed):
            train(plan, tmp_path / "run", resume=index > 0, report=paused(at))
        now += 5000.0
    train(plan, tmp_path / "run", resume=True, report=paused(0))
    assert shares == pytest.approx([0.0, 0.25, 0.25, 0.5, 0.5, 0.75])
    assert [record["seconds"] for record in Run(tmp_path / "run").read_log()] == [6.0, 12.0, 18.0, 24.0]
