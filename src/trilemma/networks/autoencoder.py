"""Encoder and decoder of a variational autoencoder: mirror images of each other, of the residual blocks of NCSN++.

With levels l = 0 .. L-1 of side S / (patch 2^l) and channels C_l = channels * channel_mult[l]:

    encoder   h = conv_in(unshuffle(x));   per level: halve (not before the first), then blocks;
              h = silu(norm(h)), all of it;   mean = dense(h),   log_var = dense(h)
    decoder   h = dense(z) at the smallest size;   per level, smallest first: blocks, then double (not after the last);
              x = tanh(shuffle(conv_out(silu(norm(h)))))

The blocks read neither time nor latent; sizes change by the mean and by repetition, or by a filter (``fir``). Points
pass dense layers of [x, sin(pi k x), cos(pi k x)], as in ``mlp``, and z likewise.

Source of the blocks: Song et al. 2021 (NCSN++). The arrangement is ours.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trilemma.errors import ConfigError
from trilemma.networks.initialise import NEAR_ZERO, conv, dense
from trilemma.networks.layers import Downsample, NormConv, ResBlock, Upsample
from trilemma.networks.mlp import Trunk, flat_points, point_features
from trilemma.networks.norm import GroupNorm
from trilemma.networks.options import PointOptions
from trilemma.networks.sizes import Size, divided, height_width, size_of
from trilemma.types import DataSpec


@dataclass(frozen=True)
class AutoencoderOptions:
    """Encoder and decoder of images: residual blocks of NCSN++ (Song et al. 2021), one the other's mirror image."""

    nz: int = 128  # dimension of z
    channels: int = 64  # width of the first level
    channel_mult: tuple[int, ...] = (1, 2, 2)  # width of each level, in multiples of channels
    blocks: int = 1  # residual blocks a level
    dropout: float = 0.0  # inside residual blocks
    fir: bool = False  # anti-aliased resampling by the filter 1, 3, 3, 1
    patch: int = 1  # pixel-unshuffle in front and pixel-shuffle behind: fewer pixels at full width


def build_autoencoder(
    spec: DataSpec, options: AutoencoderOptions, points: PointOptions
) -> tuple[Encoder | PointEncoder, Decoder | PointDecoder]:
    """Encoder and decoder for images, or fully connected ones for points (whose nz is that of ``points``).

    Raises ConfigError for sizes that do not fit.
    """
    if spec.kind == "points":
        numbers = dataclasses.asdict(points)
        return PointEncoder(channels=spec.channels, **numbers), PointDecoder(channels=spec.channels, **numbers)
    settings = dataclasses.asdict(options) | {"image_size": size_of(spec.height, spec.width)}
    return Encoder(in_channels=spec.channels, **settings), Decoder(out_channels=spec.channels, **settings)


def _smallest_size(image_size: Size, patch: int, channel_mult: Sequence[int], **counts: int) -> tuple[int, int]:
    """Height and width of the last level. Raises ConfigError where they are not whole, or a count is below 1."""
    low = [f"{name} {value}" for name, value in {"patch": patch, **counts}.items() if value < 1]
    if not channel_mult or min(channel_mult) < 1:
        low.append(f"channel_mult {tuple(channel_mult)}")
    if low:
        raise ConfigError(f"autoencoder cannot be built with {', '.join(low)}: give whole numbers from 1")
    factor = patch << (len(channel_mult) - 1)
    return divided("autoencoder", image_size, factor, f"with patch {patch} and {len(channel_mult)} levels")


def _blocks(widths: Sequence[int], dropout: float) -> list[nn.Module]:
    """One residual block from each width to the next."""
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"dropout {dropout} does not fit: give a number from 0 up to, but not, 1")
    pairs = zip(widths[:-1], widths[1:], strict=True)
    return [ResBlock(a, b, time=0, latent=0, dropout=dropout) for a, b in pairs]


def _through(layers: Iterable[nn.Module], h: Tensor) -> Tensor:
    for layer in layers:
        h = layer(h, None, None) if isinstance(layer, ResBlock) else layer(h)
    return h


