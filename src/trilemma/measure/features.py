"""Feature extractors: images in, the features and logits that the fidelity scores are made of out.

``digits``     the network of `digits_cnn`: d = 64 features, 10 logits. Its weights come with the package.
``inception``  torch-fidelity's Inception v3, a port of the original TensorFlow network with its resizing: d = 2048
               ("2048") and 1008 logits without bias ("logits_unbiased"). Its weights (91 MiB) are downloaded once.

Scores of different extractors, or of one extractor with other weights, are different quantities: an extractor
therefore carries the sha256 of its weights. Weights are read with safetensors or ``torch.load(weights_only=True)``;
no file is ever unpickled freely.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError  # raised by torch.load(weights_only=True); nothing is unpickled here
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics

from trilemma.errors import ConfigError, ExtractorError, nearest
from trilemma.measure.digits_cnn import WEIGHTS, load_digits_cnn, to_network_input
from trilemma.types import DataSpec

DIGIT_DATA = ("digits", "mnist", "fashion-mnist")
EXTRACTORS = ("digits", "inception")
_INCEPTION_LAYERS = ["2048", "logits_unbiased"]
_INCEPTION_SHA256 = "6726825d"  # the address ends in it, as torch.hub's convention has it


@dataclass(frozen=True)
class Extractor:
    """A fixed network that judges images. ``digest`` is the start (16 hex digits) of its weights' sha256."""

    name: str
    digest: str
    batch: int  # images at a time that suit it
    device: torch.device
    network: Callable[[Tensor], tuple[Tensor, Tensor]]  # uint8 (N, C, H, W) -> features (N, d), logits (N, k)

    @torch.inference_mode()
    def features(self, x: Tensor) -> dict[str, Tensor]:
        """uint8 (N, C, H, W) -> ``features`` (N, d) and ``logits`` (N, k), float32 on the CPU, in one batch.

        Raises ExtractorError for another type or shape.
        """
        if x.dtype != torch.uint8 or x.dim() != 4:
            raise ExtractorError(
                f"extractor {self.name!r}: expected uint8 images (N, C, H, W), got {x.dtype} {tuple(x.shape)}"
            )
        features, logits = self.network(x.to(self.device))
        return {"features": features.float().cpu(), "logits": logits.float().cpu()}


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """What one extractor sees in one set of images: float32 ``features`` (N, d) and ``logits`` (N, k)."""

    features: Tensor
    logits: Tensor
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
    """The extractor for a set of data: ``digits`` for digits, MNIST and Fashion-MNIST, else ``inception``.

    The digits network was never shown clothes: on Fashion-MNIST its scores rank generators, but mean less than on
    digits. Raises ConfigError for points, which need none: `modes` scores them.
    """
    if spec.kind == "points":
        raise ConfigError(f"{data_name}: points have no feature extractor; they are scored by their modes")
    return "digits" if data_name in DIGIT_DATA else "inception"


def load_extractor(name: str, weights: Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """The extractor ``name`` with its own weights, or with those of the file ``weights``.

    ``digits`` averages the channels and resizes to 28 x 28. ``inception`` repeats gray images to three channels (as is
    usual; such an FID is comparable only with others of gray images treated alike) and resizes as TensorFlow did.

    Raises:
        ConfigError: unknown name.
        ExtractorError: the weights cannot be had, read or used.
    """
    device = torch.device(device)
    if name == "digits":
        return _digits(WEIGHTS if weights is None else Path(weights), device)
    if name == "inception":
        return _inception(Path(weights) if weights is not None else _download_inception(), device)
    raise nearest("extractor", name, EXTRACTORS)


def extract(x: Tensor, extractor: Extractor, batch: int | None = None) -> FeatureSet:
    """Features of uint8 images (N, C, H, W), ``batch`` at a time; do it once for a reference and use it often."""
    if len(x) == 0:
        raise ExtractorError(f"extractor {extractor.name!r}: no images to look at")
    parts = [extractor.features(part) for part in torch.split(x, batch or extractor.batch)]
    return FeatureSet(
        features=torch.cat([part["features"] for part in parts]),
        logits=torch.cat([part["logits"] for part in parts]),
        extractor=extractor.name,
        digest=extractor.digest,
    )


def _digits(path: Path, device: torch.device) -> Extractor:
    network = load_digits_cnn(path).to(device)

    def judge(x: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = network(to_network_input(x))
        return features, logits

    # Small batches keep the activations in a CPU's cache.
    return Extractor("digits", _digest(path), 250 if device.type == "cpu" else 5000, device, judge)


def _inception(path: Path, device: torch.device) -> Extractor:
    state = _read_state(path)
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
        reason = " ".join(str(error).split())[:160]
        raise ExtractorError(f"{path}: not torch-fidelity's Inception ({reason}); get {URL_INCEPTION_V3}") from error
    network = network.to(device, memory_format=torch.channels_last)

    def judge(x: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = network(_three_channels(x))
        return features, logits

    return Extractor("inception", _digest(path), 32 if device.type == "cpu" else 250, device, judge)


def _three_channels(x: Tensor) -> Tensor:
    if x.shape[1] not in (1, 3):
        raise ExtractorError(f"extractor 'inception': needs images of 1 or 3 channels, got {x.shape[1]}")
    return x.expand(-1, 3, -1, -1)


def _read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a ``torch.save`` file that holds nothing else."""
    hint = "give torch-fidelity's .pth file, or its tensors as .safetensors, with --extractor-weights FILE"
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, UnpicklingError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ExtractorError(f"{path}: cannot be read as bare weights ({reason}); {hint}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ExtractorError(f"{path}: holds something else than named tensors; {hint}")
    return state


def _download_inception() -> Path:
    """The weights in torch.hub's cache, fetched there if need be and checked against the digest in their name."""
    file = URL_INCEPTION_V3.rsplit("/", 1)[-1]
    path: Path = Path(str(torch.hub.get_dir())) / "checkpoints" / file
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=_INCEPTION_SHA256)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ExtractorError(
            f"cannot download the inception weights {file} ({reason}): fetch {URL_INCEPTION_V3} elsewhere "
            "and give it with --extractor-weights FILE, or judge digits with --extractor digits (no download)"
        ) from error
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
