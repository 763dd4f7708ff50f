"""Typed settings: frozen dataclasses filled from TOML, JSON or the command line, every problem reported at once.

A dataclass is the schema. ``build`` refuses unknown keys (with the nearest valid one) and wrong types, and lists all
problems in a single line, so nobody mends a recipe one error at a time. ``Recipe`` is a TOML file: the method, the data
it was made for, the method's options and how to train.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from trilemma.errors import ConfigError, nearest

T = TypeVar("T")

LARGEST_RECIPE = 64 * 2**10  # bytes
_LONGEST = 200  # characters of a value or name in a message
_MOST_UNKNOWN = 20  # unknown keys told one by one


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """An instance of the dataclass ``cls`` from plain values.

    ``where`` names the source in messages ("recipe ddgan-mnist"). Nested dataclasses take nested mappings; lists become
    tuples; whole numbers pass as floats.

    Raises:
        ConfigError: unknown keys, wrong types or values refused by the dataclass itself, all in one line.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: must be a table of settings, not {shown(values)}")
    problems: list[str] = []
    result = _build(cls, values, "", problems)
    if problems:
        raise ConfigError(f"{where}: {'; '.join(problems)}")
    return typing.cast(T, result)


def _build(cls: Any, values: Mapping[str, Any], path: str, problems: list[str]) -> Any:
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls) if f.init}
    keywords: dict[str, Any] = {}
    before = len(problems)
    doubtful: set[str] = set()  # settings whose value is wrong or, under a wrong name, not known
    unknown = 0
    for key, value in values.items():
        if key not in names:
            unknown += 1
            if unknown <= _MOST_UNKNOWN:
                doubtful.update(difflib.get_close_matches(str(key)[:_LONGEST], names, n=1, cutoff=0.5))
                name = f"{path}{key}"[:_LONGEST]
                problems.append(str(nearest("key", name, [f"{path}{name}" for name in names])))
            continue
        found = len(problems)
        converted = _convert(hints[key], value, f"{path}{key}", problems)
        if len(problems) > found:
            doubtful.add(key)
        else:
            keywords[key] = converted
    if unknown > _MOST_UNKNOWN:
        problems.append(f"and {unknown - _MOST_UNKNOWN} more unknown keys")
    required = [
        f.name
        for f in dataclasses.fields(cls)
        if f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in values]
    if missing:
        problems.append(f"missing {', '.join(path + name for name in missing)}")
    whole = len(problems) == before  # here and further inside; problems elsewhere do not hide this one's own
    if any(name not in keywords for name in required):
        return None
    try:
        made = cls(**keywords)  # with the default of what is wrong, to hear what else is
    except ConfigError as error:
        problems += [words for words in str(error).split("; ") if not _speaks_of(words, doubtful)]
        return None
    except (ArithmeticError, MemoryError, RuntimeError, ValueError) as error:  # numbers beyond what can be computed
        if whole:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            problems.append(f"{path.rstrip('.') or 'settings'} cannot be used ({reason})")
        return None
    return made if whole else None


def _speaks_of(words: str, names: set[str]) -> bool:
    """Whether a refusal names one of these settings."""
    return bool(names & set(re.findall(r"\w+", words)))


def _convert(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return _build(hint, value, f"{path}.", problems)
        problems.append(f"{path} must be a table of settings, not {shown(value)}")
        return None
    if not matches(hint, value):
        problems.append(f"{path} must be {describe(hint)}, not {shown(value)}")
        return None
    return _coerce(hint, value)


def _coerce(hint: Any, value: Any) -> Any:
    """A value that fits ``hint`` as exactly that type: lists become tuples, whole numbers floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _coerce(next(option for option in arguments if matches(option, value)), value)
    if origin is tuple:
        return tuple(_coerce(arguments[0], item) for item in value)
    return float(value) if hint is float else value


def matches(hint: Any, value: Any) -> bool:
    """Whether a plain value fits a type hint of the kinds that settings use."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(matches(option, value) for option in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, list | tuple) and all(matches(arguments[0], item) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, hint)


def _is_finite(value: float) -> bool:
    """Whether it is no NaN, no infinity, and no whole number beyond what a float can hold."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def shown(value: Any) -> str:
    """A value in a message: on one line, and cut off where it is long."""
    text = ""
    try:
        for piece in _pieces(value):
            text += piece
            if len(text) > _LONGEST:
                return f"{text[:_LONGEST]}..."
    except (ValueError, RecursionError):  # thousands of digits
        return "a value too large to show"
    return text


def _pieces(value: Any) -> Iterator[str]:
    """``repr`` bit by bit, as nobody knows its length: a list may hold itself, or another a million times over."""
    if isinstance(value, str | bytes):
        yield repr(value[:_LONGEST])
    elif type(value) is dict:
        yield "{"
        for number, (key, item) in enumerate(value.items()):
            yield ", " if number else ""
            yield from _pieces(key)
            yield ": "
            yield from _pieces(item)
        yield "}"
    elif type(value) in (list, tuple):
        left, right = "[]" if type(value) is list else "()"
        yield left
        for number, item in enumerate(value):
            yield ", " if number else ""
            yield from _pieces(item)
        yield f",{right}" if type(value) is tuple and len(value) == 1 else right
    else:
        yield repr(value)


def describe(hint: Any) -> str:
    """A type hint in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in arguments)
    if origin is tuple:
        return f"a list of {describe(arguments[0])}"
    if origin is dict:
        return "a table of settings"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(option) for option in arguments)
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "nothing"}
    return words.get(hint, str(hint))


