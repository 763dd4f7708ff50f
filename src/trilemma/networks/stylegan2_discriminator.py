"""StyleGAN2's discriminator (Karras et al. 2020, section 4.1), for images and, if asked, a condition.

From the full side down to the last (4, or size / 2^k where it turns odd; see ``stylegan2.feature_shapes``):

    orig      x <- down(act(conv(act(conv(x)))))
    resnet    the same, plus 1 x 1 conv(down(x)), the sum divided by sqrt(2)
    skip      as orig, and every side reads the image, halved as often, by a 1 x 1 convolution of its own

then a channel with the minibatch standard deviation, a convolution, a dense layer and the output. With a condition (a
label, a time) the output is a vector, and the logit its product with the mapped condition: <out, map(c)> / sqrt(dim)
(projection, Miyato and Koyama 2018). Weights are scaled when used, by 1 / sqrt(fan_in). Everything can be
differentiated twice, which the gradient penalty needs.

Ours: ``patch`` p reads p x p pixels as channels.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trilemma.errors import ConfigError, nearest
from trilemma.networks.discriminators import std_conv
from trilemma.networks.resample import fir_downsample, fir_filter
from trilemma.networks.sizes import Size, height_width, in_words
from trilemma.networks.stylegan2 import GAIN, Dense, StyleMapping, feature_shapes, feature_width, lrelu

Architecture = Literal["orig", "skip", "resnet"]
_ARCHITECTURES = ("orig", "skip", "resnet")


class ScaledConv(nn.Module):
    """A convolution whose weights, from N(0, 1), are scaled by 1 / sqrt(fan_in); ``down`` filters and halves."""

    def __init__(self, c_in: int, c_out: int, size: int, *, down: bool = False, act: bool = True) -> None:
        """``act`` false: linear, without bias."""
        super().__init__()
        self.down = down
        self.weight = nn.Parameter(torch.randn(c_out, c_in, size, size))
        self.bias = nn.Parameter(torch.zeros(c_out)) if act else None
        self.scale = (GAIN if act else 1.0) / math.sqrt(c_in * size**2)

    def scaled(self) -> tuple[Tensor, Tensor | None]:
        """Weights and bias as they are used."""
        return self.weight * self.scale, None if self.bias is None else self.bias * GAIN

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.scaled()
        size = weight.shape[2]
        if not self.down:
            y = F.conv2d(x, weight, bias, padding=size // 2)
        elif size == 1:
            y = F.conv2d(fir_downsample(x), weight, bias)
        else:
            y = F.conv2d(fir_filter(x, pad=(2, 2)), weight, bias, stride=2)
        return y if bias is None else lrelu(y)


class DiscriminatorBlock(nn.Module):
    """One side to the next smaller one."""

    def __init__(self, c_in: int, c_out: int, *, resnet: bool) -> None:
        super().__init__()
        self.conv_1 = ScaledConv(c_in, c_in, 3)
        self.conv_2 = ScaledConv(c_in, c_out, 3, down=True)
        self.shortcut = ScaledConv(c_in, c_out, 1, down=True, act=False) if resnet else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv_2(self.conv_1(x))
        if self.shortcut is not None:
            y = (y + self.shortcut(x)).mul_(math.sqrt(0.5))
        return y


class StyleDiscriminator(nn.Module):
    """D(image, c): images (N, C, height, width), condition (N, classes) if there is one -> logits (N, 1)."""

    def __init__(
        self,
        *,
        size: Size,
        channels: int,
        classes: int = 0,
        architecture: Architecture = "resnet",
        channel_base: int = 32768,
        channel_max: int = 512,
        mapped: int | None = None,
        mapping_layers: int = 8,
        std_group: int = 4,
        patch: int = 1,
    ) -> None:
        """``size`` (one number, or height and width) and ``channels`` of the image; ``classes`` numbers of the
        condition; ``mapped`` the length of the mapped condition (None: the width of the last features); ``std_group``
        images share a standard deviation.

        Raises ConfigError for an unknown architecture and for sizes that do not fit.
        """
        super().__init__()
        if architecture not in _ARCHITECTURES:
            raise nearest("discriminator architecture", str(architecture), _ARCHITECTURES)
        shapes = feature_shapes(size, patch, "discriminator")[::-1]
        sides = [min(shape) for shape in shapes]
        widths = [feature_width(side, channel_base, channel_max) for side in sides]
        self.size, self.patch, self.std_group, self.sides = size, patch, std_group, sides
        self.skip = architecture == "skip"
        inputs = channels * patch**2
        self.from_image = nn.ModuleList(ScaledConv(inputs, width, 1) for width in (widths if self.skip else widths[:1]))
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(a, b, resnet=architecture == "resnet")
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        last = widths[-1]
        mapped = (mapped or last) if classes else 0
        self.conv = ScaledConv(last + 1, last, 3)
        self.dense = Dense(last * math.prod(shapes[-1]), last, act=True)
        self.out = Dense(last, mapped or 1)
        self.mapping = StyleMapping(0, mapped, classes=classes, layers=mapping_layers, beta=None) if classes else None
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor, c: Tensor | None = None) -> Tensor:
        if image.shape[2:] != height_width(self.size):
            raise ConfigError(
                f"discriminator was built for images of {in_words(self.size)}, but got {tuple(image.shape)}"
            )
        image = F.pixel_unshuffle(image, self.patch) if self.patch > 1 else image
        # Images of one channel have ambiguous strides: say which layout is meant (no copy where it already holds).
        image = image.contiguous(memory_format=torch.channels_last)
        x: Tensor = self.from_image[0](image)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if self.skip:
                image = fir_downsample(image)
                x = x + self.from_image[i + 1](image)
        x = lrelu(std_conv(x, *self.conv.scaled(), self.std_group))
        x = self.out(self.dense(x.flatten(1)))
        if self.mapping is None:
            return x
        mapped: Tensor = self.mapping(None, c)
        return (x * mapped).sum(dim=1, keepdim=True) / math.sqrt(mapped.shape[1])
