"""Does a model copy its training data? Distances to the nearest training sample, against those of unseen real samples.

An unseen real sample also has a nearest training sample, at some distance. Let c be the q-quantile of those distances
(q = 1 %): by construction a share q of unseen real samples lies within c of the training set. A generator that learned
the distribution does about the same; one that copies puts far more of its samples there. Distances are Euclidean, in
pixels or in features, and each says something else: pixels find copies, features also copies that were shifted or
recoloured. (Meehan et al. 2020 compare the same two sets of distances by a rank test.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trilemma.errors import ConfigError
from trilemma.measure.neighbours import MEMORY, nearest

UNSEEN = 10_000  # training samples that stand in for unseen ones where there are none


@dataclass(frozen=True, eq=False)
class Audit:
    """What `audit` found. ``scores`` are plain numbers; the tensors are for pictures of pairs.

    near_copies      share of generated samples within c of the training set
    baseline         share of unseen real samples within c: q, but for ties
    distance_ratio   median distance of the generated over that of the unseen: 1 is ideal, 0 copies; NaN if both are 0
    threshold        c
    """

    scores: dict[str, float]
    distances: Tensor  # (N,) from each generated sample to the training set
    indices: Tensor  # (N,) the nearest training sample

    def closest(self, count: int) -> Tensor:
        """The ``count`` generated samples that are nearest to the training set, nearest first."""
        return self.distances.argsort(stable=True)[:count]


def audit(  # noqa: PLR0913
    generated: Tensor,
    train: Tensor,
    unseen: Tensor | None = None,
    *,
    quantile: float = 0.01,
    seed: int = 0,
    memory: int = MEMORY,
) -> Audit:
    """Compare ``generated`` (N, ...) with ``train`` (M, ...): uint8 images, or features of both from one extractor.

    ``unseen`` (H, ...) are real samples that were not trained on. Where there are none, up to 10,000 training samples,
    drawn by ``seed``, each stand against all the others: as good a stand-in, since one sample more or less in the
    training set changes nothing, and no part of it is lost to the search for copies.

    Raises ConfigError for shapes that do not fit or a quantile outside (0, 1).
    """
    if not 0 < quantile < 1:
        raise ConfigError(f"the quantile must lie between 0 and 1, not {quantile}")
    rows = train.flatten(1)
    distances, indices = nearest(generated.flatten(1), rows, memory=memory)
    if unseen is None:
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:UNSEEN]
        usual = nearest(rows[chosen], rows, own=chosen, memory=memory)[0]
    else:
        usual = nearest(unseen.flatten(1), rows, memory=memory)[0]
    # The threshold is one of the distances, so that ties and duplicates in the data count alike on both sides.
    threshold = usual.sort().values[max(0, round(quantile * len(usual)) - 1)]
    scores = {
        "near_copies": _share(distances <= threshold),
        "baseline": _share(usual <= threshold),
        "distance_ratio": (distances.median() / usual.median()).item(),
        "threshold": threshold.item(),
    }
    return Audit(scores, distances, indices)


def _share(chosen: Tensor) -> float:
    return chosen.double().mean().item()
