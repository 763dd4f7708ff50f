"""Gaussian steps: forward marginals, the posterior, and the samplers' single steps. Randomness comes in as ``noise``.

Denoising diffusion GAN (Xiao et al. 2022, equations 1 to 4), levels 0..T:
    x_t = a_s_cum[t] x_0 + sigmas_cum[t] noise,    x_{t+1} = a_s[t+1] x_t + sigmas[t+1] noise
    q(x_t | x_{t+1}, x_0) = N(coef1[t] x_0 + coef2[t] x_{t+1}, posterior_variance[t] I)

DDPM (Ho et al. 2020, equations 4, 6, 7), t in 0..T-1, and DDIM (Song et al. 2021, equations 12, 16), s the next level:
    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps
    x_0_pred = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)
    DDPM: x_s = (sqrt(alpha_bar_s) beta x_0_pred + sqrt(alpha) (1 - alpha_bar_s) x_t) / (1 - alpha_bar_t) + std noise
    DDIM: x_s = sqrt(alpha_bar_s) x_0_pred + sqrt(1 - alpha_bar_s - std^2) eps + std noise
    with alpha = alpha_bar_t / alpha_bar_s, beta = 1 - alpha, and alpha_bar_s = 1 when s < 0.

Shapes: x, noise, eps (N, C, H, W); t int64 (N,) unless said to be an int.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trilemma.errors import ConfigError, nearest
from trilemma.maths.schedules import DenoisingSchedule, NoiseSchedule

_VARIANCE_FLOOR = 1e-20


def _at(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """``values[t]`` as (N, 1, 1, 1), ready to multiply ``like``."""
    return values[t].view(-1, *(1,) * (like.ndim - 1))


def q_sample(schedule: DenoisingSchedule, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """A draw of q(x_t | x_0) at level t in 0..T; level 0 is x_0 itself, exactly."""
    return _at(schedule.a_s_cum, t, x_0) * x_0 + _at(schedule.sigmas_cum, t, x_0) * noise


def q_sample_pair(
    schedule: DenoisingSchedule, x_0: Tensor, t: Tensor, noise_next: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Two neighbours of one chain, (x_t, x_{t+1}), for t in 0..T-1; ``noise`` makes x_t, ``noise_next`` the step on.

    Whoever draws in the order of the published code draws ``noise_next`` first.
    """
    x_t = q_sample(schedule, x_0, t, noise)
    x_next = _at(schedule.a_s, t + 1, x_0) * x_t + _at(schedule.sigmas, t + 1, x_0) * noise_next
    return x_t, x_next


