"""Normal noise that is a pure function of (seed, draw number, element index): the same seed gives the same sample at
any batch size and in any order.

A counter-based generator (Salmon et al. 2011): with ``mix`` the SplitMix64 finaliser (Steele et al. 2014) and all sums
and products modulo 2^64,

    key = mix(mix(seed + A) + A draw),    word_j = mix(key + A (j + 1)),    A = 0x9E3779B97F4A7C15

and word j, cut into two 32-bit halves h and l, gives elements 2j and 2j + 1 by Box and Muller (1958):

    r = sqrt(-2 log((h + 1/2) / 2^32)),    (r cos, r sin)(2 pi l / 2^32)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import cached_property

import torch
from torch import Tensor

from trilemma.errors import ConfigError


def _signed(value: int) -> int:
    """The int64 with the bits of the low 64 bits of ``value``: torch's integers wrap around, Python's do not."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


_A = _signed(0x9E3779B97F4A7C15)
_M1 = _signed(0xBF58476D1CE4E5B9)
_M2 = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of 64-bit words in which every input bit reaches every output bit."""
    x = (x ^ _shift(x, 30)).mul_(_M1)
    x = x.bitwise_xor_(_shift(x, 27)).mul_(_M2)
    return x.bitwise_xor_(_shift(x, 31))


_RECORD: ContextVar[dict[str, Tensor] | None] = ContextVar("record", default=None)
_GIVEN: ContextVar[Mapping[str, Tensor] | None] = ContextVar("given", default=None)


@contextlib.contextmanager
def record_noise() -> Iterator[dict[str, Tensor]]:
    """The draws made inside the block, by name, in order."""
    record: dict[str, Tensor] = {}
    token = _RECORD.set(record)
    try:
        yield record
    finally:
        _RECORD.reset(token)


@contextlib.contextmanager
def give_noise(draws: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block nothing is drawn: every draw is the tensor (N, *shape) of its name, whatever the seeds.

    So a sampler becomes a pure function of its noise. Raises ConfigError there for a draw that is not given, or of
    another shape.
    """
    token = _GIVEN.set(draws)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def _taken(given: Mapping[str, Tensor], name: str, shape: Sequence[int]) -> Tensor:
    if name not in given:
        raise ConfigError(f"no noise {name!r} was given: there is {', '.join(given) or 'none'}")
    if tuple(given[name].shape[1:]) != tuple(shape):
        raise ConfigError(f"noise {name!r} must have the shape {('N', *shape)}, not {tuple(given[name].shape)}")
    return given[name]


class SeedNoise:
    """One stream of normal noise a seed. Equal seeds give equal streams; ``draws`` counts the calls so far."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        """``seeds``: integers in [-2^63, 2^63). Raises ConfigError for none and for any other."""
        self.seeds = tuple(int(s) for s in seeds)
        if not self.seeds:
            raise ConfigError("SeedNoise needs at least one seed")
        outside = [s for s in self.seeds if not -(2**63) <= s < 2**63]
        if outside:
            raise ConfigError(f"seeds must lie in [-2^63, 2^63), not {outside[0]}")
        self.device = torch.device(device)
        self.draws = 0
        # Metal has no float64: there the numbers are made on the CPU and copied.
        self._home = torch.device("cpu") if self.device.type == "mps" else self.device

    @cached_property
    def _stream(self) -> Tensor:
        return _mix(torch.tensor(self.seeds, dtype=torch.int64, device=self._home) + _A)

    def __len__(self) -> int:
        return len(self.seeds)

    def normal(self, shape: Sequence[int] = (), name: str = "") -> Tensor:
        """The next draw: float32 (len(seeds), *shape) from N(0, 1); images (C, H, W) come in channels_last.

        ``name`` says what it is to ``record_noise`` and ``give_noise``; without one it is draw_0, draw_1, ...
        """
        name = name or f"draw_{self.draws}"
        given, record = _GIVEN.get(), _RECORD.get()
        x = self._draw(shape) if given is None else _taken(given, name, shape)
        self.draws += 1
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        if record is not None:
            if name in record:
                raise ConfigError(f"noise {name!r} is drawn twice: give each draw a name of its own")
            record[name] = x
        return x

    def _draw(self, shape: Sequence[int]) -> Tensor:
        count = math.prod(shape)
        key = _mix(self._stream + _signed(_A * self.draws))
        counter = torch.arange(1, (count + 1) // 2 + 1, dtype=torch.int64, device=self._home).mul_(_A)
        word = _mix(key[:, None] + counter)
        # float64: in float32 the halves would lose 8 bits each and r would stop at 5.9.
        radius = _shift(word, 32).double().add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = (word & 0xFFFFFFFF).double().mul_(2 * math.pi * 2.0**-32)
        pairs = torch.stack((angle.cos().mul_(radius), angle.sin_().mul_(radius)), dim=-1)
        return pairs.float().flatten(1)[:, :count].reshape(len(self), *shape).to(self.device)


def great_circle(first: Tensor, second: Tensor, s: Tensor) -> Tensor:
    """From noise ``first`` (s = 0) to ``second`` (s = 1) at constant variance: both (K, ...) or (1, ...), s (K,).

    cos(pi s / 2) first + sin(pi s / 2) second, (K, ...); both ends are exact.
    """
    angle = (math.pi / 2) * s.double().view(-1, *(1,) * (first.ndim - 1))
    cos = torch.where(angle == math.pi / 2, 0.0, angle.cos())
    return cos.to(first) * first + angle.sin().to(first) * second
