"""Alarms while a model trains: coverage falls, samples repeat each other, training images are copied.

Cheap on purpose: neighbours are looked for among thumbnails, images averaged to at most 8 x 8 pixels, so no network
is needed. With S the n samples of a look, X all N training images and X_n a fixed n of them,

    coverage   share of X_n whose ball up to its 5th nearest neighbour in X_n holds a sample     (Naeem et al. 2020)
    repeats    share of S as near to another sample as few of X_n are to another of X_n
    copies     share of S as near to an image of X as few of X_n are to another of X

Few: the nearest 1 % of those that have no duplicate, and all that have one. If they are a share u of X_n, and the same
distance takes in a share s of S, the value is (s - u) / (1 - u), or 0 where that is negative. Samples drawn like the
data would have coverage 1 - 2^-5, and about 0 of the other two, for any data; exact copies have 1, however many
duplicates the data holds among other images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trilemma.measure.neighbours import density_coverage, kth_distances, nearest

SIDE = 8  # pixels of a thumbnail
USUAL = 0.01  # of the images without a duplicate are that near to another
ALARM = 0.1  # of repeats and copies, ten times as many
FALL = 0.6  # of the best coverage so far
LEAST = 0.2  # coverage that has to be reached before it can fall
MENDING = 0.9  # of the share of repeats before: with less, the samples are growing apart
SETTLED = 0.2  # of the budget: before, samples are all alike and mean nothing


def thumbnails(x: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> float32 (N, d) in [0, 255]: block means of at most 8 x 8 pixels."""
    if max(x.shape[2:]) <= SIDE:
        return x.flatten(1).float()
    # 64 MiB of floats at a time at most, whatever the images' size.
    parts = torch.split(x, max(1, 2**24 // x[0].numel()))
    return torch.cat([F.adaptive_avg_pool2d(part.float(), SIDE).flatten(1) for part in parts])


class Watch:
    """Compares samples with the training images ``x``, uint8 (N, C, H, W), N at least 20."""

    def __init__(self, x: Tensor) -> None:
        self._x = thumbnails(x)
        # A fixed order of its own: the training's random state stays as it is.
        self._chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        self._own: dict[int, tuple[Tensor, Tensor]] = {}  # by n: the distances of X_n among themselves, and in X

    def look(self, samples: Tensor) -> dict[str, float]:
        """``coverage``, ``repeats`` and ``copies`` of uint8 samples (n, C, H, W), n from 10 to N."""
        s, n = thumbnails(samples), len(samples)
        real = self._x[self._chosen[:n]]
        if n not in self._own:  # half the work, and the same at every look
            self._own = {n: (kth_distances(real, 1), nearest(real, self._x, own=self._chosen[:n])[0])}
        among_real, to_training = self._own[n]
        return {
            "coverage": density_coverage(s, real)["coverage"],
            "repeats": _beyond(kth_distances(s, 1), among_real),
            "copies": _beyond(nearest(s, self._x)[0], to_training),
        }


def _beyond(found: Tensor, real: Tensor) -> float:
    """(s - u) / (1 - u) of distances of samples and of real images; see above."""
    apart = real[real > 0]
    threshold = torch.quantile(apart, USUAL) if len(apart) else torch.zeros((), dtype=real.dtype)
    near, usual = ((distances <= threshold).double().mean().item() for distances in (found, real))
    return max(0.0, (near - usual) / (1 - usual)) if usual < 1 else 0.0


def alarms(looks: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the last look gives reason to say, in words. Each has ``coverage``, ``repeats``, ``copies``, ``images`` and
    ``fraction``, the share of the budget spent.

    An alarm that the look before gave as well is not repeated.
    """
    now = _raised(looks)
    before = _raised(looks[:-1])
    return [words for kind, words in now.items() if kind not in before]


def _raised(looks: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    if not looks or looks[-1]["fraction"] < SETTLED:
        return {}
    last, found = looks[-1], {}
    best = max(looks, key=lambda look: float(look["coverage"]))
    if best["coverage"] >= LEAST and last["coverage"] < FALL * best["coverage"]:
        found["coverage"] = (
            f"coverage fell to {last['coverage']:.2f} from {best['coverage']:.2f} at {best['images']:,} images: "
            "kinds of images are being left out; an earlier sample grid may show a better model"
        )
    # Young generators make samples that are much alike, less so with every look: no reason for an alarm.
    if last["repeats"] > ALARM and len(looks) > 1 and last["repeats"] > MENDING * looks[-2]["repeats"]:
        found["repeats"] = (
            f"{last['repeats']:.0%} of the samples repeat another one, beyond what the data do: "
            "the generator collapses; try a lower learning rate or a stronger penalty (r1_gamma)"
        )
    if last["copies"] > ALARM:
        found["copies"] = (
            f"{last['copies']:.0%} of the samples are nearly a training image, beyond what the data are: "
            "the set may be too small for this model; stop earlier, use more images or augmentation"
        )
    return found
