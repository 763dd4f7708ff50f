"""The record, the digest, the bytes and the order of data."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trilemma.data import batch_indices, content_digest, to_float, to_uint8
from trilemma.data.dataset import Dataset, make_dataset
from trilemma.errors import ConfigError, DataError, NonFiniteError


def _set(x: torch.Tensor, labels: torch.Tensor | None = None, names: tuple[str, ...] = ()) -> Dataset:
    return make_dataset("toy", x, labels, names, split="train", source="a test")


def _pixels(n: int = 6, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (n, channels, 4, 5), dtype=torch.uint8)


def test_batch_has_the_promised_form() -> None:
    x, labels = _pixels(), torch.tensor([0, 1, 1, 0, 1, 0])
    data = _set(x, labels, ("a", "b"))
    assert len(data) == 6
    assert (data.spec.kind, data.spec.shape, data.spec.classes) == ("images", (3, 4, 5), 2)
    batch = data.batch([4, 0, 4])
    assert batch.x.dtype == torch.float32
    assert batch.x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(to_uint8(batch.x), x[[4, 0, 4]])
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 0, 1]
    batch.x.zero_()  # a batch is a copy: what a method does to it must not reach the data
    assert torch.equal(data.x, x)


def test_points_pass_unchanged() -> None:
    x = torch.rand(7, 2, 1, 1) * 2 - 1
    data = _set(x)
    assert data.spec.kind == "points"
    assert torch.equal(data.batch(torch.arange(7)).x, x)
    assert data.batch([0]).labels is None


def test_one_class_is_no_class() -> None:
    data = _set(_pixels(), torch.zeros(6, dtype=torch.int64), ("only",))
    assert data.labels is None
    assert data.class_names == ()
    assert data.spec.classes == 0


def test_an_empty_set_is_refused_and_a_record_is_frozen() -> None:
    with pytest.raises(DataError, match="no samples"):
        _set(_pixels(0))
    with pytest.raises(FrozenInstanceError):
        _set(_pixels()).name = "other"  # type: ignore[misc]


def test_digest_sees_pixel_label_order_and_shape() -> None:
    x, labels = _pixels(), torch.arange(6)
    same = content_digest(x, labels)
    assert same == content_digest(x.clone().contiguous(memory_format=torch.channels_last), labels.clone())
    one_pixel = x.clone()
    one_pixel[3, 1, 2, 2] ^= 1
    one_label = labels.clone()
    one_label[0] = 5
    others = [
        content_digest(one_pixel, labels),
        content_digest(x, one_label),
        content_digest(x),
        content_digest(x.flip(0), labels),
        content_digest(x.reshape(6, 3, 5, 4), labels),
    ]
    assert len({same, *others}) == 6


def test_digest_is_the_same_everywhere() -> None:
    """A fixed value: a digest in an old run's config.json must still be comparable."""
    x = torch.arange(24, dtype=torch.uint8).reshape(2, 1, 3, 4)
    assert content_digest(x, torch.tensor([0, 1])) == DIGEST


DIGEST = "0a09d25d87d6fa9eddfc508d9c0bb7fd92855caf0c8ee8c038c49b6f3547c20f"


@given(st.integers(0, 255))
def test_every_level_survives_the_round_trip(level: int) -> None:
    x = to_float(torch.tensor([level], dtype=torch.uint8))
    assert -1.0 <= x.item() <= 1.0
    assert to_uint8(x).item() == level


@given(st.lists(st.integers(-(3 * 10**6), 3 * 10**6), min_size=1, max_size=20))
def test_to_uint8_takes_the_nearest_level(millionths: list[int]) -> None:
    """Nearest by definition: no level is closer (to within float32 rounding) to the value, cut off at +-1."""
    values = [n / 1e6 for n in millionths]
    levels = np.arange(256) / 127.5 - 1.0
    got = to_uint8(torch.tensor(values)).numpy()
    for value, level in zip(np.clip(values, -1.0, 1.0), got, strict=True):
        assert abs(levels[level] - value) <= np.abs(levels - value).min() + 1e-6


def test_extremes_are_exact_and_half_precision_is_taken() -> None:
    ends = to_float(torch.tensor([0, 255], dtype=torch.uint8))
    assert ends.tolist() == [-1.0, 1.0]
    assert to_uint8(torch.tensor([-1.0, 1.0, 9.0], dtype=torch.bfloat16)).tolist() == [0, 255, 255]
    x = torch.tensor([0.5])
    to_uint8(x)
    assert x.item() == 0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_no_black_pictures_from_nan(bad: float) -> None:
    with pytest.raises(NonFiniteError):
        to_uint8(torch.tensor([0.0, bad]))


@settings(max_examples=60)
@given(st.integers(1, 50), st.integers(1, 120), st.integers(-(2**63), 2**63 - 1), st.integers(0, 400))
def test_order_is_a_pure_function_of_the_position(n: int, batch_size: int, seed: int, position: int) -> None:
    got = batch_indices(n, batch_size, seed, position)
    assert got.dtype == torch.int64
    assert got.shape == (batch_size,)
    one_by_one = torch.cat([batch_indices(n, 1, seed, position + i) for i in range(batch_size)])
    assert torch.equal(got, one_by_one)


@settings(max_examples=30)
@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 5))
def test_every_epoch_holds_every_index_once(n: int, batch_size: int, seed: int) -> None:
    steps = -(-3 * n // batch_size)
    order = torch.cat([batch_indices(n, batch_size, seed, i * batch_size) for i in range(steps)])
    for epoch in range(3):
        assert sorted(order[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


def test_seeds_and_epochs_differ_and_the_cache_can_not_be_spoilt() -> None:
    first = batch_indices(100, 100, 0, 0)
    assert not torch.equal(first, batch_indices(100, 100, 0, 100))
    assert not torch.equal(first, batch_indices(100, 100, 1, 0))
    kept = first.clone()
    first.zero_()
    assert torch.equal(batch_indices(100, 100, 0, 0), kept)


def test_order_is_the_same_everywhere() -> None:
    """A fixed value: a run resumed under a new NumPy or torch must go on in the same order."""
    assert batch_indices(10, 12, 3, 5).tolist() == ORDER


ORDER = [0, 2, 5, 7, 1, 2, 3, 5, 9, 4, 8, 1]


@pytest.mark.parametrize(("n", "batch_size", "position"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_impossible_orders_are_refused(n: int, batch_size: int, position: int) -> None:
    with pytest.raises(ConfigError, match="at least"):
        batch_indices(n, batch_size, 0, position)
