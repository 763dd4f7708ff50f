"""Where the golden numbers of the public reference implementations lie.

They are looked for in ``tests/golden`` first, then in a folder ``shared/golden`` beside the repository. A test that
needs a file found in neither is skipped with a line that names the file.
"""

from __future__ import annotations

from pathlib import Path

import pytest

_TESTS = Path(__file__).resolve().parent
FOLDERS = (_TESTS / "golden", _TESTS.parent.parent / "shared" / "golden")


def golden(name: str) -> Path:
    """The path of golden file ``name``; skips the calling test when there is none."""
    for folder in FOLDERS:
        path = folder / name
        if path.is_file():
            return path
    pytest.skip(f"golden file {name} not found in tests/golden nor in shared/golden beside the repository")
