"""Images a second of a training by 1 process against 2, in two ways.

    python -m benchmarks.scaling
    python -m benchmarks.scaling ddpm --data mnist --batch-size 32 --seconds 60 --processes 1 2 4
    python -m benchmarks.scaling ddgan --data mnist --strong

Weak scaling: each process has one thread and the same share of the batch. With as many free cores (or GPUs) as
processes, 2 processes at 1.0 efficiency make twice the images of 1. With ``--strong`` the same batch and the same
threads are shared out among the processes, so that the question is which is faster on this machine: one process with
all threads, or several with fewer each.

Writes results/scaling-METHOD-DATA-NAME.json (or shared-METHOD-DATA-NAME.json), NAME being the processor's unless
``--name`` gives another. Each run is timed by its own log, from the first record after ``--warm-up`` seconds to the
last. It uses whatever the machine has: run it on an idle one. With ``--rounds`` all numbers of processes are measured
so often in turn and the medians are told, for machines that are not as quick at all times.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.__main__ import RESULTS, slug
from trilemma.files import write_json
from trilemma.measure.speed import hardware, versions


def images_per_second(command: argparse.Namespace, processes: int) -> float:
    """Train for ``--seconds`` and read the log."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        arguments = [sys.executable, "-m", "trilemma", "train", command.method, "--data", command.data]
        arguments += ["--out", str(out), "--processes", str(processes)]
        arguments += ["--recipe", command.recipe] if command.recipe else []
        arguments += ["--minutes", str(command.seconds / 60), "--training.snapshots", "0"]
        arguments += ["--training.batch-size", str(command.batch_size * (1 if command.strong else processes))]
        arguments += ["--training.checkpoint-minutes", str(command.seconds)]
        environment = {**os.environ}
        if not command.strong:
            environment["OMP_NUM_THREADS"] = "1"
        subprocess.run(arguments, env=environment, check=True, stdout=subprocess.DEVNULL)
        records = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    timed = [record for record in records if record["seconds"] >= command.warm_up]
    if len(timed) < 2:
        raise SystemExit("too few log records after the warm-up: raise --seconds")
    first, last = timed[0], timed[-1]
    return float((last["images"] - first["images"]) / (last["seconds"] - first["seconds"]))


def main() -> None:
    """Print a line for each number of processes, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", nargs="?", default="ddpm")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--recipe", help="of the networks (default: the data's)")
    parser.add_argument("--batch-size", type=int, default=32, help="images of a step: of each process, or all --strong")
    parser.add_argument("--strong", action="store_true", help="share batch and threads out among the processes")
    parser.add_argument("--rounds", type=int, default=1, help="measurements of each number of processes, in turn")
    parser.add_argument("--seconds", type=float, default=30.0, help="of training, for each number of processes")
    parser.add_argument("--warm-up", type=float, default=5.0, help="seconds at the start that are not timed")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--name", help="of the results (default: the processor's)")
    command = parser.parse_args()
    found: dict[int, list[float]] = {processes: [] for processes in command.processes}
    for _ in range(command.rounds):
        for processes, speeds in found.items():
            speeds.append(images_per_second(command, processes))
    first, *_ = command.processes
    alone = median(found[first]) / first
    print("processes  images/s  efficiency")
    rows: list[dict[str, Any]] = []
    for processes, speeds in found.items():
        speed = median(speeds)
        efficiency = speed / (alone * (first if command.strong else processes))
        rows.append({"processes": processes, "images_per_second": speed, "rounds": speeds, "efficiency": efficiency})
        print(f"{processes:9d}  {speed:8.1f}  {efficiency:10.2f}", flush=True)
    machine = hardware()
    data = Path(command.data).stem  # of a file, what it is called: where it lies is nobody's business
    told = {"method": command.method, "data": data, "recipe": command.recipe, "batch_size": command.batch_size}
    told |= {"seconds": command.seconds, "threads": "shared" if command.strong else "1 a process", "rows": rows}
    kind = "shared" if command.strong else "scaling"
    path = RESULTS / f"{kind}-{command.method}-{slug(data)}-{slug(command.name or str(machine['cpu']))}.json"
    write_json(path, told | {"hardware": machine, "versions": versions()})
    print(path)


if __name__ == "__main__":
    main()
