"""One row of a comparison: a trained run under one sampler, its scores and the protocol that produced them.

Reading run folders is `compare`'s work, showing them is `compare`'s and `report`'s; both speak in the records of this
file. It also holds what the two must agree on: the columns, their digits, and which rows may be ranked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from trilemma.intervals import indistinguishable
from trilemma.protocol import CONDITIONS, DIGEST, Affects
from trilemma.words import MISSING, count, duration, half_width, plain, significant

Kind = Literal["images", "points"]

BUDGET_TOLERANCE = 0.05  # budgets within 5 % of each other count as equal
MARK = "≠"  # stands by a row that is not on the terms of the others
MARK_MEANS = "not on the terms that most rows share, or in a tie the first"
_MACHINE = ("cpu", "cores", "threads", "gpu")  # what of the hardware decides how much is trained in a second


@dataclass(frozen=True)
class Scores:
    """What was measured; None is "not". ``modes`` and ``kl`` are of points and of stacked digits, the share of points,
    all above them of images."""

    fid: float | None = None
    kid: float | None = None
    inception_score: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    fid_infinity: float | None = None
    near_copies: float | None = None
    path_length: float | None = None
    modes: float | None = None
    kl: float | None = None
    share_within_4_sigma: float | None = None
    nfe: float | None = None
    seconds_per_image_batch_1: float | None = None
    images_per_second_batch_100: float | None = None


@dataclass(frozen=True)
class LogPoint:
    """One line of log.jsonl: seconds of training so far, images seen, losses, and at a snapshot what was probed there:
    the quick FID, the coverage seen by the watch, and its warnings."""

    step: int
    images: float | None
    seconds: float | None
    losses: Mapping[str, float] = field(default_factory=dict)
    fid: float | None = None
    coverage: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A run under one sampler, or the images of another program.

    ``tag`` names the sampler's files, ``protocol`` and ``config`` are JSON as found, ``intervals`` are the 95 %
    intervals (low, high) of scores by name, where they are known.
    """

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
    neighbours: Path | None = None
    worst: Path | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """A condition on which rows disagree: what that spoils and, for each value, the labels of its rows.

    ``odd`` are the numbers of the rows without the value that most have, or in a tie the first. ``means`` says what
    follows, where ``affects`` does not say it all.
    """

    name: str
    affects: Affects
    values: tuple[tuple[str, tuple[str, ...]], ...]
    odd: tuple[int, ...] = ()
    means: str = ""

    @property
    def has_norm(self) -> bool:
        """Whether more than half of the rows share one value."""
        return 2 * len(self.odd) < sum(len(who) for _, who in self.values)

    def sentence(self) -> str:
        """One line: the condition, what can't be compared, and who has which value."""
        spoilt = {
            "quality": "quality and coverage scores cannot be ranked",
            "speed": "times are ranked among most rows alone" if self.has_norm else "times cannot be ranked",
            "training": "neither the same images nor the same seconds of training",
        }[self.affects]
        return f"{self.name} differs, {self.means or spoilt}: {'; '.join(self.told())}"

    def told(self) -> list[str]:
        """Each value with the labels of its rows."""
        width = 12 if "digest" in self.name else 60
        return [f"{_clip(value, width)} ({' · '.join(who)})" for value, who in self.values]


