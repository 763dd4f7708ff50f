"""Ordinary differential equations whose rows end at times of their own, on top of torchdiffeq (Chen et al. 2018).

    h(u) = h(0) + integral of r(h(t), t) dt from 0 to u        (equation 1; SPI-GAN's equation 3)

A solver integrates all rows over one span of time. So time is rescaled, row by row: with t = u s,

    dh/ds = u r(h, u s),    s from 0 to 1,

and a row with a small u takes small steps. The solvers are "euler" (order 1) and "rk4" (order 4; torchdiffeq's is
Kutta's 3/8 rule, like the classical one of 4 evaluations a step), which take equal steps, and "dopri5" (Dormand and
Prince 1980), which chooses its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from trilemma.config import require_all
from trilemma.errors import ConfigError, NonFiniteError, nearest

_MOST_STEPS = 10_000  # of dopri5, which would otherwise try for ever

Solver = Literal["euler", "rk4", "dopri5"]
Derivative = Callable[[Tensor, Tensor], Tensor]
"""r as (t, h) -> dh/dt: t (N,), h (N, dim) -> (N, dim). A module is called as one, so that its hooks fire."""


@dataclass(frozen=True)
class SolverOptions:
    """How a differential equation is solved.

    The steps of dopri5 are chosen for a batch as a whole: to within the tolerance, a row depends on its neighbours.
    """

    solver: Solver = "euler"  # euler and rk4 take equal steps, dopri5 its own
    steps: int = 2  # of euler and rk4
    rtol: float = 1e-3  # of dopri5, relative to h
    atol: float = 1e-3  # of dopri5, absolute
    adjoint: bool = False  # gradients by a second equation, solved backwards: less memory, more time

    def __post_init__(self) -> None:
        if self.solver not in get_args(Solver):
            raise nearest("solver", str(self.solver), get_args(Solver))
        require_all(
            (self.steps >= 1, f"steps must be at least 1, not {self.steps}"),
            (self.rtol > 0, f"rtol must be positive, not {self.rtol}"),
            (self.atol > 0, f"atol must be positive, not {self.atol}"),
        )


def solve(derivative: Derivative, h_0: Tensor, u: Tensor | float, options: SolverOptions) -> Tensor:
    """h(u): h_0 (N, dim) with ends u (N,), or one for all, in [0, 1] -> (N, dim). Where u = 0 it is h_0, exactly.

    Gradients reach h_0 and the parameters of ``derivative``, not u. Without ``adjoint`` they are those of the steps
    that were taken; with it those of the equation itself, as far as the solver is accurate.

    Raises ConfigError for shapes that do not fit, a number outside [0, 1] (a tensor's values are not looked at) and
    ``adjoint`` without a module; NonFiniteError where dopri5 finds no step that is small enough.
    """
    if h_0.ndim != 2:
        raise ConfigError(f"h_0 must have the shape (N, dim), not {tuple(h_0.shape)}")
    if isinstance(u, Tensor):
        if u.shape != h_0.shape[:1]:
            raise ConfigError(f"u must be one number or of shape {tuple(h_0.shape[:1])}, not {tuple(u.shape)}")
        ends = u.detach().to(h_0.dtype)
    else:
        ends = h_0.new_full(h_0.shape[:1], _checked(u))
    scale = ends[:, None]

    def rescaled(s: Tensor, h: Tensor) -> Tensor:
        return scale * derivative(ends * s, h)

    h_1 = _integrate(rescaled, derivative, h_0, options)
    # The others add 0 to h_0, but the polynomial with which dopri5 reaches its end rounds.
    return torch.where(scale == 0, h_0, h_1) if options.solver == "dopri5" else h_1


def solve_path(derivative: Derivative, h_0: Tensor, us: Sequence[float], options: SolverOptions) -> Tensor:
    """h at each of K ``us``, in any order: h_0 (N, dim) -> (K, N, dim). The same as K times ``solve``, in one batch.

    Raises ConfigError and NonFiniteError as ``solve`` does, and ConfigError for no u at all.
    """
    if not us:
        raise ConfigError("a path needs at least one u")
    ends = h_0.new_tensor([_checked(u) for u in us]).repeat_interleave(len(h_0))
    return solve(derivative, h_0.repeat(len(us), 1), ends, options).view(len(us), *h_0.shape)


def _checked(u: float) -> float:
    if not 0 <= u <= 1:
        raise ConfigError(f"u must be in [0, 1], not {u}")
    return float(u)


def _integrate(rescaled: Derivative, derivative: Derivative, h_0: Tensor, options: SolverOptions) -> Tensor:
    """The solution of dh/ds = ``rescaled`` at s = 1."""
    if torch.compiler.is_compiling() and not torch.is_grad_enabled():
        return _traced(rescaled, h_0, options)
    # Here, as it brings scipy's solvers along: a third of a second. Not in inference mode, in which the tables of
    # coefficients that the import makes could never be used to train.
    with torch.inference_mode(False):
        import torchdiffeq

    span = torch.arange(2, dtype=h_0.dtype, device=h_0.device)
    settings: dict[str, Any] = {"method": options.solver, "rtol": options.rtol, "atol": options.atol}
    if options.solver == "dopri5":
        # A step ends where the span does, in either direction: otherwise r would be followed to times beyond u.
        settings["options"] = {"step_t": span, "max_num_steps": _MOST_STEPS}
    else:
        # Not torchdiffeq's step_size: of steps whose length is rounded, one more may be needed to arrive.
        settings["options"] = {"grid_constructor": lambda _, __, ends: _grid(ends, options.steps)}
    run: Callable[..., Tensor] = torchdiffeq.odeint
    if options.adjoint:
        if not isinstance(derivative, nn.Module):
            raise ConfigError("adjoint gradients need the derivative to be a module: its parameters are asked for")
        run = torchdiffeq.odeint_adjoint
        settings["adjoint_params"] = tuple(derivative.parameters())
    try:
        return run(rescaled, h_0, span, **settings)[-1]
    except AssertionError as error:  # how torchdiffeq says it
        if options.solver != "dopri5":
            raise
        raise NonFiniteError(
            "dopri5 found no step small enough: h or its derivative is infinite or not a number; look at the training, "
            "or solve in fixed steps"
        ) from error


def _traced(rescaled: Derivative, h_0: Tensor, options: SolverOptions) -> Tensor:
    """torchdiffeq's equal steps, without its checks of the times: those read values, of which a traced graph has none.

    Raises ConfigError for dopri5, whose steps depend on values.
    """
    if options.solver == "dopri5":
        raise ConfigError("dopri5 chooses its steps while it runs, a graph cannot: train with euler or rk4")
    h, ds = h_0, 1.0 / options.steps
    for k in range(options.steps):

        def slope(share: float, h: Tensor, k: int = k) -> Tensor:
            return rescaled(h_0.new_full((), (k + share) / options.steps), h)

        k_1 = slope(0.0, h)
        if options.solver == "euler":
            h = h + ds * k_1
            continue
        k_2 = slope(1 / 3, h + ds * k_1 / 3)
        k_3 = slope(2 / 3, h + ds * (k_2 - k_1 / 3))
        k_4 = slope(1.0, h + ds * (k_1 - k_2 + k_3))
        h = h + ds / 8 * (k_1 + 3 * (k_2 + k_3) + k_4)
    return h


def _grid(ends: Tensor, steps: int) -> Tensor:
    """steps + 1 times from the first of ``ends`` to the last, evenly spaced; both are met exactly."""
    return ends[0] + (ends[-1] - ends[0]) * (torch.arange(steps + 1, dtype=ends.dtype, device=ends.device) / steps)
