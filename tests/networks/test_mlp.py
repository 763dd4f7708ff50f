"""Networks for points: shapes, what they depend on, refusals, and that a small training finds narrow modes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trilemma.errors import ConfigError
from trilemma.networks.mlp import PointDiscriminator, PointGenerator


def test_shapes_and_finite_gradients() -> None:
    generator, discriminator = PointGenerator(nz=2, hidden=16), PointDiscriminator(hidden=16, layers=2)
    x, t, z = torch.randn(5, 2, 1, 1), torch.arange(5) % 4, torch.randn(5, 2)
    y = generator(x, t, z)
    assert y.shape == (5, 2, 1, 1)
    logits = discriminator(y, t, x)
    assert logits.shape == (5, 1)
    logits.sum().backward()
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().sum() > 0 or name.endswith("out.bias"), name


def test_the_discriminator_can_be_differentiated_twice() -> None:
    discriminator = PointDiscriminator(hidden=8, layers=1).double()
    x, x_t = torch.randn(3, 2, 1, 1, dtype=torch.float64), torch.randn(3, 2, 1, 1, dtype=torch.float64)
    x.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda v: discriminator(v, torch.tensor([0, 1, 2]), x_t), x)


def test_every_input_is_read() -> None:
    generator, x, t, z = PointGenerator(nz=3), torch.randn(4, 2, 1, 1), torch.tensor([1, 1, 2, 2]), torch.randn(4, 3)
    y = generator(x, t, z)
    assert not torch.allclose(y, generator(x + 0.1, t, z))
    assert not torch.allclose(y, generator(x, t + 1, z))
    assert not torch.allclose(y, generator(x, t, z + 0.1))


def test_without_a_latent_none_is_asked_for() -> None:
    assert PointGenerator(nz=0)(torch.randn(4, 2, 1, 1), torch.zeros(4)).shape == (4, 2, 1, 1)


def test_points_do_not_see_each_other() -> None:
    generator, x, t, z = PointGenerator(nz=2), torch.randn(6, 2, 1, 1), torch.arange(6), torch.randn(6, 2)
    assert torch.allclose(generator(x, t, z)[2:4], generator(x[2:4], t[2:4], z[2:4]), atol=1e-6)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="hidden and layers"):
        PointGenerator(nz=1, hidden=0)
    with pytest.raises(ConfigError, match="nz from 0"):
        PointGenerator(nz=-1)
    with pytest.raises(ConfigError, match="needs a latent"):
        PointGenerator(nz=2)(torch.zeros(3, 2, 1, 1), torch.zeros(3))
    with pytest.raises(ConfigError, match="takes"):
        PointDiscriminator()(torch.zeros(3, 1, 4, 4), torch.zeros(3), torch.zeros(3, 1, 4, 4))


def test_a_step_function_is_learnt_quickly() -> None:
    """Mapping the square to the nearest point of a 5 x 5 lattice takes features finer than the coordinates."""
    generator = PointGenerator(nz=0, hidden=64, layers=2)
    optimiser = torch.optim.Adam(generator.parameters(), 3e-3)
    t = torch.zeros(256)
    for _ in range(250):
        x = torch.rand(256, 2, 1, 1) * 2 - 1
        loss = nn.functional.mse_loss(generator(x, t), (x * 2).round() / 2)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.01  # doing nothing leaves 0.5^2 / 12 = 0.021
