"""Which transformations the adaptive augmentation makes, how strongly, and the published choices by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from trilemma.config import require_all
from trilemma.errors import nearest

_CHANCES = {
    "blit": ("xflip", "rotate90", "xint"),
    "geom": ("scale", "rotate", "aniso", "xfrac"),
    "color": ("brightness", "contrast", "lumaflip", "hue", "saturation"),
    "filter": ("imgfilter",),
    "noise": ("noise",),
    "cutout": ("cutout",),
}
_GEOMETRY = (*_CHANCES["blit"], *_CHANCES["geom"])
_COLOUR = _CHANCES["color"]


@dataclass(frozen=True)
class AdaOptions:
    """The pipeline of Karras et al. 2020a, appendix B. Chances are multiples of p in [0, 1]; 0 leaves a kind out."""

    xflip: float = 0.0  # chance of a mirror image (half of the time no change)
    rotate90: float = 0.0  # chance of a turn by 0, 90, 180 or 270 degrees
    xint: float = 0.0  # chance of a shift by whole pixels
    xint_max: float = 0.125  # its range, as a share of the sides
    scale: float = 0.0  # chance of another size
    rotate: float = 0.0  # chance of a turn by any angle
    aniso: float = 0.0  # chance of another aspect ratio
    xfrac: float = 0.0  # chance of a shift by fractions of a pixel
    scale_std: float = 0.2  # standard deviation of log2 of the size
    rotate_max: float = 1.0  # range of the angle, as a share of 180 degrees
    aniso_std: float = 0.2  # standard deviation of log2 of the stretching
    xfrac_std: float = 0.125  # standard deviation of the shift, as a share of the sides
    brightness: float = 0.0  # chance of more or less light
    contrast: float = 0.0  # chance of more or less contrast
    lumaflip: float = 0.0  # chance of light and dark changing places (half of the time no change)
    hue: float = 0.0  # chance of turned hues; images of one channel have none
    saturation: float = 0.0  # chance of stronger or weaker colours; images of one channel have none
    brightness_std: float = 0.2  # standard deviation of the light added
    contrast_std: float = 0.5  # standard deviation of log2 of the contrast
    hue_max: float = 1.0  # range of the hue's turn, as a share of 180 degrees
    saturation_std: float = 1.0  # standard deviation of log2 of the saturation
    imgfilter: float = 0.0  # chance of each frequency band being weakened or amplified
    imgfilter_bands: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)  # multiples of that chance, from low to high
    imgfilter_std: float = 1.0  # standard deviation of log2 of a band's amplification
    noise: float = 0.0  # chance of normal noise
    noise_std: float = 0.1  # scale of its half-normal standard deviation
    cutout: float = 0.0  # chance of a rectangle of zeros
    cutout_size: float = 0.5  # its sides, as a share of the image's

    def __post_init__(self) -> None:
        values = dataclasses.asdict(self)
        chances = [name for names in _CHANCES.values() for name in names]
        require_all(
            *((0 <= values[name] <= 1, f"{name} must lie in [0, 1], not {values[name]}") for name in chances),
            *(
                (value >= 0, f"{name} must be at least 0, not {value}")
                for name, value in values.items()
                if name.endswith(("_std", "_max", "_size"))
            ),
            (
                len(self.imgfilter_bands) == 4 and all(0 <= chance <= 1 for chance in self.imgfilter_bands),
                f"imgfilter_bands must be four numbers in [0, 1], not {self.imgfilter_bands}",
            ),
        )

    @property
    def geometric(self) -> bool:
        """Whether anything moves pixels."""
        return any(getattr(self, name) > 0 for name in _GEOMETRY)

    @property
    def coloured(self) -> bool:
        """Whether anything changes colours."""
        return any(getattr(self, name) > 0 for name in _COLOUR)


def _with(*groups: str) -> AdaOptions:
    chances: dict[str, Any] = {name: 1.0 for group in groups for name in _CHANCES[group]}
    return AdaOptions(**chances)


PRESETS: dict[str, AdaOptions] = {
    **{group: _with(group) for group in _CHANCES},
    "bg": _with("blit", "geom"),
    "bgc": _with("blit", "geom", "color"),
    "bgcf": _with("blit", "geom", "color", "filter"),
    "bgcfn": _with("blit", "geom", "color", "filter", "noise"),
    "bgcfnc": _with("blit", "geom", "color", "filter", "noise", "cutout"),
}
"""The published choices; the paper's own is bgc."""


def preset(name: str) -> AdaOptions:
    """The published choice of that name. Raises ConfigError for an unknown one, with the nearest."""
    if name not in PRESETS:
        raise nearest("augmentation preset", name, PRESETS)
    return PRESETS[name]
