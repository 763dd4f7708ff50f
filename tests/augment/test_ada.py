"""Adaptive augmentation: golden numbers, exact identities, distributions of the draws, derivatives of any order."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from golden import golden
from trilemma.augment.ada import PRESETS, AdaOptions, AdaptiveAugment, preset
from trilemma.augment.ada_draws import TorchDraws
from trilemma.augment.ada_filters import band_taps, bands, downsampling, resampling_taps, upsampling
from trilemma.augment.ada_geometry import inverse_map, padding, read
from trilemma.errors import ConfigError

SINGLE = (
    *("xflip", "rotate90", "xint", "scale", "rotate", "aniso", "xfrac"),
    *("brightness", "contrast", "lumaflip", "hue", "saturation", "imgfilter", "cutout"),
)
TOLERANCE = 1e-5


def stored() -> dict[str, Tensor]:
    with np.load(golden("ada_augment.npz"), allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind == "f"}


def relative(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.detach() - theirs).abs().max() / theirs.abs().max())


class AtPercentile:
    """Everything happens, at the value of one percentile, as the golden numbers have it: the normal one without its
    factor sqrt(2), and the second rotation by nothing."""

    def __init__(self, percentile: float) -> None:
        self.percentile = torch.tensor(percentile)

    def normal(self, name: str, *shape: int) -> Tensor:
        return torch.erfinv(2 * self.percentile - 1).expand(shape)

    def uniform(self, name: str, *shape: int) -> Tensor:
        return (torch.tensor(0.5) if name == "rotate_after" else self.percentile).expand(shape)

    def happens(self, name: str, n: int, p: Tensor) -> Tensor:
        return torch.ones(n, dtype=torch.bool)


class InOrder:
    """Stored numbers, one after the other."""

    def __init__(self, numbers: list[Tensor]) -> None:
        self.numbers = numbers

    def normal(self, name: str, *shape: int) -> Tensor:
        return self.numbers.pop(0).view(shape)

    uniform = normal

    def happens(self, name: str, n: int, p: Tensor) -> Tensor:
        return self.normal(name, n) < p


@pytest.mark.parametrize("percentile", [0.2, 0.8])
@pytest.mark.parametrize("name", SINGLE)
def test_each_transformation_agrees_with_the_published_one(name: str, percentile: float) -> None:
    file = stored()
    ours = AdaptiveAugment(AdaOptions(**{name: 1.0}))(file["img"], 1.0, AtPercentile(percentile))
    assert relative(ours, file[f"dp{percentile}__{name}"]) < TOLERANCE


@pytest.mark.parametrize("percentile", [0.35, 0.7])
@pytest.mark.parametrize("name", ["blit", "geom", "color", "filter", "cutout", "bg", "bgc", "bgcf"])
def test_each_published_choice_agrees(name: str, percentile: float) -> None:
    file = stored()
    ours = AdaptiveAugment(name)(file["img"], 1.0, AtPercentile(percentile))
    assert relative(ours, file[f"dp{percentile}__spec_{name}"]) < TOLERANCE


@pytest.mark.parametrize("percentile", [0.35, 0.7])
def test_gray_images_agree(percentile: float) -> None:
    file = stored()
    ours = AdaptiveAugment("bgc")(file["img_gray"], 1.0, AtPercentile(percentile))
    assert relative(ours, file[f"gray_dp{percentile}__spec_bgc"]) < TOLERANCE


@pytest.mark.parametrize(("name", "p"), [("color", 1), ("color", 0.5), ("blit", 0.5), ("geom", 0.5)])
def test_random_draws_act_as_published(name: str, p: float) -> None:
    file = stored()
    draws = InOrder([file[key] for key in sorted(file) if key.startswith(f"{name}_draw_")])
    ours = AdaptiveAugment(name)(file["img"], p, draws)
    assert relative(ours, file[f"injected_{name}_p{p}"]) < TOLERANCE
    assert draws.numbers == []


@pytest.mark.parametrize("name", ["blit", "geom", "color", "filter", "cutout", "bg", "bgc", "bgcf"])
def test_strength_zero_is_the_identity(name: str) -> None:
    file = stored()
    augment, img = AdaptiveAugment(name), file["img"]
    assert augment(img, 0.0) is img
    through = augment(img, torch.tensor(0.0))
    if PRESETS[name].geometric:
        assert (through - img).abs().max() < 6e-7
        assert (through - file[f"p0__spec_{name}"]).abs().max() < 1.2e-6
    else:
        assert torch.equal(through, img)
        assert torch.equal(through, file[f"p0__spec_{name}"])


def test_filters_are_the_published_ones() -> None:
    file = stored()
    assert relative(resampling_taps(), file["Hz_geom"]) < 2e-7
    assert relative(band_taps(), file["Hz_fbank"]) < 2e-7


def test_filters_are_wavelets() -> None:
    taps = resampling_taps().double()
    shifts = torch.nn.functional.conv1d(taps.view(1, 1, -1), taps.view(1, 1, -1), padding=10, stride=2).flatten()
    assert torch.allclose(shifts, torch.tensor([0.0] * 5 + [0.5] + [0.0] * 5, dtype=torch.float64), atol=1e-7)
    # Six vanishing moments: polynomials of degree 5 pass the low band alone.
    signs = (-1.0) ** torch.arange(12)
    for order in range(6):
        assert abs(float((taps * signs * torch.linspace(-1, 1, 12).double() ** order).sum())) < 1e-6
    one = torch.zeros(43)
    one[21] = 1
    assert torch.allclose(band_taps().sum(dim=0), one, atol=1e-7)
    # Each passes the middle of its own part of the spectrum and takes away the others'.
    angle = math.pi * torch.tensor([0, 3 / 16, 3 / 8, 1]).view(-1, 1)
    gain = (band_taps()[:, None] * torch.cos(angle * torch.arange(-21, 22))).sum(dim=-1)
    assert torch.equal(gain.argmax(dim=0), torch.arange(4))


@pytest.mark.parametrize("size", [2, 7, 24])
def test_resampling_there_and_back_is_the_identity(size: int) -> None:
    taps = resampling_taps().double()
    pad = min(size - 1, 6)
    up = upsampling(taps, size, pad, pad)
    assert torch.allclose(up.sum(dim=1)[12:-12], torch.ones(max(2 * (size + 2 * pad) - 24, 0)).double(), atol=1e-6)
    down = downsampling(taps, size)
    assert torch.allclose(down.sum(dim=1), torch.ones(size).double(), atol=1e-6)
    if pad == 6:
        assert torch.allclose(down @ up[6:-6], torch.eye(size).double(), atol=1e-6)


def test_bands_reflect_at_the_border_and_add_up_to_the_identity() -> None:
    matrices = bands(band_taps(), 22)
    assert torch.allclose(matrices.sum(dim=0), torch.eye(22), atol=1e-6)
    x = torch.randn(22)
    padded = torch.nn.functional.pad(x.view(1, 1, -1), (21, 21), mode="reflect")
    spelled_out = torch.nn.functional.conv1d(padded, band_taps()[:, None]).squeeze(0)
    assert torch.allclose(matrices @ x, spelled_out, atol=1e-6)


def test_reading_agrees_with_pytorch_and_can_be_differentiated_twice() -> None:
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    grid = 2.6 * torch.rand(2, 3, 6, 2, dtype=torch.float64) - 1.3
    theirs = torch.nn.functional.grid_sample(x, grid, align_corners=False)
    assert torch.equal(read(x, grid), theirs)
    weight = torch.randn_like(theirs)
    (ours,) = torch.autograd.grad((read(x, grid) * weight).sum(), x)
    assert torch.allclose(ours, torch.autograd.grad((theirs * weight).sum(), x)[0])
    assert torch.autograd.gradcheck(lambda v: read(v, grid), x)
    assert torch.autograd.gradgradcheck(lambda v: read(v, grid).square(), x)


@pytest.mark.parametrize(("name", "size"), [("bgc", (4, 5)), ("filter", (22, 23)), ("cutout", (4, 4))])
def test_derivatives_of_first_and_second_order(name: str, size: tuple[int, int]) -> None:
    augment = AdaptiveAugment(name)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    # Along random lines: the whole Jacobian of an image is large.
    lines = torch.randn(3, *x.shape, dtype=torch.float64)
    along = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def every(v: Tensor) -> Tensor:
        torch.manual_seed(5)
        return augment(x.detach() + (v.view(-1, 1, 1, 1, 1) * lines).sum(dim=0), 0.8)

    assert torch.autograd.gradcheck(every, along)
    assert torch.autograd.gradgradcheck(lambda v: every(v).square().sum(), along)


def test_a_gradient_penalty_reaches_the_weights_behind() -> None:
    augment, layer = AdaptiveAugment("bgc"), torch.nn.Conv2d(3, 1, 3)
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(augment(x, 0.7)).tanh().sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().min() > 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (14, 14), (28, 28), (9, 16)])
def test_small_images_keep_their_shape(size: tuple[int, int], channels: int) -> None:
    x = torch.randn(16, channels, *size)
    options = replace(PRESETS["bgcfnc"], imgfilter=1.0 if min(size) >= 22 else 0.0)
    y = AdaptiveAugment(options)(x, 1.0)
    assert y.shape == x.shape
    assert y.isfinite().all()


def test_blitting_moves_whole_pixels() -> None:
    class Turn(AtPercentile):
        def uniform(self, name: str, *shape: int) -> Tensor:
            return torch.tensor(1 / 4 if name == "rotate90" else 0.999).expand(shape)

    x = torch.randn(2, 3, 8, 8)
    # The wavelet is symmetric only nearly: of white noise, a turned image has not quite the same pixels.
    flipped = AdaptiveAugment(AdaOptions(xflip=1.0))(x, 1.0, Turn(0.5))
    assert (flipped - x.flip(3)).std() < 0.2
    turned = AdaptiveAugment(AdaOptions(rotate90=1.0))(x, 1.0, Turn(0.5))
    assert (turned - x.rot90(1, (2, 3))).std() < 0.2
    moved = AdaptiveAugment(AdaOptions(xint=1.0))(x, 1.0, Turn(0.5))
    reflected = torch.nn.functional.pad(x, (1, 0, 1, 0), mode="reflect")[:, :, :8, :8]
    assert torch.allclose(moved, reflected, atol=1e-5)


def test_maps_of_blitting_are_exact() -> None:
    size, one = torch.tensor((20.0, 12.0)), torch.tensor(1.0)

    class Fixed(AtPercentile):
        def uniform(self, name: str, *shape: int) -> Tensor:
            return torch.tensor({"xflip": 0.5, "rotate90": 0.25, "xint": 0.75}[name]).expand(shape)

    a, t = inverse_map(AdaOptions(xflip=1.0), 1, size, one, Fixed(0.5))
    assert a.tolist() == [[[-1, 0], [0, 1]]] and not t.any()
    a, t = inverse_map(AdaOptions(rotate90=1.0), 1, size, one, Fixed(0.5))
    assert a.tolist() == [[[0, -1], [1, 0]]] and not t.any()
    # Half of the way to 1/8 of the sides, 1.25 and 0.75 pixels; then 2.5 and 1.5, where halves go to the even number.
    a, t = inverse_map(AdaOptions(xint=1.0), 1, size, one, Fixed(0.5))
    assert t.tolist() == [[-1, -1]]
    a, t = inverse_map(AdaOptions(xint=1.0, xint_max=0.25), 1, size, one, Fixed(0.5))
    assert t.tolist() == [[-2, -2]]


def test_padding_is_what_the_corners_read() -> None:
    eye, still = torch.eye(2).repeat(2, 1, 1), torch.zeros(2, 2)
    assert padding(eye, still, 24, 32) == (6, 6, 6, 6)
    t = torch.tensor([[0.0, 0.0], [-3.0, 2.5]])
    assert padding(eye, t, 24, 32) == (9, 6, 6, 9)
    assert padding(10 * eye, still, 8, 24) == (7, 23, 7, 23)
    assert padding(0.1 * eye, still, 24, 24) == (0, 0, 0, 0)


def test_both_rotations_together_happen_with_the_stated_probability() -> None:
    n, p = 20_000, torch.tensor(0.36)
    like = torch.tensor((8.0, 8.0))
    a, _ = inverse_map(AdaOptions(rotate=1.0), n, like, p, TorchDraws(like))
    assert float((a != torch.eye(2)).any(dim=(1, 2)).float().mean()) == pytest.approx(0.36, abs=0.015)
    # At p = 1 and above both turn every image.
    for strong in (1.0, 3.0):
        a, _ = inverse_map(AdaOptions(rotate=1.0), 100, like, torch.tensor(strong), TorchDraws(like))
        assert (a != torch.eye(2)).any(dim=(1, 2)).all()


def test_scales_are_log_normal_and_shifts_normal() -> None:
    n, size, one = 20_000, torch.tensor((10.0, 20.0)), torch.tensor(1.0)
    a, t = inverse_map(AdaOptions(scale=1.0, xfrac=1.0), n, size, one, TorchDraws(size))
    assert float(a[:, 0, 0].log2().std()) == pytest.approx(0.2, rel=0.03)
    shift = t / a[:, 0, :1] / size
    assert shift.std(dim=0).tolist() == pytest.approx([0.125, 0.125], rel=0.03)
    a, _ = inverse_map(AdaOptions(aniso=1.0), n, size, one, TorchDraws(size))
    assert torch.allclose(a[:, 0, 0] * a[:, 1, 1], torch.ones(n))  # the area stays


def test_noise_is_half_normal_in_strength() -> None:
    x = torch.zeros(4000, 1, 16, 16)
    sigma = AdaptiveAugment("noise")(x, 0.5).std(dim=(1, 2, 3))
    assert float((sigma > 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert float(sigma[sigma > 0].square().mean()) == pytest.approx(0.1**2, rel=0.1)
    assert float(sigma[sigma > 0].mean()) == pytest.approx(0.1 * math.sqrt(2 / math.pi), rel=0.05)


def test_cutout_covers_half_of_each_side_where_it_fits() -> None:
    y = AdaptiveAugment("cutout")(torch.ones(4000, 1, 16, 16), 0.5)[:, 0]
    lines = (y.amin(dim=2) == 0).sum(dim=1)
    assert float((lines > 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert int(lines.max()) == 8 and int(lines[lines > 0].min()) in {4, 5}
    # About a centre uniform in the image, 7/16 of a side lie inside it on average.
    assert float(lines[lines > 0].float().mean()) == pytest.approx(7, rel=0.03)


def test_hue_and_saturation_keep_the_luma_and_a_flip_turns_it() -> None:
    x = torch.randn(8, 3, 6, 6)
    y = AdaptiveAugment(AdaOptions(hue=1.0, saturation=1.0))(x, 1.0)
    assert torch.allclose(y.mean(dim=1), x.mean(dim=1), atol=1e-5)
    turned = AdaptiveAugment(AdaOptions(hue=1.0))(x, 1.0)
    assert torch.allclose(turned.square().sum(dim=1), x.square().sum(dim=1), atol=1e-4)  # a rotation
    flipped = AdaptiveAugment(AdaOptions(lumaflip=1.0))(x, 1.0, AtPercentile(0.9))
    assert torch.allclose(flipped, x - 2 * x.mean(dim=1, keepdim=True), atol=1e-6)


def test_band_gains_keep_the_expected_power() -> None:
    # An image with power 10 : 1 : 1 : 1 in the bands has the same power whatever band is amplified: g is normalised.
    class Strong(AtPercentile):
        def normal(self, name: str, *shape: int) -> Tensor:
            return torch.full(shape, 3.0 if name == "imgfilter_3" else 0.0)

    x = torch.ones(1, 1, 32, 32)  # the lowest band alone: amplifying the highest weakens it
    y = AdaptiveAugment("filter")(x, 1.0, Strong(0.5))
    assert torch.allclose(y, torch.full_like(y, 1 / ((12 + 64) / 13)), atol=1e-5)  # 1 / norm for each of the two axes
    still = AdaptiveAugment(AdaOptions(imgfilter=1.0, imgfilter_bands=(1, 1, 1, 0)))(x, 1.0, Strong(0.5))
    assert torch.equal(still, x)


def test_channels_last_and_dtype_stay() -> None:
    augment = AdaptiveAugment("bgcfnc")
    x = torch.randn(2, 3, 24, 24).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = augment(x, 0.9)
    assert y.is_contiguous(memory_format=torch.channels_last)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert grad.is_contiguous(memory_format=torch.channels_last)
    assert augment(x.bfloat16(), 0.9).dtype == torch.bfloat16
    assert augment(x.double(), 0.9).dtype == torch.float64


def test_autocast_does_not_coarsen_the_images() -> None:
    x = torch.rand(2, 3, 24, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = AdaptiveAugment("bgcf")(x, torch.tensor(0.0))
    assert (y - x).abs().max() < 5e-6


def test_draws_come_from_the_global_generator() -> None:
    x = torch.randn(4, 3, 24, 24)
    augment = AdaptiveAugment("bgcfnc")
    torch.manual_seed(1)
    first = augment(x, 0.6)
    torch.manual_seed(1)
    assert torch.equal(augment(x, 0.6), first)
    assert not torch.equal(augment(x, 0.6), first)


def test_filters_are_no_part_of_a_checkpoint() -> None:
    assert AdaptiveAugment("bgcf").state_dict() == {}


def test_published_choices_are_made_of_the_published_groups() -> None:
    def chances(name: str) -> set[str]:
        options = PRESETS[name]
        return {f.name for f in fields(options) if f.default == 0.0 and getattr(options, f.name) == 1.0}

    groups = ("blit", "geom", "color", "filter", "noise", "cutout")
    for letters, end in (("bg", 2), ("bgc", 3), ("bgcf", 4), ("bgcfn", 5), ("bgcfnc", 6)):
        assert chances(letters) == set().union(*(chances(group) for group in groups[:end]))
    assert chances("bgcfnc") == {*SINGLE, "noise"}


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="did you mean 'bgcf'"):
        preset("bgcff")
    with pytest.raises(ConfigError, match="at least 22 pixels, not 16 x 32"):
        AdaptiveAugment("bgcf")(torch.zeros(1, 3, 16, 32), 0.5)
    with pytest.raises(ConfigError, match="1 or 3 channels, not 2"):
        AdaptiveAugment("bgc")(torch.zeros(1, 2, 8, 8), 0.5)
    with pytest.raises(ConfigError, match="p must be at least 0"):
        AdaptiveAugment("bgc")(torch.zeros(1, 3, 8, 8), -0.1)
    with pytest.raises(ConfigError, match=r"xflip must lie in \[0, 1\], not 2"):
        AdaOptions(xflip=2.0)
    with pytest.raises(ConfigError, match="four numbers"):
        AdaOptions(imgfilter_bands=(1.0, 1.0))
    with pytest.raises(ConfigError, match="scale_std must be at least 0"):
        AdaOptions(scale_std=-1.0)
