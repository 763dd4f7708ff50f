"""One row of a comparison: a trained run under one sampler, its scores and the protocol that produced them.

Reading run folders is `compare`'s work, showing them is `compare`'s and `report`'s; both speak in the records of this
file. It also holds what the two must agree on: the columns, their digits, and which rows may be ranked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["images", "points"]
Affects = Literal["quality", "speed", "training"]

MISSING = "—"
BUDGET_TOLERANCE = 0.05  # budgets within 5 % of each other count as equal


@dataclass(frozen=True)
class Scores:
    """What was measured: the first five of images, ``modes`` and ``share_within_4_sigma`` of points; None is "not"."""

    fid: float | None = None
    kid: float | None = None
    inception_score: float | None = None
    precision: float | None = None
    recall: float | None = None
    modes: float | None = None
    share_within_4_sigma: float | None = None
    nfe: float | None = None
    seconds_per_image_batch_1: float | None = None
    images_per_second_batch_100: float | None = None


@dataclass(frozen=True)
class LogPoint:
    """One line of log.jsonl: seconds of training so far, images seen, losses, and the quick FID where it was probed."""

    step: int
    images: float | None
    seconds: float | None
    losses: Mapping[str, float] = field(default_factory=dict)
    fid: float | None = None


@dataclass(frozen=True)
class Row:
    """A run under one sampler; ``tag`` names that sampler's files, ``protocol`` and ``config`` are JSON as found."""

    run: Path
    tag: str
    title: str
    method: str
    family: str
    paper: str
    sampler: str
    kind: Kind
    scores: Scores
    parameters: int | None = None
    training_images: float | None = None
    training_seconds: float | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    log: tuple[LogPoint, ...] = ()
    samples: Path | None = None
    trajectory: Path | None = None


@dataclass(frozen=True)
class Difference:
    """A protocol field on which rows disagree: what that spoils and, for each value, the labels of its rows."""

    name: str
    affects: Affects
    values: tuple[tuple[str, tuple[str, ...]], ...]

    def sentence(self) -> str:
        """One line: the field, what can't be compared, and who has which value."""
        spoilt = {
            "quality": "quality and coverage scores cannot be ranked",
            "speed": "times cannot be ranked",
            "training": "neither the same images nor the same seconds of training",
        }[self.affects]
        width = 12 if "digest" in self.name else 60
        told = "; ".join(f"{_clip(value, width)} ({' · '.join(who)})" for value, who in self.values)
        return f"{self.name} differs, {spoilt}: {told}"


# ------------------------------------------------------------------------------------------------------------ numbers


def significant(value: float | None, digits: int = 3) -> str:
    """``value`` with that many significant digits, thousands separated: 0.0123, 58.2, 2,610. None is an em dash."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # rounded first, so that 9.996 becomes 10.0 and not 10.00
    magnitude = math.floor(math.log10(abs(rounded)))
    if magnitude < -5:
        return f"{rounded:.{digits - 1}e}"
    return f"{rounded:,.{max(0, digits - 1 - magnitude)}f}"


def count(value: float | None) -> str:
    """A count in a few characters: 712 k, 35.7 M, 2,000."""
    if value is None or not math.isfinite(value):
        return significant(value)
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            return f"{significant(value / (1e3 if name == 'k' else unit))} {name}"
    return f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Seconds in the unit a person would use: 0.4 s, 75 s, 20 min, 3.4 h."""
    if seconds is None or not math.isfinite(seconds):
        return significant(seconds)
    if seconds < 120:
        return f"{significant(seconds, 2)} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{significant(seconds / 3600, 2)} h"


def training(row: Row) -> str:
    """Images seen and time taken, for example "92.1 k in 20 min"."""
    if row.training_images is None and row.training_seconds is None:
        return MISSING
    if row.training_seconds is None:
        return count(row.training_images)
    if row.training_images is None:
        return duration(row.training_seconds)
    return f"{count(row.training_images)} in {duration(row.training_seconds)}"


# ------------------------------------------------------------------------------------------------------------ columns


@dataclass(frozen=True)
class Column:
    """One column: ``value`` sorts and ranks, ``text`` is shown, ``better`` is the end that wins (None: no contest)."""

    key: str
    heading: str
    meaning: str
    text: Callable[[Row], str]
    value: Callable[[Row], float | None] = lambda row: None
    better: Literal["high", "low"] | None = None
    affects: Affects = "training"
    kinds: tuple[Kind, ...] = ("images", "points")

    @property
    def is_number(self) -> bool:
        """Whether the column is set flush right."""
        return self.key not in ("method", "sampler", "training")

    @property
    def arrow(self) -> str:
        """The heading with the direction that is better, the way the papers print it."""
        return self.heading + {"high": " ↑", "low": " ↓", None: ""}[self.better]


def _score(
    key: str, heading: str, meaning: str, better: Literal["high", "low"] | None, affects: Affects, *kinds: Kind
) -> Column:
    def value(row: Row) -> float | None:
        return getattr(row.scores, key)  # type: ignore[no-any-return]

    def text(row: Row) -> str:
        return significant(value(row))

    return Column(key, heading, meaning, text, value, better, affects, kinds or ("images", "points"))


