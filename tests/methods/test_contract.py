"""What every method must do, on every method found: a new file in methods/ is tested by being there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Adam, AdamW

from tiny import POINTS, SPEC, tiny_method, tools
from trilemma.config import build, load_recipe
from trilemma.data import load_data
from trilemma.engine.checkpoint import load_checkpoint, save_checkpoint
from trilemma.errors import ConfigError
from trilemma.maths.scoring import energy_distance
from trilemma.measure.speed import nfe
from trilemma.methods import method_class, method_names, method_summaries
from trilemma.methods.base import adam
from trilemma.types import Batch, DataSpec, Sampler

METHODS = method_names()
STEPS = 600  # of the slow test
SPECS = [SPEC, DataSpec("images", 3, 16, 16), POINTS]


def batch_for(spec: DataSpec, n: int = 8) -> Batch:
    return Batch((torch.rand(n, *spec.shape) * 2 - 1).contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_a_step_returns_finite_scalars_and_samples_have_the_shape_of_the_data(name: str, spec: DataSpec) -> None:
    method = tiny_method(name, spec)
    losses = method.step(batch_for(spec), 0.5, tools(method))
    assert losses
    for loss in losses.values():
        assert loss.ndim == 0 and torch.isfinite(loss) and not loss.requires_grad
    result = method.eval().sample([1, 2, 3])
    assert result.x.shape == (3, *spec.shape)
    assert torch.isfinite(result.x).all()
    assert result.trajectory is None


@pytest.mark.parametrize(("kind", "decay"), [(Adam, 0.0), (AdamW, 0.1)])
def test_adam_is_torchs(kind: type[Adam], decay: float) -> None:
    """In one kernel, to a few roundings."""
    torch.manual_seed(0)
    start = torch.randn(50)
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    made = adam([ours], 0.1, [0.5, 0.9], weight_decay=decay)
    others = kind([theirs], lr=0.1, betas=(0.5, 0.9), weight_decay=decay, foreach=False, fused=False)
    assert type(made) is kind and made.defaults["fused"]
    for _ in range(3):
        for weight, optimizer in ((ours, made), (theirs, others)):
            optimizer.zero_grad()
            weight.pow(4).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    assert (ours - start).abs().min() > 0


@pytest.mark.parametrize("name", METHODS)
def test_images_stay_in_range(name: str) -> None:
    method = tiny_method(name).eval()
    assert method.sample(range(8)).x.abs().max() <= 1.0 + 1e-5


@pytest.mark.parametrize("name", METHODS)
def test_every_trained_weight_moves_and_gradients_are_finite(name: str) -> None:
    method = tiny_method(name)
    before = {key: value.clone() for key, value in method.named_parameters()}
    lent = tools(method)
    for progress in (0.5, 0.6, 0.7, 0.8):
        method.step(batch_for(SPEC), progress, lent)
    still = [key for key, value in method.named_parameters() if torch.equal(value, before[key])]
    assert not still
    for key, value in method.named_parameters():
        assert value.grad is not None and torch.isfinite(value.grad).all(), key


@pytest.mark.parametrize("name", METHODS)
def test_a_sample_depends_on_its_seed_alone(name: str) -> None:
    method = tiny_method(name)
    lent = tools(method)
    for _ in range(3):
        method.step(batch_for(SPEC), 0.5, lent)
    method.eval()
    seeds = [5, 17, 3, 2**40, 9]
    together = method.sample(seeds).x
    alone = torch.cat([method.sample([seed]).x for seed in seeds])
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=0)
    torch.testing.assert_close(method.sample(seeds[::-1]).x.flip(0), together, atol=2e-4, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_the_trajectory_goes_from_noise_to_the_sample(name: str) -> None:
    method = tiny_method(name).eval()
    result = method.sample([0, 1], trajectory=True)
    assert result.trajectory is not None
    assert result.trajectory.shape[1:] == (2, *SPEC.shape)
    assert len(result.trajectory) >= 2
    assert torch.equal(result.trajectory[-1], result.x)
    assert torch.equal(method.sample([0, 1]).x, result.x)


@pytest.mark.parametrize("name", METHODS)
def test_a_latent_path_belongs_to_its_seed_and_has_no_jumps(name: str) -> None:
    method = tiny_method(name).eval()
    seeds, t = [5, 17, 3], torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    if not method.has_latent:
        with pytest.raises(ConfigError, match="no latent space"):
            method.latent_path(seeds, t)
        return
    x = method.latent_path(seeds, t)
    alone = torch.cat([method.latent_path([seed], t[i : i + 1]) for i, seed in enumerate(seeds)])
    torch.testing.assert_close(x, alone, atol=2e-4, rtol=0)
    near = method.latent_path(seeds, (t - 1e-4).abs())
    far = method.latent_path(seeds, 1.0 - t)
    assert 0 < (near - x).abs().max() < 0.01 * (far - x).abs().max()


@pytest.mark.parametrize("name", METHODS)
def test_sampling_leaves_the_global_random_state_alone(name: str) -> None:
    method = tiny_method(name).eval()
    before = torch.get_rng_state()
    method.sample([0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", METHODS)
def test_counted_calls_equal_the_steps_the_method_states(name: str) -> None:
    method = tiny_method(name).eval()
    stated = int(next(word for word in method.describe(Sampler()).split() if word.isdigit()))
    assert nfe(lambda seeds: method.sample(list(seeds)), method.counted_networks(), n=3) == stated


@pytest.mark.parametrize("name", METHODS)
def test_save_and_load_give_the_same_samples_and_the_same_next_step(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    first, second = tiny_method(name), tiny_method(name)
    lent = tools(first)
    first.step(batch_for(SPEC), 0.1, lent)
    optimizers = {key: value.state_dict() for key, value in lent.optimizers.items()}
    state = {"weights": first.state_dict(), "optimizers": optimizers, "extra": first.extra_state()}
    loaded = load_checkpoint(save_checkpoint(tmp_path, state, 1, keep=1))
    second.load_state_dict(loaded["weights"])
    second.load_extra_state(loaded["extra"])
    other = tools(second)
    for key, optimizer in other.optimizers.items():
        optimizer.load_state_dict(loaded["optimizers"][key])
    batch = batch_for(SPEC)
    for method, lend in ((first, lent), (second, other)):
        torch.manual_seed(7)
        method.step(batch, 0.2, lend)
    for (key, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), key
    assert torch.equal(first.eval().sample([4]).x, second.eval().sample([4]).x)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_is(name: str) -> None:
    kind = method_class(name)
    assert kind.name == name
    assert kind.paper and kind.family and kind.entrants
    assert set(kind.averaged) <= set(tiny_method(name).networks())
    assert method_summaries()[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_distance_to_a_toy_distribution_falls(name: str) -> None:
    """A few hundred steps of the recipe for 25 Gaussians in the plane: the energy distance falls to a third."""
    data = load_data("gaussians")
    truth = data.x[:2000]

    def distance() -> float:
        apart = energy_distance(method.eval().sample(range(2000)).x, truth)
        return float(apart - energy_distance(truth, truth, paired=True))

    recipe = load_recipe(f"{name}-gaussians")
    method = method_class(name)(build(method_class(name).Options, recipe.options, name), data.spec)
    lent = tools(method)
    before = distance()
    method.train()
    for step in range(STEPS):
        method.step(data.batch(torch.randint(0, len(data), (256,))), step / STEPS, lent)
    assert distance() < before / 3


@pytest.mark.parametrize("name", sorted({*method_names()} - {"ddpm"}))  # it draws for the whole batch, and has a test
def test_parts_of_a_batch_count_by_their_size(name: str) -> None:
    """A batch of the same images twice, in two parts with the same noise, teaches what they teach once."""
    changes: dict[str, dict[str, Any]] = {
        "ddgan": {"auxiliary": "energy"},
        "spigan": {"shared_pass": False},  # in parts it is off
        "stylegan2": {"path_weight": 0.0},  # the mean length would move twice
        "diffusion_gan": {"path_weight": 0.0},
    }
    x = torch.rand(4, *SPEC.shape, generator=torch.Generator().manual_seed(0))
    found: list[list[dict[str, torch.Tensor]]] = []
    for count in (1, 2):

        def parts(n: int, count: int = count) -> Iterator[slice]:
            for start in range(0, n, n // count):
                torch.manual_seed(1)
                yield slice(start, start + n // count)

        method = tiny_method(name, **changes.get(name, {}))
        lent = replace(tools(method), parts=parts, number=lambda n, count=count: count)  # type: ignore[misc]
        batch = Batch(x.repeat(count, 1, 1, 1).contiguous(memory_format=torch.channels_last))
        found.append([])
        for _ in range(2):  # with lazy penalties and without
            losses = method.step(batch, 0.5, lent)
            gradients = {key: weight.grad for key, weight in method.named_parameters() if weight.grad is not None}
            found[-1].append({**losses, **{key: gradient.clone() for key, gradient in gradients.items()}})
    for once, twice in zip(*found, strict=True):
        assert once.keys() == twice.keys() and len(once) > 4
        for key, value in once.items():
            torch.testing.assert_close(twice[key], value, msg=lambda words, key=key: f"{key}: {words}")
