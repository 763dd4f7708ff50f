"""Feature extractors: images in, the features and logits that the fidelity scores are made of out.

``digits``     the network of `digits_cnn`: d = 64 features, 10 logits. Its weights come with the package.
``stacked-digits``  the same on the red, green and blue channel, each a digit: d = 192. No logits.
``inception``  torch-fidelity's Inception v3, a port of the original TensorFlow network with its resizing: d = 2048
               ("2048") and 1008 logits without bias ("logits_unbiased"). Its weights (91 MiB) are downloaded once.
``dinov2``     DINOv2's class token (`vision_transformers`): d = 768 for ViT-B/14 (331 MiB, downloaded once). No logits.
``clip``       CLIP's image embedding: d = 512 for ViT-B/32 (338 MiB, downloaded once). No logits.
FILE           a classifier that ``trilemma extractor train`` has written (.safetensors, see `classifier`), or, as
               ``trust:FILE``, a program of one's own (see `programs`).

Scores of different extractors, or of one extractor with other weights, are different quantities: an extractor
therefore carries the sha256 of its weights. Weights are read with safetensors or ``torch.load(weights_only=True)``;
no file is ever unpickled freely, except a program that somebody has said to trust.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics

from trilemma.errors import ConfigError, ExtractorError, nearest
from trilemma.measure.classifier import load_classifier
from trilemma.measure.digits_cnn import WEIGHTS, load_digits_cnn, to_network_input
from trilemma.measure.programs import TRUST, load_program
from trilemma.measure.vision_transformers import clip, dinov2
from trilemma.measure.weight_files import digest_of, fetch, read_state, short
from trilemma.types import DataSpec

DIGIT_DATA = ("digits", "mnist", "fashion-mnist")
STACKED_DATA = "stackedmnist"
EXTRACTORS = ("digits", "stacked-digits", "inception", "dinov2", "clip")
_INCEPTION_LAYERS = ["2048", "logits_unbiased"]
_INCEPTION_SHA256 = "6726825d"  # the address ends in it, as torch.hub's convention has it
_FILES = (".safetensors", ".pt", ".pt2", ".pth", ".ts", ".torchscript")  # endings that make a word a file's name


@dataclass(frozen=True)
class Extractor:
    """A fixed network that judges images. ``digest`` is the start (16 hex digits) of its weights' sha256."""

    name: str
    digest: str
    batch: int  # images at a time that suit it
    device: torch.device
    # uint8 (N, C, H, W) -> features (N, d) and logits (N, k), or None for a network without classes
    network: Callable[[Tensor], tuple[Tensor, Tensor | None]]

    @torch.inference_mode()
    def features(self, x: Tensor) -> dict[str, Tensor]:
        """uint8 (N, C, H, W) -> ``features`` (N, d) and, where the network has classes, ``logits`` (N, k).

        Both float32 on the CPU, in one batch. Raises ExtractorError for another type or shape.
        """
        if x.dtype != torch.uint8 or x.dim() != 4:
            raise ExtractorError(
                f"extractor {self.name!r}: expected uint8 images (N, C, H, W), got {x.dtype} {tuple(x.shape)}"
            )
        features, logits = self.network(x.to(self.device))
        found = {"features": features} if logits is None else {"features": features, "logits": logits}
        return {key: value.float().cpu() for key, value in found.items()}


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """What one extractor sees in one set of images: float32 ``features`` (N, d) and ``logits`` (N, k) or None."""

    features: Tensor
    logits: Tensor | None
    extractor: str
    digest: str

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def statistics(self) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
        """``mu`` (d,) and ``sigma`` (d, d; divisor N - 1) in float64, computed once; N must be at least 2."""
        # numpy takes a mean over rows in the features' own type, and float32 loses digits over many thousand.
        found: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = fid_features_to_statistics(self.features.double())
        return found


def default_extractor(data_name: str, spec: DataSpec) -> str:
    """The extractor for a set of data: ``digits`` for digits, MNIST and Fashion-MNIST, ``stacked-digits`` for Stacked
    MNIST, else ``inception``.

    The digits network was never shown clothes: on Fashion-MNIST its scores rank generators, but mean less than on
    digits. Raises ConfigError for points, which need none: `modes` scores them.
    """
    if spec.kind == "points":
        raise ConfigError(f"{data_name}: points have no feature extractor; they are scored by their modes")
    if data_name == STACKED_DATA:
        return "stacked-digits"
    return "digits" if data_name in DIGIT_DATA else "inception"


