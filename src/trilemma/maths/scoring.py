"""Proper scoring rules: losses that only the true distribution minimises, estimated from a few samples a case.

The energy score of a forecast P for an outcome x is ES(P, x) = E ||y - x|| - 1/2 E ||y - y'|| with y, y' ~ P
independent; its expectation over x ~ Q is smallest for P = Q alone (Gneiting and Raftery 2007, section 4.3). Squared
error keeps only the first term and so rewards the mean; the second pays for spread. The same of two sets, over all
pairs, is the energy distance but for a term without y (Szekely and Rizzo 2013): smallest for equal distributions.
"""

from __future__ import annotations

from torch import Tensor

from trilemma.errors import ConfigError

_SMOOTH = 1e-4  # inside the root: the distance is differentiable at 0


def distance(a: Tensor, b: Tensor) -> Tensor:
    """||a - b|| / sqrt(d) per sample, (N, ...) -> (N,): 2 for images black and white."""
    difference = (a - b).flatten(1)
    root: Tensor = (difference.square().sum(1) + _SMOOTH).sqrt() / difference.shape[1] ** 0.5
    return root


def energy_score(y: Tensor, y_other: Tensor, x: Tensor) -> Tensor:
    """Mean energy score of two independent samples ``y``, ``y_other`` a case, outcome ``x``; all (N, ...)."""
    return (0.5 * (distance(y, x) + distance(y_other, x)) - 0.5 * distance(y, y_other)).mean()


def energy_distance(y: Tensor, x: Tensor, *, paired: bool = False) -> Tensor:
    """E d(y, x) - 1/2 E d(y, y') over all pairs of samples ``y`` (N, ...), N >= 2, and data ``x`` (M, ...): unbiased.

    ``paired``: sample i and datum i (M = N) were made from the same noise, so that pair is left out.
    Raises ConfigError for a single sample, which has no pair.
    """
    if len(y) < 2:
        raise ConfigError("energy distance needs at least 2 samples in a batch: raise batch_size")
    y, x = y.flatten(1), x.flatten(1)
    to_data = _distances(y, x)
    return (_mean_of_others(to_data) if paired else to_data.mean()) - 0.5 * _mean_of_others(_distances(y, y))


def _mean_of_others(square: Tensor) -> Tensor:
    """The mean of a square matrix's entries off the diagonal."""
    n = len(square)
    return (square.sum() - square.diagonal().sum()) / (n * (n - 1))


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """||a_i - b_j|| / sqrt(d): (N, d), (M, d) -> (N, M)."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2.0 * a @ b.T
    root: Tensor = (squares.clamp_min(0.0) + _SMOOTH).sqrt() / a.shape[1] ** 0.5
    return root
