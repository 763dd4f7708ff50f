"""Extractors: which one for which data, weights by file, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from trilemma.data import load_data
from trilemma.errors import ConfigError, ExtractorError
from trilemma.measure.digits_cnn import DigitsCNN, save, sklearn_digits
from trilemma.measure.features import WEIGHTS, default_extractor, extract, load_extractor
from trilemma.measure.fidelity import fid_only
from trilemma.types import DataSpec

GRAY = DataSpec("images", 1, 28, 28)


def test_default_extractors() -> None:
    assert [default_extractor(name, GRAY) for name in ("digits", "mnist", "fashion-mnist")] == ["digits"] * 3
    assert default_extractor("cifar10", DataSpec("images", 3, 32, 32)) == "inception"
    assert default_extractor("my/folder", GRAY) == "inception"
    with pytest.raises(ConfigError, match="points have no feature extractor"):
        default_extractor("gaussians", DataSpec("points", 2, 1, 1))


def test_an_unknown_extractor_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        load_extractor("digit")


def test_features_do_not_depend_on_the_batch() -> None:
    extractor, x = load_extractor("digits"), sklearn_digits(train=False).x
    whole, parts = extract(x, extractor), extract(x, extractor, batch=7)
    assert len(whole) == 360
    assert whole.features.shape == (360, 64)
    assert whole.logits.shape == (360, 10)
    torch.testing.assert_close(whole.features, parts.features, rtol=1e-5, atol=1e-4)


def test_gray_and_its_copy_in_three_channels_look_the_same() -> None:
    extractor, x = load_extractor("digits"), sklearn_digits(train=False).x[:20]
    gray, color = extract(x, extractor), extract(x.expand(-1, 3, -1, -1), extractor)
    torch.testing.assert_close(gray.features, color.features, rtol=1e-5, atol=1e-4)


def test_the_digest_follows_the_weights(tmp_path: Path) -> None:
    save(DigitsCNN(), tmp_path / "other.safetensors", {})
    own, other = load_extractor("digits"), load_extractor("digits", tmp_path / "other.safetensors")
    assert own.digest == load_extractor("digits", WEIGHTS).digest
    assert own.digest != other.digest
    assert len(own.digest) == 16


def test_statistics_are_computed_once() -> None:
    features = extract(sklearn_digits(train=False).x[:50], load_extractor("digits"))
    assert features.statistics is features.statistics
    assert features.statistics["mu"].shape == (64,)
    assert features.statistics["sigma"].shape == (64, 64)


def test_input_that_is_no_image_is_refused() -> None:
    extractor = load_extractor("digits")
    with pytest.raises(ExtractorError, match="expected uint8 images"):
        extractor.features(torch.zeros(2, 1, 28, 28))
    with pytest.raises(ExtractorError, match="no images"):
        extract(torch.zeros(0, 1, 28, 28, dtype=torch.uint8), extractor)


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of Inception weights made of random numbers: the architecture without the download."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = FeatureExtractorInceptionV3("random", ["2048", "logits_unbiased"])
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


def test_inception_with_weights_by_file(inception_weights: Path) -> None:
    """Gray is repeated to three channels; features and logits are torch-fidelity's own layers."""
    extractor = load_extractor("inception", inception_weights)
    gray = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    found = extract(gray, extractor)
    direct = FeatureExtractorInceptionV3(
        "x", ["2048", "logits_unbiased"], feature_extractor_weights_path=inception_weights
    )
    features, logits = direct(gray.repeat(1, 3, 1, 1))
    torch.testing.assert_close(found.features, features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(ExtractorError, match="1 or 3 channels, got 2"):
        extractor.features(gray.repeat(1, 2, 1, 1))


@pytest.mark.slow
def test_the_fid_of_folders_is_that_of_torch_fidelitys_command(inception_weights: Path, tmp_path: Path) -> None:
    """Colour images as PNGs in two folders. The weights are drawn anew: the published ones are a download."""
    for name, seed in (("a", 0), ("b", 1)):
        draw = torch.Generator().manual_seed(seed)
        coarse = torch.rand(24, 3, 8, 8, generator=draw)
        images = (F.interpolate(coarse, (40, 40), mode="bilinear") * (200 + 55 * seed)).to(torch.uint8)
        (tmp_path / name).mkdir()
        for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            Image.fromarray(image).save(tmp_path / name / f"{i:02d}.png")
    command = [sys.executable, "-m", "torch_fidelity.fidelity", "--cpu", "--fid", "--json", "--silent", "--no-cache"]
    command += ["--input1", str(tmp_path / "a"), "--input2", str(tmp_path / "b")]
    command += ["--feature-extractor-weights-path", str(inception_weights)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    theirs = json.loads(done.stdout[done.stdout.index("{") :])["frechet_inception_distance"]
    extractor = load_extractor("inception", inception_weights)
    sets = [extract(load_data(str(tmp_path / name)).x, extractor) for name in "ab"]
    assert fid_only(sets[0], sets[1]) == pytest.approx(theirs, rel=1e-4)


def test_files_that_are_no_inception_weights(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    (tmp_path / "empty.pth").touch()
    for name in ("other.pth", "other.safetensors", "list.pth", "empty.pth", "missing.pth"):
        with pytest.raises(ExtractorError, match=name) as caught:
            load_extractor("inception", tmp_path / name)
        assert "\n" not in str(caught.value)


class Evil:
    """Unpickling this would call `ran`."""

    def __reduce__(self) -> Any:
        return ran, ()


def ran() -> None:
    raise AssertionError("a weights file was unpickled")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ExtractorError, match="cannot be read as bare weights"):
        load_extractor("inception", tmp_path / "evil.pth")


def test_without_the_net_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ExtractorError, match="weights-inception-2015-12-05-6726825d.pth") as caught:
        load_extractor("inception")
    assert "--extractor-weights FILE" in str(caught.value)
    assert "--extractor digits" in str(caught.value)
    assert "\n" not in str(caught.value)