@dataclass(frozen=True)
class Published:
    """A row that somebody else printed. It was measured on other data and machines: it is shown, never ranked.

    ``cells`` are as printed, under ``columns``; ``scores`` are those of them that have a name of ours, as text.
    ``batch`` is the number of images that ``seconds`` is the time for, ``same`` the method's name in another table of
    the same source.
    """

    method: str
    source: str
    table: str
    data: str
    size: int
    columns: tuple[str, ...]
    cells: tuple[str, ...]
    scores: Mapping[str, str]
    batch: int | None
    note: str
    same: str

    def value(self, key: str) -> float | None:
        """A score as a number; None where nothing or a dash is printed."""
        text = self.scores.get(key, "")
        return None if text in ("", "-") else float(text)

    @property
    def images_per_second(self) -> float | None:
        """Its ``batch`` over its seconds."""
        seconds = self.value("seconds")
        return None if seconds is None or self.batch is None else self.batch / seconds


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
    """One column: ``value`` sorts and ranks, ``figure`` shows it, ``better`` is the end that wins (None: neither)."""

    key: str
    heading: str
    meaning: str
    figure: Callable[[Row], str]
    value: Callable[[Row], float | None] = lambda row: None
    better: Literal["high", "low"] | None = None
    affects: Affects = "training"
    kinds: tuple[Kind, ...] = ("images", "points")
    rare: bool = False  # shown only where some row has it
    detail: bool = False  # shown only where there is room

    @property
    def is_number(self) -> bool:
        """Whether the column is set flush right."""
        return self.key not in ("method", "sampler", "training")

    @property
    def arrow(self) -> str:
        """The heading with the direction that is better, the way the papers print it."""
        return self.heading + {"high": " ↑", "low": " ↓", None: ""}[self.better]

    def text(self, row: Row) -> str:
        """The figure, with half the width of its interval behind it where there is one: 3.64 ± 0.12."""
        figure, interval = self.figure(row), row.intervals.get(self.key)
        return figure if interval is None or self.value(row) is None else f"{figure} ± {half_width(interval, figure)}"


def _score(
    key: str, heading: str, meaning: str, better: Literal["high", "low"] | None, affects: Affects, *kinds: Kind
) -> Column:
    def value(row: Row) -> float | None:
        return getattr(row.scores, key)  # type: ignore[no-any-return]

    def figure(row: Row) -> str:
        return significant(value(row))

    return Column(key, heading, meaning, figure, value, better, affects, kinds or ("images", "points"))


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
    replace(_share("coverage", "Cov.", "Share of the data with a sample in its neighbourhood", "images"), rare=True),
    replace(
        _score("density", "Dens.", "How deep samples lie among the data", "high", "quality", "images"),
        rare=True,
        detail=True,
    ),
    replace(
        _score("fid_infinity", "FID ∞", "FID as it would be with endlessly many samples", "low", "quality", "images"),
        rare=True,
        detail=True,
    ),
    replace(
        _share(
            "near_copies", "Copies", "Share of samples as near to a training image as 1 in 100 unseen ones is", "images"
        ),
        better=None,
        rare=True,
        detail=True,
    ),
    replace(
        _score(
            "path_length", "PPL", "Path length in the judge's features: how abruptly images change", "low", "quality"
        ),
        rare=True,
        detail=True,
    ),
    replace(
        Column("modes", "Modes", "Modes hit", _modes_text, lambda row: row.scores.modes, "high", "quality"), rare=True
    ),
    replace(_score("kl", "KL", "How unevenly the modes are hit, in nats", "low", "quality"), rare=True),
    _share("share_within_4_sigma", "In 4σ", "Share of samples within 4 sigma of a mode", "points"),
    Column("nfe", "NFE", "Network evaluations for one sample", _nfe_text, lambda row: row.scores.nfe, "low", "speed"),
    _score("seconds_per_image_batch_1", "s/img @1", "Seconds for one image, batch of 1", "low", "speed"),
    _score("images_per_second_batch_100", "img/s @100", "Images a second, batches of 100", "high", "speed"),
)


def columns(rows: Iterable[Row], *, details: bool = False) -> tuple[Column, ...]:
    """The columns that these rows need: image scores, point scores or both; with ``details`` the rarer ones too."""
    rows = list(rows)
    kinds = {row.kind for row in rows}
    return tuple(
        column
        for column in COLUMNS
        if kinds & set(column.kinds)
        and (details or not column.detail)
        and (not column.rare or any(column.value(row) is not None for row in rows))
    )


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


def cautions(rows: Iterable[Row]) -> list[str]:
    """What too few samples do to the scores, each said once."""
    told: dict[str, None] = {}
    for row in rows:
        for key, reason in _part(row.protocol, "cautions").items():
            heading = next((column.heading for column in COLUMNS if column.key == key), key)
            told[_line(f"{heading}: {plain(reason)}")] = None
    return list(told)


