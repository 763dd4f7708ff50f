"""The known sets: what they hold, and what is said when they can't be had."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trilemma.data import catalogue, load_data
from trilemma.data.known import default_root
from trilemma.errors import ConfigError, DataError, TrilemmaError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_mnist = pytest.mark.skipif(
    not (SHARED / "MNIST" / "raw").is_dir(), reason="no MNIST in a folder shared/data beside the repository"
)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no network in a test")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def _write_idx(path: Path, values: np.ndarray) -> None:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(side.to_bytes(4, "big") for side in values.shape)
    path.write_bytes(head + values.tobytes())


@pytest.fixture
def small_mnist(tmp_path: Path) -> Path:
    """MNIST's and Fashion-MNIST's file layout with a few random images."""
    random = np.random.RandomState(0)
    for name in ("MNIST", "FashionMNIST"):
        raw = tmp_path / name / "raw"
        raw.mkdir(parents=True)
        for part, count in (("train", 20), ("t10k", 10)):
            _write_idx(raw / f"{part}-images-idx3-ubyte", random.randint(0, 256, (count, 28, 28)).astype(np.uint8))
            _write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    return tmp_path


def test_digits() -> None:
    data = load_data("digits")
    assert data.x.shape == (1797, 1, 8, 8)
    assert data.x.dtype == torch.uint8
    # 17 values from 0 to 16, spread evenly over the bytes.
    assert np.unique(data.x.numpy()).tolist() == [round(v * 255 / 16) for v in range(17)]
    assert data.spec.classes == 10
    assert data.labels is not None
    assert data.labels.bincount().min() > 170
    assert data.digest == load_data("digits").digest
    with pytest.raises(DataError, match="no held-out split"):
        load_data("digits", split="test")


def test_digits_in_another_size_and_in_colour() -> None:
    native, data = load_data("digits"), load_data("digits", size=16, channels=3)
    assert data.spec.shape == (3, 16, 16)
    assert torch.equal(data.x[:, 0], data.x[:, 2])
    assert data.digest != native.digest
    coarse = torch.nn.functional.avg_pool2d(data.x[:, :1].float(), 2)
    assert (coarse - native.x.float()).abs().mean() < 12.0


def test_gaussians() -> None:
    data = load_data("gaussians")
    assert data.x.shape == (100_000, 2, 1, 1)
    assert data.x.dtype == torch.float32
    assert data.labels is None
    assert data.modes is not None
    assert data.sigma == 0.05
    assert data.modes.shape == (25, 2)
    assert np.unique(data.modes[:, 0].numpy()).tolist() == pytest.approx([-4.0, -2.0, 0.0, 2.0, 4.0])
    assert float(data.x.abs().max()) < 4.3
    offset, mode = torch.cdist(data.x.flatten(1), data.modes).min(dim=1)
    assert mode.bincount(minlength=25).min() > 3700  # 4000 expected, deviation 62
    # Rayleigh: E r^2 = 2 sigma^2.
    assert float((offset**2).mean()) == pytest.approx(2 * 0.05**2, rel=0.02)


def test_gaussian_splits_differ_and_stay() -> None:
    train, test = load_data("gaussians"), load_data("gaussians", split="test")
    assert train.digest == load_data("gaussians").digest
    assert not torch.equal(train.x[: len(test)], test.x)
    with pytest.raises(ConfigError, match="points"):
        load_data("gaussians", size=8)


@needs_mnist
@pytest.mark.usefixtures("no_network")
def test_mnist_from_a_folder_that_has_it() -> None:
    start = time.perf_counter()
    train = load_data("mnist", root=SHARED)
    assert time.perf_counter() - start < 5.0
    assert train.x.shape == (60_000, 1, 28, 28)
    assert train.labels is not None
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert float(train.x.float().mean() / 255) == pytest.approx(0.1307, abs=1e-4)
    test = load_data("mnist", root=SHARED, split="test")
    assert len(test) == 10_000
    assert test.digest != train.digest


@pytest.mark.usefixtures("no_network")
def test_torchvision_layout_is_read_offline(small_mnist: Path) -> None:
    train = load_data("fashion-mnist", root=small_mnist, size=32)
    assert train.x.shape == (20, 1, 32, 32)
    assert train.class_names[0] == "T-shirt/top"
    test = load_data("MNIST", root=small_mnist, split="test")
    assert test.x.shape == (10, 1, 28, 28)
    assert test.name == "mnist"
    assert test.labels is not None
    assert test.labels.tolist() == list(range(10))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_without_network_the_ways_on_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_data(name, root=tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for word in ("network", "digits", "folder", "--data-root", str(tmp_path)):
        assert word in message


@pytest.mark.usefixtures("no_network")
def test_broken_files_are_told(small_mnist: Path) -> None:
    images = small_mnist / "MNIST" / "raw" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:500])
    with pytest.raises(DataError, match="can't be read"):
        load_data("mnist", root=small_mnist)


def test_default_root_follows_the_cache_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "trilemma"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache" / "trilemma"


def test_unknown_names_get_the_nearest_and_the_way_to_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'mnist'.*folder or zip"):
        load_data("minst")
    with pytest.raises(DataError, match="folder or zip"):
        load_data(str(tmp_path / "photos"))
    with pytest.raises(DataError):
        load_data("")


@pytest.mark.parametrize("options", [{"size": 0}, {"channels": 2}, {"split": "tset"}])
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TrilemmaError) as caught:
        load_data("digits", **options)
    assert "\n" not in str(caught.value)


def test_catalogue_has_a_line_for_each() -> None:
    lines = catalogue()
    assert set(lines) == {"digits", "mnist", "fashion-mnist", "stackedmnist", "cifar10", "gaussians"}
    assert all(line and "\n" not in line for line in lines.values())


def test_stacked_mnist_is_three_digits_of_mnist_in_three_colours(small_mnist: Path) -> None:
    stacked, mnist = load_data("stackedmnist", root=small_mnist), load_data("mnist", root=small_mnist)
    assert stacked.spec.shape == (3, 28, 28)
    assert len(stacked) == len(mnist)
    assert stacked.labels is not None and mnist.labels is not None
    for image, label in zip(stacked.x, stacked.labels.tolist(), strict=True):
        names = stacked.class_names[label]
        for colour, digit in zip(image, names, strict=True):
            assert any(torch.equal(colour, mnist.x[i, 0]) for i in (mnist.labels == int(digit)).nonzero().flatten())
    assert stacked.digest == load_data("stackedmnist", root=small_mnist).digest
    with pytest.raises(ConfigError, match="colour"):
        load_data("stackedmnist", root=small_mnist, channels=1)
