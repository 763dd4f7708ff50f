"""Scores of Stacked MNIST: how many of its 1,000 modes a generator reaches, and how evenly (Metz et al. 2017).

An image is three digits as its red, green and blue channel; the judge of digit images reads each channel alone, and the
image's number is 100 red + 10 green + blue. With p(k) the share of generated images of number k,

    modes = |{k: p(k) > 0}|                                   of 1,000; higher is better
    kl    = KL(p || uniform) = sum_k p(k) log(1000 p(k))      in nats, 0 to log 1000 = 6.908; lower is better

the reverse direction, as is usual for this data, since the modes that are missed have p(k) = 0. The usual number of
images is 26,000 (so also for DDGAN, Xiao et al. 2022). Of fewer, N, even a perfect generator misses some
(1,000 (1 - 1/1000)^N in the mean) and its kl is about 999 / (2 N) once N is some thousands: compare equal counts only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma.errors import ConfigError
from trilemma.measure.features import Extractor, extract

MODES = 1000
SAMPLES = 26_000  # the usual number of images


def stacked_numbers(x: Tensor, extractor: Extractor) -> Tensor:
    """The number 100 red + 10 green + blue of each uint8 image (N, 3, H, W): int64 (N,).

    Raises ConfigError for another extractor or number of channels.
    """
    if extractor.name != "digits" or x.ndim != 4 or x.shape[1] != 3:
        raise ConfigError(
            f"stacked digits are read by extractor 'digits' from images (N, 3, H, W), "
            f"got {extractor.name!r} and {tuple(x.shape)}"
        )
    logits = extract(x.flatten(0, 1)[:, None], extractor).logits
    assert logits is not None  # the digits network has classes
    return logits.argmax(1).view(-1, 3) @ torch.tensor([100, 10, 1])


def histogram_scores(numbers: Tensor) -> dict[str, float]:
    """``modes`` and ``kl`` of numbers (N,) from 0 to 999."""
    counts = numbers.bincount(minlength=MODES)
    p = counts.double() / len(numbers)
    return {"modes": int((counts > 0).sum()), "kl": torch.xlogy(p, MODES * p).sum().item()}
