"""Geometry of the adaptive augmentation (Karras et al. 2020a, appendix B): pixel blitting and affine maps, in one go.

All transformations are one affine map a pixel, in pixels, about the centre of the image, x to the right and y down.
What is needed is its inverse: the place A q + t from which output pixel q is read. A further transformation with the
inverse q -> B q + d makes A <- A B and t <- t + A d. In the paper's order, each with probability p a image:

    x-flip             B = diag(1 - 2 i, 1)          i in {0, 1}
    quarter turns      B = R(i pi / 2)               i in {0, 1, 2, 3}
    integer shift      d = -round(u (W, H))          u uniform in +-xint_max, halves to even
    scaling            B = I / s                     log2 s ~ N(0, scale_std^2)
    rotation           B = R(a)                      a uniform in +-pi rotate_max
    stretching         B = diag(1 / s, s)            log2 s ~ N(0, aniso_std^2)
    rotation again     B = R(a)                      as above; each of the two with probability 1 - sqrt(1 - p)
    fractional shift   d = -u (W, H)                 u ~ N(0, xfrac_std^2)

The image is padded by reflection, as far as any image of the batch needs it, upsampled by 2 with a wavelet filter, read
bilinearly, and downsampled by 2: what a pixel reads beyond the padding is zero, so near the border an image's result
can depend on the others of its batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trilemma.augment.ada_draws import Draws, where_it_happens
from trilemma.augment.ada_filters import REACH, downsampling, filtered, upsampling
from trilemma.augment.ada_options import AdaOptions


def _turn(angle: Tensor) -> Tensor:
    """R(angle): (N,) -> (N, 2, 2)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((cos, -sin, sin, cos), dim=-1).view(-1, 2, 2)


def inverse_map(options: AdaOptions, n: int, size: Tensor, p: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """A (N, 2, 2) and t (N, 2) of the module docstring for ``n`` images of ``size``: (W, H) as a tensor of two."""
    a = torch.eye(2, dtype=size.dtype, device=size.device).repeat(n, 1, 1)
    t = size.new_zeros(n, 2)
    if options.xflip > 0:
        i = where_it_happens(draws, "xflip", (2 * draws.uniform("xflip", n)).floor(), 0.0, p * options.xflip)
        a = a * torch.stack((1 - 2 * i, torch.ones_like(i)), dim=-1)[:, None, :]
    if options.rotate90 > 0:
        i = where_it_happens(draws, "rotate90", (4 * draws.uniform("rotate90", n)).floor(), 0.0, p * options.rotate90)
        a = a @ _turn(i * (math.pi / 2)).round()  # entries are 0 and +-1, up to what the cosine's rounding left
    if options.xint > 0:
        u = (2 * draws.uniform("xint", n, 2) - 1) * options.xint_max
        u = where_it_happens(draws, "xint", u, 0.0, p * options.xint)
        t = t - (a @ (u * size).round()[..., None])[..., 0]
    if options.scale > 0:
        s = (draws.normal("scale", n) * options.scale_std).exp2()
        a = a / where_it_happens(draws, "scale", s, 1.0, p * options.scale)[:, None, None]
    # Both turns together happen with probability p; p above 1 counts as 1.
    p_turn = 1 - (1 - p * options.rotate).clamp(min=0).sqrt()
    if options.rotate > 0:
        angle = (2 * draws.uniform("rotate_before", n) - 1) * (math.pi * options.rotate_max)
        a = a @ _turn(where_it_happens(draws, "rotate_before", angle, 0.0, p_turn))
    if options.aniso > 0:
        s = (draws.normal("aniso", n) * options.aniso_std).exp2()
        s = where_it_happens(draws, "aniso", s, 1.0, p * options.aniso)
        a = a * torch.stack((1 / s, s), dim=-1)[:, None, :]
    if options.rotate > 0:
        angle = (2 * draws.uniform("rotate_after", n) - 1) * (math.pi * options.rotate_max)
        a = a @ _turn(where_it_happens(draws, "rotate_after", angle, 0.0, p_turn))
    if options.xfrac > 0:
        u = draws.normal("xfrac", n, 2) * options.xfrac_std
        u = where_it_happens(draws, "xfrac", u, 0.0, p * options.xfrac)
        t = t - (a @ (u * size)[..., None])[..., 0]
    return a, t


def padding(a: Tensor, t: Tensor, width: int, height: int) -> tuple[int, int, int, int]:
    """Pixels read (left, top, right, bottom) of the image, at most its side less 1, the filters' reach included.

    Taken over the whole batch; it waits for the device.
    """
    centre = t.new_tensor(((width - 1) / 2, (height - 1) / 2))
    corner = a.abs() @ centre  # how far the places read by the corners lie from t, to either side
    needed = torch.stack(((corner - t).amax(dim=0), (corner + t).amax(dim=0))) + (REACH - centre)
    needed = needed.clamp(min=0).minimum(t.new_tensor((width - 1, height - 1))).ceil()
    (left, top), (right, bottom) = needed.int().tolist()
    return left, top, right, bottom


class _Read(torch.autograd.Function):
    """Bilinear reading at ``grid``, which takes no gradient. PyTorch's own cannot be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = x.shape
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grid,) = ctx.saved_tensors
        return _Spread.apply(grads[0], grid, ctx.shape), None


class _Spread(torch.autograd.Function):
    """The transpose of ``_Read`` as a linear map, to images of ``shape``."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        # The values of the image count only for the gradient of the grid: one zero seen everywhere will do.
        x = y.new_zeros(()).expand(shape)
        spread = torch.ops.aten.grid_sampler_2d_backward(y, x, grid, 0, 0, False, [True, False])
        result: Tensor = spread[0]
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grid,) = ctx.saved_tensors
        return _Read.apply(grads[0], grid), None, None


def read(x: Tensor, grid: Tensor) -> Tensor:
    """(N, C, H, W) at the places ``grid`` (N, H', W', 2), in [-1, 1] from edge to edge, zeros outside."""
    y: Tensor = _Read.apply(x, grid)
    return y


def geometry(x: Tensor, options: AdaOptions, taps: Tensor, p: Tensor, draws: Draws) -> Tensor:
    """Images (N, C, H, W), contiguous, moved as drawn; ``taps`` (12,) are those of the resampling filter."""
    n, _, height, width = x.shape
    size = x.new_tensor((width, height))
    a, t = inverse_map(options, n, size, p, draws)
    left, top, right, bottom = padding(a, t, width, height)
    x = filtered(x, upsampling(taps, height, top, bottom), upsampling(taps, width, left, right))

    # From pixels of the output to pixels of the padded image, both upsampled, which moves either by half a pixel.
    t = 2 * t + t.new_tensor((left - right, top - bottom))
    t = t + (a.sum(dim=2) - 1) / 2
    # From edge to edge is -1 to 1 for the grid.
    half_in = x.new_tensor((x.shape[3] / 2, x.shape[2] / 2))
    half_out = size + REACH
    theta = torch.cat((a * half_out, t[..., None]), dim=2) / half_in[:, None]
    shape = [n, 1, 2 * (height + REACH), 2 * (width + REACH)]
    x = read(x, F.affine_grid(theta, shape, align_corners=False))
    return filtered(x, downsampling(taps, height), downsampling(taps, width))
