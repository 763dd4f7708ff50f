"""Rows in, one self-contained HTML page out. Nothing here needs torch or the network."""

from __future__ import annotations

from trilemma.report.page import write_report

__all__ = ["write_report"]
