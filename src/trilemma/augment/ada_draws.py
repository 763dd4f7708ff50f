"""Where the random numbers of the adaptive augmentation come from: one object, so that a test can say what they are."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Draws(Protocol):
    """Random numbers, one row an image. Each use has a ``name`` and asks for its value first, then whether it happens.

    The order of the calls is that of the paper's appendix B.
    """

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal numbers."""

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Numbers uniform on [0, 1)."""

    def happens(self, name: str, n: int, p: Tensor) -> Tensor:
        """Which of ``n`` images are changed: (n,) bool, each with probability ``p``, 0-d or (n,)."""


class TorchDraws:
    """Draws from torch's global generator, of the dtype and on the device of ``like``."""

    def __init__(self, like: Tensor) -> None:
        self.dtype = like.dtype
        self.device = like.device

    def normal(self, name: str, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self.dtype, device=self.device)

    def uniform(self, name: str, *shape: int) -> Tensor:
        return torch.rand(shape, dtype=self.dtype, device=self.device)

    def happens(self, name: str, n: int, p: Tensor) -> Tensor:
        return self.uniform(name, n) < p


def where_it_happens(draws: Draws, name: str, value: Tensor, otherwise: float, p: Tensor) -> Tensor:
    """``value`` (N, ...) in the images where ``name`` happens, ``otherwise`` in the others."""
    happens = draws.happens(name, len(value), p)
    return torch.where(happens.view(-1, *(1,) * (value.ndim - 1)), value, otherwise)
