"""Pictures of what lies behind the scores: samples beside their nearest real images, and the samples that fail."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from trilemma.data.pictures import save_grid
from trilemma.engine.judge import Evidence

COLUMNS = 8


def save_evidence(generated: Tensor, evidence: Evidence, folder: Path) -> None:
    """neighbours.png and worst.png from uint8 samples (N, C, H, W) and what was found of them.

    neighbours.png, four rows: the samples that are nearest to the training images in pixels, and beneath each its
    nearest image; the same in features. worst.png, two rows: the samples that are farthest from them in features, and
    beneath each its nearest image.
    """
    pixels, seen = evidence.pixels, evidence.seen
    by_pixels, by_features = pixels.closest(COLUMNS), seen.closest(COLUMNS)
    rows = [
        generated[by_pixels],
        evidence.audited[pixels.indices[by_pixels]],
        generated[by_features],
        evidence.shown[seen.indices[by_features]],
    ]
    save_grid(torch.cat(rows), folder / "neighbours.png", columns=len(by_pixels))
    worst = seen.distances.argsort(descending=True, stable=True)[:COLUMNS]
    rows = [generated[worst], evidence.shown[seen.indices[worst]]]
    save_grid(torch.cat(rows), folder / "worst.png", columns=len(worst))
