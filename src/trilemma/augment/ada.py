"""The pipeline of adaptive discriminator augmentation (StyleGAN2-ADA, Karras et al. 2020a, appendix B).

Every image D sees passes, each transformation with probability p an image and in this order:

    geometry     pixel blitting and affine maps (ada_geometry)
    colour       an affine map of (r, g, b) (ada_colour)
    filter       x -> sum_k g_k (band_k * x), four wavelet bands along both axes (ada_filters), reflected at the border;
                 for each band i in turn g <- g t / sqrt(sum_j w_j t_j^2), where t_j = 1 but log2 t_i ~ N(0, std^2),
                 and w = (10, 1, 1, 1) / 13 is the power expected in the bands
    noise        + sigma eps, sigma half-normal of scale noise_std, eps ~ N(0, I)
    cutout       zeros in a rectangle with sides cutout_size (W, H) about a centre uniform in the image

It can be differentiated twice in the images, as a gradient penalty behind it needs. The strength p comes from
``AdaController``.

Differs from the published code: p = 0 as a number returns the images untouched, where that passes them through the
resampling filters of the geometry, an identity up to rounding. As a tensor, p = 0 does the same here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trilemma.augment.ada_colour import colour
from trilemma.augment.ada_draws import Draws, TorchDraws, where_it_happens
from trilemma.augment.ada_filters import BAND_REACH, band_taps, bands, filtered, resampling_taps
from trilemma.augment.ada_geometry import geometry
from trilemma.augment.ada_options import PRESETS, AdaOptions, preset
from trilemma.augment.layout import in_layout, layout_of
from trilemma.errors import ConfigError

__all__ = ["PRESETS", "AdaOptions", "AdaptiveAugment", "preset"]

_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)  # expected in each band, from low to high


def band_filter(x: Tensor, options: AdaOptions, taps: Tensor, p: Tensor, draws: Draws) -> Tensor:
    """Images (N, C, H, W) of sides above 21, their bands amplified as drawn; ``taps`` (4, 43) are the filters."""
    n, _, height, width = x.shape
    amplified, power = [], torch.ones_like(x[:, 0, 0, 0])
    for i, (chance, weight) in enumerate(zip(options.imgfilter_bands, _POWER, strict=True)):
        t = torch.ones_like(power)
        if chance > 0:
            name = f"imgfilter_{i}"
            t = (draws.normal(name, n) * options.imgfilter_std).exp2()
            t = where_it_happens(draws, name, t, 1.0, p * options.imgfilter * chance)
        amplified.append(t)
        power = power * (1 + weight * (t.square() - 1))
    g = torch.stack(amplified, dim=1) / power.sqrt()[:, None]

    def matrix(size: int) -> Tensor:
        # The bands add up to the identity: with g = 1 this is the identity matrix itself.
        change = ((g - 1) @ bands(taps, size).flatten(1)).view(n, 1, size, size)
        return torch.eye(size, dtype=x.dtype, device=x.device) + change

    rows = matrix(height)
    return filtered(x, rows, rows if width == height else matrix(width))


def _noise(x: Tensor, options: AdaOptions, p: Tensor, draws: Draws) -> Tensor:
    sigma = draws.normal("noise", len(x)).abs() * options.noise_std
    sigma = where_it_happens(draws, "noise", sigma, 0.0, p * options.noise)
    return x + sigma.view(-1, 1, 1, 1) * draws.normal("noise_image", *x.shape)


def _cutout(x: Tensor, options: AdaOptions, p: Tensor, draws: Draws) -> Tensor:
    n, _, height, width = x.shape
    centre = draws.uniform("cutout", n, 2)
    side = torch.full_like(centre[:, :1], options.cutout_size)
    side = where_it_happens(draws, "cutout", side, 0.0, p * options.cutout)

    def outside(size: int, middle: Tensor) -> Tensor:
        place = (torch.arange(size, dtype=x.dtype, device=x.device) + 0.5) / size
        return (place - middle[:, None]).abs() >= side / 2

    keep = outside(width, centre[:, 0])[:, None, None, :] | outside(height, centre[:, 1])[:, None, :, None]
    return x * keep


class AdaptiveAugment(nn.Module):
    """The pipeline of the module docstring; ``augment(images, p)``."""

    resampling: Tensor
    band_filters: Tensor

    def __init__(self, options: AdaOptions | str = "bgc") -> None:
        """``options``: settings, or the name of a published choice. Raises ConfigError for an unknown name."""
        super().__init__()
        self.options = preset(options) if isinstance(options, str) else options
        self.register_buffer("resampling", resampling_taps(), persistent=False)
        self.register_buffer("band_filters", band_taps(), persistent=False)

    def _check(self, images: Tensor) -> None:
        channels, height, width = images.shape[1:]
        if self.options.coloured and channels not in (1, 3):
            raise ConfigError(f"colour augmentation needs images of 1 or 3 channels, not {channels}: leave it out")
        if self.options.imgfilter > 0 and min(height, width) <= BAND_REACH:
            raise ConfigError(
                f"imgfilter needs images with sides of at least {BAND_REACH + 1} pixels, not {height} x {width}: "
                "leave it out (bgc has none)"
            )

    def forward(self, images: Tensor, p: float | Tensor, draws: Draws | None = None) -> Tensor:
        """``images`` (N, C, H, W) in [-1, 1]; ``p`` >= 0, a tensor if it is to stay on the device.

        A number p of 0 returns ``images`` itself, at once; 1 and above is full strength. Computed in float32 at least,
        also under autocast; dtype and memory layout of the result are those of ``images``. ``draws`` stands in for
        torch's global generator. Raises ConfigError for p < 0 and for images a transformation cannot take.
        """
        if not isinstance(p, Tensor):
            if not p >= 0:
                raise ConfigError(f"augmentation strength p must be at least 0, not {p}")
            if p == 0:
                return images
        self._check(images)
        options = self.options
        x = in_layout(images.to(torch.promote_types(images.dtype, torch.float32)), torch.contiguous_format)
        p = p.to(x) if isinstance(p, Tensor) else torch.full((), p, dtype=x.dtype, device=x.device)
        draws = draws or TorchDraws(x)
        with torch.autocast(x.device.type, enabled=False):
            if options.geometric:
                x = geometry(x, options, self.resampling.to(x), p, draws)
            if options.coloured:
                x = colour(x, options, p, draws)
            if options.imgfilter > 0:
                x = band_filter(x, options, self.band_filters.to(x), p, draws)
            if options.noise > 0:
                x = _noise(x, options, p, draws)
            if options.cutout > 0:
                x = _cutout(x, options, p, draws)
        return in_layout(x.to(images.dtype), layout_of(images))
