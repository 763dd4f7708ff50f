"""Sizes of images in pixels: one number for squares, (height, width) for rectangles, and which ones can be halved."""

from __future__ import annotations

from trilemma.errors import ConfigError

Size = int | tuple[int, int]


def height_width(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def size_of(height: int, width: int) -> Size:
    """One number where both are the same."""
    return height if height == width else (height, width)


def in_words(size: Size) -> str:
    """``side 28``, or ``28 x 20`` (height x width) for rectangles."""
    height, width = height_width(size)
    return f"side {height}" if height == width else f"{height} x {width}"


def nearest_multiple(size: Size, factor: int) -> Size:
    """The size nearest to ``size`` whose sides are multiples of ``factor``; of two equally near ones the larger."""
    height, width = (max(1, (2 * side + factor) // (2 * factor)) * factor for side in height_width(size))
    return size_of(height, width)


def nearest_that_shrinks(size: Size, most: int) -> Size:
    """The size nearest to ``size`` that halves until its shorter side has at most ``most`` pixels."""
    factor = 1
    while min(height_width(nearest_multiple(size, factor))) > most * factor:
        factor *= 2
    return nearest_multiple(size, factor)


def divided(who: str, size: Size, factor: int, why: str) -> tuple[int, int]:
    """Height and width divided by ``factor``.

    Raises:
        ConfigError: a side that is no multiple of it, with the nearest size that fits; ``who`` asks and ``why``.
    """
    height, width = height_width(size)
    if min(height, width) < factor or height % factor or width % factor:
        raise ConfigError(
            f"{who} cannot take images of {in_words(size)}: {why} each side must be a multiple of {factor}; "
            f"the nearest that fits is {in_words(nearest_multiple(size, factor))}, or use fewer levels"
        )
    return height // factor, width // factor
