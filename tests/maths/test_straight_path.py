"""The straight path: both ends, straightness, the range and law of u, the variance of the noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd.functional import jvp

from trilemma.errors import ConfigError
from trilemma.maths.straight_path import draw_u, interpolate, prior_std


def ends(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(4, 3, 5, 6, dtype=dtype), torch.randn(4, 3, 5, 6, dtype=dtype) * 50


@pytest.mark.parametrize("spread", [float, lambda u: torch.full((4,), u)], ids=["number", "tensor"])
def test_the_ends_are_the_data_and_the_noise_exactly(spread) -> None:  # type: ignore[no-untyped-def]
    x_0, x_T = ends()
    assert torch.equal(interpolate(x_0, x_T, spread(1.0)), x_0)
    assert torch.equal(interpolate(x_0, x_T, spread(0.0)), x_T)


def test_the_points_lie_on_one_line() -> None:
    x_0, x_T = (x.round() for x in ends())  # whole numbers and quarters: nothing rounds
    i = torch.stack([interpolate(x_0, x_T, k / 4) for k in range(5)])
    assert torch.equal(i[2:] - 2 * i[1:-1] + i[:-2], torch.zeros_like(i[2:]))
    assert torch.equal(i[1] - i[0], (x_0 - x_T) / 4)


def test_the_derivative_is_the_difference_of_the_ends() -> None:
    x_0, x_T = ends(torch.float64)
    u = torch.rand(4, dtype=torch.float64)
    _, slope = jvp(lambda v: interpolate(x_0, x_T, v), u, torch.ones_like(u))
    assert torch.allclose(slope, x_0 - x_T, rtol=1e-14, atol=1e-14)


def test_each_image_has_its_own_u() -> None:
    x_0, x_T = ends()
    u = torch.tensor([0.0, 0.25, 0.7, 1.0])
    i = interpolate(x_0, x_T, u)
    for row, value in enumerate(u):
        assert torch.equal(i[row], (value * x_0[row] + (1 - value) * x_T[row]))
    assert i.dtype == x_0.dtype
    assert interpolate(x_0.double(), x_T.double(), u).dtype == torch.float64


def test_points_in_the_plane_have_a_path_as_well() -> None:
    x_0, x_T = torch.ones(3, 2, 1, 1), torch.zeros(3, 2, 1, 1)
    u = torch.tensor([0.25, 0.5, 1.0])
    assert torch.equal(interpolate(x_0, x_T, u)[:, 1, 0, 0], u)


def test_interpolation_refuses_what_does_not_fit() -> None:
    x_0, x_T = ends()
    with pytest.raises(ConfigError, match="same shape"):
        interpolate(x_0, x_T[:1], 0.5)
    for u in (torch.rand(3), torch.rand(4, 1), torch.tensor(0.5)):
        with pytest.raises(ConfigError, match=r"u must be one number or of shape \(4,\)"):
            interpolate(x_0, x_T, u)
    for number in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match=r"u must be in \[0, 1\]"):
            interpolate(x_0, x_T, number)


def test_u_is_one_minus_the_generator_s_number() -> None:
    torch.manual_seed(3)
    r = torch.rand(1000)
    for power in (0.5, 1.0, 2.0):
        torch.manual_seed(3)
        assert torch.equal(draw_u(1000, power=power), (1 - r).pow(power))


def test_u_is_never_zero_and_reaches_one(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = torch.tensor([0.0, 1 - 2.0**-24])  # all that rand can give lies between
    monkeypatch.setattr(torch, "rand", lambda n, device: extremes)
    for power in (0.01, 0.5, 1.0, 3.0, 100.0):
        u = draw_u(2, power=power)
        assert float(u[0]) == 1.0
        assert 0.0 < float(u[1]) < 1.0
    for u_min in (0.1, 0.3, 0.7, 0.999):
        u = draw_u(2, u_min=u_min)
        assert float(u[0]) == 1.0
        assert float(u[1]) == pytest.approx(u_min, abs=1e-6)
        assert float(u[1]) >= torch.tensor(u_min)


def test_power_below_one_favours_clean_images() -> None:
    n = 20_000
    for power in (0.5, 1.0, 2.0):
        u = draw_u(n, power=power)
        # The distribution function of v^power is u^(1/power): the largest gap is of the order 1 / sqrt(n).
        gap = (u.sort().values.double().pow(1 / power) - torch.arange(1, n + 1) / n).abs().max()
        assert float(gap) < 2 / math.sqrt(n)
        assert float(u.median()) == pytest.approx(0.5**power, abs=0.02)


@pytest.mark.parametrize("wrong", [{"u_min": 1.0}, {"u_min": -0.1}, {"power": 0.0}, {"power": math.nan}, {"n": 0}])
def test_a_law_of_u_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="u needs"):
        draw_u(**({"n": 4} | wrong))  # type: ignore[arg-type]


def test_the_noise_has_the_variance_of_the_sde() -> None:
    assert prior_std("vp") == 1.0
    assert prior_std("ve") == 50.0
    assert prior_std("ve", sigma_max=378.0) == 378.0
    assert prior_std(4.0) == 2.0
    assert prior_std(2) == math.sqrt(2)


def test_a_variance_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 've'"):
        prior_std("vee")  # type: ignore[arg-type]
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="must be positive"):
            prior_std(wrong)
        with pytest.raises(ConfigError, match="must be positive"):
            prior_std("ve", sigma_max=wrong)
