"""``trilemma list``: methods, recipes and data sets, told without importing torch.

Methods and data sets belong to packages that need it, so their lines are read from the files' text.
"""

from __future__ import annotations

import ast
from pathlib import Path

from trilemma.config import load_recipe, recipe_names
from trilemma.methods import method_summaries


def listing() -> dict[str, dict[str, str]]:
    """Methods, recipes and data sets, each with one line."""
    return {
        "methods": method_summaries(),
        "recipes": {name: load_recipe(name).about for name in recipe_names()},
        "data": _catalogue(),
    }


def _catalogue() -> dict[str, str]:
    """``trilemma.data.catalogue()``: the literal that data/load.py calls ``_CATALOGUE``."""
    source = Path(__file__).parent / "data" / "load.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_CATALOGUE":
            found: dict[str, str] = ast.literal_eval(node.value)
            return found
    raise AssertionError(f"{source} has no _CATALOGUE")
