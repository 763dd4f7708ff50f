"""Diffusion-GAN: StyleGAN2 whose D sees all images through noise of adaptive strength (Wang et al. 2022).

    y = sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) noise_std eps,    t = 0 (half of all images) or from 1..T

    L_D = E softplus(-D(y_real, t)) + E softplus(D(y_fake, t)),    L_G = E softplus(-D(y_fake, t))

T follows what D thinks of real images: every 4 steps p <- p + sign(E sign D(y_real, t) - target) images / (1000 kimg)
in [0, 1] and T = T_min + p (T_max - T_min), with a new pool of times: "priority" (the later, the likelier) or
"uniform".
Networks, R1, path length penalty and sampling are StyleGAN2's.

The paper tells D of t by an embedding and leaves its form open: here [sin, cos] of t by projection, beside the label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trilemma.augment.controller import AdaController
from trilemma.augment.diffusion import DiffusionNoise, DiffusionNoiseOptions
from trilemma.config import all_of, require
from trilemma.methods.base import Entrant
from trilemma.methods.stylegan2 import StyleGAN2, StyleGANOptions
from trilemma.networks.embeddings import timestep_embedding
from trilemma.networks.options import build_critic


@dataclass(frozen=True)
class DiffusionGANOptions(StyleGANOptions):
    """Settings of a Diffusion-GAN: StyleGAN2's, and those published for the noise."""

    target: float = 0.6  # of E sign D on real images
    kimg: float = 100.0  # thousands of images in which p may go from 0 to 1
    interval: int = 4  # steps between adjustments
    t_embedding: int = 64  # numbers that tell D of t
    noise: DiffusionNoiseOptions = field(default_factory=DiffusionNoiseOptions)

    def __post_init__(self) -> None:
        least = f"t_embedding must be at least 4, not {self.t_embedding}"
        all_of(super().__post_init__, lambda: require(self.t_embedding >= 4, least))


class DiffusionGAN(StyleGAN2):
    """StyleGAN2 with diffused inputs of D."""

    name = "diffusion_gan"
    paper = "Wang et al. 2022"
    Options = DiffusionGANOptions
    entrants = (Entrant(),)
    options: DiffusionGANOptions  # type: ignore[assignment]

    def _build_discriminator(self) -> nn.Module:
        condition = self.classes + self.options.t_embedding
        return build_critic(self.spec, self.options.discriminator, self.options.points, condition)

    def _prepare_augmentation(self) -> None:
        options = self.options
        self.controller = AdaController(
            target=options.target, kimg=options.kimg, interval=options.interval, clamp_above=1.0
        )
        self.noise = DiffusionNoise(options.noise)

    def title(self) -> str:
        return "Diffusion-GAN"

    def judge(self, discriminator: nn.Module, images: Tensor, c: Tensor | None = None) -> Tensor:
        """D's logits (N, 1) of diffused images, given their times and labels."""
        y, t = self.noise.draw(images)
        told = timestep_embedding(t, self.options.t_embedding).to(y.dtype)
        logits: Tensor = discriminator(y, told if c is None else torch.cat((c, told), dim=1))
        return logits

    def adapt(self, real_logits: Tensor) -> dict[str, Tensor]:
        self.controller.update(real_logits)
        if (self.steps_done + 1) % self.options.interval == 0:
            self.noise.set_strength(self.controller.p)
        return {"T": real_logits.new_tensor(float(self.noise.T))}

    def extra_state(self) -> dict[str, Any]:
        return super().extra_state() | {"noise": self.noise.state()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        super().load_extra_state(state)
        self.noise.load(state["noise"])


METHOD = DiffusionGAN
