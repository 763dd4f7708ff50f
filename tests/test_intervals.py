"""Intervals as plain numbers: the error behind one, and the test of a difference."""

from __future__ import annotations

import math

import pytest

from trilemma.intervals import Interval, indistinguishable, standard_error


def around(score: float, error: float) -> Interval:
    return score - 1.959964 * error, score + 1.959964 * error


def test_the_error_is_read_back_from_the_interval() -> None:
    assert standard_error(around(7.0, 0.25)) == pytest.approx(0.25)


@pytest.mark.parametrize(("difference", "same"), [(9.79, True), (9.81, False), (-9.79, True), (-9.81, False)])
def test_errors_add_in_squares(difference: float, same: bool) -> None:
    """Errors 3 and 4 make 5, and 1.96 x 5 = 9.8; each interval alone would allow less, their overlap more (13.7)."""
    a, b = 20.0, 20.0 + difference
    assert indistinguishable(a, around(a, 3.0), b, around(b, 4.0)) is same


def test_without_error_only_equal_scores_are_the_same() -> None:
    assert indistinguishable(1.0, (1.0, 1.0), 1.0, (1.0, 1.0))
    assert not indistinguishable(1.0, (1.0, 1.0), 1.0 + 1e-9, (1.0, 1.0))


def test_nothing_is_said_of_missing_numbers() -> None:
    assert not indistinguishable(math.nan, (math.nan, math.nan), 1.0, (0.0, 2.0))
    assert not indistinguishable(1.0, (math.nan, math.nan), 1.0, (0.0, 2.0))