def sample_posterior(schedule: DenoisingSchedule, x_0: Tensor, x_next: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """A draw of q(x_t | x_{t+1}, x_0) for t in 0..T-1; at t = 0 it is the mean, and the noise counts for nothing."""
    mean = _at(schedule.posterior_mean_coef1, t, x_0) * x_0 + _at(schedule.posterior_mean_coef2, t, x_0) * x_next
    std = torch.exp(0.5 * schedule.posterior_log_variance_clipped[t]) * (t != 0)
    return mean + std.view(-1, *(1,) * (x_0.ndim - 1)) * noise


def add_noise(schedule: NoiseSchedule, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """A draw of DDPM's q(x_t | x_0) for t in 0..T-1."""
    alpha_bar = _at(schedule.alpha_bar, t, x_0)
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise


def predict_x_0(schedule: NoiseSchedule, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """The x_0 that x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps implies."""
    alpha_bar = _at(schedule.alpha_bar, t, x_t)
    return (x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()


def _levels(schedule: NoiseSchedule, t: int, t_prev: int) -> tuple[Tensor, Tensor]:
    """alpha_bar at t and at t_prev as 0-d tensors; a negative t_prev is the data, where it is 1."""
    if not (0 <= t < schedule.num_steps and t_prev <= t):
        raise ConfigError(f"a step from t = {t} to {t_prev} needs 0 <= t < {schedule.num_steps} and t_prev <= t")
    alpha_bar = schedule.alpha_bar
    return alpha_bar[t], alpha_bar[t_prev] if t_prev >= 0 else torch.ones_like(alpha_bar[t])


def _needed(noise: Tensor | None) -> Tensor:
    if noise is None:
        raise ConfigError("this step is random: pass noise of the shape of x_t")
    return noise


def ddpm_step(
    schedule: NoiseSchedule,
    x_t: Tensor,
    eps: Tensor,
    t: int,
    noise: Tensor | None,
    *,
    variance: Literal["fixed_small", "fixed_large"] = "fixed_small",
    clip: bool = True,
    t_prev: int | None = None,
) -> tuple[Tensor, Tensor]:
    """One ancestral step from t to ``t_prev`` (t - 1 if None; negative is the data): (x_prev, x_0_pred).

    ``variance``: beta_tilde, the posterior's (fixed_small), or beta (fixed_large), both of the stride taken. ``clip``
    keeps x_0_pred in [-1, 1]. The step that arrives at the data is the mean: its noise may be None.
    """
    if variance not in ("fixed_small", "fixed_large"):
        raise nearest("variance", str(variance), ("fixed_small", "fixed_large"))
    s = t - 1 if t_prev is None else t_prev
    bar_t, bar_s = _levels(schedule, t, s)
    alpha = bar_t / bar_s
    beta = 1 - alpha
    x_0_pred = (x_t - (1 - bar_t).sqrt() * eps) / bar_t.sqrt()
    if clip:
        x_0_pred = x_0_pred.clamp(-1, 1)
    x_s = bar_s.sqrt() * beta / (1 - bar_t) * x_0_pred + alpha.sqrt() * (1 - bar_s) / (1 - bar_t) * x_t
    if s >= 0:
        var = (1 - bar_s) / (1 - bar_t) * beta if variance == "fixed_small" else beta
        x_s = x_s + var.clamp(min=_VARIANCE_FLOOR).sqrt() * _needed(noise)
    return x_s, x_0_pred


def ddim_timesteps(
    num_train_steps: int,
    steps: int,
    spacing: Literal["leading", "trailing", "linspace"] = "leading",
    offset: int = 0,
) -> list[int]:
    """The ``steps`` levels a short sampler visits, descending, out of 0..num_train_steps-1.

    leading: multiples of T // steps, plus ``offset``; trailing: T - 1 downwards by T / steps, rounded; linspace: evenly
    from T - 1 to 0, rounded (a single step is T - 1). Raises ConfigError when steps is not in 1..T or a level leaves
    0..T-1.
    """
    total = num_train_steps
    if not 1 <= steps <= total:
        raise ConfigError(f"sampling steps must lie in 1..{total} (the training steps), not {steps}")
    if spacing == "leading":
        levels = [k * (total // steps) + offset for k in reversed(range(steps))]
    elif spacing == "trailing":
        levels = [round(total - k * total / steps) - 1 for k in range(steps)]
    elif spacing == "linspace":
        levels = [round((total - 1) * (1 - k / max(steps - 1, 1))) for k in range(steps)]
    else:
        raise nearest("spacing", str(spacing), ("leading", "trailing", "linspace"))
    if offset and spacing != "leading":
        raise ConfigError(f"offset {offset} only applies to leading spacing, not to {spacing}")
    if levels[0] >= total or levels[-1] < 0:
        raise ConfigError(f"offset {offset} moves the levels to {levels[-1]}..{levels[0]}, outside 0..{total - 1}")
    return levels


def ddim_step(
    schedule: NoiseSchedule,
    x_t: Tensor,
    eps: Tensor,
    t: int,
    t_prev: int,
    noise: Tensor | None,
    *,
    eta: float = 0.0,
    clip: bool = True,
    clip_eps: bool = False,
) -> tuple[Tensor, Tensor]:
    """One DDIM step from t to ``t_prev`` (negative is the data): (x_prev, x_0_pred).

    std = eta sqrt(beta_tilde): eta 0 is deterministic (noise may be None), eta 1 has DDPM's posterior variance.
    ``clip`` keeps x_0_pred in [-1, 1]; the direction still uses the given eps, unless ``clip_eps`` derives it anew.
    """
    if not 0 <= eta <= 1:
        raise ConfigError(f"eta must lie in [0, 1] (0 DDIM, 1 ancestral), not {eta}")
    bar_t, bar_s = _levels(schedule, t, t_prev)
    x_0_pred = (x_t - (1 - bar_t).sqrt() * eps) / bar_t.sqrt()
    if clip:
        x_0_pred = x_0_pred.clamp(-1, 1)
    if clip_eps:
        eps = (x_t - bar_t.sqrt() * x_0_pred) / (1 - bar_t).sqrt()
    var = eta**2 * ((1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s))
    # Rounding can push the remainder just below zero at eta = 1.
    x_s = bar_s.sqrt() * x_0_pred + (1 - bar_s - var).clamp(min=0).sqrt() * eps
    if eta > 0 and t_prev >= 0:
        x_s = x_s + var.sqrt() * _needed(noise)
    return x_s, x_0_pred
