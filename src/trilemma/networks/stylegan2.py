"""StyleGAN2's generator (Karras et al. 2020), in plain tensor operations.

Mapping: z and an optional label c become w, one for each layer of the synthesis network.

    x = [z / rms(z), e / rms(e)],  e = dense(c);    w = (lrelu o dense)^L (x);    w <- w_avg + psi (w - w_avg)

Synthesis: from a constant, doubling the side, with a style-modulated convolution (section 2.2)

    s = dense(w);    y = conv(x s, kernel) d,    d_o = (sum_{i,k} (kernel_{oik} s_i)^2 + 1e-8)^(-1/2)
    y <- sqrt(2) lrelu(y + strength noise + bias),    noise (N, 1, H, W) ~ N(0, I)

and a running image to which every resolution adds its own (skip architecture, section 4.1).

Weights are scaled when used (equalised learning rate, Karras et al. 2018): the stored ones start from N(0, 1). Differs
from the published code: modulation and demodulation act on the features, or, where an image is made, on its 1 x 1
kernels (the same numbers up to rounding, no grouped convolution); sides that are no power of two start from
size / 2^k >= 4 where it turns odd; ``patch`` p makes p x p pixels of each last one by a pixel-shuffle (ours).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trilemma.errors import ConfigError
from trilemma.networks.mlp import PointSynthesis
from trilemma.networks.recompute import recomputed
from trilemma.networks.resample import fir_filter, fir_upsample
from trilemma.networks.sizes import Size, height_width, in_words, nearest_multiple, nearest_that_shrinks, size_of

_SLOPE = 0.2
GAIN = math.sqrt(2.0)
"""What follows every leaky ReLU, to keep the variance."""
_EPS = 1e-8
_MANY = 256  # outputs: more than a batch has images, so scaling what goes in is less work than scaling weights
LARGEST_START = 16  # pixels on the shorter side of the smallest features
Noise = Literal["random", "const", "none"] | Sequence[Tensor]


def lrelu(x: Tensor) -> Tensor:
    """max(x, 0.2 x) in place: ``x`` must be nobody else's. The factor sqrt(2) is in the weights: sqrt(2) lrelu(x) =
    lrelu(sqrt(2) x), and they are smaller than the features."""
    return F.leaky_relu(x, _SLOPE, inplace=True)


def unit_rms(x: Tensor) -> Tensor:
    """Rows (N, D) scaled to a mean square of 1."""
    return x * (x.square().mean(dim=1, keepdim=True) + _EPS).rsqrt()


class Dense(nn.Module):
    """(N, c_in) -> (N, c_out), weights scaled by lr_scale / sqrt(c_in) and biases by ``lr_scale`` when used; ``act``:
    then sqrt(2) lrelu."""

    def __init__(
        self, c_in: int, c_out: int, *, lr_scale: float = 1.0, bias_start: float = 0.0, act: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in) / lr_scale)
        self.bias = nn.Parameter(torch.full((c_out,), bias_start))
        self.bias_scale = lr_scale * (GAIN if act else 1.0)
        self.scale = self.bias_scale / math.sqrt(c_in)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias * self.bias_scale
        if len(self.weight) > _MANY:
            y = F.linear(x * self.scale, self.weight, bias)
        else:
            y = F.linear(x, self.weight * self.scale, bias)
        return lrelu(y) if self.act else y


class StyleMapping(nn.Module):
    """z (N, z_dim) and, where classes > 0, one-hot labels c (N, classes) -> w (N, w_dim). z_dim 0 reads labels alone.

    ``w_avg``, if there is one, follows w in training mode: old beta + batch mean (1 - beta).
    """

    w_avg: Tensor | None

    def __init__(
        self,
        z_dim: int,
        w_dim: int,
        *,
        classes: int = 0,
        layers: int = 8,
        lr_scale: float = 0.01,
        beta: float | None = 0.995,
    ) -> None:
        """``beta`` None: no average. Raises ConfigError where there is nothing to read, or no layer."""
        super().__init__()
        if z_dim + classes < 1 or w_dim < 1 or layers < 1:
            raise ConfigError(
                "mapping network needs a latent or labels, a width and layers, "
                f"not {z_dim}, {classes}, {w_dim} and {layers}"
            )
        self.z_dim, self.classes, self.beta = z_dim, classes, beta
        self.embed = Dense(classes, w_dim) if classes else None
        widths = [z_dim + (w_dim if classes else 0), *[w_dim] * layers]
        self.layers = nn.ModuleList(
            Dense(a, b, lr_scale=lr_scale, act=True) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.register_buffer("w_avg", None if beta is None else torch.zeros(w_dim))

    def forward(self, z: Tensor | None, c: Tensor | None = None, *, follow: bool = True) -> Tensor:
        """``follow`` false leaves w_avg alone. Raises ConfigError for shapes that do not fit."""
        parts = []
        if self.z_dim:
            if z is None or z.shape[1] != self.z_dim:
                raise ConfigError(f"mapping network needs z of {self.z_dim} numbers, but got {_shape(z)}")
            parts.append(unit_rms(z))
        if self.embed is not None:
            if c is None or c.shape[1] != self.classes:
                raise ConfigError(f"mapping network needs labels (N, {self.classes}), but got {_shape(c)}")
            parts.append(unit_rms(self.embed(c)))
        w = torch.cat(parts, dim=1)
        for layer in self.layers:
            w = layer(w)
        if follow and self.training and self.w_avg is not None and self.beta is not None:
            self.w_avg.lerp_(w.detach().mean(dim=0), 1.0 - self.beta)
        return w

    def truncate(self, w: Tensor, psi: float) -> Tensor:
        """w drawn towards its average: psi = 1 leaves it, 0 gives the average."""
        if psi == 1.0:
            return w
        if self.w_avg is None:
            raise ConfigError("mapping network keeps no average: truncation_psi must be 1")
        return self.w_avg.lerp(w, psi)


class StyledConv(nn.Module):
    """One style-modulated convolution with noise (module docstring); ``up`` doubles the sides."""

    noise_const: Tensor

    def __init__(self, c_in: int, c_out: int, w_dim: int, side: Size, *, up: bool = False, size: int = 3) -> None:
        """``side`` in pixels of the output, or its (height, width)."""
        super().__init__()
        self.up, self.shape = up, height_width(side)
        self.affine = Dense(w_dim, c_in, bias_start=1.0)
        self.weight = nn.Parameter(torch.randn(c_out, c_in, size, size))
        self.bias = nn.Parameter(torch.zeros(c_out))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise_const", torch.randn(self.shape))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        s = self.affine(w)
        d = (s.square() @ self.weight.square().sum(dim=(2, 3)).T + _EPS).rsqrt() * GAIN
        x = x * s[:, :, None, None]
        if self.up:
            # The transposed convolution gives 2 H + 1 pixels, the filter takes them to 2 H.
            y = F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2)
            y = fir_filter(y, pad=(1, 1), gain=4.0)
        else:
            y = F.conv2d(x, self.weight, padding=self.weight.shape[2] // 2)
        y = torch.addcmul((self.bias * GAIN)[:, None, None], y, d[:, :, None, None])
        if noise is not None:
            y += noise * (self.noise_strength * GAIN)
        return lrelu(y)

    def draw(self, x: Tensor, noise: Literal["random", "const", "none"]) -> Tensor | None:
        """This layer's noise for as many images as ``x`` has."""
        if noise == "random":
            return torch.randn(len(x), 1, *self.shape, device=x.device, dtype=x.dtype)
        return self.noise_const if noise == "const" else None


