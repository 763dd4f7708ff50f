"""Numbers and other plain values as they are shown to people: digits, units, and a dash for what is missing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

MISSING = "—"


def significant(value: float | None, digits: int = 3) -> str:
    """``value`` with that many significant digits, thousands separated: 0.0123, 58.2, 2,610. None is an em dash."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # rounded first, so that 9.996 becomes 10.0 and not 10.00
    magnitude = math.floor(math.log10(abs(rounded)))
    if magnitude < -5:
        return f"{rounded:.{digits - 1}e}"
    return f"{rounded:,.{max(0, digits - 1 - magnitude)}f}"


def half_width(interval: tuple[float, float], figure: str) -> str:
    """Half the width of a score's interval, with the decimals of the ``figure`` it stands behind, or else one digit."""
    half = (interval[1] - interval[0]) / 2
    text = f"{half:,.{len(figure.partition('.')[2])}f}"
    return text if half == 0 or float(text.replace(",", "")) > 0 else significant(half, 1)


def count(value: float | None) -> str:
    """A count in a few characters: 712 k, 35.7 M, 2,000."""
    if value is None or not math.isfinite(value):
        return significant(value)
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            return f"{significant(value / (1e3 if name == 'k' else unit))} {name}"
    return f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Seconds in the unit a person would use: 0.4 s, 75 s, 20 min, 3.4 h."""
    if seconds is None or not math.isfinite(seconds):
        return significant(seconds)
    if seconds < 120:
        return f"{significant(seconds, 2)} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{significant(seconds / 3600, 2)} h"


def plain(value: object) -> str:
    """A JSON value in one line of words; None is "not stated"."""
    if value is None:
        return "not stated"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items()) or "empty"
    if isinstance(value, list | tuple):
        return ", ".join(plain(inner) for inner in value)
    return value if isinstance(value, str) else json.dumps(value)
