"""Time-conditional discriminators D(x, t, x_t) of the denoising diffusion GAN (Xiao et al. 2022, appendix C).

x is the less noisy image, x_t the noisier one it came from. Both, concatenated, pass residual blocks

    h = FIR_down(lrelu(conv1(lrelu(x)) + dense(emb)));    x <- (conv2(h) + skip(FIR_down(x))) / sqrt(2)

then a channel with the minibatch standard deviation, a convolution, lrelu, the sum over pixels and a dense layer.
lrelu has slope 0.2 throughout; emb = lrelu(dense(lrelu(dense(timestep_embedding(t))))). Every operation can be
differentiated twice, which the gradient penalty needs.

Ours: ``StridedCritic`` and ``StridedDiscriminator``, a DCGAN's (Radford et al. 2016) with time and minibatch standard
deviation; and either without x_t (``conditional`` false), for a D that compares the distributions of x alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.errors import ConfigError, nearest
from trilemma.networks.embeddings import timestep_embedding
from trilemma.networks.resample import fir_downsample, naive_downsample
from trilemma.networks.sizes import Size, divided, height_width, in_words, nearest_multiple, size_of

_SLOPE = 0.2
_NEAR_ZERO = 1e-10  # the published scale of layers that start (all but) silent
_STD_GROUP = 4
_STD_EPS = 1e-8


@dataclass(frozen=True)
class _Plan:
    """What tells the kinds apart: widths in multiples of ``channels``, which blocks halve, how the last conv starts."""

    widths: tuple[int, ...]  # of the input to block 0, then of the output of each block
    down: tuple[bool, ...]
    final_scale: float


_PLANS = {
    "small": _Plan((2, 2, 4, 8, 8), (False, True, True, True), _NEAR_ZERO),  # 32 x 32 in the paper
    "large": _Plan((2, 4, 8, 8, 8, 8, 8), (True,) * 6, 1.0),  # 256 x 256 in the paper
    "tiny": _Plan((2, 2, 4, 4), (False, True, True), 1.0),  # ours: 7 to 16 pixels after unshuffling
}


def _init(layer: nn.Conv2d | nn.Linear, scale: float = 1.0) -> None:
    """Uniform weights of variance scale / fan_out, as published (which asks for the average of the fans, in vain)."""
    fan_out = layer.weight.shape[0] * layer.weight[0, 0].numel()
    limit = math.sqrt(3.0 * scale / fan_out)
    nn.init.uniform_(layer.weight, -limit, limit)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def std_group(n: int, most: int = _STD_GROUP) -> int:
    """Members of a group in a batch of n: the largest divisor of n up to ``most``."""
    return next(g for g in range(min(n, most), 0, -1) if n % g == 0)


def shared_group(discriminator: nn.Module, n: int) -> int:
    """Members of D's groups if n real images and n fakes can pass together and still meet only their like; else 0."""
    most = getattr(discriminator, "std_group", _STD_GROUP)
    group = std_group(n, most)
    return group if std_group(2 * n, most) == group else 0


def minibatch_std(x: Tensor, most: int = _STD_GROUP) -> Tensor:
    """(N, C, H, W) -> (N, 1, 1, 1): the standard deviation across a group, averaged over channels and pixels.

    Groups have g = std_group(N, most) members and sample i is in group i mod N / g (Karras et al. 2018, section 3).
    Differs from the published code where ``most`` does not divide N, which it refuses.
    """
    group = std_group(x.shape[0], most)
    # Members lie n / group apart, so whole slices of the batch meet: no reduction over a strided view, which is slow.
    members = x.chunk(group)
    mean = sum(members[1:], members[0]) / group
    first, *others = ((m - mean).square() for m in members)
    var = sum(others, first) / group
    return (var + _STD_EPS).sqrt().mean(dim=(1, 2, 3), keepdim=True).repeat(group, 1, 1, 1)


def std_conv(x: Tensor, weight: Tensor, bias: Tensor | None, most: int = _STD_GROUP) -> Tensor:
    """conv2d of x (N, C, H, W) with ``minibatch_std`` as one more channel, padded by half the kernel: (N, C', H, W).

    That channel is one number all over an image, so its part is the number times one small map: x is neither copied
    nor given a number of channels that no vector register fits.
    """
    padding = weight.shape[2] // 2
    ones = x.new_ones(1, 1, *x.shape[2:])
    y = F.conv2d(x, weight[:, :-1].contiguous(memory_format=torch.channels_last), bias, padding=padding)
    return torch.addcmul(y, minibatch_std(x, most), F.conv2d(ones, weight[:, -1:], padding=padding))


