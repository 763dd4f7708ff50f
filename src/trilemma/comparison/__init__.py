"""Run folders in, one table out. Nothing here needs torch: a run is readable as JSON and PNG."""

from __future__ import annotations

from trilemma.comparison.rows import read_rows
from trilemma.comparison.table import comparison_table, markdown_table
from trilemma.rows import Difference, Row, Scores, differences

__all__ = ["Difference", "Row", "Scores", "comparison_table", "differences", "markdown_table", "read_rows"]
