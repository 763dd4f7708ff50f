"""FIR resampling: golden numbers, the definition spelled out, derivatives of any order, memory layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from golden import golden
from trilemma.errors import ConfigError
from trilemma.networks.layers import Downsample, Upsample
from trilemma.networks.resample import fir_downsample, fir_filter, fir_upsample, naive_downsample, naive_upsample

GOLDEN = {"1331": (1, 3, 3, 1), "asym": (1, 2, 4, 1), "12": (1, 2)}
KERNELS = [*GOLDEN.values(), (1, 2, 1), (1, 2, 4, 1, 3)]


def primitives() -> dict[str, Tensor]:
    with np.load(golden("primitives.npz"), allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind == "f"}


def relative(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.detach() - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("name", GOLDEN)
def test_filters_agree_with_the_published_ones(name: str) -> None:
    stored = primitives()
    assert relative(fir_upsample(stored["x"], GOLDEN[name]), stored[f"dd_upsample_{name}"]) < 2e-6
    assert relative(fir_downsample(stored["x"], GOLDEN[name]), stored[f"dd_downsample_{name}"]) < 2e-6


@pytest.mark.parametrize("name", GOLDEN)
def test_filter_and_strided_convolution_agree_with_the_published_ones(name: str) -> None:
    stored = primitives()
    layer = Downsample(3, 4, with_conv=True, fir=True, kernel=GOLDEN[name])
    assert layer.conv is not None
    layer.conv.weight.data = stored["w"]
    assert relative(layer(stored["x"]), stored[f"dd_conv_downsample_{name}"]) < 2e-6


def test_naive_resampling_agrees_with_the_published_one() -> None:
    stored = primitives()
    assert relative(naive_upsample(stored["x"]), stored["dd_naive_up"]) < 2e-6
    assert relative(naive_downsample(stored["x"]), stored["dd_naive_down"]) < 2e-6


def spelled_out(x: Tensor, kernel: tuple[int, ...], up: int, down: int, before: int, after: int, gain: float) -> Tensor:
    """Zeros inserted, padded, convolved with the flipped kernel along each axis in turn, thinned out."""
    taps = torch.tensor(kernel, dtype=x.dtype)
    taps = (taps / taps.sum() * gain**0.5).flip(0)
    n, c, h, w = x.shape
    big = x.new_zeros(n, c, h * up, w * up)
    big[:, :, ::up, ::up] = x
    big = F.pad(big, (before, after, before, after))
    for axis in (2, 3):
        big = (big.unfold(axis, len(kernel), 1) * taps).sum(-1)
    return big[:, :, ::down, ::down]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_filters_do_what_their_definition_says(kernel: tuple[int, ...], size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    p = len(kernel) - 2
    up = spelled_out(x, kernel, 2, 1, (p + 1) // 2 + 1, p // 2, 4.0)
    assert torch.allclose(fir_upsample(x, kernel), up)
    assert up.shape[2:] == (2 * size[0], 2 * size[1])
    down = spelled_out(x, kernel, 1, 2, (p + 1) // 2, p // 2, 1.0)
    assert torch.allclose(fir_downsample(x, kernel), down)
    plain = spelled_out(x, kernel, 1, 1, 2, 1, 3.0)
    assert torch.allclose(fir_filter(x, kernel, pad=(2, 1), gain=3.0), plain)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("resample", [fir_upsample, fir_downsample])
def test_derivatives_of_first_and_second_order(kernel, resample) -> None:  # type: ignore[no-untyped-def]
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: resample(v, kernel), x)
    assert torch.autograd.gradgradcheck(lambda v: resample(v, kernel).square(), x)


def test_constants_survive_away_from_the_border() -> None:
    x = torch.ones(1, 1, 8, 8)
    assert torch.allclose(fir_upsample(x)[:, :, 2:-2, 2:-2], torch.ones(1, 1, 12, 12))
    assert torch.allclose(fir_downsample(x)[:, :, 1:-1, 1:-1], torch.ones(1, 1, 2, 2))


def test_channels_last_stays_so_forwards_and_backwards() -> None:
    x = torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    for resample in (fir_upsample, fir_downsample, naive_upsample, naive_downsample):
        y = resample(x)
        assert y.is_contiguous(memory_format=torch.channels_last), resample
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        assert grad.is_contiguous(memory_format=torch.channels_last), resample


def test_up_convolution_is_filter_then_convolution_inside() -> None:
    layer = Upsample(3, 2, with_conv=True, fir=True).double()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    assert layer.conv is not None
    layer.conv.bias.data = torch.tensor([0.5, -1.0], dtype=torch.float64)
    expected = layer.conv(fir_upsample(x))
    assert torch.allclose(layer(x)[:, :, 2:-2, 2:-2], expected[:, :, 2:-2, 2:-2])


@pytest.mark.parametrize("kernel", [(1,), (1, -1), ()])
def test_kernels_that_cannot_be_normalised_are_refused(kernel: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="FIR kernel"):
        fir_downsample(torch.zeros(1, 1, 4, 4), kernel)
