"""The layers of NCSN++: residual blocks, attention, resampling with and without a filter, and the latent mapping.

A residual block maps x (N, C, H, W), the embedded time e (N, E) and the latent w (N, L) to

    h = conv_1(R(silu(norm_1(x, w)))) + dense(e)
    y = (shortcut(R(x)) + conv_2(dropout(silu(norm_2(h, w))))) / sqrt(2)

where R doubles or halves the size, or is nothing. Attention over the pixels is one head of softmax(q k^T / sqrt(C)) v.

Sources: Song et al. 2021 (NCSN++, block "biggan"), Ho et al. 2020 (block "ddpm"), Xiao et al. 2022 (norm by latent).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from trilemma.networks.initialise import NEAR_ZERO, conv, dense, fan_average_uniform_, fan_out_uniform_
from trilemma.networks.norm import AdaptiveGroupNorm, GroupNorm
from trilemma.networks.resample import (
    KERNEL,
    fir_downsample,
    fir_filter,
    fir_upsample,
    naive_downsample,
    naive_upsample,
)

_HALF_ROOT = 0.5**0.5
_QUIET = 0.1
"""The published scale of the 1 x 1 layers of attention and of the ddpm blocks' shortcuts."""


def merge(x: Tensor, h: Tensor, *, rescale: bool) -> Tensor:
    """x + h, divided by sqrt(2) if ``rescale``, in two passes over memory and one new array."""
    y = x + h
    return y.mul_(_HALF_ROOT) if rescale else y


def join(
    x: Tensor, layer: Callable[[Tensor, Tensor | None], Tensor], weight: Tensor, bias: Tensor | None, *, rescale: bool
) -> Tensor:
    """x + layer(weight, bias), divided by sqrt(2) if ``rescale``; ``layer`` is linear in both and its result new.

    Weights are divided in place of the image where they are fewer: one pass over memory less.
    """
    if not rescale:
        return layer(weight, bias).add_(x)
    if weight.numel() > math.prod(x.shape[1:]):
        return layer(weight, bias).add_(x).mul_(_HALF_ROOT)
    return layer(weight * _HALF_ROOT, None if bias is None else bias * _HALF_ROOT).add_(x, alpha=_HALF_ROOT)


class LatentMapping(nn.Module):
    """z (N, nz) -> w (N, width): z over its root mean square, then ``layers`` + 1 dense layers, each with silu."""

    def __init__(self, nz: int, width: int, layers: int) -> None:
        super().__init__()
        dense_layers = [nn.Linear(width if i else nz, width) for i in range(layers + 1)]
        for layer in dense_layers:
            fan_out_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(dense_layers)

    def forward(self, z: Tensor) -> Tensor:
        w = z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            w = F.silu(layer(w))
        return w


