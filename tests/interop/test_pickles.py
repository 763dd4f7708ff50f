"""Pickles without running them: what is read is what was written, and nothing that a file asks for happens."""

from __future__ import annotations

import collections
import os
import pickle
import random
import struct
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from style_pickles import network, storage_bytes, written
from trilemma.interop import pickles
from trilemma.interop.pickles import Record, UnreadableError, array, attributes, module_tensors, read_pickle, tensor

PROTOCOLS = [0, 1, 2, 3, 4, 5]


class Plain:
    """An object of a class that nobody knows."""

    def __init__(self, size: int) -> None:
        self.size = size


class Kind(dict[str, Any]):
    """A kind of dict."""


class Many(list[Any]):
    """A kind of list."""


def same(path: Path, value: Any, protocol: int) -> Any:
    path.write_bytes(pickle.dumps(value, protocol))
    return read_pickle(path)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_are_read_as_pickle_reads_them(tmp_path: Path, protocol: int) -> None:
    again = [1.5, "two"]
    value = {
        "numbers": [0, 1, -1, 255, 256, 70_000, -(2**31), 2**31, 2**80, -(2**3000), 0.1, 1e-300, float("inf")],
        "words": ["", "a", "ünï", "\x00\n\\", "x" * 300, "\U0001f600"],
        "bytes": [b"a\xff\x00", b"y" * 300, b"z" * 70_000],
        "others": [None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}],
        "sets": [{1, 2}, frozenset((3,)), set()],
        "twice": [again, again],
        1: {2.5: None, b"k": "v"},
        "ordered": OrderedDict([("b", 1), ("a", OrderedDict())]),
    }
    found = same(tmp_path / "a.pkl", value, protocol)
    assert found == value
    assert list(found["ordered"]) == ["b", "a"]
    assert found["twice"][0] is found["twice"][1]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_become_records(tmp_path: Path, protocol: int) -> None:
    found = same(tmp_path / "a.pkl", [Plain(3), Kind(a=1), Many([1, 2]), Plain], protocol)
    one, kind, many, name = found
    assert isinstance(one, Record) and one.name == f"{__name__}.Plain" and one.state == {"size": 3}
    assert isinstance(kind, Record) and kind.items == {"a": 1} and pickles.as_dict(kind) == {"a": 1}
    assert isinstance(many, Record) and many.elements == [1, 2]
    assert name.text == f"{__name__}.Plain"
    assert attributes(one) == {"size": 3}


def test_a_loop_is_read(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    found = same(tmp_path / "a.pkl", endless, 4)
    assert found[0] is found


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        torch.randn(2, 3),
        torch.randn(4, 3).T,
        torch.arange(10)[3:7:2],
        torch.randn(1).expand(5, 1),
        torch.tensor(2.5),
        torch.zeros(0, 3),
        torch.randn(3).half(),
        torch.tensor([True, False]),
        nn.Parameter(torch.randn(2, 2)),
    ],
    ids=["matrix", "transposed", "slice", "expanded", "scalar", "empty", "half", "bool", "parameter"],
)
def test_tensors_are_those_that_were_written(tmp_path: Path, protocol: int, value: torch.Tensor) -> None:
    found = tensor(same(tmp_path / "a.pkl", {"x": value}, protocol)["x"])
    assert type(found) is torch.Tensor and found.dtype == value.dtype
    assert torch.equal(found, value.detach()) and found.stride() == value.stride()


def test_a_state_dict_with_its_notes(tmp_path: Path) -> None:
    state = nn.Linear(2, 3).state_dict()  # an OrderedDict with an attribute
    found = same(tmp_path / "a.pkl", state, 2)
    assert {name: tensor(value).shape for name, value in found.items()} == {"weight": (3, 2), "bias": (3,)}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", ["u1", "i8", "<f4", ">f4", "f8", "c16", "?"])
