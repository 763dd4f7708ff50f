"""What the machine can do at best: float32 FLOPs a second in one large matrix product and one large convolution.

Measured in the process whose samplers are timed, with its threads, so that a sampler's FLOPs a second can be told as a
share of it. It is the best of the repeats: a roof is the most that was reached, not what is usual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trilemma.measure.flops import FlopCounter
from trilemma.measure.speed import measure

LIMIT_SECONDS = 0.5  # for each probe
MAX_REPEATS = 50


@dataclass(frozen=True)
class Roofline:
    """FLOPs a second of each probe."""

    matmul: float
    convolution: float

    @property
    def best(self) -> float:
        """The higher of the two."""
        return max(self.matmul, self.convolution)


def measure_roofline(
    device: torch.device | str = "cpu", *, limit_seconds: float = LIMIT_SECONDS, max_repeats: int = MAX_REPEATS
) -> Roofline:
    """Both probes, one after the other.

    The matrices are square, of side 2048 (8192 on a GPU). The convolution is 3 x 3 from 128 channels to 128, over 16
    maps of 32 x 32 (256 channels, 64 maps of 64 x 64 on a GPU), in ``channels_last``.
    """
    device = torch.device(device)
    side, n, channels, size = (2048, 16, 128, 32) if device.type == "cpu" else (8192, 64, 256, 64)
    draw = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=draw).to(device)
        return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x

    def rate(run: Callable[[], Tensor]) -> float:
        with torch.inference_mode():
            with FlopCounter() as counter:  # by the rule that counts the samplers; also the warm-up
                run()
            timing = measure(run, device=device, limit_seconds=limit_seconds, max_repeats=max_repeats)
        return counter.total / min(timing.seconds)

    a, b = numbers(side, side), numbers(side, side)
    matmul = rate(lambda: a @ b)
    x, weight = numbers(n, channels, size, size), numbers(channels, channels, 3, 3)
    return Roofline(matmul, rate(lambda: F.conv2d(x, weight, padding=1)))