# --------------------------------------------------------------------------------------------------- equal conditions


def differences(rows: Sequence[Row]) -> tuple[Difference, ...]:
    """The conditions on which the rows disagree, and unequal training.

    An unstated value disagrees with a stated one, unless the field is younger than the file: then it has the value that
    all had before (see `protocol`). A row without times takes no part in what decides times; the same for quality.
    """
    names = labels(rows)
    digests = [row.protocol.get(DIGEST) for row in rows]
    same_reference = None not in digests and all(digest == digests[0] for digest in digests)
    found: list[Difference] = []
    for condition in CONDITIONS:
        if condition.by_digest and same_reference:
            continue
        values: dict[int, Any] = {}
        for i, row in enumerate(rows):
            stated = row.protocol.get(condition.key)
            silent = stated is None and condition.by_digest and row.protocol.get(DIGEST) is not None
            if not silent and _scored(row, condition.affects):
                values[i] = condition.before if stated is None else stated
        found += _difference(names, condition.name, condition.affects, values)
    return (*found, *_training_differences(rows, names))


def marks(unequal: Iterable[Difference]) -> dict[int, str]:
    """The rows that are not on the terms of most, by number, and in words in what."""
    found: dict[int, list[str]] = {}
    for difference in unequal:
        for i in difference.odd:
            found.setdefault(i, []).append(difference.name)
    return {i: ", ".join(found[i]) for i in sorted(found)}


def _difference(
    names: Sequence[str], name: str, affects: Affects, values: Mapping[int, Any], means: str = ""
) -> list[Difference]:
    """The difference in one condition, if there is one; ``values`` by the number of the row."""
    groups: dict[str, list[int]] = {}
    for i, value in values.items():
        groups.setdefault(json.dumps(value, sort_keys=True, default=str), []).append(i)
    if len(groups) < 2:
        return []
    most = max(groups.values(), key=len)
    told = tuple((plain(values[group[0]]), tuple(names[i] for i in group)) for group in groups.values())
    return [Difference(name, affects, told, tuple(i for i in values if i not in most), means)]


def _training_differences(rows: Sequence[Row], names: Sequence[str]) -> list[Difference]:
    """In what the rows were not trained alike. What a run does not say of itself is unknown, and no difference.

    Rows without a training, as images of other programs, have no data, seed or machine of one.
    """
    trained = {i: row.config for i, row in enumerate(rows) if _is_trained(row)}
    digests = {i: _part(config, "data").get("digest") for i, config in trained.items()}
    seeds = {i: config.get("seed") for i, config in trained.items()}
    told = (
        ("digest of the training data", digests, "not trained on the same data"),
        ("training seed", seeds, "one may have had the luckier start"),
    )
    found: list[Difference] = []
    for name, values, means in told:
        known = {i: value for i, value in values.items() if value is not None}
        found += _difference(names, name, "training", known, means)
    budgets = _budgets(rows)
    level = [measure for measure, values in budgets.items() if _level(values)]
    if level == ["seconds"]:
        means = "the same seconds are not the same training"
        found += _difference(names, "training hardware", "training", _machines(trained), means)
    if budgets and not level:
        groups: dict[str, list[str]] = {}
        for label, row in zip(names, rows, strict=True):
            groups.setdefault(training(row), []).append(label)
        given = tuple((text, tuple(who)) for text, who in groups.items())
        found.append(Difference("training budget", "training", given, _off_budget(budgets.values(), len(rows))))
    return found


def _machines(configs: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """What trained each row, in the fields that all of them state; without those that state none."""
    stated = {i: hardware for i, config in configs.items() if (hardware := _part(config, "hardware"))}
    shared = [key for key in _MACHINE if all(key in hardware for hardware in stated.values())]
    return {i: {key: hardware[key] for key in shared} for i, hardware in stated.items()}


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}


def _is_trained(row: Row) -> bool:
    return row.training_images is not None or row.training_seconds is not None


