"""A data set in memory, its digest, and the order in which it is seen.

Pixels: stored q in {0, ..., 255}, seen by the methods as x = q / 127.5 - 1 in [-1, 1]; back: q = round(127.5 (x + 1)).
Order: image number p of a run is element p mod n of the permutation of epoch p div n, and that permutation depends on
(seed, epoch) alone. So the order is a pure function of the position: nothing to save, and nothing to skip on resume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trilemma.data.decode import resizing
from trilemma.errors import ConfigError, DataError, NonFiniteError
from trilemma.types import Batch, DataSpec

_MASK_32 = 0xFFFFFFFF
_LEVELS = 127.5  # uint8 steps in a unit of x


class Remote(Protocol):
    """Images that are read when they are wanted (see `stream`)."""

    def __len__(self) -> int: ...

    def read(self, index: Tensor) -> Tensor:
        """uint8 (B, C, H, W)."""
        ...

    def ahead(self, index: Tensor) -> None: ...


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory, over the map of a file, or read from afar; nobody writes into ``x``. Build one with
    ``make_dataset``, which counts the classes and takes the digest, or ``stream.streamed``."""

    name: str
    spec: DataSpec
    # Images: uint8 (N, C, H, W). Points: float32 (N, 2, 1, 1) in their own units. Of a stream, which holds more than
    # the memory does, a draw of it: what stands for the whole where scores are taken.
    x: Tensor
    # int64 of all samples, indices into class_names; None where there is at most one class.
    labels: Tensor | None
    class_names: tuple[str, ...]
    # sha256 over dtype, shape, pixels and labels, in order.
    digest: str
    split: str
    # One line: where the data is from.
    source: str
    # "path: reason" for each file that could not be used.
    skipped: tuple[str, ...] = ()
    # Points only: the true centres (K, 2) and the standard deviation around each.
    modes: Tensor | None = None
    sigma: float | None = None
    # Images: how those of other sizes were resized, in words.
    resize: str = resizing()
    # Where it is read from afar.
    stream: Remote | None = None

    def __len__(self) -> int:
        """The number of samples."""
        return int(self.x.shape[0]) if self.stream is None else len(self.stream)

    def batch(self, index: Tensor | Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """The samples at ``index`` (B,): float32 (B, C, H, W), channels_last, images in [-1, 1]; labels int64 (B,).

        Images go to ``device`` as the bytes they are stored in, and become numbers there.
        """
        chosen = torch.as_tensor(index, dtype=torch.int64)
        x = (self.x.index_select(0, chosen) if self.stream is None else self.stream.read(chosen)).to(device)
        x = to_float(x) if x.dtype == torch.uint8 else x
        labels = None if self.labels is None else self.labels.index_select(0, chosen).to(device)
        return Batch(x.contiguous(memory_format=torch.channels_last), labels)

    def ahead(self, index: Tensor) -> None:
        """Those at ``index`` (B,) will be asked for next: where they come from afar, they are sent for already."""
        if self.stream is not None:
            self.stream.ahead(index)


def make_dataset(
    name: str,
    x: Tensor,
    labels: Tensor | None = None,
    class_names: Sequence[str] = (),
    *,
    split: str,
    source: str,
    skipped: Sequence[str] = (),
    modes: Tensor | None = None,
    sigma: float | None = None,
    digest: str | None = None,
    resize: str | None = None,
) -> Dataset:
    """A ``Dataset`` of images uint8 (N, C, H, W) or points float32 (N, 2, 1, 1). One class is no class: no labels.

    ``digest``: that of the content, where it is known already. ``resize``: how images were resized, if not as usual.

    Raises:
        DataError: nothing in it.
    """
    if x.shape[0] == 0:
        raise DataError(f"{source}: no samples in it; choose another set or split")
    if len(class_names) < 2:
        labels, class_names = None, ()
    channels, height, width = x.shape[1:]
    kind: Literal["images", "points"] = "images" if x.dtype == torch.uint8 else "points"
    return Dataset(
        name=name,
        spec=DataSpec(kind, channels, height, width, len(class_names)),
        x=x,
        labels=labels,
        class_names=tuple(class_names),
        digest=content_digest(x, labels) if digest is None else digest,
        split=split,
        source=source,
        skipped=tuple(skipped),
        modes=modes,
        sigma=sigma,
        resize=resizing() if resize is None else resize,
    )


def content_digest(x: Tensor, labels: Tensor | None = None) -> str:
    """sha256, in hexadecimal, over dtype, shape, values and labels. One pixel, one label or the order changes it."""
    digest = hashlib.sha256()
    for part in (x, labels):
        if part is None:
            digest.update(b"none\n")
            continue
        values = part.detach().cpu().contiguous().numpy()
        # Little-endian whatever the machine: the same data has the same digest everywhere.
        values = values.astype(values.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{values.dtype.name} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def to_float(x: Tensor) -> Tensor:
    """uint8 (any shape) to float32 in [-1, 1]; a four-dimensional tensor comes back channels_last."""
    memory_format = torch.channels_last if x.ndim == 4 else torch.preserve_format
    # Divided, not multiplied by a rounded 1/127.5: 255 must give exactly 1.
    return x.to(torch.float32, memory_format=memory_format).div_(_LEVELS).sub_(1.0)


def to_uint8(x: Tensor) -> Tensor:
    """Float (any shape) in [-1, 1] to the nearest of the 256 levels; what lies outside goes to the nearest end.

    Raises:
        NonFiniteError: a value is NaN or infinite (a cast would turn it into a plausible black pixel).
    """
    x = x.detach().to(torch.float32)
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError("images with NaN or infinite values can't become pixels; look at the losses before them")
    return x.add(1.0).mul_(_LEVELS).round_().clamp_(0.0, 255.0).to(torch.uint8)


def batch_indices(n: int, batch_size: int, seed: int, position: int) -> Tensor:
    """The indices int64 (batch_size,) of images ``position`` to ``position + batch_size - 1`` of a run over n samples.

    Every epoch (n consecutive images) holds each index exactly once; a batch may reach over the end of an epoch.

    Raises:
        ConfigError: ``n`` or ``batch_size`` below 1, or ``position`` below 0.
    """
    if n < 1 or batch_size < 1 or position < 0:
        raise ConfigError(
            f"batch_indices(n={n}, batch_size={batch_size}, position={position}): n and batch_size must be at least 1, "
            "position at least 0"
        )
    parts = []
    end = position + batch_size
    while position < end:
        epoch, offset = divmod(position, n)
        stop = min(n, offset + end - position)
        parts.append(_permutation(n, seed, epoch)[offset:stop])
        position += stop - offset
    return torch.from_numpy(np.concatenate(parts))


@lru_cache(maxsize=2)  # this epoch and, at its end, the next; a cache only: the value depends on the arguments alone
def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    # RandomState: its stream is frozen, so the order survives new versions of NumPy and torch.
    words = [seed & _MASK_32, (seed >> 32) & _MASK_32, epoch & _MASK_32, (epoch >> 32) & _MASK_32]
    order: NDArray[np.int64] = np.random.RandomState(words).permutation(n).astype(np.int64)
    order.flags.writeable = False
    return order
