"""The levels of NCSN++: all that happens at one size of the feature map, on the way down and on the way up.

A level also carries the pyramids on. The input pyramid is the image itself, halved from level to level and joined to
the state; the output pyramid is an image that each level on the way up adds to and that is doubled in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from trilemma.errors import ConfigError, nearest
from trilemma.networks.initialise import NEAR_ZERO, conv
from trilemma.networks.layers import Attention, Downsample, NormConv, ResBlock, Upsample, merge
from trilemma.networks.recompute import recomputed
from trilemma.networks.resample import fir_taps

Block = Literal["biggan", "ddpm", "biggan_oneadagn"]
OutputPyramid = Literal["none", "output_skip", "residual"]
InputPyramid = Literal["none", "input_skip", "residual"]
Combine = Literal["sum", "cat"]


@dataclass(frozen=True)
class LevelPlan:
    """What the levels share: settings of the blocks, the resampling and the pyramids."""

    block: Block
    time: int
    latent: int
    dropout: float
    rescale: bool
    resample_with_conv: bool
    fir: bool
    kernel: tuple[float, ...]
    input_pyramid: InputPyramid
    output_pyramid: OutputPyramid
    combine: Combine
    checkpoint: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for an unknown name or a number that does not fit."""
        for option, value, known in (
            ("block", self.block, Block),
            ("progressive_output", self.output_pyramid, OutputPyramid),
            ("progressive_input", self.input_pyramid, InputPyramid),
            ("progressive_combine", self.combine, Combine),
        ):
            if value not in get_args(known):
                raise nearest(option, str(value), get_args(known))
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout {self.dropout} does not fit: give a number from 0 up to, but not, 1")
        fir_taps(self.kernel)

    def res_block(self, c_in: int, c_out: int, resample: Literal["up", "down"] | None = None) -> ResBlock:
        return ResBlock(
            c_in,
            c_out,
            time=self.time,
            latent=self.latent,
            resample=resample,
            fir=self.fir,
            kernel=self.kernel,
            dropout=self.dropout,
            rescale=self.rescale,
            both_adaptive=self.block != "biggan_oneadagn",
            shortcut_scale=0.1 if self.block == "ddpm" else 1.0,
        )

    def filter(self, with_conv: bool) -> dict[str, Any]:
        return {"with_conv": with_conv, "fir": self.fir, "kernel": self.kernel}


class DownLevel(nn.Module):
    """Blocks at one size, then (unless last) half the size with the input pyramid joined."""

    def __init__(self, plan: LevelPlan, widths: Sequence[int], attend: bool, pyramid: int, *, last: bool) -> None:
        """``widths``: channels coming in, then out of each block; ``pyramid``: channels of the input pyramid."""
        super().__init__()
        self.plan = plan
        c = widths[-1]
        self.blocks = nn.ModuleList(plan.res_block(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.attentions = nn.ModuleList(
            Attention(b, rescale=plan.rescale) if attend else nn.Identity() for b in widths[1:]
        )
        self.resample: ResBlock | Downsample | None = None
        self.shrink: Downsample | None = None
        self.combine: nn.Conv2d | None = None
        if last:
            return
        if plan.block == "ddpm":
            self.resample = Downsample(c, c, **plan.filter(plan.resample_with_conv))
        else:
            self.resample = plan.res_block(c, c, "down")
        if plan.input_pyramid == "input_skip":
            self.shrink = Downsample(pyramid, pyramid, **plan.filter(False))
            self.combine = conv(pyramid, c, 1)
        elif plan.input_pyramid == "residual":
            self.shrink = Downsample(pyramid, c, **plan.filter(True))

    def forward(
        self, h: Tensor, pyramid: Tensor, emb: Tensor | None, latent: Tensor | None, skips: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The state and the input pyramid for the next level; what the way up will read is put on ``skips``."""
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            h = attention(recomputed(self.plan.checkpoint, block, h, emb, latent))
            skips.append(h)
        if self.resample is None:
            return h, pyramid
        inputs = (h, emb, latent) if isinstance(self.resample, ResBlock) else (h,)
        h = recomputed(self.plan.checkpoint, self.resample, *inputs)
        if self.shrink is not None:
            pyramid = self.shrink(pyramid)
            if self.combine is None:
                h = pyramid = merge(pyramid, h, rescale=self.plan.rescale)
            elif self.plan.combine == "cat":
                h = torch.cat((self.combine(pyramid), h), dim=1)
            else:
                h = self.combine(pyramid) + h
        skips.append(h)
        return h, pyramid


def _on_both(block: nn.Module, h: Tensor, skip: Tensor, emb: Tensor | None, latent: Tensor | None) -> Any:
    """The block on the state and a skip side by side, so that recomputing keeps no second copy of the skip."""
    return block(torch.cat((h, skip), dim=1), emb, latent)


class UpLevel(nn.Module):
    """Blocks that read the skips, attention, the output pyramid, then (unless last) twice the size."""

    def __init__(
        self,
        plan: LevelPlan,
        pairs: Sequence[tuple[int, int]],
        attend: bool,
        pyramid: int,
        *,
        first: bool,
        last: bool,
    ) -> None:
        """``pairs``: (c_in, c_out) of each block; ``pyramid``: channels of the output pyramid coming in."""
        super().__init__()
        self.plan = plan
        c = pairs[-1][1]
        self.blocks = nn.ModuleList(plan.res_block(a, b) for a, b in pairs)
        self.attention: nn.Module = Attention(c, rescale=plan.rescale) if attend else nn.Identity()
        self.grow: Upsample | None = None
        self.emit: NormConv | None = None
        if plan.output_pyramid == "output_skip":
            self.grow = None if first else Upsample(pyramid, pyramid, **plan.filter(False))
            self.emit = NormConv(c, pyramid, scale=NEAR_ZERO)
        elif plan.output_pyramid == "residual":
            self.grow = None if first else Upsample(pyramid, c, **plan.filter(True))
            self.emit = NormConv(c, c, scale=1.0) if first else None
        self.resample: ResBlock | Upsample | None = None
        if not last and plan.block == "ddpm":
            self.resample = Upsample(c, c, **plan.filter(plan.resample_with_conv))
        elif not last:
            self.resample = plan.res_block(c, c, "up")

    def forward(
        self, h: Tensor, pyramid: Tensor | None, emb: Tensor | None, latent: Tensor | None, skips: list[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """The state and the output pyramid for the next level; takes what it reads off ``skips``."""
        for block in self.blocks:
            h = recomputed(self.plan.checkpoint, _on_both, block, h, skips.pop(), emb, latent)
        h = self.attention(h)
        emitted = None if self.emit is None else self.emit(h)
        if self.grow is None or pyramid is None:
            pyramid = emitted
        elif emitted is None:
            h = pyramid = merge(self.grow(pyramid), h, rescale=self.plan.rescale)
        else:
            pyramid = self.grow(pyramid) + emitted
        if self.resample is not None:
            inputs = (h, emb, latent) if isinstance(self.resample, ResBlock) else (h,)
            h = recomputed(self.plan.checkpoint, self.resample, *inputs)
        return h, pyramid
