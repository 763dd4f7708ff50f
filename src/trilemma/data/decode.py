"""One picture file to pixels: uint8 (H, W) if it is gray, (H, W, 3) if it has colour.

Rules: the first frame of an animation; turned upright by its EXIF orientation; transparency on white; 16 bits scaled
to 8; gray are the modes 1, L, LA, I;16, I and F, and a palette of grays; all else is colour, even if it looks gray.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from trilemma.files import is_bomb

# Nothing else is tried, whatever a file is called: some of Pillow's other readers start foreign programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # the EXIF orientations that swap width and height
_JPEG_MARGIN = 2  # a JPEG may be decoded at a fraction of its size, yet at least this many times the size wanted
_THUMBNAIL = 8  # pixels a side

Crop = Literal["center", "none", "pad"]
Filter = Literal["lanczos", "box"]
_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "box": Image.Resampling.BOX}
_CROPS = {
    "center": "shorter side, centre cropped",
    "none": "shorter side, not cropped",
    "pad": "longer side, white beside",
}


def resizing(crop: Crop = "center", resample: Filter = "lanczos") -> str:
    """In words how pictures of other sizes are brought to the size wanted."""
    return f"{resample.capitalize()}, {_CROPS[crop]}"


class UnusableError(Exception):
    """A picture that can't be used; the text is the reason."""


@dataclass(frozen=True)
class Picture:
    """A picture's upright width and height as stored, and its pixels, or None if they were not asked for."""

    width: int
    height: int
    pixels: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Look:
    """What a picture file is, before anything is done to it."""

    format: str  # PNG, JPEG, ...
    mode: str  # Pillow's name for the kind of its pixels: L, RGB, RGBA, CMYK, ...
    width: int  # upright, as is the height
    height: int
    turned: bool  # by its EXIF orientation
    transparent: bool
    deep: bool  # 16 bits a channel
    gray: bool  # read as gray
    thumbnail: NDArray[np.uint8]  # (8, 8, 3): the means of 8 x 8 blocks, upright, on white


def read_picture(
    stream: BinaryIO,
    *,
    size: int | None,
    channels: int | None,
    expected: tuple[int, int] | None,
    crop: Crop = "center",
    resample: Filter = "lanczos",
) -> Picture:
    """Read one picture.

    Args:
        stream: the file.
        size: the side wanted, in pixels; None keeps it as it is.
        channels: 1 or 3 to force gray or RGB; None keeps what it is.
        expected: (width, height); a picture of another size is not decoded. None takes any.
        crop: "center" makes it size x size from its middle, "pad" all of it with white beside it; "none" makes its
            shorter side ``size`` and keeps its shape.
        resample: how it is resized.

    Raises:
        UnusableError: a file that is broken, too large or would become so, or of a kind that has no 8-bit meaning.
    """
    with _reasons(), _opened(stream) as image:
        width, height = _upright_size(image)
        if expected is not None and (width, height) != expected:
            return Picture(width, height, None)
        if size is not None:
            image.draft(None, (_JPEG_MARGIN * size, _JPEG_MARGIN * size))
        image.load()
        upright = _upright(image)
        plain = _to_mode(_plain(upright), channels)
        if size is None:  # a PNG may tell its orientation behind its pixels
            width, height = upright.size
            if expected is not None and (width, height) != expected:
                return Picture(width, height, None)
        plain = plain if size is None else resized(plain, size, crop, resample)
        return Picture(width, height, np.asarray(plain, dtype=np.uint8))


def look_at(stream: BinaryIO) -> Look:
    """Read one picture whole, to see what it is and whether it can be read to its end.

    Raises:
        UnusableError: as ``read_picture`` does.
    """
    with _reasons(), _opened(stream) as image:
        kind, mode, size = "JPEG" if image.format == "MPO" else str(image.format), image.mode, image.size
        tiles: list[Any] = getattr(image, "tile", [])
        # Pillow reads colour of 16 bits as 8: only what it is about to decode says so.
        # (A BMP of 16 bits has five or six a channel.)
        deep = image.format != "BMP" and (mode.startswith("I") or any(";16" in str(tile[3]) for tile in tiles))
        image.draft(None, (_JPEG_MARGIN * _THUMBNAIL, _JPEG_MARGIN * _THUMBNAIL))
        image.load()
        orientation = _orientation(image)  # a PNG may tell it behind its pixels
        width, height = size[::-1] if orientation in _TURNED else size
        transparent = _is_transparent(image)
        plain = _plain(_upright(image))
        small = plain.convert("RGB").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
        return Look(
            kind, mode, width, height, orientation != 1, transparent, deep, plain.mode == "L", np.asarray(small)
        )


@contextmanager
def _opened(stream: BinaryIO) -> Iterator[Image.Image]:
    file_bytes = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    with Image.open(stream, formats=FORMATS) as image:
        if _is_too_large(image.width, image.height):
            raise UnusableError(_too_large())
        if is_bomb(image.width * image.height, file_bytes):
            raise UnusableError("far more pixels than such a small file can describe: not safe to open")
        yield image


@contextmanager
def _reasons() -> Iterator[None]:
    """Whatever a broken file makes Pillow raise becomes an ``UnusableError`` that says why."""
    try:
        yield
    except UnusableError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnusableError(_too_large()) from None
    except UnidentifiedImageError:
        raise UnusableError("not a picture, or a broken one") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers answer a broken file with almost any exception; each is reported
        lines = str(error).strip().splitlines()
        raise UnusableError(f"broken: {lines[0] if lines else type(error).__name__}") from error


