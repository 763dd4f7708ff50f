"""StyleGAN2: a style-based generator against a convolutional D; plain, ADA or DiffAugment (Karras et al. 2020).

With w = mapping(z), z ~ N(0, I), images G(w) and A the augmentation (the identity where there is none)

    L_G = E softplus(-D(A(G(w)))),    L_D = E softplus(-D(A(x))) + E softplus(D(A(G(w))))
    every 16 steps:   16 gamma / 2 E ||grad_x D(A(x))||^2                                  (R1, appendix B)
    every 4 steps:    4 weight E (||J_w^T y|| - a)^2                                       (equation 4)

and Adam's rate and moments take the extra steps into account: k / (k + 1) of both (Karras et al. 2020, appendix B).
With probability ``style_mixing`` the layers from a random one on get the w of a second z. ADA (Karras et al. 2020a)
holds E sign D(A(x)) at a target by the strength p of A; DiffAugment (Zhao et al. 2020) has a fixed A.

Differs from the published code: labels of generated images are the batch's, not drawn anew; samples are cut off at
-1 and 1. Ours, off by default: ``shared_pass`` (D learns from the images that G has just been judged by) and a
cosine decay of the learning rates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from trilemma.augment.ada import AdaptiveAugment, preset
from trilemma.augment.controller import AdaController
from trilemma.augment.diffaugment import POLICY, diffaugment
from trilemma.config import all_of, require, require_all
from trilemma.errors import nearest
from trilemma.maths import adversarial
from trilemma.maths.noise import SeedNoise, great_circle
from trilemma.maths.schedules import cosine_decay
from trilemma.methods.base import Entrant, Learnt, Method, Tools, adam, learn_in_parts, set_learning_rate
from trilemma.networks.discriminators import shared_group
from trilemma.networks.options import (
    CriticOptions,
    PointOptions,
    StyleMappingOptions,
    SynthesisOptions,
    build_critic,
    build_synthesis,
)
from trilemma.networks.stylegan2 import StyleGenerator, StyleMapping
from trilemma.types import Batch, DataSpec, Sampler, SampleResult


@dataclass(frozen=True)
class AdaControlOptions:
    """Adaptive discriminator augmentation (Karras et al. 2020a)."""

    preset: str = "bgc"  # which transforms: blit, geom, color, filter, noise, cutout, or initials: bg to bgcfnc
    target: float = 0.6  # of E sign D(x) on real images
    kimg: float = 500.0  # thousands of images in which p may go from 0 to 1
    interval: int = 4  # steps between adjustments

    def __post_init__(self) -> None:
        # Refuses an unknown name.
        preset(self.preset)


@dataclass(frozen=True)
class StyleGANOptions:
    """What all GANs of these networks share; the defaults are those published for 256 pixels (with ADA, "paper256")."""

    lr_g: float = 0.0025  # Adam's learning rate for G
    lr_d: float = 0.0025  # Adam's learning rate for D
    final_share: float = 1.0  # both fall to this share by a cosine over the budget; 1: constant
    warmup_steps: int = 0  # ours: linear rise of both learning rates
    adam_betas: tuple[float, ...] = (0.0, 0.99)  # moments, for both
    r1_gamma: float = 1.0  # weight of the gradient penalty at real images
    lazy_reg: int = 16  # the penalty is applied at every so many steps, as many times as strong
    path_weight: float = 2.0  # weight of the path length penalty
    path_every: int = 4  # the same, at every so many steps
    path_decay: float = 0.01  # of the running mean of path lengths
    path_batch_shrink: int = 2  # a smaller batch for it
    style_mixing: float = 0.9  # probability that two latents share an image
    conditional: bool = False  # G and D are told the labels of the data
    shared_pass: bool = False  # ours: D learns from the images that G was judged by
    mapping: StyleMappingOptions = field(default_factory=StyleMappingOptions)
    generator: SynthesisOptions = field(default_factory=SynthesisOptions)
    discriminator: CriticOptions = field(default_factory=CriticOptions)
    points: PointOptions = field(default_factory=PointOptions)

    def __post_init__(self) -> None:
        require_all(
            (self.lazy_reg >= 1, f"lazy_reg must be at least 1, not {self.lazy_reg}"),
            (self.path_every >= 1, f"path_every must be at least 1, not {self.path_every}"),
            (self.path_batch_shrink >= 1, f"path_batch_shrink must be at least 1, not {self.path_batch_shrink}"),
            (0.0 <= self.final_share <= 1.0, f"final_share must be in [0, 1], not {self.final_share}"),
            (0.0 <= self.style_mixing <= 1.0, f"style_mixing must be in [0, 1], not {self.style_mixing}"),
            (len(self.adam_betas) == 2, f"adam_betas must be two numbers, not {self.adam_betas}"),
        )


@dataclass(frozen=True)
class StyleGAN2Options(StyleGANOptions):
    """Settings of a StyleGAN2."""

    augment: Literal["none", "ada", "diffaugment"] = "none"  # of what D is shown
    policy: tuple[str, ...] = POLICY  # diffaugment: what is done
    ada: AdaControlOptions = field(default_factory=AdaControlOptions)

    def __post_init__(self) -> None:
        unknown = [name for name in self.policy if name not in POLICY]
        all_of(
            super().__post_init__,
            lambda: require_all(*((False, str(nearest("augmentation in policy", name, POLICY))) for name in unknown)),
        )


class Draw(NamedTuple):
    """What an image is made from: z (N, z_dim), labels (N, classes) or None, and a second z with the layer from which
    it takes over."""

    z: Tensor
    c: Tensor | None
    z_mixed: Tensor | None = None
    cutoff: int = 0


def _of(labels: Tensor | None, part: slice) -> Tensor | None:
    return None if labels is None else labels[part]


class StyleGAN2(Method):
    """Style-based GAN."""

    name = "stylegan2"
    family = "GAN"
    paper = "Karras et al. 2020"
    Options: ClassVar[type[StyleGANOptions]] = StyleGAN2Options
    averaged = ("generator",)
    entrants: ClassVar[tuple[Entrant, ...]] = (
        Entrant(),
        Entrant("-ada", {"augment": "ada"}),
        Entrant("-diffaugment", {"augment": "diffaugment"}),
    )
    options: StyleGAN2Options

    def __init__(self, options: StyleGAN2Options, spec: DataSpec) -> None:
        super().__init__(options, spec)
        self.classes = spec.classes if options.conditional else 0
        require(
            not options.conditional or spec.classes > 1,
            "conditional = true needs data with labels: put each class into a folder of its own",
        )
        latent = options.mapping
        self.generator = StyleGenerator(
            StyleMapping(
                latent.z_dim, latent.w_dim, classes=self.classes, layers=latent.layers, lr_scale=latent.lr_scale
            ),
            build_synthesis(spec, options.generator, options.points, latent.w_dim),
        )
        self.discriminator = self._build_discriminator()
        self.path_mean = torch.zeros(())
        self.steps_done = 0
        self._prepare_augmentation()

    def _build_discriminator(self) -> nn.Module:
        return build_critic(self.spec, self.options.discriminator, self.options.points, self.classes)

    def _prepare_augmentation(self) -> None:
        require(
            self.options.augment == "none" or self.spec.kind == "images",
            f"augment = {self.options.augment!r} is for images, not for points",
        )
        ada = self.options.ada
        self.augmentation = AdaptiveAugment(ada.preset) if self.options.augment == "ada" else None
        self.controller = AdaController(target=ada.target, kimg=ada.kimg, interval=ada.interval)

    def title(self) -> str:
        return {"none": "StyleGAN2", "ada": "StyleGAN2, ADA", "diffaugment": "StyleGAN2, DiffAugment"}[
            self.options.augment
        ]

    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator}

    def optimizers(self) -> dict[str, Optimizer]:
        options = self.options
        made: dict[str, Optimizer] = {}
        for name, lr, every in (
            ("generator", options.lr_g, options.path_every),
            ("discriminator", options.lr_d, options.lazy_reg),
        ):
            share = every / (every + 1)
            betas = [beta**share for beta in options.adam_betas]
            made[name] = adam(self.networks()[name].parameters(), share * lr, betas)
        return made

    # How it learns

    def step(self, batch: Batch, progress: float, tools: Tools) -> dict[str, Tensor]:
        options = self.options
        self._set_rates(progress, tools)
        x, c = batch.x, self._one_hot(batch.labels)
        n = len(x)
        fakes: list[Tensor] = []  # for D, where it learns from the same pass through G

        def deceive(part: slice) -> Learnt:
            labels = _of(c, part)
            fake = self._generate(self._draw(part.stop - part.start, labels), tools.networks["generator"])
            fakes.append(fake.detach())
            loss = adversarial.generator_loss(self.judge(self.discriminator, fake, labels))
            return loss, {"g_loss": loss.detach()}

        def even_out(part: slice) -> Learnt:
            draw = self._draw(part.stop - part.start, _of(c, part))
            penalty = self.path_penalty(draw, torch.randn_like(x[part]), tools)
            return options.path_weight * options.path_every * penalty, {"path": penalty.detach()}

        self.discriminator.requires_grad_(False)
        losses = learn_in_parts(n, deceive, [tools.optimizers["generator"]], tools)
        if options.path_weight > 0 and self.steps_done % options.path_every == 0:
            few = max(1, n // options.path_batch_shrink)
            losses |= learn_in_parts(few, even_out, [tools.optimizers["generator"]], tools)
        self.discriminator.requires_grad_(True)

        discriminator = tools.networks["discriminator"]
        judge, seen = partial(self.judge, discriminator), list[Tensor]()

        def tell_apart(part: slice) -> Learnt:
            labels, count = _of(c, part), part.stop - part.start
            if options.shared_pass:
                fake = fakes.pop(0)
            else:
                with torch.no_grad():
                    fake = self._generate(self._draw(count, labels), self.generator)
            told, group = () if labels is None else (labels,), shared_group(self.discriminator, count)
            real_logits, fake_logits = adversarial.logits_of_both(judge, x[part], fake, *told, group=group)
            seen.append(real_logits.detach())
            loss = adversarial.discriminator_loss(real_logits, fake_logits)
            return loss, {"d_loss": loss.detach()}

        def stay_flat(part: slice) -> Learnt:
            real = x[part].detach().requires_grad_(True)
            penalty = adversarial.gradient_penalty(judge(real, _of(c, part)), real, options.r1_gamma)
            return options.lazy_reg * penalty, {"r1": penalty.detach()}

        losses |= learn_in_parts(n, tell_apart, [tools.optimizers["discriminator"]], tools)
        if options.r1_gamma > 0 and self.steps_done % options.lazy_reg == 0:
            losses |= learn_in_parts(n, stay_flat, [tools.optimizers["discriminator"]], tools)

        losses |= self.adapt(tools.together(torch.cat(seen)))
        if (average := self.generator.mapping.w_avg) is not None:  # of the latents of all processes
            average.copy_(tools.together(average[None]).mean(dim=0))
        self.steps_done += 1
        return losses

    def judge(self, discriminator: nn.Module, images: Tensor, c: Tensor | None = None) -> Tensor:
        """D's logits (N, 1) of augmented images, real or generated."""
        if self.augmentation is not None:
            images = self.augmentation(images, self.controller.p)
        elif self.options.augment == "diffaugment":
            images = diffaugment(images, self.options.policy)
        logits: Tensor = discriminator(images, c)
        return logits

    def adapt(self, real_logits: Tensor) -> dict[str, Tensor]:
        """Let the augmentation's strength follow what D thinks of real images; what there is to tell of it."""
        if self.augmentation is None:
            return {}
        self.controller.update(real_logits)
        return {"p": real_logits.new_tensor(self.controller.p)}

    def path_penalty(self, draw: Draw, y: Tensor, tools: Tools) -> Tensor:
        """R_path of the paper's equation 4; the running mean counts this batch already, and gradients pass through.

        Each process is held to its own, and goes on from the mean of all; each part of a batch from the part before.
        """
        images, ws = self._generate(draw, tools.networks["generator"], with_ws=True)
        lengths = adversarial.path_lengths(images, ws, y)
        mean = self.path_mean.to(lengths).lerp(lengths.mean(), self.options.path_decay)
        self.path_mean = tools.together(mean.detach()[None]).mean()
        return (lengths - mean).square().mean()

    def _generate(self, draw: Draw, generator: nn.Module, *, with_ws: bool = False) -> Any:
        return generator(draw.z, draw.c, z_mixed=draw.z_mixed, mixed_from=draw.cutoff, with_ws=with_ws)

    def _draw(self, n: int, c: Tensor | None) -> Draw:
        """Latents for n images, sometimes two an image."""
        device, layers = self.device, self.generator.synthesis.num_ws
        z = torch.randn(n, self.options.mapping.z_dim, device=device)
        if self.options.style_mixing == 0.0 or layers < 2 or torch.rand(()) >= self.options.style_mixing:
            return Draw(z, c)
        return Draw(z, c, torch.randn_like(z), int(torch.randint(1, layers, ())))

    def _set_rates(self, progress: float, tools: Tools) -> None:
        options = self.options
        rise = min(1.0, (self.steps_done + 1) / max(1, options.warmup_steps))
        for name, lr, every in (
            ("generator", options.lr_g, options.path_every),
            ("discriminator", options.lr_d, options.lazy_reg),
        ):
            decayed = cosine_decay(lr, options.final_share * lr, progress)
            set_learning_rate(tools.optimizers[name], rise * every / (every + 1) * decayed)

    def _one_hot(self, labels: Tensor | None) -> Tensor | None:
        if not self.classes:
            return None
        require(labels is not None, "conditional = true, but the batch has no labels")
        return F.one_hot(cast(Tensor, labels), self.classes).float()

    def extra_state(self) -> dict[str, Any]:
        return {
            "steps_done": self.steps_done,
            "path_mean": float(self.path_mean),
            "controller": self.controller.state(),
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.steps_done = int(state["steps_done"])
        self.path_mean = torch.tensor(float(state["path_mean"]))
        self.controller.load(state["controller"])

    # How it samples

    def describe(self, sampler: Sampler) -> str:
        self.refuse(sampler, "truncation", "label")
        label, psi = sampler.label, sampler.truncation
        require_all(
            (
                label is None or 0 <= label < self.classes,
                f"label must be from 0 to {self.classes - 1}, not {label}"
                if self.classes
                else f"label {label}: this model was trained without labels",
            ),
            (psi is None or 0.0 <= psi <= 1.0, f"truncation must be in [0, 1], not {psi}"),
        )
        words = "1 step" + (f", truncation {psi:g}" if psi is not None else "")
        return words + (f", class {sampler.label}" if sampler.label is not None else "")

    def tag(self, sampler: Sampler) -> str:
        parts = [f"psi{sampler.truncation:g}"] if sampler.truncation is not None else []
        parts += [f"class{sampler.label}"] if sampler.label is not None else []
        return "-".join(parts) or "default"

    @torch.inference_mode()
    def sample(self, seeds: Sequence[int], sampler: Sampler | None = None, *, trajectory: bool = False) -> SampleResult:
        """The trajectory is the truncation: from the average image (psi 0) to the sample."""
        sampler = sampler or Sampler()
        self.describe(sampler)
        noise = SeedNoise(seeds, self.device)
        z = noise.normal((self.options.mapping.z_dim,), "z")
        c = self._labels(noise, sampler)
        shapes = self.generator.synthesis.noise_shapes
        maps = [noise.normal(shape, f"noise_{layer}") for layer, shape in enumerate(shapes)]
        psi = 1.0 if sampler.truncation is None else sampler.truncation

        def image(psi: float) -> Tensor:
            made: Tensor = self.generator(z, c, maps, psi)
            return made.clamp(-1.0, 1.0) if self.spec.kind == "images" else made

        if not trajectory:
            return SampleResult(image(psi))
        states = [image(psi * i / 5) for i in range(6)]
        return SampleResult(states[-1], torch.stack(states))

    @torch.inference_mode()
    def walk(self, first: int, last: int, steps: int) -> Tensor:
        """In w, and on a great circle between the layers' noise."""
        noise = SeedNoise([first, last], self.device)
        z = noise.normal((self.options.mapping.z_dim,))
        w = self.generator.mapping(z, self._labels(noise, Sampler()))
        maps = [noise.normal(shape) for shape in self.generator.synthesis.noise_shapes]
        s = torch.linspace(0.0, 1.0, steps, device=self.device)
        images: Tensor = self.generator.synthesis(
            torch.lerp(w[:1], w[1:], s[:, None]), [great_circle(m[:1], m[1:], s) for m in maps]
        )
        return images.clamp(-1.0, 1.0) if self.spec.kind == "images" else images

    has_latent = True

    @torch.inference_mode()
    def latent_path(self, seeds: Sequence[int], t: Tensor) -> Tensor:
        """On a great circle of z."""
        noise = SeedNoise(seeds, self.device)
        first, second = (noise.normal((self.options.mapping.z_dim,)) for _ in range(2))
        c = self._labels(noise, Sampler())
        maps = [noise.normal(shape) for shape in self.generator.synthesis.noise_shapes]
        made: Tensor = self.generator(great_circle(first, second, t.to(self.device)), c, maps)
        return made

    def _labels(self, noise: SeedNoise, sampler: Sampler) -> Tensor | None:
        """One-hot labels, drawn from the seeds where none is asked for; all classes are equally likely."""
        if not self.classes:
            return None
        share = torch.special.ndtr(noise.normal((), "class_noise").double())
        drawn = (share * self.classes).long().clamp(max=self.classes - 1)
        labels = drawn if sampler.label is None else torch.full_like(drawn, sampler.label)
        return F.one_hot(labels, self.classes).float()


METHOD = StyleGAN2
