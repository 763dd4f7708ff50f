"""Diffusion-GAN: what D is shown and told, and how the chain follows it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from tiny import SPEC, tiny_method, tools
from trilemma.config import build
from trilemma.errors import ConfigError
from trilemma.methods.diffusion_gan import DiffusionGANOptions
from trilemma.networks.embeddings import timestep_embedding
from trilemma.types import Batch


def batch(n: int = 8) -> Batch:
    return Batch(torch.rand(n, *SPEC.shape) * 2 - 1)


def test_the_discriminator_is_shown_diffused_images_and_told_their_times() -> None:
    method = tiny_method("diffusion_gan", noise={"noise_std": 1.0, "t_min": 500})
    seen: list[tuple[Tensor, Tensor]] = []

    def record(images: Tensor, c: Tensor) -> Tensor:
        seen.append((images, c))
        return images.sum(dim=(1, 2, 3))[:, None]

    x = batch(64).x
    method.judge(record, x, None)  # type: ignore[arg-type]
    [(y, told)] = seen
    table = timestep_embedding(torch.arange(method.noise.T + 1), method.options.t_embedding)
    t = (told[:, None] - table).abs().sum(2).argmin(1)
    clean = t == 0
    assert 0.2 < clean.float().mean() < 0.8  # half of the pool
    assert torch.equal(y[clean], x[clean]) and not torch.isclose(y[~clean], x[~clean]).all(dim=(1, 2, 3)).any()
    # The signal left over is the one of the time that is told.
    residual = y - method.noise.signal[t].view(-1, 1, 1, 1) * x
    spread = residual.flatten(1).std(1)
    torch.testing.assert_close(spread[~clean], method.noise.noise[t[~clean]], atol=0.35, rtol=0)


@pytest.mark.parametrize(("target", "grows"), [(-1.0, True), (1.0, False)])
def test_the_chain_follows_the_discriminator(target: float, grows: bool) -> None:
    """A sign of D on real images above the target makes it longer; below, it cannot be shorter than T_min."""
    method = tiny_method("diffusion_gan", target=target, kimg=0.1, interval=2)
    lent = tools(method)
    for _ in range(4):
        losses = method.step(batch(), 0.5, lent)
    assert (method.noise.T > 10) == grows and losses["T"] == method.noise.T
    assert method.noise.p == method.controller.p


def test_the_chain_is_kept_with_the_run() -> None:
    method = tiny_method("diffusion_gan", target=-1.0, kimg=0.1, interval=2)
    lent = tools(method)
    for _ in range(3):
        method.step(batch(), 0.5, lent)
    other = tiny_method("diffusion_gan", target=-1.0, kimg=0.1, interval=2)
    other.load_extra_state(json.loads(json.dumps(method.extra_state())))
    assert other.noise.T == method.noise.T and torch.equal(other.noise.times, method.noise.times)
    assert other.controller.state() == method.controller.state()


def test_settings_that_do_not_hold_are_refused() -> None:
    for changes, words in (
        ({"t_embedding": 2}, "t_embedding"),
        ({"noise": {"distribution": "prioritised"}}, "distribution"),
        ({"augment": "ada"}, "no key|unknown|augment"),
    ):
        with pytest.raises(ConfigError, match=words):
            build(DiffusionGANOptions, changes, "recipe x")
