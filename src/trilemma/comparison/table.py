"""The comparison as a table: for the terminal (rich) and for a README or a documentation page (Markdown)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

from trilemma.rows import MARK, MARK_MEANS, Column, Row, cautions, columns, differences, marks, ranking, ties

BELOW = {"method": "sampler", "fid": "kid", "precision": "recall"}
"""Columns that share one, first above second: so all of them fit a terminal of 80."""


def comparison_table(rows: Sequence[Row], title: str | None = None) -> Table:
    """The rows as a rich table; print it where you like.

    Best values are bold, and so are those that are not significantly different. Rows on other terms are marked. Below
    it are unequal conditions and, in words, what cannot be told apart and which scores to read with care.
    """
    unequal = differences(rows)
    marked = marks(unequal)
    notes = [(f"{MARK} {MARK_MEANS}", "yellow")] if marked else []
    notes += [(f"! {difference.sentence()}", "yellow") for difference in unequal]
    notes += [(f"= {sentence}", "") for sentence in ties(rows, unequal)]
    notes += [(f"caution, {sentence}", "") for sentence in cautions(rows)]
    table = Table(
        title=None if title is None else Text(title, style="bold"),
        caption=Text("\n").join(Text(note, style=style) for note, style in notes) if notes else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    shown = columns(rows)
    best = {column.key: ranking(rows, column, unequal) for column in shown}
    below = {column.key: column for column in shown if column.key in BELOW.values()}
    stacks = [
        [column, *(below[key] for key in below if BELOW.get(column.key) == key)]
        for column in shown
        if column.key not in below
    ]
    for stack in stacks:
        first = stack[0]
        side: Literal["right", "left"] = "right" if first.is_number else "left"
        # A figure with its interval may take two lines on a narrow terminal; one without would only be torn apart.
        wraps = first.key == "method" or any(column.key in row.intervals for column in stack for row in rows)
        table.add_column(_heading(stack), justify=side, no_wrap=not wraps, overflow="fold")
    for i, row in enumerate(rows):
        wins = [[i in best[column.key] for column in stack] for stack in stacks]
        table.add_row(*(_cell(row, stack, won, i in marked) for stack, won in zip(stacks, wins, strict=True)))
    return table


def _heading(stack: Sequence[Column]) -> Text:
    lines = [column.arrow for column in stack]
    if len(stack) == 1 and stack[0].better:
        name, _, batch = stack[0].heading.partition(" @")
        lines = [name, (f"@{batch}" if batch else "") + lines[0][-1]]
    return Text("\n".join(lines))


def _cell(row: Row, stack: Sequence[Column], best: Sequence[bool], marked: bool) -> Text:
    """Text, not a string: square brackets in a title are no markup."""
    lines = [(column.text(row), "bold" if wins else "") for column, wins in zip(stack, best, strict=True)]
    if stack[0].key == "method" and marked:
        lines[0] = (f"{lines[0][0]} {MARK}", lines[0][1])
    if stack[0].key == "training":
        lines = [(part, "") for part in lines[0][0].split(" in ")]
    return Text("\n").join(Text(text, style=style) for text, style in lines)


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, best values in bold, rows on other terms marked; what differs and what is tied are
    listed below it."""
    unequal = differences(rows)
    marked = marks(unequal)
    shown = columns(rows)
    best = {column.key: ranking(rows, column, unequal) for column in shown}
    lines = [
        _line(column.arrow for column in shown),
        _line("---:" if column.is_number else "---" for column in shown),
    ]
    for i, row in enumerate(rows):
        cells = [_escape(column.text(row)) for column in shown]
        cells[0] += f" {MARK}" if i in marked else ""  # the method
        lines.append(_line(f"**{cell}**" if i in best[c.key] else cell for c, cell in zip(shown, cells, strict=True)))
    notes = [f"- {MARK}: {MARK_MEANS}."] if marked else []
    notes += [f"- Not equal: {_escape(difference.sentence())}" for difference in unequal]
    notes += [f"- {_escape(sentence)}" for sentence in ties(rows, unequal)]
    if notes:
        lines += ["", *notes]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escape(text: str) -> str:
    """Text that stays text in Markdown, on one line."""
    text = " ".join(text.split())
    for sign in ("\\", "|", "*", "_", "`", "[", "]"):
        text = text.replace(sign, f"\\{sign}")
    return text.replace("<", "&lt;")
