"""StyleGAN2's networks: what modulation does, sizes that are no power of two, noise, truncation, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from trilemma.errors import ConfigError
from trilemma.networks.resample import fir_filter
from trilemma.networks.stylegan2 import (
    GAIN,
    StyledConv,
    StyleGenerator,
    StyleMapping,
    Synthesis,
    feature_sides,
    feature_width,
)
from trilemma.networks.stylegan2_discriminator import StyleDiscriminator


def synthesis(**changes: Any) -> Synthesis:
    return Synthesis(**{"w_dim": 8, "size": 16, "channels": 3, "channel_base": 64, "channel_max": 8, **changes})


def discriminator(**changes: Any) -> StyleDiscriminator:
    return StyleDiscriminator(**{"size": 16, "channels": 3, "channel_base": 64, "channel_max": 8, **changes})


@pytest.mark.parametrize("up", [False, True])
def test_a_styled_convolution_is_one_with_a_kernel_of_its_own_for_each_image(up: bool) -> None:
    """Modulated and demodulated kernels, written out as in the paper's equations 1 and 3."""
    conv = StyledConv(5, 6, 8, 8 if up else 4, up=up)
    torch.nn.init.normal_(conv.bias)
    x, w = torch.randn(3, 5, 4, 4), torch.randn(3, 8)
    kernels = conv.weight * conv.affine(w)[:, None, :, None, None]
    kernels = kernels / (kernels.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).sqrt()
    ys = []
    for image, kernel in zip(x, kernels, strict=True):
        if up:
            y = fir_filter(F.conv_transpose2d(image[None], kernel.transpose(0, 1), stride=2), pad=(1, 1), gain=4.0)
        else:
            y = F.conv2d(image[None], kernel, padding=1)
        ys.append(y)
    expected = F.leaky_relu(torch.cat(ys) + conv.bias[:, None, None], 0.2) * GAIN
    torch.testing.assert_close(conv(x, w, None), expected, atol=1e-5, rtol=1e-5)


def test_demodulated_features_have_variance_one_whatever_the_style() -> None:
    conv = StyledConv(64, 64, 8, 16)
    x = torch.randn(4, 64, 16, 16)
    before = F.conv2d(x * conv.affine(10 * torch.randn(4, 8))[:, :, None, None], conv.weight, padding=1)
    assert before.std() > 20
    y = conv(x, 10 * torch.randn(4, 8), None)
    assert 0.8 < (y / GAIN).square().mean().sqrt() / 0.72 < 1.2  # E lrelu(N(0, 1))^2 = 0.52


@pytest.mark.parametrize(
    ("size", "sides"),
    [(4, [4]), (8, [4, 8]), (28, [7, 14, 28]), (14, [7, 14]), (32, [4, 8, 16, 32]), (30, [15, 30]), (9, [9])],
)
def test_sides_double_from_the_smallest_that_is_whole(size: int, sides: list[int]) -> None:
    assert feature_sides(size) == sides
    net = synthesis(size=size)
    assert net(torch.randn(2, 8)).shape == (2, 3, size, size)
    assert net.num_ws == 2 * len(sides)
    assert [shape[1] for shape in net.noise_shapes] == [sides[0], *(s for side in sides[1:] for s in (side, side))]
    assert discriminator(size=size)(torch.randn(2, 3, size, size)).shape == (2, 1)


