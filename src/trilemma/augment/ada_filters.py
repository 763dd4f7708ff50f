"""Wavelet filters of the adaptive augmentation (Karras et al. 2020a, appendix B), along one axis, as small matrices.

With f the taps of Daubechies' least asymmetric wavelet of order 6 (sym6), scaled to sum 1, x reflected at both ends,

    upsampling    y[n] = 2 sum_i f[n + 5 - 2 i] x[i]
    downsampling  y[m] = sum_j f[j - 2 m - 1] u[j],     u reaching 6 samples beyond y on either side

and with h those of order 2 (sym2), unit norm, L(z) = H(z) H(1/z) / 2 and P(z) = H(-z) H(-1/z) / 2, the four bands are

    L(z) L(z^2) L(z^4),    L(z) L(z^2) P(z^4),    L(z) P(z^2),    P(z)

from low to high, symmetric about the middle of 43 taps; as L + P = 1 their sum is 1.

A filter of an axis, with its padding, is a matrix, and an image filtered along both axes is A x B^T: two matrix
products, which stay products in derivatives of any order, on a CPU as on a GPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SYM6: tuple[float, ...] = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
"""Daubechies 1992, table 6.3: unit norm, orthogonal to its own shifts by even numbers."""

SYM2: tuple[float, ...] = tuple((a + b * math.sqrt(3)) / math.sqrt(32) for a, b in ((1, -1), (3, -1), (3, 1), (1, 1)))
"""Daubechies 1988, in closed form."""

REACH = 6  # samples that a resampled image needs beyond its border: 3 of each of the two filters
BAND_REACH = 21  # taps on either side of the middle of a band filter


def resampling_taps() -> Tensor:
    """f: (12,), sum 1."""
    taps = torch.tensor(SYM6, dtype=torch.float64)
    return (taps / taps.sum()).float()


def _product(a: list[float], b: list[float], step: int) -> list[float]:
    """The taps of A(z) B(z^step)."""
    result = [0.0] * (len(a) + step * (len(b) - 1))
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            result[i + step * j] += left * right
    return result


def band_taps() -> Tensor:
    """The four bands: (4, 43), of width pi/8, pi/8, pi/4 and pi/2 from low to high, sum 1 in the middle."""
    low = [tap / 2 for tap in _product(list(SYM2), list(SYM2[::-1]), 1)]
    high = [tap * (-1) ** (k - len(low) // 2) for k, tap in enumerate(low)]
    low_2 = _product(low, low, 2)
    bands = [_product(low_2, low, 4), _product(low_2, high, 4), _product(low, high, 2), high]
    result = torch.zeros(4, 2 * BAND_REACH + 1, dtype=torch.float64)
    for row, band in zip(result, bands, strict=True):
        start = BAND_REACH - len(band) // 2
        row[start : start + len(band)] = torch.tensor(band, dtype=torch.float64)
    return result.float()


def _at(taps: Tensor, index: Tensor) -> Tensor:
    """``taps[..., index]``, zero where there is no such tap."""
    last = taps.shape[-1] - 1
    return taps[..., index.clamp(0, last)] * ((index >= 0) & (index <= last))


def _reflected(matrix: Tensor, size: int, before: int) -> Tensor:
    """(..., rows, padded) -> (..., rows, size): what acts on a signal padded by reflection, as acting on the signal."""
    position = torch.arange(-before, matrix.shape[-1] - before, device=matrix.device).abs()
    source = (size - 1) - (size - 1 - position).abs()
    return matrix.new_zeros(*matrix.shape[:-1], size).index_add_(-1, source, matrix)


def upsampling(taps: Tensor, size: int, before: int, after: int) -> Tensor:
    """Reflection by ``before`` and ``after`` < size samples, then upsampling: (2 (before + size + after), size)."""
    padded = before + size + after
    n = torch.arange(2 * padded, device=taps.device)[:, None]
    i = torch.arange(padded, device=taps.device)
    return _reflected(2 * _at(taps, n + 5 - 2 * i), size, before)


def downsampling(taps: Tensor, size: int) -> Tensor:
    """From 2 (size + 6) samples to the ``size`` in their middle."""
    m = torch.arange(size, device=taps.device)[:, None]
    j = torch.arange(2 * (size + REACH), device=taps.device)
    return _at(taps, j - 2 * m - 1)


def bands(taps: Tensor, size: int) -> Tensor:
    """Reflection by 21 < size samples, then each of the filters ``taps`` (4, 43): (4, size, size)."""
    n = torch.arange(size, device=taps.device)[:, None]
    i = torch.arange(size + 2 * BAND_REACH, device=taps.device)
    return _reflected(_at(taps, i - n), size, BAND_REACH)


def filtered(x: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """``rows`` (H', H) along the height and ``cols`` (W', W) along the width of (N, C, H, W); (N, C, H', W').

    Both may have two leading dimensions that broadcast to (N, C).
    """
    return rows @ (x @ cols.mT)
