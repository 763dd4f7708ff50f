"""The alarms while training: what each share is for samples whose fault is known, and which words follow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trilemma.measure.watch import Watch, alarms, thumbnails


def blobs(n: int, kinds: int, seed: int, side: int = 16) -> Tensor:
    """Images of ``kinds`` patterns under noise: uint8 (n, 3, side, side)."""
    patterns = torch.rand(kinds, 3, side, side, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(seed)
    kind = torch.randint(kinds, (n,), generator=draw)
    return (patterns[kind] * 160 + 80 * torch.rand(n, 3, side, side, generator=draw)).to(torch.uint8)


@pytest.fixture(scope="module")
def training() -> Tensor:
    return blobs(2000, 10, seed=1)


@pytest.fixture(scope="module")
def watch(training: Tensor) -> Watch:
    return Watch(training)


def test_thumbnails_are_block_means() -> None:
    x = torch.arange(2 * 3 * 16 * 16).remainder(251).to(torch.uint8).reshape(2, 3, 16, 16)
    means = x.float().reshape(2, 3, 8, 2, 8, 2).mean(dim=(3, 5)).flatten(1)
    torch.testing.assert_close(thumbnails(x), means)
    small = x[:, :, :8, :4]
    assert torch.equal(thumbnails(small), small.flatten(1).float())


def test_fresh_draws_of_the_data_are_as_usual(watch: Watch) -> None:
    seen = watch.look(blobs(500, 10, seed=2))
    assert seen["coverage"] == pytest.approx(1 - 2**-5, abs=0.03)
    assert seen["repeats"] <= 0.04 and seen["copies"] <= 0.04


def test_half_the_kinds_halve_the_coverage_and_nothing_else(watch: Watch) -> None:
    every = blobs(1100, 10, seed=3)
    patterns = torch.rand(10, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 160 + 40
    kind = torch.cdist(every.flatten(1).float(), patterns.flatten(1)).argmin(1)
    seen = watch.look(every[kind < 5][:500])
    assert seen["coverage"] == pytest.approx(0.5, abs=0.07)
    assert seen["repeats"] <= 0.06 and seen["copies"] <= 0.04


def test_samples_that_repeat_are_told_from_copies_of_training_images(watch: Watch, training: Tensor) -> None:
    repeated = watch.look(blobs(50, 10, seed=4).repeat(10, 1, 1, 1))
    assert repeated["repeats"] == 1.0 and repeated["copies"] <= 0.1
    copied = watch.look(training[1000:1500])
    assert copied["copies"] == 1.0 and copied["repeats"] <= 0.04


@pytest.mark.parametrize("share", [0.03, 0.5])
def test_duplicates_in_the_data_hide_no_alarm(share: float) -> None:
    """With more than a hundredth of them the nearest hundredth of the data is at distance 0."""
    once = blobs(2000, 10, seed=1)
    twice = torch.cat([once, once[: int(share * 2000)]])
    watch = Watch(twice)
    some = twice[500:1000]
    assert watch.look(some)["copies"] == 1.0
    noise = torch.randint(-2, 3, some.shape, generator=torch.Generator().manual_seed(0))
    assert watch.look((some.int() + noise).clamp(0, 255).to(torch.uint8))["copies"] > 0.9
    assert watch.look(blobs(50, 10, seed=4).repeat(10, 1, 1, 1))["repeats"] > 0.9
    fresh = watch.look(blobs(500, 10, seed=2))
    assert fresh["repeats"] <= 0.04 and fresh["copies"] <= 0.04


def test_data_of_duplicates_alone_say_nothing() -> None:
    watch = Watch(blobs(50, 10, seed=1).repeat(4, 1, 1, 1))
    assert watch.look(blobs(150, 10, seed=2))["copies"] == 0.0


def look(coverage: float = 0.8, repeats: float = 0.01, copies: float = 0.01, fraction: float = 0.5) -> dict[str, float]:
    return {
        "coverage": coverage, "repeats": repeats, "copies": copies, "fraction": fraction, "images": int(1000 * coverage)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("looks", "words"),
    [
        ([look(), look()], []),
        ([look(0.8), look(0.3)], ["coverage fell to 0.30 from 0.80 at 800 images"]),
        ([look(0.15), look(0.01)], []),  # it never was high
        ([look(), look(repeats=0.31)], ["31% of the samples repeat another one, beyond what the data do"]),
        ([look(), look(copies=0.5)], ["50% of the samples are nearly a training image, beyond what the data are"]),
        (
            [look(), look(0.1, 0.9, 0.9)],
            ["coverage fell", "90% of the samples repeat", "90% of"],
        ),
        ([look(repeats=0.9), look(repeats=0.9, fraction=0.1)], []),  # at the start all samples are alike
        ([look(repeats=0.99), look(repeats=0.73), look(repeats=0.22)], []),  # and grow apart after it
        ([look(repeats=0.99), look(repeats=0.97)], ["97% of the samples repeat another one"]),
        ([look(repeats=0.99)], []),  # a single look cannot tell
        ([look(), look(copies=0.5), look(copies=0.6)], []),  # said before
        ([look(copies=0.5), look(), look(copies=0.6)], ["60% of the samples are nearly"]),
        ([], []),
    ],
)
def test_what_is_said(looks: list[dict[str, float]], words: list[str]) -> None:
    said = alarms(looks)
    assert len(said) == len(words)
    assert all(line.startswith(start) for line, start in zip(said, words, strict=True))
