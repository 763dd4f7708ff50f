"""Checkpoints: any tree comes back as it was, and a file is whole or not there."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from trilemma.engine import checkpoint
from trilemma.engine.checkpoint import (
    checkpoints,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
    write_tensors,
)
from trilemma.errors import RunError

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


def test_random_numbers_go_on_where_they_stopped(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, {"random": random_state()}, 1, keep=1)
    expected = torch.randn(5)
    torch.manual_seed(99)
    set_random_state(load_checkpoint(path)["random"])
    assert torch.equal(torch.randn(5), expected)


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
