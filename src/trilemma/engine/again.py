"""What to type to make a run again: the command with every setting that is not its recipe's."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trilemma.config import build, default_recipe, load_recipe, plain
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
