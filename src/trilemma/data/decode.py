"""One picture file to pixels: uint8 (H, W) if it is gray, (H, W, 3) if it has colour.

Rules: the first frame of an animation; turned upright by its EXIF orientation; transparency on white; 16 bits scaled
to 8; gray are the modes 1, L, LA, I;16, I and F, and a palette of grays; all else is colour, even if it looks gray.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

# Nothing else is tried, whatever a file is called: some of Pillow's other readers start foreign programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # the EXIF orientations that swap width and height
_JPEG_MARGIN = 2  # a JPEG may be decoded at a fraction of its size, yet at least this many times the size wanted


class UnusableError(Exception):
    """A picture that can't be used; the text is the reason."""


@dataclass(frozen=True)
class Picture:
    """A picture's upright width and height as stored, and its pixels, or None if they were not asked for."""

    width: int
    height: int
    pixels: NDArray[np.uint8] | None


def read_picture(
    stream: BinaryIO, *, size: int | None, channels: int | None, expected: tuple[int, int] | None
) -> Picture:
    """Read one picture.

    Args:
        stream: the file.
        size: make it size x size; None keeps it as it is.
        channels: 1 or 3 to force gray or RGB; None keeps what it is.
        expected: (width, height); a picture of another size is not decoded. None takes any.

    Raises:
        UnusableError: a file that is broken, too large, or of a kind that has no 8-bit meaning.
    """
    try:
        with Image.open(stream, formats=FORMATS) as image:
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise UnusableError(_too_large())
            width, height = _upright_size(image)
            if expected is not None and (width, height) != expected:
                return Picture(width, height, None)
            if size is not None:
                image.draft(None, (_JPEG_MARGIN * size, _JPEG_MARGIN * size))
            image.load()
            # Looked up first: exif_transpose copies even where there is nothing to turn.
            upright = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
            plain = _to_mode(_plain(upright), channels)
        if size is None:  # a PNG may tell its orientation behind its pixels
            width, height = upright.size
            if expected is not None and (width, height) != expected:
                return Picture(width, height, None)
        plain = plain if size is None else square(plain, size)
        return Picture(width, height, np.asarray(plain, dtype=np.uint8))
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


def square(image: Image.Image, size: int) -> Image.Image:
    """Shorter side resized to ``size`` (Lanczos, which in Pillow averages when it shrinks), centre cropped."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


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


def _too_large() -> str:
    return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels: too large to be safe to open"
