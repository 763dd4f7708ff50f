"""Tars behind a URL, read by ranges from a server on the loopback address, and from file:// where that is enough."""

from __future__ import annotations

import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trilemma.api import train, train_extractor
from trilemma.config import Training
from trilemma.data import batch_indices, data_place, load_data, shards, stream
from trilemma.data.load import is_at_hand
from trilemma.data.prepared import Preparation, prepare
from trilemma.errors import TrilemmaError

pytest.importorskip("aiohttp", reason="URLs need trilemma[hub]")


FEW = Training(batch_size=16, snapshots=0, probe_samples=0)


def png(value: int, size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), [value, 255 - value, 7], dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def tar(path: Path, entries: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in entries.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@dataclass
class Server:
    """Serves a folder; what it was asked for; how it misbehaves."""

    folder: Path
    url: str = ""
    ranges: bool = True
    failing: int = 0  # requests that it still answers with an error
    short: bool = False  # gives less than was asked for
    asked: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server: Server, *args: Any) -> None:
        self.state = server
        super().__init__(*args)

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET(head=True)

    def do_GET(self, head: bool = False) -> None:
        state, wanted = self.state, self.headers.get("Range", "")
        state.asked.append((self.path, wanted))
        file = state.folder / self.path.lstrip("/")
        if state.failing > 0:
            state.failing -= 1
            return self.answer(503, b"", head)
        if not file.is_file():
            return self.answer(404, b"", head)
        content = file.read_bytes()
        tag = {"ETag": f'"{file.stat().st_mtime_ns}"'}
        if not state.ranges:
            return self.answer(200, content, head, {"Accept-Ranges": "none"})
        if not wanted:
            return self.answer(200, content, head, tag)
        start, end = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
        part = content[start : end + 1]
        part = part[:-1] if state.short and len(part) < 1000 else part
        return self.answer(206, part, head, tag | {"Content-Range": f"bytes {start}-{end}/{len(content)}"})

    def answer(self, status: int, content: bytes, head: bool, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(more or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if not head:
            self.state.sent += len(content)
            self.wfile.write(content)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "_WAITS", (0.01, 0.01))
    state = Server(tmp_path / "served")
    state.folder.mkdir()
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, state))
    state.url = f"http://127.0.0.1:{served.server_address[1]}"
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield state
    served.shutdown()
    served.server_close()
    thread.join()


def filled(server: Server, count: int = 3, each: int = 40) -> str:
    """That many shards of pictures with their classes, and their URL."""
    for shard in range(count):
        entries: dict[str, bytes] = {}
        for i in range(each):
            number = shard * each + i
            entries |= {f"{number:05d}.png": png(number), f"{number:05d}.cls": b"odd" if number % 2 else b"even"}
        tar(server.folder / f"train-{shard:03d}.tar", entries)
    return f"{server.url}/train-{{000..{count - 1:03d}}}.tar"


