"""How the seconds of an image grow: with its side, the steps T, the batch and the threads; beside the FLOPs.

    python -m benchmarks.growth [--seconds 3] [--sides 32,64,128,256] [--name NAME]

One DDGAN of 32 channels trains and samples. Along each axis all else stays: 32 pixels a side, T = 4, ``BATCH`` images
at a time, all threads. The exponent of an axis is the slope of log seconds an image over log FLOPs an image: above 1,
some part of the work grows faster than the FLOPs. Writes results/growth-NAME.json, and growth-NAME.png beside it where
kaleido and a browser are installed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.__main__ import RESULTS, in_one_line, slug
from benchmarks.cases import Case
from benchmarks.suite import Settings, Trainer, training, training_flops
from trilemma.engine.cpu import settle_cpu
from trilemma.errors import ConfigError, RunError
from trilemma.files import write_json
from trilemma.measure.flops import FlopCounter
from trilemma.measure.roofline import Roofline, measure_roofline
from trilemma.measure.speed import hardware, measure, versions
from trilemma.report.figures import draw, plain
from trilemma.types import DataSpec

SIDE, STEPS, BATCH = 32, 4, 8
AXES: dict[str, tuple[int, ...]] = {"side": (32, 64, 128, 256), "T": (1, 2, 4, 8), "batch": (1, 2, 4, 8, 16, 32, 64)}
LABELS = {"side": "pixels a side", "T": "steps T", "batch": "images at a time", "threads": "CPU threads"}

Point = dict[str, Any]


def case(side: int = SIDE, steps: int = STEPS, batch: int = BATCH) -> Case:
    """The network at one point: five levels, attention in the middle alone."""
    options = {
        "num_timesteps": steps,
        "unet": {"channels": 32, "channel_mult": [1, 1, 2, 2, 4], "blocks": 1, "attention": []},
        "discriminator": {"kind": "small", "channels": 16},
    }
    return Case(f"side {side}, T = {steps}, batch {batch}", "ddgan", options, DataSpec("images", 3, side, side), batch)


def point(axis: str, value: int, chosen: Case, roofline: Roofline, settings: Settings) -> list[Point]:
    """Training and sampling, as seconds and FLOPs of one image."""
    trainer = Trainer(chosen, settings.device)
    rows = [training(chosen, trainer, training_flops(chosen, settings), roofline, settings)]
    method = trainer.method.eval()

    def sample() -> None:
        method.sample(range(chosen.batch))

    with FlopCounter() as counter:
        sample()
    timing = measure(sample, device=settings.device, limit_seconds=settings.seconds, max_repeats=settings.repeats)
    found = {"train": (1.0 / rows[0]["images_per_second"], rows[0]["flops_per_image"])}
    found["sample"] = (timing.quantile(0.5) / chosen.batch, counter.total / chosen.batch)
    return [
        {"axis": axis, "value": value, "kind": kind, "seconds_per_image": seconds, "flops_per_image": flops}
        for kind, (seconds, flops) in found.items()
    ]


def exponent(points: Sequence[Point]) -> float | None:
    """Slope of log seconds over log FLOPs by least squares; none where the FLOPs do not change."""
    x = [math.log(point["flops_per_image"]) for point in points]
    y = [math.log(point["seconds_per_image"]) for point in points]
    return statistics.linear_regression(x, y).slope if max(x) - min(x) > 0.1 else None


def figure(points: Sequence[Point]) -> dict[str, Any]:
    """One panel an axis: seconds an image as points, and dashed what they were if they grew as the FLOPs do."""
    axes = list(dict.fromkeys(point["axis"] for point in points))
    data: list[dict[str, Any]] = []
    grid = {"rows": 1, "columns": len(axes), "pattern": "independent"}
    layout: dict[str, Any] = {"grid": grid, "margin": {"t": 20}, "showlegend": True}
    for i, axis in enumerate(axes, 1):
        suffix = "" if i == 1 else str(i)
        layout[f"xaxis{suffix}"] = {
            "type": "log",
            "title": {"text": LABELS[axis]},
            "tickvals": AXES.get(axis, (1, 2, 4, 8)),
        }
        layout[f"yaxis{suffix}"] = {"type": "log", "title": {"text": "seconds an image" if i == 1 else ""}}
        for kind, colour in (("train", "#1f6feb"), ("sample", "#d1571b")):
            line = [point for point in points if (point["axis"], point["kind"]) == (axis, kind)]
            x = [point["value"] for point in line]
            first = line[0]
            even = [first["seconds_per_image"] * point["flops_per_image"] / first["flops_per_image"] for point in line]
            common = {"x": x, "xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "legendgroup": kind, "showlegend": i == 1}
            seconds = [point["seconds_per_image"] for point in line]
            data.append(common | {"y": seconds, "name": kind, "mode": "lines+markers", "line": {"color": colour}})
            dashed = {"color": colour, "dash": "dot", "width": 1}
            data.append(common | {"y": even, "name": f"{kind}, by FLOPs", "mode": "lines", "line": dashed})
    return {"data": data, "layout": layout}


def run(settings: Settings, sides: Sequence[int]) -> dict[str, Any]:
    """All axes: ``points``, ``exponents`` by axis and kind, ``roofline``."""
    roofline = measure_roofline(settings.device, limit_seconds=min(0.5, settings.seconds))
    plan = [("side", side, case(side=side)) for side in sides]
    plan += [("T", steps, case(steps=steps)) for steps in AXES["T"]]
    plan += [("batch", batch, case(batch=batch)) for batch in AXES["batch"]]
    points: list[Point] = []
    for axis, value, chosen in plan:
        print(chosen.name, file=sys.stderr)
        points += point(axis, value, chosen, roofline, settings)
    threads = torch.get_num_threads()
    for count in sorted({2**power for power in range(threads.bit_length())} | {threads}):
        torch.set_num_threads(count)
        points += point("threads", count, case(), roofline, settings)
    torch.set_num_threads(threads)
    pairs = dict.fromkeys((point["axis"], point["kind"]) for point in points)
    slopes = {f"{a}, {k}": exponent([p for p in points if (p["axis"], p["kind"]) == (a, k)]) for a, k in pairs}
    return {
        "roofline": roofline.best,
        "points": points,
        "exponents": {name: slope for name, slope in slopes.items() if slope is not None},
    }


def main(words: Sequence[str] | None = None) -> None:
    """Measure, write, draw, and print the exponents."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="no further repeat of a measurement after so many")
    parser.add_argument("--sides", default="32,64,128,256", help="of the images in pixels, between commas")
    parser.add_argument("--name", help="of the results (default: the processor's)")
    given = parser.parse_args(words)
    sides = [int(side) if side.strip().isdecimal() else 0 for side in given.sides.split(",")]
    if min(sides) < 1 or not given.seconds >= 0:
        raise ConfigError("--sides takes whole numbers between commas, --seconds a number from 0")
    settle_cpu()
    settings = Settings(torch.device("cpu"), given.seconds)
    machine = hardware()
    result = run(settings, sides)
    result |= {"seconds": given.seconds, "hardware": machine, "versions": versions()}
    path = RESULTS / f"growth-{slug(given.name or str(machine['cpu']))}.json"
    write_json(path, result)
    print(path)
    for name, slope in result["exponents"].items():
        print(f"{name}: seconds grow as FLOPs to the power {slope:.2f}")
    try:
        print(_drawn(result["points"], path.with_suffix(".png")))
    except RunError as error:
        print(f"not drawn: {error}", file=sys.stderr)


def _drawn(points: Sequence[Point], path: Path) -> Path:
    draw([plain(figure(points))], [path], width=1300)
    return path


if __name__ == "__main__":
    in_one_line(main)
