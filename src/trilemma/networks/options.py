"""Settings of the shared networks as dataclasses, and the networks they describe.

The defaults are those of the published CIFAR-10 denoising diffusion GAN. Lists of resolutions refer to the side of the
feature map in pixels, after the patch front end.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from trilemma.config import require
from trilemma.networks.discriminators import StridedCritic, StridedDiscriminator, TimeDiscriminator
from trilemma.networks.mlp import PointCritic, PointDiscriminator, PointGenerator, PointSynthesis
from trilemma.networks.ncsnpp import NCSNpp
from trilemma.networks.sizes import size_of
from trilemma.networks.stylegan2 import Synthesis
from trilemma.networks.stylegan2_discriminator import StyleDiscriminator
from trilemma.types import DataSpec


@dataclass(frozen=True)
class UNetOptions:
    """NCSN++ (Song et al. 2021), with adaptive group norm on a latent where there is one (Xiao et al. 2022)."""

    channels: int = 128  # width of the first level
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)  # width of each level, in multiples of channels
    blocks: int = 2  # residual blocks a level
    attention: tuple[int, ...] = (16,)  # feature-map sides with self-attention
    dropout: float = 0.0  # inside residual blocks
    resample_with_conv: bool = True  # ddpm blocks: a convolution where the resolution changes
    fir: bool = True  # anti-aliased resampling by a FIR filter
    fir_kernel: tuple[int, ...] = (1, 3, 3, 1)  # the filter's taps
    skip_rescale: bool = True  # divide every residual sum by sqrt(2)
    block: Literal["biggan", "ddpm", "biggan_oneadagn"] = "biggan"  # kind of residual block
    progressive_output: Literal["none", "output_skip", "residual"] = "none"  # output pyramid
    progressive_input: Literal["none", "input_skip", "residual"] = "residual"  # input pyramid
    progressive_combine: Literal["sum", "cat"] = "sum"  # how the input pyramid joins
    embedding: Literal["positional", "fourier"] = "positional"  # of time
    fourier_scale: float = 16.0  # spread of the Fourier frequencies
    tanh: bool = True  # bound the output to [-1, 1]
    patch: int = 1  # pixel-unshuffle in front and pixel-shuffle behind: fewer pixels at full width
    checkpoint: bool = False  # compute the blocks' states again in the backward pass: less memory, more time


@dataclass(frozen=True)
class LatentOptions:
    """The latent z of a conditional generator and its mapping network."""

    nz: int = 100  # dimension of z
    embedding: int = 256  # width of the mapping network
    layers: int = 4  # hidden layers of the mapping network


@dataclass(frozen=True)
class DiscriminatorOptions:
    """The time-conditional discriminator D(x_t, t, x_{t+1})."""

    kind: Literal["small", "large", "tiny", "strided"] = "small"  # 32 pixels, 256, 7 to 16 after patch; a DCGAN's
    channels: int = 64  # half the width of the first level; of strided all of it
    embedding: int = 256  # of time
    patch: int = 1  # pixel-unshuffle in front (not of strided)
    conditional: bool = True  # false (ours): it is not shown x_{t+1}


@dataclass(frozen=True)
class PointOptions:
    """Fully connected networks for points in the plane."""

    hidden: int = 256  # units a layer
    layers: int = 3  # hidden layers
    nz: int = 2  # dimension of z


@dataclass(frozen=True)
class StyleMappingOptions:
    """StyleGAN2's mapping network from z to w (Karras et al. 2020)."""

    z_dim: int = 512  # dimension of z
    w_dim: int = 512  # of the intermediate latent
    layers: int = 8  # dense layers
    lr_scale: float = 0.01  # learning rate, relative to the rest


