"""The networks that are measured: recipes as they are, and two of the size of published DDGANs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from trilemma.config import build, load_recipe
from trilemma.methods import method_class
from trilemma.methods.base import Method
from trilemma.types import DataSpec

SPECS = {
    "mnist": DataSpec("images", 1, 28, 28),
    "cifar10": DataSpec("images", 3, 32, 32),
    "celebahq256": DataSpec("images", 3, 256, 256),
}
REFERENCE_ROOFLINE = 320e9  # FLOPs a second of the machine on which the reference implementation was measured


@dataclass(frozen=True)
class Reference:
    """What the reference implementation reaches where the roofline is ``REFERENCE_ROOFLINE``, in images a second."""

    train: float
    sample: float


@dataclass(frozen=True)
class Case:
    """One method as it is measured."""

    name: str
    method: str
    options: dict[str, Any]
    spec: DataSpec
    batch: int
    reference: Reference | None = None
    needed: dict[str, Any] | None = None  # options with which nothing is computed twice: those whose FLOPs count
    large: bool = False  # takes minutes, so it is measured only where it is asked for

    def build(self, device: torch.device | str = "cpu") -> Method:
        """The method with fresh weights that are the same each time."""
        torch.manual_seed(0)
        kind = method_class(self.method)
        method = kind(build(kind.Options, self.options, self.name), self.spec)
        return method.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _recipe(name: str, data: str) -> Case:
    recipe = load_recipe(name)
    return Case(name, recipe.method, recipe.options, SPECS[data], recipe.training.batch_size)


MNIST = ("vae", "ddgan", "spigan", "stylegan2", "diffusion_gan", "ddpm")
GRAY_32 = {
    "num_timesteps": 4,
    "unet": {"channels": 32, "channel_mult": [1, 2, 2], "blocks": 1, "attention": [16]},
    "latent": {"nz": 100, "embedding": 256, "layers": 3},
    "discriminator": {"kind": "small", "channels": 16},
}


def recomputing(case: Case) -> Case:
    """The same training, which computes the states of the U-Net's blocks again where it needs them."""
    unet = case.options["unet"] | {"checkpoint": True}
    return replace(
        case,
        name=f"{case.name}-recomputing",
        options=case.options | {"unet": unet},
        needed=case.options,
        reference=None,
    )


def cases() -> list[Case]:
    """All, the quickest first."""
    cifar10 = Case(
        "ddgan-cifar10", "ddgan", load_recipe("ddgan-cifar10").options, SPECS["cifar10"], 16, Reference(1.09, 3.75)
    )
    faces = replace(_recipe("ddgan-celebahq256", "celebahq256"), batch=1, large=True)
    return [
        *(_recipe(f"{method}-mnist", "mnist") for method in MNIST),
        Case("ddgan-gray32", "ddgan", GRAY_32, DataSpec("images", 1, 32, 32), 64, Reference(12.4, 40.0)),
        cifar10,
        recomputing(cifar10),
        faces,
        recomputing(faces),
    ]
