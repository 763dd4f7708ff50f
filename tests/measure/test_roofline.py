"""What a machine can do at best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trilemma.measure import roofline
from trilemma.measure.roofline import Roofline, measure_roofline
from trilemma.measure.speed import Timing


def test_rates_are_the_flops_over_the_best_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def fixed(run: Callable[[], Any], **_: Any) -> Timing:
        run()
        return Timing((4.0, 2.0, 3.0))

    monkeypatch.setattr(roofline, "measure", fixed)
    found = measure_roofline()
    assert found.matmul == 2 * 2048**3 / 2.0
    assert found.convolution == 2 * 16 * (32 * 32) * 128 * 128 * 9 / 2.0


def test_the_roof_is_the_higher_rate() -> None:
    assert Roofline(1.0, 3.0).best == Roofline(3.0, 1.0).best == 3.0


def test_a_machine_reaches_something() -> None:
    found = measure_roofline(limit_seconds=0)
    assert min(found.matmul, found.convolution) > 1e8