def test_arrays_and_numbers_of_numpy(tmp_path: Path, protocol: int, kind: str) -> None:
    value = np.arange(6).reshape(2, 3).astype(kind)
    found = same(tmp_path / "a.pkl", [value, np.asfortranarray(value), value[1, 2]], protocol)
    for one in found[:2]:
        made = array(one)
        assert np.array_equal(made, value) and made.dtype == value.dtype
    assert found[2] == value[1, 2] and type(found[2]) is type(value[1, 2].item())


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    found = same(tmp_path / "a.pkl", np.array([Plain(1), None], dtype=object), 4)
    with pytest.raises(UnreadableError, match="'O8', which are not numbers"):
        array(found)
    wrong = same(tmp_path / "b.pkl", np.zeros(3), 4)
    wrong.state = (*wrong.state[:4], b"short")
    with pytest.raises(UnreadableError, match="shape .3,. with 5 bytes"):
        array(wrong)


def test_a_network_by_its_names(tmp_path: Path) -> None:
    state = {"a.b.weight": torch.randn(2, 2), "a.w_avg": torch.randn(3), "bias": torch.randn(1)}
    made = network(state)
    made.state["_buffers"]["left_out"] = torch.zeros(2)
    made.state["_buffers"]["nothing"] = None
    made.state["_non_persistent_buffers_set"] = {"left_out"}
    found = module_tensors(read_pickle(written(tmp_path / "a.pkl", made)))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert "torch_utils" not in sys.modules and "dnnlib" not in sys.modules


# What is refused


class Call:
    """Its pickle calls a function, as careless readers do."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


def evil(mark: Path) -> dict[str, tuple[Any, str]]:
    """Calls that would leave ``mark`` behind, and what is said of each."""
    code = f"import pathlib; pathlib.Path({str(mark)!r}).touch()"
    return {
        "system": (Call(os.system, f"touch {mark}"), f"'{os.name}.system'"),
        "exec": (Call(exec, code), r"'(builtins|__builtin__).exec'"),
        "eval": (Call(eval, f"__import__('os').mkdir({str(mark)!r})"), r"'(builtins|__builtin__).eval'"),
        "mkdir": (Call(os.mkdir, str(mark)), f"'{os.name}.mkdir'"),
        "open": (Call(open, str(mark), "w"), "'(_)?io.open'"),
        "load": (Call(pickle.loads, pickle.dumps(Call(os.mkdir, str(mark)))), "'_?pickle.loads'"),
        "class": (Call(Plain, 3), f"'{__name__}.Plain'"),
        "deque": (Call(collections.deque, [1]), "'collections.deque'"),
    }


EVIL = list(evil(Path("mark")))


def _with_state(value: Any) -> Plain:
    made = Plain(1)
    made.size = value
    return made


HOLDERS = {
    "alone": lambda value: value,
    "list": lambda value: [1, [value]],
    "dict": lambda value: {"a": {"b": value}},
    "ordered": lambda value: OrderedDict(a=value),
    "tuple": lambda value: ((value,), 1),
    "object's state": _with_state,
    "kind of dict": lambda value: Kind(a=value),
    "kind of list": lambda value: Many([value]),
    "call's argument": lambda value: Call(collections.OrderedDict, [["a", value]]),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("name", EVIL)
def test_a_call_is_refused_and_does_not_happen(tmp_path: Path, name: str, holder: str) -> None:
    mark = tmp_path / "it-ran"
    value, words = evil(mark)[name]
    for protocol in (0, 2, 4):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps(HOLDERS[holder](value), protocol))
        with pytest.raises(UnreadableError, match=f"it wants to call {words}, which is refused") as caught:
            read_pickle(path)
        assert "\n" not in str(caught.value) and not mark.exists()


def test_the_payloads_are_real(tmp_path: Path) -> None:
    """Python's own reader does run them: without this the tests above could not fail."""
    for name in ("system", "exec", "eval", "mkdir", "open", "load"):
        mark = tmp_path / name
        pickle.loads(pickle.dumps(evil(mark)[name][0]))
        assert mark.exists(), name


