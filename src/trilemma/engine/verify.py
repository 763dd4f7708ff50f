"""Show on the machine at hand that an interruption leaves no trace.

Three processes of this Python, one after the other: the first trains some steps without a stop, the second the same but
kills itself in the middle of one, and the third resumes what the second left. Then the two runs are compared: the last
checkpoints, with weights, averages, moments, random states and counters, and the final weights. Nothing is shared but
the files.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from trilemma.config import require, require_all
from trilemma.engine.checkpoint import checkpoints, load_checkpoint, raw_bytes
from trilemma.engine.loop import Progress
from trilemma.engine.run import Run
from trilemma.engine.train import Plan, make_plan, resolve_recipe, train
from trilemma.errors import RunError

# A checkpoint after each step, so that a kill loses one; nothing that takes time and leaves the weights alone.
QUICK: dict[str, Any] = {"checkpoint_minutes": 0.0, "snapshots": 2, "probe_samples": 0, "watch_samples": 0}
CLOCK = "progress/seconds"  # the one number of a checkpoint that two trainings cannot share
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows ends a process at once by the latter
ENDED = -KILL if os.name == "posix" else int(KILL)  # the status of a process that it has ended
CHILD = """
import json, sys
job = json.loads(sys.argv[1])
sys.path[:] = job["path"]
from trilemma.engine.verify import child
child(job)
"""


@dataclass(frozen=True)
class Verified:
    """What ``verify_resume`` found."""

    difference: str | None  # the first tensor, or else number, that differs; None: not one bit does
    tensors: int  # compared
    steps: int
    killed_in: int  # the step that was being trained


def verify_resume(  # noqa: PLR0913
    method: str,
    data: str = "digits",
    *,
    recipe: str | None = None,
    steps: int = 6,
    kill_in: int | None = None,
    seed: int = 0,
    size: int | None = None,
    data_root: Path | str | None = None,
    out: Path | str | None = None,
    report: Callable[[float, str], None] = lambda share, doing: None,
) -> Verified:
    """Train ``steps`` steps twice, once with a kill in between, in processes of their own, and compare.

    Args:
        recipe: a packaged recipe's name or a TOML file; default the method's own for the data.
        kill_in: the step in which the process is killed; default half way. Before the second nothing is saved.
        out: a new folder that keeps both runs, ``unbroken`` and ``resumed``; default none is kept.
        report: told the share done and what is being done.

    Raises:
        TrilemmaError: a setting that cannot be, or a training that failed, in one line.
    """
    kill_in = max(2, steps // 2 + 1) if kill_in is None else kill_in
    require_all(
        (steps >= 2, f"--steps must be at least 2, not {steps}"),
        (2 <= kill_in <= max(steps, 2), f"--kill-in must be from 2 to {steps}, the number of steps, not {kill_in}"),
    )
    settings: dict[str, Any] = {
        "method": method,
        "data": data,
        "recipe": recipe,
        "steps": steps,
        "seed": seed,
        "size": size,
        "data_root": None if data_root is None else str(data_root),
    }
    _plan(**settings)  # all that can be wrong is said here, not in a child
    if out is not None:
        folder = Path(out)
        require(not folder.exists(), f"{folder} is there already: choose another folder with --out")
        return _verify(folder, settings, kill_in, report)
    with tempfile.TemporaryDirectory(prefix="trilemma-") as name:
        return _verify(Path(name), settings, kill_in, report)


def _verify(folder: Path, settings: dict[str, Any], kill_in: int, report: Callable[[float, str], None]) -> Verified:
    unbroken, resumed = folder / "unbroken", folder / "resumed"
    report(0.0, "unbroken")
    _run({"settings": settings, "out": str(unbroken), "resume": False, "kill_in": 0})
    report(0.4, f"killed in step {kill_in}")
    _run({"settings": settings, "out": str(resumed), "resume": False, "kill_in": kill_in})
    if Run(resumed).model_path.exists():
        raise RunError(f"{resumed}: this training was to be killed and was not: nothing can be said")
    saved = [path.stem for path in checkpoints(Run(resumed).checkpoint_folder)][-1:]
    if saved != [f"step-{kill_in - 1:09d}"]:
        raise RunError(
            f"{resumed}: this training was to be killed in step {kill_in}, but the last that it saved is "
            f"{' '.join(saved) or 'nothing'}: another program ended it (too little memory?), nothing can be said"
        )
    report(0.7, "resumed")
    _run({"settings": settings, "out": str(resumed), "resume": True, "kill_in": 0})
    difference, tensors = first_difference(unbroken, resumed)
    report(1.0, "compared")
    return Verified(difference, tensors, settings["steps"], kill_in)


def _plan(  # noqa: PLR0913
    *,
    method: str,
    data: str,
    recipe: str | None,
    steps: int,
    seed: int,
    size: int | None,
    data_root: str | None,
) -> Plan:
    """A budget of images: one of minutes would depend on the clock, and with it the learning rates."""
    _, loaded = resolve_recipe(method, data, recipe)
    training = replace(loaded.training, **QUICK)
    return make_plan(
        method,
        data,
        recipe=recipe,
        images=steps * training.batch_size,
        seed=seed,
        size=size,
        data_root=None if data_root is None else Path(data_root),
        training=training,
    )


def _run(job: dict[str, Any]) -> None:
    """One training in a process of its own; it ends well, or is killed where that is its job."""
    command = [sys.executable, "-c", CHILD, json.dumps({**job, "path": sys.path})]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if job["kill_in"] and done.returncode == ENDED:
        return
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise RunError(f"{job['out']}: the training failed: {lines[-1]}")


def child(job: dict[str, Any]) -> None:
    """What such a process does."""

    def report(progress: Progress) -> None:
        if progress.step == job["kill_in"]:  # trained, but not in a checkpoint yet
            os.kill(os.getpid(), KILL)

    train(_plan(**job["settings"]), Path(job["out"]), resume=job["resume"], report=report)


def first_difference(one: Path, other: Path) -> tuple[str | None, int]:
    """The first tensor of two finished runs that is not the same bit for bit, and how many tensors were compared.

    Where all are the same, the first number or word that differs; None where none does. The clock does not count.
    """
    a, b = (dict(_leaves(_content(folder))) for folder in (one, other))
    names = [*a, *(name for name in b if name not in a)]
    differing = [name for name in names if name != CLOCK and not (name in a and name in b and _same(a[name], b[name]))]
    tensors = [name for name in names if isinstance(a.get(name, b.get(name)), Tensor)]
    first = next((name for name in differing if name in set(tensors)), None)
    return first or next(iter(differing), None), len(tensors)


def _content(folder: Path) -> dict[str, Any]:
    run = Run(folder)
    return {**load_checkpoint(checkpoints(run.checkpoint_folder)[-1]), "model": load_file(run.model_path)}


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors and plain values of nested dicts and lists by their paths."""
    if isinstance(tree, dict | list | tuple):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(value, f"{path}/{key}" if path else str(key))
    else:
        yield path, tree


def _same(a: Any, b: Any) -> bool:
    """Bit for bit: a NaN equals itself, and 0 is not -0."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and raw_bytes(a) == raw_bytes(b)
    return type(a) is type(b) and repr(a) == repr(b)
