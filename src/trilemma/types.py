"""Small records that every level shares. Importing them costs nothing: torch is only named for the type checker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DataSpec:
    """The shape of one sample. Points are 1 x 1 images whose channels are the coordinates."""

    kind: Literal["images", "points"]
    channels: int
    height: int
    width: int
    classes: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, self.height, self.width)


@dataclass(frozen=True)
class Batch:
    """Training data: ``x`` (N, C, H, W), images in [-1, 1], ``labels`` (N,) integers or None."""

    x: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True)
class SampleResult:
    """Samples ``x`` (N, C, H, W), images in [-1, 1]; ``trajectory`` (K, N, C, H, W), noise first, if asked for."""

    x: Tensor
    trajectory: Tensor | None = None


@dataclass(frozen=True)
class Sampler:
    """How to sample, where a method leaves a choice; None everywhere is the method's own default."""

    steps: int | None = None  # number of denoising steps (DDPM: by DDIM)
    eta: float | None = None  # DDIM: 0 deterministic, 1 as noisy as the ancestral sampler
    variance: Literal["fixed_small", "fixed_large"] | None = None  # DDPM: variance of the ancestral sampler
    truncation: float | None = None  # StyleGAN2: psi, w drawn towards its average; 1 leaves it
    label: int | None = None  # conditional models: the class; None draws one a seed
