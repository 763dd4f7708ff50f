"""Programs of one's own as extractors: not loaded untrusted, tried before use, and what does not keep the contract."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trilemma.errors import ConfigError, ExtractorError
from trilemma.measure.features import extract, load_extractor
from trilemma.measure.weight_files import digest_of, no_words
from trilemma.types import DataSpec

COLOUR, GRAY = DataSpec("images", 3, 8, 8), DataSpec("images", 1, 8, 8)


class Means(nn.Module):
    """Means of the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean((2, 3))


class Pair(nn.Module):
    """Features and logits; made for three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = x.float().mean((2, 3)) / 255
        return features, self.head(features)


class Integers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum((2, 3))


class Maps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class OneRow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean((0, 2, 3)).unsqueeze(0)


class NotANumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean((2, 3)) / 0.0 * 0.0


class Three(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = x.float().mean((2, 3))
        return y, y, y


class Word(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "features"


class Neighbours(nn.Module):
    """What a batch norm left in training mode does."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.float().mean((2, 3))
        return y - y.mean(0)


class Chance(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.float().mean((2, 3))
        return y + torch.randn_like(y) * 10


class Forty(nn.Module):
    """Wants other images than there are."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().reshape(x.size(0), 40)


def scripted(network: nn.Module, path: Path) -> Path:
    with no_words():
        torch.jit.script(network.eval()).save(str(path))
    return path


def images(n: int = 5, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (n, channels, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def test_nothing_is_loaded_without_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a program was loaded without being asked to")

    path = scripted(Means(), tmp_path / "means.pt")
    monkeypatch.setattr(torch.jit, "load", loaded)
    with pytest.raises(ExtractorError, match="can run anything on this machine") as caught:
        load_extractor(str(path), spec=COLOUR)
    assert f"write trust:{path}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_torchscript_program(tmp_path: Path) -> None:
    path = scripted(Means(), tmp_path / "means.pt")
    found = extract(images(), load_extractor(f"trust:{path}", spec=COLOUR), batch=2)  # 2, 2 and 1 images
    torch.testing.assert_close(found.features, images().float().mean((2, 3)))
    assert (found.extractor, found.digest, found.logits) == ("means.pt", digest_of(path), None)


def test_logits_and_gray_images(tmp_path: Path) -> None:
    """A program for three channels is shown gray three times; one that takes gray sees it as it is."""
    torch.manual_seed(0)
    network = Pair()
    for_colour = load_extractor(f"trust:{scripted(network, tmp_path / 'pair.pt')}", spec=GRAY)
    found = extract(images(channels=1), for_colour)
    features, logits = network(images(channels=1).expand(-1, 3, -1, -1))
    torch.testing.assert_close(found.features, features)
    torch.testing.assert_close(found.logits, logits)
    for_any = load_extractor(f"trust:{scripted(Means(), tmp_path / 'means.pt')}", spec=GRAY)
    assert extract(images(channels=1), for_any).features.shape == (5, 1)


def test_an_exported_program(tmp_path: Path) -> None:
    path = tmp_path / "pair.pt2"
    network = Pair().eval()
    dynamic = {"x": {0: torch.export.Dim("n")}}
    torch.export.save(torch.export.export(network, (images(4),), dynamic_shapes=dynamic), path)
    with pytest.raises(ExtractorError, match="is a torch.export program"):
        load_extractor(str(path))
    found = extract(images(), load_extractor(f"trust:{path}", spec=COLOUR), batch=2)
    features, logits = network(images())
    torch.testing.assert_close(found.features, features)
    torch.testing.assert_close(found.logits, logits)
    torch.export.save(torch.export.export(network, (images(2),)), path)
    with pytest.raises(ExtractorError, match="fails on 3 uint8 images of 3 x 8 x 8.*any number of images"):
        load_extractor(f"trust:{path}", spec=COLOUR)


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        (Integers(), r"features of 3 images must be floats \(3, d\), not int64 \(3, 3\)"),
        (Maps(), r"must be floats \(3, d\), not float32 \(3, 3, 8, 8\)"),
        (OneRow(), r"must be floats \(3, d\), not float32 \(1, 3\)"),
        (NotANumber(), "features hold NaN or infinite values"),
        (Three(), "features, or features and logits, not a tuple of 3"),
        (Word(), "features, or features and logits, not a str"),
        (Neighbours(), "change with the images beside it"),
        (Chance(), "change with the images beside it, or by chance"),
        (Forty(), "fails on 3 uint8 images of 3 x 8 x 8 .*shape"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_breaks_the_contract_is_refused(tmp_path: Path, network: nn.Module, problem: str) -> None:
    path = scripted(network, tmp_path / "own.pt")
    with pytest.raises(ExtractorError, match=problem) as caught:
        load_extractor(f"trust:{path}", spec=COLOUR)
    assert "\n" not in str(caught.value)
    assert "own.pt" in str(caught.value)


def test_later_answers_are_checked_too(tmp_path: Path) -> None:
    """Tried on one shape, asked about another."""
    extractor = load_extractor(f"trust:{scripted(Pair(), tmp_path / 'pair.pt')}", spec=COLOUR)
    with pytest.raises(ExtractorError, match="fails on 2 uint8 images of 2 x 8 x 8"):
        extract(images(2, channels=2), extractor)


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    (tmp_path / "nonsense.pt").write_bytes(b"nonsense")
    whole = scripted(Means(), tmp_path / "cut.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    for file, problem in (
        ("weights.pt", "weights alone are no extractor"),
        ("nonsense.pt", "cannot be read as an extractor"),
        ("cut.pt", "cannot be read as an extractor"),
        ("missing.pt", "no extractor file"),
    ):
        with pytest.raises(ExtractorError, match=problem) as caught:
            load_extractor(f"trust:{tmp_path / file}")
        assert file in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="leave out --extractor-weights"):
        load_extractor("trust:a.pt", tmp_path / "weights.pt")


def test_log_lines_are_kept_back_only_inside(caplog: pytest.LogCaptureFixture) -> None:
    with no_words():
        logging.getLogger("made-up").warning("inside")
    logging.getLogger("made-up").warning("outside")
    assert caplog.messages == ["outside"]
