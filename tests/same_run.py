"""Quick trainings, ways to stop them, and whether two runs are one and the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiny import tiny_plan, weights
from trilemma.engine.checkpoint import checkpoints, load_checkpoint
from trilemma.engine.loop import Progress
from trilemma.engine.run import Run
from trilemma.engine.train import Plan

USUAL = {"step", "images", "flops", "losses", "lr"}
"""What every line of a log may have, beside the clock."""


class Killed(Exception):
    """Stands for a process that ends at once."""


def killed_at(step: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise Killed

    return report


def quick_plan(name: str = "ddgan", images: int = 32, **changes: Any) -> Plan:
    """Four steps on points, whose networks are the fastest."""
    return tiny_plan(name, images, "gaussians", **changes)


def image_plan(name: str) -> Plan:
    """Five steps of convolutions with dropout, so that random numbers, layouts and the training mode matter."""
    plan = tiny_plan(name, images=40)
    if not hasattr(plan.options, "unet"):
        return plan
    return replace(plan, options=replace(plan.options, unet=replace(plan.options.unet, dropout=0.2)))


def log(folder: Path) -> list[dict[str, Any]]:
    """The log but for the clock."""
    clock = {"seconds", "watch_seconds"}
    return [{k: v for k, v in record.items() if k not in clock} for record in Run(folder).read_log()]


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """A tree's leaves by path."""
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {name: leaf for key, value in items for name, leaf in flat(value, f"{path}/{key}").items()}
    return {path: tree}


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, averages, moments, random states and log, bit for bit; only the clock may differ, and with it at which
    steps a line without scores was due."""
    a, b = weights(one / "model.safetensors"), weights(other / "model.safetensors")
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    a, b = (flat(load_checkpoint(checkpoints(folder / "checkpoints")[-1])) for folder in (one, other))
    assert a.keys() == b.keys()
    for key in a.keys() - {"/progress/seconds"}:
        assert torch.equal(a[key], b[key]) if isinstance(a[key], Tensor) else a[key] == b[key], key
    a, b = log(one), log(other)
    assert [line for line in a if line.keys() - USUAL] == [line for line in b if line.keys() - USUAL]
    assert a[-1]["step"] == b[-1]["step"]
    plain = [{line["step"]: line for line in lines if not line.keys() - USUAL} for lines in (a, b)]
    assert all(plain[0][step] == plain[1][step] for step in plain[0].keys() & plain[1].keys())
