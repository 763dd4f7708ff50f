"""NCSN++: every combination of options, initial values, layout, batch independence and refusals.

Agreement with the published network is tested in ``tests/interop/test_ddgan.py``, through its own weights.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trilemma.errors import ConfigError
from trilemma.networks.initialise import fan_average_uniform_, fan_out_uniform_
from trilemma.networks.layers import Attention, LatentMapping, ResBlock
from trilemma.networks.ncsnpp import NCSNpp
from trilemma.networks.norm import AdaptiveGroupNorm, GroupNorm, group_count, group_norm


def toy(**changes: Any) -> NCSNpp:
    settings: dict[str, Any] = {
        "image_size": 8, "in_channels": 1, "out_channels": 1, "channels": 4, "channel_mult": (1, 2), "blocks": 1,
        "attention": (4,), "nz": 3, "z_embedding": 4, "z_layers": 1,
    }  # fmt: skip
    return NCSNpp(**{**settings, **changes})


def inputs(network: NCSNpp, n: int = 2) -> tuple[torch.Tensor, ...]:
    side = network.image_size
    x = torch.randn(n, network.in_channels, side, side).contiguous(memory_format=torch.channels_last)
    return x, torch.arange(n) % 4, torch.randn(n, network.nz)


def wake(network: nn.Module) -> nn.Module:
    """Gives the layers that start silent ordinary weights, so that a test sees through them."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_average_uniform_(layer.weight)
    return network


OPTIONS = {
    "block": ("biggan", "ddpm", "biggan_oneadagn"),
    "progressive_output": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
    "fir": (True, False),
    "resample_with_conv": (True, False),
}


@pytest.mark.parametrize("block", OPTIONS["block"])
@pytest.mark.parametrize("progressive_output", OPTIONS["progressive_output"])
@pytest.mark.parametrize("progressive_input", OPTIONS["progressive_input"])
def test_every_combination_of_options_builds_and_runs(
    block: str, progressive_output: str, progressive_input: str
) -> None:
    chosen = {"block": block, "progressive_output": progressive_output, "progressive_input": progressive_input}
    rest = [name for name in OPTIONS if name not in chosen]
    for values in itertools.product(*(OPTIONS[name] for name in rest)):
        network = toy(**chosen, **dict(zip(rest, values, strict=True)), attention=())
        x, t, z = inputs(network)
        y = network(x, t, z)
        assert y.shape == x.shape
        y.sum().backward()
        unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
        assert not unused, (chosen, values, unused)


@pytest.mark.parametrize(
    "changes",
    [
        {"embedding": "fourier"},
        {"time_conditional": False},
        {"centered": False},
        {"skip_rescale": False},
        {"dropout": 0.3},
        {"nz": 0},
        {"attention": (8, 4)},
        {"channel_mult": (2,)},
        {"channel_mult": (1, 2, 3, 2), "channels": 12},
        {"blocks": 2},
        {"tanh": False},
        {"in_channels": 6, "out_channels": 3},
        {"fir_kernel": (1, 1)},
        {"fir_kernel": (1, 2, 1), "progressive_output": "residual", "progressive_input": "residual"},
        {"patch": 2},
        {"patch": 4, "in_channels": 3, "out_channels": 3},
        {"image_size": 28, "patch": 2},
        {"image_size": 28, "channel_mult": (1, 1, 1)},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()),
)
def test_other_options_build_and_run(changes: dict[str, Any]) -> None:
    network = wake(toy(**changes))
    x, t, z = inputs(network)
    y = network(x, t, z)
    out = changes.get("out_channels", 1)
    assert y.shape == (2, out, network.image_size, network.image_size)
    assert torch.isfinite(y).all()
    if network.tanh:
        assert y.abs().max() <= 1


def test_without_a_latent_it_is_a_denoiser() -> None:
    network = toy(nz=0, z_embedding=0, z_layers=0, tanh=False)
    assert not any(isinstance(m, AdaptiveGroupNorm | LatentMapping) for m in network.modules())
    x, t, _ = inputs(network)
    assert network(x, t).shape == x.shape


def test_it_reads_image_time_and_latent() -> None:
    network = wake(toy())
    x, t, z = inputs(network)
    y = network(x, t, z)
    assert not torch.allclose(y, network(x + 0.1, t, z), atol=1e-4)
    assert not torch.allclose(y, network(x, t + 1, z), atol=1e-4)
    assert not torch.allclose(y, network(x, t, -z), atol=1e-4)
    assert torch.allclose(y, network(x, t, 3 * z), atol=1e-4)  # only the direction of z counts