class ToImage(nn.Module):
    """Features to an image by a style-modulated 1 x 1 convolution, not demodulated."""

    def __init__(self, c_in: int, c_out: int, w_dim: int) -> None:
        super().__init__()
        self.affine = Dense(w_dim, c_in, bias_start=1.0)
        self.weight = nn.Parameter(torch.randn(c_out, c_in, 1, 1))
        self.bias = nn.Parameter(torch.zeros(c_out))
        self.scale = 1.0 / math.sqrt(c_in)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        # Here the weights are modulated: there is but one number for each channel of the image, x has a side's square.
        s = self.affine(w) * self.scale
        weight = s[:, :, None] * self.weight.flatten(1).T
        y = torch.baddbmm(self.bias, x.permute(0, 2, 3, 1).flatten(1, 2), weight)
        return y.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


class SynthesisBlock(nn.Module):
    """One resolution: an upsampling convolution (not in the first), another, and its part of the image."""

    def __init__(self, c_in: int, c_out: int, image: int, w_dim: int, side: Size, *, first: bool) -> None:
        super().__init__()
        self.up = None if first else StyledConv(c_in, c_out, w_dim, side, up=True)
        self.conv = StyledConv(c_out, c_out, w_dim, side)
        self.to_image = ToImage(c_out, image, w_dim)

    def convs(self) -> list[StyledConv]:
        """The layers with noise, in order."""
        return [self.conv] if self.up is None else [self.up, self.conv]

    def forward(self, x: Tensor, ws: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """x and ws (N, layers + 1, w_dim), the image layer's last -> features and this part of the image."""
        convs = self.convs()
        for i, conv in enumerate(convs):
            x = conv(x, ws[:, i], conv.draw(x, noise) if isinstance(noise, str) else noise[i])
        return x, self.to_image(x, ws[:, len(convs)])


class Synthesis(nn.Module):
    """w (N, w_dim), or one for each layer (N, num_ws, w_dim) -> image (N, C, height, width)."""

    def __init__(
        self,
        *,
        w_dim: int,
        size: Size,
        channels: int,
        channel_base: int = 32768,
        channel_max: int = 512,
        patch: int = 1,
        start: Literal["constant", "latent"] = "constant",
        tanh: bool = False,
        checkpoint: bool = False,
    ) -> None:
        """``size`` (one number, or height and width) and ``channels`` of the image; features have min(channel_base /
        side, channel_max) channels, where the side of a rectangle is the shorter one.
        Ours: ``start`` "latent" adds a dense layer of the first w to the constant; ``tanh`` bounds the image.
        ``checkpoint``: the blocks' states are computed again in the backward pass.

        Raises ConfigError for sizes that do not fit.
        """
        super().__init__()
        shapes = feature_shapes(size, patch, "generator")
        sides = [min(shape) for shape in shapes]
        widths = [feature_width(side, channel_base, channel_max) for side in sides]
        self.sides, self.patch, self.tanh, self.checkpoint = sides, patch, tanh, checkpoint
        self.const = nn.Parameter(torch.randn(widths[0], *shapes[0]))
        self.start = Dense(w_dim, self.const.numel()) if start == "latent" else None
        self.blocks = nn.ModuleList(
            SynthesisBlock(c_in, c_out, channels * patch**2, w_dim, shape, first=i == 0)
            for i, (c_in, c_out, shape) in enumerate(zip([0, *widths[:-1]], widths, shapes, strict=True))
        )
        self.to(memory_format=torch.channels_last)

    @property
    def num_ws(self) -> int:
        """Layers that take a w of their own: each image layer shares that of the convolution after it."""
        return 2 * len(self.blocks)

    def convs(self) -> list[StyledConv]:
        """The layers with noise, in order."""
        return [conv for block in self._blocks() for conv in block.convs()]

    def _blocks(self) -> list[SynthesisBlock]:
        return cast(list[SynthesisBlock], list(self.blocks))

    @property
    def noise_shapes(self) -> list[tuple[int, int, int]]:
        """(1, H, W) of each layer's noise, in order."""
        return [(1, *conv.shape) for conv in self.convs()]

    def forward(self, ws: Tensor, noise: Noise = "random") -> Tensor:
        """``noise``: drawn anew, the stored maps, none, or one (N, 1, H, W) for each of ``noise_shapes``."""
        if ws.ndim == 2:
            ws = ws[:, None].expand(-1, self.num_ws, -1)
        x = self.const.expand(ws.shape[0], -1, -1, -1)
        x = x if self.start is None else x + self.start(ws[:, 0]).view(x.shape)
        x = x.contiguous(memory_format=torch.channels_last)
        image = x.new_zeros(())
        i = 0
        for block in self._blocks():
            layers = len(block.convs())
            maps = noise if isinstance(noise, str) else noise[i : i + layers]
            x, part = recomputed(self.checkpoint, block, x, ws[:, i : i + layers + 1], maps)
            i += layers
            image = part if block.up is None else fir_upsample(image).add_(part)
        image = F.pixel_shuffle(image, self.patch) if self.patch > 1 else image
        return image.tanh() if self.tanh else image


class StyleGenerator(nn.Module):
    """G(z, c): mapping and synthesis together."""

    def __init__(self, mapping: StyleMapping, synthesis: Synthesis | PointSynthesis) -> None:
        super().__init__()
        self.mapping = mapping
        self.synthesis = synthesis

    def forward(
        self,
        z: Tensor | None,
        c: Tensor | None = None,
        noise: Noise = "random",
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        *,
        z_mixed: Tensor | None = None,
        mixed_from: int = 0,
        with_ws: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """z (N, z_dim), c (N, classes) one-hot -> (N, C, height, width). The first ``truncation_cutoff`` layers (all if
        None) get truncated w; those from ``mixed_from`` on the w of ``z_mixed``, if it is given (style mixing).
        ``with_ws``: the image and the ws it was made from."""
        ws = self.ws(z, c, truncation_psi, truncation_cutoff)
        if z_mixed is not None:
            mixed = self.mapping(z_mixed, c, follow=False)[:, None].expand_as(ws)
            ws = torch.cat((ws[:, :mixed_from], mixed[:, mixed_from:]), dim=1)
        image: Tensor = self.synthesis(ws, noise)
        return (image, ws) if with_ws else image

    def ws(self, z: Tensor | None, c: Tensor | None, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """One w for each layer: (N, num_ws, w_dim)."""
        w: Tensor = self.mapping(z, c)
        ws = w[:, None].expand(-1, self.synthesis.num_ws, -1)
        if psi == 1.0:
            return ws
        near = self.mapping.truncate(w, psi)[:, None].expand_as(ws)
        return near if cutoff is None else torch.cat((near[:, :cutoff], ws[:, cutoff:]), dim=1)


def feature_sides(size: int) -> list[int]:
    """Sides from small to large, each twice the last: from the smallest size / 2^k that is whole and at least 4.

    Raises ConfigError for a size below 4, and for one whose smallest side is above 16.
    """
    return [height for height, _ in feature_shapes(size, 1, "style networks")]


def feature_shapes(size: Size, patch: int, who: str) -> list[tuple[int, int]]:
    """Height and width of the features of images from small to large, as ``feature_sides`` has them for squares.

    Raises ConfigError, in which ``who`` complains, for sizes that patch does not divide, for less than 4 pixels and for
    those that do not halve down to 16 or less on the shorter side: the dense layers there grow with its pixels.
    """
    height, width = height_width(size)
    if height % patch or width % patch:
        raise ConfigError(
            f"{who}: images of {in_words(size)} are no multiple of patch {patch}; "
            f"the nearest that fits is {in_words(nearest_multiple(size, patch))}"
        )
    shapes = _halved(height // patch, width // patch)
    if min(shapes[0]) > LARGEST_START:
        fits = height_width(nearest_that_shrinks((height // patch, width // patch), LARGEST_START))
        raise ConfigError(
            f"{who} cannot take images of {in_words(size)}: halved as often as they can be, their features stay at "
            f"{shapes[0][0]} x {shapes[0][1]}, and at most {LARGEST_START} pixels on the shorter side can be worked "
            f"with; the nearest that fits is {in_words(size_of(fits[0] * patch, fits[1] * patch))}"
        )
    return shapes


def _halved(height: int, width: int) -> list[tuple[int, int]]:
    """The size and its halves, small to large, as long as both sides are whole and at least 4."""
    if min(height, width) < 4:
        raise ConfigError(f"style networks need at least 4 pixels a side (after patch), not {min(height, width)}")
    shapes = [(height, width)]
    while height % 2 == 0 and width % 2 == 0 and min(height, width) >= 8:
        height, width = height // 2, width // 2
        shapes.insert(0, (height, width))
    return shapes


def feature_width(side: int, channel_base: int, channel_max: int) -> int:
    """Channels at a resolution: min(channel_base / side, channel_max), at least 1."""
    return max(1, min(channel_base // side, channel_max))


def _shape(x: Tensor | None) -> object:
    return "none" if x is None else tuple(x.shape)
