"""Samples into files: a grid, a folder of single PNGs, an .npz, a trajectory, columns of more and more steps."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from trilemma.config import require
from trilemma.data import pictures, to_uint8
from trilemma.engine.generator import Generator
from trilemma.errors import ConfigError, RunError
from trilemma.files import write_atomically
from trilemma.measure.speed import measure
from trilemma.types import DataSpec, Sampler
from trilemma.words import significant

TIMED_SECONDS, TIMED_REPEATS = 2.0, 5  # for the time beneath a column


def check_out(out: Path, spec: DataSpec, *, trajectory: bool = False) -> None:
    """Refuse a file that samples cannot go into, before there are any.

    Raises:
        ConfigError: an ending that is no picture, .npz or folder, or one that does not suit.
        RunError: a place that cannot be written to.
    """
    if trajectory and out.suffix != ".png":
        raise ConfigError(f"--out {out}: a trajectory is a picture, give a .png")
    if out.suffix not in (".png", ".npz", ""):
        raise ConfigError(f"--out {out}: give a .png grid, an .npz file or a folder")
    if spec.kind == "points" and not out.suffix:
        raise ConfigError(f"--out {out}: points go into an .npz or a .png, not a folder of images")
    place = next(path for path in (out.parent if out.suffix else out, *out.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise RunError(f"cannot write {out}: {place} is no folder that can be written to: choose another --out")


def save_samples(x: Tensor, spec: DataSpec, out: Path) -> Path:
    """Stored samples (see ``Generator.stored``) as the kind of file that ``out``'s ending names."""
    check_out(out, spec)
    if out.suffix == ".npz":
        points = spec.kind == "points"
        name, array = ("points", x.flatten(1)) if points else ("images", x.permute(0, 2, 3, 1))
        return write_atomically(out, lambda p: _savez(p, name, array.numpy()))
    if out.suffix == ".png":
        pictures.save_grid(x, out, columns=8)
        return out
    for index, image in enumerate(x.permute(0, 2, 3, 1).numpy()):
        picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
        write_atomically(out / f"{index:06d}.png", lambda p, picture=picture: picture.save(p, format="PNG"))  # type: ignore[misc]
    return out


def _savez(path: Path, name: str, array: NDArray[Any]) -> None:
    with path.open("wb") as file:  # given a path, NumPy would add an ending of its own
        np.savez_compressed(file, **{name: array})  # type: ignore[arg-type]


def save_trajectory(generator: Generator, seeds: Sequence[int], sampler: Sampler, out: Path) -> Path:
    """One row a sample: its states from noise to image. Points: one scatter plot a state, side by side."""
    check_out(out, generator.spec, trajectory=True)
    return _save_states(generator.trajectory(seeds, sampler), generator.spec, out)


def save_path(generator: Generator, seeds: Sequence[int], us: Sequence[float], out: Path) -> Path:
    """One row a sample: its states at the points ``us`` of the path from noise (0) to sample (1).

    Raises:
        ConfigError: a method without such a path, or points outside [0, 1].
    """
    check_out(out, generator.spec, trajectory=True)
    return _save_states(generator.method.path(seeds, us).float().cpu(), generator.spec, out)


def save_walk(generator: Generator, first: int, last: int, out: Path, *, steps: int) -> Path:
    """One row: from the sample of one seed to that of another through the latent space.

    Raises:
        ConfigError: a method without a latent space, or fewer than 2 steps.
    """
    check_out(out, generator.spec, trajectory=True)
    require(steps >= 2, f"a walk takes at least 2 images, not {steps}: raise --n")
    states = generator.method.walk(first, last, steps).float().cpu()
    return _save_states(states[:, None], generator.spec, out)


def save_steps(
    generator: Generator,
    seeds: Sequence[int],
    samplers: Sequence[Sampler],
    out: Path,
    *,
    batch_size: int = 100,
    advance: Callable[[float], object] = lambda share: None,
) -> Path:
    """One row a sample, one column a number of steps, from the same seeds; beneath each column the median time an image
    took, in batches of ``batch_size`` or of all. Points: one scatter plot a number of steps.

    ``advance`` is told the share of the columns that are done.
    """
    check_out(out, generator.spec, trajectory=True)
    fastest = min(samplers, key=lambda sampler: sampler.steps or 0)
    generator.stored(seeds[:batch_size], fastest)  # the first run of a network takes longer than the others
    columns: list[Tensor] = []
    captions = []
    for sampler in samplers:
        x, seconds = _timed(generator, seeds, sampler, batch_size)
        columns.append(x)
        each = significant(1000 * seconds / len(seeds))
        captions.append(f"{sampler.steps} step{'' if sampler.steps == 1 else 's'}\n{each} ms/image")
        advance(len(columns) / len(samplers))
    if generator.spec.kind == "points":
        _save_panels(torch.stack(columns).flatten(2), out, captions)
    else:
        pictures.save_grid(torch.stack(columns, 1).flatten(0, 1), out, columns=len(columns), captions=captions)
    return out


def _timed(generator: Generator, seeds: Sequence[int], sampler: Sampler, batch_size: int) -> tuple[Tensor, float]:
    """Stored samples, and the median of the seconds that making all of them took."""
    made: list[Tensor] = []
    timing = measure(
        lambda: made.append(generator.stored(seeds, sampler, batch_size=batch_size)),
        device=generator.method.device,
        limit_seconds=TIMED_SECONDS,
        max_repeats=TIMED_REPEATS,
    )
    return made[-1], timing.quantile(0.5)


def _save_states(states: Tensor, spec: DataSpec, out: Path) -> Path:
    """States (K, N, C, H, W): a row of images each of the N, or for points a scatter plot each of the K."""
    if spec.kind == "points":
        _save_panels(states.flatten(2), out)
    else:
        pictures.save_grid(to_uint8(states.transpose(0, 1).flatten(0, 1)), out, columns=len(states))
    return out


def _save_panels(states: Tensor, out: Path, captions: Sequence[str] = ()) -> None:
    """Scatter plots (K, N, 2) from left to right, a thin line between them, captions beneath if there are any."""
    with tempfile.TemporaryDirectory() as folder:
        panels = []
        for index, points in enumerate(states):
            path = Path(folder) / f"{index}.png"
            pictures.save_points(points, path)
            with Image.open(path) as panel:
                panels.append(np.pad(np.asarray(panel), ((0, 0), (0, 2), (0, 0)), constant_values=200))
    picture = Image.fromarray(pictures.with_captions(np.concatenate(panels, axis=1)[:, :-2], captions))
    write_atomically(out, lambda p: picture.save(p, format="PNG"))
