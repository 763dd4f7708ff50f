"""Trained runs of toy size, made once for all tests of this folder; tests that write into one take a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from same_run import image_plan, quick_plan
from tiny import tiny_plan
from trilemma.engine.train import Plan, train
from trilemma.methods import method_names

PLANS = {
    **{name: (name, "digits") for name in ("ddgan", "ddpm", "spigan", "stylegan2")},
    "points": ("ddgan", "gaussians"),
    "points-spigan": ("spigan", "gaussians"),
}


def enliven(path: Path) -> None:
    """Networks start near zero and three steps do not change that: samples would all look the same."""
    random = torch.Generator().manual_seed(0)
    tensors = load_file(path)
    for key in sorted(tensors):
        tensors[key] += 0.2 * torch.randn(tensors[key].shape, generator=random)
    save_file(tensors, path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``trained("ddgan")``, "ddpm" or "points": a run folder, not to be written to."""
    root = tmp_path_factory.mktemp("trained")

    def get(name: str) -> Path:
        method, data = PLANS[name]
        if not (root / name).exists():
            train(tiny_plan(method, 24, data), root / name)
            enliven(root / name / "model.safetensors")
        return root / name

    return get


@pytest.fixture
def copied(trained: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """The same as a copy of one's own."""
    return lambda name: Path(shutil.copytree(trained(name), tmp_path / f"copy-{name}"))


@pytest.fixture(scope="session", params=method_names())
def unbroken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    plan = image_plan(request.param)
    return plan, train(plan, tmp_path_factory.mktemp("unbroken") / "run").folder


@pytest.fixture(scope="session")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``quick_plan`` trains when nothing comes between."""
    return train(quick_plan(), tmp_path_factory.mktemp("points") / "run").folder
