"""What control groups leave of the memory, on Linux: a container or a job of a cluster may have less than the machine.

A limit holds for all groups inside a group, so that every one on the way up counts. Version 2 has one tree of groups,
version 1 a tree for memory alone. Pages of files that the kernel drops as soon as memory is short are not in use.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_OWN, _TREE = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_MIB = 2.0**20


class _Names(NamedTuple):
    """What a version calls the limit, the use, and (in memory.stat) the pages that can be dropped."""

    limit: str
    used: str
    droppable: str


_SECOND = _Names("memory.max", "memory.current", "inactive_file")
_FIRST = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def group_free_mib() -> float | None:
    """What may still be taken within all limits; None where there is none, or it is not known."""
    found = [_left(folder, names) for folder, names in _groups()]
    return min((left for left in found if left is not None), default=None)


def _groups() -> Iterator[tuple[Path, _Names]]:
    """The folders of this process's groups up to the root, which in a container is its own group."""
    with contextlib.suppress(OSError):
        for line in _OWN.read_text(encoding="utf-8", errors="replace").splitlines():
            _, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if controllers and "memory" not in controllers.split(","):
                continue
            root, names = (_TREE / "memory", _FIRST) if controllers else (_TREE, _SECOND)
            folder = root / path.strip("/")
            for place in (folder, *folder.parents):
                yield place, names
                if place == root:
                    break


def _left(folder: Path, names: _Names) -> float | None:
    """What one group leaves; None without a limit or without such files."""
    with contextlib.suppress(OSError, ValueError):
        limit = (folder / names.limit).read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        droppable = sum(int(line.split()[1]) for line in lines if line.split()[:1] == [names.droppable])
        used = int((folder / names.used).read_text(encoding="ascii"))
        return (int(limit) - max(0, used - droppable)) / _MIB
    return None
