"""Figures that papers and slides print, from published.toml: shown beside measured rows, never among them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from trilemma.config import build
from trilemma.rows import Published, Row


@dataclass(frozen=True)
class _Table:
    """One [[tables]] of the file, which says what its fields are."""

    source: str
    table: str
    data: str
    size: int
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    batch: int | None = None
    note: str = ""
    same: dict[str, str] = field(default_factory=dict)


@cache
def published() -> tuple[Published, ...]:
    """Every row of the file, in its order."""
    text = (resources.files("trilemma") / "comparison" / "published.toml").read_text(encoding="utf-8")
    tables = [build(_Table, values, "published.toml") for values in tomllib.loads(text)["tables"]]
    return tuple(
        Published(
            method=row[0],
            source=table.source,
            table=table.table,
            data=table.data,
            size=table.size,
            columns=table.columns,
            cells=row,
            scores=dict(zip(table.keys, row[1:], strict=True)),
            batch=table.batch,
            note=table.note,
            same=table.same.get(row[0], row[0]),
        )
        for table in tables
        for row in table.rows
    )


def published_for(rows: Iterable[Row]) -> tuple[Published, ...]:
    """What is published on the data of these rows."""
    names = {_name(str(row.protocol.get("data", ""))) for row in rows if row.kind == "images"}
    return tuple(entry for entry in published() if entry.data in names)


def _name(data: str) -> str:
    """CIFAR-10, cifar10 and cifar_10 are one data set."""
    return "".join(letter for letter in data.lower() if letter.isalnum())