def test_centered_says_where_the_image_lies() -> None:
    network = wake(toy(centered=False))
    x, t, z = inputs(network)
    y = network(x, t, z)
    network.centered = True
    assert torch.allclose(y, network(2 * x - 1, t, z), atol=1e-6)


def test_dropout_rests_in_evaluation() -> None:
    network = wake(toy(dropout=0.5))
    x, t, z = inputs(network)
    assert not torch.equal(network(x, t, z), network(x, t, z))
    network.eval()
    assert torch.equal(network(x, t, z), network(x, t, z))


def test_a_fresh_network_is_all_but_silent() -> None:
    network = NCSNpp(image_size=16, in_channels=3, out_channels=3, channels=32, channel_mult=(1, 2), blocks=1,
                     attention=(8,), nz=16, z_embedding=32)  # fmt: skip
    x, t, z = inputs(network)
    assert 1e-7 < network(x, t, z).abs().max() < 1e-3  # published: about 3e-5


def test_images_in_a_batch_do_not_see_each_other() -> None:
    network = wake(toy(attention=(8, 4), progressive_input="residual"))
    x, t, z = inputs(network, 6)
    assert torch.allclose(network(x, t, z)[2:4], network(x[2:4], t[2:4], z[2:4]), atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"fir": False}, {"block": "ddpm"}, {"patch": 2, "image_size": 16}])
