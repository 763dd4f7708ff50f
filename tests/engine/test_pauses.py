"""What snapshots will take beside their grids."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tiny import tiny_plan
from trilemma.engine.pauses import look_seconds, score_seconds
from trilemma.engine.train import Plan


def asking(data: str = "digits", **changes: int) -> Plan:
    plan = tiny_plan("vae", data=data)
    return replace(plan, training=replace(plan.training, snapshots=2, **changes))


def test_looks_take_their_samples_and_their_searches() -> None:
    samples = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    plan = asking(watch_samples=150)
    found = look_seconds(plan, samples, an_image=0.01, training=10_000.0)
    assert 3.0 < found < 20.0  # two looks, each at 150 samples
    assert look_seconds(plan, samples, an_image=0.01, training=10.0) == 0.0  # too short for a hundred samples
    assert look_seconds(asking(watch_samples=0), samples, an_image=0.01, training=10_000.0) == 0.0
    assert look_seconds(asking("gaussians", watch_samples=150), samples, an_image=0.01, training=10_000.0) == 0.0


def test_quick_scores_take_their_samples_and_their_features() -> None:
    found = score_seconds(asking(probe_samples=100), an_image=0.01)
    assert 2.0 < found < 30.0
    assert score_seconds(asking(probe_samples=0), an_image=0.01) == 0.0
    assert score_seconds(asking("gaussians", probe_samples=100), an_image=0.01) == pytest.approx(2.0)
