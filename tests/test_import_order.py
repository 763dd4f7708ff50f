"""Imports go downwards: a file uses its own folder and lower levels, never a neighbour's folder and nothing above.

The levels are those of CONTRIBUTING.md. Files of the torch-free parts reach torch by no chain of imports, so that a
report can be written, or a help text read, without it. Names made at run time (``importlib``) are not seen here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
PACKAGE = "trilemma"

LEVELS = {
    "types": 0, "errors": 0, "config": 0, "files": 0, "intervals": 0, "protocol": 0, "rows": 0, "words": 0,
    "maths": 1,
    "networks": 2, "augment": 2, "data": 2, "measure": 2,
    "methods": 3, "interop": 3,
    "engine": 4,
    "comparison": 5, "report": 5,
    "api": 6, "cli": 6, "commands": 6, "listing": 6, "__main__": 6, "": 6,
}  # fmt: skip
"""Level of each part; "" is the package's own ``__init__``, which lends out the names of ``api``."""

FILES = {0, 6}
"""The levels made of single files: they lie in one folder, so they may use each other."""

TORCH_FREE = {"types", "errors", "config", "files", "intervals", "protocol", "rows", "words", "report", "comparison"}
TORCH = {"torch", "torchvision", "torchdiffeq", "torch_fidelity", "accelerate"}


class Import(NamedTuple):
    """One imported name: where, what, and whether only the type checker sees it."""

    line: int
    target: str
    typing_only: bool


def modules(src: Path) -> dict[str, Path]:
    """Dotted module name to file, for every file of the package."""
    found = {}
    for path in sorted((src / PACKAGE).rglob("*.py")):
        parts = path.relative_to(src).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def part(module: str) -> str:
    """The part of the package a module belongs to: ``trilemma.maths.sde`` -> ``maths``."""
    return module.split(".")[1] if "." in module else ""


def imports(module: str, path: Path, known: dict[str, Path]) -> Iterator[Import]:
    """Everything a file imports, at the top or inside functions, with relative names made absolute.

    ``from a import b`` is an import of ``a.b`` where that is a module, else of ``a``.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    guarded = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for child in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(node.lineno, name.name, node in guarded)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            for name in node.names:
                if source == PACKAGE and name.name.startswith("__"):
                    continue  # `from trilemma import __version__` uses nothing from above
                inner = f"{source}.{name.name}"
                is_module = inner in known or (source == PACKAGE and name.name in LEVELS)
                yield Import(node.lineno, inner if is_module else source, node in guarded)


def order_problems(src: Path) -> list[str]:
    """Every import that does not go down, and every part of the package that has no level."""
    known = modules(src)
    problems = []
    for module, path in known.items():
        here = part(module)
        if here not in LEVELS:
            problems.append(f"{path.relative_to(src)}: {here!r} has no level: add it to LEVELS and CONTRIBUTING.md")
            continue
        for line, target, _ in imports(module, path, known):
            there = part(target)
            if target.split(".")[0] != PACKAGE or there == here or there not in LEVELS:
                continue
            if LEVELS[there] > LEVELS[here] or (LEVELS[there] == LEVELS[here] and LEVELS[here] not in FILES):
                problems.append(
                    f"{path.relative_to(src)}:{line}: {here or PACKAGE} (level {LEVELS[here]}) imports {target}"
                    f" (level {LEVELS[there]}): imports go to lower levels only"
                )
    return problems


def with_packages(target: str, known: dict[str, Path]) -> Iterator[str]:
    """The modules of ours that importing ``target`` runs: itself and the packages around it, but for the root."""
    parts = target.split(".")
    for end in range(2, len(parts) + 1):
        if (module := ".".join(parts[:end])) in known:
            yield module


def torch_problems(src: Path) -> list[str]:
    """For every torch-free file, the shortest chain of imports by which it reaches torch, if there is one."""
    known = modules(src)
    graph = {
        module: [item.target for item in imports(module, path, known) if not item.typing_only]
        for module, path in known.items()
    }
    problems = []
    for module in known:
        if part(module) not in TORCH_FREE:
            continue
        queue, seen = [[module]], {module}
        while queue:
            chain = queue.pop(0)
            targets = graph[chain[-1]]
            if reached := sorted(target for target in targets if target.split(".")[0] in TORCH):
                problems.append(f"{' -> '.join([*chain, reached[0]])}: {part(module)} must not need torch")
                break
            for inner in (name for target in targets for name in with_packages(target, known)):
                if inner not in seen:
                    seen.add(inner)
                    queue.append([*chain, inner])
    return problems


def test_there_is_something_to_check() -> None:
    assert {f"{PACKAGE}.types", f"{PACKAGE}.errors"} <= set(modules(SRC))


def test_imports_go_downwards() -> None:
    assert order_problems(SRC) == []


def test_torch_free_parts_never_reach_torch() -> None:
    assert torch_problems(SRC) == []


def package(root: Path, files: dict[str, str]) -> Path:
    """A made-up source tree; each file is named by its path inside the package."""
    for name, text in files.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("maths/sde.py", "from trilemma.networks import mlp", "imports trilemma.networks"),
        ("maths/sde.py", "def f():\n    from ..engine.loop import train", "imports trilemma.engine.loop"),
        ("data/mnist.py", "import trilemma.measure.speed", "imports trilemma.measure.speed"),
        ("comparison/rows.py", "from ..report import html", "imports trilemma.report"),
        ("types.py", "from .maths.sde import drift", "imports trilemma.maths.sde"),
        ("methods/ddgan.py", "from trilemma import cli", "imports trilemma.cli"),
        ("engine/loop.py", "from trilemma import train", "imports trilemma (level 6)"),
        ("extras/tool.py", "", "'extras' has no level"),
    ],
)
def test_an_upward_import_is_found(tmp_path: Path, name: str, text: str, problem: str) -> None:
    (found,) = order_problems(package(tmp_path, {"__init__.py": "", name: text}))
    assert found.startswith(f"{PACKAGE}/{name}")
    assert problem in found


def test_downward_imports_pass(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from trilemma.engine import loop",
        "__main__.py": "from .cli import main",
        "engine/loop.py": "import torch\nfrom ..methods.base import Method\nfrom . import ema",
        "engine/ema.py": "from trilemma import __version__, errors",
        "config.py": "from .errors import ConfigError",
        "cli.py": "def main():\n    from .engine import loop",
    }
    assert order_problems(package(tmp_path, files)) == []


@pytest.mark.parametrize(
    ("files", "chain"),
    [
        ({"types.py": "import torch"}, "trilemma.types -> torch"),
        ({"report/html.py": "def f():\n    from torch import nn"}, "trilemma.report.html -> torch"),
        ({"comparison/a.py": "import torch_fidelity.metrics"}, "trilemma.comparison.a -> torch_fidelity.metrics"),
        (
            {"comparison/a.py": "from ..measure import speed", "measure/speed.py": "import torch"},
            "trilemma.comparison.a -> trilemma.measure.speed -> torch",
        ),
        (
            {"report/a.py": "from ..data.b import c", "data/__init__.py": "import torchvision", "data/b.py": "c = 1"},
            "trilemma.report.a -> trilemma.data -> torchvision",
        ),
    ],
)
def test_a_way_to_torch_is_found(tmp_path: Path, files: dict[str, str], chain: str) -> None:
    (found,) = torch_problems(package(tmp_path, files))
    assert found.startswith(f"{chain}:")


def test_torch_for_the_type_checker_passes(tmp_path: Path) -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor\n"
    assert torch_problems(package(tmp_path, {"types.py": text, "maths/a.py": "import torch"})) == []
