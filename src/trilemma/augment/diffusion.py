"""Diffusion-GAN's noise (Wang et al. 2022, "Diffusion-GAN: Training GANs with Diffusion").

Real and generated images are diffused alike before the discriminator sees them, as far as strength p allows:

    T = t_min + round(p (t_max - t_min)), half to even, within t_min..t_max
    y = sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) noise_std eps,    eps ~ N(0, I);    t = 0 is x itself

T betas run linearly from beta_start to beta_end, whatever T is: a shorter chain is a steeper one. A pool of 64 times is
drawn whenever the strength is set: 32 of 1..T, and 32 zeros, so that half of all images stay clean. Their weights are
proportional to t - 1 ("priority", which favours the times added last; t = 1 is never drawn) or equal ("uniform"). A
batch draws from the pool with replacement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from trilemma.config import require_all
from trilemma.errors import ConfigError, nearest
from trilemma.maths.schedules import linear_schedule

POOL = 64  # times a batch draws from
_NOISY = POOL // 2  # the rest is 0

Distribution = Literal["priority", "uniform"]


@dataclass(frozen=True)
class DiffusionNoiseOptions:
    """The chain whose noise is added, and which of its times are favoured."""

    t_min: int = 10  # steps of the chain at strength 0
    t_max: int = 1000  # steps of the chain at strength 1
    beta_start: float = 1e-4  # variance added by the first step
    beta_end: float = 0.02  # variance added by the last step
    noise_std: float = 0.05  # of the noise, for images in [-1, 1]
    distribution: Distribution = "priority"  # of the times: priority grows with t, uniform does not

    def __post_init__(self) -> None:
        least = 2 if self.distribution == "priority" else 1  # the weight of t = 1 is 0
        if self.distribution not in get_args(Distribution):
            raise nearest("distribution", str(self.distribution), get_args(Distribution))
        require_all(
            (least <= self.t_min, f"t_min must be at least {least} ({self.distribution}), not {self.t_min}"),
            (self.t_min <= self.t_max, f"t_max must be at least t_min, {self.t_min}, not {self.t_max}"),
            (0 < self.noise_std < math.inf, f"noise_std must be positive, not {self.noise_std}"),
        )
        linear_schedule(self.t_max, self.beta_start, self.beta_end)  # refuses betas; shorter chains keep more of x


def num_steps(p: float, t_min: int, t_max: int) -> int:
    """T at strength p. Raises ConfigError for a p that is negative or not finite."""
    if not 0 <= p < math.inf:
        raise ConfigError(f"strength p must be a number of at least 0, not {p}")
    return min(max(t_min + round(p * (t_max - t_min)), t_min), t_max)


def time_weights(T: int, distribution: Distribution) -> Tensor:
    """The probability of each t = 1..T: (T,) float64. Raises ConfigError for a T without times to draw."""
    if distribution not in get_args(Distribution):
        raise nearest("distribution", str(distribution), get_args(Distribution))
    priority = distribution == "priority"
    if T < 1 + priority:
        raise ConfigError(f"{distribution} times need T of at least {1 + priority}, not {T}")
    t = torch.arange(1, T + 1, dtype=torch.float64)
    weights = t - 1 if priority else torch.ones_like(t)
    return weights / weights.sum()


def pool(T: int, distribution: Distribution, uniforms: Tensor) -> Tensor:
    """Times by inverting their distribution function: ``uniforms`` (n,) in [0, 1) -> int64 (n,) in 1..T.

    Raises ConfigError for a T without times to draw.
    """
    reached = time_weights(T, distribution).cumsum(0)
    reached = reached / reached[-1]  # ends at 1 exactly, so that no time beyond T is drawn
    return torch.searchsorted(reached, uniforms.double(), right=True) + 1


class DiffusionNoise:
    """Diffuses images by times from a pool; everything random comes from torch's global generator.

    Attributes: ``p`` the strength, ``T`` the steps of the chain, ``times`` the pool, int64 (64,).
    """

    def __init__(self, options: DiffusionNoiseOptions, p: float = 0.0) -> None:
        """Starts at strength ``p``; draws a pool. Raises ConfigError for a p that is negative or not finite."""
        self.options = options
        self.set_strength(p)

    def set_strength(self, p: float) -> None:
        """Make the chain for strength p and draw a new pool, also where p is what it was. Raises as ``num_steps``."""
        self._set_chain(p)
        uniforms = torch.rand(_NOISY, dtype=torch.float64)
        drawn = pool(self.T, self.options.distribution, uniforms)
        self.times = torch.cat((drawn, torch.zeros(POOL - _NOISY, dtype=torch.int64)))

    def _set_chain(self, p: float) -> None:
        options = self.options
        self.T = num_steps(p, options.t_min, options.t_max)
        self.p = float(p)
        alpha_bar = linear_schedule(self.T, options.beta_start, options.beta_end).alpha_bar
        alpha_bar = torch.cat((torch.ones(1), alpha_bar))
        self._signal = alpha_bar.sqrt()  # (T+1,)
        self._noise = (1 - alpha_bar).sqrt()  # (T+1,)

    @property
    def signal(self) -> Tensor:
        """sqrt(alpha_bar_t) for t = 0..T: float32 (T+1,)."""
        return self._signal

    @property
    def noise(self) -> Tensor:
        """sqrt(1 - alpha_bar_t) for t = 0..T, without noise_std: float32 (T+1,)."""
        return self._noise

    def diffuse(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """y at times t (N,) in 0..T, from x and eps, both (N, C, H, W). Where t = 0 it is x, exactly."""
        if self._signal.device != x.device:
            self._signal, self._noise = self._signal.to(x.device), self._noise.to(x.device)
        shape = (-1, *(1,) * (x.ndim - 1))
        noise = self.options.noise_std * self._noise[t]
        return self._signal[t].to(x.dtype).view(shape) * x + noise.to(x.dtype).view(shape) * eps

    def draw_times(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """``n`` times from the pool, with replacement: int64 (n,)."""
        return self.times[torch.randint(0, POOL, (n,))].to(device)

    def draw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Diffuse x (N, C, H, W), each image by a time of its own: (y like x, t int64 (N,))."""
        t = self.draw_times(len(x), x.device)
        return self.diffuse(x, t, torch.randn_like(x)), t

    def state(self) -> dict[str, Any]:
        """What a resumed training needs, as plain numbers."""
        return {"p": self.p, "T": self.T, "pool": self.times.tolist()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state`` gave. Raises ConfigError for a state that these options cannot have."""
        p, T, times = float(state["p"]), int(state["T"]), torch.tensor(state["pool"], dtype=torch.int64)
        if num_steps(p, self.options.t_min, self.options.t_max) != T:
            raise ConfigError(f"stored T = {T} at strength {p} is of other t_min and t_max than the options give")
        if times.shape != (POOL,) or not 0 <= int(times.min()) <= int(times.max()) <= T:
            raise ConfigError(f"stored pool must hold {POOL} times in 0..{T}")
        self._set_chain(p)
        self.times = times
