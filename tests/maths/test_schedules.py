"""Schedules: bit parity with published numbers, the algebra that any schedule must obey, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from golden import golden
from trilemma.errors import ConfigError
from trilemma.maths.schedules import DenoisingSchedule, cosine_decay, denoising_schedule, linear_schedule

PUBLISHED = {
    "vp_T1": (1, "vp", 0.1, 20.0),
    "vp_T2": (2, "vp", 0.1, 20.0),
    "vp_T4": (4, "vp", 0.1, 20.0),
    "vp_T8": (8, "vp", 0.1, 20.0),
    "geo_T4": (4, "geometric", 0.01, 0.99),
}
PARITY = (
    "betas", "sigmas", "a_s", "a_s_cum", "sigmas_cum", "alphas_cumprod", "alphas_cumprod_prev",
    "posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance", "posterior_log_variance_clipped",
)  # fmt: skip


@pytest.mark.parametrize("prefix", PUBLISHED)
def test_denoising_schedule_equals_the_published_one_bit_for_bit(prefix: str) -> None:
    stored = np.load(golden("ddgan_schedule.npz"))
    schedule = denoising_schedule(*PUBLISHED[prefix])
    for name in PARITY:
        np.testing.assert_array_equal(getattr(schedule, name).numpy(), stored[f"{prefix}__{name}"], err_msg=name)


def test_linear_schedule_equals_the_published_one() -> None:
    stored = np.load(golden("diffusers_schedulers.npz"))
    schedule = linear_schedule()
    np.testing.assert_allclose(schedule.betas.numpy(), stored["betas"], rtol=1e-6)
    np.testing.assert_allclose(schedule.alpha_bar.numpy(), stored["alphas_cumprod"], rtol=1e-6)


def check(schedule: DenoisingSchedule, num_steps: int) -> None:
    """Every law a schedule of large steps obeys."""
    assert schedule.num_steps == num_steps
    for name in PARITY:
        values = getattr(schedule, name)
        level_arrays = ("betas", "sigmas", "a_s", "a_s_cum", "sigmas_cum")
        assert values.shape == ((num_steps + 1,) if name in level_arrays else (num_steps,))
        assert values.dtype == torch.float32 and bool(values.isfinite().all()), name
    assert schedule.a_s_cum[0] == 1 and schedule.sigmas_cum[0] == 0 and schedule.posterior_variance[0] == 0
    assert bool((schedule.betas > 0).all() and (schedule.betas <= 1).all())
    assert bool((schedule.a_s_cum[1:] <= schedule.a_s_cum[:-1]).all())
    torch.testing.assert_close(schedule.a_s_cum**2 + schedule.sigmas_cum**2, torch.ones(num_steps + 1))
    assert bool((schedule.posterior_variance <= schedule.betas[1:] * (1 + 1e-5)).all())


@given(st.integers(1, 64), st.floats(0.01, 5), st.floats(0, 60, allow_subnormal=False))
@settings(max_examples=60, deadline=None)
def test_any_legal_vp_schedule_holds(num_steps: int, beta_min: float, more: float) -> None:
    check(denoising_schedule(num_steps, "vp", beta_min, beta_min + more), num_steps)


@given(st.integers(1, 64), st.floats(1e-4, 0.99), st.floats(1e-4, 0.999))
@settings(max_examples=60, deadline=None)
def test_any_legal_geometric_schedule_holds(num_steps: int, one: float, other: float) -> None:
    assume(abs(one - other) > 1e-3)
    check(denoising_schedule(num_steps, "geometric", min(one, other), max(one, other)), num_steps)


@given(st.integers(1, 16), st.floats(0.01, 2), st.floats(0, 10, allow_subnormal=False))
@settings(max_examples=30, deadline=None)
def test_signal_left_does_not_depend_on_the_number_of_steps(num_steps: int, beta_min: float, more: float) -> None:
    """alpha_bar at the end is exp(-integral of beta from 1e-3 to 1), however many steps cut it up."""
    u = np.array([1e-3, 1.0])
    integral = float(np.diff(u * beta_min + u**2 * more / 2)[0])
    got = float(denoising_schedule(num_steps, "vp", beta_min, beta_min + more).alphas_cumprod[-1])
    # 1 - beta is float32: each step may lose about 6e-8 / alpha of it.
    assert got == pytest.approx(math.exp(-integral), rel=1e-4 + 1e-6 * math.exp(integral))


@given(st.integers(1, 1200), st.floats(1e-6, 0.02), st.floats(0, 0.05, allow_subnormal=False))
@settings(max_examples=40, deadline=None)
def test_any_legal_linear_schedule_holds(num_steps: int, beta_start: float, more: float) -> None:
    schedule = linear_schedule(num_steps, beta_start, beta_start + more)
    assert schedule.num_steps == num_steps and schedule.alpha_bar.shape == (num_steps,)
    assert bool((schedule.alpha_bar > 0).all() and (schedule.alpha_bar < 1).all())
    assert bool((schedule.alpha_bar[1:] < schedule.alpha_bar[:-1]).all())


def test_to_moves_every_tensor() -> None:
    moved = denoising_schedule(3).to("meta")
    assert moved.num_steps == 3
    assert all(getattr(moved, name).device.type == "meta" for name in PARITY)
    assert linear_schedule(10).to("meta").alpha_bar.device.type == "meta"


@pytest.mark.parametrize(
    "arguments",
    [
        (0,), (-1,), (2.5,), (True,), (4, "cosine"), (4, "vp", -0.1, 20.0), (4, "vp", 2.0, 1.0), (4, "vp", 0.0, 0.0),
        (4, "vp", 0.1, math.inf), (4, "vp", 0.1, math.nan), (4, "vp", 1e-9, 1e-9), (4, "geometric", 0.1, 20.0),
        (4, "geometric", 0.1, 1.0), (4, "geometric", 0.0, 0.5), (4, "geometric", 0.5, 0.5), (4, "geometric", 0.5, 0.1),
    ],
)  # fmt: skip
def test_nonsense_denoising_schedules_are_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        denoising_schedule(*arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [(0,), (10, 0.0, 0.1), (10, 0.2, 0.1), (10, 0.1, 1.0), (10, 1e-9, 1e-9), (5000, 0.1, 0.5), (10, math.nan, 0.1)],
)
def test_nonsense_linear_schedules_are_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        linear_schedule(*arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_cosine_decay_runs_from_the_first_value_to_the_last() -> None:
    assert cosine_decay(3.0, 1.0, 0.0) == 3.0 and cosine_decay(3.0, 1.0, 1.0) == 1.0
    assert cosine_decay(3.0, 1.0, 0.5) == pytest.approx(2.0)
    assert cosine_decay(3.0, 1.0, 1.5) == 1.0 and cosine_decay(3.0, 1.0, -1.0) == 3.0


@pytest.mark.parametrize(("name", "initial"), [("g", 1.6e-4), ("d", 1.25e-4)])
def test_cosine_decay_equals_the_published_learning_rates(name: str, initial: float) -> None:
    stored = np.load(golden("ddgan_ema.npz"))[f"lr_{name}_per_epoch_num_epoch20"]
    np.testing.assert_allclose([cosine_decay(initial, 1e-5, k / 20) for k in range(21)], stored, rtol=1e-9)
