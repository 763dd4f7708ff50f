"""The mapping network: closed forms, the size of h(0), evaluations counted, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trilemma.config import build
from trilemma.errors import ConfigError
from trilemma.maths.solvers import SolverOptions
from trilemma.measure.speed import CallCounter
from trilemma.networks.mapping import MappingOptions, NODEMapping

SHAPE = (3, 4, 4)
U = torch.tensor([0.2, 1.0, 0.0, 0.6, 0.9])


def mapping(shape: tuple[int, int, int] = SHAPE, **changes: Any) -> NODEMapping:
    return NODEMapping(shape, MappingOptions(**({"dim": 8} | changes)))


def noise(shape: tuple[int, int, int] = SHAPE, sigma: float = 1.0) -> Tensor:
    return sigma * torch.randn(len(U), *shape)


class Linear(nn.Module):
    """dh/dt = A h + t b."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        return h @ self.a.T + t[:, None] * self.b


def test_a_linear_derivative_gives_the_closed_form() -> None:
    """exp of the matrix [[A, b, 0], [0, 0, 1], [0, 0, 0]] moves (h, t, 1) on by u."""
    network = mapping(dim=3, solver=SolverOptions("rk4", steps=32)).double()
    a, b = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    network.derivative = Linear(a, b)
    whole = torch.zeros(5, 5, dtype=torch.float64)
    whole[:3, :3], whole[:3, 3], whole[3, 4] = a, b, 1.0
    x_T = noise().double()
    h_0 = network.start(x_T)
    states = torch.cat((h_0, torch.tensor([[0.0, 1.0]]).expand(len(U), -1)), dim=1)
    exact = (torch.linalg.matrix_exp(U.double()[:, None, None] * whole) @ states[:, :, None])[:, :3, 0]
    assert torch.allclose(network(x_T, U), exact, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("embedding_layers", [1, 3])
@pytest.mark.parametrize("sigma", [1.0, 50.0])
def test_the_path_starts_at_unit_mean_square(embedding_layers: int, sigma: float) -> None:
    network = mapping(embedding_layers=embedding_layers)
    path = network.path(noise(sigma=sigma), [0.0, 0.5, 1.0])
    assert path.shape == (3, len(U), 8)
    assert torch.allclose(path[0].square().mean(1), torch.ones(len(U)), atol=1e-5)
    assert not torch.allclose(path[1], path[0], atol=1e-3)


def test_one_embedding_layer_is_linear_before_it_is_normalised() -> None:
    network, x_T = mapping(), noise()
    (dense,) = network.embedding
    y = x_T.flatten(1) @ dense.weight.T + dense.bias
    assert torch.allclose(network.start(x_T), y / y.square().mean(1, keepdim=True).sqrt(), atol=1e-6)


def test_the_derivative_is_dense_layers_on_h_and_t() -> None:
    network = mapping(hidden=6, layers=2)
    first, last = network.derivative.layers  # type: ignore[misc]
    assert first.weight.shape == (6, 9) and last.weight.shape == (8, 6)
    t, h = torch.rand(5), torch.randn(5, 8)
    y = h @ first.weight[:, :8].T + t[:, None] * first.weight[:, 8] + first.bias
    y = (y / (1 + (-y).exp())) @ last.weight.T + last.bias
    assert torch.allclose(network.derivative(t, h), y, atol=1e-6)


@pytest.mark.parametrize(
    ("solver", "steps", "evaluations"), [("rk4", 1, 4), ("rk4", 2, 8), ("euler", 1, 1), ("euler", 5, 5)]
)
@pytest.mark.parametrize("u", [1.0, U], ids=["number", "tensor"])
def test_evaluations_of_the_derivative_are_counted(solver: Any, steps: int, evaluations: int, u: Tensor) -> None:
    network = mapping(solver=SolverOptions(solver, steps=steps))
    with CallCounter({"mapping": network, "derivative": network.derivative}) as counter:
        network(noise(), u)
    assert counter.per_image(len(U)) == {"mapping": 1.0, "derivative": evaluations}


@pytest.mark.parametrize("solver", ["euler", "rk4", "dopri5"])
def test_rows_equal_one_by_one(solver: Any) -> None:
    network = mapping(solver=SolverOptions(solver, rtol=1e-7, atol=1e-7)).double()
    x_T = noise().double()
    together = network(x_T, U.double())
    for row, u in enumerate(U.double().tolist()):
        assert torch.allclose(together[row], network(x_T[row : row + 1], u)[0], rtol=0.0, atol=1e-6)
        assert torch.allclose(together[row], network.path(x_T, [u])[0, row], rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("adjoint", [False, True])
def test_gradients_reach_both_networks(adjoint: bool) -> None:
    network = mapping(embedding_layers=2, solver=SolverOptions("rk4", steps=16, adjoint=adjoint)).double()
    x_T = noise().double().requires_grad_()
    weight = torch.randn(8, dtype=torch.float64)
    (network(x_T, U) @ weight).sum().backward()
    for name, parameter in [*network.named_parameters(), ("x_T", x_T)]:
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name
    # Against a difference quotient, along one direction of all parameters at once.
    direction = [torch.randn_like(p) for p in network.parameters()]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(network.parameters(), direction, strict=True))  # type: ignore[operator]
    values = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for p, d in zip(network.parameters(), direction, strict=True):
                p += step * d
            values.append(float((network(x_T, U) @ weight).sum()))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-4)


