"""Budgets and the clock that counts training time alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilemma.engine import budget
from trilemma.engine.budget import Budget, Clock
from trilemma.errors import ConfigError

# conftest.py flushes denormal numbers, so they are no examples either.
SECONDS = st.floats(0, 1e9, allow_subnormal=False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"minutes": 1.0, "images": 5}, "give either --minutes or --images, not both"),
        ({"images": 5, "flops": 1.0}, "give one of --minutes, --images and --flops, not two"),
        ({}, "give --minutes or --images, or --flops"),
        ({"minutes": 0.0}, "--minutes must be positive"),
        ({"minutes": float("nan")}, "--minutes must be positive"),
        ({"images": -3}, "--images must be positive, not -3"),
        ({"flops": 0.0}, "--flops must be positive"),
    ],
)
def test_what_is_no_budget_is_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Budget(**settings)  # type: ignore[arg-type]


def test_all_that_is_wrong_with_a_budget_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match="not both; --minutes must be positive.*; --images must be .*; --flops must"):
        Budget(minutes=-1.0, images=0, flops=-2.0)


@given(st.integers(1, 10**9), st.integers(0, 10**10), SECONDS)
def test_a_budget_of_images_ignores_the_clock(images: int, shown: int, seconds: float) -> None:
    assert Budget(images=images).fraction(shown, seconds) == shown / images


@given(st.floats(1e-3, 1e6, allow_subnormal=False), st.integers(0, 10**10), SECONDS)
def test_a_budget_of_minutes_ignores_the_images(minutes: float, shown: int, seconds: float) -> None:
    assert Budget(minutes=minutes).fraction(shown, seconds) == pytest.approx(seconds / 60 / minutes)


@given(st.floats(1, 1e30), st.integers(0, 10**10), SECONDS, st.integers(0, 10**20))
def test_a_budget_of_flops_ignores_images_and_clock(flops: float, shown: int, seconds: float, spent: int) -> None:
    assert Budget(flops=flops).fraction(shown, seconds, spent) == spent / flops


def test_a_budget_in_words() -> None:
    assert str(Budget(flops=2.5e15)) == "2.5e+15 FLOPs"
    assert str(Budget(images=1_234_567)) == "1,234,567 images"
    assert str(Budget(minutes=1.5)) == "1.5 minutes"


def test_the_clock_stands_still_in_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(budget.time, "perf_counter", lambda: now)
    clock = Clock(seconds=7.0)  # a resumed run
    now += 50
    assert clock.seconds == 7.0  # not started yet
    clock.start()
    now += 2
    assert clock.seconds == 9.0
    clock.start()  # a second start changes nothing
    now += 1
    clock.pause()
    now += 1000
    assert clock.seconds == 10.0
    clock.pause()
    clock.start()
    now += 0.5
    assert clock.seconds == 10.5
