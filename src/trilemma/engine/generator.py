"""A trained run as something that makes images: ``gen = trilemma.load(run); gen.sample(64, seed=0)``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trilemma.config import require
from trilemma.data import to_uint8
from trilemma.engine.cpu import settle_cpu
from trilemma.engine.pace import Pace
from trilemma.engine.processes import company, join, launched, together
from trilemma.engine.run import Run
from trilemma.errors import ConfigError
from trilemma.methods.base import Method
from trilemma.types import DataSpec, Sampler, SampleResult


def sample_seeds(seed: int, start: int, stop: int) -> list[int]:
    """The seeds of samples ``start`` to ``stop`` of one run's seed: sample i of seed s never changes."""
    return [(seed << 32) + index for index in range(start, stop)]


class Generator:
    """The sampling networks of a run, on one device, with averaged weights."""

    def __init__(self, method: Method, run: Run | None = None) -> None:
        self.method = method.eval()
        self.run = run

    @classmethod
    def load(cls, run: Path | str, device: str | None = None) -> Generator:
        """Read a run folder.

        Raises:
            RunError: not a run, no weights, damaged weights.
        """
        settle_cpu()
        if launched():
            join()  # of several processes each has a GPU of its own from here on
        opened = Run.open(run)
        method = opened.build_method()
        opened.load_weights(method)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(method.to(device=device, memory_format=torch.channels_last), opened)  # type: ignore[call-overload]

    @property
    def spec(self) -> DataSpec:
        """The shape of one sample."""
        return self.method.spec

    @property
    def precision(self) -> str:
        """The floating-point types of the weights that sample."""
        networks = self.method.sampling_networks().values()
        kinds = {p.dtype for network in networks for p in network.parameters()}
        return ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))

    def sample(  # noqa: PLR0913
        self,
        n: int = 64,
        seed: int = 0,
        *,
        steps: int | None = None,
        eta: float | None = None,
        truncation: float | None = None,
        label: int | None = None,
        batch_size: int | None = 100,
    ) -> NDArray[np.generic]:
        """``n`` samples of a seed; the choices a method does not offer are refused. ``batch_size`` as in ``stored``.

        Returns:
            uint8 images (N, H, W, C); float32 (N, 2) for points.
        """
        require(n >= 1, f"n must be at least 1, not {n}")
        require(batch_size is None or batch_size >= 1, f"batch_size must be at least 1, not {batch_size}")
        require(0 <= seed < 2**31, f"seed must be from 0 to 2147483647, not {seed}")
        sampler = Sampler(steps=steps, eta=eta, truncation=truncation, label=label)
        stored = self.stored(sample_seeds(seed, 0, n), sampler, batch_size=batch_size)
        return stored.flatten(1).numpy() if self.spec.kind == "points" else stored.permute(0, 2, 3, 1).numpy()

    def stored(
        self,
        seeds: Sequence[int],
        sampler: Sampler | None = None,
        *,
        batch_size: int | None = 100,
        advance: Callable[[int], object] = lambda done: None,
    ) -> Tensor:
        """Samples as data sets are stored: uint8 (N, C, H, W), or float32 (N, 2, 1, 1) for points, on the CPU.

        ``batch_size`` None: what is fastest here and fits the memory, found on the way. ``advance`` is told the number
        of samples made, batch by batch.
        """

        def make(chunk: Sequence[int]) -> Tensor:
            x = self.method.sample(chunk, sampler).x
            return x.float().cpu() if self.spec.kind == "points" else to_uint8(x).cpu()

        if batch_size is None:
            return Pace(make, self.method.device).run(seeds, advance)
        parts = []
        for chunk in _chunks(seeds, batch_size):
            parts.append(make(chunk))
            advance(len(chunk))
        return torch.cat(parts)

    @company()
    def shared(
        self,
        seeds: Sequence[int],
        sampler: Sampler | None = None,
        *,
        batch_size: int | None = 100,
        advance: Callable[[int], object] = lambda done: None,
    ) -> Tensor:
        """``stored``, by all processes at hand, all of which must call it: they take turns with the batches.

        The batches are those that one process would make, so the samples are the same as well. The main process gets
        them all, the others none (0, C, H, W).

        Raises:
            RunError: another process has ended.
            ConfigError: several processes, and no ``batch_size``.
        """
        if not launched() or join().num_processes == 1:
            return self.stored(seeds, sampler, batch_size=batch_size, advance=advance)
        if batch_size is None:
            raise ConfigError("several processes need to know the size of a batch: give --batch-size a number")
        processes = join()
        count, rank = processes.num_processes, processes.process_index
        chunks = list(_chunks(seeds, batch_size))
        kind = torch.float32 if self.spec.kind == "points" else torch.uint8
        parts = [torch.zeros((0, *self.spec.shape), dtype=kind)]
        for turn in range(0, len(chunks), count):
            sizes = [len(chunk) for chunk in chunks[turn : turn + count]]
            made = torch.zeros((sizes[0], *self.spec.shape), dtype=kind)  # the last batch may be smaller, or not there
            if rank < len(sizes):
                made[: sizes[rank]] = self.stored(chunks[turn + rank], sampler, batch_size=batch_size)
            rows = torch.split(together(made.to(processes.device)).cpu(), sizes[0])
            if processes.is_main_process:
                parts += [batch[:size] for batch, size in zip(rows, sizes, strict=False)]
            advance(sum(sizes))
        return torch.cat(parts)

    def trajectory(self, seeds: Sequence[int], sampler: Sampler | None = None) -> Tensor:
        """States from noise to sample: (K, N, C, H, W) in the range of the data, on the CPU."""
        result: SampleResult = self.method.sample(seeds, sampler, trajectory=True)
        assert result.trajectory is not None
        return result.trajectory.float().cpu()


def _chunks(seeds: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(seeds), size):
        yield seeds[start : start + size]
