"""SPI-GAN: points of the straight path, the jump to its end, and what D is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tiny import SPEC, tiny_method, tools
from trilemma.config import build, load_recipe
from trilemma.errors import ConfigError
from trilemma.maths.noise import SeedNoise
from trilemma.measure.speed import nfe, speed_scores
from trilemma.methods.spigan import SPIGAN, SPIGANOptions
from trilemma.networks.embeddings import timestep_embedding
from trilemma.types import Batch, DataSpec, Sampler

PATHS = ["generated", "closed_form"]


def batch(n: int = 8) -> Batch:
    return Batch((torch.rand(n, *SPEC.shape) * 2 - 1).contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("sde", ["vp", "ve", 4.0])
def test_real_points_lie_on_the_line_between_noise_and_image(sde: Any) -> None:
    method = tiny_method("spigan", sde=sde, sigma_max=3.0)
    x_0 = batch(64).x
    path = method._draw_path(x_0)
    u = path.u.view(-1, 1, 1, 1)
    torch.testing.assert_close(path.real, u * x_0 + (1 - u) * path.x_T)
    assert ((path.u > 0) & (path.u <= 1)).all()
    assert path.x_T.std().item() == pytest.approx({"vp": 1.0, "ve": 3.0, 4.0: 2.0}[sde], rel=0.05)


def test_a_closed_form_path_starts_at_the_noise_and_is_straight() -> None:
    method = tiny_method("spigan", path="closed_form", jump=True).eval()
    states = method.path([1, 2], [0.0, 0.25, 0.5, 0.75, 1.0])
    x_T = SeedNoise([1, 2]).normal(SPEC.shape)
    assert torch.equal(states[0], x_T)
    torch.testing.assert_close(states.diff(n=2, dim=0), torch.zeros(3, 2, *SPEC.shape), atol=1e-5, rtol=0)
    torch.testing.assert_close(states[-1], method.sample([1, 2]).x)


@pytest.mark.parametrize("path", PATHS)
def test_the_end_of_the_path_is_the_sample(path: str) -> None:
    method = tiny_method("spigan", path=path).eval()
    states = method.path([4, 5], [0.5, 1.0])
    assert states.shape == (2, 2, *SPEC.shape)
    assert torch.equal(states[1], method.sample([4, 5]).x)
    assert not torch.allclose(states[0], states[1], atol=1e-3)


def test_a_sample_is_one_evaluation_and_the_solver_is_told_beside() -> None:
    method = tiny_method("spigan", mapping={"dim": 8, "layers": 2, "solver": {"solver": "rk4", "steps": 3}}).eval()
    assert nfe(lambda seeds: method.sample(list(seeds)), method.counted_networks()) == 1
    result = speed_scores(
        lambda seeds: method.sample(list(seeds)),
        method.counted_networks(),
        inner=method.inner_solvers(),
        limit_seconds=0.0,
    )
    inner = result.protocol["inner_solvers"]["mapping"]
    assert result.scores["nfe"] == 1 and inner["evaluations"] == 12
    assert 0 < inner["seconds_per_image_batch_100"] < 1 / result.scores["images_per_second_batch_100"] * 100


def test_the_discriminator_is_told_u() -> None:
    method = tiny_method("spigan")
    seen: list[Tensor] = []

    def record(images: Tensor, c: Tensor) -> Tensor:
        seen.append(c)
        return images.sum(dim=(1, 2, 3))[:, None]

    u = torch.tensor([0.1, 0.7])
    method._judge(record, torch.rand(2, *SPEC.shape), u)  # type: ignore[arg-type]
    torch.testing.assert_close(seen[0], timestep_embedding(1000 * u, method.options.u_embedding))
    images = torch.rand(1, *SPEC.shape).expand(4, -1, -1, -1)
    told = [method._judge(method.discriminator, images, torch.full((4,), u)) for u in (0.1, 0.9)]
    assert not torch.allclose(told[0], told[1], atol=1e-3)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("loss", ["nonsaturating", "relativistic"])
@pytest.mark.parametrize("shared_pass", [False, True])
def test_every_choice_trains_all_three_networks(path: str, loss: str, shared_pass: bool) -> None:
    method = tiny_method("spigan", path=path, loss=loss, shared_pass=shared_pass, r2_gamma=0.1, lazy_reg=1)
    before = {name: parameter.clone() for name, parameter in method.named_parameters()}
    losses = method.step(batch(), 0.5, tools(method))
    assert set(losses) == {"d_loss", "g_loss", "r1", "r2"}
    assert all(torch.isfinite(value) for value in losses.values())
    moved = {name.split(".")[0] for name, value in method.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"mapping", "generator", "discriminator"}


@pytest.mark.parametrize("path", PATHS)
def test_the_energy_distance_joins_the_loss_of_the_generator_and_the_mapping(path: str) -> None:
    method = tiny_method("spigan", path=path, energy_weight=2.0)
    drawn = method._draw_path(batch().x)
    fake, made = method._generate(drawn, method.mapping, method.generator)
    assert (fake is made) == (path == "generated")
    losses = method.step(batch(), 0.5, tools(method))
    assert losses["energy"] > 0 and set(losses) == {"d_loss", "g_loss", "r1", "energy"}


def test_the_three_networks_have_rates_of_their_own_that_fall_together() -> None:
    method = tiny_method("spigan", lr_g=0.03, lr_mapping=0.001, lr_d=0.0005, final_share=0.5)
    lent = tools(method)
    for progress, share in ((0.0, 1.0), (0.5, 0.75), (1.0, 0.5)):
        method.step(batch(), progress, lent)
        rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in lent.optimizers.items()}
        assert rates == pytest.approx(
            {"generator": 0.03 * share, "mapping": 0.001 * share, "discriminator": 5e-4 * share}
        )


def test_the_penalty_is_not_multiplied_by_its_interval() -> None:
    """One step of D with R1 every step and one with R1 every 16th, both due, move D alike."""
    after = []
    for lazy_reg in (1, 16):
        method = tiny_method("spigan", lazy_reg=lazy_reg)
        torch.manual_seed(3)
        method.step(batch(), 0.5, tools(method))
        after.append([value.clone() for value in method.discriminator.parameters()])
    for a, b in zip(*after, strict=True):
        assert torch.equal(a, b)


def test_a_walk_begins_and_ends_at_samples() -> None:
    method = tiny_method("spigan", path="closed_form").eval()
    states = method.walk(3, 9, 5)
    assert states.shape == (5, *SPEC.shape)
    torch.testing.assert_close(states[[0, -1]], method.sample([3, 9]).x, atol=1e-5, rtol=0)


def test_points_in_the_plane_take_the_path_too() -> None:
    method = tiny_method("spigan", DataSpec("points", 2, 1, 1), path="closed_form").eval()
    states = method.path([0, 1], [0.0, 1.0])
    assert torch.equal(states[1], method.sample([0, 1]).x)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"path": "curved"}, "path"),
        ({"jump": True}, "jump needs path"),
        ({"sde": -1.0}, "sigma"),
        ({"sde": "vpp"}, "sde"),
        ({"u_min": 1.0}, "u_min"),
        ({"u_power": 0.0}, "u_power"),
        ({"lazy_reg": 0}, "lazy_reg"),
        ({"final_share": 1.5}, "final_share"),
        ({"energy_weight": -1.0}, "energy_weight"),
        ({"mapping": {"solver": {"solver": "rk5"}}}, "solver"),
        ({"mapping": {"solver": {"steps": 0}}}, "steps"),
    ],
)
def test_settings_that_do_not_hold_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(SPIGANOptions, changes, "recipe x")


def test_points_outside_the_path_and_other_samplers_are_refused() -> None:
    method = tiny_method("spigan")
    with pytest.raises(ConfigError, match="u must be in"):
        method.path([0], [0.5, 1.5])
    with pytest.raises(ConfigError, match="at least one u"):
        method.path([0], [])
    with pytest.raises(ConfigError, match="no sampler setting steps"):
        method.sample([0], Sampler(steps=2))


def test_a_race_has_the_paper_s_method_and_ours() -> None:
    """None of our options is on in the first, whatever the recipe says."""
    for name in ("digits", "mnist", "small"):
        recipe = load_recipe(f"spigan-{name}").options
        paper, ours = (build(SPIGANOptions, {**recipe, **entrant.changes}, name) for entrant in SPIGAN.entrants)
        defaults = SPIGANOptions()
        for option in ("path", "jump", "u_power", "loss", "r2_gamma", "energy_weight"):
            assert getattr(paper, option) == getattr(defaults, option)
        assert ours.path == "closed_form" and ours.energy_weight > 0
