"""Colours of the adaptive augmentation (Karras et al. 2020a, appendix B): one affine map of (r, g, b) an image.

With v = (1, 1, 1) / sqrt(3) the luma axis, each with probability p an image and multiplied from the left in this order:

    brightness   + b (1, 1, 1)                    b ~ N(0, brightness_std^2)
    contrast     c I                              log2 c ~ N(0, contrast_std^2)
    luma flip    I - 2 i v v^T                    i in {0, 1}
    hue          rotation about v by a            a uniform in +-pi hue_max
    saturation   v v^T + s (I - v v^T)            log2 s ~ N(0, saturation_std^2)

Each is written as I plus what changes, so that an image in which nothing happens stays as it is, to the last bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trilemma.augment.ada_draws import Draws, where_it_happens
from trilemma.augment.ada_options import AdaOptions


def colour_map(options: AdaOptions, n: int, p: Tensor, draws: Draws, *, gray: bool) -> Tensor:
    """The maps [M | b] of ``n`` images: (N, 3, 4). Images of one channel (``gray``) draw no hue and no saturation."""
    eye = torch.eye(3, dtype=p.dtype, device=p.device)
    luma = torch.full_like(eye, 1 / 3)  # v v^T
    maps = torch.cat((eye, torch.zeros_like(eye[:, :1])), dim=1).repeat(n, 1, 1)
    if options.brightness > 0:
        b = draws.normal("brightness", n) * options.brightness_std
        b = where_it_happens(draws, "brightness", b, 0.0, p * options.brightness)
        maps = torch.cat((maps[..., :3], maps[..., 3:] + b[:, None, None]), dim=2)
    if options.contrast > 0:
        c = (draws.normal("contrast", n) * options.contrast_std).exp2()
        maps = maps * where_it_happens(draws, "contrast", c, 1.0, p * options.contrast)[:, None, None]
    if options.lumaflip > 0:
        i = (2 * draws.uniform("lumaflip", n)).floor()
        i = where_it_happens(draws, "lumaflip", i, 0.0, p * options.lumaflip)
        maps = (eye - 2 * i[:, None, None] * luma) @ maps
    if options.hue > 0 and not gray:
        angle = (2 * draws.uniform("hue", n) - 1) * (math.pi * options.hue_max)
        angle = where_it_happens(draws, "hue", angle, 0.0, p * options.hue)[:, None, None]
        cross = eye.roll(1, 0) - eye.roll(1, 1)  # v x (r, g, b), times sqrt(3)
        turn = eye + (angle.cos() - 1) * (eye - luma) + angle.sin() / math.sqrt(3) * cross
        maps = turn @ maps
    if options.saturation > 0 and not gray:
        s = (draws.normal("saturation", n) * options.saturation_std).exp2()
        s = where_it_happens(draws, "saturation", s, 1.0, p * options.saturation)[:, None, None]
        maps = (eye + (s - 1) * (eye - luma)) @ maps
    return maps


def colour(x: Tensor, options: AdaOptions, p: Tensor, draws: Draws) -> Tensor:
    """Images (N, C, H, W), C = 1 or 3, recoloured as drawn; gray ones with the mean of r, g and b."""
    n, channels = x.shape[:2]
    maps = colour_map(options, n, p, draws, gray=channels == 1)
    matrix, offset = maps[..., :3], maps[..., 3:]
    if channels == 1:
        gain = matrix.sum(dim=(1, 2)) / 3
        return x * gain.view(-1, 1, 1, 1) + offset.mean(dim=1).view(-1, 1, 1, 1)
    return torch.baddbmm(offset, matrix, x.flatten(2)).view_as(x)