def require(condition: bool, problem: str) -> None:
    """Refuse a setting: used in the ``__post_init__`` of option dataclasses."""
    require_all((condition, problem))


def require_all(*checks: tuple[bool, str]) -> None:
    """Refuse settings, naming the problem of every condition that does not hold."""
    problems = [problem for condition, problem in checks if not condition]
    if problems:
        raise ConfigError("; ".join(problems))


def all_of(*checks: Callable[[], Any]) -> list[Any]:
    """What each of the checks returns.

    Raises:
        ConfigError: some refuse; what all of these say, in one line.
    """
    found, problems = [], []
    for check in checks:
        try:
            found.append(check())
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("; ".join(problems))
    return found


@dataclass(frozen=True)
class Training:
    """How the engine trains, whatever the method."""

    batch_size: int = 64  # images in one optimisation step, over all processes
    minutes: float | None = None  # default budget in minutes of training time
    images: int | None = None  # default budget in images shown; either this or minutes
    flops: float | None = None  # default budget in floating-point operations, in place of minutes or images
    ema_decay: float = 0.999  # decay of the averaged weights, per step
    ema_share: float = 0.0  # above 0: the average's half-life is at most this share of the steps so far
    accumulate: int = 1  # parts in which a process works through its images of a step, to need less memory
    precision: Literal["no", "bf16", "fp16"] = "no"  # autocast
    snapshots: int = 10  # sample grids (and quick scores) over the budget
    probe_samples: int = 0  # samples for a quick FID at each snapshot; 0: none
    watch_samples: int = 500  # samples compared with the training images at each snapshot, to warn in time; 0: none
    score_samples: int = 2_000  # samples evaluated, unless told otherwise: a thousand steps each take a CPU long
    checkpoint_minutes: float = 5.0  # full state for resuming, at least this often
    keep_checkpoints: int = 2  # how many full states stay on disk

    def __post_init__(self) -> None:
        require_all(
            (self.batch_size >= 1, f"batch_size must be at least 1, not {self.batch_size}"),
            (self.minutes is None or self.minutes > 0, f"minutes must be positive, not {self.minutes}"),
            (self.images is None or self.images > 0, f"images must be positive, not {self.images}"),
            (self.flops is None or self.flops > 0, f"flops must be positive, not {self.flops}"),
            (0.0 <= self.ema_decay < 1.0, f"ema_decay must be in [0, 1), not {self.ema_decay}"),
            (self.ema_share >= 0.0, f"ema_share must not be negative, not {self.ema_share}"),
            (self.accumulate >= 1, f"accumulate must be at least 1, not {self.accumulate}"),
            (self.snapshots >= 0, f"snapshots must not be negative, not {self.snapshots}"),
            (self.probe_samples >= 0, f"probe_samples must not be negative, not {self.probe_samples}"),
            (self.watch_samples >= 0, f"watch_samples must not be negative, not {self.watch_samples}"),
            (self.score_samples >= 10, f"score_samples must be at least 10, not {self.score_samples}"),
            (self.checkpoint_minutes >= 0, f"checkpoint_minutes must not be negative, not {self.checkpoint_minutes}"),
            (self.keep_checkpoints >= 1, f"keep_checkpoints must be at least 1, not {self.keep_checkpoints}"),
        )


@dataclass(frozen=True)
class DataOptions:
    """What is done to the data before training."""

    name: str = ""  # the data set this recipe was made for
    size: int | None = None  # resize and centre-crop to this many pixels a side
    channels: int | None = None  # 1 (gray) or 3 (RGB)


@dataclass(frozen=True)
class Recipe:
    """A complete, named setting for one method: a TOML file."""

    method: str
    about: str = ""  # one line: what it is and where its numbers come from
    data: DataOptions = field(default_factory=DataOptions)
    options: dict[str, Any] = field(default_factory=dict)  # the method's own options, checked against its dataclass
    training: Training = field(default_factory=Training)


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("trilemma") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str) -> Recipe:
    """A packaged recipe by name, or a TOML file by path.

    Raises:
        ConfigError: no such recipe, TOML that does not parse, unknown keys or wrong values.
    """
    if name.endswith(".toml") or "/" in name:
        text = _read_recipe(Path(name))
    elif name in recipe_names():
        text = (resources.files("trilemma") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    else:
        raise nearest("recipe", name, recipe_names())
    try:
        values = tomllib.loads(text)
    except ValueError as error:  # TOML that does not parse; or, from within, a number of thousands of digits
        raise ConfigError(f"recipe {name}: not valid TOML: {error}") from error
    except RecursionError:
        raise ConfigError(f"recipe {name}: not valid TOML: nested too deeply") from None
    return build(Recipe, values, f"recipe {name}")


def _read_recipe(path: Path) -> str:
    try:
        if not path.is_file():
            raise ConfigError(f"no recipe file {path}: give a TOML file or one of {', '.join(recipe_names())}")
        if path.stat().st_size > LARGEST_RECIPE:
            raise ConfigError(f"recipe {path} is larger than {LARGEST_RECIPE // 2**10} KiB: is it one?")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} cannot be read as text: {error}") from error


def plain(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain values for JSON (tuples become lists when written)."""
    return dataclasses.asdict(settings)


def default_recipe(method: str, data_name: str, kind: str) -> str:
    """The recipe for a method on a data set: its own if there is one, else the method's for that kind of data."""
    names = recipe_names()
    own = f"{method}-{data_name}"
    if own in names:
        return own
    alike = {"fashion-mnist": "mnist"}.get(data_name)
    if alike and f"{method}-{alike}" in names:
        return f"{method}-{alike}"
    return f"{method}-gaussians" if kind == "points" else f"{method}-small"
