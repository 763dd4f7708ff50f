"""The judge of digit images: a small network f whose penultimate features serve FID, KID, precision and recall.

    f(x) = relu(W_5 g(x) + b_5) in R^64,    logits(x) = W_6 f(x) + b_6 in R^10

where g is four convolutions. It is trained on MNIST and on scikit-learn's digits together. Its weights are a file
of this package, so judging digits needs no download. Two choices make the numbers readable:

* Batch norms are folded into the convolutions after training: what is shipped is convolutions and ReLUs alone.
* The features are scaled (W_5, b_5 up, W_6 down: no logit changes) so that the trace of their covariance over
  MNIST's training images is 100. A Frechet distance of 100 is thus about one total variance of real digits.

Train the weights anew (seven minutes on one CPU thread):

    python -m trilemma.measure.digits_cnn --data-root ROOT --out FILE

ROOT holds MNIST in torchvision's layout (ROOT/MNIST/raw). The first 1,437 digits of scikit-learn's set are trained
on, the last 360 are held out. The file's metadata name the data's digests, the seed, the command and the accuracies.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval
from torchvision.datasets import MNIST

from trilemma.errors import DataError, ExtractorError
from trilemma.files import write_atomically

WEIGHTS = Path(__file__).parent / "weights" / "digits_cnn.safetensors"
SIZE = 28
FEATURES = 64
CLASSES = 10
DIGITS_TRAIN = 1437  # the first 80 % of scikit-learn's 1,797 digits
FEATURE_VARIANCE = 100.0  # trace of the features' covariance over MNIST's training images
COMMAND = "python -m trilemma.measure.digits_cnn --data-root ROOT --out FILE"


class DigitsCNN(nn.Module):
    """Gray images (N, 1, 28, 28) in [-1, 1] -> features (N, 64), not negative, and logits (N, 10).

    ``norm`` puts a batch norm behind every convolution and the feature layer (for training); `folded` takes them out.
    """

    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5, stride=2, padding=2)  # 14 x 14
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, stride=2, padding=1)  # 7 x 7
        self.conv4 = nn.Conv2d(64, 64, 3, stride=2, padding=1)  # 4 x 4
        # A linear layer written as the 4 x 4 convolution it is, so that channels_last needs no copy before it.
        self.feature = nn.Conv2d(64, FEATURES, 4)
        self.classifier = nn.Linear(FEATURES, CLASSES)
        for name, conv in self._convolutions():
            self.add_module(f"norm_{name}", nn.BatchNorm2d(conv.out_channels) if norm else nn.Identity())

    def _convolutions(self) -> list[tuple[str, nn.Conv2d]]:
        return [(name, m) for name, m in self.named_children() if isinstance(m, nn.Conv2d)]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(features (N, 64), logits (N, 10))."""
        for name, conv in self._convolutions():
            x = F.relu(self.get_submodule(f"norm_{name}")(conv(x)), inplace=True)
        features = x.flatten(1)
        return features, self.classifier(features)

    def folded(self) -> DigitsCNN:
        """The same function without batch norms, in evaluation mode."""
        plain = DigitsCNN().eval()
        plain.classifier.load_state_dict(self.classifier.state_dict())
        for name, conv in self._convolutions():
            norm = self.get_submodule(f"norm_{name}")
            if isinstance(norm, nn.BatchNorm2d):
                conv = fuse_conv_bn_eval(conv.eval(), norm.eval())
            plain.get_submodule(name).load_state_dict(conv.state_dict())
        return plain


