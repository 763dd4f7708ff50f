"""Real trainings that are killed with SIGKILL, and what is left: ``python -m nursery FOLDER METHOD IMAGES KILLS``.

Importing torch takes seconds, so one process does it and forks a child for each training. KILLS is JSON, a list of

    {"after": n, "delay": s}      s seconds after its n-th step; after 0: s seconds after its birth
    {"moment": name, "count": n}  at the n-th time that something is done which is named in ``MOMENTS``
    {}                            never

Each child resumes what the one before left. Prints a JSON record for each.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from same_run import quick_plan
from trilemma.engine import checkpoint
from trilemma.engine.checkpoint import checkpoints, load_checkpoint
from trilemma.engine.loop import Progress
from trilemma.engine.run import Run
from trilemma.engine.train import Plan, train


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _renamed(name: str, before: bool) -> Callable[[Callable[[], bool]], None]:
    """Die on either side of the rename that gives a file its name."""

    def patch(due: Callable[[], bool]) -> None:
        rename = os.replace

        def replace(source: Any, target: Any) -> None:
            now = name in Path(target).name and due()
            if now and before:
                die()
            rename(source, target)
            if now:
                die()

        os.replace = replace

    return patch


def _half_written(due: Callable[[], bool]) -> None:
    save = checkpoint.save_file

    def save_file(tensors: Any, path: Path, metadata: Any = None) -> None:
        save(tensors, path, metadata=metadata)
        if due():
            content = Path(path).read_bytes()
            Path(path).write_bytes(content[: len(content) // 2])
            die()

    checkpoint.save_file = save_file


def _half_a_line(due: Callable[[], bool]) -> None:
    log = Run.log

    def write(self: Run, record: Any) -> None:
        if due():
            with self.log_path.open("a") as file:
                file.write('{"step": 3, "los')
                file.flush()
                die()
        log(self, record)

    Run.log = write  # type: ignore[method-assign]


MOMENTS: dict[str, Callable[[Callable[[], bool]], None]] = {
    "before config.json": _renamed("config.json", before=True),
    "checkpoint half written": _half_written,
    "checkpoint before its name": _renamed("step-", before=True),
    "checkpoint after its name": _renamed("step-", before=False),
    "sample grid before its name": _renamed("k.png", before=True),
    "log.jsonl before its name": _renamed("log.jsonl", before=True),
    "log half a line": _half_a_line,
    "model before its name": _renamed("model.safetensors", before=True),
}


def child(plan: Plan, folder: Path, kill: dict[str, Any], pipe: int) -> None:
    """Train, and tell each step."""
    if "moment" in kill:
        left = [kill["count"]]

        def due() -> bool:
            left[0] -= 1
            return left[0] == 0

        MOMENTS[kill["moment"]](due)

    def report(progress: Progress) -> None:
        os.write(pipe, f"{progress.step}\n".encode())

    train(plan, folder, resume=True, report=report)


def attempt(plan: Plan, folder: Path, kill: dict[str, Any]) -> dict[str, Any]:
    """One training, how it ended, and what it left."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            child(plan, folder, kill, writing)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writing)
    steps: list[int] = []
    with os.fdopen(reading) as told:
        if "after" in kill:
            while len(steps) < kill["after"] and (line := told.readline()):
                steps.append(int(line))
            time.sleep(kill["delay"])
            os.kill(pid, signal.SIGKILL)
        steps += [int(line) for line in told]
    _, status = os.waitpid(pid, 0)
    run = Run(folder)
    return {
        "kill": kill,
        "steps": steps,
        "status": os.waitstatus_to_exitcode(status),
        # Reading them is the check that whatever has its name is whole.
        "saved": [load_checkpoint(path)["progress"]["step"] for path in checkpoints(run.checkpoint_folder)],
        "config": run.config_path.exists() and run.config()["method"],
        "finished": run.model_path.exists(),
        "temporary": sorted(path.name for path in folder.rglob(".*")),
    }


def main(folder: str, method: str, images: str, kills: str) -> None:
    plan = quick_plan(method, int(images))
    print(json.dumps([attempt(plan, Path(folder), kill) for kill in json.loads(kills)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
