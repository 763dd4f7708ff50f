"""SPI-GAN: a neural ODE maps noise to a latent, a style generator jumps along the straight path (Jeon and Park 2022).

    i(u)  = u x_0 + (1 - u) x_T,    u in (0, 1],    x_T ~ N(0, sigma^2 I)                        (equation 2)
    h(u)  = o(x_T) + integral of r(h(t), t) dt from 0 to u                                       (equation 3)
    i'(u) = G(h(u)), the generated point of the path; G reads h(u), a constant c and noise s in every layer

    L_D = E softplus(-D(i(u), u)) + E softplus(D(i'(u), u)) + lazily gamma / 2 E ||grad_i D(i(u), u)||^2 at real i(u)
    L_G = E softplus(-D(i'(u), u))

u is drawn anew for every image of every step. The real i(u) and the fake's h(0) come from the same x_T. A sample is
G(h(1)): one evaluation of G, whatever the solver takes inside the small mapping network (told beside it).

The paper leaves open the sizes, the solver, how D is told u and all hyperparameters. Here D gets [sin, cos] of 1000 u
by projection, as StyleGAN2's conditional D its label; R1 is not multiplied by its interval, as in DDGAN.

Ours, off by default: ``path = "closed_form"``: G makes x_0 and the path is i'(u) = u G(h(u)) + (1 - u) x_T, so that
no capacity goes into imitating noise, and D(i'(u), u) sees G's work through it; ``jump``: with it G reads h(1) at every
u, the latent that samples are made from; ``loss = "relativistic"``, ``r2_gamma`` and ``shared_pass`` as in ddgan;
``energy_weight`` adds to L_G the energy distance between what G makes and what it is to make, over all pairs of the
batch: D sees late that G leaves out kinds of images, a distance between sets sees it at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trilemma.config import all_of, require, require_all
from trilemma.maths import adversarial
from trilemma.maths.noise import SeedNoise, great_circle
from trilemma.maths.schedules import cosine_decay
from trilemma.maths.scoring import energy_distance
from trilemma.maths.straight_path import draw_u, interpolate, prior_std
from trilemma.methods.base import Entrant, Learnt, Method, Tools, adam, learn_in_parts, set_learning_rate
from trilemma.networks.discriminators import shared_group
from trilemma.networks.embeddings import timestep_embedding
from trilemma.networks.mapping import MappingOptions, NODEMapping
from trilemma.networks.options import (
    CriticOptions,
    PointOptions,
    SynthesisOptions,
    build_critic,
    build_synthesis,
)
from trilemma.types import Batch, DataSpec, Sampler, SampleResult


@dataclass(frozen=True)
class SPIGANOptions:
    """Settings of an SPI-GAN; where the paper is silent, StyleGAN2's published ones for CIFAR-10."""

    path: Literal["generated", "closed_form"] = "generated"  # G makes i(u), as in the paper; or (ours) x_0
    jump: bool = False  # ours, closed_form: G reads h(1) at every u
    sde: Literal["vp", "ve"] | float = "vp"  # sigma^2 of x_T: vp 1, ve sigma_max^2, or a number
    sigma_max: float = 50.0  # of the VE SDE
    u_min: float = 0.0  # u is drawn from (u_min, 1]
    u_power: float = 1.0  # ours: below 1, more of the clean end of the path
    lr_g: float = 0.0025  # Adam's learning rate for G
    lr_mapping: float = 0.0025  # for the mapping network, whose weights are not scaled as G's are
    lr_d: float = 0.0025  # Adam's learning rate for D
    final_share: float = 1.0  # all fall to this share by a cosine over the budget; 1: constant
    warmup_steps: int = 0  # ours: linear rise of both learning rates
    adam_betas: tuple[float, ...] = (0.0, 0.99)  # moments, for all
    r1_gamma: float = 0.02  # weight of the gradient penalty at real i(u)
    lazy_reg: int = 16  # the penalty is applied at every so many steps
    loss: Literal["nonsaturating", "relativistic"] = "nonsaturating"  # the paper's, or ours
    r2_gamma: float = 0.0  # ours: weight of the gradient penalty at generated i(u)
    energy_weight: float = 0.0  # ours: weight of the energy distance between real and generated points
    shared_pass: bool = False  # ours: D and G learn from the same path and the same pass through G
    u_embedding: int = 64  # numbers that tell D of u
    mapping: MappingOptions = field(default_factory=MappingOptions)
    generator: SynthesisOptions = field(default_factory=SynthesisOptions)
    discriminator: CriticOptions = field(default_factory=CriticOptions)
    points: PointOptions = field(default_factory=PointOptions)

    def __post_init__(self) -> None:
        all_of(lambda: prior_std(self.sde, self.sigma_max), self._check)

    def _check(self) -> None:
        require_all(
            (0.0 <= self.u_min < 1.0, f"u_min must be in [0, 1), not {self.u_min}"),
            (0.0 <= self.final_share <= 1.0, f"final_share must be in [0, 1], not {self.final_share}"),
            (self.energy_weight >= 0.0, f"energy_weight must not be negative, not {self.energy_weight}"),
            (self.u_power > 0.0, f"u_power must be above 0, not {self.u_power}"),
            (self.lazy_reg >= 1, f"lazy_reg must be at least 1, not {self.lazy_reg}"),
            (self.u_embedding >= 4, f"u_embedding must be at least 4, not {self.u_embedding}"),
            (len(self.adam_betas) == 2, f"adam_betas must be two numbers, not {self.adam_betas}"),
            (not self.jump or self.path == "closed_form", 'jump needs path = "closed_form": G cannot tell u otherwise'),
        )


