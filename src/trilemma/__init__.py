"""Train, sample and fairly compare fast generative image models.

    run = trilemma.train("ddgan", data="digits", minutes=2, out="runs/mine")
    gen = trilemma.load(run)
    images = gen.sample(64, seed=0)        # uint8, N x H x W x C
    trilemma.evaluate(run)
    trilemma.compare([run, other], out="report.html")

Names are loaded when first used, so importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trilemma.api import bench, compare, convert, evaluate, export, forecast, load, race, train, verify_resume

__version__ = "0.1.0"
__all__ = ["bench", "compare", "convert", "evaluate", "export", "forecast", "load", "race", "train", "verify_resume"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("trilemma.api"), name)
    raise AttributeError(f"module 'trilemma' has no attribute {name!r}")
