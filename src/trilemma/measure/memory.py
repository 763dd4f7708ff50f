"""The most memory in use while something runs, and what exactly that number is.

On a GPU it is what torch allocated there. On a CPU it is the process's resident set at its highest: weights, libraries
and Python included, so it says what a machine needs to have free. Linux can reset that mark; elsewhere only the highest
of the whole process is known.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from trilemma.measure.groups import group_free_mib

GPU = "allocated by torch on the GPU"
RESET = "resident set of the process, its highest while the batch was made"
SO_FAR = "resident set of the process, its highest so far"
UNKNOWN = "not known on this system"

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_MEMORY = Path("/proc/meminfo")
_MIB = 2.0**20


class PeakMemory:
    """``mib`` is the highest use inside a ``with`` block (None if unknown), ``before_mib`` the use at its start, and
    ``kind`` says in words what was measured."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self.kind = GPU if self._device.type == "cuda" else UNKNOWN
        self.mib: float | None = None
        self.before_mib: float | None = None

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self.before_mib = torch.cuda.memory_allocated(self._device) / _MIB
            return self
        _give_back()
        if _reset_high_water():
            self.kind, self.before_mib = RESET, _high_water()
        elif _highest_so_far() is not None:
            self.kind, self.before_mib = SO_FAR, _highest_so_far()
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.kind == GPU:
            self.mib = torch.cuda.max_memory_allocated(self._device) / _MIB
        elif self.kind == RESET:
            self.mib = _high_water()
        elif self.kind == SO_FAR:
            self.mib = _highest_so_far()


class KeptForBackward:
    """``mib`` is the most that autograd keeps at one time for backward passes inside a ``with`` block: what must be
    kept whoever computes it. Tensors that share memory count once, and ``weights`` not at all."""

    def __init__(self, weights: Iterable[Tensor] = ()) -> None:
        self._weights = {tensor.untyped_storage().data_ptr() for tensor in weights}
        self._users: Counter[int] = Counter()  # by the address of what they share
        self._bytes = self._most = 0
        self._hooks = saved_tensors_hooks(lambda tensor: _Kept(tensor, self), lambda kept: kept.tensor)

    @property
    def mib(self) -> float:
        """The most so far."""
        return self._most / _MIB

    def __enter__(self) -> KeptForBackward:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._hooks.__exit__(*error)

    def count(self, address: int, size: int, users: int) -> None:
        """One user more (1) or less (-1) of the ``size`` bytes at ``address``."""
        if address in self._weights:
            return
        before = self._users[address]
        self._users[address] += users
        if before == 0 or self._users[address] == 0:
            self._bytes += users * size
            self._most = max(self._most, self._bytes)


class _Kept:
    """A tensor that autograd keeps, for as long as it does."""

    def __init__(self, tensor: Tensor, book: KeptForBackward) -> None:
        self.tensor, self._book = tensor, book
        storage = tensor.untyped_storage()
        self._address, self._size = storage.data_ptr(), storage.nbytes()
        book.count(self._address, self._size, 1)

    def __del__(self) -> None:
        self._book.count(self._address, self._size, -1)


def free_mib(device: torch.device) -> float | None:
    """What may still be taken: of a GPU's memory, or, on Linux, of the machine's and its control groups'; None where
    that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / _MIB
    left = [_line(_MEMORY, "MemAvailable:"), group_free_mib()]
    return min((mib for mib in left if mib is not None), default=None)


def own_mib(device: torch.device) -> float | None:
    """What this process has: torch's share of a GPU's memory, or, on Linux, its resident set; None if not known."""
    return torch.cuda.memory_reserved(device) / _MIB if device.type == "cuda" else _line(_STATUS, "VmRSS:")


def _give_back() -> None:
    """Freed memory that the C library keeps for later would count as in use."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def _reset_high_water() -> bool:
    """Whether Linux has set the mark down to the present use."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return _high_water() is not None


def _high_water() -> float | None:
    """The mark in MiB."""
    return _line(_STATUS, "VmHWM:")


def _line(file: Path, name: str) -> float | None:
    """A number of the system's in MiB; None where it does not tell it."""
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
    return None


def _highest_so_far() -> float | None:
    """Of the whole process, in MiB; None on systems without ``resource``."""
    try:
        import resource
    except ImportError:
        return None
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest / (_MIB if sys.platform == "darwin" else 1024)
