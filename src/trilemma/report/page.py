"""Writes the report: ONE HTML file with its plots, pictures, styles and scripts inside; it opens anywhere, offline.

The page's own security policy forbids it to load anything. Names and protocol values are text from run folders: they
are escaped in the markup, in the JSON the scripts read, and in plot labels.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from trilemma.errors import RunError
from trilemma.files import write_atomically
from trilemma.report import plots
from trilemma.report.headline import corners, findings, headline, told
from trilemma.report.pictures import Picture, embed
from trilemma.rows import (
    MARK,
    MARK_MEANS,
    Difference,
    Published,
    Row,
    cautions,
    columns,
    differences,
    labels,
    marks,
    ranking,
    ties,
    training,
)
from trilemma.words import count, duration, plain

LARGEST_PAGE = 5_900_000  # bytes
ROOM_FOR_TEXT = 100_000  # bytes kept for what is added after the pictures have been chosen

_FIELDS: tuple[tuple[str, str], ...] = (
    ("data", "Data"),
    ("data_digest", "Data digest"),
    ("split", "Split"),
    ("reference_samples", "Reference samples"),
    ("generated_samples", "Generated samples"),
    ("extractor", "Feature extractor"),
    ("extractor_digest", "Extractor digest"),
    ("seeds", "Seeds"),
    ("steps", "Sampler steps"),
    ("repeats", "Repeats of each timing"),
    ("threads", "Threads"),
    ("hardware", "Hardware"),
    ("versions", "Versions"),
)
_SHOWN_ELSEWHERE = {"cautions", "command", "parameters", "training_seconds", "training_images", "seconds"}


def write_report(rows: Sequence[Row], out: Path, title: str, command: str, published: Sequence[Published] = ()) -> Path:
    """Writes the page for ``rows`` to ``out`` and returns it; ``command`` is what to type to make it again.
    ``published`` rows are shown apart from all others, and ranked nowhere.

    Raises RunError when there is no row, or ``out`` cannot be written.
    """
    if not rows:
        raise RunError("nothing to report: give at least one evaluated run folder")
    if out.is_dir():
        raise RunError(f"{out} is a folder: give a file name, for example {out / 'report.html'}")
    text = render(rows, title, command, published)
    return write_atomically(out, lambda path: path.write_text(text, encoding="utf-8"))


def render(rows: Sequence[Row], title: str, command: str, published: Sequence[Published] = ()) -> str:
    """The whole page as text."""
    names, unequal, shades = labels(rows), differences(rows), plots.colours(rows)
    kinds = list(dict.fromkeys(row.kind for row in rows))
    figures: list[dict[str, Any]] = []
    trilemmas = [_trilemma(kind, rows, names, shades, figures, published) for kind in kinds]
    learning = []
    for probe, axis, words, figure in plots.learning_plots(rows, names, shades):
        figures.append({"id": f"learning-{probe}-{axis}", "figure": figure})
        learning.append({"id": f"learning-{probe}-{axis}", "probe": probe, "words": words})
    losses = []
    for k, (name, figure) in enumerate(plots.loss_plots(rows, names)):
        figures.append({"id": f"losses-{k}", "figure": figure})
        losses.append({"id": f"losses-{k}", "name": name})
    context = {
        "title": title,
        "command": command,
        "written": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0"),
        "headline": headline(rows, names, unequal),
        "findings": findings(rows, names, unequal),
        "corners": [(corner, [shades[i] for i in corner.winners]) for corner in corners(rows, names, unequal)],
        "warnings": [difference.sentence() for difference in unequal],
        "trilemmas": trilemmas,
        "table": _table(rows, shades, unequal),
        "ties": ties(rows, unequal),
        "cautions": cautions(rows),
        "mark": MARK,
        "mark_means": MARK_MEANS,
        "drawn_from": _drawn_from(rows, names),
        "published": _published(published),
        "losses": losses,
        "learning": learning,
        "warned": _warned(rows, names),
        "without_log": [name for row, name in zip(rows, names, strict=True) if not row.log],
        "provenance": _provenance(rows),
        "commands": _commands(rows),
        "names": names,
        "shades": shades,
        "figures": figures,
        "plotly": Markup(get_plotlyjs()),
    }
    environment = Environment(
        loader=PackageLoader("trilemma", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    template = environment.get_template("template.html.j2")
    # Pictures get what the page without them leaves free, so the page is made twice: the first pass costs milliseconds.
    bare = len(template.render(context, cards=_cards(rows, names, shades, None)).encode())
    room = max(0, LARGEST_PAGE - ROOM_FOR_TEXT - bare)
    return template.render(context, cards=_cards(rows, names, shades, room))


def _trilemma(
    kind: str,
    rows: Sequence[Row],
    names: Sequence[str],
    shades: Sequence[str],
    figures: list[dict[str, Any]],
    published: Sequence[Published],
) -> dict[str, Any]:
    chosen = [i for i, row in enumerate(rows) if row.kind == kind]
    figure, left_out = plots.trilemma_plot(
        [rows[i] for i in chosen], [names[i] for i in chosen], [shades[i] for i in chosen]
    )
    if figure:
        if kind == "images":
            plots.add_published(figure, published)
        figures.append({"id": f"trilemma-{kind}", "figure": figure})
    return {
        "id": f"trilemma-{kind}",
        "kind": kind,
        "drawn": figure is not None,
        "front": bool(figure and figure["front"]),
        "note": figure["note"] if figure else "",
        "published": bool(figure and "wide" in figure),
        "left_out": left_out,
    }


def _table(rows: Sequence[Row], shades: Sequence[str], unequal: Sequence[Difference]) -> dict[str, Any]:
    shown = columns(rows, details=True)
    best = {column.key: ranking(rows, column, unequal) for column in shown}
    marked = marks(unequal)
    return {
        "columns": shown,
        "marked": bool(marked),
        "rows": [
            {
                "shade": shades[i],
                "odd": marked.get(i, ""),
                "cells": [
                    {
                        "text": column.text(row),
                        "sort": column.value(row) if column.value(row) is not None else "",
                        "best": i in best[column.key],
                        "number": column.is_number,
                    }
                    for column in shown
                ],
            }
            for i, row in enumerate(rows)
        ],
    }


def _drawn_from(rows: Sequence[Row], names: Sequence[str]) -> str:
    """In a sentence, whether the samples are from the same seeds; images of other programs have none."""
    found: dict[str, list[str]] = {}
    for row, name in zip(rows, names, strict=True):
        if row.config.get("kind") != "images":
            found.setdefault(plain(row.protocol.get("seeds")), []).append(name)
    if len(found) > 1:
        told = "; ".join(f"{seeds} ({' · '.join(who)})" for seeds, who in found.items())
        return f"The runs did not all draw from the same seeds: {told}. Nothing was picked by hand."
    if plain(None) in found:
        return "The seeds are not stated."
    return "Every run drew from the same seeds, in the same order; nothing was picked by hand." if found else ""


def _published(entries: Sequence[Published]) -> list[dict[str, Any]]:
    """The printed tables, each with its source and its cells as printed."""
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in entries:
        about = f"{entry.data}, {entry.size} x {entry.size} pixels. {entry.note}".strip()
        table = {"title": f"{entry.source}: {entry.table}", "about": about, "columns": entry.columns, "rows": []}
        tables.setdefault((entry.source, entry.table), table)["rows"].append(entry.cells)
    return list(tables.values())


def _cards(
    rows: Sequence[Row], names: Sequence[str], shades: Sequence[str], budget: int | None
) -> list[dict[str, Any]]:
    """What the samples and trajectory sections show of each row. Without a budget no picture is read."""
    paths = [path for row in rows for path in (row.samples, row.trajectory, row.neighbours, row.worst)]
    pictures = [Picture(None)] * len(paths) if budget is None else embed(paths, budget)
    return [
        {
            "name": names[i],
            "shade": shades[i],
            "row": row,
            "scores": " · ".join(text for _, text in told(row)),
            "samples": pictures[4 * i],
            "trajectory": pictures[4 * i + 1],
            "neighbours": pictures[4 * i + 2],
            "worst": pictures[4 * i + 3],
        }
        for i, row in enumerate(rows)
    ]


def _warned(rows: Sequence[Row], names: Sequence[str]) -> list[tuple[str, str]]:
    """Each run's warnings in training, with the run's name and the images it had seen."""
    runs = {row.run: (row, name) for row, name in reversed(list(zip(rows, names, strict=True)))}
    return [
        (name, f"{count(point.images)} images: {words}")
        for row, name in reversed(runs.values())
        for point in row.log
        for words in point.warnings
    ]


def _commands(rows: Sequence[Row]) -> list[str]:
    """What to type to make the rows again, in order; a run without its command (an older one) has none."""
    told: dict[str, None] = {}
    for row in rows:
        trained, scored = row.config.get("command"), row.protocol.get("command")
        out = f" --out {shlex.quote(str(row.run))}"
        told |= {trained + out: None} if isinstance(trained, str) else {}
        told |= {scored: None} if isinstance(scored, str) else {}
    return list(told)


def _provenance(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line a field, one cell a row; ``unequal`` marks conditions that ought to be the same and are not."""
    extra = sorted({key for row in rows for key in row.protocol} - {key for key, _ in _FIELDS} - _SHOWN_ELSEWHERE)
    lines = [
        ("Run folder", [str(row.run) for row in rows], False),
        ("Paper", [row.paper or "not stated" for row in rows], False),
        ("Data source", [plain(_data(row).get("source")) for row in rows], False),
        ("Digest of the training data", [plain(_data(row).get("digest")) for row in rows], False),
        ("Training hardware", [plain(row.config.get("hardware")) for row in rows], False),
        ("Training seed", [plain(row.config.get("seed")) for row in rows], False),
        ("Training", [training(row) for row in rows], False),
        ("Parameters", [count(row.parameters) for row in rows], False),
        *((name, [plain(row.protocol.get(key)) for row in rows], key != "steps") for key, name in _FIELDS),
        *((_words(key), [plain(row.protocol.get(key)) for row in rows], False) for key in extra),
        ("Measured in", [duration(_seconds(row)) for row in rows], False),
    ]
    return [
        {"name": name, "cells": cells, "unequal": ought and len(set(cells)) > 1, "code": "digest" in name.lower()}
        for name, cells, ought in lines
    ]


def _words(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _data(row: Row) -> dict[str, Any]:
    data = row.config.get("data")
    return data if isinstance(data, dict) else {}


def _seconds(row: Row) -> float | None:
    seconds = row.protocol.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else None
