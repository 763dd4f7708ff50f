"""Scores of point sets whose true distribution is a mixture of K equal Gaussians: coverage and precision, exactly.

A mode counts as covered when at least max(1, N / (20 K)) of the N points lie within 4 sigma of it: a twentieth of
its fair share N / K. One stray point among thousands is thus no coverage, while N < 20 K points need only one each.
A sample of the true mixture lies within 4 sigma of its centre with probability 1 - exp(-8) = 0.99966 in the plane.
How evenly the modes are hit is told by kl = KL(p || uniform) = sum_k p_k log(K p_k), in nats, with p_k mode k's
share of the points that are near some mode, each counted for its nearest: 0 to log K.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma.errors import ConfigError

RADIUS = 4.0  # in units of sigma


def mode_scores(points: Tensor, modes: Tensor, sigma: float) -> dict[str, float]:
    """``modes``: how many of ``modes`` (K, 2) the ``points`` (N, 2) cover; ``share_within_4_sigma``; ``kl``.

    The share, in [0, 1], is of points within 4 sigma (distance <= 4 sigma) of any mode. Where there are none, kl is
    log K, as if all were at one mode. Points that are not finite are near none.
    Raises ConfigError when a set is empty, the shapes do not fit or sigma is not positive.
    """
    if points.dim() != 2 or modes.dim() != 2 or points.shape[1] != modes.shape[1] or not len(points) or not len(modes):
        shapes = f"{tuple(points.shape)} and {tuple(modes.shape)}"
        raise ConfigError(f"mode scores need points (N, 2) and modes (K, 2), got {shapes}")
    if not sigma > 0:
        raise ConfigError(f"mode scores need sigma > 0, got {sigma}")
    # float64 and plain differences: the matrix-product shortcut of cdist would blur distances near the border.
    centres = modes.to(points.device).double()
    distance = torch.cdist(points.double(), centres, compute_mode="donot_use_mm_for_euclid_dist")
    near = distance <= RADIUS * sigma  # (N, K); comparisons with NaN are False
    needed = max(1.0, len(points) / (20 * len(modes)))
    placed = near.any(1)
    counts = distance[placed].argmin(1).bincount(minlength=len(modes)).double()
    p = counts / counts.sum() if placed.any() else torch.eye(len(modes), dtype=torch.float64)[0]
    return {
        "modes": int((near.sum(0) >= needed).sum()),
        "share_within_4_sigma": placed.double().mean().item(),
        "kl": torch.xlogy(p, len(modes) * p).sum().item(),
    }