def test_channels_last_is_never_left(changes: dict[str, Any]) -> None:
    pyramids = {"progressive_input": "residual", "progressive_output": "output_skip"}
    network = toy(in_channels=3, out_channels=3, **pyramids, **changes)
    seen = 0

    def check(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        nonlocal seen
        for tensor in (*args, out):
            if isinstance(tensor, torch.Tensor) and tensor.dim() == 4:
                assert tensor.is_contiguous(memory_format=torch.channels_last), module
                seen += 1

    for module in network.modules():
        module.register_forward_hook(check)
    x, t, z = inputs(network)
    network(x, t, z)
    assert seen > 50
    for name, parameter in network.named_parameters():
        assert parameter.dim() < 4 or parameter.is_contiguous(memory_format=torch.channels_last), name


def test_patch_is_the_network_on_unshuffled_pixels() -> None:
    outer = wake(toy(image_size=16, patch=2))
    inner = toy(image_size=8, in_channels=4, out_channels=4)
    inner.load_state_dict(outer.state_dict())
    x, t, z = inputs(outer)
    y = inner(F.pixel_unshuffle(x, 2), t, z)
    assert torch.allclose(outer(x, t, z), F.pixel_shuffle(y, 2), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "bigan"}, "unknown block 'bigan': did you mean 'biggan'"),
        ({"embedding": "sine"}, "unknown embedding"),
        ({"progressive_output": "residul"}, "did you mean 'residual'"),
        ({"progressive_input": "skip"}, "unknown progressive_input"),
        ({"progressive_combine": "add"}, "unknown progressive_combine"),
        ({"image_size": 9}, "multiple of 2"),
        ({"image_size": 28, "patch": 4, "channel_mult": (1, 1, 1)}, "multiple of 16"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"channels": 2}, "channels 2"),
        ({"blocks": 0}, "blocks 0"),
        ({"patch": 0}, "patch 0"),
        ({"nz": -1}, "nz -1"),
        ({"dropout": 1.5}, "dropout 1.5"),
        ({"fir_kernel": (1, -1)}, "FIR kernel"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        toy(**changes)
    assert "\n" not in str(caught.value)


def test_inputs_that_do_not_fit_are_refused() -> None:
    network = toy()
    x, t, z = inputs(network)
    with pytest.raises(ConfigError, match="built for images"):
        network(x[:, :, :4], t, z)
    with pytest.raises(ConfigError, match="got none"):
        network(x, t)
    with pytest.raises(ConfigError, match="latent z of shape"):
        network(x, t, z[:, :2])


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_initialisers_have_their_variance(scale: float) -> None:
    weight = torch.empty(64, 32, 3, 3)
    average = float(fan_average_uniform_(weight, scale).var())
    assert average == pytest.approx(scale * 2 / ((64 + 32) * 9), rel=0.03)
    assert float(weight.abs().max()) <= (3 * scale * 2 / ((64 + 32) * 9)) ** 0.5
    assert float(fan_out_uniform_(weight, scale).var()) == pytest.approx(scale / (64 * 9), rel=0.03)


@torch.no_grad()
def test_layers_start_as_published() -> None:
    block = ResBlock(64, 96, time=128, latent=100)
    assert float(block.conv_1.weight.var()) == pytest.approx(2 / (160 * 9), rel=0.05)
    assert float(block.conv_2.weight.var()) == pytest.approx(1e-10 * 2 / (192 * 9), rel=0.05)
    assert block.time is not None and isinstance(block.norm_1, AdaptiveGroupNorm)
    assert float(block.time.weight.var()) == pytest.approx(2 / (128 + 96), rel=0.05)
    assert float(block.norm_1.style.weight.var()) == pytest.approx(1 / 128, rel=0.05)
    assert torch.equal(block.norm_1.style.bias, torch.cat((torch.ones(64), torch.zeros(64))))
    attention = Attention(96, rescale=True)
    assert float(attention.qkv.weight.var()) == pytest.approx(0.1 / 96, rel=0.05)
    assert float(attention.out.weight.var()) == pytest.approx(1e-10 / 96, rel=0.1)
    mapping = LatentMapping(50, 200, 3)
    assert len(mapping.layers) == 4
    assert float(mapping.layers[0].weight.var()) == pytest.approx(1 / 200, rel=0.05)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("shape", [(2, 6, 3, 2), (2, 6, 1, 1), (1, 9, 2, 2)])
def test_group_norm_is_torchs_to_the_second_derivative(
    shape: tuple[int, ...], channels_last: bool, shifted: bool, silu: bool
) -> None:
    x = torch.randn(shape, dtype=torch.float64) + 0.5
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    gamma, beta, shift = torch.randn(3, *shape[:2], dtype=torch.float64)
    inputs = (x, gamma, beta, shift)[: 4 if shifted else 3]
    for v in inputs:
        v.requires_grad_()

    def norm(x: Tensor, gamma: Tensor, beta: Tensor, shift: Tensor | None = None) -> Tensor:
        return group_norm(x, gamma, beta, 3, shift=shift, silu=silu)

    h = x + shift[:, :, None, None] if shifted else x
    expected = F.group_norm(h, 3, eps=1e-6) * gamma[:, :, None, None] + beta[:, :, None, None]
    assert torch.allclose(norm(*inputs), F.silu(expected) if silu else expected)
    assert torch.autograd.gradcheck(norm, inputs)
    assert torch.autograd.gradgradcheck(norm, inputs)


@pytest.mark.parametrize("size", [8, 64])  # as torch does it without a gradient, and too large for that
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("shifted", [True, False])
def test_group_norm_is_the_same_with_and_without_a_gradient(shifted: bool, silu: bool, size: int) -> None:
    x = (torch.randn(2, 32, size, size) + 0.5).contiguous(memory_format=torch.channels_last)
    gamma, beta = torch.randn(2, 2, 32)
    shift = torch.randn(2, 32) if shifted else None
    before = x.clone()
    without = group_norm(x, gamma, beta, 8, shift=shift, silu=silu)
    with torch.inference_mode():
        inferred = group_norm(x, gamma, beta, 8, shift=shift, silu=silu)
    recorded = group_norm(x.clone().requires_grad_(), gamma, beta, 8, shift=shift, silu=silu)
    assert torch.equal(without, inferred) and torch.equal(x, before)
    assert torch.allclose(without, recorded, atol=1e-5)
    assert without.is_contiguous(memory_format=torch.channels_last)


def test_group_norm_of_constants_and_far_off_means_stays_finite() -> None:
    ones = torch.ones(2, 8)
    assert torch.isfinite(group_norm(torch.full((2, 8, 4, 4), 1e3), ones, ones, 2)).all()
    x = torch.randn(2, 8, 16, 16) + 30
    expected = F.group_norm(x, 2, eps=1e-6)
    assert torch.allclose(group_norm(x, ones, 0 * ones, 2), expected, atol=1e-3)


def test_group_count_is_the_published_one_where_that_is_possible() -> None:
    assert [group_count(c) for c in (4, 16, 64, 128, 192, 256)] == [1, 4, 16, 32, 32, 32]
    assert all(c % group_count(c) == 0 for c in range(1, 400))
    assert GroupNorm(6).groups == 1


def test_adaptive_norm_without_a_latent_is_refused() -> None:
    with pytest.raises(ConfigError, match="no latent"):
        AdaptiveGroupNorm(4, 2)(torch.zeros(1, 4, 2, 2))
