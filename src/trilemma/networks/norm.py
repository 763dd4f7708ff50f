"""Group normalisation with a gain and a shift per image and channel, and what stands around it in a residual block.

Over the m pixels and channels of a group of h = x + b, with mu = mean(h), s^2 = mean(h^2) - mu^2 and
r = (s^2 + eps)^(-1/2),

    y = gamma * (h - mu) r + beta,   z = silu(y)

and from the sums over pixels S_1 = sum(dy), S_x = sum(dy x), one value per image and channel,

    dbeta = S_1,   dgamma = r (S_x + (b - mu) S_1),
    dx = r gamma dy - (r / m) (sum_group(gamma dbeta) + (h - mu) r sum_group(gamma dgamma)),   db = sum(dx).

Everything but x, z and their gradients is (N, C), and so are the sums over pixels of b and db: forward and backward are
few passes over memory in whatever layout x has. Only x is kept for the backward pass, which computes y again. On a CPU
this is two to four times faster in channels_last than torch's own kernel with gain and shift behind it, except where no
gradient is asked for and x is small: there a call costs what starting its operations costs, and torch's way has fewer.

Sources: Wu and He 2018; with gamma and beta from a latent, Xiao et al. 2022, appendix C (AdaGN).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trilemma.errors import ConfigError
from trilemma.networks.initialise import fan_out_uniform_

EPS = 1e-6
_MOST_GROUPS = 32
_SMALL = 2**17  # values of x


def group_count(channels: int) -> int:
    """min(C // 4, 32), as published, or the next smaller number that divides C (which the published code refuses)."""
    groups = max(1, min(channels // 4, _MOST_GROUPS))
    while channels % groups:
        groups -= 1
    return groups


def _by_torch(x: Tensor, gamma: Tensor, beta: Tensor, shift: Tensor | None, groups: int, silu: bool) -> Tensor:
    h = x if shift is None else x + shift[:, :, None, None]
    h = F.group_norm(h, groups, eps=EPS)
    y = torch.addcmul(beta[:, :, None, None].to(h.dtype), h, gamma[:, :, None, None].to(h.dtype))
    return F.silu(y, inplace=not y.requires_grad) if silu else y


def _over_group(per_channel: Tensor, groups: int) -> Tensor:
    """Sum over the channels of a group, given back to each of them: (N, C) -> (N, C)."""
    n, channels = per_channel.shape
    sums = per_channel.view(n, groups, -1).sum(2, keepdim=True)
    return sums.expand(-1, -1, channels // groups).reshape(n, channels)


def _each(per_channel: Tensor) -> Tensor:
    """For every pixel: (N, C) -> (N, C, 1, 1)."""
    return per_channel[:, :, None, None]


class _GroupNorm(torch.autograd.Function):
    """``shift`` is b, or none; with ``silu`` z comes back, else y."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, shift: Tensor | None, groups: int, silu: bool
    ) -> Tensor:
        pixels = x.shape[2] * x.shape[3]
        m = pixels * x.shape[1] // groups
        y = x * x  # the one array that is made: fresh memory costs more than the arithmetic
        power, total = y.sum((2, 3)), x.sum((2, 3))
        if shift is not None:
            power = power + shift * (2.0 * total + pixels * shift)
            total = total + pixels * shift
        mu = _over_group(total, groups) / m
        r = (torch.addcmul(_over_group(power, groups) / m, mu, mu, value=-1.0).clamp_min_(0.0) + EPS).rsqrt_()
        gain = gamma * r
        lift = beta + gain * (-mu if shift is None else shift - mu)
        torch.addcmul(_each(lift), x, _each(gain), out=y)
        ctx.save_for_backward(x, gamma, beta, shift, mu, r, total)
        ctx.groups, ctx.silu = groups, silu
        return F.silu(y, inplace=True) if silu else y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, shift, mu, r, total = ctx.saved_tensors
        dy = grads[0]
        if torch.is_grad_enabled():  # someone will differentiate this pass, and mu and r depend on x
            inputs = [v for v, needed in zip((x, gamma, beta, shift), ctx.needs_input_grad, strict=False) if needed]
            y = _by_torch(x, gamma, beta, shift, ctx.groups, ctx.silu)
            found = iter(torch.autograd.grad(y, inputs, dy, create_graph=True))
            return *(next(found) if needed else None for needed in ctx.needs_input_grad[:4]), None, None
        pixels = x.shape[2] * x.shape[3]
        m = pixels * x.shape[1] // ctx.groups
        offset = -mu if shift is None else shift - mu
        gain = gamma * r
        if ctx.silu:
            y = torch.addcmul(_each(beta + gain * offset), x, _each(gain))
            dy = torch.ops.aten.silu_backward.grad_input(dy, y, grad_input=y)
        dx = dy * x
        dbeta = dy.sum((2, 3))
        dgamma = r * (dx.sum((2, 3)) + offset * dbeta)
        slope = _over_group(gamma * dgamma, ctx.groups) * r * r / -m
        level = _over_group(gamma * dbeta, ctx.groups) * r / -m + slope * offset
        torch.addcmul(_each(level), dy, _each(gain), out=dx).addcmul_(x, _each(slope))
        dshift = None
        if shift is not None:  # level and slope times x, not h: total is of h
            dshift = gain * dbeta + slope * (total - pixels * shift) + pixels * level
        return dx, dgamma, dbeta, dshift, None, None


def _is_quick_by_torch(x: Tensor, gamma: Tensor, beta: Tensor, shift: Tensor | None) -> bool:
    """No gradient asked for, and x small; never of a graph that is written down, which is to hold for every size."""
    if torch.compiler.is_compiling() or x.numel() > _SMALL:
        return False
    return not (torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in (x, gamma, beta, shift)))


def group_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, groups: int, *, shift: Tensor | None = None, silu: bool = False
) -> Tensor:
    """x (N, C, H, W), plus ``shift`` (N, C) if any, normalised in ``groups`` groups of channels, with gamma and beta
    (N, C); ``silu``: then put through that."""
    if (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not _is_quick_by_torch(x, gamma, beta, shift)
    ):
        y: Tensor = _GroupNorm.apply(x, gamma, beta, shift, groups, silu)
        return y
    return _by_torch(x, gamma, beta, shift, groups, silu)


class GroupNorm(nn.Module):
    """Group norm with a trained gain and shift a channel: (N, C, H, W) -> the same. A latent, if given, is not read."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.groups = group_count(channels)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self, x: Tensor, latent: Tensor | None = None, *, shift: Tensor | None = None, silu: bool = False
    ) -> Tensor:
        """``shift`` and ``silu`` as in ``group_norm``."""
        n = x.shape[0]
        gamma, beta = self.weight.expand(n, -1), self.bias.expand(n, -1)
        return group_norm(x, gamma, beta, self.groups, shift=shift, silu=silu)


class AdaptiveGroupNorm(nn.Module):
    """Group norm whose gain and shift are a dense layer of the latent, gain first; about 1 and 0 to start with."""

    def __init__(self, channels: int, latent: int) -> None:
        super().__init__()
        self.groups = group_count(channels)
        self.style = nn.Linear(latent, 2 * channels)
        fan_out_uniform_(self.style.weight)
        with torch.no_grad():
            self.style.bias[:channels] = 1.0
            self.style.bias[channels:] = 0.0

    def forward(
        self, x: Tensor, latent: Tensor | None = None, *, shift: Tensor | None = None, silu: bool = False
    ) -> Tensor:
        """x (N, C, H, W), latent (N, L) -> (N, C, H, W); ``shift`` and ``silu`` as in ``group_norm``.

        Raises ConfigError without a latent.
        """
        if latent is None:
            raise ConfigError("adaptive group norm got no latent: pass z, or build the network with nz=0")
        gamma, beta = self.style(latent).chunk(2, dim=1)
        return group_norm(x, gamma, beta, self.groups, shift=shift, silu=silu)
