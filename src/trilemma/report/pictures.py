"""PNG files as data addresses inside the page, within a budget of bytes.

A picture that fits goes in byte for byte. When all of them together are too large, the largest are reduced first to 256
colours and then in size, and the page says so. One that is too large even as a thumbnail is left out.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trilemma.files import is_bomb

SMALLEST_SIDE = 16  # pixels; on less nothing can be seen


@dataclass(frozen=True)
class Picture:
    """An embedded picture, or ``address`` None and the reason in ``note``. Width and height are the file's pixels."""

    address: str | None
    width: int = 0
    height: int = 0
    note: str = ""


def embed(paths: Sequence[Path | None], budget: int) -> list[Picture]:
    """One picture for each path; together their addresses take at most about ``budget`` bytes."""
    contents = [_read(path) for path in paths]
    sizes = sorted(len(content) for content in contents if isinstance(content, bytes))
    limit = _fair_share(sizes, budget * 3 // 4)  # base64 makes four bytes of three
    return [
        Picture(None, note=found) if isinstance(found, str) else _picture(found, limit, path.name if path else "")
        for found, path in zip(contents, paths, strict=True)
    ]


def _read(path: Path | None) -> bytes | str:
    """The file's bytes if it is a sound PNG, else the reason why not."""
    if path is None:
        return "No picture: trilemma evaluate draws it."
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if is_bomb(image.width * image.height, len(content)):
                return f"The picture {path.name} cannot be shown: it has far more pixels than such a small file can."
            image.load()
    except Exception as error:  # Pillow answers a broken file with almost any exception
        return f"The picture {path.name} cannot be shown: {' '.join(str(error).split()) or type(error).__name__}."
    return content


def _fair_share(sizes: Sequence[int], budget: int) -> int:
    """The largest limit such that the sizes, each cut to it, fit the budget. ``sizes`` ascending."""
    left = budget
    for i, size in enumerate(sizes):
        share = left // (len(sizes) - i)
        if size > share:
            return share
        left -= size
    return budget


def _picture(content: bytes, limit: int, name: str) -> Picture:
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        width, height = image.size
        note = ""
        if len(content) > limit:
            reduced = _reduce(image, limit)
            if reduced is None:
                return Picture(None, note=f"Left out to keep this page small: {name} lies in the run folder.")
            content, note = reduced
    return Picture(f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}", width, height, note)


def _reduce(image: Image.Image, limit: int) -> tuple[bytes, str] | None:
    """The picture in at most ``limit`` bytes, and how it was brought there; None if it cannot be."""
    flat = image.convert("L" if image.mode in ("1", "L") else "RGB")
    note = "Shown with 256 colours to keep this page small; the original lies in the run folder."
    while True:
        stream = io.BytesIO()
        (flat if flat.mode == "L" else flat.quantize(256)).save(stream, "PNG", optimize=True)
        if stream.tell() <= limit:
            return stream.getvalue(), note
        if min(flat.size) // 2 < SMALLEST_SIDE:
            return None
        flat = flat.resize((flat.width // 2, flat.height // 2), Image.Resampling.BOX)
        note = "Shown reduced in size to keep this page small; the original lies in the run folder."
