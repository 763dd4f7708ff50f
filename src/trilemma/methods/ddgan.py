"""Denoising Diffusion GAN: a conditional GAN takes a few large denoising steps (Xiao, Kreis and Vahdat 2022).

The forward process has T steps with large betas. The generator predicts x_0 from x_t and a latent z, and the step is
a draw from the Gaussian posterior around that prediction:

    p_theta(x_{t-1} | x_t) = integral of q(x_{t-1} | x_t, x_0 = G(x_t, z, t)) p(z) dz

    min_D  sum_t E_q(x_t) [ E_q(x_{t-1}|x_t) softplus(-D(x_{t-1}, x_t, t))
                            + E_p(x_{t-1}|x_t) softplus(D(x_{t-1}, x_t, t)) ]
    max_G  sum_t E_q(x_t) E_p(x_{t-1}|x_t) [ log sigmoid D(x_{t-1}, x_t, t) ]

The real pair comes from one chain: x_{t-1} ~ q(. | x_0), then x_t ~ q(. | x_{t-1}). In the code t counts from 0 and
is the index of the less noisy image, so ``x_next`` is the paper's x_t and ``x_t`` its x_{t-1}. T = 1 is a one-shot
GAN.

As in the reference, R1 is taken with respect to x_{t-1} alone, on real pairs, every ``lazy_reg`` steps and not
multiplied by that interval. Differs from the reference: the discriminator's step builds no graph through G (the same
gradients, less work), and the cosine follows the share of the budget spent in place of epochs.

Ours, off by default: ``loss = "relativistic"`` compares each fake with the real pair of the same x_t (R3GAN's pairing);
``r2_gamma`` penalises gradients at fakes too; ``auxiliary`` adds a regression on x_0 to the generator's loss, alone
for the first ``warm_share`` of the budget: squared error, or the energy score of two samples of G at the same x_t,
which is smallest for the true q(x_0 | x_t); ``shared_pass`` lets D and G learn from the same chain and the same pass
through G (but not where a batch is worked through in parts, whose passes would all have to be held);
``judge = "x_0"`` shows D the images x_0 and G(x_{t+1}, z, t), before the posterior's noise covers faults.
Where ``discriminator.conditional`` is false, D compares the distributions of x_0 alone and it is the energy score that
ties x_0 to x_{t+1} (a split known from semi-implicit denoising models, Xu et al. 2023). ``grouped_t`` lets D's
minibatch standard deviation show a G that ignores z at one t: among four different t it cannot. ``energy_share`` and
``t_odds`` spend the time where it is needed: fewer second samples, more of the noisy steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from trilemma.config import require, require_all
from trilemma.maths import adversarial
from trilemma.maths.gaussian import q_sample_pair, sample_posterior
from trilemma.maths.noise import SeedNoise
from trilemma.maths.schedules import DenoisingSchedule, cosine_decay, denoising_schedule
from trilemma.maths.scoring import energy_score
from trilemma.methods.base import Entrant, Learnt, Method, Tools, adam, learn_in_parts, set_learning_rate
from trilemma.networks.discriminators import shared_group, std_group
from trilemma.networks.options import (
    DiscriminatorOptions,
    LatentOptions,
    PointOptions,
    UNetOptions,
    build_denoiser,
    build_discriminator,
)
from trilemma.types import Batch, DataSpec, Sampler, SampleResult


@dataclass(frozen=True)
class DDGANOptions:
    """Settings of a denoising diffusion GAN; the defaults are the published CIFAR-10 ones."""

    num_timesteps: int = 4  # T; 1 is a one-shot GAN
    schedule: Literal["vp", "geometric"] = "vp"  # how the T steps divide the noise
    beta_min: float = 0.1  # of the VP SDE (or smallest variance of the geometric schedule)
    beta_max: float = 20.0  # of the VP SDE (or largest variance of the geometric schedule)
    lr_g: float = 1.6e-4  # Adam's learning rate for G
    lr_d: float = 1.25e-4  # Adam's learning rate for D
    final_lr: float = 1e-5  # both fall to this by a cosine over the budget
    adam_betas: tuple[float, ...] = (0.5, 0.9)  # moments, for both
    r1_gamma: float = 0.02  # weight of the gradient penalty at real pairs
    lazy_reg: int = 15  # the penalty is applied at every so many steps
    loss: Literal["nonsaturating", "relativistic"] = "nonsaturating"  # the paper's, or ours
    r2_gamma: float = 0.0  # ours: weight of the gradient penalty at fake pairs
    auxiliary: Literal["none", "mse", "energy"] = "none"  # ours: a regression on x_0 in G's loss
    auxiliary_weight: float = 1.0  # ours: its weight
    energy_share: float = 1.0  # ours: share of the batch that the energy score takes a second sample of
    final_auxiliary_weight: float = 1.0  # ours: reached linearly at the end of the budget
    warm_share: float = 0.0  # ours: share of the budget trained by the regression alone
    warmup_steps: int = 0  # ours: linear rise of both learning rates
    judge: Literal["x_t", "x_0"] = "x_t"  # what D tells apart: the less noisy image, or (ours) the clean one
    t_odds: float = 1.0  # ours: t + 1 is drawn this many times as often as t
    grouped_t: bool = False  # ours: images whose minibatch standard deviation D sees together share their t
    shared_pass: bool = False  # ours: D and G learn from the same chain and the same pass through G
    unet: UNetOptions = field(default_factory=UNetOptions)
    latent: LatentOptions = field(default_factory=LatentOptions)
    discriminator: DiscriminatorOptions = field(default_factory=DiscriminatorOptions)
    points: PointOptions = field(default_factory=PointOptions)

    def __post_init__(self) -> None:
        learns = self.auxiliary != "none" and self.auxiliary_weight > 0
        require_all(
            (self.num_timesteps >= 1, f"num_timesteps must be at least 1, not {self.num_timesteps}"),
            (self.lazy_reg >= 1, f"lazy_reg must be at least 1, not {self.lazy_reg}"),
            (len(self.adam_betas) == 2, f"adam_betas must be two numbers, not {self.adam_betas}"),
            (0.0 < self.energy_share <= 1.0, f"energy_share must be in (0, 1], not {self.energy_share}"),
            (self.t_odds > 0.0, f"t_odds must be above 0, not {self.t_odds}"),
            (0.0 <= self.warm_share < 1.0, f"warm_share must be in [0, 1), not {self.warm_share}"),
            (
                self.warm_share == 0.0 or learns,
                "warm_share needs an auxiliary loss: there would be nothing to learn from",
            ),
            (
                self.discriminator.conditional or self.auxiliary != "none",
                "discriminator.conditional = false needs an auxiliary loss: nothing else would tie x_0 to x_{t+1}",
            ),
        )


class Chain(NamedTuple):
    """Draws from one forward chain: x_0, the index t of the less noisy image, x_{t+1}, and the images D is to take for
    real: x_t, or the first of each x_0. The last ``pairs`` rows repeat the first ones' x_0, t and x_{t+1}."""

    x_0: Tensor
    t: Tensor
    x_next: Tensor
    real: Tensor
    pairs: int

    @property
    def judged(self) -> tuple[Tensor, Tensor]:
        """t and x_{t+1} of the images that D is to take for real."""
        n = len(self.real)
        return self.t[:n], self.x_next[:n]

    def logits(self, discriminator: nn.Module, images: Tensor) -> Tensor:
        """D's for as many images, real or fake, as it is to take for real."""
        logits: Tensor = discriminator(images[: len(self.real)], *self.judged)
        return logits


