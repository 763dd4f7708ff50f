"""Vectors that stand for a time t.

    positional:  omega_k = 10000^(-k / (half - 1)), k = 0 .. half - 1, half = dim // 2;
                 emb(t) = [sin(t omega), cos(t omega)], and one 0 more where dim is odd
    Fourier:     w_k ~ N(0, scale^2), drawn once;  emb(t) = [sin(2 pi w log t), cos(2 pi w log t)]

Sources: Vaswani et al. 2017 as used by Ho et al. 2020; Tancik et al. 2020 as used by Song et al. 2021.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trilemma.errors import ConfigError

_LEAST_TIME = 1e-5  # where log t is cut off: the smallest time of the continuous-time models


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """t (N,), integer or real, embedded as it is: (N, dim) float32, sines first. Raises ConfigError for dim < 4."""
    if dim < 4:
        raise ConfigError(f"time embedding of {dim} numbers: give it at least 4")
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(steps * (-math.log(10000.0) / (half - 1)))
    emb = torch.cat((angles.sin(), angles.cos()), dim=1)
    return F.pad(emb, (0, 1)) if dim % 2 else emb


class FourierEmbedding(nn.Module):
    """Random Fourier features of log t: t (N,), t >= 0 -> (N, 2 dim).

    Differs from the published code, which is not a number at t = 0: times below 1e-5 count as 1e-5.
    """

    frequencies: Tensor

    def __init__(self, dim: int, scale: float = 16.0) -> None:
        """``dim`` frequencies of standard deviation ``scale``: not trained, kept with the weights."""
        super().__init__()
        self.register_buffer("frequencies", torch.randn(dim) * scale)

    def forward(self, t: Tensor) -> Tensor:
        log_t = t.float().clamp_min(_LEAST_TIME).log()
        angles = (2.0 * math.pi) * log_t[:, None] * self.frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=1)
