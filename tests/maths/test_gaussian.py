"""Gaussian steps: parity with published numbers, and closed forms derived here from Bayes' rule in float64."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from golden import golden
from trilemma.errors import ConfigError
from trilemma.maths.gaussian import (
    add_noise,
    ddim_step,
    ddim_timesteps,
    ddpm_step,
    predict_x_0,
    q_sample,
    q_sample_pair,
    sample_posterior,
)
from trilemma.maths.schedules import denoising_schedule, linear_schedule

DDIM_KEY = r"ddim_(set_alpha_to_one_false_)?eta([01])_(clip([01])|useclipped|)_?t(\d+)__prev_sample"


def load(name: str) -> dict[str, Tensor]:
    with np.load(golden(name)) as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}


def close(got: Tensor, stored: Tensor, rel: float) -> None:
    assert float((got - stored).abs().max()) <= rel * float(stored.abs().max())


# --- denoising diffusion GAN ---------------------------------------------------------------------------------------


def test_pair_and_posterior_equal_the_published_ones() -> None:
    f, schedule = load("ddgan_forward_posterior.npz"), denoising_schedule(4)
    x_t, x_next = q_sample_pair(schedule, f["x0"], f["t"], f["noise_tp1"], f["noise_t"])
    close(x_t, f["x_t"], 1e-6)
    close(x_next, f["x_tp1"], 1e-6)
    close(sample_posterior(schedule, f["x0_pred"], f["x_tp1"], f["t"], f["noise_post"]), f["x_posterior_sample"], 1e-6)


def test_chain_of_denoising_steps_equals_the_published_one() -> None:
    f, schedule = load("ddgan_forward_posterior.npz"), denoising_schedule(4)
    x = f["chain_init"]
    for step, level in enumerate((3, 2, 1, 0)):
        close(x, f["chain_states"][step], 1e-6)
        t = torch.full((x.shape[0],), level)
        x_0 = torch.tanh(0.7 * x + 0.1 * f["chain_z"][step][:, 0, None, None, None] - 0.05 * level)
        x = sample_posterior(schedule, x_0, x, t, f["chain_noise"][step])
    close(x, f["chain_out"], 1e-6)


def test_level_zero_is_the_data_exactly() -> None:
    schedule, x_0 = denoising_schedule(4), torch.randn(5, 2, 1, 1)
    zero, noise = torch.zeros(5, dtype=torch.int64), torch.randn(5, 2, 1, 1)
    assert torch.equal(q_sample(schedule, x_0, zero, noise), x_0)
    x_next = torch.randn(5, 2, 1, 1)
    got = [sample_posterior(schedule, x_0, x_next, zero, n) for n in (noise, 100 * noise)]
    assert torch.equal(got[0], got[1])
    torch.testing.assert_close(got[0], x_0)


@given(st.integers(1, 12), st.sampled_from(["vp", "geometric"]))
@settings(max_examples=24, deadline=None)
def test_posterior_is_bayes_rule(num_steps: int, kind: str) -> None:
    """q(x_t | x_{t+1}, x_0) is the product of N(x_t; a x_0, s^2) and N(x_{t+1}; a' x_t, s'^2): precisions add."""
    limits = (0.1, 20.0) if kind == "vp" else (0.01, 0.99)
    schedule = denoising_schedule(num_steps, kind, *limits)  # type: ignore[arg-type]
    beta = schedule.betas[1:].double()
    alpha_bar = torch.cat((torch.ones(1, dtype=torch.float64), (1 - beta).cumprod(0)))
    for t in range(1, num_steps):  # at t = 0 the first factor is a point
        precision = 1 / (1 - alpha_bar[t]) + (1 - beta[t]) / beta[t]
        assert float(schedule.posterior_variance[t]) == pytest.approx(float(1 / precision), rel=2e-4)
        coef1 = alpha_bar[t].sqrt() / (1 - alpha_bar[t]) / precision
        coef2 = (1 - beta[t]).sqrt() / beta[t] / precision
        assert float(schedule.posterior_mean_coef1[t]) == pytest.approx(float(coef1), rel=2e-4)
        assert float(schedule.posterior_mean_coef2[t]) == pytest.approx(float(coef2), rel=2e-4)


@given(st.integers(1, 12), st.sampled_from(["vp", "geometric"]))
@settings(max_examples=24, deadline=None)
def test_chain_of_steps_has_the_variance_of_the_marginal(num_steps: int, kind: str) -> None:
    """Var x_{k+1} = a^2 Var x_k + sigma^2 from Var x_0 = 0 arrives at sigmas_cum^2; the means multiply to a_s_cum."""
    limits = (0.1, 20.0) if kind == "vp" else (0.01, 0.99)
    schedule = denoising_schedule(num_steps, kind, *limits)  # type: ignore[arg-type]
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    mean, variance = one, zero
    for k in range(num_steps):
        t = torch.tensor([k])
        # By linearity: noise 1 in one place alone shows that place's weight.
        x_t, mean_next = q_sample_pair(schedule, one, t, zero, zero)
        torch.testing.assert_close(x_t, mean)
        step = q_sample_pair(schedule, zero, t, one, zero)[1]
        carry = q_sample_pair(schedule, zero, t, zero, one)[1]
        torch.testing.assert_close(carry, (mean_next / x_t) * variance.sqrt())
        mean, variance = mean_next, carry**2 + step**2
        torch.testing.assert_close(variance, schedule.sigmas_cum[k + 1].square().view(1, 1, 1, 1))
        torch.testing.assert_close(mean, schedule.a_s_cum[k + 1].view(1, 1, 1, 1))


# --- DDPM and DDIM -------------------------------------------------------------------------------------------------


def test_add_noise_equals_the_published_one_and_predict_inverts_it() -> None:
    f, schedule, t = load("diffusers_schedulers.npz"), linear_schedule(), torch.tensor([0, 500, 999])
    x_t = add_noise(schedule, f["x0"], t, f["noise"])
    close(x_t, f["add_noise"], 1e-5)
    close(predict_x_0(schedule, x_t, f["noise"], t), f["x0"], 1e-4)


def test_every_published_ddpm_step() -> None:
    f, schedule, seen = load("diffusers_schedulers.npz"), linear_schedule(), 0
    for key, stored in f.items():
        match = re.fullmatch(r"ddpm(50)?_(fixed_small|fixed_large)_clip([01])_t(\d+)__(prev_sample|pred_x0)", key)
        if match is None:
            continue
        short, variance, clip, t, which = match.groups()
        x_prev, x_0 = ddpm_step(
            schedule, f["sample"], f["model_output"], int(t), f["noise"],
            variance=variance, clip=clip == "1", t_prev=int(t) - 20 if short else None,  # type: ignore[arg-type]
        )  # fmt: skip
        close(x_prev if which == "prev_sample" else x_0, stored, 1e-4 if which == "pred_x0" and int(t) > 900 else 1e-5)
        seen += 1
    assert seen == 52


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_variances_equal_the_published_ones(variance: str) -> None:
    """By linearity in the noise; at t = 0 the published table has a variance that its step never uses."""
    f, schedule, one = load("diffusers_schedulers.npz"), linear_schedule(), torch.ones(1, 1, 1, 1)
    for t, stored in zip((0, 1, 10, 250, 500, 999), f[f"ddpm_{variance}__variance"], strict=True):
        if t > 0:
            std = ddpm_step(schedule, 0 * one, 0 * one, t, one, variance=variance)[0]  # type: ignore[arg-type]
            assert float(std) ** 2 == pytest.approx(float(stored), rel=1e-5)


def test_every_published_ddim_step() -> None:
    f, schedule, seen = load("diffusers_schedulers.npz"), linear_schedule(), 0
    for key, stored in f.items():
        match = re.fullmatch(DDIM_KEY, key)
        if match is None:
            continue
        kept, eta, kind, clip, t = match.groups()
        t_prev = int(t) if kept else int(t) - 20  # without final alpha 1 the last step stays at level 0
        x_prev, _ = ddim_step(
            schedule, f["sample"], f["model_output"], int(t), t_prev, f["noise"],
            eta=float(eta), clip=clip != "0" and not kept, clip_eps=kind == "useclipped",
        )  # fmt: skip
        close(x_prev, stored, 1e-5)
        seen += 1
    assert seen == 19


@pytest.mark.parametrize("eta", [0, 1])
def test_fifty_ddim_steps_with_the_exact_predictor_equal_the_published_chain(eta: int) -> None:
    """For data N(0, 0.25) the exact noise predictor is sqrt(1 - a) x / (0.25 a + 1 - a)."""
    f, schedule, x = load("diffusers_schedulers.npz"), linear_schedule(), None
    x = f["sample"]
    levels = ddim_timesteps(1000, 50)
    for k, (t, t_prev) in enumerate(zip(levels, [*levels[1:], -1], strict=True)):
        a = schedule.alpha_bar[t]
        eps = (1 - a).sqrt() * x / (0.25 * a + 1 - a)
        x, _ = ddim_step(schedule, x, eps, t, t_prev, f["chain_noise"][k], eta=float(eta), clip=False)
    close(x, f[f"ddim_chain_eta{eta}_gaussian_data_std0.5"], 1e-5)


@pytest.mark.parametrize(("spacing", "offset"), [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)])
def test_levels_equal_the_published_ones(spacing: str, offset: int) -> None:
    f = load("diffusers_schedulers.npz")
    assert ddim_timesteps(1000, 50, spacing, offset) == f[f"ddim_timesteps_50_{spacing}_offset{offset}"].tolist()  # type: ignore[arg-type]
    assert ddim_timesteps(1000, 50) == f["ddpm_timesteps_50_leading"].tolist()
    assert ddim_timesteps(1000, 1000) == f["ddpm_timesteps_1000"].tolist()


@given(st.integers(1, 1000), st.data(), st.sampled_from(["leading", "trailing", "linspace"]))
@settings(max_examples=80, deadline=None)
def test_levels_descend_within_range(total: int, data: st.DataObject, spacing: str) -> None:
    steps = data.draw(st.integers(1, total))
    levels = ddim_timesteps(total, steps, spacing)  # type: ignore[arg-type]
    assert len(levels) == steps and 0 <= levels[-1] and levels[0] < total
    assert all(a > b for a, b in zip(levels[:-1], levels[1:], strict=True))
    if spacing == "trailing":
        assert levels[0] == total - 1


@given(st.integers(1, 999))
@settings(max_examples=40, deadline=None)
def test_ddim_at_eta_one_with_all_steps_is_ddpm(t: int) -> None:
    """eta = 1 has std^2 = beta_tilde, and its mean is the posterior's: the two steps agree noise and all."""
    schedule = linear_schedule()
    x, eps, noise = torch.randn(3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(t)).unbind(0)
    ours = ddim_step(schedule, x, eps, t, t - 1, noise, eta=1.0, clip=False)[0]
    ancestral = ddpm_step(schedule, x, eps, t, noise, clip=False)[0]
    torch.testing.assert_close(ours, ancestral, rtol=1e-3, atol=1e-3)
    alpha_bar = (1 - schedule.betas.double()).cumprod(0)
    beta_tilde = float(schedule.betas[t] * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]))
    one = torch.ones(1, 1, 1, 1)
    # 1 - alpha_bar_t / alpha_bar_s of a one-step stride cancels all but a few digits of float32.
    got = ddim_step(schedule, 0 * one, 0 * one, t, t - 1, one, eta=1.0)[0]
    assert float(got) ** 2 == pytest.approx(beta_tilde, rel=2e-3)


