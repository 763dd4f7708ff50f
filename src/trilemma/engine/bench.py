"""How fast runs make images: batch by batch, with FLOPs, memory and the share of the machine's best.

``evaluate`` times two batch sizes beside the scores; this is the whole protocol. Each run gets a bench.json.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from trilemma.config import require_all
from trilemma.engine.generator import Generator
from trilemma.engine.run import Run
from trilemma.errors import ConfigError, RunError
from trilemma.files import finite, write_json
from trilemma.measure.flops import RULE, count_flops
from trilemma.measure.roofline import Roofline, measure_roofline
from trilemma.measure.speed import LIMIT_SECONDS, MAX_REPEATS, BatchSpeed, CallCounter, hardware, sweep, versions
from trilemma.methods.base import Method
from trilemma.types import Sampler

BATCHES = (1, 4, 16, 64, 100, 256)
Report = Callable[[str, int, int], None]


def bench(
    runs: Sequence[Path | str],
    *,
    steps: Sequence[int] = (),
    batches: Sequence[int] = BATCHES,
    threads: int | None = None,
    repeats: int = MAX_REPEATS,
    limit_seconds: float = LIMIT_SECONDS,
    report: Report = lambda what, done, total: None,
) -> list[dict[str, Any]]:
    """Measure each run's default sampler, and those of ``steps`` that it offers; writes RUN/bench.json.

    Args:
        runs: run folders.
        steps: numbers of steps, each offered by one of the runs at least.
        batches: images made at a time; 1 is always among them, for the time that one image takes.
        threads: of the CPU, for these measurements; None leaves what torch has.
        repeats, limit_seconds: no further repeat is begun after so many, or so many seconds, at each batch size.
        report: told what is measured, and how many batch sizes of how many are done.

    Returns:
        what each bench.json holds.

    Raises:
        RunError, ConfigError: no run, no weights, a setting that does not hold; all before anything is measured.
    """
    require_all(
        (min(batches, default=0) >= 1, f"batches must be at least 1, not {_listed(batches)}"),
        (threads is None or threads >= 1, f"threads must be at least 1, not {threads}"),
        (repeats >= 1, f"repeats must be at least 1, not {repeats}"),
        (limit_seconds >= 0, f"seconds must not be negative, not {limit_seconds:g}"),
    )
    if not runs:
        raise RunError("nothing to measure: give at least one run folder, for example runs/ddgan-mnist")
    chosen = _samplers([Generator.load(run).method for run in runs], steps)
    sizes = sorted({1, *batches})
    results: list[dict[str, Any]] = []
    total, done = len(sizes) * sum(map(len, chosen)), 0
    with _threads(threads):
        for folder, samplers in zip(runs, chosen, strict=True):
            generator = Generator.load(folder)
            method = generator.method
            report(f"{folder}: what this machine can do", done, total)
            roofline = measure_roofline(method.device)
            rows = []
            for sampler in samplers:
                what = f"{folder}: {method.describe(sampler)}"

                def advance(batch: int, what: str = what) -> None:
                    nonlocal done
                    done += 1
                    report(f"{what}, batch {batch}", done, total)

                row, speeds = _measure(method, sampler, sizes, repeats, limit_seconds, advance)
                rows.append(row | _told(row["flops_per_image"], speeds, roofline))
            result = {"rows": rows, "protocol": _protocol(generator, roofline, speeds, repeats, limit_seconds)}
            write_json(Run(folder).folder / "bench.json", result)
            results.append(finite(result))
    return results


def _samplers(methods: Sequence[Method], steps: Sequence[int]) -> list[list[Sampler]]:
    """For each method its default, then the numbers of steps that it offers and that are not its default's.

    Raises:
        ConfigError: a number of steps that none of them offers.
    """
    chosen = [[Sampler()] for _ in methods]
    for count in dict.fromkeys(steps):
        refusals = []
        for method, samplers in zip(methods, chosen, strict=True):
            sampler = Sampler(steps=count)
            try:
                method.describe(sampler)
            except ConfigError as refusal:
                refusals.append(refusal)
                continue
            if method.tag(sampler) != "default":
                samplers.append(sampler)
        if len(refusals) == len(methods):
            raise refusals[0]
    return chosen


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """So many CPU threads inside the block."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _measure(
    method: Method,
    sampler: Sampler,
    sizes: Sequence[int],
    repeats: int,
    limit_seconds: float,
    advance: Callable[[int], None],
) -> tuple[dict[str, Any], list[BatchSpeed]]:
    """One sampler: what it is and what an image costs, and its speed at each batch size."""

    def sample(seeds: Sequence[int]) -> Any:
        return method.sample(seeds, sampler)

    with CallCounter(method.counted_networks()) as counter:
        flops, by_network = count_flops(lambda: sample(range(1)), method.sampling_networks())
    words, tag = method.describe(sampler), method.tag(sampler)
    row = {
        "title": method.title() if tag == "default" else f"{method.title()}, {words}",
        "method": method.name,
        "sampler": words,
        "tag": tag,
        "nfe": sum(counter.per_image(1).values()),
        "flops_per_image": flops,
        "flops_by_network": by_network,
    }
    speeds = sweep(
        sample,
        sizes,
        device=method.device,
        warmup=lambda seeds: method.sample(seeds, method.preview()),
        limit_seconds=limit_seconds,
        max_repeats=repeats,
        advance=advance,
    )
    return row, speeds


def _told(flops: int, speeds: Sequence[BatchSpeed], roofline: Roofline) -> dict[str, Any]:
    """The sweep as plain numbers."""
    single = speeds[0].timing
    return {
        "seconds_per_image_batch_1": single.quantile(0.5),
        "seconds_per_image_batch_1_quartiles": [single.quantile(0.25), single.quantile(0.75)],
        "batches": [
            {
                "batch": speed.batch,
                "repeats": len(speed.timing.seconds),
                "images_per_second": speed.images_per_second(),
                "images_per_second_quartiles": [speed.images_per_second(0.25), speed.images_per_second(0.75)],
                "share_of_roofline": flops * speed.images_per_second() / roofline.best,
                "peak_memory_mib": speed.memory.mib,
                "memory_before_mib": speed.memory.before_mib,
            }
            for speed in speeds
        ],
    }


def _protocol(
    generator: Generator, roofline: Roofline, speeds: Sequence[BatchSpeed], repeats: int, limit_seconds: float
) -> dict[str, Any]:
    networks = generator.method.sampling_networks().values()
    assert generator.run is not None
    return {
        "data": generator.run.config()["data"]["name"],
        "shape": list(generator.spec.shape),
        "parameters": sum(p.numel() for network in networks for p in network.parameters()),
        "device": str(generator.method.device),
        "precision": generator.precision,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "limit_seconds": limit_seconds,
        "flops": f"{RULE}; of one image made alone",
        "roofline": {
            "matmul_flops_per_second": roofline.matmul,
            "convolution_flops_per_second": roofline.convolution,
        },
        "memory": speeds[0].memory.kind,
        "hardware": hardware(),
        "versions": versions(),
    }


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers)) or "none"
