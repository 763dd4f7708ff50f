"""What the numbers say, in sentences: who wins each corner of the trilemma, and what the denoising GAN buys.

Every figure is computed from the rows. Where the rows were not measured on equal terms no winner is named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trilemma.rows import Column, Difference, Row, column, rankable, ranking, tied
from trilemma.words import MISSING, significant


@dataclass(frozen=True)
class Corner:
    """One corner of the trilemma: ``value`` is the winner's, ``note`` says who won or why nobody did."""

    name: str
    measure: str
    value: str
    note: str
    winners: tuple[int, ...] = ()


def corners(rows: Sequence[Row], labels: Sequence[str], unequal: Sequence[Difference]) -> list[Corner]:
    """Quality, coverage, speed."""
    return [_corner(name, contest, rows, labels, unequal) for name, contest in _contests(rows)]


def _contests(rows: Sequence[Row]) -> list[tuple[str, Column]]:
    points = bool(rows) and all(row.kind == "points" for row in rows)
    quality, coverage = ("share_within_4_sigma", "modes") if points else ("fid", "recall")
    return [
        ("Quality", column(quality)),
        ("Coverage", column(coverage)),
        ("Speed", column("images_per_second_batch_100")),
    ]


def _corner(
    name: str, contest: Column, rows: Sequence[Row], labels: Sequence[str], unequal: Sequence[Difference]
) -> Corner:
    winners = ranking(rows, contest, unequal)
    if winners:
        who = _and([labels[i] for i in winners])
        return Corner(name, contest.arrow, contest.text(rows[winners[0]]), who, tuple(winners))
    known = [i for i, row in enumerate(rows) if math.isfinite(_or_nan(contest.value(row)))]
    if not known:
        return Corner(name, contest.arrow, MISSING, "not measured")
    if any(difference.affects == contest.affects for difference in unequal):
        return Corner(name, contest.arrow, MISSING, "not measured on equal terms")
    if len(known) == 1:
        return Corner(name, contest.arrow, contest.text(rows[known[0]]), f"{labels[known[0]]}, the only one measured")
    return Corner(name, contest.arrow, contest.text(rows[known[0]]), "all tied")


def headline(rows: Sequence[Row], labels: Sequence[str], unequal: Sequence[Difference]) -> str:
    """One sentence: which row wins what."""
    if len(rows) == 1:
        return f"{labels[0]}: {_and([text for _, text in told(rows[0])] or ['nothing was measured'])}."
    won: dict[tuple[int, ...], list[str]] = {}
    claims = {"Quality": "the best quality", "Coverage": "the best coverage", "Speed": "the highest speed"}
    for corner in corners(rows, labels, unequal):
        if corner.winners:
            figure = dict(told(rows[corner.winners[0]]))[corner.name]
            won.setdefault(corner.winners, []).append(f"{claims[corner.name]} ({figure})")
    if not won:
        return "No row can be called best: see below what is missing or unequal."
    if len(won) == 1 and len(next(iter(won.values()))) == 3:
        winners = next(iter(won))
        figures = _and([text for _, text in told(rows[winners[0]])])
        return f"{_and([labels[i] for i in winners])} lead{'s' if len(winners) == 1 else ''} in all three: {figures}."
    parts = [
        f"{_and([labels[i] for i in winners])} {'has' if len(winners) == 1 else 'share'} {_and(claimed)}"
        for winners, claimed in won.items()
    ]
    return "; ".join(parts) + "."


def findings(rows: Sequence[Row], labels: Sequence[str], unequal: Sequence[Difference]) -> list[str]:
    """The denoising GAN against each diffusion row, as ratios: calls, speed, quality and coverage."""
    gan = next((i for i, row in enumerate(rows) if row.method == "ddgan"), None)
    if gan is None:
        return []
    timed, scored = rankable(rows, "speed", unequal), rankable(rows, "quality", unequal)
    result = []
    for i, row in enumerate(rows):
        if row.method != "ddpm" or row.kind != rows[gan].kind:
            continue
        clauses = _speed_clauses(rows[gan], row, equal={gan, i} <= timed)
        if {gan, i} <= scored:
            clauses += _quality_clauses(rows[gan], row)
        if clauses:
            result.append(f"{labels[gan]} against {labels[i]}: {', '.join(clauses)}.")
    return result


def _speed_clauses(gan: Row, diffusion: Row, *, equal: bool) -> list[str]:
    clauses = []
    calls = _ratio(diffusion.scores.nfe, gan.scores.nfe)
    if calls is not None and calls > 1:
        clauses.append(f"{significant(calls)} times fewer network evaluations")
    speed = _ratio(gan.scores.images_per_second_batch_100, diffusion.scores.images_per_second_batch_100)
    if speed is not None and equal:
        clauses.append(f"{significant(speed)} times as many {gan.kind} a second")
    return clauses


def _quality_clauses(gan: Row, diffusion: Row) -> list[str]:
    clauses = []
    names = {"fid": "FID", "recall": "recall", "modes": "modes", "share_within_4_sigma": "share within 4σ"}
    for key, name in names.items():
        ours, theirs = column(key).value(gan), column(key).value(diffusion)
        if ours is None or theirs is None:
            continue
        clause = f"{name} {column(key).text(gan)} against {column(key).text(diffusion)}"
        ratio = _ratio(ours, theirs)
        if tied(gan, diffusion, column(key)):
            clause += " (not significantly different)"
        elif key == "fid" and ratio is not None:
            clause += f" ({significant(ratio, 2)} times as high)"
        clauses.append(clause)
    return clauses


def told(row: Row) -> list[tuple[str, str]]:
    """The three figures of a row in words, by corner; what was not measured is left out."""
    forms = {
        "fid": "FID {}",
        "recall": "recall {}",
        "share_within_4_sigma": "{} of the samples within 4σ",
        "modes": "{} modes",
        "images_per_second_batch_100": f"{{}} {row.kind}/s",
    }
    return [
        (name, forms[contest.key].format(contest.text(row)))
        for name, contest in _contests([row])
        if contest.value(row) is not None
    ]


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _ratio(over: float | None, under: float | None) -> float | None:
    if over is None or under is None or under <= 0 or not (math.isfinite(over) and math.isfinite(under)):
        return None
    return over / under


def _and(words: Sequence[str]) -> str:
    if len(words) > 2 and any(", " in word for word in words):  # whose comma is whose could not be told
        return " · ".join(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
