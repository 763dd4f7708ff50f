"""Training steps of an earlier commit against those of this working tree, in turns on the same machine.

    python -m benchmarks.versus COMMIT
    python -m benchmarks.versus COMMIT --only ddgan-mnist,spigan-mnist --rounds 5 --seconds 2 --name NAME

A machine is not as quick today as it was when an earlier result was written. Here both versions are measured in each
round, one right after the other, in processes of their own, with the same networks and batch. The table has the median
over the rounds, and the lowest and highest ratio that any round saw. Results go to results/versus-NAME.json.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import RESULTS, slug
from trilemma.errors import ConfigError, TrilemmaError
from trilemma.files import write_json
from trilemma.measure.speed import hardware, versions

ROOT = Path(__file__).resolve().parents[1]
CASES = "vae-mnist,ddgan-mnist,spigan-mnist,stylegan2-mnist,diffusion_gan-mnist,ddpm-mnist,ddgan-gray32,ddgan-cifar10"

Measured = dict[str, dict[str, Any]]  # of each case: batch, seconds of a step, shares of its time


def unpack(commit: str, folder: Path) -> None:
    """Put a commit's code into a folder.

    Raises:
        ConfigError: git knows no such commit, or it has no benchmarks.
    """
    command = ["git", "archive", commit, "src", "benchmarks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise ConfigError(
            f"{commit}: {' '.join(done.stderr.decode().split())}; name a commit that has src and benchmarks"
        )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")


def steps(folder: Path, names: str, seconds: float) -> Measured:
    """What ``benchmarks/steps.py`` measures of a folder's code."""
    command = [sys.executable, str(ROOT / "benchmarks" / "steps.py"), str(folder), names, str(seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Measured = json.loads(done.stdout.splitlines()[-1])
    return found


def compared(rounds: Sequence[tuple[Measured, Measured]]) -> list[dict[str, Any]]:
    """A row a case that both versions have: ``rounds`` are (before, after)."""
    rows = []
    for name, last in rounds[-1][1].items():
        if name not in rounds[-1][0]:
            continue
        pairs = [(before[name]["seconds"], after[name]["seconds"]) for before, after in rounds]
        ratios = [before / after for before, after in pairs]
        row: dict[str, Any] = {"case": name, "batch": last["batch"]}
        for index, version in enumerate(("before", "after")):
            row[version] = {
                "seconds": median(pair[index] for pair in pairs),
                "time_by_kind": rounds[-1][index][name]["time_by_kind"],
            }
        row["times_as_fast"] = row["before"]["seconds"] / row["after"]["seconds"]
        row["of_the_rounds"] = [min(ratios), max(ratios)]
        rows.append(row)
    return rows


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="that is compared with")
    parser.add_argument("--only", default=CASES, help="cases, between commas")
    parser.add_argument("--rounds", type=int, default=5, help="of both versions")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each kind of step in each round")
    parser.add_argument("--name", help="of the results (default: the processor's)")
    command = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        try:
            unpack(command.commit, Path(folder))
        except TrilemmaError as error:
            sys.exit(f"versus: {error}")
        rounds = [
            (steps(Path(folder), command.only, command.seconds), steps(ROOT, command.only, command.seconds))
            for _ in range(max(1, command.rounds))
        ]
    rows, machine = compared(rounds), hardware()
    table = Table("case", "ms a step, before", "after", "times as fast", "in the rounds")
    for row in rows:
        times = [f"{1e3 * row[version]['seconds']:.1f}" for version in ("before", "after")]
        lowest, highest = row["of_the_rounds"]
        table.add_row(row["case"], *times, f"{row['times_as_fast']:.2f}", f"{lowest:.2f} to {highest:.2f}")
    Console().print(table)
    path = RESULTS / f"versus-{slug(command.name or str(machine['cpu']))}.json"
    told = {"before": command.commit, "rounds": len(rounds), "seconds": command.seconds, "rows": rows}
    write_json(path, told | {"hardware": machine, "versions": versions()})
    print(path)


if __name__ == "__main__":
    main()
