"""How a long sampling job is cut: how many images at a time, and on a CPU whether its threads share each batch or take
one each.

The job's own first batches are the measurement, so nothing is made twice. Two batches of a size are made, of which the
second is timed, for the first prepares the network for its shape; then two of twice the size, as long as that makes
images faster and the next is expected to fit the memory. At last, where there are several threads, each takes a batch
for itself: small networks spend much of their time between the operations that threads share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from trilemma.measure.memory import PeakMemory, free_mib

FIRST, LARGEST = 8, 512
GAIN = 1.03  # images a second must rise by this much, or the smaller size is kept
MEMORY_SHARE = 0.5  # of what is free at the start

Make = Callable[[Sequence[int]], Tensor]


class Pace:
    """One job: ``make`` makes an image for each seed it is given, on ``device``. ``batch_size`` and ``lanes`` (batches
    side by side) are what it settled on."""

    def __init__(self, make: Make, device: torch.device, *, memory_mib: float | None = None) -> None:
        """``memory_mib``: the most that batches may take (default: half of what is free)."""
        free = free_mib(device)
        self._make, self._device = make, device
        self._memory = memory_mib if memory_mib is not None or free is None else MEMORY_SHARE * free
        self._mib_an_image = 0.0
        self.batch_size, self.lanes = FIRST, 1

    def run(self, seeds: Sequence[int], advance: Callable[[int], object]) -> Tensor:
        """All images in order; ``advance`` is told how many were made, batch by batch."""
        self._left, self._advance, self._parts = list(seeds), advance, list[Tensor]()
        rate, threads = self._choose_size(), torch.get_num_threads()
        alone = self._device.type != "cpu" or threads == 1 or not self._fits(threads * self.batch_size)
        if not alone and len(self._left) >= 3 * threads * self.batch_size:
            self._run_side_by_side(threads, rate)
        while self._left:
            self._batches(1, self._whole)
        return torch.cat(self._parts)

    def _choose_size(self) -> float:
        """Images a second at the size that it leaves."""
        best, size = 0.0, FIRST
        while len(self._left) >= 2 * size:
            before, self.batch_size = self.batch_size, size
            with PeakMemory(self._device) as peak:
                self._batches(1, self._whole)
            if peak.mib is not None and peak.before_mib is not None:
                self._mib_an_image = max(0.0, peak.mib - peak.before_mib) / size
            rate = self._batches(1, self._whole)
            if rate < GAIN * best:
                self.batch_size = before
                break
            best = rate
            size *= 2
            if size > LARGEST or not self._fits(size):
                break
        return best

    def _run_side_by_side(self, threads: int, rate: float) -> None:
        """Each thread a batch of its own, to the end of the job if that beats ``rate``."""
        with ThreadPoolExecutor(threads, initializer=_one_thread) as pool:

            def together(parts: Sequence[Sequence[int]]) -> list[Tensor]:
                return list(pool.map(self._make, parts))

            self._batches(threads, together)
            if self._batches(threads, together) > GAIN * rate:
                self.lanes = threads
                while self._left:
                    self._batches(threads, together)
        torch.set_num_threads(threads)  # for whatever the threads of the pool have told all libraries

    def _fits(self, images: int) -> bool:
        return self._memory is None or images * self._mib_an_image <= self._memory

    def _whole(self, parts: Sequence[Sequence[int]]) -> list[Tensor]:
        return [self._make(part) for part in parts]

    def _batches(self, count: int, make: Callable[[Sequence[Sequence[int]]], list[Tensor]]) -> float:
        """The next ``count`` batches; images a second."""
        size = self.batch_size
        parts = [part for i in range(count) if (part := self._left[i * size : (i + 1) * size])]
        self._left = self._left[count * size :]
        started = time.perf_counter()
        self._parts += make(parts)  # on the CPU when they come back: there is nothing to wait for
        seconds = time.perf_counter() - started
        images = sum(len(part) for part in parts)
        self._advance(images)
        return images / seconds


def _one_thread() -> None:
    """What a thread that makes batches by itself is told."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
