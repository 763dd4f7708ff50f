"""Small files that ask for much memory or time get neither: all are opened in one process that has little of both."""

from __future__ import annotations

import bz2
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fake_runs
import hostile
from style_pickles import network, storage_bytes, written
from tiny import SPEC, tiny_method
from trilemma.config import plain
from trilemma.engine.run import Run

pytest.importorskip("resource", reason="this system cannot limit a process's memory")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

TESTS = Path(__file__).resolve().parents[1]
MOST_SECONDS = 3.0  # of processor time, on a slow machine that is busy; a hundredth is usual
MOST_GROWN = 300.0  # MiB
MIB = 2**20


def lying_zip(name: str, packed: bytes, method: int, stated: int) -> bytes:
    """A zip whose entry says it unpacks to ``stated`` bytes, whatever ``packed`` unpacks to."""
    plain_zip = hostile.zipped({name: packed})
    size, code = stated.to_bytes(4, "little"), method.to_bytes(2, "little")
    return hostile.patched(plain_zip, name, local={8: code, 22: size}, central={10: code, 24: size})


def torch_zip() -> bytes:
    """A state dict whose numbers, all zero, are packed; torch itself never packs them."""
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(4 * MIB)}, stream)
    packed = io.BytesIO()
    with zipfile.ZipFile(stream) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in whole.namelist():
            archive.writestr(name, whole.read(name))
    return packed.getvalue()


def run_folder(path: Path, method: str = "vae", changes: dict[str, Any] | None = None) -> Path:
    """A run with the weights of the tiny network, whatever its settings say."""
    made, run = tiny_method(method), Run(path)
    run.save_weights(made.sampling_networks())
    options = plain(made.options)
    for name, value in (changes or {}).items():
        options[name] = {**options[name], **value} if isinstance(value, dict) else value
    run.write_config({"method": method, "data": {"name": "digits", "spec": plain(SPEC)}, "options": options})
    return path


def sparse(path: Path, size: int, start: bytes = b"") -> None:
    """A file of that size that takes next to no room."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


def scored(folder: Path, name: str, size: int) -> None:
    run = fake_runs.run_folder(folder / f"compare-{name}")
    fake_runs.evaluation(run, pictures=False)
    if size:
        sparse(run / name, size, b"{")


class Call:
    """Its pickle is a call of the function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


def nested() -> list[Any]:
    """Six lists, each a thousand times in the next: a few kilobytes as a pickle, and for ever to walk through."""
    inner: list[Any] = [0] * 1000
    for _ in range(5):
        inner = [inner] * 1000
    return inner


