"""What to type to make a run or its scores again: the command with every setting that is not the usual one."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilemma.config import build, default_recipe, load_recipe, plain
from trilemma.engine.judge import REFERENCE_SAMPLES
from trilemma.methods import method_class

if TYPE_CHECKING:
    from trilemma.engine.train import Plan

BUDGETS = ("minutes", "images", "flops")


def training_command(plan: Plan) -> str:
    """``trilemma train ...`` for this plan. Data that was given as an object is named as it names itself."""
    recipe, spec = load_recipe(plan.recipe), plan.data.spec
    parts = ["trilemma", "train", plan.method, "--data", plan.path or plan.data.name]
    if plan.recipe != default_recipe(plan.method, plan.data.name, spec.kind):
        parts += ["--recipe", plan.recipe]
    # Rectangles come as they were prepared: one number would cut them square.
    if plan.path is not None and spec.height == spec.width != recipe.data.size:
        parts += ["--size", str(spec.height)]
    for name in BUDGETS:
        value = getattr(plan.budget, name)
        parts += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)] if value is not None else []
    parts += ["--seed", str(plan.seed)] if plan.seed else []
    usual = build(method_class(plan.method).Options, recipe.options, plan.recipe)
    parts += _changed("options", plain(usual), plain(plan.options))
    budget = dict.fromkeys(BUDGETS)
    parts += _changed("training", plain(recipe.training) | budget, plain(plan.training) | budget)
    return shlex.join(parts)


def evaluation_command(place: Path, flags: Mapping[str, Any]) -> str:
    """``trilemma evaluate PLACE ...`` with those of the ``flags`` that are not None, named as in Python."""
    parts = ["trilemma", "evaluate", str(place)]
    for name, value in flags.items():
        parts += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
    return shlex.join(parts)


def reference_flag(count: int | None) -> str | None:
    """What ``--reference-samples`` says; None for the usual number."""
    return "all" if count is None else str(count) if count != REFERENCE_SAMPLES else None


def _changed(path: str, usual: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """The flags that lead from one set of settings to another."""
    for key, value in now.items():
        name = f"{path}.{key.replace('_', '-')}"
        if isinstance(value, Mapping):
            yield from _changed(name, usual[key], value)
        elif value != usual[key]:
            if isinstance(value, bool):
                yield f"--{name}" if value else f"--{path}.no-{key.replace('_', '-')}"
            else:
                yield f"--{name}"
                yield from (str(item) for item in (value if isinstance(value, list | tuple) else [value]))