class Attention(nn.Module):
    """x + attention(norm(x)) over all pixels, one head: (N, C, H, W) -> the same."""

    def __init__(self, channels: int, *, rescale: bool) -> None:
        super().__init__()
        self.rescale = rescale
        self.norm = GroupNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        for part in self.qkv.weight.data.chunk(3):
            fan_average_uniform_(part, _QUIET)
        nn.init.zeros_(self.qkv.bias)
        self.out = dense(channels, channels, scale=NEAR_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        # In channels_last the tokens (N, H W, C) are a view of the image, so nothing is copied on the way.
        tokens = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)
        q, k, v = self.qkv(tokens)[:, None].chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0]
        before = x.permute(0, 2, 3, 1).flatten(1, 2)
        y = join(before, partial(F.linear, mixed), self.out.weight, self.out.bias, rescale=self.rescale)
        return y.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """(N, c_in, H, W) -> (N, c_out, H/2, W/2): by a filter or the mean, or by a strided convolution."""

    def __init__(self, c_in: int, c_out: int, *, with_conv: bool, fir: bool, kernel: Sequence[float] = KERNEL) -> None:
        super().__init__()
        self.fir, self.kernel = fir, tuple(kernel)
        self.conv = conv(c_in, c_out, stride=2, padding=0) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is None:
            return fir_downsample(x, self.kernel) if self.fir else naive_downsample(x)
        if self.fir:
            p = len(self.kernel)  # K - 2, and 2 more as the 3 x 3 convolution does not pad
            x = fir_filter(x, self.kernel, pad=((p + 1) // 2, p // 2))
        else:
            x = F.pad(x, (0, 1, 0, 1))
        y: Tensor = self.conv(x)
        return y


class Upsample(nn.Module):
    """(N, c_in, H, W) -> (N, c_out, 2H, 2W): by a filter or repetition, or with a convolution.

    Filter and convolution together are a transposed convolution (its kernel flipped) with the filter behind it. The
    published code fails at that combination; this is what its documentation promises.
    """

    def __init__(self, c_in: int, c_out: int, *, with_conv: bool, fir: bool, kernel: Sequence[float] = KERNEL) -> None:
        super().__init__()
        self.fir, self.kernel = fir, tuple(kernel)
        self.conv = conv(c_in, c_out) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        if not self.fir:
            x = naive_upsample(x)
            return x if self.conv is None else self.conv(x)
        if self.conv is None:
            return fir_upsample(x, self.kernel)
        weight = self.conv.weight.flip(2, 3).transpose(0, 1)
        x = F.conv_transpose2d(x, weight, stride=2)
        p = len(self.kernel) - 4  # K - 2, and 2 less as the transposed convolution has overhung
        x = fir_filter(x, self.kernel, pad=((p + 1) // 2 + 1, p // 2 + 1), gain=4.0)
        return x if self.conv.bias is None else x + self.conv.bias[:, None, None]


class ResBlock(nn.Module):
    """A residual block (module docstring): (N, c_in, H, W) -> (N, c_out, H, W), of twice or half the size if asked.

    ``latent`` 0 leaves the latent out; ``both_adaptive`` False makes the second norm an ordinary one. The shortcut is
    a 1 x 1 convolution where the channels or the size change.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        time: int,
        latent: int,
        resample: Literal["up", "down"] | None = None,
        fir: bool = True,
        kernel: Sequence[float] = KERNEL,
        dropout: float = 0.0,
        rescale: bool = True,
        both_adaptive: bool = True,
        shortcut_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.resample, self.fir, self.kernel, self.rescale = resample, fir, tuple(kernel), rescale
        self.norm_1 = AdaptiveGroupNorm(c_in, latent) if latent else GroupNorm(c_in)
        self.conv_1 = conv(c_in, c_out)
        self.time = dense(time, c_out) if time else None
        self.norm_2 = AdaptiveGroupNorm(c_out, latent) if latent and both_adaptive else GroupNorm(c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = conv(c_out, c_out, scale=NEAR_ZERO)
        self.shortcut = conv(c_in, c_out, 1, scale=shortcut_scale) if c_in != c_out or resample else None

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return fir_upsample(x, self.kernel) if self.fir else naive_upsample(x)
        return fir_downsample(x, self.kernel) if self.fir else naive_downsample(x)

    def _short(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The shortcut's image, and the bias of conv_2 with what the image still lacks."""
        bias = self.conv_2.bias
        if self.shortcut is None:
            return (x if self.resample is None else self._resampled(x)), bias
        if self.resample != "up" or bias is None or self.shortcut.bias is None:
            return self.shortcut(x if self.resample is None else self._resampled(x)), bias
        # A 1 x 1 convolution and a filter change places freely, save for the bias: work on a quarter of the pixels.
        return self._resampled(F.conv2d(x, self.shortcut.weight)), bias + self.shortcut.bias

    def forward(self, x: Tensor, emb: Tensor | None, latent: Tensor | None) -> Tensor:
        """x (N, c_in, H, W); emb (N, E) the embedded time after its activation; latent (N, L)."""
        h = self.norm_1(x, latent, silu=True)
        x, bias = self._short(x)
        h = self.conv_1(h if self.resample is None else self._resampled(h))
        h = self.norm_2(h, latent, shift=None if self.time is None else self.time(emb), silu=True)
        conv = partial(F.conv2d, self.dropout(h), padding=1)
        return join(x, conv, self.conv_2.weight, bias, rescale=self.rescale)


class NormConv(nn.Module):
    """conv(silu(norm(x))), 3 x 3: (N, c_in, H, W) -> (N, c_out, H, W)."""

    def __init__(self, c_in: int, c_out: int, *, scale: float) -> None:
        super().__init__()
        self.norm = GroupNorm(c_in)
        self.conv = conv(c_in, c_out, scale=scale)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.norm(x, silu=True))
        return y
