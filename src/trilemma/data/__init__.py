"""Training and reference data: small known sets, 2-D points, and anybody's folder or zip of images.

Images are uint8 (N, C, H, W) (points: float32 (N, 2, 1, 1)), in memory or, once prepared, on the disk, together with a
digest of their content.
"""

from __future__ import annotations

from trilemma.data.dataset import Dataset, batch_indices, content_digest, to_float, to_uint8
from trilemma.data.load import catalogue, data_place, load_data, usual_size
from trilemma.data.pictures import save_grid, save_points

__all__ = [
    "Dataset",
    "batch_indices",
    "catalogue",
    "content_digest",
    "data_place",
    "load_data",
    "save_grid",
    "save_points",
    "to_float",
    "to_uint8",
    "usual_size",
]
