"""Limits of control groups: the least that any on the way up leaves, in both versions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trilemma.measure import groups, memory
from trilemma.measure.groups import group_free_mib

MIB = 2**20


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty tree, and a process in ``/cluster/job``."""
    (tmp_path / "own").write_text("0::/cluster/job\n")
    monkeypatch.setattr(groups, "_OWN", tmp_path / "own")
    monkeypatch.setattr(groups, "_TREE", tmp_path / "tree")
    return tmp_path / "tree"


def group(folder: Path, limit: int | str, used: int, droppable: int, first: bool = False) -> None:
    """One group's files, in MiB."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (
        ("limit_in_bytes", "usage_in_bytes", "total_inactive_file") if first else ("max", "current", "inactive_file")
    )
    (folder / f"memory.{names[0]}").write_text(f"{limit if isinstance(limit, str) else limit * MIB}\n")
    (folder / f"memory.{names[1]}").write_text(f"{used * MIB}\n")
    (folder / "memory.stat").write_text(f"anon 7\n{names[2]} {droppable * MIB}\nslab 9\n")


def test_the_tightest_limit_on_the_way_up_counts(tree: Path) -> None:
    assert group_free_mib() is None
    group(tree / "cluster" / "job", "max", 50, 0)
    assert group_free_mib() is None
    group(tree / "cluster", 1000, 700, 100)
    assert group_free_mib() == 400
    group(tree / "cluster" / "job", 200, 50, 10)
    assert group_free_mib() == 160
    group(tree / "other", 10, 10, 0)
    assert group_free_mib() == 160


def test_a_container_sees_its_own_group_as_the_root(tree: Path) -> None:
    group(tree, 300, 100, 50)
    assert group_free_mib() == 250


def test_the_first_version_has_a_tree_for_memory(tree: Path) -> None:
    (tree.parent / "own").write_text("5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n")
    group(tree / "memory" / "job", 500, 100, 20, first=True)
    group(tree / "memory", str(2**63 - 4096), 100, 20, first=True)
    assert group_free_mib() == 420


def test_a_damaged_file_is_no_limit(tree: Path) -> None:
    group(tree / "cluster" / "job", "many", 50, 0)
    (tree.parent / "own").write_text("0::/cluster/job\nnonsense\n")
    assert group_free_mib() is None


def test_what_is_free_is_within_the_limits(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree.parent / "meminfo").write_text(f"MemTotal: {2048 * 1024} kB\nMemAvailable: {1024 * 1024} kB\n")
    monkeypatch.setattr(memory, "_MEMORY", tree.parent / "meminfo")
    assert memory.free_mib(torch.device("cpu")) == 1024
    group(tree / "cluster" / "job", 300, 100, 0)
    assert memory.free_mib(torch.device("cpu")) == 200
    monkeypatch.setattr(memory, "_MEMORY", tree.parent / "none")
    assert memory.free_mib(torch.device("cpu")) == 200
