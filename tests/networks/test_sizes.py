"""Rectangles: which sizes fit, and that a network treats height and width alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tiny import tiny_method, tools
from trilemma.errors import ConfigError
from trilemma.methods import method_names
from trilemma.networks.discriminators import StridedCritic, TimeDiscriminator
from trilemma.networks.ncsnpp import NCSNpp
from trilemma.networks.sizes import Size, divided, in_words, nearest_multiple, nearest_that_shrinks, size_of
from trilemma.networks.stylegan2 import Synthesis, _halved, feature_shapes, feature_sides
from trilemma.networks.stylegan2_discriminator import StyleDiscriminator
from trilemma.types import Batch, DataSpec


@pytest.mark.parametrize(
    ("size", "factor", "nearest"),
    [(9, 2, 10), (9, 4, 8), ((30, 20), 4, (32, 20)), ((30, 33), 8, 32), ((3, 5), 8, 8), (28, 4, 28)],
)
def test_the_nearest_size_that_fits(size: Size, factor: int, nearest: Size) -> None:
    assert nearest_multiple(size, factor) == nearest


def test_words_for_sizes() -> None:
    assert (size_of(8, 8), size_of(8, 16)) == (8, (8, 16))
    assert (in_words(28), in_words((28, 28)), in_words((28, 20))) == ("side 28", "side 28", "28 x 20")
    assert divided("it", (24, 40), 8, "so") == (3, 5)
    with pytest.raises(ConfigError, match="it cannot take images of 30 x 20: so each side .* 4; .* fits is 32 x 20"):
        divided("it", (30, 20), 4, "so")


@pytest.mark.parametrize(
    ("size", "patch", "shapes"),
    [
        ((16, 32), 1, [(4, 8), (8, 16), (16, 32)]),
        ((24, 32), 2, [(6, 8), (12, 16)]),
        ((12, 20), 1, [(6, 10), (12, 20)]),
        ((9, 16), 1, [(9, 16)]),
    ],
)
def test_features_of_rectangles_halve_while_both_sides_can(
    size: Size, patch: int, shapes: list[tuple[int, int]]
) -> None:
    assert feature_shapes(size, patch, "it") == shapes
    with pytest.raises(ConfigError, match="it: images of 16 x 30 are no multiple of patch 4; .* is 16 x 32"):
        feature_shapes((16, 30), 4, "it")


@pytest.mark.parametrize(
    ("size", "patch", "left", "nearest"),
    [
        (65, 1, "65 x 65", "side 64"),
        (250, 1, "125 x 125", "side 256"),
        (34, 1, "17 x 17", "side 36"),
        (130, 2, "65 x 65", "side 128"),
        ((65, 100), 1, "65 x 100", "64 x 100"),
        ((250, 64), 1, "125 x 32", "252 x 64"),
    ],
)
def test_a_side_that_stays_large_is_refused_with_one_that_does_not(
    size: Size, patch: int, left: str, nearest: str
) -> None:
    """A dense layer behind 125 x 125 features would have thousands of millions of weights."""
    with pytest.raises(ConfigError, match=f"it cannot take images of .* stay at {left}, .* fits is {nearest}$"):
        feature_shapes(size, patch, "it")
    for make in (
        lambda: Synthesis(w_dim=3, size=size, channels=1, patch=patch, channel_base=64, channel_max=8),
        lambda: StyleDiscriminator(size=size, channels=1, patch=patch, channel_base=64, channel_max=8),
    ):
        with pytest.raises(ConfigError, match=f"fits is {nearest}$"):
            make()


@given(st.integers(4, 1100), st.integers(4, 1100))
def test_the_nearest_that_shrinks_does(height: int, width: int) -> None:
    fits = nearest_that_shrinks((height, width), 16)
    assert min(feature_shapes(fits, 1, "it")[0]) <= 16
    assert nearest_that_shrinks(fits, 16) == fits
    if min(_halved(height, width)[0]) <= 16 and min(height, width) > 16:
        assert fits == size_of(height, width)


@pytest.mark.parametrize("side", [4, 7, 12, 28, 64])
def test_squares_are_as_they_were(side: int) -> None:
    assert feature_shapes(side, 1, "it") == [(each, each) for each in feature_sides(side)]


def unet(size: Size) -> NCSNpp:
    return NCSNpp(
        image_size=size, in_channels=1, out_channels=1, channels=4, channel_mult=(1, 2), blocks=1, attention=(4,),
        nz=3, z_embedding=4, z_layers=1, progressive_input="residual",
    )  # fmt: skip


def synthesis(size: Size) -> Synthesis:
    return Synthesis(w_dim=3, size=size, channels=1, channel_base=64, channel_max=8)


def time_critic(size: Size) -> TimeDiscriminator:
    return TimeDiscriminator(in_channels=1, channels=4, embedding=8, kind="tiny", size=size, conditional=False)


def run_unet(network: Any, x: Tensor) -> Tensor:
    y: Tensor = network(x, torch.arange(2), torch.linspace(-1, 1, 6).view(2, 3))
    return y


def run_synthesis(network: Any, x: Tensor) -> Tensor:
    y: Tensor = network(torch.linspace(-1, 1, 6).view(2, 3), "const")
    assert y.shape == x.shape
    return y


def run_critic(network: Any, x: Tensor) -> Tensor:
    y: Tensor = network(x, torch.arange(2), x)
    return y[:, :, None, None]


def turned(key: str, value: Tensor) -> Tensor:
    """A weight with height and width exchanged."""
    spatial = value.ndim == 4 or key.endswith(("const", "noise_const"))
    return value.transpose(-1, -2) if spatial else value


@pytest.mark.parametrize(
    ("make", "run"), [(unet, run_unet), (synthesis, run_synthesis), (time_critic, run_critic)], ids=lambda f: f.__name__
)
def test_a_picture_on_its_side_comes_out_on_its_side(
    make: Callable[[Size], nn.Module], run: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    lying, standing = make((8, 16)), make((16, 8))
    with torch.no_grad():
        for parameter in lying.parameters():  # many start silent
            parameter.copy_(0.3 * torch.randn(parameter.shape))
        standing.load_state_dict({key: turned(key, value) for key, value in lying.state_dict().items()})
        x = torch.randn(2, 1, 8, 16)
        y = run(lying, x)
        assert y.std() > 1e-3
        torch.testing.assert_close(run(standing, x.transpose(2, 3)).transpose(2, 3), y, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", method_names())
def test_every_method_learns_and_makes_rectangles(name: str) -> None:
    spec = DataSpec("images", 3, 8, 16)
    method = tiny_method(name, spec)
    x = (torch.rand(8, *spec.shape) * 2 - 1).contiguous(memory_format=torch.channels_last)
    losses = method.step(Batch(x), 0.5, tools(method))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert method.eval().sample([1, 2]).x.shape == (2, 3, 8, 16)


@pytest.mark.parametrize(
    "critic",
    [StridedCritic(in_channels=1, size=(8, 16), channels=4, embedding=8),
     StyleDiscriminator(size=(8, 16), channels=1, channel_base=64, channel_max=8)],
    ids=["strided", "style"],
)  # fmt: skip
def test_a_critic_of_rectangles_takes_no_others(critic: nn.Module) -> None:
    assert critic(torch.randn(4, 1, 8, 16)).shape == (4, 1)
    with pytest.raises(ConfigError, match="built for images of 8 x 16"):
        critic(torch.randn(4, 1, 16, 8))


@pytest.mark.parametrize(
    ("size", "patch", "nearest"), [(9, 2, "side 10"), (3, 1, "side 4"), ((3, 9), 2, "8 x 10"), ((5, 9), 1, None)]
)
def test_a_time_critic_names_what_fits(size: Size, patch: int, nearest: str | None) -> None:
    def make() -> TimeDiscriminator:
        return TimeDiscriminator(in_channels=1, channels=4, embedding=8, kind="tiny", size=size, patch=patch)

    if nearest is None:
        make()
        return
    with pytest.raises(ConfigError, match=f"the nearest that fits is {nearest}, or choose another kind or patch"):
        make()


def test_a_critic_that_cannot_halve_names_what_fits() -> None:
    with pytest.raises(ConfigError, match="10 x 16: .* multiple of 4; the nearest that fits is 12 x 16"):
        StridedCritic(in_channels=1, size=(10, 16))
