"""What the pictures of a source are, before they are made alike: formats, sizes, what is broken, a thumbnail of each.

Every file is read to its end, so one that is cut short is found. Kept of a picture are 192 bytes and a few counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trilemma.data.decode import Look, Picture, look_at, read_picture
from trilemma.data.folder import Source, bombs_refused, in_threads, read_entry, stack
from trilemma.data.listing import shown


@dataclass(frozen=True)
class Survey:
    """What was found. ``good`` are the numbers of the entries that can be read; names are paths in the source."""

    good: list[int]
    broken: list[str]  # "path: reason"
    formats: Counter[str]
    modes: Counter[str]
    sizes: Counter[tuple[int, int]]  # (width, height), upright
    turned: list[str]  # by their EXIF orientation
    transparent: list[str]
    deep: list[str]  # 16 bits a channel
    gray: int  # read as gray
    colourless: int  # read as colour, yet gray as far as the thumbnail shows
    thumbnails: NDArray[np.uint8]  # (number of good ones, 8, 8, 3)


def survey(source: Source, report: Callable[[int, int], None] = lambda done, total: None) -> Survey:
    """Look at all pictures of a source, by several threads. ``report`` is told the number done and of all."""
    entries = source.entries
    found = Survey([], [], Counter(), Counter(), Counter(), [], [], [], 0, 0, np.empty((0, 8, 8, 3), dtype=np.uint8))
    thumbnails = np.empty((len(entries), 8, 8, 3), dtype=np.uint8)
    gray = colourless = done = 0

    def look(chunk: range) -> list[Look | str]:
        return [read_entry(entries[i], look_at) for i in chunk]

    with bombs_refused():
        for chunk in in_threads(look, len(entries)):
            for each in chunk:
                path = shown(entries[done].path)
                if isinstance(each, str):
                    found.broken.append(f"{path}: {each}")
                else:
                    thumbnails[len(found.good)] = each.thumbnail
                    found.good.append(done)
                    _count(found, path, each)
                    gray += each.gray
                    colourless += not each.gray and bool((each.thumbnail == each.thumbnail[..., :1]).all())
                done += 1
            report(done, len(entries))
    return replace(found, gray=gray, colourless=colourless, thumbnails=thumbnails[: len(found.good)])


def _count(found: Survey, path: str, look: Look) -> None:
    found.formats[look.format] += 1
    found.modes[look.mode] += 1
    found.sizes[look.width, look.height] += 1
    for names, holds in ((found.turned, look.turned), (found.transparent, look.transparent), (found.deep, look.deep)):
        if holds:
            names.append(path)


def tiles(source: Source, numbers: list[int], side: int) -> Tensor:
    """Some pictures of a source whole, on white squares: uint8 (n, 3, side, side), without those that can't be read."""
    with bombs_refused():
        read = [
            read_entry(source.entries[i], read_picture, size=side, channels=3, expected=None, crop="pad")
            for i in numbers
        ]
    pixels = [picture.pixels for picture in read if isinstance(picture, Picture) and picture.pixels is not None]
    return torch.from_numpy(stack(pixels, 3)) if pixels else torch.empty(0, 3, side, side, dtype=torch.uint8)
