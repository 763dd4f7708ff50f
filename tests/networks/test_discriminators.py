"""Time-conditional discriminators: parity with published numbers to second order, initial values, batches, refusals."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from golden import golden
from trilemma.errors import ConfigError
from trilemma.maths.adversarial import gradient_penalty, logits_of_both
from trilemma.networks.discriminators import (
    StridedDiscriminator,
    TimeDiscriminator,
    linear_of_pixels,
    minibatch_std,
    shared_group,
    std_conv,
)
from trilemma.networks.options import DiscriminatorOptions, PointOptions, build_discriminator
from trilemma.networks.stylegan2_discriminator import StyleDiscriminator
from trilemma.types import DataSpec

VARIANTS = ("small", "large", "small_gray")
RENAMES = (
    (r"^conv(\d+)\.conv([12])\.0\.", lambda m: f"blocks.{int(m[1]) - 1}.conv{m[2]}."),
    (r"^conv(\d+)\.dense_t1\.", lambda m: f"blocks.{int(m[1]) - 1}.time."),
    (r"^conv(\d+)\.skip\.0\.", lambda m: f"blocks.{int(m[1]) - 1}.skip."),
    (r"^t_embed\.main\.0\.", lambda m: "time_in."),
    (r"^t_embed\.main\.2\.", lambda m: "time_out."),
)


def our_name(key: str) -> str:
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def published(variant: str) -> tuple[TimeDiscriminator, dict[str, Tensor]]:
    """The network with the stored weights, and the stored arrays."""
    path = golden(f"ddgan_discriminator_{variant}.state.safetensors")
    with safe_open(path, "pt") as f:
        config = json.loads(f.metadata()["config"])
    net = TimeDiscriminator(
        in_channels=config["nc"] // 2, channels=config["ngf"], embedding=config["t_emb_dim"],
        kind=config["cls"].removeprefix("Discriminator_"), size=config["size"],
    )  # fmt: skip
    net.load_state_dict({our_name(k): v for k, v in load_file(path).items()})
    with np.load(golden(f"ddgan_discriminator_{variant}.io.npz")) as io:
        return net, {k: torch.from_numpy(io[k]) for k in io.files if io[k].dtype.kind != "U"}


def close(got: Tensor, stored: Tensor, rel: float, message: str = "") -> None:
    assert float((got - stored).detach().abs().max()) <= rel * float(stored.abs().max()), message


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_image_gradients_equal_the_published_ones(variant: str, layout: torch.memory_format) -> None:
    net, io = published(variant)
    x = io["x"].contiguous(memory_format=layout).requires_grad_()
    y = net(x, io["t"], io["x_t"].contiguous(memory_format=layout))
    close(y, io["y"], 2e-5)
    close(torch.autograd.grad(y.sum(), x)[0], io["grad_x"], 1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gradient_equals_the_published_one(variant: str) -> None:
    """First order for mean softplus(-y), second order for the gradient penalty."""
    net, io = published(variant)
    grads_file = load_file(golden(f"ddgan_discriminator_{variant}.grads.safetensors"))
    stored = {(kind, our_name(key)): v for (kind, key), v in ((k.split("/"), v) for k, v in grads_file.items())}
    names = [name for name, _ in net.named_parameters()]
    assert set(stored) == {(kind, name) for name in names for kind in ("r1", "softplus_real")}
    x = io["x"].clone().requires_grad_()
    y = net(x, io["t"], io["x_t"])
    loss, penalty = F.softplus(-y).mean(), gradient_penalty(y, x, 0.02)
    close(loss, io["loss_softplus_real"], 2e-5)
    close(F.softplus(y).mean(), io["loss_softplus_fake"], 2e-5)
    close(penalty, io["r1_penalty_gamma0.02"], 1e-4)
    silent = {f"blocks.{len(net.blocks) - 1}.conv2.bias", "end_linear.bias"}  # zero in theory: stored is rounding noise
    # The penalty reaches biases through the minibatch statistics alone, as small differences: the stored float32
    # numbers are themselves up to 1.1e-4 from those of a float64 run, and so is any other float32 run.
    for kind, value, rel in (("softplus_real", loss, 1e-4), ("r1", penalty, 2.5e-4)):
        grads = torch.autograd.grad(value, list(net.parameters()), retain_graph=True, allow_unused=True)
        for name, grad in zip(names, grads, strict=True):
            expected = stored[kind, name]
            got = torch.zeros_like(expected) if grad is None else grad
            if kind == "r1" and name in silent:
                assert float((got - expected).abs().max()) < 1e-8, name
            else:
                close(got, expected, rel, f"{kind} {name}")


def direct_std(x: Tensor, group: int) -> Tensor:
    """The strided definition: sample i belongs to group i mod N / g."""
    n = x.shape[0] // group
    std = (x.reshape(group, n, *x.shape[1:]).var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    return std[torch.arange(x.shape[0]) % n]


@pytest.mark.parametrize(("batch", "group"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 3), (8, 4), (10, 2), (32, 4)])
def test_minibatch_std_takes_the_largest_group_that_fits(batch: int, group: int) -> None:
    x = torch.randn(batch, 5, 3, 2)
    torch.testing.assert_close(minibatch_std(x), direct_std(x, group)[:, None, None, None])


@pytest.mark.parametrize("bias", [True, False])
def test_std_conv_is_a_convolution_of_one_more_channel(bias: bool) -> None:
    x, weight = torch.randn(8, 5, 4, 3, dtype=torch.double), torch.randn(7, 6, 3, 3, dtype=torch.double)
    shift = torch.randn(7, dtype=torch.double) if bias else None
    joined = torch.cat((x, direct_std(x, 2)[:, None, None, None].expand(-1, 1, 4, 3)), dim=1)
    torch.testing.assert_close(std_conv(x, weight, shift, 2), F.conv2d(joined, weight, shift, padding=1))


@pytest.mark.parametrize(
    ("n", "std_group", "shared"), [(8, 4, 4), (16, 8, 8), (3, 3, 3), (2, 4, 0), (6, 4, 0), (5, 4, 0)]
)
def test_real_and_fake_images_meet_only_their_like_in_one_pass(n: int, std_group: int, shared: int) -> None:
    """In one pass or two the logits are the same, and the batches fall apart again; else two passes are taken."""
    torch.manual_seed(0)
    net = StyleDiscriminator(size=8, channels=1, classes=2, channel_base=32, std_group=std_group, mapping_layers=1)
    real, fake, c = torch.randn(n, 1, 8, 8), 3.0 * torch.randn(n, 1, 8, 8), torch.randn(n, 2)
    group = shared_group(net, n)
    assert group == shared
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    together = logits_of_both(net, real, fake, c, group=group)
    assert len(calls) == (1 if shared else 2)
    for got, expected in zip(together, (net(real, c), net(fake, c)), strict=True):
        torch.testing.assert_close(got, expected)


def test_linear_of_pixels_is_a_linear_of_the_flattened() -> None:
    x = torch.randn(3, 4, 5, 2).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(6, 40), torch.randn(6)
    torch.testing.assert_close(linear_of_pixels(x, weight, bias), F.linear(x.flatten(1), weight, bias))


def tiny(**changes: object) -> TimeDiscriminator:
    options = {"in_channels": 1, "channels": 4, "embedding": 8, "kind": "tiny", "patch": 2, **changes}
    return TimeDiscriminator(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("fir", [True, False])
@pytest.mark.parametrize(("size", "patch"), [(28, 2), (28, 1), (28, 4), (8, 1), (8, 2), (16, 2), (14, 1)])
def test_tiny_works_on_small_images_to_second_order(size: int, patch: int, fir: bool) -> None:
    torch.manual_seed(0)
    net = tiny(patch=patch, size=size, fir=fir)
    x = torch.randn(4, 1, size, size, requires_grad=True)
    y = net(x, torch.tensor([0, 1, 2, 3]), torch.randn(4, 1, size, size))
    assert y.shape == (4, 1) and bool(y.isfinite().all())
    gradient_penalty(y, x, 1.0).backward()
    for name, p in net.named_parameters():
        assert p.grad is None or bool(p.grad.isfinite().all()), name
    assert net.start_conv.weight.grad is not None and float(net.start_conv.weight.grad.abs().sum()) > 0


def test_second_order_gradient_agrees_with_finite_differences() -> None:
    torch.manual_seed(0)
    net = tiny(channels=2, embedding=4).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, x_t, t = torch.randn(2, 2, 1, 8, 8, dtype=torch.float64).unbind(0) + (torch.tensor([1, 2]),)
    x.requires_grad_()

    def penalty() -> Tensor:
        return gradient_penalty(net(x, t, x_t), x, 1.0)

    weight = net.blocks[1].conv1.weight
    (grad,) = torch.autograd.grad(penalty(), weight)
    step = torch.randn_like(weight)
    with torch.no_grad():
        weight.add_(1e-5 * step)
    up = penalty().item()
    with torch.no_grad():
        weight.sub_(2e-5 * step)
    slope = (up - penalty().item()) / 2e-5
    assert float((grad * step).sum().detach()) == pytest.approx(slope, rel=1e-5)


def test_time_and_both_images_matter() -> None:
    torch.manual_seed(0)
    net = tiny()
    x, x_t, t = torch.randn(4, 1, 28, 28), torch.randn(4, 1, 28, 28), torch.tensor([0, 1, 2, 3])
    for block in net.blocks:  # initially all but silent
        torch.nn.init.normal_(block.conv2.weight, std=0.1)
    y = net(x, t, x_t)
    assert not torch.allclose(y, net(x, t.flip(0), x_t))
    assert not torch.allclose(y, net(x, t, x_t.flip(0)))
    assert not torch.allclose(y, net(x.flip(0), t, x_t))


def test_patch_reads_every_pixel_once() -> None:
    """With patch p the first layer is a p x p convolution of stride p."""
    net = tiny(patch=2)
    x = torch.randn(3, 2, 8, 8)
    weight = net.start_conv.weight.reshape(-1, 2, 2, 2)
    expected = F.conv2d(x, weight, net.start_conv.bias, stride=2)
    torch.testing.assert_close(net.start_conv(F.pixel_unshuffle(x, 2)), expected)


@pytest.mark.parametrize("kind", ["small", "large", "tiny"])
def test_initial_values_follow_the_published_rule(kind: str) -> None:
    """Uniform with variance scale / fan_out: its extreme is sqrt(3 scale / fan_out). Biases are zero."""
    torch.manual_seed(0)
    net = TimeDiscriminator(in_channels=3, channels=8, embedding=16, kind=kind)  # type: ignore[arg-type]
    for name, p in net.named_parameters():
        if p.ndim == 1:
            assert not p.any(), name
            continue
        silent = name.endswith("conv2.weight") or (name == "final_conv.weight" and kind == "small")
        limit = (3 * (1e-10 if silent else 1.0) / (p.shape[0] * p[0, 0].numel())) ** 0.5
        assert 0.8 * limit < float(p.detach().abs().max()) <= limit * 1.0001, name
    assert net.end_linear.weight.shape[0] == 1


def test_layout_stays_channels_last() -> None:
    net, seen = tiny(), []
    for block in net.blocks:
        block.register_forward_hook(
            lambda _m, _i, out: seen.append(out.is_contiguous(memory_format=torch.channels_last))
        )
    net(torch.randn(4, 1, 28, 28), torch.zeros(4, dtype=torch.int64), torch.randn(4, 1, 28, 28))
    assert seen == [True] * 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "medium"),
        ("size", 27),
        ("size", 4),
        ("in_channels", 0),
        ("channels", 0),
        ("patch", 0),
        ("embedding", 2),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny(**{name: value})
    assert "\n" not in str(caught.value)


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="27 x 28"):
        tiny()(torch.zeros(1, 1, 27, 28), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, 27, 28))


def strided(**changes: int) -> StridedDiscriminator:
    torch.manual_seed(0)
    return StridedDiscriminator(**{"in_channels": 1, "size": 28, "channels": 4, "embedding": 8, **changes})


@pytest.mark.parametrize("size", [4, 8, 28])
def test_strided_works_to_second_order(size: int) -> None:
    net = strided(size=size, in_channels=2)
    x = torch.randn(4, 2, size, size, requires_grad=True)
    y = net(x, torch.tensor([0, 1, 2, 3]), torch.randn(4, 2, size, size))
    assert y.shape == (4, 1)
    gradient_penalty(y, x, 1.0).backward()
    for layer in (net.conv_1, net.conv_2, net.conv_3, net.out):
        assert layer.weight.grad is not None and float(layer.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("kind", [tiny, strided])
@pytest.mark.parametrize("conditional", [True, False])
def test_x_t_is_read_unless_the_discriminator_is_unconditional(kind: Any, conditional: bool) -> None:
    torch.manual_seed(0)
    net = kind(conditional=conditional)
    x, x_t, t = torch.randn(4, 1, 28, 28), torch.randn(4, 1, 28, 28), torch.tensor([0, 1, 2, 3])
    y = net(x, t, x_t)
    assert torch.equal(y, net(x, t, x_t.flip(0))) != conditional
    assert not torch.equal(y, net(x.flip(0), t, x_t))
    assert not torch.equal(y, net(x, t.flip(0), x_t)) or kind is tiny  # its blocks are all but silent at first


@pytest.mark.parametrize("change", [{"size": 27}, {"size": 0}, {"channels": 0}, {"in_channels": 0}, {"embedding": 2}])
def test_strided_settings_that_do_not_fit_are_refused_in_one_line(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError) as caught:
        strided(**change)
    assert "\n" not in str(caught.value)


def test_strided_refuses_images_of_another_size() -> None:
    with pytest.raises(ConfigError, match="side 28"):
        strided()(torch.zeros(1, 1, 32, 32), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, 32, 32))


def test_options_that_a_kind_does_not_have_are_refused() -> None:
    points = DataSpec("points", 2, 1, 1)
    with pytest.raises(ConfigError, match="patch"):
        build_discriminator(
            DataSpec("images", 1, 28, 28), DiscriminatorOptions(kind="strided", patch=2), PointOptions()
        )
    with pytest.raises(ConfigError, match="conditional"):
        build_discriminator(points, DiscriminatorOptions(conditional=False), PointOptions())
