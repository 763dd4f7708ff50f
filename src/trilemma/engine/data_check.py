"""The health of a data set before anything is trained on it: what it is made of, what is wrong, what mends it.

Near duplicates are pictures whose thumbnails, 8 x 8 block means of three colours in 0 to 255, lie within a root mean
square of 2. Two such thumbnails have means within 2 of each other as well (a mean of differences is at most their root
mean square), so each is compared only with those whose mean is that near.
"""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

from trilemma.data.folder import Source, nothing_readable
from trilemma.data.listing import shown
from trilemma.data.pictures import save_grid
from trilemma.data.prepared import is_prepared
from trilemma.data.source import open_source
from trilemma.data.survey import Survey, survey, tiles
from trilemma.errors import DataError, RunError
from trilemma.files import write_atomically, write_json
from trilemma.measure import neighbours

NEAR = 2.0  # levels of 255
ROWS = 4096  # thumbnails compared with their neighbours at a time
MEMORY = 2**24  # bytes; where all are near, what finds groups takes a few times as much
SHEET, PAIRS, SIDE = 64, 16, 96  # pictures on the sheet, pairs of duplicates shown, pixels of each
FEW = 1000  # images, below which a discriminator learns them by heart
RARE = 0.1  # of the commonest class
LISTED = 20  # sizes and examples told
Report = Callable[[str, int, int], None]


def check_data(
    data: str, out: Path, *, labels: Path | None = None, report: Report = lambda what, done, total: None
) -> dict[str, Any]:
    """Look at every training image of ``data`` and say what was found, as plain values.

    Writes into ``out``: check.json, contact.png (up to 64 images), and where there are near duplicates duplicates.png
    (pairs) and duplicates.txt (all but the first of each group, for ``data prepare --without``).

    Raises:
        DataError: nothing there, or not one picture that can be read.
        ConfigError, RunError: as ``open_source`` does, and where the files can't be written.
    """
    if is_prepared(Path(data)):
        raise DataError(f"{data} is prepared already: check what it was made from")
    place = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise RunError(f"cannot write {out}: {place} is no folder that can be written to: choose another --out")
    with open_source(data, labels=labels) as source:
        found = survey(source, lambda done, total: report("read", done, total))
        if not found.good:
            raise nothing_readable(source, found.broken)
        report("compare", 0, 1)
        groups = near_duplicates(found.thumbnails)
        report("compare", 1, 1)
        shown_ones = [found.good[round(i)] for i in np.linspace(0, len(found.good) - 1, min(SHEET, len(found.good)))]
        sheet = tiles(source, shown_ones, SIDE)
        pairs = tiles(source, [found.good[i] for group in groups[:PAIRS] for i in group[:2]], SIDE)
    names = [[shown(source.entries[found.good[i]].path) for i in group] for group in groups]
    result = _result(data, source, found, names, out)
    save_grid(sheet, out / "contact.png")
    for file in ("duplicates.png", "duplicates.txt"):  # of an earlier check
        (out / file).unlink(missing_ok=True)
    if names:
        save_grid(pairs, out / "duplicates.png", columns=2)
        text = "".join(f"{name}\n" for group in names for name in group[1:])
        write_atomically(out / "duplicates.txt", lambda path: path.write_text(text, encoding="utf-8"))
    write_json(out / "check.json", result)
    return result


def near_duplicates(thumbnails: NDArray[np.uint8]) -> list[list[int]]:
    """Groups of two or more near duplicates among thumbnails (N, ...): their numbers, rising; the largest group first.

    Whatever is near to a member of a group is in the group. Memory is bounded, whatever N.
    """
    flat = thumbnails.reshape(len(thumbnails), -1)
    sums = flat.sum(axis=1, dtype=np.int64)  # in place of means: whole numbers lose nothing
    order = np.argsort(sums, kind="stable")
    sums, rows = sums[order], torch.from_numpy(flat[order])
    limit = NEAR**2 * flat.shape[1]
    parent = list(range(len(flat)))
    for start in range(0, len(rows), ROWS):
        stop = min(start + ROWS, len(rows))
        last = int(np.searchsorted(sums, sums[stop - 1] + NEAR * flat.shape[1], side="right"))
        for x, y, squares in neighbours.tiles(rows[start:stop], rows[start:last], MEMORY):
            ahead = torch.arange(y.start, y.stop)[None] > torch.arange(x.start, x.stop)[:, None]
            numbers = np.concatenate([order[start:][x], order[start:][y]]).tolist()
            for i, j in _links(((squares <= limit) & ahead).numpy()):
                _join(parent, numbers[i], numbers[j])
    members: dict[int, list[int]] = {}
    for i in range(len(flat)):
        members.setdefault(_root(parent, i), []).append(i)
    return sorted((group for group in members.values() if len(group) > 1), key=lambda group: (-len(group), group))