def to_network_input(x: Tensor) -> Tensor:
    """uint8 (N, C, H, W) of any size and channels -> float (N, 1, 28, 28) in [-1, 1].

    Channels are averaged; other sizes are resized bilinearly (with antialiasing when they shrink).
    """
    if x.dtype != torch.uint8 or x.dim() != 4:
        raise ExtractorError(f"the digits extractor expects uint8 images (N, C, H, W), got {x.dtype} {tuple(x.shape)}")
    gray = x.float().mean(1, keepdim=True) if x.shape[1] > 1 else x.float()
    if gray.shape[2:] != (SIZE, SIZE):
        gray = F.interpolate(gray, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
    return (gray / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)


def load_digits_cnn(path: Path | None = None) -> DigitsCNN:
    """The judge with the weights of ``path`` (default: the shipped file), ready for inference.

    Raises ExtractorError when the file is missing or is not one of this network.
    """
    path = WEIGHTS if path is None else path
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        network = DigitsCNN()
        network.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ExtractorError(
            f"{path}: not weights of the digits extractor ({reason}); train with: {COMMAND}"
        ) from error
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def read_metadata(path: Path | None = None) -> dict[str, str]:
    """What the weights file says of its own making: accuracies, data digests, seed, command."""
    with safe_open(WEIGHTS if path is None else path, framework="pt") as file:
        return dict(file.metadata() or {})


@dataclass(frozen=True)
class LabelledImages:
    """uint8 ``x`` (N, 1, H, W) and int64 ``labels`` (N,)."""

    x: Tensor
    labels: Tensor

    @property
    def digest(self) -> str:
        """sha256 over pixels, then labels."""
        return hashlib.sha256(self.x.numpy().tobytes() + self.labels.numpy().tobytes()).hexdigest()


def sklearn_digits(train: bool) -> LabelledImages:
    """scikit-learn's 8 x 8 digits as gray values 0..255: the first 1,437 (train) or the last 360 (held out)."""
    bunch = load_digits()
    part = slice(None, DIGITS_TRAIN) if train else slice(DIGITS_TRAIN, None)
    gray = np.rint(bunch.images[part] * (255.0 / 16.0)).astype(np.uint8)
    return LabelledImages(torch.from_numpy(gray)[:, None], torch.from_numpy(bunch.target[part].astype(np.int64)))


def mnist(root: Path, train: bool) -> LabelledImages:
    """MNIST from ROOT/MNIST/raw; DataError when it is not there (nothing is downloaded)."""
    try:
        data = MNIST(str(root), train=train, download=False)
    except RuntimeError as error:
        raise DataError(f"{root}: no MNIST/raw folder with the four idx files; put them there") from error
    return LabelledImages(data.data[:, None].contiguous(), data.targets.long())


@torch.inference_mode()
def accuracy(network: DigitsCNN, data: LabelledImages, batch: int = 1000) -> float:
    """Share of right answers, in [0, 1]."""
    right = 0
    for x, labels in zip(torch.split(data.x, batch), torch.split(data.labels, batch), strict=True):
        right += int((network(to_network_input(x))[1].argmax(1) == labels).sum())
    return right / len(data.labels)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to 2.5 pixels, rotated by up to 12 degrees and scaled by 0.85 to 1.15."""
    n = len(x)
    u = torch.rand((n, 4), generator=generator) * 2 - 1
    angle, scale, shift = u[:, 0] * math.radians(12), 1 + 0.15 * u[:, 1], u[:, 2:] * (2.5 / (SIZE / 2))
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).view(n, 2, 3)
    grid = F.affine_grid(theta, [n, 1, SIZE, SIZE], align_corners=False)
    # Zero padding is mid-gray in [-1, 1]; shifting by one makes it black.
    moved = F.grid_sample(x.contiguous() + 1, grid, align_corners=False) - 1
    return moved.contiguous(memory_format=torch.channels_last)


def train(sets: list[tuple[LabelledImages, int]], *, epochs: int, seed: int, batch: int = 128) -> DigitsCNN:
    """Cross-entropy on all sets together, each repeated so many times an epoch; AdamW, one-cycle rate."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.cat([to_network_input(data.x) for data, _ in sets])
    labels = torch.cat([data.labels for data, _ in sets])
    starts = np.cumsum([0, *(len(data.labels) for data, _ in sets)])
    order = torch.cat([torch.arange(a, a + len(d.labels)).repeat(k) for a, (d, k) in zip(starts, sets, strict=False)])
    network = DigitsCNN(norm=True).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    steps = len(order) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=epochs * steps, pct_start=0.2)
    start = time.perf_counter()
    for epoch in range(epochs):
        shuffled = order[torch.randperm(len(order), generator=generator)]
        total = 0.0
        for step in range(steps):
            index = shuffled[step * batch : (step + 1) * batch]
            loss = F.cross_entropy(network(augment(x[index], generator))[1], labels[index])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}/{epochs}: loss {total / steps:.4f}, {seconds:.0f} s", file=sys.stderr)
    return network.folded()


@torch.inference_mode()
def scale_features(network: DigitsCNN, reference: LabelledImages) -> None:
    """Scale the feature layer in place so that trace(cov(f)) over ``reference`` is 100; the logits stay."""
    features = torch.cat([network(to_network_input(x))[0] for x in torch.split(reference.x, 1000)]).double()
    scale = math.sqrt(FEATURE_VARIANCE / features.var(0).sum().item())
    assert network.feature.bias is not None
    network.feature.weight.mul_(scale)
    network.feature.bias.mul_(scale)
    network.classifier.weight.div_(scale)


def save(network: DigitsCNN, path: Path, metadata: dict[str, str]) -> None:
    """Write the weights and what is said of them, complete or not at all."""
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    write_atomically(path, lambda temporary: save_file(state, temporary, metadata))


def main(arguments: list[str] | None = None) -> None:
    """Train, judge on the held-out images, write the weights."""
    parser = argparse.ArgumentParser(prog="digits_cnn", description="Train the judge of digit images.")
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds MNIST/raw")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--epochs", type=int, default=8, help="passes over the data (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and augmentation (default 0)")
    args = parser.parse_args(arguments)
    mnist_train, digits_train = mnist(args.data_root, True), sklearn_digits(True)
    # 1,437 digits eight times an epoch: about a sixth of all images seen.
    network = train([(mnist_train, 1), (digits_train, 8)], epochs=args.epochs, seed=args.seed)
    scale_features(network, mnist_train)
    metadata = {
        "command": COMMAND,
        "seed": str(args.seed),
        "epochs": str(args.epochs),
        "mnist_train_sha256": mnist_train.digest,
        "digits_train_sha256": digits_train.digest,
        "mnist_test_accuracy": f"{accuracy(network, mnist(args.data_root, False)):.4f}",
        "digits_test_accuracy": f"{accuracy(network, sklearn_digits(False)):.4f}",
        "torch": torch.__version__,
    }
    save(network, args.out, metadata)
    print(json.dumps(metadata, indent=2))


if __name__ == "__main__":
    main()
