"""Any settings: a ConfigError of one line with all problems, before any work, or a method that trains and samples.

Settings are drawn around the tiny ones of `tiny`: every switch and every choice between names, and numbers from small
pools. A new method or setting takes part by being there; only numbers need a pool.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

import trilemma
from tiny import POINTS, SPEC, tiny_method, tiny_options, tools
from trilemma.config import Training, build
from trilemma.engine import train as engine
from trilemma.errors import ConfigError
from trilemma.maths.schedules import denoising_schedule, linear_schedule
from trilemma.methods import method_class, method_names
from trilemma.methods.base import Method
from trilemma.types import Batch, DataSpec, Sampler

METHODS = method_names()
LABELLED = DataSpec("images", 1, 8, 8, 3)
SPECS = (SPEC, LABELLED, DataSpec("images", 3, 8, 8), POINTS)
N = 4  # images in a batch
LEAST_ACCEPTED = 3  # of the settings drawn for a method
few = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
many = settings(max_examples=60, deadline=None, derandomize=True)

POOLS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("learning_rate", "lr_g", "lr_d", "lr_mapping"), (1e-4, 1e-3)),
    **dict.fromkeys(("final_learning_rate", "final_lr"), (0.0, 1e-4)),
    **dict.fromkeys(("final_share", "style_mixing", "path_decay", "beta_warmup"), (0.0, 0.5, 1.0)),
    **dict.fromkeys(("r1_gamma", "r2_gamma"), (0.0, 0.1)),
    **dict.fromkeys(("lazy_reg", "path_every", "interval", "blocks", "patch", "pool", "embedding_layers"), (1, 2)),
    **dict.fromkeys(("path_weight", "energy_weight", "clip_gradient"), (0.0, 1.0)),
    **dict.fromkeys(("auxiliary_weight", "final_auxiliary_weight"), (0.5, 1.0)),
    **dict.fromkeys(("u_embedding", "t_embedding"), (4, 5, 16)),
    **dict.fromkeys(("warm_share", "u_min", "dropout"), (0.0, 0.5)),
    "warmup_steps": (0, 1, 3),
    "adam_betas": ([0.0, 0.99], [0.5, 0.9]),
    "timesteps": (2, 5),
    "num_timesteps": (1, 2, 4),
    "path_batch_shrink": (1, 2, 100),
    "energy_share": (0.01, 0.5, 1.0),
    "t_odds": (0.5, 1.0, 3.0),
    "u_power": (0.5, 2.0),
    "beta": (0.0, 1.0, 4.0),
    "sigma": (0.1, 1.0),
    "least_sigma": (1e-3, 1.0),
    "weight_decay": (0.0, 0.01),
    "channel_mult": ([1], [1, 2]),
    "attention": ([], [8], [4, 8]),
    "layers": (1, 2, 3),
    "nz": (1, 3),
    "std_group": (1, 2, 4, 100),
    "mapping_layers": (1, 2),
    "noise_std": (0.05, 1.0),
    "kimg": (0.001, 100.0),
    "target": (0.0, 0.6),
    "preset": ("blit", "bg", "bgcfnc"),
    "sde": ("vp", "ve", 0.25),
}


OUTSIDE: dict[str, Any] = {
    **dict.fromkeys(("timesteps", "num_timesteps", "lazy_reg", "path_every", "path_batch_shrink"), 0),
    **dict.fromkeys(("t_embedding", "u_embedding"), 3),
    **dict.fromkeys(("learning_rate", "energy_share", "t_odds", "u_power", "sigma", "least_sigma"), 0.0),
    **dict.fromkeys(("warm_share", "u_min"), 1.0),
    **dict.fromkeys(("final_share", "style_mixing", "beta_warmup"), 1.5),
    **dict.fromkeys(("beta", "energy_weight"), -1.0),
    "adam_betas": [0.5],
}
"""Values of the right type that cannot be."""


def leaves(cls: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every setting of a dataclass and those inside it: the way to it and its type."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, (*path, field.name))
        else:
            yield (*path, field.name), hint


def pool(path: tuple[str, ...], hint: Any) -> tuple[Any, ...]:
    """Values to draw a setting from; none where it stays what it is."""
    if hint is bool:
        return (False, True)
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    found = POOLS.get(path[-1], ())
    return tuple(value for value in found if hint is not int or isinstance(value, int))


def put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set what is at the end of ``path`` in nested dicts."""
    for name in path[:-1]:
        values = values[name]
    values[path[-1]] = value


