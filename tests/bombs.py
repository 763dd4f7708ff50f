"""Opens files that are made to fill the memory, in a process of its own that may not have much.

``python bombs.py FOLDER``: each file or folder below FOLDER is opened as its name says (KIND-NAME). One line of JSON
for each: what came of it, the seconds of processor time, the growth of the process's largest size so far in MiB.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trilemma
from trilemma.comparison import read_rows
from trilemma.config import load_recipe
from trilemma.data import load_data
from trilemma.data.given import load_given
from trilemma.data.prepared import Preparation, prepare
from trilemma.engine.convert import convert
from trilemma.engine.generator import Generator
from trilemma.errors import TrilemmaError
from trilemma.report import page
from trilemma.types import DataSpec

MARGIN_MIB = 400  # of memory beyond what the process has when it begins; a few threads' stacks are in it
GRAY = DataSpec("images", 1, 8, 8)


def compare(path: Path) -> Any:
    page.get_plotlyjs = lambda: ""  # type: ignore[attr-defined]
    return [trilemma.compare([path], out=path.with_suffix(".html")), read_rows([path])]


OPEN: dict[str, Callable[[Path], Any]] = {
    "data": lambda path: load_data(str(path), size=8),
    "strip": lambda path: prepare(str(path), path.with_suffix(".out"), Preparation(size=256, crop="none")),
    "npz": lambda path: load_given(path, GRAY),
    "run": lambda path: Generator.load(path, device="cpu").sample(1),
    "compare": compare,
    "pickle": lambda path: convert(path, path.with_suffix(".run"), kind="stylegan2"),
    "state": lambda path: convert(path, path.with_suffix(".run"), config=path.parent / "ddgan.json"),
    "recipe": lambda path: load_recipe(str(path)),
}


def data_mib() -> float:
    """What counts against the limit."""
    found = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(folder: Path) -> None:
    for name in ("data-good.png.folder", "run-good", "compare-good"):  # imports, thread pools and caches are made here
        OPEN[name.split("-")[0]](folder / name)
    limit = int((data_mib() + MARGIN_MIB) * 2**20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    start = peak_mib()
    for path in sorted(folder.iterdir()):
        kind = path.name.split("-")[0]
        if kind not in OPEN or path.suffix in (".html", ".out", ".run"):
            continue
        began = time.process_time()
        try:
            OPEN[kind](path)
            told = {"outcome": "opened"}
        except TrilemmaError as error:
            told = {"outcome": "refused", "words": str(error)[:500]}
        except BaseException as error:  # what must not happen is told as well
            told = {"outcome": type(error).__name__, "words": str(error)[:500]}
        seconds = time.process_time() - began
        print(json.dumps({"name": path.name, **told, "seconds": seconds, "grown": peak_mib() - start}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
