"""The command a run remembers: typed again, it asks for the same training."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tiny import tiny_data
from trilemma.cli import _parse_train
from trilemma.config import Training, build, load_recipe
from trilemma.engine.again import training_command
from trilemma.engine.train import make_plan, train
from trilemma.methods import method_class


def typed(command: str) -> Any:
    program, verb, *arguments = shlex.split(command)
    assert (program, verb) == ("trilemma", "train")
    return _parse_train(arguments)


@pytest.mark.parametrize(
    ("method", "changes", "training"),
    [
        ("ddgan", {}, {}),
        ("ddgan", {"num_timesteps": 2, "adam_betas": [0.0, 0.99]}, {"batch_size": 32, "ema_share": 0.25}),
        ("spigan", {"path": "generated", "jump": False, "sde": 0.5, "mapping": {"hidden": 24}}, {}),
        ("stylegan2", {"augment": "diffaugment", "policy": ["color", "cutout"], "conditional": True}, {"snapshots": 0}),
        ("vae", {"beta": 2.0, "autoencoder": {"channel_mult": [1, 1, 2]}}, {"precision": "bf16"}),
    ],
)
def test_typed_again_it_asks_for_the_same(method: str, changes: dict[str, Any], training: dict[str, Any]) -> None:
    recipe = load_recipe(f"{method}-digits")
    merged = {
        **recipe.options,
        **{k: {**recipe.options.get(k, {}), **v} if isinstance(v, dict) else v for k, v in changes.items()},
    }
    options = build(method_class(method).Options, merged, "test")
    settings = replace(recipe.training, **training)
    plan = make_plan(method, tiny_data(), minutes=2.5, seed=7, options=options, training=settings)
    again = typed(training_command(plan))
    assert (again.method, again.data, again.minutes, again.images, again.seed) == (method, "digits", 2.5, None, 7)
    assert (again.options, again.training) == (options, settings)


def test_only_what_is_not_usual_is_told() -> None:
    plan = make_plan("ddgan", tiny_data(), images=640)
    assert training_command(plan) == "trilemma train ddgan --data digits --images 640"


def test_a_folder_is_named_with_its_size(tmp_path: Path) -> None:
    data = replace(tiny_data(), name="my photos")
    plan = make_plan("ddpm", data, images=64, path=str(tmp_path / "my photos"))
    again = typed(training_command(plan))
    assert again.data == str(tmp_path / "my photos") and (again.size, again.recipe) == (8, None)


def test_a_run_remembers_its_command(tmp_path: Path) -> None:
    plan = make_plan("ddpm", tiny_data("gaussians"), images=16, training=Training(batch_size=8, snapshots=0))
    folder = train(plan, tmp_path / "run").folder
    assert json.loads((folder / "config.json").read_text())["command"] == training_command(plan)
