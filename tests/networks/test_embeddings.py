"""Time embeddings: golden numbers, the formula, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from golden import golden
from trilemma.errors import ConfigError
from trilemma.networks.embeddings import FourierEmbedding, timestep_embedding


@pytest.mark.parametrize("dim", [6, 16, 17])
def test_positional_embedding_agrees_with_the_published_one(dim: int) -> None:
    with np.load(golden("primitives.npz"), allow_pickle=False) as file:
        stored = torch.from_numpy(file[f"timestep_embedding_dim{dim}"])
    ours = timestep_embedding(torch.tensor([0, 1, 2, 3, 7, 999]), dim)
    assert ours.shape == stored.shape
    # The sine of 999 turns one rounding of its argument into 6e-5, so the largest entry sets the scale.
    assert float((ours - stored).abs().max()) <= 2e-6 * float(stored.abs().max())


def test_positional_embedding_is_the_formula() -> None:
    (emb,) = timestep_embedding(torch.tensor([3]), 8).double()
    for k in range(4):
        omega = 10000.0 ** (-k / 3)
        assert math.isclose(emb[k], math.sin(3 * omega), abs_tol=1e-6)
        assert math.isclose(emb[4 + k], math.cos(3 * omega), abs_tol=1e-6)


def test_times_may_be_real() -> None:
    between = timestep_embedding(torch.tensor([0.25, 0.5]), 8)
    assert not torch.equal(between[0], between[1])


def test_too_small_an_embedding_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 4"):
        timestep_embedding(torch.tensor([0]), 3)


def test_fourier_embedding_is_the_formula_and_finite_at_0() -> None:
    emb = FourierEmbedding(5, scale=2.0)
    t = torch.tensor([0.0, 0.3, 2.0])
    y = emb(t)
    assert y.shape == (3, 10)
    assert torch.isfinite(y).all()
    angles = 2 * math.pi * t[1:, None].log() * emb.frequencies
    assert torch.allclose(y[1:], torch.cat((angles.sin(), angles.cos()), dim=1), atol=1e-5)
    assert "frequencies" in emb.state_dict()
    assert not list(emb.parameters())


def test_fourier_frequencies_have_the_scale() -> None:
    assert 15.0 < float(FourierEmbedding(20000, scale=16.0).frequencies.std()) < 17.0
