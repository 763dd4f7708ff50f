"""Features kept on disk: read back as they were, never for other images, and a damaged file is no obstacle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trilemma.measure import cache
from trilemma.measure.cache import cached_features
from trilemma.measure.features import Extractor, FeatureSet, extract


def look(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.flatten(1).float(), x.flatten(1)[:, :3].float()


EXTRACTOR = Extractor("made-up", "0" * 16, 7, torch.device("cpu"), look)
X = torch.arange(20 * 16).remainder(251).to(torch.uint8).reshape(20, 1, 4, 4)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were looked at, each time."""
    counts: list[int] = []

    def counted(x: Tensor, extractor: Extractor) -> FeatureSet:
        counts.append(len(x))
        return extract(x, extractor)

    monkeypatch.setattr(cache, "extract", counted)
    return counts


def same(a: FeatureSet, b: FeatureSet) -> bool:
    equal = torch.equal(a.features, b.features) and torch.equal(a.logits, b.logits)
    return equal and (a.extractor, a.digest) == (b.extractor, b.digest)


def test_the_second_time_is_read_back(tmp_path: Path, looked: list[int]) -> None:
    folder = tmp_path / "deep" / "features"
    first = cached_features(X, EXTRACTOR, folder)
    again = cached_features(X.clone(), EXTRACTOR, folder)
    assert looked == [20]
    assert same(first, again) and same(again, extract(X, EXTRACTOR))
    assert again.features.dtype == torch.float32
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"]


CHANGES: dict[str, Callable[[], tuple[Tensor, Extractor]]] = {
    "a pixel": lambda: (torch.cat([X[:-1], X[-1:] ^ 1]), EXTRACTOR),
    "the order": lambda: (X.flip(0), EXTRACTOR),
    "fewer": lambda: (X[:19], EXTRACTOR),
    "the shape": lambda: (X.reshape(20, 1, 2, 8), EXTRACTOR),
    "the weights": lambda: (X, replace(EXTRACTOR, digest="1" * 16)),
    "the extractor": lambda: (X, replace(EXTRACTOR, name="another")),
    "the device": lambda: (X, replace(EXTRACTOR, device=torch.device("meta"))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_the_features_makes_another_file(tmp_path: Path, looked: list[int], change: str) -> None:
    cached_features(X, EXTRACTOR, tmp_path)
    x, extractor = CHANGES[change]()
    key = cache._key(x, extractor)
    assert key != cache._key(X, EXTRACTOR)
    if extractor.device.type == "cpu":
        cached_features(x, extractor, tmp_path)
        assert looked == [20, len(x)] and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("library", ["trilemma", "torch", "torch-fidelity"])
def test_another_version_makes_another_file(
    tmp_path: Path, looked: list[int], monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    cached_features(X, EXTRACTOR, tmp_path)
    installed = cache.versions()
    monkeypatch.setattr(cache, "versions", lambda: {**installed, library: "0"})
    cached_features(X, EXTRACTOR, tmp_path)
    assert looked == [20, 20]


def flipped(path: Path) -> None:
    """One bit of the last number: a file that parses, with another content."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def without_logits(path: Path) -> None:
    save_file({"features": load_file(path)["features"]}, path)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "flipped": flipped,
    "without logits": without_logits,
    "of another key": lambda path: save_file(load_file(path), path, {"key": "another"}),
    "scalars": lambda path: save_file({"features": torch.tensor(1.0), "logits": torch.tensor(1.0)}, path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(tmp_path: Path, looked: list[int], damage: str) -> None:
    cached_features(X, EXTRACTOR, tmp_path)
    (path,) = tmp_path.iterdir()
    DAMAGES[damage](path)
    for _ in range(2):  # the second time it is whole again
        assert same(cached_features(X, EXTRACTOR, tmp_path), extract(X, EXTRACTOR))
    assert looked == [20, 20] and list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_keeps_nothing(tmp_path: Path, looked: list[int]) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "features", None):
        assert same(cached_features(X, EXTRACTOR, folder), extract(X, EXTRACTOR))
    assert looked == [20, 20] and [path.name for path in tmp_path.iterdir()] == ["file"]
