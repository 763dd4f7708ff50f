"""How long commands take from their start to their end, Python and imports included.

    python -m benchmarks.starting [--repeats 5] [--name NAME]

``trilemma sample`` makes one image by a run of the digits' recipe. Writes results/starting-NAME.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.__main__ import RESULTS, in_one_line, slug
from trilemma.files import write_json
from trilemma.measure.speed import hardware, versions

PYTHON = [sys.executable, "-c", "pass"]
IMPORT = [sys.executable, "-c", "import trilemma"]
TRILEMMA = [sys.executable, "-m", "trilemma"]


def seconds(command: Sequence[str], repeats: int) -> list[float]:
    """Of each repeat, after one that brings the files into memory."""
    found = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        found.append(time.perf_counter() - started)
    return found[1:]


def starting(method: str, repeats: int) -> list[dict[str, Any]]:
    """A row a command: its words, the median of its seconds, and all of them."""
    with tempfile.TemporaryDirectory() as folder:
        run, out = Path(folder) / "run", Path(folder) / "image.png"
        train = ["train", method, "--data", "digits", "--images", "64", "--out", str(run)]
        subprocess.run([*TRILEMMA, *train], check=True, capture_output=True)
        commands = {
            "python": PYTHON,
            "import trilemma": IMPORT,
            "trilemma --help": [*TRILEMMA, "--help"],
            "trilemma sample RUN --n 1": [*TRILEMMA, "sample", str(run), "--n", "1", "--out", str(out)],
        }
        found = {name: seconds(command, repeats) for name, command in commands.items()}
    return [{"command": name, "seconds": median(each), "repeats": each} for name, each in found.items()]


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.starting", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--method", default="ddgan", help="that makes the image")
    parser.add_argument("--repeats", type=int, default=5, help="of each command")
    parser.add_argument("--name", help="of the results (default: the processor's)")
    given = parser.parse_args(words)
    rows, machine = starting(given.method, max(1, given.repeats)), hardware()
    for row in rows:
        print(f"{row['seconds']:6.2f} s  {row['command']}")
    path = RESULTS / f"starting-{slug(given.name or str(machine['cpu']))}.json"
    write_json(path, {"method": given.method, "rows": rows, "hardware": machine, "versions": versions()})
    print(path)


if __name__ == "__main__":
    in_one_line(main)