class Made(NamedTuple):
    """A chain, the fakes that D judges, and the x_0 they were drawn around."""

    chain: Chain
    fake: Tensor
    x_0_pred: Tensor


class DDGAN(Method):
    """Denoising diffusion GAN, any number of steps from 1 up."""

    name = "ddgan"
    family = "denoising GAN"
    paper = "Xiao et al. 2022"
    Options = DDGANOptions
    averaged = ("generator",)
    entrants = (Entrant(), Entrant("-one-shot", {"num_timesteps": 1}))
    options: DDGANOptions

    def __init__(self, options: DDGANOptions, spec: DataSpec) -> None:
        super().__init__(options, spec)
        self.generator = build_denoiser(spec, options.unet, options.points, options.latent, tanh=options.unet.tanh)
        self.discriminator = build_discriminator(spec, options.discriminator, options.points)
        self.schedule = denoising_schedule(options.num_timesteps, options.schedule, options.beta_min, options.beta_max)
        self.nz = options.points.nz if spec.kind == "points" else options.latent.nz
        self.steps_done = 0

    def title(self) -> str:
        return f"DDGAN, T = {self.options.num_timesteps}"

    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator}

    def optimizers(self) -> dict[str, Optimizer]:
        options = self.options
        return {
            "generator": adam(self.generator.parameters(), options.lr_g, options.adam_betas),
            "discriminator": adam(self.discriminator.parameters(), options.lr_d, options.adam_betas),
        }

    def step(self, batch: Batch, progress: float, tools: Tools) -> dict[str, Tensor]:
        options = self.options
        rise = min(1.0, (self.steps_done + 1) / max(1, options.warmup_steps))
        for name, lr in (("generator", options.lr_g), ("discriminator", options.lr_d)):
            set_learning_rate(tools.optimizers[name], rise * cosine_decay(lr, options.final_lr, progress))
        losses: dict[str, Tensor] = {}
        made = None
        if progress >= options.warm_share:
            if options.shared_pass and tools.number(len(batch.x)) == 1:  # parts would all have to be held
                made = self._make(tools.networks["generator"], batch.x)
            losses |= self._discriminator_step(batch.x, made, tools)
        losses |= self._generator_step(batch.x, made, progress, tools)
        self.steps_done += 1
        return losses

    def _schedule_on(self, device: torch.device) -> DenoisingSchedule:
        """The schedule, which stays where it was wanted last: moving it makes the host wait for the device."""
        self.schedule = self.schedule.to(device)
        return self.schedule

    def _draw_chain(self, x_0: Tensor) -> Chain:
        """One chain for each x_0; for the energy score x_{t+1} twice, with two x_t given it and x_0."""
        schedule = self._schedule_on(x_0.device)
        t = self._draw_t(len(x_0), x_0.device)
        noise_next, noise = torch.randn_like(x_0), torch.randn_like(x_0)
        x_t, x_next = q_sample_pair(schedule, x_0, t, noise_next, noise)
        real = x_0 if self.options.judge == "x_0" else x_t
        if self.options.auxiliary != "energy":
            return Chain(x_0, t, x_next, real, 0)
        n = max(1, round(self.options.energy_share * len(x_0)))
        # Of x_0 no second one: two copies would give real images away to D's minibatch standard deviation.
        if self.options.judge == "x_t":
            again = sample_posterior(schedule, x_0[:n], x_next[:n], t[:n], torch.randn_like(x_0[:n]))
            real = torch.cat([x_t, again])
        x_0, t, x_next = (torch.cat([x, x[:n]]) for x in (x_0, t, x_next))
        return Chain(x_0, t, x_next, real, n)

    def _draw_t(self, n: int, device: torch.device) -> Tensor:
        group = std_group(n) if self.options.grouped_t else 1
        num_timesteps, odds = self.options.num_timesteps, self.options.t_odds
        if odds == 1.0:
            return torch.randint(0, num_timesteps, (n // group,), device=device).repeat(group)
        weights = odds ** torch.arange(num_timesteps, device=device)
        return torch.multinomial(weights, n // group, replacement=True).repeat(group)

    def _make(self, generator: nn.Module, x_0: Tensor) -> Made:
        chain = self._draw_chain(x_0)
        return Made(chain, *self._denoise(generator, chain))

    def _denoise(self, generator: nn.Module, chain: Chain) -> tuple[Tensor, Tensor]:
        """The fake that D judges, and the x_0 it was drawn around."""
        z = torch.randn(len(chain.t), self.nz, device=chain.x_next.device)
        x_0_pred = generator(chain.x_next, chain.t, z)
        if self.options.judge == "x_0":
            return x_0_pred, x_0_pred
        noise = torch.randn_like(chain.x_next)
        schedule = self._schedule_on(chain.x_next.device)
        return sample_posterior(schedule, x_0_pred, chain.x_next, chain.t, noise), x_0_pred

    def _discriminator_step(self, x_0: Tensor, made: Made | None, tools: Tools) -> dict[str, Tensor]:
        """``made`` of all of x_0; where it is None, it is made part by part."""

        def learn(part: slice) -> Learnt:
            with torch.no_grad():
                chain, fake, _ = made or self._make(self.generator, x_0[part])
            return self._discriminator_loss(chain, fake.detach(), tools.networks["discriminator"])

        return learn_in_parts(len(x_0), learn, [tools.optimizers["discriminator"]], tools)

    def _discriminator_loss(self, chain: Chain, fake: Tensor, discriminator: nn.Module) -> Learnt:
        options = self.options
        due = self.steps_done % options.lazy_reg == 0
        return adversarial.discriminator_objective(
            discriminator,
            chain.real,
            fake[: len(chain.real)],
            *chain.judged,
            group=shared_group(self.discriminator, len(chain.real)),
            relativistic=options.loss == "relativistic",
            r1_gamma=options.r1_gamma if due else 0.0,
            r2_gamma=options.r2_gamma if due else 0.0,
        )

    def _generator_step(self, x_0: Tensor, made: Made | None, progress: float, tools: Tools) -> dict[str, Tensor]:
        """``made`` as for D."""

        def learn(part: slice) -> Learnt:
            return self._generator_loss(made or self._make(tools.networks["generator"], x_0[part]), progress)

        return learn_in_parts(len(x_0), learn, [tools.optimizers["generator"]], tools)

    def _generator_loss(self, made: Made, progress: float) -> Learnt:
        options, (chain, fake, x_0_pred) = self.options, made
        losses: dict[str, Tensor] = {}
        total = fake.new_zeros(())
        if progress >= options.warm_share:
            # D's own parameters need no gradient here: it is the method's module that is called, not the prepared one.
            self.discriminator.requires_grad_(False)
            fake_logits = chain.logits(self.discriminator, fake)
            if options.loss == "relativistic":
                real_logits = chain.logits(self.discriminator, chain.real)
                loss = adversarial.relativistic_generator_loss(real_logits, fake_logits)
            else:
                loss = adversarial.generator_loss(fake_logits)
            self.discriminator.requires_grad_(True)
            total, losses["g_loss"] = total + loss, loss.detach()
        if options.auxiliary != "none":
            error = self._auxiliary(chain, x_0_pred)
            weight = options.auxiliary_weight + progress * (options.final_auxiliary_weight - options.auxiliary_weight)
            total, losses["auxiliary"] = total + weight * error, error.detach()
        return total, losses

    def _auxiliary(self, chain: Chain, x_0_pred: Tensor) -> Tensor:
        if self.options.auxiliary == "mse":
            return F.mse_loss(x_0_pred, chain.x_0)
        n = chain.pairs
        return energy_score(x_0_pred[:n], x_0_pred[-n:], chain.x_0[:n])

    def extra_state(self) -> dict[str, Any]:
        return {"steps_done": self.steps_done}

    def load_extra_state(self, state: Any) -> None:
        self.steps_done = int(state["steps_done"])

    def describe(self, sampler: Sampler) -> str:
        steps = self.options.num_timesteps
        require(
            sampler.steps in (None, steps),
            f"this DDGAN was trained for {steps} steps, not {sampler.steps}: train another with that num_timesteps",
        )
        self.refuse(sampler, "steps")
        return f"{steps} step{'s' if steps > 1 else ''}"

    @torch.inference_mode()
    def sample(self, seeds: Sequence[int], sampler: Sampler | None = None, *, trajectory: bool = False) -> SampleResult:
        self.describe(sampler or Sampler())
        schedule = self._schedule_on(self.device)
        noise = SeedNoise(seeds, self.device)
        x = noise.normal(self.spec.shape, "x_T").contiguous(memory_format=torch.channels_last)
        states = [x]
        for step in reversed(range(self.options.num_timesteps)):
            t = torch.full(x.shape[:1], step, device=x.device)
            x_0 = self.generator(x, t, noise.normal((self.nz,), f"z_{step + 1}"))
            # The last step's posterior is x_0 itself: no noise is drawn for it.
            z = noise.normal(self.spec.shape, f"noise_{step + 1}") if step > 0 else torch.zeros_like(x)
            x = sample_posterior(schedule, x_0, x, t, z)
            states.append(x)
        return SampleResult(x, torch.stack(states) if trajectory else None)


METHOD = DDGAN
