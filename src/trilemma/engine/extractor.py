"""Train a small classifier of one's own data, whose features then score generated images.

SGD with Nesterov momentum on the cross-entropy with smoothed labels. The learning rate rises in a straight line to its
peak over the first fifth of the budget and falls in one to zero: where it stands depends on the share of the budget
spent, so that it ends at zero whether the budget is in images or in minutes. Every image is shifted by up to an eighth
of its size, with its edge mirrored outwards, and, unless told otherwise, turned left to right half of the time.

The accuracy is that on images held out: the data's own test split or a second set of data where there is one, else a
tenth of the images, the same tenth whatever the seed. With a budget in images, one seed gives the same weights each
time on the same machine and number of threads.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trilemma.config import require_all
from trilemma.data import Dataset, batch_indices, load_data
from trilemma.data.dataset import make_dataset
from trilemma.engine.budget import Budget, Clock
from trilemma.engine.cpu import settle_cpu
from trilemma.engine.loop import Progress
from trilemma.errors import ConfigError, DataError, NonFiniteError, RunError
from trilemma.files import cannot_write
from trilemma.measure.classifier import FEATURE_VARIANCE, MIN_SIZE, Classifier, NetworkOptions, levels, save_classifier
from trilemma.measure.speed import hardware, versions

BATCH = 128
PEAK_RATE = 0.15  # of SGD, for batches of 128
RISE = 0.2  # share of the budget until the peak
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4  # of convolutions and the last layer; not of batch norms and biases
SMOOTHING = 0.1  # of the labels
MIN_IMAGES = 100  # to train on
HELD_OUT = 10  # one image in so many, where there is no test split
MAX_SIZE = 64  # pixels a side, unless asked for: the time grows with the square
MIRRORED_WRONG = ("digits", "mnist", "stackedmnist")  # a digit turned left to right is none


@dataclass(frozen=True)
class ExtractorPlan:
    """Everything the training needs, checked before any work."""

    train: Dataset
    test: Dataset
    test_words: str  # where the images held out are from
    data_digest: str  # of the whole data set, before anything was held out
    budget: Budget
    seed: int
    flip: bool
    width: int


def make_extractor_plan(  # noqa: PLR0913
    data: str | Dataset,
    *,
    test: str | Dataset | None = None,
    minutes: float | None = None,
    images: int | None = None,
    size: int | None = None,
    seed: int = 0,
    flip: bool = True,
    width: int = 32,
    data_root: Path | None = None,
) -> ExtractorPlan:
    """Load the data, set images aside and check every setting.

    Without a budget: ten passes over the training images, at least 20,000 images.

    Raises:
        ConfigError: a setting that cannot be.
        DataError: data that cannot be had; without labels, with too few images or too small ones; test images of
            other classes or another shape.
    """
    require_all(
        (0 <= seed < 2**31, f"--seed must be from 0 to 2147483647, not {seed}"),
        (1 <= width <= 512, f"--width must be from 1 to 512, not {width}"),
    )
    budget = Budget(minutes=minutes, images=images) if minutes is not None or images is not None else None
    whole = load_data(data, root=data_root, size=size) if isinstance(data, str) else data
    _check_labelled(whole, asked_for=size is not None)
    shown, held_out, words = _split(whole, data, test, size, data_root)
    if len(shown) < MIN_IMAGES:
        raise DataError(f"{whole.source}: {len(shown)} images to train on are too few: give {MIN_IMAGES} at least")
    if held_out.class_names != whole.class_names or held_out.spec.shape != whole.spec.shape:
        raise DataError(
            f"the test images ({held_out.source}: {len(held_out.class_names)} classes, shape {held_out.spec.shape}) do "
            f"not fit the data ({len(whole.class_names)} classes, shape {whole.spec.shape}): give the same classes"
        )
    return ExtractorPlan(
        train=shown,
        test=held_out,
        test_words=words,
        data_digest=whole.digest,
        budget=budget or Budget(images=max(10 * len(shown), 20_000)),
        seed=seed,
        flip=flip and whole.name not in MIRRORED_WRONG,
        width=width,
    )


def check_extractor_out(out: Path) -> None:
    """Refuse a file that would be lost or cannot be written: better now than after the training."""
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: give a file that ends in .safetensors")
    if out.exists():
        raise RunError(f"{out} is there already: choose another file with --out, or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    if not os.access(out.parent, os.W_OK):
        raise RunError(f"cannot write {out}: its folder takes no files: choose another with --out")


def train_extractor(
    plan: ExtractorPlan, out: Path, *, report: Callable[[Progress], None] = lambda progress: None
) -> Path:
    """Train the network, judge it on the images held out and write the file ``out``.

    Raises:
        NonFiniteError: the training diverged.
        RunError: the file cannot be written.
    """
    settle_cpu()
    data = plan.train
    mean, std = levels(data.x)
    options = NetworkOptions(
        classes=data.class_names,
        channels=data.spec.channels,
        size=(data.spec.height, data.spec.width),
        mean=mean,
        std=std,
        width=plan.width,
    )
    torch.manual_seed(plan.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = Classifier(options).to(device).to(memory_format=torch.channels_last)
    progress = _fit(network, plan, report)
    network.eval()
    network.options = dataclasses.replace(options, feature_scale=_feature_scale(network, data.x, device))
    made = {
        "data": data.name,
        "source": data.source,
        "data_digest": plan.data_digest,
        "train_images": len(data),
        "test": plan.test_words,
        "test_digest": plan.test.digest,
        "test_images": len(plan.test),
        "test_accuracy": accuracy(network, plan.test, device),
        "budget": str(plan.budget),
        "images": progress.images,
        "seconds": round(progress.seconds, 1),
        "seed": plan.seed,
        "flip": plan.flip,
        "versions": versions(),
        "hardware": hardware(),
    }
    return save_classifier(network, out, made)


def _check_labelled(data: Dataset, asked_for: bool) -> None:
    """Refuse data that a classifier cannot be trained on. ``asked_for``: the size was given, so it is meant."""
    if data.spec.kind != "images":
        raise DataError(f"{data.name}: points have no feature extractor; they are scored by their modes")
    if data.stream is not None:
        raise DataError(
            f"{data.source}: a classifier is trained on images at hand: trilemma data prepare brings them, at --size N"
        )
    if data.labels is None:
        raise DataError(
            f"{data.source}: no classes to tell apart; put the images into two or more subfolders, one for each class"
        )
    height, width = data.spec.height, data.spec.width
    if min(height, width) < MIN_SIZE:
        raise DataError(f"{data.source}: images of {width} x {height} pixels are too small: --size {MIN_SIZE} or more")
    if max(height, width) > MAX_SIZE and not asked_for:
        raise DataError(
            f"{data.source}: images of {width} x {height} pixels take this network long: give --size {MAX_SIZE}, "
            "or their own size if you mean it"
        )


def _split(
    whole: Dataset, data: str | Dataset, test: str | Dataset | None, size: int | None, root: Path | None
) -> tuple[Dataset, Dataset, str]:
    """What to train on, what to judge on, and where the latter is from."""
    if isinstance(test, Dataset):
        return whole, test, test.source
    channels = whole.spec.channels
    if test is not None:
        held_out = load_data(test, root=root, size=size, channels=channels)
        return whole, held_out, held_out.source
    if isinstance(data, str):
        try:
            held_out = load_data(data, split="test", root=root, size=size, channels=channels)
        except DataError as error:
            if "no held-out" not in str(error):
                raise
        else:
            return whole, held_out, held_out.source
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    count = len(whole) // HELD_OUT
    held_out = _part(whole, order[:count].sort().values, "held out")
    return _part(whole, order[count:].sort().values, whole.split), held_out, f"one image in {HELD_OUT}, held out"


def _part(data: Dataset, index: Tensor, split: str) -> Dataset:
    """Some of the samples as a data set of the same classes."""
    assert data.labels is not None
    if len(index) == 0:
        raise DataError(f"{data.source}: too few images to hold any out: give {MIN_IMAGES} at least")
    return make_dataset(data.name, data.x[index], data.labels[index], data.class_names, split=split, source=data.source)


def _fit(network: Classifier, plan: ExtractorPlan, report: Callable[[Progress], None]) -> Progress:
    """Train in place until the budget is spent."""
    data, device = plan.train, next(network.parameters()).device
    assert data.labels is not None
    matrices = [p for p in network.parameters() if p.dim() > 1]
    vectors = [p for p in network.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors}]
    optimizer = torch.optim.SGD(groups, lr=PEAK_RATE, momentum=MOMENTUM, nesterov=True)
    generator = torch.Generator().manual_seed(plan.seed)
    batch, progress, clock = min(BATCH, len(data)), Progress(), Clock()
    network.train()
    clock.start()
    while progress.fraction < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * rate(progress.fraction)
        index = batch_indices(len(data), batch, plan.seed, progress.images)
        x = augmented(data.x, index, generator, flip=plan.flip).to(device)
        logits = network(network.normalised(x))[1]
        loss = F.cross_entropy(logits, data.labels[index].to(device), label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        progress.step += 1
        progress.images += batch
        progress.seconds = clock.seconds
        progress.fraction = plan.budget.fraction(progress.images, progress.seconds)
        progress.losses = {"loss": loss.item()}
        if not math.isfinite(progress.losses["loss"]):
            raise NonFiniteError(f"the loss became NaN after {progress.images:,} images: try another --seed")
        report(progress)
    return progress


def rate(share: float) -> float:
    """The learning rate at a share of the budget, in parts of its peak: 0 up to 1, then down to 0."""
    return share / RISE if share < RISE else max(0.0, (1.0 - share) / (1.0 - RISE))


def augmented(x: Tensor, index: Tensor, generator: torch.Generator, *, flip: bool) -> Tensor:
    """Images ``index`` (B,) of uint8 (N, C, H, W), shifted and perhaps mirrored: uint8 (B, C, H, W), channels_last.

    A shift is up to an eighth of the size, in whole pixels, in each direction; what comes in is the image's own edge,
    mirrored. So an output pixel is a pixel of the same image, and all are gathered at once.
    """
    n, (height, width) = len(index), x.shape[2:]
    rows, columns = (_shifted(n, side, generator) for side in (height, width))
    turned = torch.randint(0, 2, (n, 1), generator=generator) == 1
    if flip:
        columns = torch.where(turned, columns.flip(1), columns)
    # Index tensors on both sides of a slice: the result is (B, H, W, C), which is channels_last in memory.
    return x[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _shifted(n: int, side: int, generator: torch.Generator) -> Tensor:
    """For ``n`` images the pixels 0 to ``side`` - 1 of one direction, shifted and mirrored at both ends: (n, side)."""
    most = side // 8
    shift = torch.randint(-most, most + 1, (n, 1), generator=generator)
    place = (torch.arange(side) + shift).abs()
    return (side - 1) - ((side - 1) - place).abs()


@torch.inference_mode()
def accuracy(network: Classifier, data: Dataset, device: torch.device) -> float:
    """Share of right answers, in [0, 1], of a network in evaluation mode."""
    assert data.labels is not None
    right = 0
    for x, labels in zip(torch.split(data.x, 500), torch.split(data.labels, 500), strict=True):
        right += int((network.judge(x.to(device))[1].argmax(1).cpu() == labels).sum())
    return right / len(data)


@torch.inference_mode()
def _feature_scale(network: Classifier, x: Tensor, device: torch.device) -> float:
    """s, by which the trace of the features' covariance over 10,000 training images at most becomes 100."""
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:10_000]
    features = [network.judge(x[part].to(device))[0].double().cpu() for part in torch.split(chosen, 500)]
    total = torch.cat(features).var(0).sum().item()
    if not total > 0:
        raise NonFiniteError("the trained network sees no difference between any two images: give it a larger budget")
    return math.sqrt(FEATURE_VARIANCE / total)
