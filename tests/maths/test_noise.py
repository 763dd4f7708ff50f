"""Seeded noise: a pure function of seed, draw and place, and indistinguishable from independent normals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from trilemma.errors import ConfigError
from trilemma.maths.noise import SeedNoise

FAR = [-(2**63), -(2**40) - 1, -2, -1, 0, 1, 2, 2**32, 2**40 + 3, 2**63 - 1]


def python_noise(seed: int, draw: int, index: int) -> float:
    """The module docstring's formulas once more, one number at a time, in Python's unbounded integers."""
    mask, a = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    key = mix((mix((seed + a) & mask) + a * draw) & mask)
    word = mix((key + a * (index // 2 + 1)) & mask)
    radius = math.sqrt(-2 * math.log(((word >> 32) + 0.5) / 2**32))
    angle = 2 * math.pi * (word & 0xFFFFFFFF) / 2**32
    return radius * (math.sin(angle) if index % 2 else math.cos(angle))


def test_mix_is_splitmix64() -> None:
    """The first outputs of SplitMix64 from state 0 are widely published."""
    from trilemma.maths.noise import _A, _mix, _signed

    got = _mix(torch.arange(1, 4) * _A).tolist()
    assert got == [_signed(v) for v in (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)]


def test_noise_equals_the_formula() -> None:
    noise = SeedNoise(FAR)
    for draw in range(2):
        x = noise.normal((5,))
        expected = [[python_noise(seed, draw, i) for i in range(5)] for seed in FAR]
        np.testing.assert_allclose(x.numpy(), np.array(expected), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5, 4), (1, 28, 28)])
def test_noise_does_not_depend_on_the_batch(shape: tuple[int, ...]) -> None:
    together = SeedNoise(FAR)
    alone = [SeedNoise([seed]) for seed in FAR]
    for _ in range(2):
        x = together.normal(shape)
        assert x.shape == (len(FAR), *shape) and x.dtype == torch.float32
        assert torch.equal(x, torch.cat([one.normal(shape) for one in alone]))
    assert together.draws == 2


def test_elements_do_not_depend_on_the_shape() -> None:
    assert torch.equal(SeedNoise([3]).normal((9,))[0, :4], SeedNoise([3]).normal((4,))[0])
    assert torch.equal(SeedNoise([3]).normal((2, 3, 4)).flatten(), SeedNoise([3]).normal((24,)).flatten())
    assert SeedNoise([1, 2]).normal((3, 4, 4)).is_contiguous(memory_format=torch.channels_last)


def test_global_random_state_is_untouched() -> None:
    before = torch.get_rng_state()
    SeedNoise([1]).normal((4,))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("seeds", [range(400), range(-400, 0), range(2**40, 2**40 + 400), range(0, 400 * 2**32, 2**32)])
def test_noise_is_normal(seeds: range) -> None:
    noise = SeedNoise(seeds)
    x = torch.stack([noise.normal((500,)) for _ in range(2)])
    flat = x.double().flatten().numpy()
    assert stats.kstest(flat, "norm").pvalue > 1e-3
    assert abs(flat.mean()) < 4 / math.sqrt(flat.size) and abs(flat.var() - 1) < 4 * math.sqrt(2 / flat.size)
    assert abs((flat**4).mean() - 3) < 4 * math.sqrt(96 / flat.size)


def test_neighbours_are_uncorrelated() -> None:
    """Seeds, draws and elements next to each other; also squares, since Box-Muller pairs share a radius."""
    noise = SeedNoise(range(300))
    x = torch.stack([noise.normal((301,)) for _ in range(3)]).double()  # (draw, seed, element)
    for f in (x, x.square() - 1, x.abs() - math.sqrt(2 / math.pi)):
        for a, b in ((f[1:], f[:-1]), (f[:, 1:], f[:, :-1]), (f[..., 1:], f[..., :-1]), (f[..., 2:], f[..., :-2])):
            correlation = float((a * b).mean() / f.square().mean())
            assert abs(correlation) < 4.5 / math.sqrt(a.numel())


def test_extremes_stay_finite() -> None:
    x = SeedNoise(range(1000)).normal((1000,))
    assert bool(x.isfinite().all()) and 4.5 < float(x.abs().max()) < 6.8


@pytest.mark.parametrize("seeds", [[], [2**63], [0, -(2**63) - 1]])
def test_impossible_seeds_are_refused(seeds: list[int]) -> None:
    with pytest.raises(ConfigError):
        SeedNoise(seeds)