@pytest.mark.parametrize("name", ["exec", "mkdir"])
def test_a_call_inside_a_storage_is_refused_and_does_not_happen(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "it-ran"
    bad = evil(mark)[name][0]
    contents = [
        storage_bytes(bad),
        storage_bytes({"a": bad}),
        pickle.dumps(bad),
        b"PK\x03\x04" + bytes(40),
        b"",
        b"\x80",
    ]
    for i, content in enumerate(contents):
        value = Call(
            torch._utils._rebuild_tensor_v2, Call(torch.storage._load_from_bytes, content), 0, (1,), (1,), False
        )
        (tmp_path / f"{i}.pkl").write_bytes(pickle.dumps({"x": value}))
        with pytest.raises(UnreadableError, match="storage"):
            tensor(read_pickle(tmp_path / f"{i}.pkl")["x"])
    assert not mark.exists()


def test_the_payload_inside_a_storage_is_real(tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    torch.storage._load_from_bytes(storage_bytes(evil(mark)["mkdir"][0]))
    assert mark.exists()


@pytest.mark.parametrize(
    ("offset", "size", "stride", "words"),
    [
        (0, (5,), (1,), "beyond its storage"),
        (3, (2,), (1,), "beyond its storage"),
        (0, (2**62,), (1,), "cannot be"),
        (0, (2**47, 2**47), (2**47, 2**47), "beyond its storage"),
        (-1, (1,), (1,), "cannot be"),
        (0, (-1,), (1,), "cannot be"),
        (0, (1,), (-1,), "cannot be"),
        (0, (1, 1), (1,), "cannot be"),
        (0, ("1",), (1,), "cannot be"),
        (0, 1, (1,), "cannot be"),
        (None, (1,), (1,), "cannot be"),
    ],
)
def test_a_tensor_that_is_none(tmp_path: Path, offset: Any, size: Any, stride: Any, words: str) -> None:
    found = same(tmp_path / "a.pkl", torch.zeros(4), 4)
    found.args = (found.args[0], offset, size, stride)
    with pytest.raises(UnreadableError, match=words):
        tensor(found)


def test_values_that_are_no_tensor(tmp_path: Path) -> None:
    found = same(tmp_path / "a.pkl", [3, Plain(1), torch.device("cpu")], 4)
    for value in found:
        with pytest.raises(UnreadableError, match="where a tensor should be"):
            tensor(value)
        with pytest.raises(UnreadableError):
            module_tensors(value)


# Opcode by opcode, as no pickler would write them.
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "no end": b"N",
    "only an end": b".",
    "no mark": b"t.",
    "nothing below": b"0.",
    "memo that is not there": b"h\x05.",
    "huge memo": b"Nr\xff\xff\xff\xff0.",
    "unknown opcode": b"\xff.",
    "protocol of the future": b"\x80\x99N.",
    "persistent id": b"Pid\n.",
    "extension": b"\x82\x01.",
    "buffer": b"\x80\x05\x97.",
    "length beyond the file": b"\x8e" + struct.pack("<Q", 2**62) + b"a.",
    "another one": b"B\xff\xff\xff\x7fa.",
    "text beyond the file": b"\x8d" + struct.pack("<Q", 2**40) + b"a.",
    "long beyond the file": b"\x8b\xff\xff\xff\x7f.",
    "negative length": b"\x8b\xff\xff\xff\xff.",
    "a number of many digits": b"I" + b"9" * 5000 + b"\n.",
    "a list as a key": b"}]Ns.",
    "a set with a list": b"\x8f(]\x90.",
    "a deep tuple as a key": b"}" + b")" + b"\x85" * 100_000 + b"Ns.",
    "key without value": b"}(K\x01u.",
    "a call of a number": b"K\x01)R.",
    "a call without a tuple": b"ccollections\nOrderedDict\nNR.",
    "a class that is a number": b"K\x01)\x81.",
    "items into a number": b"K\x01(K\x01K\x02u.",
    "append to a number": b"K\x01Na.",
    "state for a number": b"K\x01}b.",
    "state for a class": b"cos\nsystem\n}b.",
    "name that is no text": b"K\x01K\x02\x93.",
    "not text": b"X\x02\x00\x00\x00\xff\xff.",
    "bytes that are not": b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.",
    "shape that is none": b"ctorch\nSize\n(X\x01\x00\x00\x00atR.",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_pickle_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.pkl").write_bytes(BROKEN[name])
    with pytest.raises(UnreadableError) as caught:
        read_pickle(tmp_path / "a.pkl")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_more_opcodes_than_any_network_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MOST_OPCODES", 100)
    (tmp_path / "a.pkl").write_bytes(b"N0" * 48 + b"N.")
    assert read_pickle(tmp_path / "a.pkl") is None
    (tmp_path / "a.pkl").write_bytes(b"N0" * 50 + b"N.")
    with pytest.raises(UnreadableError, match="more than 100 opcodes"):
        read_pickle(tmp_path / "a.pkl")


def test_garbled_pickles_never_end_in_another_way(tmp_path: Path) -> None:
    """Bytes changed at random: it is read or refused."""
    whole = pickle.dumps([torch.zeros(2), OrderedDict(a=1), Plain(2), np.zeros(2), {1, 2}], 4)
    draw, refused = random.Random(0), 0
    for i in range(300):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        (tmp_path / "a.pkl").write_bytes(content[: draw.randrange(len(content))] if i % 3 == 0 else content)
        try:
            for value in read_pickle(tmp_path / "a.pkl"):
                if isinstance(value, Record) and "rebuild" in value.name:
                    tensor(value)
        except UnreadableError as error:
            refused += 1
            assert "\n" not in str(error)
        except TypeError as error:  # what was read is no list any more
            assert "not iterable" in str(error)
    assert refused > 100


def test_old_opcodes_make_records_too(tmp_path: Path) -> None:
    for content in (b"(K\x01ios\nsystem\n.", b"(cos\nsystem\nK\x01o.", b"cos\nsystem\n(K\x01t\x81."):
        (tmp_path / "a.pkl").write_bytes(content)
        found = read_pickle(tmp_path / "a.pkl")
        assert isinstance(found, Record) and (found.name, found.args) == ("os.system", (1,))


def test_a_network_within_itself_over_and_over_comes_to_an_end(tmp_path: Path) -> None:
    inner = network({"w": torch.zeros(1)})
    for _ in range(40):  # each holds the one below it twice
        outer = network({})
        outer.state["_modules"] = OrderedDict(a=inner, b=inner)
        inner = outer
    content = read_pickle(written(tmp_path / "a.pkl", inner))
    with pytest.raises(UnreadableError, match="more than 10,000 parts"):
        module_tensors(content)


def test_a_storage_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tensors lie in it, by a record for each or one for all."""
    content = storage_bytes(torch.arange(6.0).storage())

    def part(offset: int) -> Call:
        storage = Call(torch.storage._load_from_bytes, content)
        return Call(torch._utils._rebuild_tensor_v2, storage, offset, (2,), (1,), False, OrderedDict())

    made = network({})
    made.state["_parameters"] = {"a": part(0), "b": part(2), "c": part(4)}
    reads: list[int] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: (reads.append(1), load(*args, **kwargs))[1])
    found = module_tensors(read_pickle(written(tmp_path / "a.pkl", made)))
    assert {name: value.tolist() for name, value in found.items()} == {"a": [0, 1], "b": [2, 3], "c": [4, 5]}
    assert len(reads) == 1


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("_buffers", {3: None}, "cannot be called 3"),
        ("_buffers", {"a\nb": None}, "cannot be called 'a.*nb'"),
        ("_modules", {"a" * 2000: None}, "cannot be called 'aaa"),
        ("_non_persistent_buffers_set", 3, "'int' where a set of names should be"),
        ("_parameters", {f"p{i}": None for i in range(10_001)}, "more than 10,000 parts"),
    ],
)
def test_a_network_with_parts_that_cannot_be(tmp_path: Path, part: str, value: Any, words: str) -> None:
    made = network({})
    made.state[part] = value
    with pytest.raises(UnreadableError, match=words):
        module_tensors(read_pickle(written(tmp_path / "a.pkl", made)))


def test_settings_are_counted_over_all_lists(tmp_path: Path) -> None:
    assert pickles.plain([[1] * 98] * 100) == [[1] * 98] * 100
    with pytest.raises(UnreadableError, match="more than 10,000 values"):
        pickles.plain([[1] * 100] * 100)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="it cannot be opened: No such file"):
        read_pickle(tmp_path / "nothing.pkl")
