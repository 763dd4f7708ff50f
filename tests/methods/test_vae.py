"""VAE: its terms against closed forms, the bound against a likelihood that is known, its sampler."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from tiny import POINTS, SPEC, tools
from trilemma.errors import ConfigError
from trilemma.maths.noise import SeedNoise
from trilemma.methods.vae import VAE, VAEOptions, gaussian_nll, kl_to_prior
from trilemma.networks.autoencoder import AutoencoderOptions
from trilemma.networks.options import PointOptions
from trilemma.types import Batch, DataSpec, Sampler

TINY = AutoencoderOptions(nz=4, channels=8, channel_mult=(1, 1))


def vae(spec: DataSpec = SPEC, **changes: Any) -> VAE:
    points = PointOptions(hidden=16, layers=2, nz=2)
    return VAE(VAEOptions(autoencoder=TINY, points=points, warmup_steps=1, **changes), spec)


def test_the_divergence_from_the_prior_is_that_of_torch() -> None:
    mean, log_var = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, (0.5 * log_var).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl_to_prior(mean, log_var), expected, atol=1e-12, rtol=1e-12)
    assert torch.equal(kl_to_prior(torch.zeros(2, 3), torch.zeros(2, 3)), torch.zeros(2))


def test_the_reconstruction_term_is_the_normal_density() -> None:
    x, mean = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    expected = -Normal(mean, 0.3).log_prob(x).mean()
    torch.testing.assert_close(gaussian_nll((x - mean).square().mean(), 0.09), expected)


def test_the_derivative_vanishes_at_the_optimal_sigma() -> None:
    mse = torch.tensor(0.37, dtype=torch.float64)
    sigma = mse.sqrt().clone().requires_grad_()
    (slope,) = torch.autograd.grad(gaussian_nll(mse, sigma.square()), sigma)
    assert abs(slope.item()) < 1e-12
    for factor in (0.9, 1.1):
        assert gaussian_nll(mse, factor * mse) > gaussian_nll(mse, mse)


def test_an_optimal_sigma_without_a_gradient_is_half_the_logarithm_of_the_error() -> None:
    x, mean = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    mse = (x - mean).square().mean()
    held = gaussian_nll(mse, mse.detach())
    free = 0.5 * mse.log() + 0.5 * (1.0 + math.log(2.0 * math.pi))
    torch.testing.assert_close(held, free)
    torch.testing.assert_close(*(torch.autograd.grad(loss, mean, retain_graph=True)[0] for loss in (held, free)))


class LinearDecoder(nn.Module):
    """x = W z + b, as images of 2 x 2."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.weight.T + self.bias).view(-1, 1, 2, 2)


class ConstantEncoder(nn.Module):
    """The same q(z|x) for every x."""

    def __init__(self, mean: Tensor, log_var: Tensor) -> None:
        super().__init__()
        self.mean, self.log_var = nn.Parameter(mean.clone()), nn.Parameter(log_var.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean.expand(len(x), -1), self.log_var.expand(len(x), -1)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_bound_of_a_linear_decoder_falls_short_of_the_likelihood_by_the_divergence_from_the_posterior(
    shift: float,
) -> None:
    """log N(x; b, W W^T + sigma^2 I) = ELBO + KL(q || p(z|x)); W has orthogonal columns, so p(z|x) is diagonal."""
    sigma, n = 0.7, 100_000
    weight = torch.tensor([[1.0, 0.5], [1.0, -0.5], [-1.0, 0.5], [1.0, 0.5]])
    bias, x = torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([0.9, 0.1, -0.6, 0.4])
    posterior_var = 1.0 / (1.0 + weight.square().sum(0) / sigma**2)
    posterior_mean = posterior_var * (weight.T @ (x - bias)) / sigma**2
    mean, var = posterior_mean + shift, posterior_var * math.exp(shift)

    method = vae(DataSpec("images", 1, 2, 2), likelihood="gaussian", sigma=sigma, learning_rate=1e-9)
    method.encoder, method.decoder = ConstantEncoder(mean, var.log()), LinearDecoder(weight, bias)  # type: ignore[assignment]
    losses = method.step(Batch(x.view(1, 1, 2, 2).expand(n, -1, -1, -1)), 0.0, tools(method))

    evidence = MultivariateNormal(bias, weight @ weight.T + sigma**2 * torch.eye(4)).log_prob(x)
    gap = kl_divergence(Normal(mean, var.sqrt()), Normal(posterior_mean, posterior_var.sqrt())).sum()
    assert abs(-4 * losses["loss"] + gap - evidence) < 0.02
    assert shift == 0.0 or gap > 0.2


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_beta_weighs_the_gradient_of_the_divergence(beta: float) -> None:
    """A decoder deaf to z leaves the encoder nothing but beta KL, whose derivatives are known; none for beta = 0."""
    mean, log_var = torch.tensor([0.4, -0.3]), torch.tensor([0.2, -0.5])
    method = vae(DataSpec("images", 1, 2, 2), beta=beta, clip_gradient=0.0)
    encoder = ConstantEncoder(mean, log_var)
    method.encoder, method.decoder = encoder, LinearDecoder(torch.zeros(4, 2), torch.zeros(4))  # type: ignore[assignment]
    losses = method.step(Batch(torch.rand(8, 1, 2, 2)), 0.5, tools(method))
    assert encoder.mean.grad is not None and encoder.log_var.grad is not None
    torch.testing.assert_close(encoder.mean.grad, beta * mean / 4)
    torch.testing.assert_close(encoder.log_var.grad, beta * 0.5 * (log_var.exp() - 1) / 4)
    torch.testing.assert_close(losses["loss"], losses["reconstruction"] + beta * losses["kl"])
    torch.testing.assert_close(losses["kl"], kl_to_prior(mean[None], log_var[None])[0] / 4)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.2, 0.5), (0.4, 1.0), (0.9, 1.0)])