def error(data: str, **options: Any) -> str:
    with pytest.raises(TrilemmaError) as caught:
        load_data(data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_stream_is_the_same_images_as_the_files(server: Server) -> None:
    url = filled(server)
    near = load_data(str(server.folder / "*.tar"), size=8, channels=3)
    far = load_data(url, size=8)
    assert far.stream is not None and near.stream is None
    assert (len(far), far.spec, far.class_names) == (len(near), near.spec, near.class_names)
    assert torch.equal(far.labels, near.labels)  # type: ignore[arg-type]
    for position in (0, 50, 110):
        index = batch_indices(len(far), 16, 3, position)
        assert torch.equal(far.batch(index).x, near.batch(index).x)
        assert torch.equal(far.batch(index).labels, near.batch(index).labels)  # type: ignore[arg-type]
    assert sorted(map(str, far.x.flatten(1).tolist())) == sorted(map(str, near.x.flatten(1).tolist()))


def test_only_the_parts_that_are_wanted_come(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "DRAW", 5)
    entries = {f"{i:03d}.png": png(i) + bytes(2**18) for i in range(30)}  # a quarter of a mebibyte each
    size = tar(server.folder / "a.tar", entries).stat().st_size
    data = load_data(f"{server.url}/a.tar", size=8)
    listed = server.sent
    assert len(data.x) == 5 and len(data) == 30
    assert listed < 0.5 * size  # headers by blocks of 64 KiB, and five pictures
    data.batch([7])
    assert server.sent - listed == len(entries["007.png"])


def test_what_a_shard_holds_is_listed_once(server: Server) -> None:
    url = filled(server)
    first = load_data(url, size=8)
    before = len(server.asked)
    second = load_data(url, size=8)
    # Three sizes and tags, and the pictures themselves: no headers.
    assert len(server.asked) - before == 3 + len(second)
    assert second.digest == first.digest
    tar(server.folder / "train-001.tar", {"new.png": png(9), "new.cls": b"odd"})
    assert len(third := load_data(url, size=8)) == 81
    assert third.digest != first.digest
    # A list that was damaged is made anew.
    for file in (server.folder.parent / "cache" / "trilemma" / "shards").iterdir():
        file.write_text(
            json.dumps({"key": json.loads(file.read_text())["key"], "members": [["x", -5, 10, 0, True, None]]})
        )
    assert load_data(url, size=8).digest == third.digest


def test_the_next_pictures_are_sent_for(server: Server) -> None:
    data = load_data(filled(server), size=8)
    data.ahead(torch.tensor([3, 4, 5]))
    for future in list(data.stream._coming.values()):  # type: ignore[union-attr]
        future.result()
    before = len(server.asked)
    near = load_data(str(server.folder / "*.tar"), size=8, channels=3)
    assert torch.equal(data.batch([5, 3, 4]).x, near.batch([5, 3, 4]).x)
    assert len(server.asked) == before
    data.ahead(torch.tensor([6, 7]))
    data.ahead(torch.tensor([7, 8]))  # what is not asked for any more is forgotten
    assert set(data.stream._coming) == {7, 8}  # type: ignore[union-attr]


def test_a_broken_picture_is_named_and_the_next_one_stands_for_it(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {f"{i:02d}.png": png(i) for i in range(20)} | {"07.png": b"no picture", "19.png": b""}
    tar(server.folder / "a.tar", entries)
    monkeypatch.setattr(stream, "DRAW", 1)
    data = load_data(f"{server.url}/a.tar", size=8)
    x = data.batch([7, 8, 19, 0]).x
    assert torch.equal(x[0], x[1]) and torch.equal(x[2], x[3]) and not torch.equal(x[0], x[2])
    data.batch([7])
    assert sum("07.png" in record.getMessage() for record in caplog.records) == 1
    tar(server.folder / "b.tar", {f"{i}.png": b"bad" for i in range(3)})
    assert "too many images in a row" in error(f"{server.url}/b.tar", size=8)
    classes = {f"{kind}/{i}.png": png(10 * i + ord(kind)) for i in range(4) for kind in "ab"}
    tar(server.folder / "c.tar", classes | {"a/3.png": b"no picture"})
    x = load_data(f"{server.url}/c.tar", size=8).batch(range(8)).x
    assert torch.equal(x[3], x[0]) and not torch.equal(x[3], x[4])  # of class a as well, and not b/0.png


def test_a_network_that_fails_for_a_moment_is_asked_again(server: Server) -> None:
    data = load_data(filled(server), size=8)
    near = load_data(str(server.folder / "*.tar"), size=8, channels=3)
    server.failing = 2
    assert len(load_data(f"{server.url}/train-00{{1,2}}.tar", size=8)) == 80
    server.failing = 2
    assert torch.equal(data.batch([1]).x, near.batch([1]).x)
    server.failing = 10**6
    with pytest.raises(TrilemmaError, match="can't be read .*check the network"):
        data.batch([2])
    server.failing, server.short = 0, True
    with pytest.raises(TrilemmaError, match="it has changed, or its server is broken"):
        data.batch([2])


def test_what_cannot_be_a_stream_is_one_line(server: Server, tmp_path: Path) -> None:
    url = filled(server, 1)
    assert "--size N" in error(url)
    assert "there is nothing at" in error(f"{server.url}/absent.tar", size=8)
    (server.folder / "text.tar").write_text("hello" * 999)
    assert "can't be read as a tar" in error(f"{server.url}/text.tar", size=8)
    header = tarfile.TarInfo("a.png")
    header.type, header.size = tarfile.XHDTYPE, 2**25  # more attributes of a file than any has
    with (server.folder / "long.tar").open("wb") as file:
        file.write(header.tobuf())
        file.truncate(2**25 + 2**20)
    assert "a header of more than 16 MiB" in error(f"{server.url}/long.tar", size=8)
    assert server.sent < 2**22
    assert "neither a range" in error(f"{server.url}/a-{{1}}.tar", size=8)
    assert "must rise" in error(f"{server.url}/a-{{9..1}}.tar", size=8)
    assert "more than 100,000" in error(f"{server.url}/{{0..9999}}-{{0..9999}}.tar", size=8)
    assert "braces" in error(f"{server.url}/a-{{1..2.tar", size=8)
    assert "without ::" in error(f"file://x::{url}", size=8)
    assert "no held-out images" in error(url, size=8, split="test")
    assert "no shard is called" in error(f"file://{tmp_path}/*.tar", size=8)
    server.ranges = False
    assert "must serve ranges" in error(url, size=8)


def test_braces_spell_shards_in_order() -> None:
    assert list(shards.spelled("a.tar")) == ["a.tar"]
    assert list(shards.spelled("{a,b}-{08..10}.tar")) == [f"{x}-{n}.tar" for x in "ab" for n in ("08", "09", "10")]
    assert list(shards.spelled("{9..10}")) == ["9", "10"]


def test_large_local_tars_can_be_read_where_they_are(server: Server) -> None:
    filled(server)
    url = f"file://{server.folder}/train-*.tar"
    near = load_data(str(server.folder / "*.tar"), size=8, channels=1)
    far = load_data(url, size=8, channels=1)
    assert far.stream is not None and torch.equal(far.batch([0, 99]).x, near.batch([0, 99]).x)
    assert data_place(url) == url
    assert not is_at_hand(url, "test", None)


def test_a_stream_is_prepared_like_a_folder(server: Server, tmp_path: Path) -> None:
    out = prepare(filled(server), tmp_path / "out", Preparation(size=8))
    near = load_data(str(server.folder / "*.tar"), size=8)
    assert load_data(str(out)).digest == near.digest


def test_training_on_a_stream_equals_training_on_the_files(server: Server, tmp_path: Path) -> None:
    url = filled(server)
    runs = [
        train("ddpm", data, size=8, images=64, out=tmp_path / name, recipe="ddpm-digits", training_options=FEW)
        for name, data in (("far", url), ("near", str(server.folder / "*.tar")))
    ]
    weights = [(run / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    config = json.loads((runs[0] / "config.json").read_text())
    assert config["data"]["path"] == url and config["data"]["images"] == 120
    assert "scored by 120 of its 120 images, drawn from seed 0" in config["data"]["source"]


def test_a_classifier_is_not_trained_on_a_stream(server: Server, tmp_path: Path) -> None:
    with pytest.raises(TrilemmaError, match="data prepare"):
        train_extractor(filled(server), out=tmp_path / "e.safetensors", size=16, images=100)
