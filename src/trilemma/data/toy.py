"""Points whose distribution is known: 25 Gaussians of deviation 0.05 on the grid {-4, -2, 0, 2, 4}^2.

The 2D-grid of Srivastava et al. 2017 (VEEGAN) and Lin et al. 2018 (PacGAN), on which a lost mode is seen at a glance.
Unlike images, points keep their own units: neighbours lie 2 apart and 40 deviations, so each point belongs to one
mode beyond doubt, and a diffusion's last large step, whose noise is about 1 in these units, can tell most modes
apart.
"""

from __future__ import annotations

import numpy as np
import torch

from trilemma.data.dataset import Dataset, make_dataset
from trilemma.errors import DataError

GRID = (-4.0, -2.0, 0.0, 2.0, 4.0)
SIGMA = 0.05
# Split: (seed, number of points).
_SPLITS = {"train": (0, 100_000), "test": (1, 10_000)}


def load_gaussians(split: str) -> Dataset:
    """The 25 Gaussians: 100,000 training or 10,000 test points, the same on every call; no labels, ``modes`` (25, 2).

    Raises:
        DataError: a split other than train and test.
    """
    if split not in _SPLITS:
        raise DataError(f"gaussians has no split {split!r}; choose train or test")
    seed, count = _SPLITS[split]
    modes = np.array([(a, b) for a in GRID for b in GRID])
    # RandomState: a frozen stream, so the digest survives new versions of NumPy and torch.
    random = np.random.RandomState(seed)
    points = modes[random.randint(len(modes), size=count)] + SIGMA * random.standard_normal((count, 2))
    return make_dataset(
        "gaussians",
        torch.from_numpy(points.astype(np.float32)).reshape(count, 2, 1, 1),
        split=split,
        source=f"25 Gaussians on a 5 x 5 grid, sigma {SIGMA}, drawn with seed {seed}",
        modes=torch.from_numpy(modes.astype(np.float32)),
        sigma=SIGMA,
    )
