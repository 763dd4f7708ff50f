"""Files of weights: a download is kept only if it is the one that was meant, and fetched once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from trilemma.errors import ExtractorError
from trilemma.measure.weight_files import digest_of, fetch, read_state, short


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder for downloads."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What lies at the address, which is one of this computer."""
    (tmp_path / "far away").mkdir()
    path = tmp_path / "far away" / "w.pth"
    path.write_bytes(b"weights")
    return path


def test_a_file_is_fetched_once(cache: Path, source: Path) -> None:
    sha256 = hashlib.sha256(b"weights").hexdigest()
    found = fetch("made-up", source.as_uri(), sha256=sha256)
    assert found == cache / "w.pth" and found.read_bytes() == b"weights"
    assert digest_of(found) == digest_of(b"weights") == sha256[:16]
    source.unlink()
    assert fetch("made-up", source.as_uri(), sha256=sha256) == found
    with pytest.raises(ExtractorError, match="cannot download the made-up weights other.pth"):
        fetch("made-up", source.as_uri(), file="other.pth")


def test_another_file_than_the_one_meant_is_thrown_away(cache: Path, source: Path) -> None:
    with pytest.raises(ExtractorError, match="invalid hash value") as caught:
        fetch("made-up", source.as_uri(), sha256="0" * 64)
    assert "--extractor-weights FILE" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(cache.iterdir())


def test_only_named_tensors_are_weights(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "good.pth")
    torch.save({"a": torch.ones(2), "epoch": 3}, tmp_path / "more.pth")
    assert torch.equal(read_state(tmp_path / "good.pth", "give another")["a"], torch.ones(2))
    with pytest.raises(ExtractorError, match=r"more\.pth: holds something else than named tensors; give another"):
        read_state(tmp_path / "more.pth", "give another")


def test_an_error_is_said_on_one_short_line() -> None:
    assert short(ValueError("two\n  lines")) == "two lines"
    assert short(ValueError()) == "ValueError"
    assert len(short(ValueError("long " * 100))) == 160
