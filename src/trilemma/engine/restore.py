"""What a training takes from a checkpoint, looked at before it is taken.

A checksum tells that a file is as it was written, not that a training wrote it. Parts that any training's checkpoint
has are checked here as soon as it is read, so that one with others is passed over as a damaged one is. Whether weights
and moments are of this run's networks shows when they are loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trilemma.engine.checkpoint import check_random_state

_LARGEST = 2**40  # of steps, images and seconds
_LONGEST = 200  # characters of what names a machine
_SEEN = {"coverage", "repeats", "copies", "images", "fraction"}  # by the watch, at each look
_ADAM = {"step", "exp_avg", "exp_avg_sq"}  # what Adam keeps of a weight


def check_state(state: dict[str, Any]) -> None:
    """Refuse a checkpoint's content that no training can have written.

    Raises:
        one of MISFITS: a part is missing, or of another type or size.
    """
    shown, position, machine = state.get("shown", {}), state["progress"], state.get("machine", {})
    looks, processes = shown.get("looks", []), [state, *state.get("others", [])]
    tables = [state["networks"], state["average"], state["optimizers"], position, machine, *looks]
    tables += [each[part] for each in processes for part in ("random", "extra")]
    numbered = [shown.get("losses", {}), shown.get("scores", {}), state.get("scaler", {}), *looks]
    numbers = [number for table in numbered for number in table.values()]
    step, images, seconds = position["step"], position["images"], position["seconds"]
    for holds, what in (
        (all(isinstance(table, dict) for table in tables), "a part is no table"),
        (all(isinstance(number, int | float) for number in numbers), "a loss or score is no number"),
        (all(look.keys() >= _SEEN for look in looks), "a look lacks what the watch sees"),
        (all(type(count) is int and 0 <= count < _LARGEST for count in (step, images)), "its position is no count"),
        (isinstance(seconds, int | float) and 0 <= seconds < _LARGEST, "its seconds are no time"),
        (all(map(_is_name, machine.values())), "its machine has no name"),
    ):
        if not holds:
            raise ValueError(what)
    for each in processes:
        check_random_state(each["random"])


def _is_name(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and value.isprintable() and len(value) <= _LONGEST)


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Take an optimiser's moments and learning rates, which a training changes, from its saved state.

    All other settings are those that it was made with, from the run's config.json.

    Raises:
        one of MISFITS: it is not the state of such an optimiser. torch itself takes moments of any shape, and fails at
            the next step.
    """
    groups = [
        {**own, "lr": float(saved["lr"])}
        for own, saved in zip(optimizer.state_dict()["param_groups"], state["param_groups"], strict=True)
    ]
    weights = dict(enumerate(weight for group in optimizer.param_groups for weight in group["params"]))
    for index, kept in state["state"].items():
        weight = weights[index]
        if "betas" in groups[0] and not kept.keys() >= _ADAM:
            raise ValueError("an optimiser lacks moments")
        for name, value in kept.items():
            wanted = () if name == "step" else weight.shape
            if not isinstance(value, Tensor) or value.shape != wanted or value.is_complex():
                raise ValueError(f"an optimiser's {name} is not of its weight's shape")
            if name == "step" and not (value.dtype == torch.float32 and value >= 0):
                raise ValueError("an optimiser's step is no count")
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
