"""Path length in closed form: generators that move along circles, seen by the identity."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from trilemma.errors import ConfigError
from trilemma.maths.noise import great_circle
from trilemma.measure.classifier import Classifier, NetworkOptions
from trilemma.measure.digits_cnn import load_digits_cnn, sklearn_digits
from trilemma.measure.features import extract, load_extractor
from trilemma.measure.path_length import classifier_features, digits_features, feature_path_length

EPSILON = 1e-4


def flat(x: Tensor) -> Tensor:
    return x.flatten(1)


def turn(seeds: Sequence[int], t: Tensor) -> Tensor:
    """Image (cos a t, sin a t) for the angle a = seed / 50, as (N, 2, 1, 1)."""
    angle = torch.tensor(seeds, dtype=torch.float64) / 50 * t
    return torch.stack([angle.cos(), angle.sin()], 1)[:, :, None, None]


def linear(seeds: Sequence[int], t: Tensor) -> Tensor:
    """A linear generator, three times a rotation, on a quarter circle between orthogonal latents of length 7."""
    images = []
    for seed, place in zip(seeds, t, strict=True):
        generator = torch.Generator().manual_seed(seed)
        latents = torch.linalg.qr(torch.randn(6, 2, generator=generator, dtype=torch.float64)).Q.T
        rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
        images.append(great_circle(7 * latents[:1], 7 * latents[1:], place[None]) @ (3 * rotation))
    return torch.cat(images)[:, :, None, None]


def test_a_linear_generator_on_a_quarter_circle() -> None:
    """Unit features turn by pi eps / 2, a chord of 2 sin(pi eps / 4); scale does not matter."""
    found = feature_path_length(linear, flat, range(40), epsilon=EPSILON)
    assert found == pytest.approx((2 * math.sin(math.pi * EPSILON / 4) / EPSILON) ** 2, rel=1e-9)
    assert found == pytest.approx(math.pi**2 / 4, rel=1e-6)


@pytest.mark.parametrize("epsilon", [1e-4, 0.1])
def test_the_mean_leaves_out_one_percent_at_either_end(epsilon: float) -> None:
    """Of 200 angles the two smallest and the two largest."""
    found = feature_path_length(turn, flat, range(200), epsilon=epsilon)
    terms = [(2 * math.sin(a / 100 * epsilon) / epsilon) ** 2 for a in range(2, 198)]
    assert found == pytest.approx(sum(terms) / 196, rel=1e-8)


def test_an_image_that_stays_has_no_length() -> None:
    assert feature_path_length(lambda seeds, t: torch.ones(len(seeds), 3, 2, 2), flat, range(10)) == 0
    assert feature_path_length(lambda seeds, t: torch.zeros(len(seeds), 3, 2, 2), flat, range(10)) == 0


def test_places_lie_on_the_path_and_come_from_the_seed() -> None:
    """Both ends of a step in [0, 1], epsilon apart; neither depends on the batch."""
    asked: dict[int, list[Tensor]] = {}

    def watch(batch: int, seed: int) -> Tensor:
        asked[batch] = []

        def walk(seeds: Sequence[int], t: Tensor) -> Tensor:
            asked[batch].append(t)
            return turn(seeds, t)

        feature_path_length(walk, flat, range(1, 101), seed=seed, epsilon=0.3, batch=batch)
        return torch.cat(asked[batch][::2])

    here = watch(100, 0)
    there = torch.cat(asked[100][1::2])
    assert here.min() >= 0 and there.max() <= 1 and here.max() > 0.6
    torch.testing.assert_close(there - here, torch.full((100,), 0.3, dtype=torch.float64))
    assert torch.equal(watch(7, 0), here)
    assert not torch.equal(watch(100, 1), here)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_digits_judge_sees_unrounded_images_alike(channels: int) -> None:
    x = sklearn_digits(train=False).x[:20].expand(-1, channels, -1, -1)
    found = digits_features(load_digits_cnn())(x / 127.5 - 1)
    torch.testing.assert_close(found, extract(x, load_extractor("digits")).features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_classifier_sees_unrounded_images_alike(channels: int) -> None:
    """At another size and number of channels than its own."""
    torch.manual_seed(0)
    options = NetworkOptions(classes=("a", "b"), channels=1, size=(16, 16), mean=(90.0,), std=(60.0,), width=4)
    network = Classifier(options).eval()
    x = sklearn_digits(train=False).x[:20].expand(-1, channels, -1, -1)
    with torch.inference_mode():
        found = classifier_features(network)(x / 127.5 - 1)
        torch.testing.assert_close(found, network.judge(x)[0], rtol=1e-3, atol=1e-4)
        assert not torch.equal(classifier_features(network)((x + 0.2) / 127.5 - 1), found)


def test_a_faster_fade_is_longer() -> None:
    """One digit fading into another, once over the whole path and once in its first half."""
    x = sklearn_digits(train=False).x.float() / 127.5 - 1

    def fade(speed: float) -> float:
        def walk(seeds: Sequence[int], t: Tensor) -> Tensor:
            share = (speed * t).clamp(max=1).float()[:, None, None, None]
            return torch.lerp(x[list(seeds)], x[[seed + 1 for seed in seeds]], share)

        return feature_path_length(walk, digits_features(load_digits_cnn()), range(60), epsilon=1e-3)

    assert fade(2.0) > 1.3 * fade(1.0) > 0


def test_nonsense_is_refused() -> None:
    for seeds, epsilon in ((range(0), 0.1), (range(3), 0.0), (range(3), 1.0)):
        with pytest.raises(ConfigError, match="path length needs seeds"):
            feature_path_length(turn, flat, seeds, epsilon=epsilon)