class Path(NamedTuple):
    """Points of the straight path: x_0, x_T, u and the real i(u)."""

    x_0: Tensor
    x_T: Tensor
    u: Tensor
    real: Tensor


class Made(NamedTuple):
    """Points of the path, the fakes among them that D judges, and what G made: the same, or x_0."""

    path: Path
    fake: Tensor
    images: Tensor


PAPER = {
    "path": "generated",
    "jump": False,
    "u_power": 1.0,
    "loss": "nonsaturating",
    "r2_gamma": 0.0,
    "energy_weight": 0.0,
}
"""The options that make a recipe's training the paper's."""


class SPIGAN(Method):
    """GAN along the straight path, one evaluation to sample."""

    name = "spigan"
    family = "denoising GAN"
    paper = "Jeon and Park 2022"
    Options = SPIGANOptions
    averaged = ("generator", "mapping")
    entrants = (Entrant("", PAPER), Entrant("-closed-form", {"path": "closed_form"}))
    options: SPIGANOptions

    def __init__(self, options: SPIGANOptions, spec: DataSpec) -> None:
        super().__init__(options, spec)
        self.mapping = NODEMapping(spec.shape, options.mapping)
        self.generator = build_synthesis(spec, options.generator, options.points, options.mapping.dim)
        self.discriminator = build_critic(spec, options.discriminator, options.points, options.u_embedding)
        self.sigma = prior_std(options.sde, options.sigma_max)
        self.steps_done = 0

    def title(self) -> str:
        return "SPI-GAN" if self.options.path == "generated" else "SPI-GAN, closed-form path"

    def networks(self) -> dict[str, nn.Module]:
        return {"mapping": self.mapping, "generator": self.generator, "discriminator": self.discriminator}

    def counted_networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator}

    def inner_solvers(self) -> dict[str, tuple[nn.Module, nn.Module]]:
        return {"mapping": (self.mapping, self.mapping.derivative)}

    def optimizers(self) -> dict[str, Optimizer]:
        rates, betas = self._rates(), self.options.adam_betas
        return {name: adam(network.parameters(), rates[name], betas) for name, network in self.networks().items()}

    def _rates(self) -> dict[str, float]:
        options = self.options
        return {"mapping": options.lr_mapping, "generator": options.lr_g, "discriminator": options.lr_d}

    # How it learns

    def step(self, batch: Batch, progress: float, tools: Tools) -> dict[str, Tensor]:
        options = self.options
        rise = min(1.0, (self.steps_done + 1) / max(1, options.warmup_steps))
        for name, lr in self._rates().items():
            decayed = cosine_decay(lr, options.final_share * lr, progress)
            set_learning_rate(tools.optimizers[name], rise * decayed)
        shared = None
        if options.shared_pass and tools.number(len(batch.x)) == 1:  # parts would all have to be held
            shared = self._make(batch.x, tools.networks["mapping"], tools.networks["generator"])
        losses = self._discriminator_step(batch.x, shared, tools)
        losses |= self._generator_step(batch.x, shared, tools)
        self.steps_done += 1
        return losses

    def _draw_path(self, x_0: Tensor) -> Path:
        x_T = self.sigma * torch.randn_like(x_0)
        u = draw_u(len(x_0), x_0.device, u_min=self.options.u_min, power=self.options.u_power)
        return Path(x_0, x_T, u, interpolate(x_0, x_T, u))

    def _make(self, x_0: Tensor, mapping: nn.Module, generator: nn.Module) -> Made:
        path = self._draw_path(x_0)
        return Made(path, *self._generate(path, mapping, generator))

    def _generate(self, path: Path, mapping: nn.Module, generator: nn.Module) -> tuple[Tensor, Tensor]:
        """i'(u), and what G made for it: the same, or x_0."""
        made: Tensor = generator(mapping(path.x_T, 1.0 if self.options.jump else path.u))
        return (made if self.options.path == "generated" else interpolate(made, path.x_T, path.u)), made

    def _judge(self, discriminator: nn.Module, i_u: Tensor, u: Tensor) -> Tensor:
        logits: Tensor = discriminator(i_u, timestep_embedding(1000.0 * u, self.options.u_embedding).to(i_u.dtype))
        return logits

    def _discriminator_step(self, x_0: Tensor, shared: Made | None, tools: Tools) -> dict[str, Tensor]:
        """``shared``: made of all of x_0; where it is None, it is made part by part."""

        def learn(part: slice) -> Learnt:
            with torch.no_grad():
                path, fake, _ = shared or self._make(x_0[part], self.mapping, self.generator)
            return self._discriminator_loss(path, fake.detach(), tools.networks["discriminator"])

        return learn_in_parts(len(x_0), learn, [tools.optimizers["discriminator"]], tools)

    def _discriminator_loss(self, path: Path, fake: Tensor, discriminator: nn.Module) -> Learnt:
        options = self.options
        due = self.steps_done % options.lazy_reg == 0
        return adversarial.discriminator_objective(
            partial(self._judge, discriminator),
            path.real,
            fake,
            path.u,
            group=shared_group(self.discriminator, len(fake)),
            relativistic=options.loss == "relativistic",
            r1_gamma=options.r1_gamma if due else 0.0,
            r2_gamma=options.r2_gamma if due else 0.0,
        )

    def _generator_step(self, x_0: Tensor, shared: Made | None, tools: Tools) -> dict[str, Tensor]:
        """``shared`` as for D."""

        def learn(part: slice) -> Learnt:
            networks = tools.networks["mapping"], tools.networks["generator"]
            return self._generator_loss(shared or self._make(x_0[part], *networks))

        return learn_in_parts(len(x_0), learn, [tools.optimizers[name] for name in ("mapping", "generator")], tools)

    def _generator_loss(self, made: Made) -> Learnt:
        options, (path, fake, images) = self.options, made
        # D's own parameters need no gradient here: it is the method's module that is called, not the prepared one.
        self.discriminator.requires_grad_(False)
        fake_logits = self._judge(self.discriminator, fake, path.u)
        if options.loss == "relativistic":
            real_logits = self._judge(self.discriminator, path.real.detach(), path.u)
            loss = adversarial.relativistic_generator_loss(real_logits, fake_logits)
        else:
            loss = adversarial.generator_loss(fake_logits)
        self.discriminator.requires_grad_(True)
        losses = {"g_loss": loss.detach()}
        if options.energy_weight > 0:
            # Points of the path share their noise one by one; the x_0 that G makes and the data's share nothing.
            if options.path == "generated":
                energy = energy_distance(images, path.real.detach(), paired=True)
            else:
                energy = energy_distance(images, path.x_0)
            loss, losses["energy"] = loss + options.energy_weight * energy, energy.detach()
        return loss, losses

    def extra_state(self) -> dict[str, Any]:
        return {"steps_done": self.steps_done}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.steps_done = int(state["steps_done"])

    # How it samples

    @torch.inference_mode()
    def sample(self, seeds: Sequence[int], sampler: Sampler | None = None, *, trajectory: bool = False) -> SampleResult:
        """G(h(1)); the trajectory is the path at u = 0, 0.2, ..., 1."""
        self.describe(sampler or Sampler())
        if trajectory:
            states = self.path(seeds, [i / 5 for i in range(6)])
            return SampleResult(states[-1], states)
        x_T, maps = self._noise(seeds)
        return SampleResult(self._point(x_T, 1.0, maps))

    @torch.inference_mode()
    def path(self, seeds: Sequence[int], us: Sequence[float]) -> Tensor:
        """i'(u) of every seed at each u of ``us`` in [0, 1] (the paper's Figure 3): (K, N, C, H, W).

        Raises:
            ConfigError: no u, or one outside [0, 1].
        """
        require(bool(us), "a path needs at least one u")
        outside = [u for u in us if not 0.0 <= u <= 1.0]
        require(not outside, f"u must be in [0, 1], not {(outside or [0.0])[0]:g}")
        x_T, maps = self._noise(seeds)
        return torch.stack([self._point(x_T, u, maps) for u in us])

    def _point(self, x_T: Tensor, u: float, maps: Sequence[Tensor]) -> Tensor:
        """i'(u); images end at -1 and 1, the noise along the path does not."""
        made: Tensor = self.generator(self.mapping(x_T, 1.0 if self.options.jump else u), maps)
        if self.options.path == "closed_form":
            return interpolate(self._bounded(made), x_T, u)
        return self._bounded(made) if u == 1.0 else made

    @torch.inference_mode()
    def walk(self, first: int, last: int, steps: int) -> Tensor:
        """In h(1), and on a great circle between the layers' noise."""
        x_T, maps = self._noise([first, last])
        h = self.mapping(x_T, 1.0)
        s = torch.linspace(0.0, 1.0, steps, device=self.device)
        maps = [great_circle(m[:1], m[1:], s) for m in maps]
        return self._bounded(self.generator(torch.lerp(h[:1], h[1:], s[:, None]), maps))

    has_latent = True

    @torch.inference_mode()
    def latent_path(self, seeds: Sequence[int], t: Tensor) -> Tensor:
        """On a great circle of x_T."""
        noise = SeedNoise(seeds, self.device)
        first, second = (self.sigma * noise.normal(self.spec.shape) for _ in range(2))
        maps = [noise.normal(shape) for shape in self.generator.noise_shapes]
        x_T = great_circle(first, second, t.to(self.device))
        made: Tensor = self.generator(self.mapping(x_T, 1.0), maps)
        return made

    def _noise(self, seeds: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """x_T, and the noise s of every layer of G."""
        noise = SeedNoise(seeds, self.device)
        x_T = self.sigma * noise.normal(self.spec.shape, "noise_T")  # of variance 1
        shapes = self.generator.noise_shapes
        return x_T, [noise.normal(shape, f"noise_{layer}") for layer, shape in enumerate(shapes)]

    def _bounded(self, x: Tensor) -> Tensor:
        return x.clamp(-1.0, 1.0) if self.spec.kind == "images" else x


METHOD = SPIGAN
