"""Pictures that are fetched and decoded when they are wanted, and not kept: a set larger than memory and disk."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trilemma.data.dataset import Dataset
from trilemma.data.decode import read_picture, resizing
from trilemma.data.folder import Source, bombs_refused, read_entry, stack
from trilemma.data.listing import Entry, shown
from trilemma.errors import ConfigError, DataError
from trilemma.types import DataSpec

THREADS = 16  # at a time: they wait for the network far more than they decode
DRAW = 10_000  # pictures that stand for the whole set where it is scored, or watched while it is learned
_DRAW_BYTES = 2**30
_SEED = 0  # of that draw
_PIECE = 256  # pictures of it read at a time
BAD = 100  # pictures of a class in a row that can't be used: then the set can't be
_log = logging.getLogger(__name__)


def streamed(source: Source, *, size: int | None, channels: int | None) -> Dataset:
    """A data set of which only a draw is held in memory: up to 10,000 pictures or 1 GiB, from a fixed seed.

    Raises:
        ConfigError: no ``size``; what sizes there are is not known before all are read.
        DataError: nothing readable in it, or the network fails.
    """
    if size is None:
        raise ConfigError(f"{source.place} is read as it is wanted, so the images' size must be given: --size N")
    spec = DataSpec("images", channels or 3, size, size, 0)
    stream = Stream(source, size, spec.channels)
    held = min(DRAW, max(1, _DRAW_BYTES // (spec.channels * size**2)))
    draw = torch.randperm(len(stream), generator=torch.Generator().manual_seed(_SEED))[:held]
    labels, names = source.numbered(range(len(stream)))
    if len(names) < 2:
        labels, names = None, []
    x = torch.cat([stream.read(piece) for piece in torch.split(draw, _PIECE)])
    return Dataset(
        name=source.name,
        spec=replace(spec, classes=len(names)),
        x=x,
        labels=None if labels is None else torch.tensor(labels, dtype=torch.int64),
        class_names=tuple(names),
        digest=stream.digest(),
        split=source.split,
        source=f"{source.words}, scored by {len(x):,} of its {len(stream):,} images, drawn from seed {_SEED}",
        skipped=tuple(sorted([*source.skipped, *(f"{shown(path)}: {why}" for path, why in stream.skipped.items())])),
        resize=resizing(),
        stream=stream,
    )


class Stream:
    """uint8 (channels, size, size) of each entry: shorter side resized, centre cropped.

    One that can't be used is named once, in a warning, and the next of its class that can be used stands for it: so a
    picture's place never depends on another one, and the order stays a function of the position alone.
    """

    def __init__(self, source: Source, size: int, channels: int) -> None:
        self.entries: Sequence[Entry] = source.entries
        self.size = size
        self.channels = channels
        self.skipped: dict[str, str] = {}  # path: reason
        self._classes = source.classes
        self._place = source.place
        self._pool = ThreadPoolExecutor(THREADS)
        self._coming: dict[int, Future[NDArray[np.uint8]]] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: Tensor) -> Tensor:
        """uint8 (B, C, H, W) of those at ``index`` (B,). Raises DataError: the network fails, or too many are bad."""
        with bombs_refused():
            self._send_for(index)
            futures = [self._coming[i] for i in index.tolist()]
            self._coming = {}
            return torch.from_numpy(stack([future.result() for future in futures], self.channels))

    def ahead(self, index: Tensor) -> None:
        """Begin to fetch those at ``index``, which will be asked for next, and forget what was begun in vain."""
        self._send_for(index)

    def _send_for(self, index: Tensor) -> None:
        wanted = dict.fromkeys(index.tolist())
        for i in self._coming.keys() - wanted.keys():
            self._coming[i].cancel()
        self._coming = {i: self._coming.get(i) or self._pool.submit(self._picture, i) for i in wanted}

    def digest(self) -> str:
        """sha256 over what tells each picture (its path, size, time and the stamp of its shard), and what is made of
        it: the pictures themselves are too many to be read for this alone."""
        digest = hashlib.sha256(json.dumps([self.channels, self.size]).encode())
        for i, entry in enumerate(self.entries):
            digest.update(json.dumps([entry.path, entry.stamp, self._class(i)]).encode())
        return digest.hexdigest()

    def _class(self, i: int) -> str | None:
        return None if self._classes is None else self._classes[i]

    def _picture(self, i: int) -> NDArray[np.uint8]:
        n, words = len(self.entries), ""
        others = (j % n for j in range(i + 1, i + n) if self._class(j % n) == self._class(i))
        for j in itertools.chain([i], itertools.islice(others, BAD - 1)):
            entry = self.entries[j]
            picture = read_entry(entry, read_picture, size=self.size, channels=self.channels, expected=None)
            if not isinstance(picture, str):
                assert picture.pixels is not None  # no size was expected, so none was refused
                return picture.pixels
            words = f"{shown(entry.path)} ({picture})"
            if entry.path not in self.skipped:
                self.skipped[entry.path] = picture
                _log.warning("passed over %s: the next one stands for it", words)
        raise DataError(f"too many images in a row in {self._place} can't be used, the last {words}")