@dataclass(frozen=True)
class SynthesisOptions:
    """StyleGAN2's synthesis network (Karras et al. 2020)."""

    channel_base: int = 32768  # channels are channel_base / side ...
    channel_max: int = 512  # ... but at most these
    patch: int = 1  # ours: pixel-shuffle behind: fewer pixels at full width
    start: Literal["constant", "latent"] = "constant"  # latent (ours): a dense layer of it is added to the constant
    tanh: bool = False  # ours: bound the output to [-1, 1] smoothly
    checkpoint: bool = False  # compute the blocks' states again in the backward pass: less memory, more time


@dataclass(frozen=True)
class CriticOptions:
    """StyleGAN2's discriminator (Karras et al. 2020), or a DCGAN's."""

    architecture: Literal["resnet", "orig", "skip", "strided"] = "resnet"  # strided: a DCGAN's (ours)
    channel_base: int = 32768  # channels are channel_base / side ...
    channel_max: int = 512  # ... but at most these; of strided the width, doubled at the second layer
    std_group: int = 4  # images that share a minibatch standard deviation (strided: always 4)
    mapping_layers: int = 8  # layers that map the condition (label, time), if there is one
    patch: int = 1  # ours: pixel-unshuffle in front (not of strided)


def build_denoiser(
    spec: DataSpec, unet: UNetOptions, points: PointOptions, latent: LatentOptions | None, *, tanh: bool
) -> nn.Module:
    """The network that reads (x_t, t, z): U-Net for images, fully connected for points; no z if ``latent`` is None."""
    if spec.kind == "points":
        return PointGenerator(nz=points.nz if latent else 0, hidden=points.hidden, layers=points.layers)
    settings = dataclasses.asdict(unet) | {"tanh": tanh}
    return NCSNpp(
        image_size=size_of(spec.height, spec.width),
        in_channels=spec.channels,
        out_channels=spec.channels,
        nz=latent.nz if latent else 0,
        z_embedding=latent.embedding if latent else 0,
        z_layers=latent.layers if latent else 0,
        **settings,
    )


def build_synthesis(
    spec: DataSpec, options: SynthesisOptions, points: PointOptions, w_dim: int
) -> Synthesis | PointSynthesis:
    """w (N, w_dim) or (N, num_ws, w_dim) -> images, or points."""
    if spec.kind == "points":
        return PointSynthesis(w_dim, hidden=points.hidden, layers=points.layers)
    size = size_of(spec.height, spec.width)
    return Synthesis(w_dim=w_dim, size=size, channels=spec.channels, **dataclasses.asdict(options))


def build_critic(spec: DataSpec, options: CriticOptions, points: PointOptions, condition: int = 0) -> nn.Module:
    """D(image, c) -> (N, 1) logits; c (N, condition) if there is one."""
    if spec.kind == "points":
        return PointCritic(condition, hidden=points.hidden, layers=points.layers)
    size = size_of(spec.height, spec.width)
    if options.architecture == "strided":
        require(options.patch == 1, f"a strided discriminator has no patch, but {options.patch} was asked for")
        return StridedCritic(in_channels=spec.channels, size=size, channels=options.channel_max, condition=condition)
    return StyleDiscriminator(size=size, channels=spec.channels, classes=condition, **dataclasses.asdict(options))


def build_discriminator(spec: DataSpec, options: DiscriminatorOptions, points: PointOptions) -> nn.Module:
    """D(x_t, t, x_{t+1}) -> (N, 1) logits."""
    if spec.kind == "points":
        require(options.conditional, "discriminator.conditional = false is for images: that of points reads x_{t+1}")
        return PointDiscriminator(hidden=points.hidden, layers=points.layers)
    shared: dict[str, Any] = {
        "in_channels": spec.channels,
        "size": size_of(spec.height, spec.width),
        "channels": options.channels,
        "embedding": options.embedding,
        "conditional": options.conditional,
    }
    if options.kind == "strided":
        require(options.patch == 1, f"a strided discriminator has no patch, but {options.patch} was asked for")
        return StridedDiscriminator(**shared)
    return TimeDiscriminator(kind=options.kind, patch=options.patch, **shared)
