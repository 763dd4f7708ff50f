"""Networks from settings that came with a file: no more memory than its weights account for, one line for the rest.

A few bytes of config.json can ask for a network of any size. Nothing says beforehand how large a network will be, so
the numbers are counted as its tensors are made, and the first that goes too far is refused before it is there.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from trilemma.config import shown
from trilemma.errors import ConfigError, TrilemmaError

LARGEST_SETTING = 10_000_000  # of the whole numbers in a method's options
LEAST_NUMBERS = 2**25  # a network may always have so many
TIMES_THE_WEIGHTS = 64  # or so many times as many as the file of weights has: with D and all that only trains
_LEAST_COUNTED = 2**14  # a tensor counts as at least so many: making it takes time, however small it is
_SIZED = {torch.empty, torch.full, torch.ones, torch.rand, torch.randn, torch.zeros}  # their size comes first


def check_settings(options: Any, where: str) -> None:
    """Refuse whole numbers that no network has a use for, wherever they are in nested dicts and lists."""
    level = [options]
    while level:
        for value in level:
            if isinstance(value, int) and abs(value) > LARGEST_SETTING:
                raise ConfigError(f"{where}: {shown(value)} is too large for a setting of a method")
        inside = [value.values() if isinstance(value, dict) else value for value in level if _holds(value)]
        level = [inner for values in inside for inner in values]


@contextlib.contextmanager
def bounded(where: str, weights: Path | None = None) -> Iterator[None]:
    """Build networks inside: at most as many numbers as fit the file of their ``weights``.

    Raises:
        ConfigError: more than that, or settings that torch answers with an error of its own.
    """
    stored = weights.stat().st_size // 4 if weights is not None and weights.is_file() else 0
    try:
        with _Ceiling(max(LEAST_NUMBERS, TIMES_THE_WEIGHTS * stored)):
            yield
    except TrilemmaError:
        raise
    except (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{where}: no network can be made with these settings ({reason})") from error


class _Ceiling(TorchFunctionMode):
    """Counts the numbers of all tensors that are made and refuses the one that goes beyond ``numbers``."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers, self.left = numbers, numbers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _SIZED or func is torch.linspace or func is torch.arange:
            self.left -= max(_LEAST_COUNTED, _count(func, args, kwargs))
            if self.left < 0:
                raise ValueError(f"more than {self.numbers:,} numbers, far more than its weights are")
        return func(*args, **kwargs)


def _count(func: Any, args: Any, kwargs: Any) -> int:
    """How many numbers a call that makes a tensor makes."""
    if func is torch.linspace:
        return int(kwargs.get("steps", args[2] if len(args) > 2 else 0))
    if func is torch.arange:
        bounds = [int(value) for value in args[:2]]
        return bounds[-1] - (bounds[0] if len(bounds) > 1 else 0) if bounds else 0
    size = kwargs.get("size", args[0] if args and isinstance(args[0], list | tuple) else args)
    return math.prod(side for side in size if isinstance(side, int))


def _holds(value: Any) -> bool:
    return isinstance(value, dict | list | tuple)
