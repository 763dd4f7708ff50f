"""How the CPU is set before networks run."""

from __future__ import annotations

import contextlib
import ctypes

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # as glibc's malloc.h numbers them
_KEPT = 2**30  # bytes
_MOST_BEFORE = 2**25  # that older versions of glibc take


def settle_cpu() -> None:
    """No denormal numbers: layers that start near zero make them, and a CPU crawls. Threads started later inherit this.

    And freed memory is kept for the next array of up to 1 GiB. By itself glibc gives large arrays back to the system at
    once, and the next one, mostly of the same size, comes in page by page: some 10 % of a step of the CIFAR-10 network.
    """
    torch.set_flush_denormal(True)
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        library = ctypes.CDLL(None)
        # Either setting ends glibc's own rule for the other: neither without the other.
        if any(library.mallopt(_M_MMAP_THRESHOLD, size) for size in (_KEPT, _MOST_BEFORE)):
            library.mallopt(_M_TRIM_THRESHOLD, _KEPT)
