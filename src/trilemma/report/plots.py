"""The page's figures as plotly.js descriptions (plain dicts): the trilemma, and the learning curves.

Colours stand for methods, and people who see no red or green can tell the first of them apart; a second row of the same
method has another marker, a second run another dash. The browser lays a light or dark theme over these descriptions.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

from trilemma.rows import MARK, MARK_MEANS, Published, Row, column, columns, differences, marks, rankable
from trilemma.words import significant

Figure = dict[str, Any]

PALETTE = ("#3f83e8", "#e0702e", "#1fa187", "#c45ab3", "#b8931f", "#7d6bd6", "#d1495b", "#5b93a7")
SYMBOLS = ("circle", "diamond", "hexagon", "pentagon", "square")
PUBLISHED = "Published (other data, other hardware)"
_PRINTED = (("fid", "FID"), ("recall", "recall"), ("inception_score", "IS"), ("nfe", "NFE"))  # told of a published row
DASHES = ("solid", "dash", "dot", "dashdot")
SMALLEST_DOT = 9.0
LARGEST_DOT = 54  # pixels across, for a recall of 1
LARGEST_CURVE = 160  # points drawn of a loss curve
TYPICAL_WIDTH, TYPICAL_HEIGHT, LETTER, LINE = 980.0, 400.0, 6.6, 17.0  # pixels, to judge where labels fit


def colours(rows: Sequence[Row]) -> list[str]:
    """Each row's colour: one for each method, in the order in which methods appear."""
    methods = list(dict.fromkeys(row.method for row in rows))
    return [PALETTE[methods.index(row.method) % len(PALETTE)] for row in rows]


def trilemma_plot(rows: Sequence[Row], labels: Sequence[str], shades: Sequence[str]) -> tuple[Figure | None, list[str]]:
    """Speed to the right, quality upwards, coverage as the size of the dot; and the labels of rows without a place.

    Images: FID, reversed, so that up is better. Points: the share within 4 sigma. All rows are of one kind. Those on
    other terms than most are open symbols; where terms of quality or speed differ there is no front, as it would rank
    them. ``figure["note"]`` says so in words.
    """
    points = bool(rows) and all(row.kind == "points" for row in rows)
    quality = column("share_within_4_sigma" if points else "fid")
    placed, left_out = [], []
    for i, row in enumerate(rows):
        x, y = row.scores.images_per_second_batch_100, quality.value(row)
        if x is not None and y is not None and math.isfinite(x) and math.isfinite(y) and x > 0:
            placed.append((i, x, y))
        else:
            left_out.append(labels[i])
    if not placed:
        return None, left_out
    heights = [y for _, _, y in placed]
    log_y = not points and min(heights) > 0 and max(heights) > 6 * min(heights)
    y_range = _share_range(heights) if points else _reversed_range(heights, log_y)
    x_range = _padded([math.log10(x) for _, x, _ in placed], 0.09, 0.35)
    coverages = _coverages(rows) if points else [row.scores.recall for row in rows]
    unequal = differences(rows)
    marked = marks(unequal)
    labels = [f"{label} {MARK}" if i in marked else label for i, label in enumerate(labels)]
    positions = _text_positions(placed, coverages, labels, x_range, y_range, log_y)
    spoilt = [difference.name for difference in unequal if difference.affects != "training"]
    fair = rankable(rows, "quality", unequal) & rankable(rows, "speed", unequal)
    front = _front([place for place in placed if place[0] in fair], higher_is_better=points)
    data = [_staircase(front)] if len(front) > 1 else []
    for (i, x, y), position in zip(placed, positions, strict=True):
        same = [j for j in range(i) if rows[j].method == rows[i].method]
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": _safe(labels[i]),
                "x": [_short(x)],
                "y": [_short(y)],
                "text": [_safe(labels[i])],
                "textposition": position,
                "cliponaxis": False,
                "marker": _dot(coverages[i], shades[i], SYMBOLS[len(same) % len(SYMBOLS)], opened=i in marked),
                "hovertemplate": _hover(rows[i], labels[i], marked.get(i)) + "<extra></extra>",
            }
        )
    title = "share of samples within 4σ of a mode" if points else f"FID{' (log)' if log_y else ''}, smaller is higher"
    layout = {
        "xaxis": {
            "title": {"text": f"{'points' if points else 'images'} per second, batches of 100 (log)"},
            "range": x_range,
            **_scale(True, x_range),
        },
        "yaxis": {"title": {"text": title}, "range": y_range, **_scale(log_y, y_range)},
        "hovermode": "closest",
        "margin": {"l": 64, "r": 24, "t": 24, "b": 60},
    }
    note = _note(spoilt, any(i in marked for i, _, _ in placed), bool(fair), len(front) > 1)
    return {"data": data, "layout": layout, "front": len(front) > 1, "note": note}, left_out


