"""The classifier's file: it brings back the same function, says how it was made, and is refused when damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from trilemma.errors import ExtractorError
from trilemma.measure.classifier import Classifier, NetworkOptions, levels, load_classifier, read_made, save_classifier
from trilemma.measure.features import extract, load_extractor
from trilemma.measure.weight_files import digest_of

OPTIONS = NetworkOptions(
    classes=("cat", "dog", "owl"),
    channels=3,
    size=(16, 12),
    mean=(120.0, 110.0, 100.0),
    std=(60.0, 61.0, 62.0),
    width=4,
)


def network(options: NetworkOptions = OPTIONS) -> Classifier:
    """Random weights, with running statistics away from 0 and 1."""
    torch.manual_seed(0)
    made = Classifier(options)
    with torch.no_grad():
        made(torch.randn(8, options.channels, *options.size))
    return made.eval()


def images(n: int = 5, channels: int = 3, size: tuple[int, int] = (16, 12)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, channels, *size), dtype=torch.uint8, generator=generator)


def test_a_file_brings_back_the_same_function(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    original = network()
    save_classifier(original, path, {"test_accuracy": 0.5})
    found = extract(images(), load_extractor(str(path)))
    with torch.inference_mode():
        features, logits = original.judge(images())
    torch.testing.assert_close(found.features, features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-5)
    assert features.shape == (5, 32) and logits.shape == (5, 3)
    assert (found.extractor, found.digest) == ("own.safetensors", digest_of(path))
    assert read_made(path) == {"test_accuracy": 0.5}
    assert load_classifier(path).options == OPTIONS
    assert [file.name for file in tmp_path.iterdir()] == ["own.safetensors"]


def test_the_features_are_the_scaled_mean_of_the_last_layer() -> None:
    plain, scaled = network(), network(NetworkOptions(**{**vars(OPTIONS), "feature_scale": 3.0}))
    seen = []
    plain.branch3.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0] + output))
    with torch.inference_mode():
        features, logits = plain.judge(images())
        tripled, same = scaled.judge(images())
    torch.testing.assert_close(features, seen[0].mean((2, 3)))
    torch.testing.assert_close(tripled, 3 * features)
    torch.testing.assert_close(same, logits)
    assert seen[0].shape == (5, 32, 2, 1)  # an eighth of 16 x 12, rounded down
    assert (features >= 0).all()


def test_other_images_are_brought_to_what_it_was_trained_on() -> None:
    """Gray is repeated, another size is resized as F.interpolate does; a gray network averages colours."""
    colour = network()
    gray = images(channels=1, size=(32, 24))
    with torch.inference_mode():
        as_colour = colour.judge(gray.expand(-1, 3, -1, -1))[0]
        torch.testing.assert_close(colour.judge(gray)[0], as_colour)
        small = F.interpolate(
            gray.expand(-1, 3, -1, -1).float(), (16, 12), mode="bilinear", align_corners=False, antialias=True
        )
        torch.testing.assert_close(colour(colour.normalised(small))[0], as_colour)
        one = network(NetworkOptions(classes=("a", "b"), channels=1, size=(8, 8), mean=(9.0,), std=(3.0,), width=2))
        x = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
        x[:, 0], x[:, 1] = 30, 60
        torch.testing.assert_close(one.judge(x)[0], one.judge(torch.full((1, 1, 8, 8), 30, dtype=torch.uint8))[0])
    for bad in (torch.zeros(1, 3, 8, 8), images(channels=2), images()[0]):
        with pytest.raises(ExtractorError, match="expected uint8 images"):
            colour.judge(bad)


def test_levels_are_the_moments_of_the_pixels() -> None:
    x = images(50)
    mean, std = levels(x)
    values = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), values.mean(1))
    torch.testing.assert_close(torch.tensor(std, dtype=torch.float64), values.std(1, correction=0))
    assert levels(torch.full((3, 1, 8, 8), 7, dtype=torch.uint8)) == (
        (7.0,),
        (1.0,),
    )  # one colour: nothing to divide by


def test_normalising_gives_mean_0_and_variance_1() -> None:
    x = images(50)
    mean, std = levels(x)
    made = Classifier(NetworkOptions(classes=("a", "b"), channels=3, size=(16, 12), mean=mean, std=std, width=1))
    y = made.normalised(x).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(y.mean(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.var(1, correction=0), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-4)


def test_how_much_an_image_costs() -> None:
    """What the docstring says of a 32 x 32 image at w = 32: 95 million multiplications and additions."""
    made = Classifier(NetworkOptions(classes=("a",) * 10, channels=3, size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3))
    total = []
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, _, out: total.append(m.weight.numel() * out.shape[2] * out.shape[3]))
    with torch.inference_mode():
        features, _ = made.eval()(torch.zeros(1, 3, 32, 32))
    assert round(sum(total) / 1e6) == 95
    assert round(sum(p.numel() for p in made.parameters()) / 1e6, 1) == 1.6  # what the documentation says
    assert features.shape == (1, 256)


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The same weights below changed words."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["trilemma_extractor"])
    change(about)
    save_file(load_file(path), path, {"trilemma_extractor": json.dumps(about)})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda about: about["network"].update(width=5), "its weights do not fit"),
        (lambda about: about["network"].update(width=0), "width must be from 1 to 512"),
        (lambda about: about["network"].update(width="wide"), "width must be a whole number"),
        (lambda about: about["network"].update(architecture="vgg"), "architecture must be resnet9"),
        (lambda about: about["network"].update(std=[1, 2, 0]), "std positive"),
        (lambda about: about["network"].update(mean=[1]), "one value for each channel"),
        (lambda about: about["network"].update(size=[16]), "a height and a width"),
        (lambda about: about["network"].update(classes=["one"]), "classes must be at least 2"),
        (lambda about: about["network"].update(feature_scale=0), "feature_scale must be positive"),
        (lambda about: about["network"].update(deep=True), "unknown key 'deep'"),
        (lambda about: about["network"].pop("classes"), "classes"),
        (lambda about: about.pop("network"), "missing"),
    ],
)
def test_words_that_do_not_hold_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    path = tmp_path / "own.safetensors"
    save_classifier(network(), path, {})
    rewritten(path, change)
    with pytest.raises(ExtractorError, match=problem) as caught:
        load_extractor(str(path))
    assert "own.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    save_classifier(network(), whole, {})
    content = whole.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    (tmp_path / "nonsense.safetensors").write_bytes(b"nonsense")
    save_file({"weight": torch.zeros(2)}, tmp_path / "bare.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "words.safetensors", {"trilemma_extractor": "{"})
    state = load_file(whole)
    state["head.bias"][0] = float("nan")
    with safe_open(whole, framework="pt") as file:
        save_file(state, tmp_path / "nan.safetensors", file.metadata())
    for name, problem in (
        ("cut", "cannot be read as an extractor"),
        ("nonsense", "cannot be read as an extractor"),
        ("bare", "do not say what network they are of"),
        ("words", "cannot be read as an extractor"),
        ("nan", "NaN or infinite"),
        ("missing", "no extractor file"),
    ):
        with pytest.raises(ExtractorError, match=problem) as caught:
            load_extractor(str(tmp_path / f"{name}.safetensors"))
        assert f"{name}.safetensors" in str(caught.value)
        assert "\n" not in str(caught.value)