class Encoder(nn.Module):
    """Images (N, in_channels, H, W) in [-1, 1] -> mean and log variance of q(z|x), both (N, nz)."""

    def __init__(
        self,
        *,
        image_size: Size,
        in_channels: int,
        nz: int,
        channels: int = 64,
        channel_mult: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        dropout: float = 0.0,
        fir: bool = False,
        patch: int = 1,
    ) -> None:
        """Settings as in ``AutoencoderOptions``; ``image_size`` one number or (height, width).

        Raises ConfigError for sizes that do not fit.
        """
        super().__init__()
        counts = {"in_channels": in_channels, "nz": nz, "channels": channels, "blocks": blocks}
        height, width = _smallest_size(image_size, patch, channel_mult, **counts)
        self.shape = (in_channels, *height_width(image_size))
        self.patch = patch
        self.conv_in = conv(in_channels * patch**2, channels)
        layers: list[nn.Module] = []
        c = channels
        for i, multiple in enumerate(channel_mult):
            if i:
                layers.append(Downsample(c, c, with_conv=False, fir=fir))
            layers += _blocks([c] + [channels * multiple] * blocks, dropout)
            c = channels * multiple
        self.layers = nn.ModuleList(layers)
        self.norm = GroupNorm(c)
        self.mean = dense(c * height * width, nz)
        self.log_var = dense(c * height * width, nz, scale=NEAR_ZERO)  # the variance is all but 1 to start with
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, in_channels, H, W). Raises ConfigError for another shape than the network was built for."""
        if x.shape[1:] != self.shape:
            raise ConfigError(f"encoder was built for images {self.shape}, but got {tuple(x.shape[1:])}")
        # Images of one channel have ambiguous strides: say which layout is meant (no copy where it already holds).
        h = F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)
        h = self.norm(_through(self.layers, self.conv_in(h)), silu=True).permute(0, 2, 3, 1).flatten(1)
        return self.mean(h), self.log_var(h)


class Decoder(nn.Module):
    """z (N, nz) -> images (N, out_channels, H, W), in [-1, 1] if ``tanh``: the mean of p(x|z)."""

    def __init__(
        self,
        *,
        image_size: Size,
        out_channels: int,
        nz: int,
        channels: int = 64,
        channel_mult: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        dropout: float = 0.0,
        fir: bool = False,
        patch: int = 1,
        tanh: bool = True,
    ) -> None:
        """Settings as in ``AutoencoderOptions``; ``image_size`` one number or (height, width).

        Raises ConfigError for sizes that do not fit.
        """
        super().__init__()
        counts = {"out_channels": out_channels, "nz": nz, "channels": channels, "blocks": blocks}
        self.size = _smallest_size(image_size, patch, channel_mult, **counts)
        self.nz, self.patch, self.tanh = nz, patch, tanh
        c = channels * channel_mult[-1]
        self.start = dense(nz, c * math.prod(self.size))
        layers: list[nn.Module] = []
        for i, multiple in reversed(list(enumerate(channel_mult))):
            layers += _blocks([c] + [channels * multiple] * blocks, dropout)
            c = channels * multiple
            if i:
                layers.append(Upsample(c, c, with_conv=False, fir=fir))
        self.layers = nn.ModuleList(layers)
        self.out = NormConv(c, out_channels * patch**2, scale=1.0)
        self.to(memory_format=torch.channels_last)

    def forward(self, z: Tensor) -> Tensor:
        """z (N, nz). Raises ConfigError for another shape."""
        _check_latent(z, self.nz)
        # In channels_last the dense layer's numbers, pixel by pixel, are the image: nothing is copied.
        h = self.start(z).view(z.shape[0], *self.size, -1).permute(0, 3, 1, 2)
        x = F.pixel_shuffle(self.out(_through(self.layers, h)), self.patch)
        return x.tanh() if self.tanh else x


def _check_latent(z: Tensor, nz: int) -> None:
    if z.ndim != 2 or z.shape[1] != nz:
        raise ConfigError(f"decoder needs a latent z of shape {('N', nz)}, but got {tuple(z.shape)}")


class PointEncoder(nn.Module):
    """Points (N, channels, 1, 1) -> mean and log variance of q(z|x), both (N, nz)."""

    def __init__(self, *, nz: int, hidden: int = 256, layers: int = 3, channels: int = 2) -> None:
        """``layers`` hidden layers of ``hidden``. Raises ConfigError for sizes below 1."""
        super().__init__()
        self.channels = channels
        self.trunk = _trunk(channels, 2 * nz, hidden, layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, channels, 1, 1). Raises ConfigError for another shape."""
        mean, log_var = self.trunk(point_features(flat_points(x, self.channels))).chunk(2, dim=1)
        return mean, log_var


class PointDecoder(nn.Module):
    """z (N, nz) -> points (N, channels, 1, 1), not bounded: the mean of p(x|z)."""

    def __init__(self, *, nz: int, hidden: int = 256, layers: int = 3, channels: int = 2) -> None:
        """``layers`` hidden layers of ``hidden``. Raises ConfigError for sizes below 1."""
        super().__init__()
        self.nz = nz
        self.trunk = _trunk(nz, channels, hidden, layers)

    def forward(self, z: Tensor) -> Tensor:
        """z (N, nz). Raises ConfigError for another shape."""
        _check_latent(z, self.nz)
        y: Tensor = self.trunk(point_features(z))
        return y[:, :, None, None]


def _trunk(numbers: int, c_out: int, hidden: int, layers: int) -> Trunk:
    """From the features of so many numbers."""
    if min(numbers, c_out) < 1:
        raise ConfigError("network for points needs nz and channels of at least 1")
    return Trunk(point_features(torch.zeros(1, numbers)).shape[1], c_out, hidden, layers, F.silu, timed=False)
