"""DDPM: a network predicts the noise in x_t; a thousand small steps, or fewer by DDIM, take it away (Ho et al. 2020).

    q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I),   beta_t linear from 1e-4 to 0.02, T = 1000
    L_simple     = E || eps - eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t) ||^2          (Eq. 14)

Sampling is ancestral (Algorithm 2) with either variance of section 3.2, or DDIM (Song et al. 2021a, Eq. 12) over the
same weights with any number of steps and eta in [0, 1].

Differs from the paper: the learning rate may fall by a cosine over the budget; betas and widths are options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from trilemma.config import require_all
from trilemma.errors import ConfigError
from trilemma.maths.gaussian import add_noise, ddim_step, ddim_timesteps, ddpm_step
from trilemma.maths.noise import SeedNoise
from trilemma.maths.schedules import NoiseSchedule, cosine_decay, linear_schedule
from trilemma.methods.base import Entrant, Learnt, Method, Tools, adam, learn_in_parts, set_learning_rate
from trilemma.networks.options import PointOptions, UNetOptions, build_denoiser
from trilemma.types import Batch, DataSpec, Sampler, SampleResult


@dataclass(frozen=True)
class DDPMOptions:
    """Settings of a DDPM; the defaults are the published CIFAR-10 ones."""

    timesteps: int = 1000  # T
    beta_start: float = 1e-4  # beta_1
    beta_end: float = 0.02  # beta_T
    variance: Literal["fixed_small", "fixed_large"] = "fixed_large"  # of the ancestral sampler
    clip: bool = True  # clamp the predicted x_0 to [-1, 1] while sampling
    learning_rate: float = 2e-4  # of Adam
    final_learning_rate: float = 2e-4  # reached by a cosine at the end of the budget; equal: constant
    warmup_steps: int = 5000  # linear rise of the learning rate
    adam_betas: tuple[float, ...] = (0.9, 0.999)  # moments
    weight_decay: float = 0.0  # above 0: AdamW
    clip_gradient: float = 1.0  # largest norm of the gradient; 0: no limit
    unet: UNetOptions = field(default_factory=UNetOptions)
    points: PointOptions = field(default_factory=PointOptions)

    def __post_init__(self) -> None:
        require_all(
            (self.timesteps >= 1, f"timesteps must be at least 1, not {self.timesteps}"),
            (len(self.adam_betas) == 2, f"adam_betas must be two numbers, not {self.adam_betas}"),
            (self.learning_rate > 0, f"learning_rate must be positive, not {self.learning_rate}"),
        )


class DDPM(Method):
    """Noise prediction with ancestral and DDIM sampling."""

    name = "ddpm"
    family = "diffusion"
    paper = "Ho et al. 2020"
    Options = DDPMOptions
    averaged = ("denoiser",)
    entrants = (Entrant(samplers=(Sampler(), Sampler(steps=50))),)
    options: DDPMOptions

    def __init__(self, options: DDPMOptions, spec: DataSpec) -> None:
        super().__init__(options, spec)
        # The network predicts unbounded noise, so tanh is off whatever the options say; points are never clipped.
        self.denoiser = build_denoiser(spec, options.unet, options.points, None, tanh=False)
        self.schedule = linear_schedule(options.timesteps, options.beta_start, options.beta_end)
        self.clip = options.clip and spec.kind == "images"
        self.steps_done = 0

    def title(self) -> str:
        return "DDPM"

    def networks(self) -> dict[str, nn.Module]:
        return {"denoiser": self.denoiser}

    def optimizers(self) -> dict[str, Optimizer]:
        options = self.options
        weights = self.denoiser.parameters()
        made = adam(weights, options.learning_rate, options.adam_betas, weight_decay=options.weight_decay)
        return {"denoiser": made}

    def step(self, batch: Batch, progress: float, tools: Tools) -> dict[str, Tensor]:
        options, optimizer = self.options, tools.optimizers["denoiser"]
        warm = min(1.0, (self.steps_done + 1) / max(1, options.warmup_steps))
        set_learning_rate(optimizer, warm * cosine_decay(options.learning_rate, options.final_learning_rate, progress))

        x_0 = batch.x
        t, eps = self._draw(x_0)
        x_t = add_noise(self._schedule_on(x_0.device), x_0, t, eps)

        def learn(part: slice) -> Learnt:
            loss = F.mse_loss(tools.networks["denoiser"](x_t[part], t[part]), eps[part])
            return loss, {"loss": loss.detach()}

        def clip() -> None:
            if options.clip_gradient > 0:
                tools.clip(self.denoiser.parameters(), options.clip_gradient)

        losses = learn_in_parts(len(x_0), learn, [optimizer], tools, clip)
        self.steps_done += 1
        return losses

    def _schedule_on(self, device: torch.device) -> NoiseSchedule:
        """The schedule, which stays where it was wanted last: moving it makes the host wait for the device."""
        self.schedule = self.schedule.to(device)
        return self.schedule

    def _draw(self, x_0: Tensor) -> tuple[Tensor, Tensor]:
        """A time t (N,) and noise like x_0 for each image."""
        return torch.randint(0, self.options.timesteps, (len(x_0),), device=x_0.device), torch.randn_like(x_0)

    def extra_state(self) -> dict[str, Any]:
        return {"steps_done": self.steps_done}

    def load_extra_state(self, state: Any) -> None:
        self.steps_done = int(state["steps_done"])

    def describe(self, sampler: Sampler) -> str:
        self.refuse(sampler, "steps", "eta", "variance")
        if sampler.steps is None:
            if sampler.eta is not None:
                raise ConfigError("eta belongs to DDIM: give --steps as well")
            return f"ancestral, {self.options.timesteps} steps"
        most = self.options.timesteps
        require_all(
            (1 <= sampler.steps <= most, f"steps must be from 1 to {most}, not {sampler.steps}"),
            (sampler.variance is None, "variance belongs to the ancestral sampler: leave out --variance or --steps"),
            (0.0 <= (sampler.eta or 0.0) <= 1.0, f"eta must be in [0, 1], not {sampler.eta}"),
        )
        return f"DDIM, {sampler.steps} steps" + (f", eta {sampler.eta:g}" if sampler.eta else "")

    def tag(self, sampler: Sampler) -> str:
        if sampler.steps is None:
            return f"ancestral-{sampler.variance}" if sampler.variance else "default"
        return f"ddim{sampler.steps}" + (f"-eta{sampler.eta:g}" if sampler.eta else "")

    def preview(self) -> Sampler:
        return Sampler(steps=min(25, self.options.timesteps))

    @torch.inference_mode()
    def sample(self, seeds: Sequence[int], sampler: Sampler | None = None, *, trajectory: bool = False) -> SampleResult:
        sampler = sampler or Sampler()
        self.describe(sampler)
        noise = SeedNoise(seeds, self.device)
        x = noise.normal(self.spec.shape, "x_T").contiguous(memory_format=torch.channels_last)
        states = [x]
        chain = self._ancestral if sampler.steps is None else self._ddim
        for state in chain(x, noise, sampler):
            states = [*states, state] if trajectory else [state]
        return SampleResult(states[-1], torch.stack(_spread(states)) if trajectory else None)

    def _ancestral(self, x: Tensor, noise: SeedNoise, sampler: Sampler) -> Any:
        """Algorithm 2: x_{t-1} = posterior mean under the predicted x_0, plus sigma_t z."""
        schedule = self._schedule_on(x.device)
        variance = sampler.variance or self.options.variance
        for t in reversed(range(self.options.timesteps)):
            eps = self.denoiser(x, torch.full(x.shape[:1], t, device=x.device))
            z = noise.normal(self.spec.shape, f"noise_{t + 1}") if t > 0 else torch.zeros_like(x)
            x, _ = ddpm_step(schedule, x, eps, t, z, variance=variance, clip=self.clip)
            yield x

    def _ddim(self, x: Tensor, noise: SeedNoise, sampler: Sampler) -> Any:
        """Song et al. 2021a, Eq. 12; eta = 0 is deterministic."""
        schedule = self._schedule_on(x.device)
        eta = sampler.eta or 0.0
        timesteps = ddim_timesteps(self.options.timesteps, cast(int, sampler.steps))
        for t, t_prev in zip(timesteps, [*timesteps[1:], -1], strict=True):
            eps = self.denoiser(x, torch.full(x.shape[:1], t, device=x.device))
            z = noise.normal(self.spec.shape, f"noise_{t + 1}") if eta > 0 else torch.zeros_like(x)
            x, _ = ddim_step(schedule, x, eps, t, t_prev, z, eta=eta, clip=self.clip)
            yield x


def _spread(states: list[Tensor], most: int = 11) -> list[Tensor]:
    """At most ``most`` states, evenly spread, the first and the last among them."""
    if len(states) <= most:
        return states
    return [states[round(i * (len(states) - 1) / (most - 1))] for i in range(most)]


METHOD = DDPM
