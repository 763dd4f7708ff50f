"""Rows in, one self-contained HTML page out, or its plots as files. Nothing here needs torch or the network."""

from __future__ import annotations

from trilemma.report.figures import write_figures
from trilemma.report.page import write_report

__all__ = ["write_figures", "write_report"]