def test_it_starts_by_moving_the_latent_a_little() -> None:
    for dim in (32, 128):
        network = mapping(dim=dim)
        with torch.no_grad():
            start, end = network.path(noise(), [0.0, 1.0])
        assert 0.01 < float((end - start).square().mean().sqrt()) < 0.5


def test_points_in_the_plane_keep_their_distance_from_the_origin() -> None:
    network = mapping((2, 1, 1))
    x_T = torch.randn(1, 2, 1, 1) * torch.tensor([0.5, 1.0, 2.0])[:, None, None, None]
    h = network(x_T, 1.0).detach()
    assert h.shape == (3, 8)
    assert float((h[0] - h[1]).norm()) > 0.01 and float((h[1] - h[2]).norm()) > 0.01


def test_any_memory_layout_gives_the_same_latent() -> None:
    network, x_T = mapping(), noise()
    assert torch.equal(network.start(x_T), network.start(x_T.contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_under_autocast_the_latent_stays_float32(solver: Any) -> None:
    network, x_T = mapping(solver=SolverOptions(solver)), noise()
    with torch.autocast("cpu", torch.bfloat16):
        assert network.derivative(U, torch.randn(5, 8)).dtype == torch.bfloat16
        h = network(x_T, U)
    assert h.dtype == torch.float32
    assert torch.allclose(h, network(x_T, U), atol=0.05)
    assert torch.allclose(h[2].square().mean(), torch.ones(()), atol=1e-5)  # u = 0


def test_options_are_plain_settings() -> None:
    options = build(MappingOptions, {"dim": 16, "solver": {"solver": "euler", "steps": 4}}, "here")
    assert options.solver == SolverOptions("euler", steps=4)
    with pytest.raises(ConfigError, match="did you mean 'solver.steps'"):
        build(MappingOptions, {"solver": {"step": 4}}, "here")


@pytest.mark.parametrize("wrong", [{"dim": 0}, {"embedding_layers": 0}, {"hidden": 0}, {"layers": 0}])
def test_sizes_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be at least 1, not 0"):
        MappingOptions(**wrong)  # type: ignore[arg-type]


def test_noise_of_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"takes \(3, 4, 4\) an x_T"):
        mapping()(noise((3, 4, 5)), 1.0)
    with pytest.raises(ConfigError, match="at least 1 number"):
        NODEMapping((0, 1, 1), MappingOptions())


def test_pooled_noise_keeps_its_variance_and_the_map_is_as_small() -> None:
    net = mapping((3, 8, 8), pool=4)
    assert net.embedding[0].in_features == 3 * 2 * 2
    x_T = torch.randn(4000, 3, 8, 8)
    seen: list[Tensor] = []
    net.embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net.start(x_T)
    assert seen[0].std().item() == pytest.approx(1.0, abs=0.02)
    with pytest.raises(ConfigError, match="no multiples of pool 3"):
        mapping((3, 8, 8), pool=3)
