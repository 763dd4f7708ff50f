"""The strength of an adaptive augmentation: golden sequences, its target reached, resuming."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from golden import golden
from trilemma.augment.controller import AdaController
from trilemma.errors import ConfigError

INTERVAL = 4


def stored() -> dict[str, np.ndarray]:
    with np.load(golden("diffusion_gan.npz"), allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@pytest.mark.parametrize("case", ["a", "b", "c"])
@pytest.mark.parametrize(("rule", "clamp"), [("ada", None), ("adapt", 1.0)])
def test_adjustments_agree_with_the_published_ones(case: str, rule: str, clamp: float | None) -> None:
    file = stored()
    start, kimg, batch, target = file["adapt_params"]["abc".index(case)]
    controller = AdaController(
        target=float(target), interval=INTERVAL, kimg=float(kimg), clamp_above=clamp, p=float(start)
    )
    found = []
    for mean_sign in file["sign_means"]:
        controller.adjust(float(mean_sign), int(batch) * INTERVAL)
        found.append(controller.p)
    np.testing.assert_allclose(found, file[f"{rule}_{case}_p"], rtol=1e-6, atol=1e-12)


def logits_with_mean_sign(mean: float, n: int) -> torch.Tensor:
    """n numbers of either sign, whose signs have that mean up to 2 / n."""
    positive = round(n * (1 + mean) / 2)
    return torch.cat((torch.full((positive,), 0.3), torch.full((n - positive,), -2.0)))[:, None]


def test_p_changes_at_each_interval_only_by_the_signs_of_all_its_steps() -> None:
    controller = AdaController(target=0.6, interval=4, kimg=1.0)
    found = []
    # Mean signs 0.7 over the first four steps, 0.6 over the next, 0.5 over the last.
    for mean in (0.1, 0.9, 0.9, 0.9, 0.6, 0.6, 0.4, 0.8, 1.0, 0.0, 0.5, 0.5):
        controller.update(logits_with_mean_sign(mean, 20))
        found.append(controller.p)
    step = 20 * 4 / 1000
    assert found == [0, 0, 0, step, step, step, step, step, step, step, step, 0]


def test_p_never_falls_below_zero_and_may_pass_one() -> None:
    controller = AdaController(kimg=0.05, interval=1)
    controller.update(torch.full((10, 1), -1.0))
    assert controller.p == 0
    for _ in range(8):
        controller.update(torch.ones(10, 1))
    assert controller.p == pytest.approx(8 * 10 / 50)


def test_several_logits_an_image_count_as_one_image() -> None:
    one, many = AdaController(kimg=1.0, interval=1), AdaController(kimg=1.0, interval=1)
    one.update(torch.ones(6, 1))
    many.update(torch.ones(6, 1, 5, 5))
    assert one.p == many.p == 6 / 1000


INDICATORS: list[Callable[[float], float]] = [
    lambda p: 0.95 - 0.7 * p,
    lambda p: 1 - 0.8 * p**0.5,
    lambda p: 0.9 / (1 + 8 * p),
]


@pytest.mark.parametrize("clamp", [None, 1.0])
@pytest.mark.parametrize("start", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("indicator", INDICATORS)
def test_the_controller_reaches_its_target(
    indicator: Callable[[float], float], start: float, clamp: float | None
) -> None:
    # A discriminator overfits the less, the stronger the augmentation: r falls in p and meets the target at p*.
    target, batch = 0.6, 100
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if indicator(middle) > target else (low, middle)
    controller = AdaController(target=target, interval=4, kimg=40.0, clamp_above=clamp, p=start)
    step = batch * 4 / 40_000
    for _ in range(int(1 / step) + 1):
        controller.adjust(indicator(controller.p), batch * 4)
    for _ in range(20):  # and stays there, within one step
        assert abs(controller.p - high) <= step + 1e-9
        controller.adjust(indicator(controller.p), batch * 4)


def test_the_controller_reaches_its_target_through_the_logits() -> None:
    controller = AdaController(target=0.6, interval=4, kimg=40.0)
    for _ in range(4 * 60):
        controller.update(logits_with_mean_sign(0.95 - 0.7 * controller.p, 100))
    # p* = 0.5; a hundred signs tell r to within 0.01.
    assert controller.p == pytest.approx(0.5, abs=0.01 + 0.02 / 0.7)


@given(st.integers(-100, 100), st.integers(-100, 100), st.integers(1, 10_000))
def test_p_follows_the_sign_of_the_error_by_the_images_seen(mean_sign: int, target: int, images: int) -> None:
    controller = AdaController(target=target / 100, kimg=100.0, p=5.0)
    controller.adjust(mean_sign / 100, images)
    assert controller.p == 5.0 + float(np.sign(mean_sign - target)) * images / 100_000


def test_a_resumed_controller_goes_on_as_if_it_had_not_stopped() -> None:
    logits = [torch.randn(8, 1) + 0.5 for _ in range(20)]
    whole, first = AdaController(kimg=0.5), AdaController(kimg=0.5)
    for step, real in enumerate(logits):
        whole.update(real)
        if step < 10:  # in the middle of an interval
            first.update(real)
    second = AdaController(kimg=0.5)
    state = first.state()
    assert all(type(value) in {int, float} for value in state.values())
    second.load(state)
    for real in logits[10:]:
        second.update(real)
    assert second.state() == whole.state()
    with pytest.raises(ConfigError, match="lacks p"):
        second.load({})
    for odd in ({"p": math.nan}, {"p": -1.0}, {"logits": -3}):
        with pytest.raises(ConfigError, match="cannot be"):
            second.load({**state, **odd})


@pytest.mark.parametrize("wrong", [{"target": 1.5}, {"interval": 0}, {"kimg": 0.0}, {"clamp_above": 0.0}, {"p": -0.1}])
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        AdaController(**wrong)  # type: ignore[arg-type]
