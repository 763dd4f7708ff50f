"""One file a system. The file's name is the method's name; there is no list to edit."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from trilemma.errors import nearest

if TYPE_CHECKING:
    from trilemma.methods.base import Method


def method_names() -> list[str]:
    """The names of all methods: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        ConfigError: no method of that name (the message has the nearest).
    """
    if name not in method_names():
        raise nearest("method", name, method_names())
    module = importlib.import_module(f"{__name__}.{name}")
    found: type[Method] = module.METHOD
    return found


def method_summaries() -> dict[str, str]:
    """Name to one line, read from the files' docstrings without importing them."""
    folder = Path(__file__).parent
    return {
        name: (ast.get_docstring(ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))) or "").split("\n")[0]
        for name in method_names()
    }
