"""The page's plots as PNG and PDF, for papers. kaleido draws them, which needs Chrome or Chromium."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trilemma.errors import RunError
from trilemma.files import cannot_write
from trilemma.report import plots
from trilemma.rows import Row, labels

FORMATS = ("png", "pdf")
WIDTH, HEIGHT, SCALE = 900, 480, 2  # layout pixels, and the pixels of a PNG for each of them
INK, GRID = "#1b2430", "#e6e9ee"


def figures(rows: Sequence[Row]) -> dict[str, plots.Figure]:
    """The plots by name: the trilemma, one for each kind of data, and the learning curves."""
    names, shades = labels(rows), plots.colours(rows)
    found: dict[str, plots.Figure] = {}
    for kind in dict.fromkeys(row.kind for row in rows):
        chosen = [i for i, row in enumerate(rows) if row.kind == kind]
        parts = ([of[i] for i in chosen] for of in (rows, names, shades))
        figure, _ = plots.trilemma_plot(*parts)  # type: ignore[arg-type]
        if figure:
            found[f"trilemma-{kind}"] = figure
    for probe, axis, _, figure in plots.learning_plots(rows, names, shades):
        found[f"learning-{probe}-{axis}"] = figure
    return found


def write_figures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draws every plot into ``folder`` as PNG and PDF and returns the files.

    Raises RunError when kaleido or a browser is missing, drawing fails, or the folder cannot be written.
    """
    drawn = figures(rows)
    names = [f"{name}.{kind}" for name in drawn for kind in FORMATS]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".figures-") as temporary:
            draw([plain(figure) for figure in drawn.values() for _ in FORMATS], [Path(temporary) / n for n in names])
            for name in names:
                (Path(temporary) / name).replace(folder / name)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return [folder / name for name in names]


def draw(descriptions: Sequence[plots.Figure], files: Sequence[Path], *, width: int = WIDTH) -> None:
    """Each description into its file, a PNG or PDF by its name.

    Raises RunError when kaleido or a browser is missing, or drawing fails.
    """
    try:
        import kaleido
        from kaleido.errors import ChromeNotFoundError
    except ImportError as error:
        raise RunError("to write plots as files, pip install 'trilemma[figures]'") from error
    options = {"width": width, "height": HEIGHT, "scale": SCALE}
    jobs = [
        {"fig": figure, "path": file, "opts": {**options, "format": file.suffix.removeprefix(".")}}
        for figure, file in zip(descriptions, files, strict=True)
    ]
    try:
        kaleido.write_fig_from_object_sync(jobs, kopts={"mathjax": False})  # which would come from the network
    except ChromeNotFoundError as error:
        raise RunError("to write plots as files, install Chrome or Chromium: kaleido draws with it") from error
    except RuntimeError as error:
        raise RunError(f"the plots cannot be drawn: {' '.join(str(error).split())}") from error


def plain(figure: plots.Figure) -> dict[str, Any]:
    """On white, in dark ink, as a page is printed; above it what a page's caption would say of unequal terms."""
    layout = copy.deepcopy(figure["layout"])
    for axis in (layout[name] for name in layout if name.startswith(("xaxis", "yaxis"))):
        axis |= {"gridcolor": GRID, "linecolor": GRID, "zerolinecolor": GRID, "automargin": True}
    layout |= {"font": {"size": 14, "color": INK}, "paper_bgcolor": "white", "plot_bgcolor": "white"}
    layout.setdefault("showlegend", False)
    if figure.get("note"):
        words = {"text": plots.wrapped(figure["note"], 110), "font": {"size": 12}}
        layout["title"] = {**words, "x": 0.01, "xanchor": "left", "y": 0.95, "yanchor": "top"}
        layout["margin"] = {**layout["margin"], "t": 64}
    return {"data": figure["data"], "layout": layout}
