"""Noise schedules: how much noise each step adds.

DDPM (Ho et al. 2020, section 4): ``beta_t`` linear in t, q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I).

Denoising diffusion GAN (Xiao et al. 2022, appendix A): T large steps that discretise a continuous process with marginal
variance ``v(u)``, u in [1e-3, 1]:

    vp:         v(u) = 1 - exp(-(u^2 (beta_max - beta_min) / 2 + u beta_min))
    geometric:  v(u) = beta_min (beta_max / beta_min)^u
    u_k = 1e-3 + (1 - 1e-3) k / T,    beta_k = 1 - (1 - v(u_k)) / (1 - v(u_{k-1})),    k = 1..T

The variance v(u_0) already present at the grid's start is dropped, so that x at index 0 is the data itself. Betas are
formed in float64 and rounded to float32; everything after that is float32: bit for bit what published models had.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import accumulate
from operator import mul
from typing import Literal, Self

import torch
from torch import Tensor

from trilemma.errors import ConfigError, nearest

_GRID_START = 1e-3  # u_0: the continuous processes are not defined well enough at u = 0
_FIRST_BETA = 1e-8  # beta_0 stands for "no step yet"; in float32 sqrt(1 - 1e-8) is exactly 1
_LOG_FLOOR = 1e-20  # the posterior variance at t = 0 is 0, and its logarithm must stay finite


class _OnDevice:
    """Moves every tensor field of a frozen dataclass."""

    def to(self, device: torch.device | str) -> Self:
        """The same schedule with its tensors on ``device``; itself where they are there already."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        if all(v.device == torch.device(device) for v in values.values() if isinstance(v, Tensor)):
            return self
        return type(self)(**{name: v.to(device) if isinstance(v, Tensor) else v for name, v in values.items()})


@dataclass(frozen=True)
class DenoisingSchedule(_OnDevice):
    """The T large steps of a denoising diffusion GAN; all tensors float32.

    Arrays of length T + 1 are indexed by the noise level 0..T (0 is the data). The posterior arrays of length T are
    indexed by the level t in 0..T-1 that a denoising step arrives at, coming from level t + 1.
    """

    num_steps: int
    betas: Tensor  # (T+1,) variance added by the step into level k; entry 0 is the constant 1e-8
    sigmas: Tensor  # (T+1,) sqrt(beta)
    a_s: Tensor  # (T+1,) sqrt(1 - beta)
    a_s_cum: Tensor  # (T+1,) running product of a_s: x_k = a_s_cum x_0 + sigmas_cum noise
    sigmas_cum: Tensor  # (T+1,) sqrt(1 - a_s_cum^2)
    alphas_cumprod: Tensor  # (T,) alpha_bar at level t + 1
    alphas_cumprod_prev: Tensor  # (T,) alpha_bar at level t; entry 0 is 1
    posterior_mean_coef1: Tensor  # (T,) weight of x_0 in the mean of q(x_t | x_{t+1}, x_0)
    posterior_mean_coef2: Tensor  # (T,) weight of x_{t+1} in it
    posterior_variance: Tensor  # (T,) its variance; entry 0 is 0
    posterior_log_variance_clipped: Tensor  # (T,) log of the variance, clamped at 1e-20 first


@dataclass(frozen=True)
class NoiseSchedule(_OnDevice):
    """The many small steps of DDPM; float32 arrays of length T, indexed by t in 0..T-1."""

    betas: Tensor  # (T,) variance added by step t
    alpha_bar: Tensor  # (T,) running product of 1 - beta

    @property
    def num_steps(self) -> int:
        """T."""
        return int(self.betas.shape[0])


def _check_steps(num_steps: int) -> None:
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ConfigError(f"num_steps must be an integer of at least 1, not {num_steps!r}")


def _sqrt(x: Tensor) -> Tensor:
    """The float32 nearest to the root. The vectorised float32 root is one unit off on some processors."""
    return x.double().sqrt().float()


def _vp_betas(u: Tensor, beta_min: float, beta_max: float) -> Tensor:
    """(T,) float64. log(1 - v) differs between grid points by a plain difference, so nothing underflows or cancels."""
    if not (0 <= beta_min <= beta_max < math.inf and beta_max > 0):
        raise ConfigError(f"vp schedule needs 0 <= beta_min <= beta_max, 0 < beta_max, not {beta_min} and {beta_max}")
    log_signal = -0.5 * u.square() * (beta_max - beta_min) - u * beta_min
    return -torch.expm1(log_signal[1:] - log_signal[:-1])