def _note(spoilt: Sequence[str], opened: bool, ranked: bool, drawn: bool) -> str:
    """What unequal terms do to a plot, in words; nothing where they are equal."""
    told = [f"Open symbols ({MARK}) are rows {MARK_MEANS}."] if opened else []
    if spoilt and (drawn or not ranked):
        line = "The line of best rows leaves some out" if drawn else "There is no line of best rows"
        told.append(f"{line}, as these terms differ: {', '.join(spoilt)}.")
    return " ".join(told)


def add_published(figure: Figure, entries: Sequence[Published]) -> None:
    """Published rows in a trilemma plot of images: hollow grey dots, one trace, hidden until its name in the legend is
    selected. ``figure["wide"]`` are axes that hold them as well: the plot's own are made for the measured rows.
    """
    places = [place for entry in entries if (place := _published_place(entry, entries)) is not None]
    if not places:
        return
    layout, log_y = figure["layout"], figure["layout"]["yaxis"]["type"] == "log"
    xs = [x for trace in figure["data"] for x in trace["x"]] + [x for x, _, _, _ in places]
    ys = [y for trace in figure["data"] for y in trace["y"]] + [y for _, y, _, _ in places]
    x_range = _padded([math.log10(x) for x in xs], 0.09, 0.35)
    y_range = _reversed_range(ys, log_y)
    figure["wide"] = {
        "xaxis": {"title": dict(layout["xaxis"]["title"]), "range": x_range, **_scale(True, x_range)},
        "yaxis": {"title": dict(layout["yaxis"]["title"]), "range": y_range, **_scale(log_y, y_range)},
    }
    figure["data"].append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": PUBLISHED,
            "legendgroup": "published",
            "visible": "legendonly",
            "x": [_short(x) for x, _, _, _ in places],
            "y": [_short(y) for _, y, _, _ in places],
            "text": [words for _, _, _, words in places],
            "marker": {
                "size": [_size(recall) for _, _, recall, _ in places],
                "color": "rgba(0,0,0,0)",
                "line": {"color": "#8b93a1", "width": 1.5},
            },
            "hovertemplate": "%{text}<extra></extra>",
        }
    )
    layout["showlegend"] = True
    layout["legend"] = {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top", "itemsizing": "constant"}


def _published_place(entry: Published, entries: Sequence[Published]) -> tuple[float, float, float | None, str] | None:
    """Images a second, FID, recall and words of a row with a time, its scores from another table of the same source if
    need be; None without a time or without a FID."""
    speed = entry.images_per_second
    twins = [e for e in entries if (e.source, e.data, e.method) == (entry.source, entry.data, entry.same)]
    scored = next((e for e in (entry, *twins) if e.value("fid") is not None), None)
    if speed is None or scored is None:
        return None
    fid = scored.value("fid")
    assert fid is not None
    told = [f"{name} {scored.scores[key]}" for key, name in _PRINTED if scored.value(key) is not None]
    tables = " and ".join(dict.fromkeys((scored.table, entry.table)))
    words = [
        f"<b>{_safe(entry.method)}</b>",
        _safe(f"{entry.source}: {tables}"),
        *map(_safe, told),
        _safe(f"{entry.scores['seconds']} s for {entry.batch} images"),
        _safe(entry.note),
    ]
    return speed, fid, scored.value("recall"), "<br>".join(word for word in words if word)


LEARNING: tuple[tuple[str, str, str], ...] = (("fid", "quick FID", "FID"), ("coverage", "coverage", "coverage"))


def learning_plots(
    rows: Sequence[Row], labels: Sequence[str], shades: Sequence[str]
) -> list[tuple[str, str, str, Figure]]:
    """What was probed during training, over seconds and over images: (probe, axis, words, figure) where logs have it.

    Crosses mark where the run warned of something; the words are in their hover text.
    """
    found = []
    for probe, title, short in LEARNING:
        for axis, unit in (("seconds", "s"), ("images", "images")):
            figure = _learning_plot(rows, labels, shades, (probe, title, short), (axis, unit))
            if figure:
                found.append((probe, axis, f"{title} over {axis} of training", figure))
    return found


def _learning_plot(
    rows: Sequence[Row],
    labels: Sequence[str],
    shades: Sequence[str],
    probe: tuple[str, str, str],
    axis: tuple[str, str],
) -> Figure | None:
    key, title, short = probe
    data, crosses = [], []
    for i, dash in _runs(rows):
        places = [(getattr(point, axis[0]), getattr(point, key), point.warnings) for point in rows[i].log]
        known = [(x, y, warnings) for x, y, warnings in places if _finite(x) and _finite(y)]
        if known:
            hover = f"{short} %{{y:.3~g}} after %{{x:.3~s}} {axis[1]}"
            data.append(_curve(labels[i], shades[i], dash, [(x, y) for x, y, _ in known], hover, markers=True))
            crosses += [(x, y, labels[i], words) for x, y, warnings in known for words in warnings]
    if not data:
        return None
    values = [y for trace in data for y in trace["y"]]
    log_y = key == "fid" and min(values) > 0 and max(values) > 6 * min(values)
    if crosses:
        data.append(_crosses(crosses))
    layout = _time_layout(f"{title}{' (log)' if log_y else ''}", values if log_y else None)
    layout["xaxis"]["title"] = {"text": f"{axis[0]} of training"}
    return {"data": data, "layout": layout}


def _crosses(places: Sequence[tuple[float, float, str, str]]) -> dict[str, Any]:
    """Where runs warned, and of what."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "warning",
        "x": [_short(x) for x, _, _, _ in places],
        "y": [_short(y) for _, y, _, _ in places],
        "text": [wrapped(f"{who}: {words}") for _, _, who, words in places],
        "marker": {"symbol": "x", "size": 11, "color": "#d1495b"},
        "hovertemplate": "%{text}<extra></extra>",
    }


def loss_plots(rows: Sequence[Row], labels: Sequence[str]) -> list[tuple[str, Figure]]:
    """One figure a run with each of its losses, averaged over stretches; losses of different methods share no scale."""
    figures = []
    for i, _ in _runs(rows):
        names = list(dict.fromkeys(name for point in rows[i].log for name in point.losses))
        data = []
        for k, name in enumerate(names):
            values = [
                (point.seconds, point.losses[name])
                for point in rows[i].log
                if _finite(point.seconds) and _finite(point.losses.get(name))
            ]
            if values:
                shade = PALETTE[k % len(PALETTE)]
                data.append(_curve(name, shade, "solid", _thin(values), "%{y:.4~g} after %{x:.3~g} s"))
        if data:
            figures.append((labels[i], {"data": data, "layout": _time_layout("loss")}))
    return figures


def _runs(rows: Sequence[Row]) -> Iterable[tuple[int, str]]:
    """The first row of each run, with the dash that tells it from other runs of its method."""
    seen: dict[Any, int] = {}
    for i, row in enumerate(rows):
        if row.run not in seen:
            earlier = sum(rows[j].method == row.method for j in seen.values())
            seen[row.run] = i
            yield i, DASHES[earlier % len(DASHES)]


def _curve(
    name: str, colour: str, dash: str, values: Sequence[tuple[float, float]], hover: str, markers: bool = False
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers" if markers else "lines",
        "name": _safe(name),
        "x": [_short(x) for x, _ in values],
        "y": [_short(y) for _, y in values],
        "line": {"color": colour, "dash": dash, "width": 2},
        "marker": {"color": colour, "size": 5},
        "hovertemplate": f"{_safe(name)}: {hover}<extra></extra>",
    }


def _time_layout(title: str, log_values: Sequence[float] | None = None) -> dict[str, Any]:
    """Seconds to the right; upwards a linear scale, or a logarithmic one that holds ``log_values``."""
    upwards = _scale(False, ())
    if log_values:
        span = _padded([math.log10(value) for value in log_values], 0.05, 0.05)
        upwards = {"range": span, **_scale(True, span)}
    return {
        "xaxis": {"title": {"text": "seconds of training"}, "rangemode": "tozero", "separatethousands": True},
        "yaxis": {"title": {"text": title}, **upwards},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "showlegend": True,
        "hovermode": "closest",
        "margin": {"l": 64, "r": 16, "t": 40, "b": 60},
    }


def _scale(log: bool, span: Sequence[float]) -> dict[str, Any]:
    """An axis' type and ticks. On a log axis plotly writes bare digits between decades; here a tick is a number."""
    if not log:
        return {"type": "linear", "exponentformat": "none", "separatethousands": True}
    low, high = min(span), max(span)
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    shown = [tick for tick in ticks if low <= math.log10(tick) <= high]
    if len(shown) < 2:
        return {"type": "log", "exponentformat": "none", "separatethousands": True, "dtick": "D1"}
    return {"type": "log", "tickvals": shown, "ticktext": [significant(tick, 1) for tick in shown]}


def _thin(values: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most LARGEST_CURVE points, each the mean of a stretch: every n-th alone would show noise as a trend."""
    stretch = math.ceil(len(values) / LARGEST_CURVE)
    chunks = [values[k : k + stretch] for k in range(0, len(values), stretch)]
    return [(sum(x for x, _ in chunk) / len(chunk), sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]


def _front(placed: Sequence[tuple[int, float, float]], higher_is_better: bool) -> list[tuple[float, float]]:
    """Speed and quality of the rows that no other beats in both, slowest first."""
    sign = -1.0 if higher_is_better else 1.0
    return sorted(
        {
            (x, y)
            for _, x, y in placed
            if not any(u >= x and sign * v <= sign * y and (u, v) != (x, y) for _, u, v in placed)
        }
    )


def _staircase(front: Sequence[tuple[float, float]]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "front",
        "x": [_short(x) for x, _ in front],
        "y": [_short(y) for _, y in front],
        "line": {"shape": "vh", "dash": "dot", "width": 1.5, "color": "#8b93a1"},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _dot(coverage: float | None, colour: str, symbol: str, *, opened: bool) -> dict[str, Any]:
    """Area in proportion to coverage; an unmeasured one is a small ring."""
    if opened:  # plotly draws such a symbol's outline in the marker's colour
        return {"size": _size(coverage), "color": colour, "symbol": f"{symbol}-open", "line": {"width": 2.5}}
    dot: dict[str, Any] = {"size": _size(coverage), "symbol": symbol}
    if not _finite(coverage):
        return {**dot, "color": "rgba(0,0,0,0)", "line": {"color": colour, "width": 2.5}}
    return {**dot, "color": colour, "opacity": 0.82, "line": {"color": colour, "width": 1.5}}


def _size(coverage: float | None) -> float:
    """A dot's width in pixels."""
    if not _finite(coverage):
        return SMALLEST_DOT
    return round(max(SMALLEST_DOT, LARGEST_DOT * math.sqrt(min(max(coverage, 0.0), 1.0))), 1)


def _hover(row: Row, label: str, odd: str | None) -> str:
    told = [f"{one.heading} {one.text(row)}" for one in columns([row]) if one.key not in ("method",)]
    told += [] if odd is None else [f"{MARK} differs in {odd}"]
    return f"<b>{_safe(label)}</b><br>" + "<br>".join(_safe(line) for line in told)


def _coverages(rows: Sequence[Row]) -> list[float | None]:
    """Modes as a share of the most modes that any row has; the run folder doesn't say how many there are."""
    most = max((row.scores.modes or 0.0 for row in rows), default=0.0)
    return [None if row.scores.modes is None else row.scores.modes / max(most, 1.0) for row in rows]


def _padded(values: Sequence[float], share: float, least: float) -> list[float]:
    low, high = min(values), max(values)
    pad = max(least, share * (high - low))
    return [round(low - pad, 4), round(high + pad, 4)]


def _reversed_range(heights: Sequence[float], log_y: bool) -> list[float]:
    if log_y:
        low, high = _padded([math.log10(y) for y in heights], 0.16, 0.15)
        return [high, low]
    low, high = _padded(heights, 0.22, 0.05 * max(abs(y) for y in heights) + 1e-3)
    return [high, low]


def _share_range(heights: Sequence[float]) -> list[float]:
    low, high = _padded(heights, 0.2, 0.05)
    return [low, round(min(high, 1 + 0.06 * (high - low)), 4)]  # no ticks for shares that cannot be


def _text_positions(
    placed: Sequence[tuple[int, float, float]],
    coverages: Sequence[float | None],
    labels: Sequence[str],
    x_range: Sequence[float],
    y_range: Sequence[float],
    log_y: bool,
) -> list[str]:
    """Where each label goes so that it lies on no dot and no other label, judged on a plot of typical size."""
    centres = []
    for i, x, y in placed:
        u = (math.log10(x) - x_range[0]) / (x_range[1] - x_range[0]) * TYPICAL_WIDTH
        v = ((math.log10(y) if log_y else y) - y_range[1]) / (y_range[0] - y_range[1]) * TYPICAL_HEIGHT
        centres.append((u, v, _size(coverages[i]) / 2))
    taken = [(u - r, v - r, u + r, v + r) for u, v, r in centres]
    positions = []
    for (i, _, _), (u, v, r) in zip(placed, centres, strict=True):
        w, h = len(labels[i]) * LETTER, LINE
        boxes = {
            "top center": (u - w / 2, v - r - h, u + w / 2, v - r),
            "bottom center": (u - w / 2, v + r, u + w / 2, v + r + h),
            "middle right": (u + r, v - h / 2, u + r + w, v + h / 2),
            "middle left": (u - r - w, v - h / 2, u - r, v + h / 2),
        }
        cost = {name: _overlap(box, taken) for name, box in boxes.items()}
        best = min(cost, key=lambda name: cost[name])
        taken.append(boxes[best])
        positions.append(best)
    return positions


def _overlap(box: tuple[float, float, float, float], taken: Iterable[tuple[float, float, float, float]]) -> float:
    left, top, right, bottom = box
    outside = max(0.0, -left) + max(0.0, right - TYPICAL_WIDTH) + max(0.0, -top) + max(0.0, bottom - TYPICAL_HEIGHT)
    shared = 0.0
    for other in taken:
        across = min(right, other[2]) - max(left, other[0])
        down = min(bottom, other[3]) - max(top, other[1])
        shared += max(0.0, across) * max(0.0, down)
    return shared + 20.0 * outside


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _short(value: float) -> float:
    """Five significant digits: more would only make the page larger."""
    return float(f"{value:.5g}")


def wrapped(text: str, width: int = 60) -> str:
    """Lines of so many characters, as plotly's texts have them."""
    return "<br>".join(_safe(line) for line in textwrap.wrap(text, width))


def _safe(text: str) -> str:
    """plotly reads a few HTML tags in its texts; a name is never one."""
    return html.escape(text, quote=False)
