"""NCSN++, the U-Net of score-based models, with group norms steered by a latent z: G(x_t, t, z) of the denoising GAN.

With levels l = 0 .. L-1 of side S / 2^l and channels C_l = channels * channel_mult[l]:

    h = conv_in(x)
    down  per level: blocks (each with attention at the listed sides), then halve; an input pyramid joins here
    middle           block, attention, block
    up    per level: blocks + 1, each reading the state of the same size from the way down; attention; then double;
                     an output pyramid is fed here
    y = tanh(conv_out(silu(norm_out(h))))

Every block reads the embedded time, and every adaptive norm the mapped latent. Without a latent (nz = 0) all norms are
ordinary ones and this is the denoiser of a diffusion model. Attributes are named; ``trilemma.interop`` maps published
weights to them.

Sources: Song et al. 2021, appendix H; Xiao et al. 2022, appendix C. Differs from the published code in ``patch`` (the
network works on p x p pixels as channels), in nz = 0, and in running with options at which that code fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trilemma.errors import ConfigError, nearest
from trilemma.networks.embeddings import FourierEmbedding, timestep_embedding
from trilemma.networks.initialise import NEAR_ZERO, conv, dense
from trilemma.networks.layers import Attention, LatentMapping, NormConv
from trilemma.networks.levels import Block, Combine, DownLevel, InputPyramid, LevelPlan, OutputPyramid, UpLevel
from trilemma.networks.recompute import recomputed
from trilemma.networks.sizes import Size, divided, height_width

Embedding = Literal["positional", "fourier"]


def _check_sizes(image_size: Size, patch: int, channel_mult: Sequence[int], least: dict[str, tuple[int, int]]) -> None:
    """``least`` maps a setting's name to (its value, the least it may be)."""
    low = [f"{name} {value} (at least {bound})" for name, (value, bound) in least.items() if value < bound]
    if patch < 1 or not channel_mult or min(channel_mult) < 1:
        low.append(f"patch {patch} and channel_mult {tuple(channel_mult)} (whole numbers from 1)")
    if low:
        raise ConfigError(f"NCSNpp cannot be built with {', '.join(low)}")
    factor = patch * 2 ** (len(channel_mult) - 1)
    divided("NCSNpp", image_size, factor, f"with patch {patch} and {len(channel_mult)} levels")


