"""Pictures of samples: a grid of images, or points in the plane. PNG, no frame, no text but captions asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trilemma.errors import DataError, NonFiniteError
from trilemma.files import write_atomically

_MIN_TILE = 32  # pixels: smaller images are enlarged, else nobody sees them
_GAP = 2  # pixels between tiles, and around them
_WHITE = 255
_WINDOW = 5.0  # half the side of a picture of points
_MARGIN = 4  # pixels above and below captions
_FAINTEST = 0.35  # ink of a cell with a single point, 1 is black
_MODE_COLOUR = (230, 120, 0)


def save_grid(x: Tensor, path: Path, columns: int = 8, captions: Sequence[str] = ()) -> None:
    """Samples as they are stored.

    Images uint8 (N, C, H, W), C 1 or 3: row by row, edge to edge, cells left over white; below 32 pixels enlarged by a
    whole factor, each pixel a sharp square. Points float (N, 2, 1, 1): see ``save_points``. ``captions``, one a column,
    go beneath the columns of images, which are enlarged until the text fits.

    Raises:
        DataError: neither of the two, no image, or no column.
        NonFiniteError: a point is NaN or infinite.
        RunError: the file can't be written.
    """
    if x.is_floating_point() and x.ndim == 4 and tuple(x.shape[1:]) == (2, 1, 1):
        save_points(x.flatten(1), path)
        return
    if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[1] not in (1, 3) or len(x) == 0 or columns < 1:
        raise DataError(
            f"a grid needs uint8 (N, C, H, W) with C 1 or 3 and at least one image and column; got {x.dtype} "
            f"{tuple(x.shape)}, {columns} columns"
        )
    widest = max((_text_box(caption)[2] + _GAP for caption in captions), default=0)
    factor = max(-(-_MIN_TILE // min(x.shape[2:])), -(-widest // x.shape[3]))
    x = x.detach().cpu().repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    pixels = _tiled(x.permute(0, 2, 3, 1).numpy(), columns)
    _write(with_captions(pixels[..., 0] if x.shape[1] == 1 else pixels, captions), path)


def _tiled(images: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Images (N, H, W, C) row by row, with white lines between and around them; a single one as it is.

    Not by torchvision, whose import takes as long as torch's.
    """
    n, height, width, channels = images.shape
    if n == 1:
        return images.reshape(height, width, channels)
    across = min(columns, n)
    down = -(-n // across)
    # Without a line between them small images run into each other: nobody could tell a digit from its neighbours.
    cells = np.full((down * across, height + _GAP, width + _GAP, channels), _WHITE, np.uint8)
    cells[:n, _GAP:, _GAP:] = images
    rows = cells.reshape(down, across, *cells.shape[1:]).swapaxes(1, 2)
    tiled = rows.reshape(down * cells.shape[1], across * cells.shape[2], channels)
    return np.pad(tiled, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=_WHITE)


def with_captions(pixels: NDArray[np.uint8], captions: Sequence[str]) -> NDArray[np.uint8]:
    """A picture (H, W) or (H, W, 3) with a text of one or more lines centred beneath each of its equally wide columns,
    black on white, in Pillow's default font; the picture itself without captions."""
    if not captions:
        return pixels
    strip = max(_text_box(caption)[3] for caption in captions) + 2 * _MARGIN
    picture = Image.fromarray(pixels)
    captioned = Image.new(picture.mode, (picture.width, picture.height + strip), "white")
    captioned.paste(picture)
    draw = ImageDraw.Draw(captioned)
    for i, caption in enumerate(captions):
        centre = (i + 0.5) * picture.width / len(captions)
        corner = (centre - _text_box(caption)[2] / 2, picture.height + _MARGIN)
        draw.multiline_text(corner, caption, fill="black", font=ImageFont.load_default(), align="center")
    return np.asarray(captioned)


def _text_box(text: str) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in pixels of a text drawn at (0, 0)."""
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    box = draw.multiline_textbbox((0, 0), text, font=ImageFont.load_default(), align="center")
    left, top, right, bottom = (math.ceil(side) for side in box)
    return left, top, right, bottom


def save_points(points: Tensor, path: Path, *, modes: Tensor | None = None, side: int = 400) -> None:
    """Points float (N, 2) as dark cells on white, the darker the more; window [-5, 5]^2, first coordinate to the right,
    second up. Points outside are drawn on the border. ``modes`` (K, 2) are marked by small coloured squares.

    Raises:
        DataError: not (N, 2).
        NonFiniteError: a value is NaN or infinite.
        RunError: the file can't be written.
    """
    if points.ndim != 2 or points.shape[1] != 2:
        raise DataError(f"a picture of points needs (N, 2); got {tuple(points.shape)}")
    row, column = _cells(points, side)
    counts = np.zeros((side, side))
    np.add.at(counts, (row, column), 1.0)
    # Logarithm: a lone point between the modes must show beside cells that hold hundreds.
    share = np.log1p(counts) / np.log1p(max(counts.max(), 1.0))
    ink = np.where(counts > 0, _FAINTEST + (1.0 - _FAINTEST) * share, 0.0)
    pixels = np.repeat(np.rint(_WHITE * (1.0 - ink)).astype(np.uint8)[..., None], 3, axis=2)
    if modes is not None:
        for r, c in zip(*_cells(modes, side), strict=True):
            _mark(pixels, int(r), int(c), radius=side // 40)
    _write(pixels, path)


def _cells(points: Tensor, side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column (N,) of each point on a side x side picture of [-5, 5]^2."""
    values = points.detach().cpu().double().numpy()
    if not np.isfinite(values).all():
        raise NonFiniteError("points with NaN or infinite values can't be drawn; look at the losses before them")
    cells = np.clip(np.floor((values / _WINDOW + 1.0) * (side / 2)), 0, side - 1).astype(np.int64)
    return side - 1 - cells[:, 1], cells[:, 0]


def _mark(pixels: NDArray[np.uint8], row: int, column: int, radius: int) -> None:
    """A hollow square around (row, column)."""
    top, left = max(row - radius, 0), max(column - radius, 0)
    inside = pixels[top + 1 : row + radius, left + 1 : column + radius].copy()
    pixels[top : row + radius + 1, left : column + radius + 1] = _MODE_COLOUR
    pixels[top + 1 : row + radius, left + 1 : column + radius] = inside


def _write(pixels: NDArray[np.uint8], path: Path) -> None:
    write_atomically(path, lambda temporary: Image.fromarray(pixels).save(temporary, format="PNG"))
