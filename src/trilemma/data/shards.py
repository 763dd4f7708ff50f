"""Tars that lie on a server or in a store, read by ranges of bytes: nothing of them is kept but the list of what they
hold, so they may be larger than the disk.

A URL such as ``https://host/train-{0000..0127}.tar`` is all the shards it spells; ``hf://datasets/USER/NAME/*.tar`` all
that are there. The library fsspec does the transfers; with its plug-ins it reads ``s3://`` and ``gs://`` too. What each
shard holds is read off its headers once, and kept in the cache until the shard is another one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from trilemma.data.folder import Source, make_source
from trilemma.data.listing import Member, Tar, list_members, read_members
from trilemma.errors import ConfigError, DataError, RunError
from trilemma.files import write_atomically

SCHEMES = ("http", "https", "hf", "s3", "gs", "file")
THREADS = 16  # transfers at a time: they wait far more than they work
_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each further try
_BLOCK = 2**16  # bytes a request while headers are read: the next ones of small pictures come with it
_LONGEST = 2**24  # bytes of a header
_MOST = 100_000  # shards
_FORMAT = 1  # of the lists that are kept
_TAGS = ("ETag", "etag", "blob_id", "Last-Modified", "LastModified", "mtime")  # the first there tells a new shard
_NOTHING = (401, 403, 404, 410)  # a server's answers that no further try will change
_SECONDS = {"sock_connect": 15.0, "sock_read": 60.0}  # a server that is silent for longer has failed


def is_remote(data: str) -> bool:
    """Whether ``data`` is a URL that can be read by ranges."""
    scheme, colon, _ = data.partition("://")
    return bool(colon) and scheme in SCHEMES


def open_shards(data: str, split: str, *, cache: Path, labels: Path | None = None) -> Source:
    """The pictures in the tars that the URL ``data`` means; the lists of what they hold are kept in ``cache``.

    Raises:
        ConfigError: a URL that can't be, or what reads it is not installed.
        DataError: no such shards, they are no tars, or no server that serves parts of files.
    """
    shards = _shards(data)
    with ThreadPoolExecutor(THREADS) as pool:
        tars = list(pool.map(partial(_tar, cache=cache), shards))
    name = re.sub(r"[^\w.-]+", "-", shards[0].url.rpartition("/")[2].removesuffix(".tar")).strip("-") or "shards"
    return make_source(list_members(tars), split, name=name, kind="tars at", place=data, labels=labels)


@dataclass(frozen=True)
class Shard:
    """One tar: the file system that reads it, how that calls it, and how the user does."""

    system: Any
    path: str
    url: str
    size: int
    tag: str

    def open(self) -> BinaryIO:
        """To read its headers."""
        options = {"block_size": _BLOCK, "cache_type": "readahead", "size": self.size}
        stream = _patiently(lambda: self.system.open(self.path, "rb", **options), self.url)
        return cast(BinaryIO, _Headers(stream, self.url))

    def cut(self, start: int, size: int) -> BinaryIO:
        """A part of it. Raises DataError once several tries have failed, or where the shard is another one by now."""
        content: bytes = _patiently(lambda: self.system.cat_file(self.path, start=start, end=start + size), self.url)
        if len(content) != size:
            raise DataError(f"{self.url} gave {len(content)} bytes for {size}: it has changed, or its server is broken")
        return io.BytesIO(content)


class _Headers(io.BufferedIOBase):
    """A file far away, of which no piece is read that is too long for a header, whatever one says of itself."""

    def __init__(self, stream: BinaryIO, url: str) -> None:
        self._stream = stream
        self._url = url

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _LONGEST:
            raise OSError(f"a header of more than {_LONGEST // 2**20} MiB")
        content: bytes = _patiently(lambda: self._stream.read(size), self._url)  # what fails leaves its place unmoved
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        self._stream.close()
        super().close()


def spelled(pattern: str) -> Iterator[str]:
    """What ``a-{000..127}.tar`` or ``{x,y}.tar`` spells, in order. Raises ConfigError for braces that mean nothing."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    if any(brace in part for part in parts[::2] for brace in "{}"):
        raise ConfigError(f"{pattern}: braces must hold a range such as {{000..127}}, or names with commas between")
    return map("".join, itertools.product(*(_choices(p, pattern) if i % 2 else (p,) for i, p in enumerate(parts))))