class NCSNpp(nn.Module):
    """G(x, t, z): images (N, in_channels, H, W), times (N,), latents (N, nz) -> images (N, out_channels, H, W)."""

    def __init__(
        self,
        *,
        image_size: Size,
        in_channels: int,
        out_channels: int,
        channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        dropout: float = 0.0,
        resample_with_conv: bool = True,
        fir: bool = True,
        fir_kernel: Sequence[float] = (1, 3, 3, 1),
        skip_rescale: bool = True,
        block: Block = "biggan",
        progressive_output: OutputPyramid = "none",
        progressive_input: InputPyramid = "none",
        progressive_combine: Combine = "sum",
        embedding: Embedding = "positional",
        fourier_scale: float = 16.0,
        time_conditional: bool = True,
        centered: bool = True,
        nz: int = 100,
        z_embedding: int = 256,
        z_layers: int = 3,
        tanh: bool = True,
        patch: int = 1,
        checkpoint: bool = False,
    ) -> None:
        """``image_size`` one number or (height, width); ``channel_mult`` one entry a level; ``attention`` the sides of
        feature maps (image_size / patch and its halves; of rectangles the shorter) that get it, the middle always does;
        ``centered``: images come in [-1, 1] (else [0, 1], mapped to it); ``nz`` 0 for no latent; ``z_layers`` + 1 dense
        layers map it; ``tanh`` bounds the output to [-1, 1]; ``checkpoint``: the blocks' states are computed again in
        the backward pass.

        Raises ConfigError for an unknown name, and for sizes that do not fit.
        """
        super().__init__()
        sizes = {"in_channels": (in_channels, 1), "out_channels": (out_channels, 1), "channels": (channels, 4)}
        sizes["blocks"] = (blocks, 1)
        sizes |= {"nz": (nz, 0), "z_embedding": (z_embedding, min(nz, 1)), "z_layers": (z_layers, 0)}
        _check_sizes(image_size, patch, channel_mult, sizes)
        self.image_size, self.in_channels, self.nz, self.block = image_size, in_channels, nz, block
        self.channels, self.patch, self.tanh, self.centered = channels, patch, tanh, centered
        self.checkpoint = checkpoint
        plan = LevelPlan(
            block=block,
            time=4 * channels if time_conditional else 0,
            latent=z_embedding if nz else 0,
            dropout=dropout,
            rescale=skip_rescale,
            resample_with_conv=resample_with_conv,
            fir=fir,
            kernel=tuple(fir_kernel),
            input_pyramid=progressive_input,
            output_pyramid=progressive_output,
            combine=progressive_combine,
            checkpoint=checkpoint,
        )
        self._build_embeddings(plan, embedding, fourier_scale, z_layers)
        self._build_levels(plan, [channels * m for m in channel_mult], blocks, set(attention), out_channels)
        self.to(memory_format=torch.channels_last)

    def _build_embeddings(self, plan: LevelPlan, embedding: Embedding, fourier_scale: float, z_layers: int) -> None:
        if embedding not in get_args(Embedding):
            raise nearest("embedding", str(embedding), get_args(Embedding))
        self.fourier = FourierEmbedding(self.channels, fourier_scale) if embedding == "fourier" else None
        features = self.channels if self.fourier is None else 2 * self.channels
        self.time_in = dense(features, plan.time) if plan.time else None
        self.time_out = dense(plan.time, plan.time) if plan.time else None
        self.latent = LatentMapping(self.nz, plan.latent, z_layers) if plan.latent else None

    def _build_levels(
        self, plan: LevelPlan, level_widths: list[int], blocks: int, attention: set[int], out_channels: int
    ) -> None:
        side, deepest = min(height_width(self.image_size)) // self.patch, len(level_widths) - 1
        c, pyramid = self.channels, self.in_channels * self.patch**2
        self.conv_in = conv(pyramid, c)
        skips = [c]
        self.down = nn.ModuleList()
        for i, width in enumerate(level_widths):
            widths = [c] + [width] * blocks
            self.down.append(DownLevel(plan, widths, side >> i in attention, pyramid, last=i == deepest))
            skips += widths[1:]
            c = width
            if i < deepest:
                if plan.input_pyramid == "input_skip" and plan.combine == "cat":
                    c = 2 * width
                elif plan.input_pyramid == "residual":
                    pyramid = width
                skips.append(c)
        self.mid_1 = plan.res_block(c, c)
        self.mid_attention = Attention(c, rescale=plan.rescale)
        self.mid_2 = plan.res_block(c, c)
        out_channels *= self.patch**2
        pyramid = out_channels
        self.up = nn.ModuleList()
        for i, width in reversed(list(enumerate(level_widths))):
            pairs = []
            for _ in range(blocks + 1):
                pairs.append((c + skips.pop(), width))
                c = width
            self.up.append(UpLevel(plan, pairs, side >> i in attention, pyramid, first=i == deepest, last=i == 0))
            if plan.output_pyramid == "residual":
                pyramid = width
        self.out = None if plan.output_pyramid == "output_skip" else NormConv(c, out_channels, scale=NEAR_ZERO)

    def _embed(self, t: Tensor) -> Tensor | None:
        if self.time_in is None or self.time_out is None:
            return None
        emb = timestep_embedding(t, self.channels) if self.fourier is None else self.fourier(t)
        # Every block puts the embedding through another silu before its dense layer: once for all.
        return F.silu(self.time_out(F.silu(self.time_in(emb.to(self.time_in.weight.dtype)))))

    def _map(self, z: Tensor | None, n: int) -> Tensor | None:
        if self.latent is None:
            return None
        if z is None or z.shape != (n, self.nz):
            came = "none" if z is None else tuple(z.shape)
            raise ConfigError(f"NCSNpp needs a latent z of shape {(n, self.nz)}, but got {came}")
        w: Tensor = self.latent(z)
        return w

    def forward(self, x: Tensor, t: Tensor, z: Tensor | None = None) -> Tensor:
        """x (N, in_channels, H, W); t (N,); z (N, nz), not read if nz = 0. Returns (N, out_channels, H, W).

        Raises ConfigError for images or latents of another shape than the network was built for.
        """
        expected = (self.in_channels, *height_width(self.image_size))
        if x.shape[1:] != expected:
            raise ConfigError(f"NCSNpp was built for images {expected}, but got {tuple(x.shape[1:])}")
        emb, latent = self._embed(t), self._map(z, x.shape[0])
        if not self.centered:
            x = 2.0 * x - 1.0
        if self.patch > 1:
            x = F.pixel_unshuffle(x, self.patch)
        # Images of one channel or pixel have ambiguous strides: say which layout is meant (no copy where it holds).
        pyramid = x.contiguous(memory_format=torch.channels_last)
        h = self.conv_in(pyramid)
        skips = [h]
        for level in self.down:
            h, pyramid = level(h, pyramid, emb, latent, skips)
        h = self.mid_attention(recomputed(self.checkpoint, self.mid_1, h, emb, latent))
        h = recomputed(self.checkpoint, self.mid_2, h, emb, latent)
        image: Tensor | None = None
        for level in self.up:
            h, image = level(h, image, emb, latent, skips)
        if self.out is not None:
            image = self.out(h)
        assert image is not None and not skips
        if self.patch > 1:
            image = F.pixel_shuffle(image, self.patch)
        return image.tanh() if self.tanh else image
