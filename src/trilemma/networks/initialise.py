"""Initial weights: uniform with variance ``scale`` / fan, fan = (fan_in + fan_out) / 2 or fan_out.

Weights are (out, in, ...); fan_in = in * kernel area, fan_out = out * kernel area. A uniform distribution on [-a, a]
has variance a^2 / 3. The published denoising diffusion GAN asks for the average of both fans everywhere, but its dense
layers for the latent (and all layers of its discriminators) in fact get fan_out; both are kept.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

NEAR_ZERO = 1e-10
"""The published scale of layers that start all but silent. Denormal numbers follow: flush them on a CPU."""


def _uniform_(weight: Tensor, variance: float) -> Tensor:
    limit = math.sqrt(3.0 * variance)
    return nn.init.uniform_(weight, -limit, limit)


def _fans(weight: Tensor) -> tuple[int, int]:
    area = math.prod(weight.shape[2:])
    return weight.shape[1] * area, weight.shape[0] * area


def fan_average_uniform_(weight: Tensor, scale: float = 1.0) -> Tensor:
    """Fill in place with variance 2 scale / (fan_in + fan_out)."""
    return _uniform_(weight, 2.0 * scale / sum(_fans(weight)))


def fan_out_uniform_(weight: Tensor, scale: float = 1.0) -> Tensor:
    """Fill in place with variance scale / fan_out."""
    return _uniform_(weight, scale / _fans(weight)[1])


def conv(
    c_in: int, c_out: int, size: int = 3, *, stride: int = 1, padding: int | None = None, scale: float = 1.0
) -> nn.Conv2d:
    """A convolution that keeps the size unless told otherwise, with average-fan weights and no bias to start with."""
    layer = nn.Conv2d(c_in, c_out, size, stride=stride, padding=size // 2 if padding is None else padding)
    fan_average_uniform_(layer.weight, scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def dense(c_in: int, c_out: int, *, scale: float = 1.0) -> nn.Linear:
    """A dense layer with average-fan weights and no bias to start with."""
    layer = nn.Linear(c_in, c_out)
    fan_average_uniform_(layer.weight, scale)
    nn.init.zeros_(layer.bias)
    return layer