def _geometric_betas(u: Tensor, beta_min: float, beta_max: float) -> Tensor:
    """(T,) float64."""
    if not 0 < beta_min < beta_max < 1:  # from 1 on, the marginal variance leaves nothing of the data
        raise ConfigError(f"geometric schedule needs 0 < beta_min < beta_max < 1, not {beta_min} and {beta_max}")
    v = beta_min * (beta_max / beta_min) ** u
    return (v[1:] - v[:-1]) / (1 - v[:-1])


def denoising_schedule(
    num_steps: int,
    kind: Literal["vp", "geometric"] = "vp",
    beta_min: float = 0.1,
    beta_max: float = 20.0,
) -> DenoisingSchedule:
    """The schedule of Xiao et al. 2022 with T = ``num_steps`` (formulas above).

    Raises ConfigError when T < 1, for an unknown kind, for betas out of range, and when a step would add less noise
    than float32 can tell from none.
    """
    _check_steps(num_steps)
    kinds = {"vp": _vp_betas, "geometric": _geometric_betas}
    if kind not in kinds:
        raise nearest("noise schedule", str(kind), kinds)
    u = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps * (1 - _GRID_START) + _GRID_START
    step_betas = kinds[kind](u, beta_min, beta_max)
    betas = torch.cat((torch.tensor([_FIRST_BETA], dtype=torch.float64), step_betas)).float()
    if not bool(((betas[1:] > 0) & (1 - betas[1:] < 1)).all()):
        raise ConfigError(
            f"{kind} schedule with {num_steps} steps, beta_min {beta_min}, beta_max {beta_max}: a step adds no noise "
            "that float32 can hold; raise the betas or take fewer steps"
        )
    a_s = _sqrt(1 - betas)
    a_s_cum = torch.stack(list(accumulate(a_s, mul)))  # unlike cumprod rounded at every step, as in published models
    beta = betas[1:]
    alpha = 1 - beta
    alpha_bar = alpha.cumprod(0)
    alpha_bar_prev = torch.cat((torch.ones(1), alpha_bar[:-1]))
    variance = beta * (1 - alpha_bar_prev) / (1 - alpha_bar)
    return DenoisingSchedule(
        num_steps=num_steps,
        betas=betas,
        sigmas=_sqrt(betas),
        a_s=a_s,
        a_s_cum=a_s_cum,
        sigmas_cum=_sqrt(1 - a_s_cum.square()),
        alphas_cumprod=alpha_bar,
        alphas_cumprod_prev=alpha_bar_prev,
        posterior_mean_coef1=beta * _sqrt(alpha_bar_prev) / (1 - alpha_bar),
        posterior_mean_coef2=(1 - alpha_bar_prev) * _sqrt(alpha) / (1 - alpha_bar),
        posterior_variance=variance,
        posterior_log_variance_clipped=variance.clamp(min=_LOG_FLOOR).log(),
    )


def linear_schedule(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
    """DDPM's schedule: T betas evenly spaced from ``beta_start`` to ``beta_end`` (Ho et al. 2020, section 4).

    Raises ConfigError when T < 1, unless 0 < beta_start <= beta_end < 1, and when so much noise is added that float32
    holds no trace of the data (predicting x_0 divides by that trace) or so little that it holds none of the noise.
    """
    _check_steps(num_steps)
    if not 0 < beta_start <= beta_end < 1:
        raise ConfigError(f"linear schedule needs 0 < beta_start <= beta_end < 1, not {beta_start} and {beta_end}")
    betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float32)
    alpha_bar = (1 - betas).cumprod(0)
    if not (float(alpha_bar[0]) < 1 and float(alpha_bar[-1]) > torch.finfo(torch.float32).tiny):
        raise ConfigError(
            f"linear schedule with {num_steps} steps, beta {beta_start} to {beta_end}: alpha_bar runs from "
            f"{float(alpha_bar[0]):.3g} to {float(alpha_bar[-1]):.3g}, beyond float32; change the betas or the steps"
        )
    return NoiseSchedule(betas=betas, alpha_bar=alpha_bar)


def cosine_decay(initial: float, final: float, progress: float) -> float:
    """Half a cosine from ``initial`` at progress 0 to ``final`` at 1; progress outside [0, 1] is clamped."""
    share = min(max(progress, 0.0), 1.0)
    return final + 0.5 * (initial - final) * (1 + math.cos(math.pi * share))