def _text_share(key: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        value = getattr(row.scores, key)
        return MISSING if value is None else f"{value:.3f}"

    return text


def _share(key: str, heading: str, meaning: str, kind: Kind) -> Column:
    column = _score(key, heading, meaning, "high", "quality", kind)
    return Column(key, heading, meaning, _text_share(key), column.value, "high", "quality", (kind,))


def _modes_text(row: Row) -> str:
    return MISSING if row.scores.modes is None else f"{row.scores.modes:g}"


def _nfe_text(row: Row) -> str:
    nfe = row.scores.nfe
    return MISSING if nfe is None else (f"{nfe:,.0f}" if float(nfe).is_integer() else significant(nfe))


COLUMNS: tuple[Column, ...] = (
    Column("method", "Method", "What was trained", lambda row: row.title),
    Column("sampler", "Sampler", "How the samples were drawn", lambda row: row.sampler),
    Column(
        "parameters",
        "Params",
        "Weights used to sample",
        lambda row: count(row.parameters),
        lambda row: None if row.parameters is None else float(row.parameters),
    ),
    Column("training", "Training", "Images seen and time taken", training, lambda row: row.training_seconds),
    _score("fid", "FID", "Fréchet distance of the feature distributions", "low", "quality", "images"),
    _score("kid", "KID", "Kernel distance of the feature distributions", "low", "quality", "images"),
    _score("inception_score", "IS", "Inception score", "high", "quality", "images"),
    _share("precision", "Prec.", "Share of samples that lie among the data", "images"),
    _share("recall", "Recall", "Share of the data that lies among the samples", "images"),
    Column("modes", "Modes", "Modes hit", _modes_text, lambda row: row.scores.modes, "high", "quality", ("points",)),
    _share("share_within_4_sigma", "In 4σ", "Share of samples within 4 sigma of a mode", "points"),
    Column("nfe", "NFE", "Network evaluations for one sample", _nfe_text, lambda row: row.scores.nfe, "low", "speed"),
    _score("seconds_per_image_batch_1", "s/img @1", "Seconds for one image, batch of 1", "low", "speed"),
    _score("images_per_second_batch_100", "img/s @100", "Images a second, batches of 100", "high", "speed"),
)


def columns(rows: Iterable[Row]) -> tuple[Column, ...]:
    """The columns that these rows need: image scores, point scores or both."""
    kinds = {row.kind for row in rows}
    return tuple(column for column in COLUMNS if kinds & set(column.kinds))


def column(key: str) -> Column:
    """The column of that key."""
    return next(column for column in COLUMNS if column.key == key)


def labels(rows: Sequence[Row]) -> list[str]:
    """A distinct name for each row: its title, with sampler or folder where it takes them to tell rows apart."""
    schemes: tuple[Callable[[Row], str], ...] = (
        lambda row: row.title,
        lambda row: f"{row.title}, {row.sampler}",
        lambda row: f"{row.title} ({row.run.name})",
        lambda row: f"{row.title}, {row.sampler} ({row.run.name})",
    )
    result = []
    for row in rows:
        for scheme in schemes:
            if sum(scheme(other) == scheme(row) for other in rows) == 1:
                result.append(scheme(row))
                break
        else:
            result.append(f"{row.title} ({row.run}, {row.tag})")
    return result


# --------------------------------------------------------------------------------------------------- equal conditions

_PROTOCOL: tuple[tuple[str, str, Affects], ...] = (
    ("data", "data", "quality"),
    ("data_digest", "data digest", "quality"),
    ("split", "split", "quality"),
    ("reference_samples", "number of reference samples", "quality"),
    ("generated_samples", "number of generated samples", "quality"),
    ("extractor", "feature extractor", "quality"),
    ("extractor_digest", "feature extractor's digest", "quality"),
    ("threads", "number of threads", "speed"),
    ("hardware", "hardware", "speed"),
)


def plain(value: object) -> str:
    """A JSON value in one line of words; None is "not stated"."""
    if value is None:
        return "not stated"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items()) or "empty"
    if isinstance(value, list | tuple):
        return ", ".join(plain(inner) for inner in value)
    return value if isinstance(value, str) else json.dumps(value)


def differences(rows: Sequence[Row]) -> tuple[Difference, ...]:
    """The protocol fields on which the rows disagree; an unstated value disagrees with a stated one."""
    names = labels(rows)
    found = []
    for key, name, affects in _PROTOCOL:
        groups: dict[str, list[str]] = {}
        shown: dict[str, str] = {}
        for label, row in zip(names, rows, strict=True):
            value = row.protocol.get(key)
            canonical = json.dumps(value, sort_keys=True, default=str)
            groups.setdefault(canonical, []).append(label)
            shown[canonical] = plain(value)
        if len(groups) > 1:
            values = tuple((shown[canonical], tuple(who)) for canonical, who in groups.items())
            found.append(Difference(name, affects, values))
    if not (_level(row.training_images for row in rows) or _level(row.training_seconds for row in rows)):
        budgets: dict[str, list[str]] = {}
        for label, row in zip(names, rows, strict=True):
            budgets.setdefault(training(row), []).append(label)
        found.append(Difference("training budget", "training", tuple((k, tuple(v)) for k, v in budgets.items())))
    return tuple(found)


def ranking(rows: Sequence[Row], contest: Column, unequal: Sequence[Difference]) -> list[int]:
    """Which rows win ``contest`` (several when tied as shown); none with fewer than two values or on unequal terms."""
    if contest.better is None or any(difference.affects == contest.affects for difference in unequal):
        return []
    values = {
        i: value for i, row in enumerate(rows) if (value := contest.value(row)) is not None and math.isfinite(value)
    }
    if len(values) < 2:
        return []
    winner = (max if contest.better == "high" else min)(values, key=lambda i: values[i])
    tied = [i for i in values if contest.text(rows[i]) == contest.text(rows[winner])]
    return tied if len(tied) < len(values) else []


def _level(values: Iterable[float | None]) -> bool:
    known = list(values)
    stated = [value for value in known if value is not None]
    if not stated:
        return True
    return len(stated) == len(known) and min(stated) >= (1 - BUDGET_TOLERANCE) * max(stated)


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
