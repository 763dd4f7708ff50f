"""Settings: every problem at once, with the nearest valid name; plain values and back; recipes that cannot be read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilemma.config import (
    DataOptions,
    Recipe,
    Training,
    all_of,
    build,
    default_recipe,
    load_recipe,
    plain,
    recipe_names,
    require,
    require_all,
    shown,
)
from trilemma.engine.train import resolve_recipe
from trilemma.errors import ConfigError
from trilemma.methods import method_class, method_names


@dataclass(frozen=True)
class Inner:
    width: int = 8
    rates: tuple[float, ...] = (0.1, 0.2)
    kind: Literal["small", "large"] = "small"

    def __post_init__(self) -> None:
        require(self.width > 0, f"width must be positive, not {self.width}")


@dataclass(frozen=True)
class Outer:
    name: str
    flag: bool = False
    share: float | None = None
    inner: Inner = field(default_factory=Inner)
    other: Inner = field(default_factory=Inner)


def problems(values: Any, cls: type = Outer) -> str:
    with pytest.raises(ConfigError) as caught:
        build(cls, values, "recipe x")
    text = str(caught.value)
    assert text.startswith("recipe x: ") and "\n" not in text
    return text.removeprefix("recipe x: ")


def test_plain_values_become_their_types() -> None:
    made = build(Outer, {"name": "a", "share": 3, "inner": {"rates": [1, 0.5]}}, "recipe x")
    assert made == Outer("a", share=3.0, inner=Inner(rates=(1.0, 0.5)))
    assert type(made.share) is float and [type(rate) for rate in made.inner.rates] == [float, float]


def test_every_problem_is_told_at_once() -> None:
    """Unknown keys and wrong types at every depth, what is missing, and what a nested record refuses itself."""
    text = problems(
        {
            "flg": True,
            "share": "half",
            "inner": {"widht": 3, "kind": "huge", "rates": [1, "two"]},
            "other": {"width": -1},
        }
    )
    for words in (
        "unknown key 'flg': did you mean 'flag'?",
        "share must be a number or nothing, not 'half'",
        "unknown key 'inner.widht': did you mean 'inner.width'?",
        "inner.kind must be one of 'small', 'large', not 'huge'",
        "inner.rates must be a list of a number, not [1, 'two']",
        "width must be positive, not -1",
        "missing name",
    ):
        assert words in text, words
    assert text.count("; ") == 6


@dataclass(frozen=True)
class Linked:
    low: float = 0.0
    high: float = 1.0
    kind: Literal["none", "some"] = "none"
    share: float = 0.0
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        require_all(
            (self.low >= 0, f"low must not be negative, not {self.low}"),
            (self.high >= 0, f"high must not be negative, not {self.high}"),
            (self.share == 0 or self.kind == "some", "share needs a kind"),
        )


@pytest.mark.parametrize(
    "other", [{"low": "x"}, {"lwo": 1.0}, {"inner": {"width": -1}}, {"inner": {"width": "x"}}, {"kind": 3}]
)
def test_a_wrong_value_does_not_hide_another_one_of_the_same_record(other: dict[str, Any]) -> None:
    text = problems({"high": -1, **other}, Linked)
    assert text.endswith("high must not be negative, not -1.0") and text.count("; ") == 1


@pytest.mark.parametrize("other", [{"kind": "sme"}, {"knd": "some"}])
def test_what_depends_on_a_wrong_value_is_not_told_before_that_is_mended(other: dict[str, Any]) -> None:
    """It would be judged by the default."""
    assert "share needs" not in problems({"share": 0.5, **other}, Linked)
    assert problems({"share": 0.5}, Linked) == "share needs a kind"


def test_all_checks_are_made() -> None:
    assert all_of(lambda: 1, lambda: "two") == [1, "two"]
    with pytest.raises(ConfigError, match="^one; three$"):
        all_of(lambda: require(False, "one"), lambda: 2, lambda: require(False, "three"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": 3}, "name must be text, not 3"),
        ({"name": "a", "flag": 1}, "flag must be true or false, not 1"),
        ({"name": "a", "share": True}, "share must be a number or nothing, not True"),
        ({"name": "a", "inner": {"width": 1.5}}, "inner.width must be a whole number, not 1.5"),
        ({"name": "a", "inner": {"width": True}}, "inner.width must be a whole number, not True"),
        ({"name": "a", "inner": {"rates": "12"}}, "inner.rates must be a list of a number, not '12'"),
        ({"name": "a", "inner": 5}, "inner must be a table of settings, not 5"),
        ([("name", "a")], "must be a table of settings"),
        (None, "must be a table of settings"),
    ],
)
def test_wrong_types(values: Any, words: str) -> None:
    assert words in problems(values)


def test_an_unknown_name_without_a_near_one_lists_all() -> None:
    assert problems({"name": "a", "zzz": 1}) == "unknown key 'zzz': known: flag, inner, name, other, share"


def test_a_short_value_is_shown_as_it_is() -> None:
    plain_values = ("a", "it's", b"a'", 3, -0.0, None, True)
    nested = ([], [1, "two"], (), (1,), (1, 2), {}, {"a": [1, (2,)], 3: {}}, {1})
    for value in (*plain_values, *nested):
        assert shown(value) == repr(value)
    assert shown(["x" * 197]) == f"['{'x' * 197}'..."


def test_a_value_without_end_is_cut_off() -> None:
    endless: list[Any] = [1]
    endless.append(endless)
    many: Any = [0] * 1000
    for _ in range(9):
        many = [many] * 1000
    for value in (endless, many, {"a": many}, "x" * 10**6, [b"x" * 10**6] * 1000):
        assert len(shown(value)) == 203 and shown(value).endswith("...")
    assert shown([10**5000]) == "a value too large to show"


def test_every_refusal_of_one_record_is_told() -> None:
    text = problems({"batch_size": 0, "ema_decay": 1.0, "keep_checkpoints": 0, "images": -1}, Training)
    for words in ("batch_size must", "ema_decay must", "keep_checkpoints must", "images must"):
        assert words in text
    with pytest.raises(ConfigError, match="^two; three$"):
        require_all((True, "one"), (False, "two"), (False, "three"))


numbers = st.floats(0.01, 1e6, allow_subnormal=False)
trainings = st.builds(
    Training,
    batch_size=st.integers(1, 10**6),
    minutes=st.none() | numbers,
    images=st.none() | st.integers(1, 10**12),
    ema_decay=st.floats(0, 0.99999, allow_subnormal=False),
    precision=st.sampled_from(["no", "bf16", "fp16"]),
    snapshots=st.integers(0, 1000),
    checkpoint_minutes=numbers,
)
rates, kinds = st.lists(numbers, max_size=3).map(tuple), st.sampled_from(["small", "large"])
inners = st.builds(Inner, st.integers(1, 99), rates, kinds)
outers = st.builds(Outer, st.text(max_size=5), st.booleans(), st.none() | numbers, inners, inners)
data_options = st.builds(DataOptions, st.text(max_size=5), st.none() | st.integers(), st.none() | st.integers())
recipes = st.builds(Recipe, st.text(max_size=5), st.text(max_size=5), data_options, st.just({"a": 1}), trainings)


@given(outers | trainings | recipes)
def test_plain_values_and_back(settings: Any) -> None:
    assert build(type(settings), plain(settings), "x") == settings
    assert build(type(settings), json.loads(json.dumps(plain(settings))), "x") == settings


@given(trainings)
def test_a_wrong_key_is_refused_beside_good_ones(training: Training) -> None:
    text = problems({**plain(training), "batchsize": 1}, Training)
    assert text.startswith("unknown key 'batchsize': did you mean 'batch_size'?")


@pytest.mark.parametrize("name", method_names())
def test_options_of_every_method_and_back(name: str) -> None:
    kind = method_class(name).Options
    assert build(kind, json.loads(json.dumps(plain(kind()))), "x") == kind()
    for setting in fields(kind):
        with pytest.raises(ConfigError, match=f"unknown key '{setting.name}x': did you mean '{setting.name}'"):
            build(kind, {f"{setting.name}x": 1}, "x")


# Recipes


def recipe(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_a_recipe_is_a_file(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path, 'method = "ddgan"\n[options]\nlr_g = 1\n[training]\nminutes = 2\n'))
    assert loaded == Recipe("ddgan", options={"lr_g": 1}, training=replace(Training(), minutes=2.0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("method = ", "not valid TOML: "),
        ('method = "a"\nmethod = "b"', "not valid TOML: "),
        ("", "missing method"),
        ("method = 3", "method must be text, not 3"),
        ('method = "ddgan"\nabuot = "x"', "unknown key 'abuot': did you mean 'about'"),
        ('method = "ddgan"\n[data]\nsise = 3', "unknown key 'data.sise': did you mean 'data.size'"),
        ('method = "ddgan"\n[training]\nbatch = 3', "unknown key 'training.batch': did you mean 'training.batch_size'"),
        ('method = "ddgan"\n[training]\nbatch_size = "3"', "training.batch_size must be a whole number, not '3'"),
        ('method = "ddgan"\ndata = 3\noptions = 4', "data must be a table.*options must be a table"),
    ],
)
def test_a_recipe_that_does_not_hold(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_recipe(recipe(tmp_path, text))
    assert str(caught.value).startswith("recipe ") and "mine.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr = 1", "unknown key 'lr'"),
        ("[options.unet]\nchanels = 3", "unknown key 'unet.chanels': did you mean 'unet.channels'"),
        ("[options.unet]\nchannels = 1.5\n[options.latent]\nnz = true", "unet.channels must .*latent.nz must"),
        ("[options]\nunet = 3", "unet must be a table"),
    ],
)
def test_options_of_a_recipe_are_checked_at_any_depth(tmp_path: Path, text: str, words: str) -> None:
    table = "" if text.startswith("[") else "[options]\n"
    name, loaded = resolve_recipe("ddgan", "digits", recipe(tmp_path, f'method = "ddgan"\n{table}{text}'))
    with pytest.raises(ConfigError, match=words):
        build(method_class("ddgan").Options, loaded.options, f"recipe {name}")


def test_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recipe file .*nothing.toml: give a TOML file or one of ddgan-"):
        load_recipe(str(tmp_path / "nothing.toml"))
    with pytest.raises(ConfigError, match="no recipe file"):
        load_recipe(f"{tmp_path}/")
    with pytest.raises(ConfigError, match="unknown recipe 'ddgan-digit': did you mean 'ddgan-digits'"):
        load_recipe("ddgan-digit")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="bytes.toml cannot be read as text"):
        load_recipe(str(tmp_path / "bytes.toml"))


def test_a_recipe_for_another_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="recipe ddpm-digits is for ddpm, not ddgan"):
        resolve_recipe("ddgan", "digits", "ddpm-digits")


@pytest.mark.parametrize("method", method_names())
def test_each_method_has_a_recipe_for_any_data(method: str) -> None:
    names = recipe_names()
    for data in ("digits", "mnist", "fashion-mnist", "cifar10", "photos", "gaussians"):
        assert default_recipe(method, data, "points" if data == "gaussians" else "images") in names
    assert default_recipe(method, "digits", "images") == f"{method}-digits"
    assert default_recipe(method, "fashion-mnist", "images") == f"{method}-mnist"
    assert default_recipe(method, "photos", "images") == f"{method}-small"
    assert default_recipe(method, "other", "points") == f"{method}-gaussians"
