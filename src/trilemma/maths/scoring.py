"""Proper scoring rules: losses that only the true distribution minimises, estimated from a few samples a case.

The energy score of a forecast P for an outcome x is ES(P, x) = E ||y - x|| - 1/2 E ||y - y'|| with y, y' ~ P
independent; its expectation over x ~ Q is smallest for P = Q alone (Gneiting and Raftery 2007, section 4.3). Squared
error keeps only the first term and so rewards the mean; the second pays for spread.
"""

from __future__ import annotations

from torch import Tensor

_SMOOTH = 1e-4  # inside the root: the distance is differentiable at 0


def distance(a: Tensor, b: Tensor) -> Tensor:
    """||a - b|| / sqrt(d) per sample, (N, ...) -> (N,): 2 for images black and white."""
    difference = (a - b).flatten(1)
    root: Tensor = (difference.square().sum(1) + _SMOOTH).sqrt() / difference.shape[1] ** 0.5
    return root


def energy_score(y: Tensor, y_other: Tensor, x: Tensor) -> Tensor:
    """Mean energy score of two independent samples ``y``, ``y_other`` a case, outcome ``x``; all (N, ...)."""
    return (0.5 * (distance(y, x) + distance(y_other, x)) - 0.5 * distance(y, y_other)).mean()