def test_beta_rises_over_its_share_of_the_budget(progress: float, share: float) -> None:
    losses = (method := vae(beta=3.0, beta_warmup=0.4)).step(Batch(torch.rand(4, *SPEC.shape)), progress, tools(method))
    torch.testing.assert_close(losses["loss"], losses["reconstruction"] + 3.0 * share * losses["kl"])


def test_sigma_is_the_error_of_the_batch_or_what_was_asked_for() -> None:
    x = torch.rand(8, 1, 2, 2)
    expected = {"optimal_gaussian": x.square().mean().sqrt(), "gaussian": torch.tensor(0.3)}
    for likelihood, sigma in expected.items():
        method = vae(DataSpec("images", 1, 2, 2), likelihood=likelihood, sigma=0.3)
        method.decoder = LinearDecoder(torch.zeros(4, 4), torch.zeros(4))  # type: ignore[assignment]
        method.encoder = ConstantEncoder(torch.zeros(4), torch.zeros(4))  # type: ignore[assignment]
        losses = method.step(Batch(x), 0.5, tools(method))
        torch.testing.assert_close(losses["sigma"], sigma)
        torch.testing.assert_close(losses["reconstruction"], gaussian_nll(x.square().mean(), sigma.square()))


def test_sigma_has_a_floor() -> None:
    """A perfect decoder does not send the loss to minus infinity."""
    method = vae(DataSpec("images", 1, 2, 2), least_sigma=0.01)
    method.encoder = ConstantEncoder(torch.zeros(2), torch.zeros(2))  # type: ignore[assignment]
    method.decoder = LinearDecoder(torch.zeros(4, 2), torch.zeros(4))  # type: ignore[assignment]
    losses = method.step(Batch(torch.zeros(8, 1, 2, 2)), 0.5, tools(method))
    torch.testing.assert_close(losses["sigma"], torch.tensor(0.01))
    assert abs(losses["loss"].item() - 0.5 * math.log(2 * math.pi * 1e-4)) < 1e-5


@pytest.mark.parametrize("spec", [SPEC, POINTS], ids=str)
def test_a_sample_is_the_decoded_noise_of_its_seed_and_its_way_starts_at_the_centre_of_the_prior(
    spec: DataSpec,
) -> None:
    method = vae(spec).eval()
    result = method.sample([3, 8], trajectory=True)
    assert result.trajectory is not None
    z = SeedNoise([3, 8]).normal((method.nz,))
    with torch.inference_mode():
        assert torch.equal(result.x, method.decoder(z))
        torch.testing.assert_close(result.trajectory[5], method.decoder(z / 2))
        centre = method.decoder(torch.zeros(2, method.nz))
    assert torch.equal(result.trajectory[0], centre)
    torch.testing.assert_close(centre[0], centre[1])
    assert not torch.allclose(result.x[0], result.x[1])


def test_a_walk_goes_from_one_sample_to_the_other() -> None:
    method = vae().eval()
    walk, ends = method.walk(3, 8, 5), method.sample([3, 8]).x
    assert walk.shape == (5, *SPEC.shape)
    torch.testing.assert_close(walk[[0, 4]], ends)
    middle = SeedNoise([3, 8]).normal((4,)).sum(0, keepdim=True) * 0.5**0.5
    with torch.inference_mode():
        torch.testing.assert_close(walk[2:3], method.decoder(middle))


def test_what_it_calls_itself_and_what_it_refuses() -> None:
    assert vae().title() == "VAE" and vae(beta=4.0).title() == "beta-VAE, beta = 4"
    assert vae().describe(Sampler()) == "1 step"
    with pytest.raises(ConfigError, match="steps"):
        vae().sample([0], Sampler(steps=4))
    with pytest.raises(ConfigError, match="beta must not be negative"):
        vae(beta=-1.0)
    with pytest.raises(ConfigError, match="beta_warmup must be in"):
        vae(beta_warmup=2.0)
    with pytest.raises(ConfigError, match="sigma must be positive"):
        vae(sigma=0.0)