def load_extractor(
    name: str, weights: Path | None = None, device: torch.device | str = "cpu", spec: DataSpec | None = None
) -> Extractor:
    """The extractor ``name`` with its own weights, or with those of the file ``weights``; or the extractor in a file.

    ``digits`` averages the channels and resizes to 28 x 28. ``inception``, ``dinov2`` and ``clip`` repeat gray images
    to three channels (as is usual; such an FID is comparable only with others of gray images treated alike) and resize
    as TensorFlow did.

    Args:
        name: one of ``EXTRACTORS``, else the path of a file (of a program: ``trust:PATH``).
        weights: a file in place of the extractor's own weights.
        device: where it computes.
        spec: the shape of the images to come; a program is tried on some like them.

    Raises:
        ConfigError: unknown name, or weights given beside a file.
        ExtractorError: the weights cannot be had, read or used.
    """
    device = torch.device(device)
    weights = None if weights is None else Path(weights)
    if name == "digits":
        return _digits(WEIGHTS if weights is None else weights, device)
    if name == "stacked-digits":
        return _stacked(_digits(WEIGHTS if weights is None else weights, device))
    if name == "inception":
        return _inception(weights, device)
    if name in ("dinov2", "clip"):
        return _transformer(name, weights, device)
    if not name.startswith(TRUST) and "/" not in name and Path(name).suffix not in _FILES:
        raise nearest("extractor", name, EXTRACTORS)
    if weights is not None:
        raise ConfigError(f"--extractor {name} has its weights in it: leave out --extractor-weights")
    return _from_file(Path(name.removeprefix(TRUST)).expanduser(), name.startswith(TRUST), device, spec)


def extract(x: Tensor, extractor: Extractor, batch: int | None = None) -> FeatureSet:
    """Features of uint8 images (N, C, H, W), ``batch`` at a time; do it once for a reference and use it often."""
    if len(x) == 0:
        raise ExtractorError(f"extractor {extractor.name!r}: no images to look at")
    return feature_set([extractor.features(part) for part in torch.split(x, batch or extractor.batch)], extractor)


def feature_set(parts: Sequence[dict[str, Tensor]], extractor: Extractor) -> FeatureSet:
    """What ``Extractor.features`` gave for batches, at least one, as one set."""
    return FeatureSet(
        features=torch.cat([part["features"] for part in parts]),
        logits=torch.cat([part["logits"] for part in parts]) if "logits" in parts[0] else None,
        extractor=extractor.name,
        digest=extractor.digest,
    )


def _digits(path: Path, device: torch.device) -> Extractor:
    network = load_digits_cnn(path).to(device)

    def judge(x: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = network(to_network_input(x))
        return features, logits

    # Small batches keep the activations in a CPU's cache.
    return Extractor("digits", digest_of(path), 250 if device.type == "cpu" else 5000, device, judge)


def _stacked(digits: Extractor) -> Extractor:
    """The digits network on each channel by itself, features and logits side by side."""

    def judge(x: Tensor) -> tuple[Tensor, Tensor | None]:
        if x.shape[1] != 3:
            raise ExtractorError(
                f"extractor 'stacked-digits': expected a digit in each of 3 channels, got {x.shape[1]}"
            )
        features, _ = digits.network(x.flatten(0, 1)[:, None])
        return features.reshape(len(x), -1), None  # of 1,000 classes, and no class is a channel's

    return replace(digits, name="stacked-digits", network=judge)


def _inception(path: Path | None, device: torch.device) -> Extractor:
    path = fetch("inception", URL_INCEPTION_V3, sha256=_INCEPTION_SHA256) if path is None else path
    state = read_state(
        path, "give torch-fidelity's .pth file, or its tensors as .safetensors, with --extractor-weights FILE"
    )
    # The class insists on loading a file itself, and unpickles it freely. So it gets what we have already read as
    # bare tensors, written anew into memory.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", _INCEPTION_LAYERS, feature_extractor_weights_path=buffer
        )
    except RuntimeError as error:
        raise ExtractorError(
            f"{path}: not torch-fidelity's Inception ({short(error)}); get {URL_INCEPTION_V3}"
        ) from error
    network = network.to(device, memory_format=torch.channels_last)

    def judge(x: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = network(_three_channels(x, "inception"))
        return features, logits

    return Extractor("inception", digest_of(path), 32 if device.type == "cpu" else 250, device, judge)


def _transformer(kind: str, weights: Path | None, device: torch.device) -> Extractor:
    name, network, path = (dinov2 if kind == "dinov2" else clip)(weights)
    network = network.to(device)

    def judge(x: Tensor) -> tuple[Tensor, None]:
        (features,) = network(_three_channels(x, name))
        return features, None

    return Extractor(name, digest_of(path), 16 if device.type == "cpu" else 250, device, judge)


def _from_file(path: Path, trusted: bool, device: torch.device, spec: DataSpec | None) -> Extractor:
    if not path.is_file():
        raise ExtractorError(f"no extractor file {path}: give one, or a name: {', '.join(EXTRACTORS)}")
    if path.suffix == ".safetensors":
        network = load_classifier(path).to(device)
        return Extractor(path.name, digest_of(path), 100 if device.type == "cpu" else 5000, device, network.judge)
    judge = load_program(path, device, spec, trusted=trusted)
    return Extractor(path.name, digest_of(path), 32 if device.type == "cpu" else 250, device, judge)


def _three_channels(x: Tensor, name: str) -> Tensor:
    if x.shape[1] not in (1, 3):
        raise ExtractorError(f"extractor {name!r}: needs images of 1 or 3 channels, got {x.shape[1]}")
    return x.expand(-1, 3, -1, -1)
