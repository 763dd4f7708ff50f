"""The judge of digit images: what it sees, that folding changes nothing, how often the shipped weights are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trilemma.errors import DataError, ExtractorError
from trilemma.measure.digits_cnn import (
    COMMAND,
    WEIGHTS,
    DigitsCNN,
    accuracy,
    augment,
    load_digits_cnn,
    mnist,
    read_metadata,
    save,
    scale_features,
    sklearn_digits,
    to_network_input,
)

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def test_the_weights_are_small_and_say_where_they_come_from() -> None:
    assert WEIGHTS.stat().st_size < 1_000_000
    metadata = read_metadata()
    assert metadata["command"] == COMMAND
    assert metadata["digits_train_sha256"] == sklearn_digits(train=True).digest


def test_shipped_weights_read_held_out_digits() -> None:
    held_out = sklearn_digits(train=False)
    assert len(held_out.labels) == 360
    right = accuracy(load_digits_cnn(), held_out)
    assert right >= 0.97
    assert right == pytest.approx(float(read_metadata()["digits_test_accuracy"]), abs=0.003)


def test_shipped_weights_read_mnist() -> None:
    if not (SHARED / "MNIST" / "raw").is_dir():
        pytest.skip("no folder shared/data/MNIST/raw beside the repository")
    right = accuracy(load_digits_cnn(), mnist(SHARED, train=False))
    assert right >= 0.993
    assert right == pytest.approx(float(read_metadata()["mnist_test_accuracy"]), abs=0.0003)


def test_features_are_not_negative_and_alive() -> None:
    """A feature that is always zero would make covariances singular for nothing."""
    with torch.inference_mode():
        features, logits = load_digits_cnn()(to_network_input(sklearn_digits(train=True).x))
    assert features.shape == (1437, 64)
    assert logits.shape == (1437, 10)
    assert features.min() >= 0
    assert (features.var(0) > 0).all()


def test_input_is_averaged_resized_and_scaled() -> None:
    white = torch.full((2, 3, 40, 17), 255, dtype=torch.uint8)
    white[:, 0] = 0  # gray value 170 of 255
    x = to_network_input(white)
    assert x.shape == (2, 1, 28, 28)
    torch.testing.assert_close(x, torch.full_like(x, 170 / 127.5 - 1))
    ramp = torch.arange(28, dtype=torch.uint8).expand(1, 1, 28, 28)
    torch.testing.assert_close(to_network_input(ramp), ramp / 127.5 - 1)


@pytest.mark.parametrize("x", [torch.zeros(2, 1, 28, 28), torch.zeros(2, 28, 28, dtype=torch.uint8)])
def test_other_input_is_refused(x: torch.Tensor) -> None:
    with pytest.raises(ExtractorError, match="expects uint8 images"):
        to_network_input(x)


def test_folding_batch_norms_changes_nothing() -> None:
    network = DigitsCNN(norm=True)
    x = to_network_input(sklearn_digits(train=True).x[:256])
    with torch.no_grad():
        network(x)  # running statistics away from 0 and 1
        expected = network.eval()(x)
        found = network.folded()(x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_scaling_sets_the_total_variance_and_leaves_the_logits() -> None:
    """The trace of the covariance becomes 100 and no decision changes."""
    network, data = DigitsCNN().eval(), sklearn_digits(train=False)
    x = to_network_input(data.x)
    with torch.inference_mode():
        before = network(x)[1]
        scale_features(network, data)
        features, after = network(x)
    assert features.double().var(0).sum().item() == pytest.approx(100, rel=1e-4)
    torch.testing.assert_close(after, before)


def test_augmentation_keeps_black_black_and_depends_on_its_generator() -> None:
    """A black image stays black (-1): borders are filled with black, not with mid-gray."""
    black = torch.full((4, 1, 28, 28), -1.0)
    torch.testing.assert_close(augment(black, torch.Generator().manual_seed(0)), black)
    x = to_network_input(sklearn_digits(train=True).x[:4])
    a, b, c = (augment(x, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_save_and_load(tmp_path: Path) -> None:
    network = DigitsCNN().eval()
    save(network, tmp_path / "w.safetensors", {"seed": "7"})
    x = to_network_input(sklearn_digits(train=False).x[:8])
    with torch.inference_mode():
        torch.testing.assert_close(load_digits_cnn(tmp_path / "w.safetensors")(x), network(x), rtol=1e-4, atol=1e-5)
    assert read_metadata(tmp_path / "w.safetensors") == {"seed": "7"}
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_what_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    for name in ("missing.safetensors", "broken.safetensors"):
        with pytest.raises(ExtractorError, match=name) as caught:
            load_digits_cnn(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="MNIST/raw"):
        mnist(tmp_path, train=True)
