"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from trilemma.errors import RunError

_TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}\.tmp(\.\w+)?")
LARGEST_TEXT = 64 * 2**20  # bytes
DEEPEST_JSON = 100  # objects and lists within each other
CALM_PIXELS = 2**24  # a picture of no more may be as small a file as it likes
PIXELS_A_BYTE = 100  # a larger one of more is blank but for a few strokes, whatever its format


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Path:
    """Call ``write`` with a temporary path in the same folder, then rename it to ``path``.

    Raises:
        RunError: the disk is full, the folder cannot be written, ...; nothing is left behind.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=f".tmp{path.suffix}")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # where nothing can be deleted either, the first error counts
                temporary.unlink(missing_ok=True)
    return path


def clear_temporaries(folder: Path) -> None:
    """Delete what ``write_atomically`` left in a folder when its process was killed: only where none writes now."""
    with contextlib.suppress(OSError):  # no such folder, or not one to read
        for path in [path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name)]:
            with contextlib.suppress(OSError):
                path.unlink()


def cannot_write(path: Path, error: OSError) -> RunError:
    """The one-line error for a file that could not be written."""
    reason = error.strerror or error
    return RunError(f"cannot write {path}: {reason}: free some space or choose another folder with --out")


def write_json(path: Path, value: Any) -> Path:
    """JSON with sorted structure kept, two-space indent, no NaN (non-finite numbers become null)."""
    text = json.dumps(finite(value), indent=2, allow_nan=False) + "\n"
    return write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def finite(value: Any) -> Any:
    """The same plain value with NaN and infinities replaced by None, which JSON can say."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_json(path: Path) -> Any:
    """Raises RunError when the file is missing, too large or not JSON."""
    try:
        return parse_json(read_text(path))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON ({error}): is it damaged? restore it or train again") from error


def read_text(path: Path, errors: str = "strict") -> str:
    """A file of UTF-8 text; ``errors`` as in ``bytes.decode``.

    Raises:
        OSError: it cannot be read, or is larger than 64 MiB, which no file of words and numbers here is.
        UnicodeDecodeError: it is not text, where ``errors`` is "strict".
    """
    if path.stat().st_size > LARGEST_TEXT:
        raise OSError(errno.EFBIG, f"larger than {LARGEST_TEXT // 2**20} MiB")
    return path.read_text(encoding="utf-8", errors=errors)


def parse_json(text: str) -> Any:
    """A JSON value that can be walked through by recursion.

    Raises:
        ValueError: not JSON, a number of thousands of digits, or nested more than 100 deep.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(DEEPEST_JSON):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _items(outer)]
        if not level:
            return value
    raise ValueError("nested too deeply")


def _items(outer: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return outer.values() if isinstance(outer, dict) else outer


def is_bomb(pixels: int, file_bytes: int) -> bool:
    """Whether a picture of so many pixels is made to fill the memory: large, and next to nothing as a file."""
    return pixels > CALM_PIXELS and pixels > PIXELS_A_BYTE * file_bytes
