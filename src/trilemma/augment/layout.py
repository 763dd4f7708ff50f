"""Memory layouts: a gradient gets the layout of what it is the gradient of, in any order of derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def layout_of(x: Tensor) -> torch.memory_format:
    """channels_last where ``x`` (N, C, H, W) is that and no other; else contiguous."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


class _Layout(torch.autograd.Function):
    """The same numbers in another layout; the gradient in the one before."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: torch.memory_format) -> Tensor:
        ctx.before = layout_of(x)
        return x.contiguous(memory_format=layout)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _Layout.apply(grads[0], ctx.before), None


def in_layout(x: Tensor, layout: torch.memory_format) -> Tensor:
    """``x`` in ``layout``; PyTorch's own ``contiguous`` leaves gradients in the layout they came in."""
    if layout_of(x) == layout:
        return x
    y: Tensor = _Layout.apply(x, layout)
    return y