@cache
def changeable(name: str) -> tuple[tuple[tuple[str, ...], tuple[Any, ...]], ...]:
    """The settings of a method with what they are drawn from."""
    found = ((path, pool(path, hint)) for path, hint in leaves(method_class(name).Options))
    return tuple((path, values) for path, values in found if values)


def drawn(data: st.DataObject, name: str) -> dict[str, Any]:
    """The tiny settings with some of them changed."""
    values = dataclasses.asdict(tiny_options(name))
    chosen = st.lists(st.sampled_from(changeable(name)), min_size=1, max_size=8, unique_by=lambda leaf: leaf[0])
    for path, among in data.draw(chosen):
        put(values, path, data.draw(st.sampled_from(among), label=".".join(path)))
    return values


def batch(spec: DataSpec) -> Batch:
    x = (torch.rand(N, *spec.shape) * 2 - 1).contiguous(memory_format=torch.channels_last)
    return Batch(x, torch.arange(N) % spec.classes if spec.classes else None)


def made(name: str, values: dict[str, Any], spec: DataSpec) -> Method | None:
    """The method, or None where the settings are refused in one line."""
    try:
        method = method_class(name)(build(method_class(name).Options, values, "drawn"), spec)
    except ConfigError as error:
        assert "\n" not in str(error)
        return None
    return method.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", METHODS)
def test_settings_that_are_not_refused_train_and_sample(name: str) -> None:
    trained = 0

    @few
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        nonlocal trained
        torch.manual_seed(0)
        spec = data.draw(st.sampled_from(SPECS))
        method = made(name, drawn(data, name), spec)
        event("refused" if method is None else "made")
        if method is None:
            return
        lent = tools(method)
        for progress in (0.0, 0.9):
            losses = method.step(batch(spec), progress, lent)
            assert losses and all(math.isfinite(loss) for loss in losses.values()), losses
        result = method.eval().sample([1, 2], method.preview())
        assert result.x.shape == (2, *spec.shape) and bool(torch.isfinite(result.x).all())
        trained += 1

    check()
    assert trained >= LEAST_ACCEPTED, "nearly all that was drawn was refused, so nothing was tested"


@pytest.mark.parametrize("name", METHODS)
def test_the_tiny_settings_themselves_are_not_refused(name: str) -> None:
    """All that is drawn is drawn around them."""
    assert made(name, dataclasses.asdict(tiny_options(name)), SPEC) is not None


