"""What shows that a resumed run is an unbroken one: it finds every bit that differs, and says which."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from same_run import Killed, killed_at
from trilemma.engine import loop, verify
from trilemma.engine.checkpoint import checkpoints, load_checkpoint, save_checkpoint, write_tensors
from trilemma.engine.run import Run
from trilemma.engine.verify import first_difference, verify_resume
from trilemma.errors import ConfigError, DataError, RunError


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same three trainings without the seconds that three processes take to start."""

    def run(job: dict[str, Any]) -> None:
        try:
            report = killed_at(job["kill_in"])
            verify.train(verify._plan(**job["settings"]), Path(job["out"]), resume=job["resume"], report=report)
        except Killed:
            pass

    monkeypatch.setattr(verify, "_run", run)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("kill_in", [2, 3, 4])
def test_a_resumed_run_is_found_identical(tmp_path: Path, kill_in: int) -> None:
    told: list[str] = []
    found = verify_resume(
        "vae",
        "gaussians",
        steps=4,
        kill_in=kill_in,
        out=tmp_path / "kept",
        report=lambda share, what: told.append(what),
    )
    assert found.difference is None and (found.steps, found.killed_in) == (4, kill_in)
    assert told == ["unbroken", f"killed in step {kill_in}", "resumed", "compared"]
    content = load_checkpoint(checkpoints(tmp_path / "kept" / "resumed" / "checkpoints")[-1])
    assert content["progress"]["step"] == 4
    assert found.tensors > len(content["networks"]["encoder"]) + len(content["networks"]["decoder"])


def forget_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "set_random_state", lambda state: None)


def forget_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.AveragedModel, "load_state_dict", lambda self, state: None)


def forget_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.Adam, "load_state_dict", lambda self, state: None)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("forget", "where"),
    [(forget_random_state, "networks/"), (forget_average, "average/"), (forget_moments, "networks/")],
)
def test_what_is_not_restored_is_found(
    monkeypatch: pytest.MonkeyPatch, forget: Callable[[pytest.MonkeyPatch], None], where: str
) -> None:
    forget(monkeypatch)
    found = verify_resume("vae", "gaussians", steps=4)
    assert found.killed_in == 3
    assert found.difference is not None and found.difference.startswith(where)


def finished(folder: Path, **changes: Any) -> Path:
    """A run as far as it is compared."""
    weight, moment = changes.pop("weight", torch.ones(2, 2)), changes.pop("moment", torch.zeros(2))
    state = {"networks": {"g": {"w": weight}}, "optimizers": {"g": moment}, "progress": {"step": 7, "seconds": 1.5}}
    save_checkpoint(Run(folder).checkpoint_folder, {**state, **changes}, 7, keep=1)
    write_tensors(Run(folder).model_path, {"g.w": torch.ones(2)})
    return folder


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, None),
        ({"progress": {"step": 7, "seconds": 99.0}}, None),
        ({"progress": {"step": 8, "seconds": 1.5}}, "progress/step"),
        ({"weight": torch.tensor([[1.0, 1.0], [1.0, 1.0000001]])}, "networks/g/w"),
        ({"weight": torch.ones(4)}, "networks/g/w"),
        ({"weight": torch.ones(2, 2, dtype=torch.float64)}, "networks/g/w"),
        ({"weight": None}, "networks/g/w"),
        ({"moment": torch.tensor([0.0, -0.0])}, "optimizers/g"),
        ({"progress": {"step": 8, "seconds": 1.5}, "moment": torch.ones(2)}, "optimizers/g"),  # tensors come first
        ({"more": {"t": torch.ones(1)}}, "more/t"),
    ],
)
def test_the_first_difference(tmp_path: Path, changes: dict[str, Any], name: str | None) -> None:
    one, other = finished(tmp_path / "one"), finished(tmp_path / "other", **changes)
    assert first_difference(one, other)[0] == name
    assert first_difference(other, one)[0] == name


def test_what_is_no_number_equals_itself(tmp_path: Path) -> None:
    one, other = (finished(tmp_path / name, moment=torch.tensor([float("nan"), 1.0])) for name in ("one", "other"))
    assert first_difference(one, other) == (None, 3)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"steps": 1}, ConfigError, "--steps must be at least 2, not 1"),
        ({"kill_in": 7}, ConfigError, "--kill-in must be from 2 to 6, the number of steps, not 7"),
        ({"kill_in": 1}, ConfigError, "--kill-in must be from 2 to 6, the number of steps, not 1"),
        ({"method": "gan"}, ConfigError, "unknown method 'gan'"),
        ({"data": "nothing"}, DataError, "unknown data set"),
        ({"recipe": "ddpm-digits"}, ConfigError, "is for ddpm, not ddgan"),
        ({"out": "here"}, ConfigError, "here is there already"),
    ],
)
def test_what_cannot_be_verified_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(verify, "_run", lambda job: pytest.fail("a process was started"))
    with pytest.raises(error, match=words) as caught:
        verify_resume(**{"method": "ddgan", **settings})
    assert "\n" not in str(caught.value)


def test_a_training_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "CHILD", "import sys; sys.exit('first line\\nno memory')")
    with pytest.raises(RunError, match="unbroken: the training failed: no memory"):
        verify_resume("vae", "gaussians", out=tmp_path / "kept")


def test_a_process_that_is_not_killed_shows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        "import pathlib",
        f"run = pathlib.Path({str(tmp_path)!r}) / 'kept' / 'resumed'",
        "run.mkdir(parents=True, exist_ok=True)",
        "(run / 'model.safetensors').touch()",
    )
    monkeypatch.setattr(verify, "CHILD", "\n".join(lines))
    with pytest.raises(RunError, match="was to be killed and was not"):
        verify_resume("vae", "gaussians", out=tmp_path / "kept")


ENDS = """
import json, os, signal, sys
job = json.loads(sys.argv[1])
if job["kill_in"]:
    print("who knows", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIG{})
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("KILL", "killed in step 4, but the last that it saved is nothing: another program ended it"),  # for its memory
        ("TERM", "resumed: the training failed: who knows"),
    ],
)
def test_a_process_that_ends_otherwise_shows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.setattr(verify, "CHILD", ENDS.format(name))
    with pytest.raises(RunError, match=words):
        verify_resume("vae", "gaussians", out=tmp_path / "kept")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ddgan", "stylegan2"])
def test_in_processes_of_their_own(tmp_path: Path, method: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    command = [sys.executable, "-m", "trilemma", "verify-resume", method, "--out", str(tmp_path / "kept")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("bit-identical: ") and "after 6 steps, killed in step 4 and resumed" in done.stdout
    steps = [record["step"] for record in Run(tmp_path / "kept" / "resumed").read_log()]
    assert steps == [1, 2, 3, 4, 5, 6]
