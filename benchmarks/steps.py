"""Seconds of a training step, and where they go, by the code that lies in any folder.

``benchmarks.versus`` starts this file by its path, so that of trilemma and its benchmarks it sees that folder's alone:

    python benchmarks/steps.py FOLDER CASE,CASE SECONDS
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from typing import Any

import torch

FEWEST, MOST = 3, 1_000  # steps of a kind that are timed

KINDS = {  # of operations, by what their names hold; the first that fits
    "convolution, backward": ("convolution_backward",),
    "convolution": ("convolution", "conv2d"),
    "attention": ("attention",),
    "matrix product": ("::mm", "::addmm", "::bmm", "::baddbmm"),
    "optimiser": ("adam", "Optimizer."),
    "sum": ("::sum", "::mean"),
}


def time_by_kind(trainer: Any) -> dict[str, float]:
    """Shares of a step without lazy penalties that go into each kind of operation, most first; all else is passes over
    memory and Python. On a CPU."""
    done = max(trainer.kinds(), key=lambda kind: trainer.kinds()[kind])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        trainer.step(done)
    spent: Counter[str] = Counter()
    for event in profile.key_averages():
        kind = next((kind for kind, signs in KINDS.items() if any(sign in event.key for sign in signs)), "other")
        spent[kind] += event.self_cpu_time_total
    return {kind: time / spent.total() for kind, time in spent.most_common()}


def seconds_of_a_step(trainer: Any, limit: float) -> float:
    """The mean over a cycle of lazy penalties: the median of each kind of step, as often as it comes."""
    total = 0.0
    for done, share in trainer.kinds().items():
        trainer.step(done)
        seconds: list[float] = []
        while len(seconds) < FEWEST or (sum(seconds) < limit and len(seconds) < MOST):
            started = time.perf_counter()
            trainer.step(done)
            seconds.append(time.perf_counter() - started)
        total += share * statistics.median(seconds)
    return total


def main() -> None:
    """Print JSON: of each case that the folder's code has, the seconds and their shares."""
    folder, names, limit = sys.argv[1:]
    sys.path[:0] = [folder, f"{folder}/src"]
    from benchmarks.cases import cases
    from benchmarks.suite import Trainer

    try:
        from trilemma.engine.cpu import settle_cpu
    except ImportError:  # what older versions did
        torch.set_flush_denormal(True)
    else:
        settle_cpu()
    found: dict[str, Any] = {}
    for case in cases():
        if case.name in names.split(","):
            trainer = Trainer(case, torch.device("cpu"))
            seconds = seconds_of_a_step(trainer, float(limit))
            found[case.name] = {"batch": case.batch, "seconds": seconds, "time_by_kind": time_by_kind(trainer)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
