"""Writes the report: ONE HTML file with its plots, pictures, styles and scripts inside; it opens anywhere, offline.

The page's own security policy forbids it to load anything. Names and protocol values are text from run folders: they
are escaped in the markup, in the JSON the scripts read, and in plot labels.
"""

from __future__ import annotations

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
from trilemma.rows import Difference, Row, columns, count, differences, duration, labels, plain, ranking, training

LARGEST_PAGE = 5_900_000  # bytes
ROOM_FOR_TEXT = 100_000  # bytes kept for what is added after the pictures have been chosen
LEAST_FOR_PICTURES = 200_000  # bytes

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
_SHOWN_ELSEWHERE = {"parameters", "training_seconds", "training_images", "seconds"}


def write_report(rows: Sequence[Row], out: Path, title: str, command: str) -> Path:
    """Writes the page for ``rows`` to ``out`` and returns it; ``command`` is what to type to make it again.

    Raises RunError when there is no row, or ``out`` cannot be written.
    """
    if not rows:
        raise RunError("nothing to report: give at least one evaluated run folder")
    if out.is_dir():
        raise RunError(f"{out} is a folder: give a file name, for example {out / 'report.html'}")
    text = render(rows, title, command)
    return write_atomically(out, lambda path: path.write_text(text, encoding="utf-8"))


def render(rows: Sequence[Row], title: str, command: str) -> str:
    """The whole page as text."""
    names, unequal, shades = labels(rows), differences(rows), plots.colours(rows)
    kinds = list(dict.fromkeys(row.kind for row in rows))
    figures: list[dict[str, Any]] = []
    trilemmas = [_trilemma(kind, rows, names, shades, figures) for kind in kinds]
    learning = plots.learning_plot(rows, names, shades)
    if learning:
        figures.append({"id": "learning", "figure": learning})
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
        "losses": losses,
        "has_learning": learning is not None,
        "without_log": [name for row, name in zip(rows, names, strict=True) if not row.log],
        "provenance": _provenance(rows),
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
    bare = len(template.render(context, cards=_cards(rows, names, shades, 0)).encode())
    room = max(LEAST_FOR_PICTURES, LARGEST_PAGE - ROOM_FOR_TEXT - bare)
    return template.render(context, cards=_cards(rows, names, shades, room))


def _trilemma(
    kind: str, rows: Sequence[Row], names: Sequence[str], shades: Sequence[str], figures: list[dict[str, Any]]
) -> dict[str, Any]:
    chosen = [i for i, row in enumerate(rows) if row.kind == kind]
    figure, left_out = plots.trilemma_plot(
        [rows[i] for i in chosen], [names[i] for i in chosen], [shades[i] for i in chosen]
    )
    if figure:
        figures.append({"id": f"trilemma-{kind}", "figure": figure})
    return {
        "id": f"trilemma-{kind}",
        "kind": kind,
        "drawn": figure is not None,
        "front": bool(figure and figure["front"]),
        "left_out": left_out,
    }


def _table(rows: Sequence[Row], shades: Sequence[str], unequal: Sequence[Difference]) -> dict[str, Any]:
    shown = columns(rows)
    best = {column.key: ranking(rows, column, unequal) for column in shown}
    return {
        "columns": shown,
        "rows": [
            {
                "shade": shades[i],
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


def _cards(rows: Sequence[Row], names: Sequence[str], shades: Sequence[str], budget: int) -> list[dict[str, Any]]:
    """What the samples and trajectory sections show of each row. With a budget of 0 no picture is read."""
    paths = [path for row in rows for path in (row.samples, row.trajectory)]
    pictures = embed(paths, budget) if budget else [Picture(None)] * len(paths)
    return [
        {
            "name": names[i],
            "shade": shades[i],
            "row": row,
            "scores": " · ".join(text for _, text in told(row)),
            "samples": pictures[2 * i],
            "trajectory": pictures[2 * i + 1],
        }
        for i, row in enumerate(rows)
    ]


def _provenance(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line a field, one cell a row; ``unequal`` marks conditions that ought to be the same and are not."""
    extra = sorted({key for row in rows for key in row.protocol} - {key for key, _ in _FIELDS} - _SHOWN_ELSEWHERE)
    lines = [
        ("Run folder", [str(row.run) for row in rows], False),
        ("Paper", [row.paper or "not stated" for row in rows], False),
        ("Data source", [plain(_data(row).get("source")) for row in rows], False),
        ("Training seed", [plain(row.config.get("seed")) for row in rows], False),
        ("Training", [training(row) for row in rows], False),
        ("Parameters", [count(row.parameters) for row in rows], False),
        *((name, [plain(row.protocol.get(key)) for row in rows], key != "steps") for key, name in _FIELDS),
        *((_words(key), [plain(row.protocol.get(key)) for row in rows], False) for key in extra),
        ("Measured in", [duration(_seconds(row)) for row in rows], False),
    ]
    return [
        {"name": name, "cells": cells, "unequal": ought and len(set(cells)) > 1, "code": "digest" in name}
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
