"""A classifier of one's own data as an extractor: a small residual network and the file it is kept in.

With conv(i, o) a 3 x 3 convolution, batch norm and ReLU, and down(i, o) the same with a 2 x 2 maximum in front of the
batch norm:

    x_0 = conv(C, w)                                full size
    x_1 = down(w, 2w),      x_1 + conv conv x_1     a half
    x_2 = down(2w, 4w)                              a quarter
    x_3 = down(4w, 8w),     x_3 + conv conv x_3     an eighth
    p = mean of x_3 over the pixels in R^(8w),  features = s p,  logits = W p + b

It is the residual network of nine layers known from training contests on CIFAR-10 (He et al. 2016 for the residual
branches), narrower: at w = 32 an image of 32 x 32 costs 95 million multiplications and additions. s makes the trace of
the features' covariance over the training images 100, so a Frechet distance of 100 is about one total variance of real
images, whatever the data. `trilemma.engine.extractor` trains it.

A file is safetensors with one entry of metadata, JSON of two parts: ``network``, all that rebuilds it, and ``made``,
how it came about. Reading one runs no code.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trilemma.config import build, plain, require_all
from trilemma.errors import ConfigError, ExtractorError
from trilemma.files import parse_json, write_atomically
from trilemma.measure.weight_files import short

ARCHITECTURE = "resnet9"
MIN_SIZE = 8  # pixels: three halvings leave one
FEATURE_VARIANCE = 100.0  # trace of the features' covariance over the training images
_KEY = "trilemma_extractor"
_HINT = "give a file that trilemma extractor train has written"


@dataclass(frozen=True)
class NetworkOptions:
    """All that rebuilds a network but its weights."""

    classes: tuple[str, ...]
    channels: int  # of the images: 1 (gray) or 3 (RGB)
    size: tuple[int, ...]  # height and width it was trained at; other images are resized
    mean: tuple[float, ...]  # of the training images, for each channel, in levels 0 to 255
    std: tuple[float, ...]
    width: int = 32  # w
    feature_scale: float = 1.0  # s
    architecture: str = ARCHITECTURE

    def __post_init__(self) -> None:
        levels = (*self.mean, *self.std)
        require_all(
            (self.architecture == ARCHITECTURE, f"architecture must be {ARCHITECTURE}, not {self.architecture!r}"),
            (len(self.classes) >= 2, f"classes must be at least 2, not {len(self.classes)}"),
            (self.channels in (1, 3), f"channels must be 1 or 3, not {self.channels}"),
            (
                len(self.size) == 2 and all(MIN_SIZE <= side <= 4096 for side in self.size),
                f"size must be a height and a width of at least {MIN_SIZE} pixels, not {list(self.size)}",
            ),
            (len(self.mean) == len(self.std) == self.channels, "mean and std must have one value for each channel"),
            (all(map(math.isfinite, levels)) and min(self.std, default=1) > 0, "mean must be finite, std positive"),
            (1 <= self.width <= 512, f"width must be from 1 to 512, not {self.width}"),
            (
                math.isfinite(self.feature_scale) and self.feature_scale > 0,
                f"feature_scale must be positive, not {self.feature_scale}",
            ),
        )


class Classifier(nn.Module):
    """The network above. ``mean`` and ``std`` come from its options, not from the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, options: NetworkOptions) -> None:
        super().__init__()
        self.options = options
        w = options.width
        self.stem = _conv(options.channels, w)
        self.down1 = _conv(w, 2 * w, halved=True)
        self.branch1 = nn.Sequential(_conv(2 * w, 2 * w), _conv(2 * w, 2 * w))
        self.down2 = _conv(2 * w, 4 * w, halved=True)
        self.down3 = _conv(4 * w, 8 * w, halved=True)
        self.branch3 = nn.Sequential(_conv(8 * w, 8 * w), _conv(8 * w, 8 * w))
        self.head = nn.Linear(8 * w, len(options.classes))
        for name in ("mean", "std"):
            values = torch.tensor(getattr(options, name)).view(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (N, C, H, W) -> features (N, 8w), none negative, and logits (N, classes)."""
        x = self.down1(self.stem(x))
        x = x + self.branch1(x)
        x = self.down3(self.down2(x))
        x = x + self.branch3(x)
        pooled = x.mean((2, 3))
        return self.options.feature_scale * pooled, self.head(pooled)

    def normalised(self, x: Tensor) -> Tensor:
        """Levels 0 to 255 (N, C, H, W), uint8 or float -> float32 of mean 0 and variance 1 over the training images."""
        return ((x.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def judge(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, 1 or 3, H, W) of any size -> features and logits.

        Gray is repeated to three channels and colours are averaged where the network wants it; other sizes are resized
        bilinearly (with antialiasing when they shrink). Raises ExtractorError for another type or shape.
        """
        if x.dtype != torch.uint8 or x.dim() != 4 or x.shape[1] not in (1, 3):
            raise ExtractorError(f"expected uint8 images (N, 1 or 3, H, W), got {x.dtype} {tuple(x.shape)}")
        return self.look(x.float())

    def look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``judge`` of levels 0 to 255 that are not rounded, float32 (N, 1 or 3, H, W)."""
        if x.shape[1] > self.options.channels:
            x = x.mean(1, keepdim=True)
        x = x.expand(-1, self.options.channels, -1, -1)
        if tuple(x.shape[2:]) != self.options.size:
            x = F.interpolate(x, self.options.size, mode="bilinear", align_corners=False, antialias=True)
        features, logits = self(self.normalised(x))
        return features, logits


def _conv(i: int, o: int, *, halved: bool = False) -> nn.Sequential:
    """3 x 3 convolution, 2 x 2 maximum if ``halved``, batch norm, ReLU; the norm after the maximum has less to do."""
    pool = [nn.MaxPool2d(2)] if halved else []
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), *pool, nn.BatchNorm2d(o), nn.ReLU(inplace=True))


def levels(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images (N, C, H, W), exact up to float64."""
    counts = torch.stack([torch.bincount(x[:, c].flatten(), minlength=256) for c in range(x.shape[1])]).double()
    values = torch.arange(256, dtype=torch.float64)
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(1)
    return tuple(mean.tolist()), tuple(variance.sqrt().clamp(min=1.0).tolist())


def save_classifier(network: Classifier, path: Path, made: dict[str, Any]) -> Path:
    """Write the weights and what is said of them, complete or not at all."""
    about = json.dumps({"network": plain(network.options), "made": made}, allow_nan=False)
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    return write_atomically(path, lambda temporary: save_file(state, temporary, {_KEY: about}))


def load_classifier(path: Path) -> Classifier:
    """The network of a file, ready for inference.

    Raises ExtractorError when the file is missing, damaged or not of this kind.
    """
    about = _read_about(path)
    try:
        options = build(NetworkOptions, about.get("network", {}), str(path))
    except ConfigError as error:
        raise ExtractorError(f"{error}; {_HINT}") from error
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        network = Classifier(options)
        network.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ExtractorError(f"{path}: its weights do not fit ({short(error)}); {_HINT}") from error
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise ExtractorError(f"{path}: its weights hold NaN or infinite values; {_HINT}")
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def read_made(path: Path) -> dict[str, Any]:
    """How the network of a file was made: data, split, accuracy, images, seconds, seed, versions, hardware."""
    made = _read_about(path).get("made", {})
    return made if isinstance(made, dict) else {}


def _read_about(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
        about = None if text is None else parse_json(text)
    except (OSError, SafetensorError, ValueError) as error:
        raise ExtractorError(f"{path}: cannot be read as an extractor ({short(error)}); {_HINT}") from error
    if not isinstance(about, dict):
        raise ExtractorError(f"{path}: weights that do not say what network they are of; {_HINT}")
    return about