def linear_of_pixels(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """linear(x.flatten(1), weight, bias) of x (N, C, H, W), by putting weights in another order and not images."""
    pixels = weight.view(-1, *x.shape[1:]).permute(0, 2, 3, 1)
    return F.linear(x.permute(0, 2, 3, 1).flatten(1), pixels.flatten(1), bias)


def _halving_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv2d(x, weight (C', C, 4, 4), bias, stride=2, padding=1) as one of 2 x 2 pixels at a time: few channels make
    slow convolutions, slower yet in the backward pass."""
    pixels = F.pixel_unshuffle(F.pad(x, (1, 1, 1, 1)), 2).contiguous(memory_format=torch.channels_last)
    return F.conv2d(pixels, F.pixel_unshuffle(weight, 2).contiguous(memory_format=torch.channels_last), bias)


class DownBlock(nn.Module):
    """One residual block (module docstring): (N, c_in, H, W) and emb (N, E) -> (N, c_out, H, W) or half of H and W."""

    def __init__(self, c_in: int, c_out: int, embedding: int, *, down: bool, fir: bool) -> None:
        super().__init__()
        self.down = down
        self.fir = fir
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(embedding, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1, bias=False)
        _init(self.conv1)
        _init(self.time)
        _init(self.conv2, _NEAR_ZERO)
        _init(self.skip)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        # In place where no backward pass reads what is overwritten: fresh memory costs more than the arithmetic.
        h: Tensor = self.conv1(F.leaky_relu(x, _SLOPE))
        h += self.time(emb)[:, :, None, None]
        h = F.leaky_relu(h, _SLOPE, inplace=True)
        if self.down:
            shrink = fir_downsample if self.fir else naive_downsample
            h, x = shrink(h), shrink(x)
        # The weights are divided by sqrt(2), not the image, which is larger.
        scale, bias = math.sqrt(0.5), self.conv2.bias
        h = F.conv2d(h, scale * self.conv2.weight, None if bias is None else scale * bias, padding=1)
        h += F.conv2d(x, scale * self.skip.weight)
        return h


class TimeDiscriminator(nn.Module):
    """D(x, t, x_t) -> logits (N, 1).

    Attribute names, with those of the published state dict (i counts blocks from 0):

        start_conv            start_conv
        time_in, time_out     t_embed.main.0, t_embed.main.2
        blocks.i.conv1        conv{i+1}.conv1.0
        blocks.i.conv2        conv{i+1}.conv2.0
        blocks.i.time         conv{i+1}.dense_t1
        blocks.i.skip         conv{i+1}.skip.0       (no bias)
        final_conv            final_conv
        end_linear            end_linear

    Differs from the paper: ``patch``, kind "tiny", ``fir=False`` and batches of any size (see ``minibatch_std``).
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int = 64,
        embedding: int = 128,
        kind: Literal["small", "large", "tiny"] = "small",
        patch: int = 1,
        size: Size | None = None,
        fir: bool = True,
        conditional: bool = True,
    ) -> None:
        """``in_channels`` of one image; ``channels`` the base width; ``embedding`` the width of the time embedding;
        ``patch`` p works on p x p pixels as channels; ``size`` (if given) of the images, only to be checked;
        ``fir`` halves with the filter 1, 3, 3, 1, otherwise by the mean of 2 x 2 pixels; ``conditional`` reads x_t too.

        Raises ConfigError for an unknown kind and for sizes that do not fit.
        """
        super().__init__()
        if kind not in _PLANS:
            raise nearest("discriminator kind", str(kind), _PLANS)
        if min(in_channels, channels, patch) < 1 or embedding < 4:
            raise ConfigError(
                "discriminator needs in_channels, channels and patch of at least 1 and an embedding of at least 4, not "
                f"{in_channels}, {channels}, {patch} and {embedding}"
            )
        plan = _PLANS[kind]
        self.patch = patch
        self.conditional = conditional
        self.least_size = patch * 2 ** sum(plan.down)
        if size is not None:
            self._check_size(*height_width(size))
        self.embedding = embedding
        widths = [channels * w for w in plan.widths]
        self.time_in = nn.Linear(embedding, embedding)
        self.time_out = nn.Linear(embedding, embedding)
        self.start_conv = nn.Conv2d((1 + conditional) * in_channels * patch**2, widths[0], 1)
        self.blocks = nn.ModuleList(
            DownBlock(c_in, c_out, embedding, down=down, fir=fir)
            for c_in, c_out, down in zip(widths[:-1], widths[1:], plan.down, strict=True)
        )
        self.final_conv = nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.end_linear = nn.Linear(widths[-1], 1)
        for layer in (self.time_in, self.time_out, self.start_conv, self.end_linear):
            _init(layer)
        _init(self.final_conv, plan.final_scale)
        self.to(memory_format=torch.channels_last)

    def _check_size(self, height: int, width: int) -> None:
        if height % self.patch or width % self.patch or min(height, width) < self.least_size:
            near = height_width(nearest_multiple((height, width), self.patch))
            fits = size_of(*(max(side, self.least_size) for side in near))
            raise ConfigError(
                f"discriminator got images of {height} x {width}: both sides must be multiples of {self.patch} (patch) "
                f"and at least {self.least_size}; the nearest that fits is {in_words(fits)}, or choose another kind or "
                "patch"
            )

    def forward(self, x: Tensor, t: Tensor, x_t: Tensor) -> Tensor:
        """x and x_t (N, C, H, W), t (N,) the integer level of x; logits (N, 1)."""
        self._check_size(x.shape[2], x.shape[3])
        emb = F.leaky_relu(self.time_in(timestep_embedding(t, self.embedding).to(x.dtype)), _SLOPE)
        emb = F.leaky_relu(self.time_out(emb), _SLOPE)
        h = F.pixel_unshuffle(torch.cat((x, x_t), dim=1) if self.conditional else x, self.patch)
        # Images of one channel have ambiguous strides: say which layout is meant (no copy where it already holds).
        h = self.start_conv(h.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            h = block(h, emb)
        h = F.leaky_relu(std_conv(h, self.final_conv.weight, self.final_conv.bias), _SLOPE)
        logits: Tensor = self.end_linear(h.sum(dim=(2, 3)))
        return logits


class StridedCritic(nn.Module):
    """D(image, c) -> logits (N, 1), by convolutions that halve:

        h = lrelu(conv_1(x) + dense(emb));   h = lrelu(conv_2(h) + dense(emb))
        h = lrelu(conv_3([h, minibatch standard deviation]));   y = dense(all of h)

    with kernels of 4, stride 2 and c, then 2 c channels; conv_3 keeps the size; emb = lrelu(dense(c)), and no emb
    without a condition c. Initial values are PyTorch's own.
    """

    def __init__(
        self, *, in_channels: int, size: Size, channels: int = 32, embedding: int = 64, condition: int = 0
    ) -> None:
        """``channels`` is c; ``size`` of the images: a multiple of 4, or a height and width that are; ``condition``
        numbers are read beside.

        Raises ConfigError for sizes that do not fit.
        """
        super().__init__()
        if min(in_channels, channels) < 1 or embedding < 4:
            raise ConfigError(
                "strided discriminator needs in_channels and channels of at least 1 and an embedding of at least 4, "
                f"not {in_channels}, {channels} and {embedding}"
            )
        height, width = divided("strided discriminator", size, 4, "halving twice,")
        self.size = size
        self.time = nn.Linear(condition, embedding) if condition else None
        self.time_1 = nn.Linear(embedding, channels) if condition else None
        self.time_2 = nn.Linear(embedding, 2 * channels) if condition else None
        self.conv_1 = nn.Conv2d(in_channels, channels, 4, stride=2, padding=1)
        self.conv_2 = nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1)
        self.conv_3 = nn.Conv2d(2 * channels + 1, 2 * channels, 3, padding=1)
        self.out = nn.Linear(2 * channels * height * width, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor, c: Tensor | None = None) -> Tensor:
        """image (N, C, height, width), c (N, condition). Raises ConfigError for other sizes."""
        if image.shape[2:] != height_width(self.size):
            raise ConfigError(
                f"discriminator was built for images of {in_words(self.size)}, but got {tuple(image.shape)}"
            )
        # Images of one channel have ambiguous strides: say which layout is meant (no copy where it already holds).
        h = _halving_conv(image.contiguous(memory_format=torch.channels_last), self.conv_1.weight, self.conv_1.bias)
        emb = None if self.time is None else F.leaky_relu(self.time(c), _SLOPE)
        # In place where no backward pass reads what is overwritten: fresh memory costs more than the arithmetic.
        if self.time_1 is not None:
            h += self.time_1(emb)[:, :, None, None]
        h = self.conv_2(F.leaky_relu(h, _SLOPE, inplace=True))
        if self.time_2 is not None:
            h += self.time_2(emb)[:, :, None, None]
        h = std_conv(F.leaky_relu(h, _SLOPE, inplace=True), self.conv_3.weight, self.conv_3.bias)
        h = F.leaky_relu(h, _SLOPE, inplace=True)
        return linear_of_pixels(h, self.out.weight, self.out.bias)


class StridedDiscriminator(StridedCritic):
    """D(x, t, x_t) -> logits (N, 1): ``StridedCritic`` of both images (``conditional``) or of x, given t."""

    def __init__(
        self, *, in_channels: int, size: Size, channels: int = 32, embedding: int = 64, conditional: bool = True
    ) -> None:
        """``in_channels`` of one image; the rest as in ``StridedCritic``."""
        super().__init__(
            in_channels=(1 + conditional) * in_channels,
            size=size,
            channels=channels,
            embedding=embedding,
            condition=embedding,
        )
        self.conditional = conditional
        self.embedding = embedding

    def forward(self, x: Tensor, t: Tensor, x_t: Tensor) -> Tensor:  # type: ignore[override]
        """x and x_t (N, C, height, width), t (N,) the integer level of x; logits (N, 1).

        Raises ConfigError for other sizes.
        """
        image = torch.cat((x, x_t), dim=1) if self.conditional else x
        return super().forward(image, timestep_embedding(t, self.embedding).to(x.dtype))