def rankable(rows: Sequence[Row], affects: Affects, unequal: Sequence[Difference]) -> set[int]:
    """The rows whose scores of that kind may be ranked: all on equal terms.

    Where terms of quality differ, none: the rows were forced together. Where terms of speed do, those that are on the
    terms of more than half the rows, so that one row from another machine does not silence the others.
    """
    spoilt = [difference for difference in unequal if difference.affects == affects]
    if spoilt and (affects != "speed" or not all(difference.has_norm for difference in spoilt)):
        return set()
    return set(range(len(rows))) - {i for difference in spoilt for i in difference.odd}


def ranking(rows: Sequence[Row], contest: Column, unequal: Sequence[Difference]) -> list[int]:
    """Which rows win ``contest``, the best first, then those shown alike or not significantly different from it.

    None with fewer than two values, on unequal terms, or where all are shown alike.
    """
    best, values = _best(rows, contest, unequal)
    if best is None:
        return []
    alike = [i for i in values if contest.figure(rows[i]) == contest.figure(rows[best])]
    if len(alike) == len(values):
        return []
    return [best, *(i for i in values if i != best and (i in alike or tied(rows[i], rows[best], contest)))]


def ties(rows: Sequence[Row], unequal: Sequence[Difference]) -> list[str]:
    """One sentence a score: the rows that are not significantly different from the best, as their intervals tell it."""
    names, result = labels(rows), []
    for contest in columns(rows):
        best, values = _best(rows, contest, unequal)
        alike = [] if best is None else [i for i in values if i != best and tied(rows[i], rows[best], contest)]
        if best is not None and alike:
            test = f"not significantly different from the best ({names[best]}) in a two-sided test at 5 %"
            result.append(f"{contest.heading}: {test}: {' · '.join(names[i] for i in alike)}")
    return result


def _best(rows: Sequence[Row], contest: Column, unequal: Sequence[Difference]) -> tuple[int | None, dict[int, float]]:
    """The row with the best value, None without a contest on equal terms; and all values that may be ranked."""
    values = {
        i: value
        for i in sorted(rankable(rows, contest.affects, unequal))
        if (value := contest.value(rows[i])) is not None and math.isfinite(value)
    }
    if contest.better is None or len(values) < 2:
        return None, values
    return (max if contest.better == "high" else min)(values, key=lambda i: values[i]), values


def tied(row: Row, best: Row, contest: Column) -> bool:
    """Whether both have an interval, and these do not tell the two scores apart."""
    value, top = contest.value(row), contest.value(best)
    interval, top_interval = row.intervals.get(contest.key), best.intervals.get(contest.key)
    if value is None or top is None or interval is None or top_interval is None:
        return False
    return indistinguishable(value, interval, top, top_interval)


def _scored(row: Row, affects: Affects) -> bool:
    """Whether the row has a score of that kind."""
    return any(column.affects == affects and column.value(row) is not None for column in COLUMNS)


def _budgets(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """What each row was given, by each measure that any of them states."""
    flops = [row.protocol.get("training_flops") for row in rows]
    found = {
        "images": [row.training_images for row in rows],
        "seconds": [row.training_seconds for row in rows],
        "flops": [value if value and isinstance(value, int | float) else None for value in flops],
    }
    return {measure: values for measure, values in found.items() if any(value is not None for value in values)}


def _level(values: Sequence[float | None]) -> bool:
    """Whether all are stated and as good as equal."""
    stated = [value for value in values if value is not None]
    return len(stated) == len(values) and min(stated) >= (1 - BUDGET_TOLERANCE) * max(stated)


def _off_budget(budgets: Iterable[Sequence[float | None]], count: int) -> tuple[int, ...]:
    """Of ``count`` rows those outside the largest group with one budget, by whichever measure; in a tie, the first."""
    groups = [[i for i, value in enumerate(values) if _level([value, given])] for values in budgets for given in values]
    most = max(groups, key=len)
    return tuple(i for i in range(count) if i not in most)


def _line(text: str) -> str:
    """One line without control characters, and not endless: it is from a file."""
    return _clip(" ".join("".join(letter if letter.isprintable() else " " for letter in text).split()), 200)


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
