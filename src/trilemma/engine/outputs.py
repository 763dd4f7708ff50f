"""Samples into files: a grid, a folder of single PNGs, an .npz, a trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from trilemma.data import pictures, to_uint8
from trilemma.engine.generator import Generator
from trilemma.errors import ConfigError
from trilemma.files import write_atomically
from trilemma.types import DataSpec, Sampler


def save_samples(x: Tensor, spec: DataSpec, out: Path) -> Path:
    """Stored samples (see ``Generator.stored``) as the kind of file that ``out``'s ending names."""
    if out.suffix == ".npz":
        arrays = {"points": x.flatten(1).numpy()} if spec.kind == "points" else {"images": x.permute(0, 2, 3, 1).numpy()}
        return write_atomically(out, lambda p: _savez(p, arrays))
    if out.suffix == ".png":
        pictures.save_grid(x, out, columns=8)
        return out
    if out.suffix:
        raise ConfigError(f"--out {out}: give a .png grid, an .npz file or a folder")
    if spec.kind == "points":
        raise ConfigError(f"--out {out}: points go into an .npz or a .png, not a folder of images")
    for index, image in enumerate(x.permute(0, 2, 3, 1).numpy()):
        picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        write_atomically(out / f"{index:06d}.png", lambda p, picture=picture: picture.save(p, format="PNG"))  # type: ignore[misc]
    return out


def _savez(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def save_trajectory(generator: Generator, seeds: Sequence[int], sampler: Sampler, out: Path) -> Path:
    """One row a sample: its states from noise to image. Points: one scatter plot a state, side by side."""
    states = generator.trajectory(seeds, sampler)
    if out.suffix != ".png":
        raise ConfigError(f"--out {out}: a trajectory is a picture, give a .png")
    if generator.spec.kind == "points":
        pictures.save_point_panels(states.flatten(2), out)
    else:
        pictures.save_grid(to_uint8(states.transpose(0, 1).flatten(0, 1)), out, columns=len(states))
    return out

