"""Resampling by 2 of images (N, C, H, W): nearest and mean, or with a finite impulse response (FIR) filter.

With a 1-D kernel k of length K, normalised to sum 1, the 2-D filter f = k k^T, convolution * (the kernel is flipped,
which only asymmetric kernels reveal), zero padding and p = K - 2:

    fir_upsample(x)   = pad(insert_zeros(x), before (p + 1) // 2 + 1, after p // 2) * 4 f        (N, C, 2H, 2W)
    fir_downsample(x) = (pad(x, before (p + 1) // 2, after p // 2) * f)[every 2nd pixel]         (N, C, H/2, W/2)

Sources: Zhang 2019 (anti-aliasing), Karras et al. 2020 (StyleGAN2, where the filters were first placed so).

Both are one depthwise convolution that never leaves channels_last. A strided filter and its transpose are the
derivatives of each other, so each is defined as the other's backward pass: any order of derivative costs one cheap
filter, where the second derivative of a general depthwise convolution takes some thirty times as long on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trilemma.errors import ConfigError

KERNEL: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0)


def fir_taps(kernel: Sequence[float], *, gain: float = 1.0) -> list[float]:
    """The 1-D kernel scaled to sum ``gain``. Raises ConfigError for a kernel that cannot be."""
    total = float(sum(kernel))
    if len(kernel) < 2 or total == 0.0:
        raise ConfigError(f"FIR kernel {tuple(kernel)}: give two or more numbers whose sum is not 0")
    return [gain * float(tap) / total for tap in kernel]


def _depthwise(taps: Sequence[float], like: Tensor) -> Tensor:
    """The filter k k^T for each channel of ``like``: (C, 1, K, K)."""
    return _outer(tuple(taps), like.dtype, like.device).expand(like.shape[1], 1, -1, -1)


@lru_cache(maxsize=64)
def _outer(taps: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """k k^T (K, K), made once: each making would have the host wait for a GPU."""
    with torch.inference_mode(False):  # training may want it next
        k = torch.tensor(taps, dtype=dtype, device=device)
        return torch.outer(k, k)


class _Filter(torch.autograd.Function):
    """Correlation of every channel with ``weight``, every ``stride``-th pixel; ``padding`` zeros on all sides."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.stride, ctx.padding, ctx.size = stride, padding, tuple(x.shape[2:])
        return F.conv2d(x, weight, stride=stride, padding=padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        outside = weight.shape[2] - 1 - ctx.padding
        if ctx.stride == 1 and outside >= 0:  # the transpose is a filter too, and faster as one
            return _Filter.apply(grads[0], weight.flip(2, 3), 1, outside), None, None, None
        return _Transposed.apply(grads[0], weight, ctx.stride, ctx.padding, ctx.size), None, None, None


class _Transposed(torch.autograd.Function):
    """The transpose of ``_Filter`` as a linear map, to images of ``size``."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, stride: int, padding: int, size: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.stride, ctx.padding = stride, padding
        missing = [
            full - ((part - 1) * stride + taps - 2 * padding)
            for full, part, taps in zip(size, y.shape[2:], weight.shape[2:], strict=True)
        ]
        return F.conv_transpose2d(y, weight, stride=stride, padding=padding, output_padding=missing, groups=y.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return _Filter.apply(grads[0], weight, ctx.stride, ctx.padding), None, None, None, None


def fir_filter(
    x: Tensor, kernel: Sequence[float] = KERNEL, *, pad: tuple[int, int], stride: int = 1, gain: float = 1.0
) -> Tensor:
    """``x`` padded by (before, after) zeros on both axes, convolved with ``gain`` (> 0) f, every ``stride``-th pixel.

    (N, C, H, W) -> (N, C, (H + before + after - K) // stride + 1, the same for W).
    """
    taps = fir_taps(kernel, gain=gain**0.5)[::-1]
    before, after = pad
    if before != after:
        x = F.pad(x, (before, after, before, after))
        before = 0
    y: Tensor = _Filter.apply(x, _depthwise(taps, x), stride, before)
    return y


def fir_downsample(x: Tensor, kernel: Sequence[float] = KERNEL) -> Tensor:
    """Filter, then keep every second pixel: (N, C, H, W) -> (N, C, H/2, W/2)."""
    p = len(kernel) - 2
    return fir_filter(x, kernel, pad=((p + 1) // 2, p // 2), stride=2)


def fir_upsample(x: Tensor, kernel: Sequence[float] = KERNEL) -> Tensor:
    """Insert zeros, then filter with 4 f: (N, C, H, W) -> (N, C, 2H, 2W)."""
    p = len(kernel) - 2
    # Zero insertion and convolution is a transposed convolution, whose result starts K - 1 pixels before the image;
    # (p + 1) // 2 + 1 of them are wanted, so p // 2 = K - 1 - ((p + 1) // 2 + 1) are cut, and as many at the end.
    size = (2 * x.shape[2], 2 * x.shape[3])
    odd = p % 2  # with an odd length, one pixel more must go at the end
    y: Tensor = _Transposed.apply(
        x, _depthwise(fir_taps(kernel, gain=2.0), x), 2, p // 2, (size[0] + odd, size[1] + odd)
    )
    return y[:, :, : size[0], : size[1]] if odd else y


def naive_upsample(x: Tensor) -> Tensor:
    """Every pixel becomes a block of 2 x 2: (N, C, H, W) -> (N, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def naive_downsample(x: Tensor) -> Tensor:
    """The mean of every block of 2 x 2: (N, C, H, W) -> (N, C, H/2, W/2)."""
    return F.avg_pool2d(x, 2)