def wrong_values(hint: Any) -> list[Any]:
    """What is not of a type."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return [{}, True]
    if origin is Literal:
        return ["no such thing", 3, None, []]
    if origin is tuple:
        return ["12", 3, None, [[]], [None]]
    kinds: dict[Any, list[Any]] = {
        bool: [0, 1, "yes", None],
        int: [1.5, True, "3", None, math.nan, 2**70, [1]],
        float: [math.nan, math.inf, -math.inf, 10**400, True, "1", None, {}],
        str: [3, None, ["a"]],
    }
    return kinds[hint]


@pytest.mark.parametrize("name", METHODS)
@few
@given(data=st.data())
def test_all_that_is_wrong_is_told_at_once(name: str, data: st.DataObject) -> None:
    """Of one record too: what is of a wrong type hides nothing that is out of range."""
    options = method_class(name).Options
    values, expected = dataclasses.asdict(tiny_options(name)), []
    among = [(path, hint) for path, hint in leaves(options) if wrong_values(hint)]
    chosen = data.draw(st.lists(st.sampled_from(among), min_size=1, max_size=4, unique_by=lambda leaf: leaf[0]))
    for path, hint in chosen:
        put(values, path, data.draw(st.sampled_from(wrong_values(hint)), label=".".join(path)))
        expected.append(f"{'.'.join(path)} must be ")
    rest = sorted(OUTSIDE.keys() & values.keys() - {path[0] for path, _ in chosen})
    for key in data.draw(st.lists(st.sampled_from(rest), min_size=1, max_size=4, unique=True)):
        values[key] = OUTSIDE[key]
        expected.append(f"{key} must ")
    values["zzz"] = 1
    with pytest.raises(ConfigError) as caught:
        build(options, values, "drawn")
    text = str(caught.value)
    assert text.startswith("drawn: ") and "\n" not in text
    for words in (*expected, "unknown key 'zzz'"):
        assert words in text


@few
@given(data=st.data())
def test_training_settings_are_refused_together(data: st.DataObject) -> None:
    low = {name: st.just(-1) for name in ("batch_size", "minutes", "images", "snapshots", "probe_samples", "ema_share")}
    low |= {"ema_decay": st.sampled_from([-0.5, 1.0, 7.0]), "score_samples": st.integers(-5, 9)}
    chosen = data.draw(st.lists(st.sampled_from(sorted(low)), min_size=2, unique=True))
    with pytest.raises(ConfigError) as caught:
        build(Training, {name: data.draw(low[name]) for name in chosen}, "drawn")
    assert all(f"{name} must" in str(caught.value) for name in chosen) and "\n" not in str(caught.value)


def test_nothing_is_done_before_settings_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("data were loaded for settings that do not hold")

    monkeypatch.setattr(engine, "load_data", never)
    recipe = tmp_path / "bad.toml"
    recipe.write_text('method = "ddgan"\n[options]\nlr_g = nan\nnum_timesteps = "four"\n[training]\nbatch_size = 8\n')
    with pytest.raises(ConfigError, match="lr_g must be a number, not nan; num_timesteps must be a whole number"):
        trilemma.train("ddgan", "digits", recipe=str(recipe), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@cache
def ready(name: str) -> Method:
    """A tiny method, only to sample."""
    return tiny_method(name).eval()


SAMPLERS = st.builds(
    Sampler,
    steps=st.sampled_from([None, None, -1, 0, 1, 2, 10**9]),
    eta=st.sampled_from([None, None, -1.0, 0.0, 0.5, 1.0, 2.0, math.nan, math.inf]),
    variance=st.sampled_from([None, None, None, "fixed_small", "fixed_large"]),
    truncation=st.sampled_from([None, None, -0.5, 0.0, 0.5, 1.0, 1.5, math.nan]),
    label=st.sampled_from([None, None, None, -1, 0, 5]),
)


@pytest.mark.parametrize("name", METHODS)
def test_a_sampler_is_refused_or_samples(name: str) -> None:
    method, sampled = ready(name), 0

    @few
    @given(sampler=SAMPLERS)
    @example(sampler=Sampler())
    def check(sampler: Sampler) -> None:
        nonlocal sampled
        try:
            words = method.describe(sampler)
        except ConfigError as error:
            assert "\n" not in str(error)
            with pytest.raises(ConfigError):
                method.sample([1], sampler)
            return
        result = method.sample([1, 2], sampler)
        assert words and result.x.shape == (2, *SPEC.shape) and bool(torch.isfinite(result.x).all())
        sampled += 1

    check()
    assert sampled >= 1


NUMBERS = st.one_of(
    st.floats(1e-6, 0.999),
    st.sampled_from([0.1, 1e-4, 0.02, 20.0, 1.0, 0.0, -1.0, 1e-30, 1e30, 1e300, math.nan, math.inf, -math.inf]),
)
COUNTS = st.one_of(st.integers(1, 64), st.sampled_from([0, -1, 1, 1000]))


def test_a_linear_schedule_is_refused_or_adds_noise_step_by_step() -> None:
    accepted = 0

    @many
    @given(steps=COUNTS, low=NUMBERS, high=NUMBERS)
    def check(steps: int, low: float, high: float) -> None:
        nonlocal accepted
        try:
            schedule = linear_schedule(steps, low, high)
        except ConfigError as error:
            assert "\n" not in str(error)
            return
        assert schedule.num_steps == steps
        alpha_bar = schedule.alpha_bar
        assert bool(((alpha_bar > 0) & (alpha_bar < 1)).all()) and bool((alpha_bar.diff() <= 0).all())
        accepted += 1

    check()
    assert accepted >= LEAST_ACCEPTED


def test_a_denoising_schedule_is_refused_or_finite() -> None:
    accepted = 0

    @many
    @given(steps=COUNTS, kind=st.sampled_from(["vp", "geometric"]), low=NUMBERS, high=NUMBERS)
    def check(steps: int, kind: Literal["vp", "geometric"], low: float, high: float) -> None:
        nonlocal accepted
        try:
            schedule = denoising_schedule(steps, kind, low, high)
        except ConfigError as error:
            assert "\n" not in str(error)
            return
        for field in dataclasses.fields(schedule):
            values = getattr(schedule, field.name)
            if isinstance(values, torch.Tensor):
                assert bool(torch.isfinite(values).all()), field.name
        assert bool(((schedule.betas > 0) & (schedule.betas <= 1)).all())
        assert bool((schedule.posterior_variance >= 0).all())
        accepted += 1

    check()
    assert accepted >= LEAST_ACCEPTED