def test_widths_fall_with_the_side() -> None:
    assert [feature_width(side, 256, 32) for side in (4, 8, 16, 512)] == [32, 32, 16, 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_patch_makes_and_reads_blocks_of_pixels(channels: int) -> None:
    net = synthesis(size=28, channels=channels, patch=2)
    assert net.sides == [7, 14] and net(torch.randn(2, 8)).shape == (2, channels, 28, 28)
    judge = discriminator(size=28, channels=channels, patch=2)
    assert judge.sides == [14, 7] and judge(torch.randn(2, channels, 28, 28)).shape == (2, 1)


def test_a_latent_start_depends_on_the_latent_and_a_constant_one_does_not() -> None:
    for start in ("constant", "latent"):
        net = synthesis(start=start)
        seen: list[torch.Tensor] = []
        net.blocks[0].conv.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        net(torch.randn(2, 8))
        assert torch.equal(seen[0][0], seen[0][1]) == (start == "constant")


def test_noise_given_is_the_noise_used() -> None:
    net = synthesis()
    for conv in net.convs():
        torch.nn.init.ones_(conv.noise_strength)
    w = torch.randn(2, 8)
    stored = [conv.noise_const.expand(2, 1, -1, -1) for conv in net.convs()]
    torch.testing.assert_close(net(w, stored), net(w, "const"))
    silent = [torch.zeros(2, *shape) for shape in net.noise_shapes]
    torch.testing.assert_close(net(w, silent), net(w, "none"))
    assert not torch.allclose(net(w, "random"), net(w, "random"))


def test_each_layer_reads_its_own_w() -> None:
    net = synthesis()
    ws = torch.randn(1, net.num_ws, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(net(ws, "none").square().sum(), ws)
    assert (grad.abs().sum(2) > 0).all()


def test_truncation_draws_w_to_its_average_and_a_cutoff_limits_it() -> None:
    generator = StyleGenerator(StyleMapping(6, 8, layers=2), synthesis()).eval()
    generator.mapping.w_avg = torch.randn(8)
    z = torch.randn(3, 6)
    w, average = generator.mapping(z), generator.mapping.w_avg
    ws = generator.ws(z, None, 0.3, 2)
    torch.testing.assert_close(ws[:, 0], average + 0.3 * (w - average))
    torch.testing.assert_close(ws[:, 1], ws[:, 0])
    torch.testing.assert_close(ws[:, 2:], w[:, None].expand(-1, 4, -1))
    torch.testing.assert_close(generator.ws(z, None, 0.0), average.expand(3, 6, -1))


def test_style_mixing_changes_the_layers_from_the_cutoff_on() -> None:
    generator = StyleGenerator(StyleMapping(6, 8, layers=2), synthesis())
    z, other = torch.randn(2, 6), torch.randn(2, 6)
    image, ws = generator(z, None, "none", z_mixed=other, mixed_from=3, with_ws=True)
    torch.testing.assert_close(ws[:, :3], generator.ws(z, None)[:, :3])
    torch.testing.assert_close(ws[:, 3:], generator.ws(other, None)[:, 3:])
    torch.testing.assert_close(image, generator.synthesis(ws, "none"))


def test_the_average_follows_w_in_training_only_and_only_if_asked() -> None:
    mapping = StyleMapping(6, 8, layers=2, beta=0.9)
    z = torch.randn(5, 6)
    w = mapping(z)
    torch.testing.assert_close(mapping.w_avg, 0.1 * w.mean(0))
    before = mapping.w_avg.clone()
    mapping(z, follow=False)
    mapping.eval()(z)
    assert torch.equal(mapping.w_avg, before)


def test_the_length_of_z_does_not_matter() -> None:
    mapping = StyleMapping(6, 8, layers=2).eval()
    z = torch.randn(5, 6)
    torch.testing.assert_close(mapping(3.0 * z), mapping(z))


def test_a_condition_changes_the_logits_and_only_with_it() -> None:
    judge = discriminator(classes=4, mapping_layers=2)
    x = torch.randn(2, 3, 16, 16)
    labels = F.one_hot(torch.tensor([0, 3]), 4).float()
    assert not torch.allclose(judge(x, labels), judge(x, labels.flip(0)))
    with pytest.raises(ConfigError, match=r"labels \(N, 4\), but got none"):
        judge(x)


def test_what_cannot_be_built_or_read_is_refused() -> None:
    for make, words in (
        (lambda: synthesis(size=3), "at least 4 pixels"),
        (lambda: synthesis(size=28, patch=3), "no multiple of patch 3"),
        (lambda: discriminator(size=28, patch=3), "no multiple of patch 3"),
        (lambda: discriminator(architecture="resnets"), "did you mean 'resnet'"),
        (lambda: StyleMapping(0, 8), "needs a latent or labels"),
        (lambda: StyleMapping(6, 8)(torch.randn(2, 5)), "z of 6 numbers"),
        (lambda: StyleMapping(6, 8, beta=None).truncate(torch.randn(2, 8), 0.5), "keeps no average"),
        (lambda: discriminator()(torch.randn(1, 3, 8, 8)), "images of side 16"),
    ):
        with pytest.raises(ConfigError, match=words):
            make()
