"""Checkpoints: any tree comes back as it was, and a file is whole or not there."""

from __future__ import annotations

import errno
import json
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from trilemma.engine import checkpoint
from trilemma.engine.checkpoint import (
    checkpoints,
    flatten,
    load_checkpoint,
    newest_checkpoint,
    random_state,
    save_checkpoint,
    set_aside,
    set_random_state,
    write_tensors,
)
from trilemma.errors import RunError
from trilemma.files import clear_temporaries, write_json

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
shapes = st.lists(st.integers(0, 3), max_size=4)
tensors = st.builds(lambda shape, dtype: (torch.randn(shape) * 9).to(dtype), shapes, st.sampled_from(DTYPES))
# conftest.py flushes denormal numbers, so they are no examples.
floats = st.floats(allow_nan=False, allow_subnormal=False)
numbers = st.none() | st.booleans() | st.integers() | floats | st.text(max_size=5)
keys = st.integers(0, 3) | st.sampled_from(["0", "1", "a", "a/0", "0/a", "", "'", "__metadata__"])


def nested(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(children, max_size=3)
    return lists | lists.map(tuple) | st.dictionaries(keys, children, max_size=3)


trees = st.dictionaries(keys, st.recursive(tensors | numbers, nested, max_leaves=8), max_size=4)


def same(a: Any, b: Any) -> bool:
    """Equal in value, type and order."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, dict):
        return (
            list(a) == list(b)
            and all(type(k) is type(j) for k, j in zip(a, b, strict=True))
            and same([*a.values()], [*b.values()])
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@settings(max_examples=150)
@given(trees)
def test_any_tree_comes_back(tree: dict[Any, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert same(load_checkpoint(save_checkpoint(Path(folder), tree, 3, keep=1)), tree)


def test_tensors_that_share_memory_and_odd_layouts_come_back(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 2, 2)
    tree = {
        "tied": [weight, weight],
        "view": weight[1:3],
        "transposed": weight.transpose(0, 1),
        "channels_last": weight.contiguous(memory_format=torch.channels_last),
        "learned": torch.nn.Parameter(weight),
    }
    back = load_checkpoint(save_checkpoint(tmp_path, tree, 1, keep=1))
    assert same({**tree, "learned": weight}, back)


def test_an_optimizer_state_comes_back(tmp_path: Path) -> None:
    """Its keys are whole numbers and its betas a tuple, neither of which JSON has."""
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters(), betas=(0.5, 0.9))
    network(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    back = load_checkpoint(save_checkpoint(tmp_path, state, 1, keep=1))
    assert same(back, state)
    assert list(back["state"]) == [0, 1]


def drawn() -> tuple[list[float], ...]:
    """Of each global generator. Both kinds that keep a second normal number for the next call are asked once."""
    normal = [random.gauss(0.0, 1.0), float(np.random.standard_normal())]
    return torch.randn(5).tolist(), np.random.rand(5).tolist(), [random.random() for _ in range(5)], normal


def test_random_numbers_go_on_where_they_stopped(tmp_path: Path) -> None:
    drawn()
    path = save_checkpoint(tmp_path, {"random": random_state()}, 1, keep=1)
    expected = drawn()
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    set_random_state(load_checkpoint(path)["random"])
    assert drawn() == expected


def test_a_random_state_of_an_earlier_version_is_torchs_alone() -> None:
    state = {"cpu": torch.get_rng_state()}
    expected = torch.randn(5)
    np.random.seed(7)
    random.seed(7)
    others = np.random.RandomState(7).rand(), random.Random(7).random()
    set_random_state(state)
    assert torch.equal(torch.randn(5), expected)
    assert (np.random.rand(), random.random()) == others


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 20, 300, 4000):
        save_checkpoint(tmp_path, {"step": step}, step, keep=2)
    assert [load_checkpoint(path)["step"] for path in checkpoints(tmp_path)] == [300, 4000]
    assert len(list(tmp_path.iterdir())) == 2


def whole(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path, {"weights": torch.randn(100), "step": 7}, 7, keep=1)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.99])
def test_a_file_cut_short_is_one_line(tmp_path: Path, share: float) -> None:
    path = whole(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(RunError, match="is not a whole checkpoint") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("position", [0, 8, 20])
def test_a_damaged_header_is_one_line(tmp_path: Path, position: int) -> None:
    path = whole(tmp_path)
    content = bytearray(path.read_bytes())
    content[position : position + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(RunError, match="is not a whole checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "metadata", [None, {"structure": "{"}, {"structure": "[1]"}, {"structure": '{"dict": 3}'}, {"structure": "{}"}]
)
def test_a_file_of_another_kind_is_one_line(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors", metadata=metadata)
    with pytest.raises(RunError, match="is not a whole checkpoint"):
        load_checkpoint(tmp_path / "model.safetensors")
    with pytest.raises(RunError, match="is not a whole checkpoint"):
        load_checkpoint(tmp_path)


def test_a_write_that_fails_leaves_nothing_and_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a half-written file nor the loss of the checkpoint before."""
    before = save_checkpoint(tmp_path, {"step": 1}, 1, keep=1)

    def full(tensors: Any, path: Path, metadata: Any = None) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(RunError, match="cannot write .*step-000000002.*: No space left on device"):
        save_checkpoint(tmp_path, {"step": 2}, 2, keep=1)
    assert list(tmp_path.iterdir()) == [before]
    assert load_checkpoint(before)["step"] == 1


def test_a_file_that_grows_too_large_is_one_line(tmp_path: Path) -> None:
    """A real refusal of the system, which the safetensors library reports in its own way."""
    resource = pytest.importorskip("resource", reason="limits on file sizes are a Unix matter")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(RunError, match="cannot write .*model.safetensors"):
            write_tensors(tmp_path / "model.safetensors", {"weight": torch.zeros(2**20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        save_checkpoint(tmp_path / "file" / "checkpoints", {"step": 1}, 1, keep=1)


# Bytes that change on a disk


def state() -> dict[str, Any]:
    """A little of everything, so small that each byte of its file can be tried."""
    return {
        "weights": {"a": torch.arange(5.0), "half": torch.ones(3).to(torch.bfloat16), "none": torch.zeros(0, 2)},
        "flags": torch.tensor([True, False]),
        "step": 7,
        "rate": 2e-4,
    }


@pytest.mark.parametrize("flip", [0xFF, 0x01, 0x20])
def test_a_byte_that_changes_anywhere_is_noticed(tmp_path: Path, flip: int) -> None:
    """In the header, in the tensors and at the end: never another state, but for blanks that fill up the header."""
    path = save_checkpoint(tmp_path, state(), 7, keep=1)
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    blanks = set(range(len(content[:end].rstrip(b" ")), end))
    passed = []
    for offset in range(len(content)):
        path.write_bytes(content[:offset] + bytes([content[offset] ^ flip]) + content[offset + 1 :])
        try:
            load_checkpoint(path)
        except RunError as error:
            assert "is not a whole checkpoint" in str(error) and "\n" not in str(error)
        else:
            passed.append(offset)
    assert set(passed) <= blanks


@pytest.mark.parametrize("change", [lambda c: c + b"\0", lambda c: c[:-1], lambda c: c + c, lambda c: c[: len(c) // 2]])
def test_another_length_is_noticed(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = save_checkpoint(tmp_path, state(), 7, keep=1)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(RunError, match="is not a whole checkpoint"):
        load_checkpoint(path)


def test_tensors_that_changed_places_are_noticed(tmp_path: Path) -> None:
    """The same bytes under other names, types or shapes: what a sum over the bytes alone would miss."""
    ones = save_checkpoint(tmp_path / "a", {"x": torch.ones(2), "y": torch.zeros(2)}, 1, keep=1).read_bytes()
    for old, new in ((b'"/x"', b'"/z"'), (b'"F32"', b'"I32"'), (b'"shape":[2]', b'"shape":[2,1]')):
        assert old in ones
        changed = ones.replace(old, new, 1)
        length = len(changed) - len(ones) + int.from_bytes(ones[:8], "little")
        (tmp_path / "b").write_bytes(length.to_bytes(8, "little") + changed[8:])
        with pytest.raises(RunError, match="is not a whole checkpoint"):
            load_checkpoint(tmp_path / "b")


def old_checkpoint(folder: Path, tree: dict[str, Any], step: int) -> Path:
    """As earlier versions wrote it: without a checksum."""
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(flatten(tree, tensors))
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / f"step-{step:09d}.safetensors", {"structure": structure})
    return folder / f"step-{step:09d}.safetensors"


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    assert same(load_checkpoint(old_checkpoint(tmp_path, state(), 7)), state())


def test_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nowhere") is None
    paths = [save_checkpoint(tmp_path, {"step": step}, step, keep=9) for step in (1, 2, 3, 4)]
    paths[2].write_bytes(b"torn")
    paths[3].write_bytes(b"")
    assert newest_checkpoint(tmp_path) == (paths[1], {"step": 2}, [paths[3], paths[2]])
    assert [set_aside(path).name for path in paths[2:]] == ["step-000000003.damaged", "step-000000004.damaged"]
    assert checkpoints(tmp_path) == paths[:2]
    assert newest_checkpoint(tmp_path) == (paths[1], {"step": 2}, [])
    for path in paths[:2]:
        path.write_bytes(b"torn")
    with pytest.raises(RunError, match="no checkpoint is whole .step-000000002.*, step-000000001") as caught:
        newest_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


# What a system refuses


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("call", ["mkstemp", "fsync", "chmod", "replace"])
def test_a_refusal_is_one_line_and_the_checkpoint_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    before = save_checkpoint(tmp_path, {"step": 1}, 1, keep=1)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile if call == "mkstemp" else os, call, refuse)
    with pytest.raises(RunError, match=f"cannot write .*step-000000002.*: {os.strerror(number)}") as caught:
        save_checkpoint(tmp_path, {"step": 2}, 2, keep=1)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [before]
    found = newest_checkpoint(tmp_path)
    assert found is not None and found[0] == before


def test_a_folder_in_which_nothing_can_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first error is the one that is told; an old checkpoint that stays is one too."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    save_checkpoint(tmp_path, {"step": 1}, 1, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(RunError, match="cannot write .*step-000000001"):
            save_checkpoint(tmp_path, {"step": 2}, 2, keep=1)
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(RunError, match="cannot write .*step-000000003.*Read-only"):
            save_checkpoint(tmp_path, {"step": 3}, 3, keep=1)
    assert [load_checkpoint(path)["step"] for path in checkpoints(tmp_path)] == [1, 2]
    clear_temporaries(tmp_path)
    assert sorted(tmp_path.iterdir()) == checkpoints(tmp_path)


def test_only_our_own_temporary_files_are_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = [".diary", ".my-settings.json", ".config-tmp.json", "log-abcdefgh.tmp.jsonl", ".a-abcdefgh.tmp.d"]
    for name in mine[:-1]:
        (tmp_path / name).write_text("dear")
    (tmp_path / mine[-1]).mkdir()  # no file: it stays, and is no error
    monkeypatch.setattr(os, "replace", lambda source, target: None)  # as if killed before it
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    for name in ("config.json", "step-000000001.safetensors", "LICENSE"):
        write_json(tmp_path / name, {})
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == len(mine) + 3
    clear_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(mine)
    clear_temporaries(tmp_path / "nowhere")
