"""The mapping network of SPI-GAN: from noise to the latent vector at a point u of the path (Jeon and Park 2022, 3.3).

    h(0) = o(x_T),    h(u) = h(0) + integral of r(h(t), t) dt from 0 to u        (equation 3)

o reduces the noise to dim numbers; r is fully connected (Chen et al. 2018: a neural ordinary differential equation).

The paper leaves both open; these are ours. o: dense layers with leaky ReLU (0.2) between, on all pixels, then
h(0) = y / sqrt(mean(y^2) + 1e-8) as StyleGAN2 normalises its z (Karras et al. 2020). r: dense layers with SiLU, smooth
as solvers like it, between; the first reads [h, t].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trilemma.config import require_all
from trilemma.errors import ConfigError
from trilemma.maths.solvers import SolverOptions, solve, solve_path

_SLOPE = 0.2
_EPS = 1e-8


@dataclass(frozen=True)
class MappingOptions:
    """The mapping network from noise to latent vectors along the path."""

    dim: int = 512  # numbers in h
    embedding_layers: int = 1  # dense layers of o, from noise to h(0); 1 is linear
    pool: int = 1  # o reads sums over pool x pool pixels, divided by pool: large images need it
    hidden: int | None = None  # width inside r; none: dim
    layers: int = 3  # dense layers of r, the derivative of h
    solver: SolverOptions = field(default_factory=SolverOptions)  # of the differential equation

    def __post_init__(self) -> None:
        require_all(
            (self.dim >= 1, f"dim must be at least 1, not {self.dim}"),
            (self.pool >= 1, f"pool must be at least 1, not {self.pool}"),
            (self.embedding_layers >= 1, f"embedding_layers must be at least 1, not {self.embedding_layers}"),
            (self.hidden is None or self.hidden >= 1, f"hidden must be at least 1, not {self.hidden}"),
            (self.layers >= 1, f"layers must be at least 1, not {self.layers}"),
        )


class LatentDerivative(nn.Module):
    """r(h, t) = dh/dt.

    Layers start as PyTorch's own, of variance 1 / (3 fan_in): each shrinks, so that h(1) starts near h(0), not on it.
    """

    def __init__(self, dim: int, hidden: int, layers: int) -> None:
        super().__init__()
        widths = [dim + 1, *[hidden] * (layers - 1), dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        """t (N,), h (N, dim) -> (N, dim); time comes first, as solvers have it."""
        y = torch.cat((h, t[:, None].to(h.dtype)), dim=1)
        for i, layer in enumerate(self.layers):
            y = layer(F.silu(y) if i else y)
        return y


class NODEMapping(nn.Module):
    """h(u) from noise x_T and u. Each call of ``derivative`` is one evaluation of r by the solver."""

    def __init__(self, shape: tuple[int, int, int], options: MappingOptions) -> None:
        """``shape`` of one x_T: (C, H, W). Raises ConfigError for an empty one and sides that pool does not divide."""
        super().__init__()
        if min(shape) < 1:
            raise ConfigError(f"mapping network needs noise of at least 1 number, not {shape}")
        if shape[1] % options.pool or shape[2] % options.pool:
            raise ConfigError(
                f"mapping network: sides of {shape[1]} x {shape[2]} are no multiples of pool {options.pool}"
            )
        self.shape = shape
        in_features = math.prod(shape) // options.pool**2
        self.options = options
        # With biases: without them, normalised vectors would forget the length of x_T, which points in the plane need.
        embedding: list[nn.Module] = [nn.Linear(in_features, options.dim)]
        for _ in range(options.embedding_layers - 1):
            embedding += [nn.LeakyReLU(_SLOPE), nn.Linear(options.dim, options.dim)]
        self.embedding = nn.Sequential(*embedding)
        self.derivative: nn.Module = LatentDerivative(options.dim, options.hidden or options.dim, options.layers)

    def start(self, x_T: Tensor) -> Tensor:
        """h(0): x_T (N, C, H, W) -> (N, dim) of mean square 1. Raises ConfigError for noise of another size."""
        if x_T.shape[1:] != self.shape:
            raise ConfigError(f"mapping network takes {self.shape} an x_T, but got {tuple(x_T.shape[1:])}")
        # A sum of pool^2 independent numbers over pool has the variance of one.
        pooled = F.avg_pool2d(x_T, self.options.pool) * self.options.pool if self.options.pool > 1 else x_T
        y: Tensor = self.embedding(pooled.flatten(1)).to(x_T.dtype)  # autocast's few digits are too few for h and times
        return y * (y.square().mean(dim=1, keepdim=True) + _EPS).rsqrt()

    def forward(self, x_T: Tensor, u: Tensor | float) -> Tensor:
        """h(u): x_T (N, C, H, W) with u (N,), or one for all, in [0, 1] -> (N, dim).

        Raises ConfigError for shapes that do not fit and a number u outside [0, 1].
        """
        return solve(self.derivative, self.start(x_T), u, self.options.solver)

    def path(self, x_T: Tensor, us: Sequence[float]) -> Tensor:
        """h at each of K ``us`` in [0, 1]: (K, N, dim). Raises ConfigError as ``forward`` does, and for no u at all."""
        return solve_path(self.derivative, self.start(x_T), us, self.options.solver)