def of_one_storage(count: int) -> dict[str, Call]:
    """So many tensors under names of their own, all of one storage of a MiB."""
    storage = Call(torch.storage._load_from_bytes, storage_bytes(torch.zeros(MIB // 4).storage()))
    tensor = Call(torch._utils._rebuild_tensor_v2, storage, 0, (MIB // 4,), (1,), False, OrderedDict())
    return {f"p{i}": tensor for i in range(count)}


def pickles(folder: Path) -> None:
    """What is written once in them is meant a thousand times."""
    for name, settings in {"pickle-settings": {"a": nested()}, "pickle-text": {"a": ["x" * MIB] * 1000}}.items():
        written(folder / f"{name}.pkl", {"G_ema": network({}, _init_args=(), _init_kwargs=settings)})
    for name, parts in {"pickle-storage": of_one_storage(5000), "pickle-names": of_one_storage(90_000)}.items():
        made = network({}, _init_args=(), _init_kwargs={})
        made.state["_parameters"] = parts
        written(folder / f"{name}.pkl", {"G_ema": made})
    inner, outer = network({}), network({}, _init_args=(), _init_kwargs={})
    inner.state["_parameters"], outer.state["_modules"] = of_one_storage(5000), {"m" * MIB: inner}
    written(folder / "pickle-long-names.pkl", {"G_ema": outer})
    body = pickle.dumps(nested(), 2)[2:-1]
    text = b"X" + MIB.to_bytes(4, "little") + b"a" * MIB + b"q\x00"
    shape = b"(" + b"K\x02" * 100_000 + b"tq\x00"
    far = 2**61 - 1  # numbers that are multiples of it all hash alike
    keys = b"".join(b"\x8a\x0c" + (far * i).to_bytes(12, "little") + b"N" for i in range(1, 60_000))
    whole = {
        "shown": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(" + body + b"tRC\x00tR.",
        "encoded": text + b"c_codecs\nencode\n(h\x00X\x06\x00\x00\x00latin1tR" * 1000 + b".",
        "classes": text + b"h\x00h\x00\x93" * 1000 + b".",
        "copies": shape + b"cbuiltins\nfrozenset\n(h\x00tR" * 20_000 + b".",
        "keys": b"}(" + keys + b"u.",
    }
    for name, content in whole.items():
        (folder / f"pickle-{name}.pkl").write_bytes(b"\x80\x04" + content)


def tars_and_labels(folder: Path) -> None:
    first = hostile.member("good.png", hostile.good())
    for name, kind in {"name": tarfile.GNUTYPE_LONGNAME, "pax": tarfile.XHDTYPE}.items():
        (folder / f"data-{name}.tar").write_bytes(first + hostile.member("a.png", b"", kind, 2**33) + first)
    many = b"".join(hostile.member(f"{i}.png", b"", size=250 * MIB) for i in range(2))
    (folder / "data-stated.tar").write_bytes(first + many)
    (folder / "data-labels.folder").mkdir()
    (folder / "data-labels.folder" / "good.png").write_bytes(hostile.good())
    sparse(folder / "data-labels.folder" / "labels.csv", 2**31, b"file,label\n")
    (folder / "strip-tall.folder").mkdir()
    (folder / "strip-tall.folder" / "tall.png").write_bytes(hostile.png(1, 100_000, data=hostile.zeros(200_000)))


def pictures(folder: Path) -> None:
    wide, endless = hostile.zeros(9000 * 9001), hostile.zeros(512 * MIB)
    made = {
        "good.png": hostile.good(),
        "full.png": hostile.png(9000, 9000, data=wide),
        "stated.png": hostile.png(9000, 9000),
        "stated.bmp": hostile.bmp(9000, 9000),
        "stated.tif": hostile.tiff(9000, 9000),
        "stated.jpg": hostile.jpeg(9000, 9000),
        "stated.gif": hostile.gif(9000, 9000),
        "larger.gif": hostile.gif(65_535, 65_535),
        "larger.png": hostile.png(60_000, 60_000, data=wide),
        "canvas.webp": hostile.webp(16_383, 16_383),
    }
    for name, content in made.items():
        (folder / f"data-{name}.folder").mkdir()
        (folder / f"data-{name}.folder" / name).write_bytes(content)
    blank = bytes(32 * MIB)
    packed = {
        "packed": hostile.zipped({"a.bmp": blank}, zipfile.ZIP_DEFLATED),
        "lying": lying_zip("a.png", endless, zipfile.ZIP_DEFLATED, 1000),
        "lying-more": lying_zip("a.png", endless, zipfile.ZIP_DEFLATED, 15 * MIB),
        "lying-bzip2": lying_zip("a.png", bz2.compress(blank), zipfile.ZIP_BZIP2, 15 * MIB),
        "nested": hostile.zipped({"a.zip": hostile.zipped({"a.bmp": blank}, zipfile.ZIP_DEFLATED)}),
        "picture": hostile.zipped({"a.png": made["full.png"]}),
    }
    for name, content in packed.items():
        (folder / f"data-{name}.zip").write_bytes(content)
    head = hostile.npy(hostile.described("'|u1'", f"({32 * MIB // 64}, 8, 8, 1)"))
    many = hostile.npy(hostile.described("'|u1'", "(1000000000, 8, 8, 1)"))
    (folder / "npz-packed.npz").write_bytes(hostile.zipped({"images.npy": head + blank}, zipfile.ZIP_DEFLATED))
    (folder / "npz-stated.npz").write_bytes(hostile.zipped({"images.npy": many + bytes(100)}))
    (folder / "npz-bare.npz").write_bytes(many + bytes(100))


def others(folder: Path) -> None:
    run_folder(folder / "run-good")
    for name, (method, changes) in hostile.huge_settings().items():
        run_folder(folder / f"run-{name}", method, changes)
    shape = {"dtype": "F32", "shape": [2**29], "data_offsets": [0, 2**31]}
    weights = hostile.safetensors({"decoder.first.weight": shape})
    sparse(run_folder(folder / "run-long-weights") / "model.safetensors", len(weights) + 2**31, weights)
    sparse(run_folder(folder / "run-long-config") / "config.json", 2**31, b"{")
    for name, size in (("eval.json", 2**31), ("log.jsonl", 2**31), ("config.json", 2**31), ("nothing", 0), ("good", 0)):
        scored(folder, name, size)
    pictures_of = folder / "compare-nothing" / "eval" / "default"
    pictures_of.mkdir(parents=True)
    (pictures_of / "samples.png").write_bytes(hostile.png(9000, 9000, data=hostile.zeros(9000 * 9001)))
    (folder / "pickle-long.pkl").write_bytes(b"\x8e" + (2**40).to_bytes(8, "little") + b"a.")
    (folder / "pickle-memo.pkl").write_bytes(b"Nr\xff\xff\xff\xff0.")
    (folder / "pickle-many.pkl").write_bytes(b"]" * 3_000_000 + b".")
    sparse(folder / "pickle-sparse.pkl", 2**31)
    (folder / "state-packed.pth").write_bytes(torch_zip())
    config = {"image_size": 16, "num_channels": 1, "num_channels_dae": 8, "ch_mult": [1, 1]}
    (folder / "ddgan.json").write_text(json.dumps(config))
    sparse(folder / "recipe-long.toml", 2**31)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """What came of each, by its name."""
    folder = tmp_path_factory.mktemp("bombs")
    pictures(folder)
    others(folder)
    pickles(folder)
    tars_and_labels(folder)
    import trilemma

    source = str(Path(trilemma.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(TESTS / "bombs.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    yield {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


def test_each_is_refused_or_does_no_harm(told: dict[str, dict[str, Any]]) -> None:
    assert len(told) > 55
    harmless = {"data-good.png.folder", "run-good", "compare-good", "compare-nothing"}
    for name, line in told.items():
        assert line["outcome"] == ("opened" if name in harmless else "refused"), line
        assert "\n" not in line.get("words", "")


def test_none_takes_long(told: dict[str, dict[str, Any]]) -> None:
    slow = {name: line["seconds"] for name, line in told.items() if line["seconds"] > MOST_SECONDS}
    assert not slow


def test_none_takes_much_memory(told: dict[str, dict[str, Any]]) -> None:
    large = {name: line["grown"] for name, line in told.items() if line["grown"] > MOST_GROWN}
    assert not large


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("data-full.png.folder", "far more pixels than such a small file"),
        ("data-larger.png.folder", "too large to be safe to open"),
        ("data-packed.zip", "packed tighter than pictures can be"),
        ("data-nested.zip", "packed files inside are not opened"),
        ("npz-packed.npz", "packed tighter than pictures can be"),
        ("run-vae-channels", "more than 33,554,432 numbers"),
        ("run-vae-beyond", "1000000000 is too large for a setting"),
        ("run-long-config", "larger than 64 MiB"),
        ("compare-eval.json", "larger than 64 MiB"),
        ("pickle-many.pkl", "more than 300,000 opcodes"),
        ("pickle-settings.pkl", "more than 10,000 values"),
        ("pickle-text.pkl", "among its settings"),
        ("pickle-storage.pkl", "its generator was made without z_dim"),
        ("pickle-names.pkl", "a network of more than 10,000 parts"),
        ("pickle-long-names.pkl", "a part of a network that cannot be called"),
        ("pickle-shown.pkl", "which are not numbers"),
        ("pickle-encoded.pkl", "calls that make more than"),
        ("pickle-copies.pkl", "calls that make more than"),
        ("pickle-classes.pkl", "a class that cannot be"),
        ("pickle-keys.pkl", "as a key"),
        ("data-labels.folder", "larger than 128 MiB"),
        ("strip-tall.folder", "would become 256 x 25,600,000"),
        ("state-packed.pth", "unpacks to more than it is"),
        ("recipe-long.toml", "larger than 64 KiB"),
    ],
)
def test_it_is_said_what_is_wrong(told: dict[str, dict[str, Any]], name: str, words: str) -> None:
    assert words in told[name]["words"]