def _links(near: NDArray[np.bool_]) -> Iterable[tuple[int, int]]:
    """Links that hold together whatever ``near`` (R, C) does, fewer than R + C even where all are near: pairs of
    numbers, 0 to R - 1 for its rows and R to R + C - 1 for its columns."""
    rows, columns = near.nonzero()
    if not len(rows):
        return []
    nodes = sum(near.shape)
    graph = coo_matrix((np.ones(len(rows), dtype=bool), (rows, near.shape[0] + columns)), shape=(nodes, nodes))
    group = connected_components(graph, directed=False)[1]
    first = np.unique(group, return_index=True)[1][group]
    others = np.flatnonzero(first != np.arange(nodes))
    return zip(others.tolist(), first[others].tolist(), strict=True)


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = i = parent[parent[i]]
    return i


def _join(parent: list[int], i: int, j: int) -> None:
    parent[_root(parent, i)] = _root(parent, j)


def _result(data: str, source: Source, found: Survey, duplicates: list[list[str]], out: Path) -> dict[str, Any]:
    sides = sorted(min(size) for size in found.sizes.elements())
    ratios = sorted(width / height for width, height in found.sizes.elements())
    counted = _class_counts(source, found)
    return {
        "data": data,
        "source": source.words,
        "held_out": source.held_out,
        "images": len(found.good),
        "formats": _common(found.formats.items()),
        "modes": _common(found.modes.items()),
        "sizes": _common((f"{width}x{height}", count) for (width, height), count in found.sizes.items()),
        "different_sizes": len(found.sizes),
        "shorter_side": {"least": sides[0], "median": round(statistics.median(sides)), "most": sides[-1]},
        "aspect_ratio": {"least": ratios[0], "median": statistics.median(ratios), "most": ratios[-1]},
        "gray": found.gray,
        "classes": counted,
        "broken": found.broken,
        "passed_over": source.skipped,
        "duplicates": duplicates,
        "problems": problems(data, source, found, duplicates, counted, out),
        "contact_sheet": str(out / "contact.png"),
    }


def _class_counts(source: Source, found: Survey) -> dict[str, int] | None:
    """Readable images of each class, the commonest first; None without classes."""
    if source.classes is None:
        return None
    counts = Counter({shown(name): 0 for name in source.names})
    counts.update(shown(source.classes[i]) for i in found.good)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _common(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The commonest, equally common ones by name."""
    return dict(sorted(counts, key=lambda item: (-item[1], item[0]))[:LISTED])


def suggested_size(found: Survey) -> int:
    """The largest power of two from 32 to 1024 that nine in ten images reach with their shorter side, at least 32."""
    sides = sorted(min(size) for size in found.sizes.elements())
    usual = sides[len(sides) // 10]
    return max([size for size in (32, 64, 128, 256, 512, 1024) if size <= usual], default=32)


def problems(
    data: str,
    source: Source,
    found: Survey,
    duplicates: list[list[str]],
    classes: dict[str, int] | None,
    out: Path,
) -> list[dict[str, Any]]:
    """What is not as it should be: ``problem``, ``count``, ``fix`` and the first ``examples``."""
    listed: list[dict[str, Any]] = []

    def add(problem: str, count: int, fix: str, examples: Sequence[str] = ()) -> None:
        if count:
            listed.append({"problem": problem, "count": count, "fix": fix, "examples": list(examples[:LISTED])})

    size, many = suggested_size(found), len(found.good)
    sizes = found.sizes
    rectangles = sum(count for (width, height), count in sizes.items() if width != height)
    lost = sum((1 - min(each) / max(each)) * count for each, count in sizes.items()) / many
    whole = "--crop none keeps them" if len(sizes) == 1 else "--crop pad keeps all of them on white"
    small = sum(count for each, count in sizes.items() if min(each) < size)
    colour = many - found.gray
    add("broken, named and passed over", len(found.broken), "replace or remove them", found.broken)
    add("other files passed over", len(source.skipped), "see the reasons", source.skipped)
    if len(sizes) > 1:
        add("images of several sizes", len(sizes), f"trilemma data prepare {data} --size {size}")
    add("images that are not square", rectangles, f"--crop center cuts {lost:.0%} of the average image; {whole}")
    add(f"images smaller than {size} pixels", small, "they are enlarged; a smaller --size avoids it")
    copies = sum(len(group) - 1 for group in duplicates)
    pairs = [" = ".join(group[:3]) for group in duplicates]
    add("near duplicates", copies, f"--without {out}/duplicates.txt", pairs)
    if found.gray and colour:
        add("gray images among colour", min(found.gray, colour), "all become RGB; --gray makes all gray")
    elif colour and found.colourless == many:
        add("colour images that show only gray", many, "--gray: one channel in place of three")
    add("transparent", len(found.transparent), "nothing: they are put on white", found.transparent)
    add("turned by EXIF", len(found.turned), "nothing: they are turned upright", found.turned)
    add("of 16 bits", len(found.deep), "nothing: they are scaled to 8", found.deep)
    add("CMYK", found.modes["CMYK"], "nothing: they become RGB")
    if classes and len(classes) > 1:
        most = max(classes.values())
        rare = [f"{name}: {count}" for name, count in classes.items() if count < RARE * most]
        add("classes with a tenth of the commonest or less", len(rare), "more images of them, or leave them out", rare)
    if many < FEW:
        add("few images", many, "trilemma train stylegan2 --options.augment ada")
    return listed
