"""Intervals of scores in plain numbers: the error behind one, and whether two scores differ by more than chance.

An interval (low, high) here is a 95 % one, symmetric about its score. It speaks of the samples drawn from one trained
model, not of another training of the same recipe, which may well land further away.
"""

from __future__ import annotations

import math

Interval = tuple[float, float]
Z95 = 1.959964  # P(|N(0, 1)| <= Z95) = 0.95


def standard_error(interval: Interval) -> float:
    """Half the width of a 95 % interval over 1.96."""
    low, high = interval
    return (high - low) / (2 * Z95)


def indistinguishable(a: float, interval_a: Interval, b: float, interval_b: Interval) -> bool:
    """Whether a two-sided test at 5 % finds no difference: |a - b| <= 1.96 sqrt(error_a^2 + error_b^2).

    The two are taken as independent. False where a number is missing (NaN): then nothing can be said.
    """
    return abs(a - b) <= Z95 * math.hypot(standard_error(interval_a), standard_error(interval_b))
