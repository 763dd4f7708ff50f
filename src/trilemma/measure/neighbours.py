"""Nearest neighbours in bounded memory, and density and coverage, which are made of them.

Squared distances come in square tiles, |x - y|^2 = |x|^2 + |y|^2 - 2 x.y, so a matrix product does the work, and
``memory`` (bytes) bounds a tile and all that is made of it, however many rows there are. Rows of floats are compared in
float64, rows of integers (pixels) in float32.

That formula is off by about eps |x|^2, which decides only between neighbours at almost the same distance: distances
given back are computed anew from x - y, so an exact duplicate is at distance 0. Balls are widened by as much, so a
point on a sphere is inside it.

With B_j the ball around real sample r_j that reaches to its k-th nearest neighbour among the other real ones, M
generated samples g_i and N real ones (Naeem et al. 2020, section 3):

    density  = 1 / (k M) sum_i |{j: g_i in B_j}|      may exceed 1; a set against itself has (k + 1) / k
    coverage = 1 / N |{j: some g_i in B_j}|           in [0, 1]

An outlier among the real samples has a large ball, which precision counts like any other; density counts how many balls
agree, and coverage leaves balls around generated samples, which may be outliers, out of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from trilemma.errors import ConfigError

MEMORY = 2**28  # 256 MiB
COVERAGE_NEIGHBOURS = 5  # the paper's k


def kth_distances(x: Tensor, k: int, *, memory: int = MEMORY) -> Tensor:
    """Distance of each row of ``x`` (N, d) to its k-th nearest OTHER row: (N,). Raises ConfigError unless k < N."""
    return nearest_others(x, k, memory=memory)[0][:, -1]


def nearest_others(x: Tensor, k: int, *, memory: int = MEMORY) -> tuple[Tensor, Tensor]:
    """Distances, rising, and indices, both (N, k), of the k other rows nearest to each row of ``x`` (N, d)."""
    return _search(x, x, k, torch.arange(len(x), device=x.device), memory)


def nearest(x: Tensor, y: Tensor, *, own: Tensor | None = None, memory: int = MEMORY) -> tuple[Tensor, Tensor]:
    """The row of ``y`` (M, d) nearest to each of ``x`` (N, d): distances (N,) and indices (N,).

    ``own`` (N,): where rows of x are rows of y themselves, which ones; those are passed over.
    """
    distances, indices = _search(x, y, 1, own, memory)
    return distances[:, 0], indices[:, 0]


def ball_counts(x: Tensor, centres: Tensor, radii: Tensor, *, memory: int = MEMORY) -> tuple[Tensor, Tensor]:
    """How many balls hold each of ``x`` (N, d): (N,); how many of them each ball (``radii`` (M,)) holds: (M,)."""
    limit = reach(radii, centres)
    around = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    inside = torch.zeros(len(centres), dtype=torch.int64, device=x.device)
    for rows, columns, squares in tiles(x, centres, memory):
        held = squares <= limit[columns]
        around[rows] += held.sum(1)
        inside[columns] += held.sum(0)
    return around, inside


def density_coverage(
    generated: Tensor, reference: Tensor, *, k: int = COVERAGE_NEIGHBOURS, memory: int = MEMORY
) -> dict[str, float]:
    """``density`` and ``coverage`` of generated features (M, d) against real ones (N, d); ConfigError unless k < N."""
    around, inside = ball_counts(generated, reference, kth_distances(reference, k, memory=memory), memory=memory)
    return {"density": around.double().mean().item() / k, "coverage": (inside > 0).double().mean().item()}


def tiles(x: Tensor, y: Tensor, memory: int = MEMORY) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows of ``x``, rows of ``y`` and the squared distances between them, never negative, tile by tile."""
    for rows, columns, a, b in pairs(x, y, memory):
        squares = torch.addmm(b.square().sum(1)[None], a, b.T, alpha=-2.0)
        yield rows, columns, squares.add_(a.square().sum(1)[:, None]).clamp_min_(0.0)


def pairs(x: Tensor, y: Tensor, memory: int = MEMORY) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """The parts of ``x`` (N, d) and of ``y`` (M, d) that make one tile: where they are, and their numbers."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ConfigError(f"neighbours need rows (N, d) and (M, d), got {tuple(x.shape)} and {tuple(y.shape)}")
    side = tile_side(x.shape[1], _numbers(x[:1]).element_size(), memory)
    for row in range(0, len(x), side):
        a = _numbers(x[row : row + side])
        for column in range(0, len(y), side):
            b = _numbers(y[column : column + side]).to(a)
            yield slice(row, row + len(a)), slice(column, column + len(b)), a, b


def tile_side(d: int, size: int, memory: int) -> int:
    """The largest side b, at least 1, with ``size`` (3 b^2 + 5 b d) <= ``memory``.

    Three numbers an entry: the tile, and masks or sorted copies of it. Five a row: both parts, their squares, x - y.
    """
    return max(1, int((math.sqrt(25 * d * d + 12 * memory / size) - 5 * d) / 6))


def reach(radii: Tensor, centres: Tensor) -> Tensor:
    """Squared ``radii`` (M,) of balls around ``centres`` (M, d), widened by the rounding of `tiles`."""
    kind = _numbers(centres[:1]).dtype
    rounding = 8 * math.sqrt(centres.shape[1]) * torch.finfo(kind).eps
    norms = torch.cat([_numbers(part).square().sum(1) for part in torch.split(centres, 1000)])
    return (1 + rounding) * radii.to(norms).square() + rounding * norms


def _search(x: Tensor, y: Tensor, k: int, own: Tensor | None, memory: int) -> tuple[Tensor, Tensor]:
    """The k rows of ``y`` nearest to each of ``x``, its ``own`` apart. Raises ConfigError when y has too few."""
    others = len(y) - (own is not None)
    if not 1 <= k <= others:
        raise ConfigError(f"there are no {k} nearest neighbours among {others} rows: give more samples")
    found = torch.full((len(x), k), math.inf, dtype=_numbers(x[:1]).dtype, device=x.device)
    indices = torch.zeros(len(x), k, dtype=torch.int64, device=x.device)
    for rows, columns, squares in tiles(x, y, memory):
        if own is not None:
            place = own[rows] - columns.start
            here = ((place >= 0) & (place < squares.shape[1])).nonzero()[:, 0]
            squares[here, place[here]] = math.inf
        # The minimum alone is much cheaper than sorting.
        near = squares.min(1, keepdim=True) if k == 1 else squares.topk(min(k, squares.shape[1]), largest=False)
        both = torch.cat([found[rows], near[0]], 1)
        known = torch.cat([indices[rows], near[1] + columns.start], 1)
        found[rows], chosen = both.topk(k, largest=False)
        indices[rows] = known.gather(1, chosen)
    side = tile_side(x.shape[1], found.element_size(), memory)
    for row in range(0, len(x), side):
        rows = slice(row, row + side)
        for rank in range(k):
            difference = _numbers(x[rows]) - _numbers(y[indices[rows, rank]]).to(found)
            found[rows, rank] = torch.linalg.vector_norm(difference, dim=1)
    # Computed anew, two that are almost equally far may have changed places.
    found, order = found.sort(1)
    return found, indices.gather(1, order)


def _numbers(x: Tensor) -> Tensor:
    """Floats as float64, integers as float32."""
    return x.double() if x.is_floating_point() else x.float()
