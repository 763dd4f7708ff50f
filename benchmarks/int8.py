"""What eight bits do to a run: scores before and after, and images a second in each runtime that is installed.

    python -m benchmarks.int8 RUN... [--batch 100] [--samples 1000] [--seconds 5] [--name NAME]

Each run's sampler is exported in float32 and in eight bits (``trilemma.engine.int8``). Both make images of the same
noise, which are scored against the data that the run was trained on. Writes results/int8-NAME.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.__main__ import RESULTS, in_one_line, slug
from trilemma.engine.export import export, program, runtimes
from trilemma.engine.generator import Generator
from trilemma.engine.int8 import Int8
from trilemma.files import write_json
from trilemma.maths.noise import give_noise
from trilemma.measure.speed import hardware, measure, versions

ROUNDS = 3  # of all runtimes one after the other: what a machine does beside it must not fall on one of them


@torch.no_grad()
def speeds(run: Path, batch: int, seconds: float) -> dict[str, float]:
    """Images a second of PyTorch and of every runtime, the median over the rounds; noise is given to all."""
    method = Generator.load(run, device="cpu").method.requires_grad_(False)
    calls: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for runtime in runtimes():
            made, noise = program(method, method.preview(), runtime, Path(folder), batch)
            calls[runtime] = lambda made=made, noise=noise: made(noise)  # type: ignore[misc]

    def plain() -> None:
        with give_noise(noise):
            method.sample(range(1), method.preview())

    calls = {"pytorch": plain, **calls}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            call()
            found[name].append(batch / measure(call, limit_seconds=seconds / ROUNDS).quantile(0.5))
    return {name: statistics.median(each) for name, each in found.items()}


def scores(run: Path, batch: int, judged: Int8) -> dict[str, dict[str, float]]:
    """FID, precision and recall in float32 (by PyTorch) and in eight bits (by onnxruntime)."""
    sampler = Generator.load(run, device="cpu").method.preview()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "int8.onnx"
        made = export(run, format="onnx", out=out, batch=batch, sampler=sampler, int8=judged, limit_seconds=0.0)
    return {name: {"float32": before, "int8": after} for name, (before, after) in made.scores.items()}


def main(words: Sequence[str] | None = None) -> None:
    """Measure, write, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders with weights")
    parser.add_argument("--batch", type=int, default=100, help="images at a time")
    parser.add_argument("--samples", type=int, default=1000, help="scored of each kind")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing, for each runtime")
    parser.add_argument("--extractor", help="of the scores (default: the data's)")
    parser.add_argument("--data-root", type=Path, help="where the runs' data lies, if not in the usual folder")
    parser.add_argument("--name", help="of the results (default: the processor's)")
    given = parser.parse_args(words)
    judged = Int8(given.samples, float("inf"), given.extractor, given.data_root)
    machine = hardware()
    rows: list[dict[str, Any]] = []
    for run in given.runs:
        row = {"run": run.as_posix(), "title": Generator.load(run, device="cpu").method.title(), "batch": given.batch}
        row |= {"scores": scores(run, given.batch, judged)}
        row |= {"images_per_second": speeds(run, given.batch, given.seconds)}
        rows.append(row)
        print(row)
    path = RESULTS / f"int8-{slug(given.name or str(machine['cpu']))}.json"
    about = {"samples": given.samples, "seeds": "seed 0 scored, seed 1 timed, seed 2 for the ranges"}
    write_json(path, {"rows": rows, **about, "hardware": machine, "versions": versions()})
    print(path)


if __name__ == "__main__":
    in_one_line(main)