def _choices(inside: str, pattern: str) -> Sequence[str]:
    ends = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", inside)
    if not ends:
        if "," in inside:
            return inside.split(",")
        raise ConfigError(f"{pattern}: {{{inside}}} is neither a range such as {{000..127}} nor names with commas")
    low, high = ends.groups()
    if not 0 <= int(high) - int(low) < _MOST:
        raise ConfigError(f"{pattern}: {{{inside}}} must rise, by less than {_MOST:,}")
    width = len(low) if low.startswith("0") else 0
    return [f"{number:0{width}d}" for number in range(int(low), int(high) + 1)]


def _shards(data: str) -> list[Shard]:
    if "::" in data:
        raise ConfigError(f"{data}: give the URL of tars alone, without ::")
    urls = list(itertools.islice(spelled(data), _MOST + 1))
    if len(urls) > _MOST:
        raise ConfigError(f"{data} spells more than {_MOST:,} shards")
    if any(sign in data for sign in "*[") and not data.startswith("http"):  # servers of the web list nothing
        urls = sorted(found for url in urls for found in _listed(url))
    if not urls:
        raise DataError(f"no shard is called {data}; give the URL of a tar, or a pattern such as x-{{000..127}}.tar")
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(_shard, urls))


def _opened(url: str) -> tuple[Any, str]:
    """The file system for a URL, and what it calls it."""
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        options = {}
        if url.startswith("http"):
            from aiohttp import ClientTimeout

            options = {"client_kwargs": {"timeout": ClientTimeout(**_SECONDS)}}
        found: tuple[Any, str] = url_to_fs(url, **options)
    except ImportError:
        raise ConfigError(
            f"{url} needs a library that is not installed: pip install 'trilemma[hub]', or s3fs for s3://, gcsfs for "
            "gs://"
        ) from None
    return found


def _listed(pattern: str) -> list[str]:
    system, path = _opened(pattern)
    return [system.unstrip_protocol(found) for found in _patiently(lambda: system.glob(path), pattern)]


def _shard(url: str) -> Shard:
    system, path = _opened(url)
    info = _patiently(lambda: system.info(path), url)
    if info.get("type") != "file" or not info.get("size") or not info.get("partial", True):
        raise DataError(f"{url} can't be read in parts: its server must serve ranges of bytes; download it instead")
    tag = next((str(info[key]) for key in _TAGS if info.get(key)), "")
    return Shard(system, path, url, int(info["size"]), tag)


def _tar(shard: Shard, cache: Path) -> Tar:
    """What is in a shard: from the cache, or read off its headers and put there."""
    key = [_FORMAT, shard.url, shard.size, shard.tag]
    file = cache / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"
    members = _kept(file, key)
    if members is None:
        members = read_members(shard.open, shard.url)
        content = json.dumps({"key": key, "members": [astuple(member) for member in members]})
        with contextlib.suppress(RunError):  # a full disk costs the time that this would have saved
            write_atomically(file, lambda temporary: temporary.write_text(content))
    return Tar(members, shard.cut, f"{shard.tag}-{shard.size}-")


def _kept(file: Path, key: list[Any]) -> list[Member] | None:
    """None where there is none, or not for this shard, or it is damaged."""
    try:
        content = json.loads(file.read_text())
        if content["key"] != key:
            return None
        members = [Member(*values) for values in content["members"]]
        sound = all(isinstance(m.path, str) and 0 <= m.start <= m.start + m.size <= key[2] for m in members)
        return members if sound else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _patiently(work: Any, url: str) -> Any:
    """What ``work()`` gives; tried again for a while where a network fails, but not where nothing is there."""
    for wait in (*_WAITS, None):
        try:
            return work()
        except DataError:
            raise
        except Exception as error:  # the network and the libraries that speak to it raise almost anything
            # fsspec says so of any failure; what lies behind it may be a server that is busy.
            cause = error.__cause__
            if isinstance(error, FileNotFoundError) and (cause is None or getattr(cause, "status", 0) in _NOTHING):
                raise DataError(f"there is nothing at {url}; check the URL") from None
            if wait is None:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise DataError(f"{url} can't be read ({reason}); check the network") from error
            time.sleep(wait)
    raise AssertionError("unreachable")
