"""Differential equations with an end for each row: closed forms, orders of convergence, gradients."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trilemma.errors import ConfigError, NonFiniteError
from trilemma.maths.solvers import SolverOptions, solve, solve_path

SOLVERS = ("euler", "rk4", "dopri5")
EXACT = (SolverOptions("rk4", steps=64), SolverOptions("dopri5", rtol=1e-9, atol=1e-9))
U = torch.tensor([0.3, 1.0, 0.0, 0.75], dtype=torch.float64)


def start() -> Tensor:
    return torch.randn(4, 3, dtype=torch.float64)


def matrix() -> Tensor:
    return torch.randn(3, 3, dtype=torch.float64)


def linear(a: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """dh/dt = A h for every row, whose solution is exp(A u) h(0)."""
    return lambda t, h: h @ a.T


def exponential(a: Tensor, h_0: Tensor, u: Tensor) -> Tensor:
    powers: Tensor = torch.linalg.matrix_exp(u[:, None, None] * a)
    return (powers @ h_0[:, :, None])[:, :, 0]


def deviation(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).detach().abs().max())


class Field(nn.Module):
    """tanh(W h + t b + c): a smooth field with parameters."""

    def __init__(self, dim: int = 3) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.slope = nn.Parameter(torch.randn(dim))
        self.times: list[Tensor] = []

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        assert t.shape == h.shape[:1]
        self.times.append(t.detach())
        return torch.tanh(self.dense(h) + t[:, None] * self.slope)


@pytest.mark.parametrize("options", EXACT, ids=lambda options: options.solver)
def test_a_linear_equation_has_the_exponential_as_solution(options: SolverOptions) -> None:
    a, h_0 = matrix(), start()
    assert deviation(solve(linear(a), h_0, U, options), exponential(a, h_0, U)) < 1e-6


@pytest.mark.parametrize("options", EXACT, ids=lambda options: options.solver)
def test_a_field_that_depends_on_time_is_asked_at_the_right_time(options: SolverOptions) -> None:
    h_0 = start()
    found = solve(lambda t, h: (torch.cos(3 * t) + 2 * t)[:, None].expand_as(h), h_0, U, options)
    assert deviation(found, h_0 + (torch.sin(3 * U) / 3 + U**2)[:, None]) < 1e-7


def test_one_step_of_rk4_is_exact_for_cubics_in_time() -> None:
    h_0 = start()
    found = solve(lambda t, h: (4 * t**3)[:, None].expand_as(h), h_0, U, SolverOptions("rk4", steps=1))
    assert deviation(found, h_0 + (U**4)[:, None]) < 1e-15


@pytest.mark.parametrize("n", [1, 2, 5])
def test_euler_looks_at_the_beginning_of_each_step(n: int) -> None:
    """The sum of u/n times k u/n over k = 0 .. n - 1 is u^2 (n - 1) / (2 n)."""
    h_0 = start()
    found = solve(lambda t, h: t[:, None].expand_as(h), h_0, U, SolverOptions("euler", steps=n))
    assert deviation(found, h_0 + (U**2 * (n - 1) / (2 * n))[:, None]) < 1e-15


@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_with_their_own_ends_are_solved_as_if_alone(solver: Any) -> None:
    field, h_0 = Field().double(), start()
    options = SolverOptions(solver, steps=3, rtol=1e-9, atol=1e-9)
    together = solve(field, h_0, U, options)
    for row, u in enumerate(U.tolist()):
        alone = solve(field, h_0[row : row + 1], u, options)
        assert deviation(together[row : row + 1], alone) < (1e-8 if solver == "dopri5" else 1e-14)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_has_moved_at_u_0(solver: Any, dtype: torch.dtype) -> None:
    field, h_0 = Field().to(dtype), start().to(dtype)
    assert torch.equal(solve(field, h_0, U, SolverOptions(solver))[2], h_0[2])
    assert torch.equal(solve(field, h_0, 0.0, SolverOptions(solver)), h_0)
    assert solve(field, h_0, U, SolverOptions(solver)).dtype == dtype


@pytest.mark.parametrize(("solver", "order", "steps"), [("euler", 1, 64), ("rk4", 4, 32)])
def test_halving_the_steps_shrinks_the_error_by_the_order(solver: Any, order: int, steps: int) -> None:
    """A nonlinear equation with time in it: dh/dt = -2 t h^2 has the solution h(0) / (1 + h(0) u^2)."""
    h_0 = 1 + torch.rand(4, 3, dtype=torch.float64)
    exact = h_0 / (1 + h_0 * (U**2)[:, None])
    errors = [
        deviation(solve(lambda t, h: -2 * t[:, None] * h**2, h_0, U, SolverOptions(solver, steps=n)), exact)
        for n in (steps, 2 * steps, 4 * steps)
    ]
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


def test_dopri5_keeps_to_its_tolerance() -> None:
    a, h_0 = matrix(), start()
    exact = exponential(a, h_0, U)
    errors = [
        deviation(solve(linear(a), h_0, U, SolverOptions("dopri5", rtol=tolerance, atol=tolerance)), exact)
        for tolerance in (1e-3, 1e-6, 1e-9)
    ]
    for error, tolerance in zip(errors, (1e-3, 1e-6, 1e-9), strict=True):
        assert error < 10 * tolerance * float(exact.abs().max())
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("solver", "evaluations"), [("euler", 1), ("rk4", 4)])
def test_fixed_steps_are_as_many_as_asked_for(solver: Any, evaluations: int, dtype: torch.dtype) -> None:
    h_0 = start().to(dtype)
    for steps in (1, 2, 3, 7, 10, 49, 98):  # 1 / steps is rounded, and 49 (1 / 49) is below 1
        field = Field().to(dtype)
        solve(field, h_0, 1.0, SolverOptions(solver, steps=steps))
        assert len(field.times) == evaluations * steps


def test_dopri5_asks_for_no_time_beyond_the_end() -> None:
    field = Field().double()
    solve(field, start(), U, SolverOptions("dopri5", rtol=1e-6, atol=1e-6))
    assert len(field.times) > 2
    assert torch.allclose(torch.stack(field.times).max(dim=0).values, U, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("options", EXACT, ids=lambda options: options.solver)
def test_adjoint_gradients_equal_direct_ones(options: SolverOptions) -> None:
    field, h_0, cotangent = Field().double(), start().requires_grad_(), start()
    inputs = (h_0, *field.parameters())
    grads = []
    for adjoint in (False, True):
        settings = SolverOptions(options.solver, options.steps, options.rtol, options.atol, adjoint=adjoint)
        grads.append(torch.autograd.grad((solve(field, h_0, U, settings) * cotangent).sum(), inputs))
    for direct, indirect in zip(*grads, strict=True):
        assert float(direct.abs().max()) > 0.01
        assert deviation(indirect, direct) < 1e-5


def test_direct_gradients_are_those_of_the_steps_taken() -> None:
    """Three steps of Euler on dh/dt = c h make h(0) (1 + c u / 3)^3."""
    c = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    h_0 = start().requires_grad_()
    h = solve(lambda t, h: c * h, h_0, U, SolverOptions("euler", steps=3))
    growth = (1 + c * U / 3)[:, None]
    assert deviation(h, h_0 * growth**3) < 1e-14
    by_c, by_h = torch.autograd.grad(h.sum(), (c, h_0))
    assert float(by_c) == pytest.approx(float((h_0 * growth**2 * U[:, None]).sum().detach()))
    assert deviation(by_h, (growth**3).expand_as(h_0)) < 1e-14


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_path_is_made_of_solutions(solver: Any) -> None:
    field, h_0 = Field().double(), start()
    options = SolverOptions(solver, steps=3, rtol=1e-9, atol=1e-9)
    us = [0.5, 0.0, 1.0, 0.5]
    path = solve_path(field, h_0, us, options)
    assert path.shape == (4, 4, 3)
    for k, u in enumerate(us):
        assert deviation(path[k], solve(field, h_0, u, options)) < (1e-8 if solver == "dopri5" else 1e-14)
    assert torch.equal(path[1], h_0)
    assert torch.equal(path[0], path[3])


@pytest.mark.parametrize("solver", SOLVERS)
def test_sampling_needs_no_gradients(solver: Any) -> None:
    field, h_0 = Field().double(), start()
    for adjoint in (False, True):
        with torch.inference_mode():
            found = solve(field, h_0, U, SolverOptions(solver, adjoint=adjoint))
        assert torch.equal(found, solve(field, h_0, U, SolverOptions(solver)).detach())


def test_an_explosion_is_reported_in_one_line() -> None:
    with pytest.raises(NonFiniteError, match="dopri5 found no step small enough") as caught:
        solve(lambda t, h: h * math.nan, start(), 1.0, SolverOptions("dopri5"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"solver": "rk5"}, "did you mean 'rk4'"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"rtol": 0.0}, "rtol must be positive"),
        ({"atol": -1.0}, "atol must be positive"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SolverOptions(**wrong)


def test_wrong_calls_are_refused() -> None:
    h_0, field = start(), linear(matrix())
    options = SolverOptions()
    with pytest.raises(ConfigError, match=r"h_0 must have the shape \(N, dim\)"):
        solve(field, h_0[0], 0.5, options)
    with pytest.raises(ConfigError, match=r"u must be one number or of shape \(4,\)"):
        solve(field, h_0, torch.rand(3), options)
    for u in (-0.5, 1.5, math.nan):
        with pytest.raises(ConfigError, match=r"u must be in \[0, 1\]"):
            solve(field, h_0, u, options)
        with pytest.raises(ConfigError, match=r"u must be in \[0, 1\]"):
            solve_path(field, h_0, [0.0, u], options)
    with pytest.raises(ConfigError, match="at least one u"):
        solve_path(field, h_0, [], options)
    with pytest.raises(ConfigError, match="derivative to be a module"):
        solve(field, h_0, 0.5, SolverOptions(adjoint=True))


def test_a_first_solution_in_inference_mode_does_not_spoil_training() -> None:
    """In a process of its own, where torchdiffeq has not been imported yet."""
    code = (
        "import torch\n"
        "from trilemma.maths.solvers import SolverOptions, solve\n"
        "a = torch.nn.Linear(2, 2)\n"
        "run = lambda: solve(lambda t, h: a(h), torch.ones(3, 2), 1.0, SolverOptions('dopri5'))\n"
        "with torch.inference_mode():\n"
        "    run()\n"
        "run().sum().backward()\n"
        "assert a.weight.grad.abs().sum() > 0\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
