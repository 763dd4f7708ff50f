"""``python -m benchmarks [--only ddgan-mnist,vae-mnist] [--seconds 5] [--name NAME]``; writes results/NAME.json."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from trilemma.errors import ConfigError, TrilemmaError, nearest
from trilemma.files import write_json

RESULTS = Path(__file__).parent / "results"
EVALUATION = "digits-features"


def committed(path: Path) -> dict[str, Any]:
    """The result as it was last committed; nothing where it never was."""
    command = ["git", "show", f"HEAD:./{path.name}"]
    try:
        done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.CalledProcessError, json.JSONDecodeError):
        return {}
    return found


def ratios(result: dict[str, Any], before: dict[str, Any]) -> dict[tuple[str, str, int], tuple[float, float]]:
    """(case, kind, batch) to (images a second, share of the roofline), now over before, of the rows in both."""

    def key(line: dict[str, Any]) -> tuple[str, str, int]:
        return line["case"], line["kind"], line["batch"]

    old = {key(line): line for line in before.get("rows", [])}
    names = ("images_per_second", "share_of_roofline")
    return {
        key(line): (line[names[0]] / old[key(line)][names[0]], line[names[1]] / old[key(line)][names[1]])
        for line in result["rows"]
        if key(line) in old
    }


def tables(result: dict[str, Any], before: dict[str, Any]) -> list[Table]:
    """What was measured, and, where there is one, the comparison with the reference implementation."""
    headings = ("case", "what", "batch", "images/s", "GFLOP an image", "share of roofline", "memory over needed")
    table = Table(*headings, "images/s was", "share was")
    found = ratios(result, before)
    for line in result["rows"]:
        now = found.get((line["case"], line["kind"], line["batch"]))
        memory = line.get("memory", {}).get("peak_over_needed")
        table.add_row(
            line["case"],
            line["kind"],
            str(line["batch"]),
            f"{line['images_per_second']:.4g}",
            f"{line['flops_per_image'] / 1e9:.3g}",
            f"{line['share_of_roofline']:.3f}",
            "" if memory is None else f"{memory:.2f}",
            *("", "") if now is None else (f"x {now[0]:.2f}", f"x {now[1]:.2f}"),
        )
    against = {name: ratio for name, ratio in result["reference"].items() if ratio}
    if not against:
        return [table]
    other = Table("case", "training, over the reference", "sampling, over the reference")
    for name, ratio in against.items():
        other.add_row(name, f"{ratio['train']:.2f}", f"{ratio['sample']:.2f}")
    return [table, other]


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed on this machine, as JSON.")
    parser.add_argument("--only", help="cases to measure, between commas (default: all but the 256 pixel ones)")
    parser.add_argument("--seconds", type=float, default=5.0, help="no further repeat of a measurement after so many")
    parser.add_argument("--repeats", type=int, default=10, help="of each measurement, at most")
    parser.add_argument("--batches", default="1,100", help="sampled at a time, between commas")
    parser.add_argument("--runtimes", help="of exported samplers, between commas: exported, onnxruntime, openvino")
    parser.add_argument("--precision", default="fp32", help="to compute in: fp32, tf32 (a GPU's) or bf16")
    parser.add_argument("--compile", help="torch.compile's backend to sample with too: inductor, cudagraphs")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--threads", type=int, help="of the CPU (default: as many as torch takes)")
    parser.add_argument(
        "--name", help="of the results (default: the processor's or GPU's; with --only, none are written)"
    )
    return parser.parse_args(words)


def slug(text: str) -> str:
    """A file's name: ``Some CPU @ 2.0GHz`` -> ``some-cpu-2-0ghz``."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "machine"


def usable(name: str) -> Any:
    """The device of that name.

    Raises:
        ConfigError: torch knows no such device, or has none here.
    """
    import torch

    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise ConfigError(f"--device {name}: {reason}; give cpu, or cuda where there is a GPU") from error


def chosen_runtimes(words: str | None, device: Any) -> list[str]:
    """Those asked for, else all that are installed; exported samplers run on the CPU alone.

    Raises:
        ConfigError: an unknown one, or one that is not installed.
    """
    from trilemma.engine.export import PACKAGES, runtimes

    installed = runtimes()
    if words is None:
        return installed if device.type == "cpu" else []
    asked = [name.strip() for name in words.split(",") if name.strip()]
    if asked and device.type != "cpu":
        raise ConfigError(f"--runtimes {words}: exported samplers run on the CPU, not on {device.type}; leave it out")
    for name in asked:
        if name not in PACKAGES:
            raise nearest("runtime", name, PACKAGES)
        if name not in installed:
            raise ConfigError(f"--runtimes {name}: not installed; pip install {' '.join(PACKAGES[name])}")
    return asked


def main(words: Sequence[str] | None = None) -> None:
    """Measure, write, compare."""
    given = arguments(words)
    import torch

    from benchmarks.cases import cases
    from benchmarks.suite import PRECISIONS, Settings, run
    from trilemma.engine.cpu import settle_cpu
    from trilemma.measure.speed import hardware, versions

    known = {case.name: case for case in cases()}
    usual = [name for name, case in known.items() if not case.large]
    chosen = [name.strip() for name in given.only.split(",")] if given.only else [*usual, EVALUATION]
    for name in chosen:
        if name not in (*known, EVALUATION):
            raise nearest("case", name, (*known, EVALUATION))
    batches = [int(part) if part.isdecimal() else 0 for part in given.batches.split(",")]
    whole = [*batches, given.repeats, 1 if given.threads is None else given.threads]
    if min(whole) < 1 or not given.seconds >= 0:
        raise ConfigError("--batches, --repeats and --threads take whole numbers from 1, --seconds a number from 0")
    if given.precision not in PRECISIONS:
        raise nearest("precision", given.precision, PRECISIONS)
    if given.compile is not None and given.compile not in (known_backends := torch.compiler.list_backends(None)):
        raise nearest("backend", given.compile, known_backends)
    device = usable(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    runtimes = chosen_runtimes(given.runtimes, device)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    settle_cpu()
    settings = Settings(
        device,
        given.seconds,
        given.repeats,
        tuple(sorted(set(batches))),
        tuple(runtimes),
        given.precision,
        given.compile,
    )
    result = run(
        [known[name] for name in chosen if name in known],
        settings,
        evaluate=EVALUATION in chosen,
        report=lambda name: print(name, file=sys.stderr),
    )
    machine = hardware()
    result |= {
        "device": str(device),
        "seconds": given.seconds,
        "precision": given.precision,
        "hardware": machine,
        "versions": versions(),
    }
    own = str(machine["gpu"] if device.type == "cuda" else machine["cpu"])
    name = slug(given.name or (own if given.precision == "fp32" else f"{own} {given.precision}"))
    path = RESULTS / f"{name}.json"
    before = committed(path)
    kept = given.name is not None or given.only is None  # a part would take the place of the whole
    if kept:
        write_json(path, result)
    for table in tables(result, before):
        Console(width=None if sys.stdout.isatty() else 160).print(table)
    if kept:
        print(path)


def in_one_line(main: Callable[[], None]) -> None:
    """Call it; what it refuses is said in one line, and the exit status is 2."""
    try:
        main()
    except TrilemmaError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    in_one_line(main)
