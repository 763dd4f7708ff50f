"""The CPU as networks find it."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import ctypes, resource, torch
from trilemma.engine.cpu import settle_cpu

def faults():
    for _ in range(8):
        torch.ones(2**22)  # 16 MiB, given back at once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(2**22)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if hasattr(ctypes.CDLL(None), "mallopt"):
    ctypes.CDLL(None).mallopt(-3, 2**20)  # as it would be in a process that has freed nothing large yet
before, tiny = faults(), torch.full((8,), 1e-39)
settle_cpu()
print(before, faults(), float((tiny * 0.5).sum()), hasattr(ctypes.CDLL(None), "mallopt"))
"""


def test_denormal_numbers_are_flushed_and_freed_memory_is_kept() -> None:
    """In a process of its own, for both last as long as it does. A page has at least 4 KiB."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, after, product, glibc = done.stdout.split()
    assert float(product) == 0.0
    if glibc == "True":
        assert int(after) < int(before) / 4
