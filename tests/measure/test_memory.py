"""The highest use of memory inside a block."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trilemma.measure import memory
from trilemma.measure.memory import RESET, SO_FAR, UNKNOWN, KeptForBackward, PeakMemory

MIB = 2**20


def test_what_is_freed_inside_still_counts() -> None:
    with PeakMemory() as peak:
        torch.ones(64 * MIB // 4)
    if peak.kind == UNKNOWN:
        pytest.skip("this system does not tell a process's memory")
    assert peak.mib is not None and peak.before_mib is not None
    if peak.kind == RESET:
        assert 60 < peak.mib - peak.before_mib < 100
        with PeakMemory() as later:
            pass
        assert later.mib is not None and later.mib < peak.mib - 50
    else:
        assert peak.mib >= peak.before_mib


def test_a_mark_that_cannot_be_reset_is_called_the_highest_so_far(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "missing" / "clear_refs")
    with PeakMemory() as peak:
        pass
    assert peak.kind == SO_FAR
    assert peak.mib is not None and peak.mib > 50  # torch alone takes more
    monkeypatch.setattr(memory, "_highest_so_far", lambda: None)
    with PeakMemory() as peak:
        pass
    assert (peak.kind, peak.mib, peak.before_mib) == (UNKNOWN, None, None)


def test_the_mark_is_read_in_mib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmPeak:\t  9999 kB\nVmHWM:\t    3072 kB\nVmRSS:\t 1 kB\n")
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "clear_refs")
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    with PeakMemory() as peak:
        pass
    assert (peak.kind, peak.mib, peak.before_mib) == (RESET, 3.0, 3.0)
    assert (tmp_path / "clear_refs").read_text() == "5"


def test_what_is_kept_for_a_backward_pass() -> None:
    weight = torch.ones(MIB // 4, requires_grad=True)  # 1 MiB
    with KeptForBackward([weight]) as kept:
        weight.sum().backward()
        assert kept.mib == 0
        x = torch.ones(MIB // 4)
        made = weight * x
        again = weight * x.view(2, -1).flatten()  # the same memory
        assert kept.mib == 1
        made = (made + again).exp()  # keeps its result
        assert kept.mib == 2
        made.sum().backward()
        del made, again
        (weight * x).sum().backward()
        assert kept.mib == 2  # the most, though less is kept now
        held = weight * torch.ones(MIB)[: MIB // 4]  # all of what is held through a part
        assert kept.mib == 4
    held = held * weight * torch.ones(2 * MIB)[: MIB // 4]
    assert kept.mib == 4  # outside nothing counts
