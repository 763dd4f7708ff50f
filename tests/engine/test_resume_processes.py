"""Two processes that train together are killed and go on: each with its own random numbers and its own memory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from same_run import assert_same_run, flat, quick_plan
from trilemma.engine import loop
from trilemma.engine.checkpoint import checkpoints, load_checkpoint
from trilemma.engine.loop import Trainer
from trilemma.engine.machine import make_accelerator
from trilemma.engine.run import Run
from trilemma.errors import RunError
from trilemma.methods import method_class

CHILD = """
import os, signal, sys
from pathlib import Path
from same_run import quick_plan
from trilemma.engine.train import train

def report(progress):
    if progress.step == int(sys.argv[2]):
        os.kill(os.getpid(), int(sys.argv[3]))

train(quick_plan("ddpm"), Path(sys.argv[1]), resume=True, report=report)
"""


def together(folder: Path, step: int = 0, number: int = 0) -> list[int]:
    """Train in two processes, which at ``step`` send themselves a signal; their statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tests = Path(__file__).resolve().parents[1]
    children = []
    for rank in range(2):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tests.parent / "src"), str(tests)]),
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"},
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"},
        }
        command = [sys.executable, "-c", CHILD, str(folder), str(step), str(number)]
        children.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
    return [child.wait(timeout=300) for child in children]


@pytest.mark.slow
def test_two_processes_go_on_as_if_they_had_never_stopped(tmp_path: Path) -> None:
    assert together(tmp_path / "unbroken") == [0, 0]
    assert together(tmp_path / "run", 3, 9) != [0, 0]
    assert [path.stem for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000000001", "step-000000002"]
    assert together(tmp_path / "run", 3, 15) == [143, 143]  # each is asked to stop, and one writes
    assert [path.stem[-1] for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["1", "2", "3"]
    assert together(tmp_path / "run") == [0, 0]
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")
    content = load_checkpoint(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert content["machine"]["processes"] == 2 and len(content["others"]) == 1
    first, second = content["random"]["cpu"], content["others"][0]["random"]["cpu"]
    assert not torch.equal(first, second)


def test_all_processes_go_on_from_the_checkpoint_that_the_main_one_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a shared disk shows the second of two a newer one, or an older one as the newest."""
    plan = quick_plan()
    accelerator = make_accelerator(Run(tmp_path), "no", None)
    method = method_class(plan.method)(plan.options, plan.data.spec)
    parts = (Run(tmp_path), method, plan.data, plan.training, plan.budget, plan.seed)
    trainer = Trainer(*parts, accelerator=accelerator)
    trainer.train()
    names = [path.name for path in checkpoints(tmp_path / "checkpoints")]
    monkeypatch.setattr(type(accelerator), "is_main_process", False)
    monkeypatch.setattr(loop, "told", lambda value: names[1])
    path, state, damaged = trainer._newest() or pytest.fail("nothing was found")
    assert (path.name, state["progress"]["step"], damaged) == (names[1], 3, [])
    monkeypatch.setattr(loop, "told", lambda value: "step-000000009.safetensors")
    with pytest.raises(RunError, match="step-000000009.* is there for the main process and not for this one"):
        trainer._newest()
    monkeypatch.setattr(loop, "told", lambda value: None)
    assert trainer._newest() is None


def test_each_process_takes_its_own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the second of two would, and as one of two where the run had three."""
    plan = quick_plan()
    accelerator = make_accelerator(Run(tmp_path), "no", None)

    def trainer() -> Trainer:
        method = method_class(plan.method)(plan.options, plan.data.spec)
        parts = (Run(tmp_path), method, plan.data, plan.training, plan.budget, plan.seed)
        return Trainer(*parts, accelerator=accelerator)

    first, second = trainer(), trainer()
    first.train()
    path = checkpoints(tmp_path / "checkpoints")[-1]
    state = load_checkpoint(path)
    other = {"random": {"cpu": torch.Generator().manual_seed(77).get_state()}, "extra": {"steps_done": 40}}
    state["others"] = [other]
    monkeypatch.setattr(type(accelerator), "num_processes", 2)
    monkeypatch.setattr(type(accelerator), "process_index", 1)
    second._load(path, state)
    assert second.method.steps_done == 40
    assert torch.equal(torch.get_rng_state(), other["random"]["cpu"])
    state["others"] = [other, other]
    second._load(path, state)
    assert second.method.steps_done == 4
    assert not torch.equal(torch.get_rng_state(), other["random"]["cpu"])
    monkeypatch.setattr(type(accelerator), "process_index", 0)
    second._load(path, state)
    assert torch.equal(torch.get_rng_state(), state["random"]["cpu"])
    assert flat(second.method.extra_state()) == flat(state["extra"])
