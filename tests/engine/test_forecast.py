"""The forecast: what it says is about what happens, it takes no longer than it should, and it leaves nothing."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tiny import tiny_options, tiny_plan
from trilemma.engine import forecast as module
from trilemma.engine.budget import Budget
from trilemma.engine.forecast import Forecast, forecast
from trilemma.engine.loop import Trainer
from trilemma.engine.train import train


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Forecast, Path]:
    """Of 100 steps of 8 images, and the folder that temporary files went into."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        return forecast(tiny_plan("ddpm", images=800), folder / "run", seconds=2.0, steps=20), folder


def test_the_training_takes_about_as_long(made: tuple[Forecast, Path], tmp_path: Path) -> None:
    found, _ = made
    assert (found.steps, found.images) == (100, 800)
    assert found.pauses > 0 and found.advice == () and found.accumulate == 1
    run = train(tiny_plan("ddpm", images=800, snapshots=0, checkpoint_minutes=60.0), tmp_path / "run")
    taken = run.read_log()[-1]["seconds"]
    assert taken / 4 < found.seconds < 4 * taken
    assert taken / 4 < found.images / found.images_per_second < 4 * taken


def test_slow_steps_are_not_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[float] = []
    step = Trainer._step

    def slow(self: Trainer, fraction: float) -> None:
        made.append(fraction)
        time.sleep(0.5)
        step(self, fraction)

    monkeypatch.setattr(Trainer, "_step", slow)
    found = forecast(tiny_plan("ddpm", images=80), tmp_path / "run", seconds=0.3)
    assert len(made) == 1 and found.largest_batch is None
    assert 5.0 < found.seconds < 20.0  # ten steps
    words = next(line for line in found.lines() if line.startswith("rough: "))
    assert "it is from a single step" in words and "how many images fit is not known" in words


def test_snapshots_are_counted_with_their_scores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "look_seconds", lambda *_: 1000.0)
    monkeypatch.setattr(module, "score_seconds", lambda *_: 2000.0)
    found = forecast(tiny_plan("vae", images=80), tmp_path / "run", seconds=2.0, steps=2)
    assert 3000.0 < found.pauses < 3010.0 and found.left_out == ()


def test_the_memory_is_what_may_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_mib", lambda device: 100.0)
    monkeypatch.setattr(module, "own_mib", lambda device: 50.0)
    assert module._machine_mib(torch.device("cpu")) == 150.0
    monkeypatch.setattr(module, "free_mib", lambda device: None)
    assert module._machine_mib(torch.device("cpu")) != 150.0


def test_nothing_is_left(made: tuple[Forecast, Path]) -> None:
    _, folder = made
    assert list(folder.iterdir()) == []


def test_the_lines_say_time_memory_and_disk(made: tuple[Forecast, Path]) -> None:
    kinds = [line.split(":")[0] for line in made[0].lines()]
    assert kinds[0] == "time" and "disk" in kinds
    assert "100 steps, 800 images" in made[0].lines()[0]


def test_the_disk_holds_the_run(made: tuple[Forecast, Path], tmp_path: Path) -> None:
    """Three checkpoints are kept; while a fourth is written, the oldest is still there."""
    train(tiny_plan("ddpm", images=32), tmp_path / "run")
    taken = sum(os.path.getsize(path) for path in (tmp_path / "run").rglob("*") if path.is_file()) / 2**20
    assert taken < made[0].disk_mib < 1.6 * taken


@pytest.mark.parametrize(
    ("batch", "whole", "half", "machine", "fits"),
    [
        (8, 100.0, 60.0, 1000.0, 88),  # 10 an image, 20 for the rest; 900 may be used
        (8, 100.0, 60.0, 40.0, 1),
        (8, 60.0, 60.0, 1000.0, None),  # too small to be seen
        (8, None, 60.0, 1000.0, None),
        (8, 100.0, 60.0, None, None),
        (1, 100.0, 60.0, 1000.0, None),
    ],
)
def test_what_fits(
    batch: int, whole: float | None, half: float | None, machine: float | None, fits: int | None
) -> None:
    assert module._largest_batch(batch, whole, half, machine) == fits


def test_parts_where_the_batch_does_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_largest_batch", lambda *_: 3)
    found = forecast(tiny_plan("ddpm", images=16), tmp_path / "run", seconds=0.0)
    assert (found.largest_batch, found.accumulate, found.advice) == (3, 3, ())
    assert any(line.endswith("training.accumulate 3") for line in found.lines())
    other = forecast(tiny_plan("ddgan", images=16, data="gaussians"), tmp_path / "run", seconds=0.0)
    assert other.accumulate == 3


@pytest.mark.parametrize(("augment", "advised"), [("none", True), ("ada", False), ("diffaugment", False)])
def test_augmentation_is_advised_for_few_images(augment: str, advised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(tiny_plan("stylegan2"), options=tiny_options("stylegan2", augment=augment))
    assert any("--options.augment ada" in words for words in module._advice(plan)) == advised
    monkeypatch.setattr(module, "SMALL_SET", 100)
    assert module._advice(plan) == ()


def test_a_budget_of_flops_is_spent_by_as_many_steps(tmp_path: Path) -> None:
    """Each step of a DDPM does the same work, so ten times the FLOPs of one are ten steps."""
    plan = tiny_plan("ddpm", images=16)
    once = train(replace(plan, budget=Budget(flops=1.0)), tmp_path / "once").read_log()[-1]
    assert once["step"] == 1
    found = forecast(replace(plan, budget=Budget(flops=10.0 * once["flops"])), tmp_path / "run", seconds=60.0, steps=2)
    assert (found.steps, found.images) == (10, 80)
