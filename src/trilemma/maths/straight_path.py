"""The straight path between noise x_T and data x_0 of SPI-GAN (Jeon and Park 2022, section 3.2).

    i(u) = u x_0 + (1 - u) x_T,    u in (0, 1]        (equation 2)

u = 1 is the data and u = 0 the noise: against the direction of a diffusion's time. x_T ~ N(0, sigma^2 I), where sigma^2
goes with the forward SDE (section 3.1): 1 where it preserves the variance (VP), sigma_max^2 where it explodes (VE).

Ours: the paper draws u anew at every step without saying how. Here u = u_min + (1 - u_min) v^power, v uniform in
(0, 1]: uniform by default; power below 1 favours clean images (where u_min = 0, the median is 0.5^power), power above 1
noisy ones.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from trilemma.errors import ConfigError, nearest


def interpolate(x_0: Tensor, x_T: Tensor, u: Tensor | float) -> Tensor:
    """i(u): x_0 and x_T (N, C, H, W), u (N,) or one number in [0, 1] -> (N, C, H, W); both ends are exact.

    Raises ConfigError for shapes that do not fit and for a number outside [0, 1]; a tensor's values are not looked at.
    """
    if x_0.shape != x_T.shape:
        raise ConfigError(f"x_0 and x_T must have the same shape, not {tuple(x_0.shape)} and {tuple(x_T.shape)}")
    if isinstance(u, Tensor):
        if u.shape != x_0.shape[:1]:
            raise ConfigError(f"u must be one number or of shape {tuple(x_0.shape[:1])}, not {tuple(u.shape)}")
        u = u.to(x_0.dtype).view(-1, *(1,) * (x_0.ndim - 1))
    elif not 0 <= u <= 1:
        raise ConfigError(f"u must be in [0, 1], not {u}")
    return u * x_0 + (1 - u) * x_T


def draw_u(n: int, device: torch.device | str = "cpu", *, u_min: float = 0.0, power: float = 1.0) -> Tensor:
    """``n`` points of the path, float32 (n,), in (0, 1] and not below ``u_min``, from torch's global generator.

    Raises ConfigError unless n >= 1, 0 <= u_min < 1 and power > 0.
    """
    if n < 1 or not 0 <= u_min < 1 or not 0 < power < math.inf:
        raise ConfigError(f"u needs n >= 1, 0 <= u_min < 1 and power > 0, not {n}, {u_min} and {power}")
    v = 1 - torch.rand(n, device=device)  # rand is in [0, 1), and u = 0 would be noise alone
    # A high power underflows, and the sum rounds.
    return (u_min + (1 - u_min) * v.pow(power)).clamp(max(u_min, torch.finfo(v.dtype).tiny), 1.0)


def prior_std(sde: Literal["vp", "ve"] | float, sigma_max: float = 50.0) -> float:
    """sigma of x_T: 1 for "vp", ``sigma_max`` for "ve", the root of a number, which is sigma^2 itself.

    Raises ConfigError for another name and for a sigma that is not positive.
    """
    if isinstance(sde, str):
        sigmas = {"vp": 1.0, "ve": float(sigma_max)}
        if sde not in sigmas:
            raise nearest("SDE", sde, sigmas)
        sigma = sigmas[sde]
    else:
        sigma = math.sqrt(sde) if sde > 0 else 0.0
    if not 0 < sigma < math.inf:
        raise ConfigError(f"sigma of the noise must be positive: sde {sde!r} with sigma_max {sigma_max}")
    return sigma
