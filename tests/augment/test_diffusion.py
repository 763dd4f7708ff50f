"""Diffusion-GAN's noise: golden numbers, the law of the times, states that are taken up again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from golden import golden
from trilemma.augment.diffusion import DiffusionNoise, DiffusionNoiseOptions, num_steps, pool, time_weights
from trilemma.errors import ConfigError
from trilemma.maths.schedules import linear_schedule

STRENGTHS = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


def arrays() -> dict[str, Tensor]:
    with np.load(golden("diffusion_gan.npz"), allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind in "fi"}


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest deviation over the largest stored entry."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def at(p: float, **changes: Any) -> DiffusionNoise:
    return DiffusionNoise(DiffusionNoiseOptions(**changes), p)


def with_pool(p: float, times: Tensor) -> DiffusionNoise:
    noise = at(p)
    noise.load({"p": p, "T": noise.T, "pool": times.tolist()})
    return noise


@pytest.mark.parametrize("p", STRENGTHS)
def test_the_chain_agrees_with_the_published_one(p: float) -> None:
    stored, noise = arrays(), at(p)
    assert noise.T == int(stored[f"p{p}__T"])
    assert relative(noise.signal, stored[f"p{p}__alphas_bar_sqrt"]) < 1e-6
    assert relative(noise.noise, stored[f"p{p}__one_minus_alphas_bar_sqrt"]) < 1e-6


def test_the_betas_are_those_of_the_linear_schedule() -> None:
    stored = arrays()
    for p in STRENGTHS:
        betas = stored[f"p{p}__betas"]
        assert relative(linear_schedule(len(betas), 1e-4, 0.02).betas, betas) < 1e-6
    assert relative(linear_schedule(16, 1e-4, 0.02).betas.double(), stored["betas_f64_T16_linear"]) < 1e-6


@pytest.mark.parametrize("p", STRENGTHS)
def test_weights_and_pools_agree_with_the_published_ones(p: float) -> None:
    stored = arrays()
    T = int(stored[f"p{p}__T"])
    assert relative(time_weights(T, "priority"), stored[f"p{p}__prob_priority"]) < 1e-15
    assert relative(time_weights(T, "uniform"), stored[f"p{p}__prob_uniform"]) < 1e-15
    uniforms = torch.from_numpy(np.random.RandomState(7).random_sample(32))
    expected = stored[f"p{p}__t_epl_priority_seed7"]
    assert torch.equal(pool(T, "priority", uniforms), expected[:32])
    assert not expected[32:].any()
    # The stored uniform pools were drawn as integers: the middle of each time's share of [0, 1) stands for it.
    expected = stored[f"p{p}__t_epl_uniform_seed7"]
    assert torch.equal(expected[:32], torch.from_numpy(np.random.RandomState(7).randint(0, T, 32)) + 1)
    assert torch.equal(pool(T, "uniform", (expected[:32] - 0.5) / T), expected[:32])
    assert not expected[32:].any()


def test_diffused_images_agree_with_the_published_ones() -> None:
    stored, noise = arrays(), at(0.25)
    x, t = stored["x0"], stored["t"]
    assert noise.T == 258
    assert relative(noise.diffuse(x, t, stored["noise"]), stored["x_t_gauss"]) < 1e-6
    assert relative(noise.diffuse(x, t, 2 * stored["bern"] - 1), stored["x_t_bernoulli"]) < 1e-6


def test_a_drawn_batch_agrees_with_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = arrays()
    noise = with_pool(0.25, stored["p0.25__t_epl_priority_seed7"])
    indices = torch.from_numpy(np.random.RandomState(11).randint(0, 64, 10))
    monkeypatch.setattr(torch, "randint", lambda low, high, size: indices)
    monkeypatch.setattr(torch, "randn_like", lambda x: stored["noise"])
    y, t = noise.draw(stored["x0"])
    assert torch.equal(t, stored["forward_t_seed11"][:, 0])
    assert relative(y, stored["forward_x_t"]) < 1e-6


def test_the_number_of_steps_is_rounded_half_to_even_and_stays_in_range() -> None:
    assert [num_steps(p, 0, 10) for p in (0.05, 0.15, 0.25, 0.35)] == [0, 2, 2, 4]
    assert num_steps(0.25, 10, 1000) == 258  # 247.5 steps more
    assert num_steps(0.75, 10, 1000) == 752  # 742.5 steps more
    assert num_steps(3.0, 10, 1000) == 1000
    for wrong in (-0.01, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="strength p"):
            num_steps(wrong, 10, 1000)


@pytest.mark.parametrize(("distribution", "total"), [("priority", 45), ("uniform", 10)])
def test_evenly_spread_numbers_give_every_time_its_share(distribution: Any, total: int) -> None:
    """Of 45 = 0 + 1 + .. + 9 even numbers, priority gives t - 1 to each t in 1..10."""
    uniforms = (torch.arange(total, dtype=torch.float64) + 0.5) / total
    counts = torch.bincount(pool(10, distribution, uniforms), minlength=11)
    assert counts.tolist() == ([0, *range(10)] if distribution == "priority" else [0] + [1] * 10)


@pytest.mark.parametrize("T", [2, 10, 258, 1000])
def test_the_extremes_of_a_generator_stay_in_range(T: int) -> None:
    extremes = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    assert pool(T, "priority", extremes).tolist() == [2, T]
    assert pool(T, "uniform", extremes).tolist() == [1, T]


def test_half_of_the_images_stay_clean() -> None:
    noise = at(0.5)
    assert noise.times.shape == (64,)
    assert int((noise.times == 0).sum()) == 32
    x = torch.randn(4000, 1, 2, 2)
    y, t = noise.draw(x)
    clean = t == 0
    assert torch.equal(y[clean], x[clean])
    assert bool((y[~clean] != x[~clean]).flatten(1).any(1).all())
    assert float(clean.float().mean()) == pytest.approx(0.5, abs=0.03)
    assert set(t.tolist()) == set(noise.times.tolist())  # with replacement, but of 4000 none is missed


def test_the_noise_has_the_variance_of_the_chain() -> None:
    noise = at(1.0, noise_std=0.2)
    t = torch.full((400,), 700)
    x = torch.ones(400, 3, 16, 16)
    y = noise.diffuse(x, t, torch.randn_like(x))
    assert float(y.mean()) == pytest.approx(float(noise.signal[700]), abs=2e-3)
    assert float(y.std()) == pytest.approx(0.2 * float(noise.noise[700]), rel=0.01)
    assert torch.allclose(noise.signal.square() + noise.noise.square(), torch.ones(1001))


def test_gradients_pass_with_the_weight_of_the_signal() -> None:
    noise, t = at(0.5), torch.tensor([0, 3, 505])
    x = torch.randn(3, 1, 4, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(noise.diffuse(x, t, torch.randn(3, 1, 4, 4)).sum(), x)
    assert torch.equal(grad, noise.signal[t][:, None, None, None].expand_as(x))


def test_the_global_generator_draws_everything() -> None:
    def everything() -> tuple[Any, ...]:
        torch.manual_seed(5)
        noise = at(0.3)
        noise.set_strength(0.4)
        return (noise.state(), *(v.tolist() for v in noise.draw(torch.zeros(6, 1, 2, 2))))

    np.random.seed(1)
    first = everything()
    np.random.seed(2)
    assert first == everything()
    noise = at(0.3)
    before = noise.times.clone()
    noise.set_strength(0.3)
    assert not torch.equal(noise.times, before)


def test_a_state_taken_up_again_goes_on_as_if_unbroken() -> None:
    noise = at(0.37)
    kept = json.loads(json.dumps(noise.state()))
    assert kept.keys() == {"p", "T", "pool"}
    x, generator = torch.randn(8, 3, 4, 4), torch.get_rng_state()
    y, t = noise.draw(x)
    other = at(0.0)
    other.load(kept)
    torch.set_rng_state(generator)
    again, t_again = other.draw(x)
    assert torch.equal(again, y) and torch.equal(t_again, t)
    assert other.state() == kept


def test_states_of_other_options_are_refused() -> None:
    noise = at(0.2)
    state = noise.state()
    with pytest.raises(ConfigError, match="other t_min and t_max"):
        at(0.2, t_max=500).load(state)
    for times in ([0] * 63, [*state["pool"][:63], noise.T + 1], [*state["pool"][:63], -1]):
        with pytest.raises(ConfigError, match="stored pool must hold 64 times"):
            noise.load({**state, "pool": times})
    assert noise.state() == state


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"distribution": "priorty"}, "did you mean 'priority'"),
        ({"t_min": 1}, "t_min must be at least 2"),
        ({"t_min": 0, "distribution": "uniform"}, "t_min must be at least 1"),
        ({"t_min": 20, "t_max": 10}, "t_max must be at least t_min"),
        ({"noise_std": 0.0}, "noise_std must be positive"),
        ({"beta_start": 0.1}, "beta_start <= beta_end"),
        ({"t_max": 100_000}, "beyond float32"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DiffusionNoiseOptions(**wrong)


def test_times_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(ConfigError, match="T of at least 2, not 1"):
        time_weights(1, "priority")
    with pytest.raises(ConfigError, match="did you mean 'uniform'"):
        pool(10, "uniforms", torch.zeros(1))  # type: ignore[arg-type]
