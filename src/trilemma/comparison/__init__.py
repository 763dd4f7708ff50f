"""Run folders in, one table out. Nothing here needs torch: a run is readable as JSON and PNG."""

from __future__ import annotations

from trilemma.comparison.bench_table import bench_table
from trilemma.comparison.published import published, published_for
from trilemma.comparison.rows import read_rows, refuse_unequal
from trilemma.comparison.table import comparison_table, markdown_table
from trilemma.rows import Difference, Row, Scores, differences

__all__ = [
    "Difference",
    "Row",
    "Scores",
    "bench_table",
    "comparison_table",
    "differences",
    "markdown_table",
    "published",
    "published_for",
    "read_rows",
    "refuse_unequal",
]
