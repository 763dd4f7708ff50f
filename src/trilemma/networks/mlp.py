"""Fully connected networks for points in the plane, which travel as images of one pixel and two channels.

With p = [x, sin(pi k x), cos(pi k x)] for k = 1/8, 1/4, 1/2, 1, 2 (features that let few layers draw narrow
modes) and the embedded time e:

    h_1 = dense([p, z]) + dense(e);   h_{i+1} = dense(act(h_i)) + dense(e);   y = dense(act(h_last))

The two-dimensional experiments of Xiao et al. 2022 (section 5.3) use fully connected networks as well; these are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trilemma.errors import ConfigError
from trilemma.networks.embeddings import timestep_embedding

_TIME = 64  # numbers in the time embedding
_FREQUENCIES = (0.125, 0.25, 0.5, 1.0, 2.0)  # periods from 16, wider than the data, to 1, narrower than its modes' gaps


def point_features(x: Tensor) -> Tensor:
    """Points (N, D) -> (N, D + 2 D len(_FREQUENCIES))."""
    angles = torch.cat([x * (math.pi * k) for k in _FREQUENCIES], dim=1)
    return torch.cat((x, angles.sin(), angles.cos()), dim=1)


class Trunk(nn.Module):
    """Numbers that are read in full, plus a time if ``timed``: (N, c_in), (N,) -> (N, c_out)."""

    def __init__(  # noqa: PLR0913
        self,
        c_in: int,
        c_out: int,
        hidden: int,
        layers: int,
        act: Callable[[Tensor], Tensor],
        *,
        timed: bool = True,
    ) -> None:
        super().__init__()
        if min(hidden, layers) < 1:
            raise ConfigError(f"network for points needs hidden and layers of at least 1, not {hidden} and {layers}")
        self.act = act
        self.time = nn.Linear(_TIME, _TIME) if timed else None
        self.layers = nn.ModuleList(nn.Linear(hidden if i else c_in, hidden) for i in range(layers))
        self.times = nn.ModuleList(nn.Linear(_TIME, hidden) for _ in range(layers if timed else 0))
        self.out = nn.Linear(hidden, c_out)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        emb = None
        if self.time is not None and t is not None:
            emb = self.act(self.time(timestep_embedding(t, _TIME).to(x.dtype)))
        h = x
        for i, layer in enumerate(self.layers):
            h = layer(self.act(h) if i else h)
            h = h if emb is None else h + self.times[i](emb)
        y: Tensor = self.out(self.act(h))
        return y


def flat_points(x: Tensor, channels: int) -> Tensor:
    """Images of one pixel as points: (N, channels, 1, 1) -> (N, channels). Raises ConfigError for other shapes."""
    if x.shape[1:] != (channels, 1, 1):
        raise ConfigError(f"network for points takes {(channels, 1, 1)} a point, but got {tuple(x.shape[1:])}")
    return x.flatten(1)


class PointGenerator(nn.Module):
    """G(x, t, z), or the denoiser eps(x, t) where nz = 0: points (N, 2, 1, 1) -> (N, 2, 1, 1), not bounded."""

    def __init__(self, nz: int, hidden: int = 256, layers: int = 3, *, channels: int = 2) -> None:
        """``nz`` numbers in the latent, ``layers`` hidden layers of ``hidden``. Raises ConfigError for bad sizes."""
        super().__init__()
        if nz < 0 or channels < 1:
            raise ConfigError(f"network for points needs nz from 0 and channels from 1, not {nz} and {channels}")
        self.nz, self.channels = nz, channels
        self.trunk = Trunk(channels * (1 + 2 * len(_FREQUENCIES)) + nz, channels, hidden, layers, F.silu)

    def forward(self, x: Tensor, t: Tensor, z: Tensor | None = None) -> Tensor:
        """x (N, 2, 1, 1), t (N,), z (N, nz), not read if nz = 0. Raises ConfigError for other shapes."""
        h = point_features(flat_points(x, self.channels))
        if self.nz:
            if z is None or z.shape != (x.shape[0], self.nz):
                came = "none" if z is None else tuple(z.shape)
                raise ConfigError(f"PointGenerator needs a latent z of shape {(x.shape[0], self.nz)}, but got {came}")
            h = torch.cat((h, z), dim=1)
        y: Tensor = self.trunk(h, t)
        return y[:, :, None, None]


class PointSynthesis(nn.Module):
    """w (N, w_dim) -> points (N, 2, 1, 1): what ``Synthesis`` is to images, without noise of its own."""

    num_ws = 1
    noise_shapes: tuple[tuple[int, int, int], ...] = ()

    def __init__(self, w_dim: int, hidden: int = 256, layers: int = 3, *, channels: int = 2) -> None:
        """``layers`` hidden layers of ``hidden``. Raises ConfigError for sizes below 1."""
        super().__init__()
        self.trunk = Trunk(w_dim, channels, hidden, layers, F.silu, timed=False)

    def forward(self, ws: Tensor, noise: object = None) -> Tensor:
        """ws (N, w_dim) or (N, 1, w_dim); ``noise`` is not read."""
        y: Tensor = self.trunk(ws.flatten(1))
        return y[:, :, None, None]


class PointCritic(nn.Module):
    """D(x, c) -> logits (N, 1), for points (N, 2, 1, 1) and a condition (N, condition), if there is one."""

    def __init__(self, condition: int = 0, hidden: int = 256, layers: int = 3, *, channels: int = 2) -> None:
        """``layers`` hidden layers of ``hidden``. Raises ConfigError for sizes below 1."""
        super().__init__()
        self.channels = channels
        self.trunk = Trunk(channels * (1 + 2 * len(_FREQUENCIES)) + condition, 1, hidden, layers, _leaky, timed=False)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        h = point_features(flat_points(x, self.channels))
        y: Tensor = self.trunk(h if c is None else torch.cat((h, c), dim=1))
        return y


class PointDiscriminator(nn.Module):
    """D(x, t, x_t) -> logits (N, 1), for points (N, 2, 1, 1)."""

    def __init__(self, hidden: int = 256, layers: int = 3, *, channels: int = 2) -> None:
        """``layers`` hidden layers of ``hidden``. Raises ConfigError for sizes below 1."""
        super().__init__()
        self.channels = channels
        c_in = 2 * channels * (1 + 2 * len(_FREQUENCIES))
        self.trunk = Trunk(c_in, 1, hidden, layers, _leaky)

    def forward(self, x: Tensor, t: Tensor, x_t: Tensor) -> Tensor:
        """x the less noisy points and x_t the noisier, both (N, 2, 1, 1); t (N,). Returns (N, 1)."""
        points = torch.cat(
            (point_features(flat_points(x, self.channels)), point_features(flat_points(x_t, self.channels))), dim=1
        )
        y: Tensor = self.trunk(points, t)
        return y


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)