def resized(image: Image.Image, size: int, crop: Crop = "center", resample: Filter = "lanczos") -> Image.Image:
    """The picture at ``size`` (see ``read_picture``). Raises UnusableError for one that would have too many pixels."""
    side = min(image.size) if crop == "none" else max(image.size)
    width, height = (max(1, round(length * size / side)) for length in image.size)
    became = (width, height) if crop == "none" else (size, size)
    if _is_too_large(*became):  # a strip may be small and still become anything
        raise UnusableError(f"would become {became[0]:,} x {became[1]:,} at --size {size}: {_too_large()}")
    if crop == "center":
        return square(image, size, resample)
    if (width, height) != image.size:
        image = image.resize((width, height), _FILTERS[resample])
    if crop == "none" or width == height:
        return image
    padded = Image.new(image.mode, (size, size), "white")
    padded.paste(image, ((size - width) // 2, (size - height) // 2))
    return padded


def square(image: Image.Image, size: int, resample: Filter = "lanczos") -> Image.Image:
    """Shorter side resized to ``size`` (by filters which in Pillow average when they shrink), centre cropped."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), _FILTERS[resample], box=(left, top, left + side, top + side))


def fit(x: Tensor, size: int | None, channels: int | None) -> Tensor:
    """The same for a whole set: uint8 (N, C, H, W), C 1 or 3, to (N, channels, size, size); None keeps what is."""
    if channels not in (None, x.shape[1]):
        x = x.expand(-1, 3, -1, -1).contiguous() if channels == 3 else _luma(x)
    if size is None or tuple(x.shape[2:]) == (size, size):
        return x
    gray = x.shape[1] == 1
    source = (x[:, 0] if gray else x.permute(0, 2, 3, 1)).contiguous().numpy()
    out = np.empty((len(source), size, size) if gray else (len(source), size, size, 3), dtype=np.uint8)
    for i, pixels in enumerate(source):
        out[i] = np.asarray(square(Image.fromarray(pixels), size))
    fitted = torch.from_numpy(out)
    return fitted.unsqueeze(1) if gray else fitted.permute(0, 3, 1, 2).contiguous()


def _luma(x: Tensor) -> Tensor:
    """ITU-R 601 luma in Pillow's own fixed-point arithmetic, so that a set and a folder of it agree to the bit."""
    red, green, blue = x.to(torch.int32).unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8).unsqueeze(1)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    return (image.height, image.width) if _orientation(image) in _TURNED else image.size


def _upright(image: Image.Image) -> Image.Image:
    # Looked up first: exif_transpose copies even where there is nothing to turn.
    return ImageOps.exif_transpose(image) if _orientation(image) != 1 else image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation as far as it is known by now, 1 (upright) without any."""
    if image.format == "TIFF":  # turned by Pillow already, when it was opened
        return 1
    # Asking a PNG for EXIF data that is not in its head would decode it whole.
    if image.format == "PNG" and "exif" not in image.info and "Raw profile type exif" not in image.info:
        return 1
    value = image.getexif().get(_ORIENTATION)
    return value if isinstance(value, int) else 1


def _plain(image: Image.Image) -> Image.Image:
    """Any mode to L (gray) or RGB, transparency on white."""
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image)
    if image.mode in ("P", "PA"):
        return _gray_if_gray(_on_white(image.convert("RGBA")))
    if image.mode in ("1", "L", "LA", "La"):
        if image.mode == "La" or image.has_transparency_data:
            return _on_white(image.convert("LA"))
        return image if image.mode == "L" else image.convert("L")
    if image.mode == "RGBa" or image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _is_transparent(image: Image.Image) -> bool:
    """Whether any pixel lets the white through that ``_plain`` puts behind."""
    if image.mode.startswith(("I", "F")) or not image.has_transparency_data:
        return False
    return bool(np.asarray(image.convert("RGBA").getchannel("A")).min() < 255)


def _on_white(image: Image.Image) -> Image.Image:
    """LA to L, RGBA to RGB."""
    white = Image.new(image.mode[:-1], image.size, "white")
    white.paste(image.convert(white.mode), mask=image.getchannel("A"))
    return white


def _gray_if_gray(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    gray = bool((pixels[..., :1] == pixels[..., 1:]).all())
    return image.getchannel(0) if gray else image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray of 16 bits or in floating point, to 8 bits."""
    values = np.asarray(image)
    if image.mode == "F":
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise UnusableError("floating-point pixels outside [0, 1]")
        return Image.fromarray(np.rint(values * 255.0).astype(np.uint8))
    if int(values.min()) < 0 or int(values.max()) > 0xFFFF:
        raise UnusableError("integer pixels outside 0..65535")
    return Image.fromarray(((values.astype(np.uint32) * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8))


def _to_mode(image: Image.Image, channels: int | None) -> Image.Image:
    mode = {None: image.mode, 1: "L", 3: "RGB"}[channels]
    return image if image.mode == mode else image.convert(mode)


def _is_too_large(width: int, height: int) -> bool:
    return Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS


def _too_large() -> str:
    return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels: too large to be safe to open"