def test_clipping_and_final_steps() -> None:
    schedule = linear_schedule(10, 0.01, 0.3)
    x, eps = 3 * torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    for x_prev, x_0 in (ddpm_step(schedule, x, eps, 9, None, t_prev=-1), ddim_step(schedule, x, eps, 9, -1, None)):
        assert torch.equal(x_0, torch.ones_like(x_0))
        torch.testing.assert_close(x_prev, x_0)
    assert float(ddim_step(schedule, x, eps, 9, -1, None, clip=False)[1].min()) > 3


@pytest.mark.parametrize(
    "call",
    [
        lambda s, x: ddpm_step(s, x, x, 10, x),
        lambda s, x: ddpm_step(s, x, x, -1, x),
        lambda s, x: ddpm_step(s, x, x, 3, x, t_prev=4),
        lambda s, x: ddpm_step(s, x, x, 3, None),
        lambda s, x: ddpm_step(s, x, x, 3, x, variance="learned"),
        lambda s, x: ddim_step(s, x, x, 3, 1, None, eta=0.5),
        lambda s, x: ddim_step(s, x, x, 3, 1, x, eta=1.5),
        lambda s, x: ddim_step(s, x, x, 10, 1, x),
        lambda s, x: ddim_timesteps(10, 11),
        lambda s, x: ddim_timesteps(10, 0),
        lambda s, x: ddim_timesteps(10, 5, "middle"),
        lambda s, x: ddim_timesteps(10, 5, "leading", 2),
        lambda s, x: ddim_timesteps(10, 5, "leading", -1),
        lambda s, x: ddim_timesteps(10, 5, "trailing", 1),
    ],
)
def test_impossible_steps_are_refused_in_one_line(call: object) -> None:
    with pytest.raises(ConfigError) as caught:
        call(linear_schedule(10), torch.zeros(1, 1, 2, 2))  # type: ignore[operator]
    assert "\n" not in str(caught.value)
