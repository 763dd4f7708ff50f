"""DiffAugment (Zhao et al. 2020): colour, translation and cutout of every image a discriminator sees, differentiable.

With u uniform on [0, 1) and one draw an image, r = int(translation_ratio size + 1/2), s = int(cutout_ratio size + 1/2):

    brightness   x + u - 1/2
    saturation   m + 2 u (x - m),          m the mean over the channels of a pixel
    contrast     m + (u + 1/2) (x - m),    m the mean over the image
    translation  y[i, j] = x[i + a, j + b], zero outside;    a, b uniform in -r..r
    cutout       an s x s square of zeros whose first row is a - s // 2, clamped to the image;    columns alike

Images are (N, C, H, W) with any C; at C = 1 the saturation is the identity, as its formula says. A translation and the
one back are each other's transpose, so each is the other's backward pass: any order of derivative costs one gather.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trilemma.augment.layout import layout_of
from trilemma.errors import ConfigError, nearest

POLICY: tuple[str, ...] = ("color", "translation", "cutout")


def brightness(x: Tensor, u: Tensor) -> Tensor:
    """``u`` (N, 1, 1, 1) in [0, 1): 1/2 is the identity."""
    return x + (u - 0.5)


def saturation(x: Tensor, u: Tensor) -> Tensor:
    """``u`` (N, 1, 1, 1) in [0, 1): 1/2 is the identity, 0 makes gray."""
    mean = x.mean(dim=1, keepdim=True)
    return (x - mean) * (2 * u) + mean


def contrast(x: Tensor, u: Tensor) -> Tensor:
    """``u`` (N, 1, 1, 1) in [0, 1): 1/2 is the identity."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * (u + 0.5) + mean


def _taken(x: Tensor, shift: Tensor, dim: int) -> Tensor:
    """``x`` read ``shift`` (N,) places further along ``dim``, zero where that lies outside."""
    size = x.shape[dim]
    shape = [len(x), 1, 1, 1]
    shape[dim] = size
    source = (torch.arange(size, device=x.device) + shift.view(-1, 1)).view(shape)
    # One index a line: expanded, never stored a pixel.
    read = x.gather(dim, source.clamp(0, size - 1).expand_as(x))
    return read * ((source >= 0) & (source < size))


class _Shift(torch.autograd.Function):
    """Translation by whole pixels; its transpose is the translation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        ctx.save_for_backward(rows, cols)
        return _taken(_taken(x, rows, 2), cols, 3).contiguous(memory_format=layout_of(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, cols = ctx.saved_tensors
        return _Shift.apply(grads[0], -rows, -cols), None, None


def translation(x: Tensor, shift_rows: Tensor, shift_cols: Tensor) -> Tensor:
    """Shifts are int64 with N elements: ``output[i, j] = x[i + shift_row, j + shift_col]``, zero outside."""
    y: Tensor = _Shift.apply(x, shift_rows.flatten(), shift_cols.flatten())
    return y


def _cut(size: int, offset: Tensor, side: int) -> Tensor:
    """Which of ``size`` lines lie in the square: (N, size) bool."""
    first = offset.view(-1, 1) - side // 2
    line = torch.arange(size, device=offset.device)
    return (line >= first.clamp(0, size - 1)) & (line <= (first + side - 1).clamp(0, size - 1))


def _side(size: int, ratio: float) -> int:
    """A share of a side in whole pixels, halves upwards."""
    return int(size * ratio + 0.5)


def cutout(x: Tensor, offset_rows: Tensor, offset_cols: Tensor, ratio: float = 0.5) -> Tensor:
    """Offsets are int64 with N elements, the middle of the square in pixels; sides are ``ratio`` of the image's."""
    height, width = x.shape[2:]
    side_rows, side_cols = _side(height, ratio), _side(width, ratio)
    if side_rows == 0 or side_cols == 0:
        return x
    rows = _cut(height, offset_rows, side_rows)[:, None, :, None]
    cols = _cut(width, offset_cols, side_cols)[:, None, None, :]
    return x * ~(rows & cols)


def _random_color(x: Tensor) -> Tensor:
    for change in (brightness, saturation, contrast):
        x = change(x, torch.rand(len(x), 1, 1, 1, dtype=x.dtype, device=x.device))
    return x


def _random_translation(x: Tensor, ratio: float) -> Tensor:
    reach = (_side(x.shape[2], ratio), _side(x.shape[3], ratio))
    rows, cols = (torch.randint(-r, r + 1, (len(x),), device=x.device) for r in reach)
    return translation(x, rows, cols)


def _random_cutout(x: Tensor, ratio: float) -> Tensor:
    # A square of even side has its middle between two pixels: one place more to lie in.
    ends = [size + 1 - _side(size, ratio) % 2 for size in x.shape[2:]]
    rows, cols = (torch.randint(0, end, (len(x),), device=x.device) for end in ends)
    return cutout(x, rows, cols, ratio)


def diffaugment(
    x: Tensor,
    policy: Sequence[str] = POLICY,
    *,
    cutout_ratio: float = 0.5,
    translation_ratio: float = 0.125,
) -> Tensor:
    """``x`` (N, C, H, W) with the kinds of ``policy`` applied in that order, drawn anew for each image.

    Ratios are shares of the sides, in [0, 1]. Draws come from torch's global generator. Raises ConfigError for an
    unknown kind and for ratios outside.
    """
    if not (0 <= cutout_ratio <= 1 and 0 <= translation_ratio <= 1):
        raise ConfigError(
            f"cutout_ratio and translation_ratio must lie in [0, 1], not {cutout_ratio} and {translation_ratio}"
        )
    known: dict[str, Callable[[Tensor], Tensor]] = {
        "color": _random_color,
        "translation": lambda y: _random_translation(y, translation_ratio),
        "cutout": lambda y: _random_cutout(y, cutout_ratio),
    }
    for name in policy:
        if name not in known:
            raise nearest("DiffAugment policy", name, known)
    for name in policy:
        x = known[name](x)
    return x
