"""Pickles read without running them: the opcodes are followed here, and nothing is made but plain values and records.

A pickle is a program. Python's own reader imports and calls what it names; this one imports nothing and calls nothing
of it. A class becomes a ``Record`` of its name, arguments and state. A call is accepted for the few functions of
``_MADE`` and ``_RECORDED`` alone: the first are plain containers, made here; the second are noted, and read by
``tensor``, ``array`` and ``attributes`` when they are asked for. Any other call ends the reading.

StyleGAN2-ADA's files are of this kind. An object of its persistent classes is a call of PERSISTENT on {type, version,
module_src, class_name, state}; module_src is the source of the class, which stays a text. A tensor is a call of
``torch._utils._rebuild_tensor_v2`` on a storage, and that one of STORAGE on the bytes of a file of torch's, read by
``torch.load`` with ``weights_only``.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import warnings
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from trilemma.config import shown

MOST_OPCODES = 300_000  # the snapshot of a large network has far fewer
MOST_TENSORS = 10_000  # of one network; so many modules and names may be in it
MOST_SETTINGS = 10_000  # values in settings, over all nested lists and dicts
LONGEST_NAME = 1000  # characters of a class, of a text in settings, or of a tensor with its modules
MOST_SIDES = 64  # of a tensor or an array
NEWEST_PROTOCOL = 5

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
STORAGE = "torch.storage._load_from_bytes"
_TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_DTYPE = "numpy.dtype"
_RECORDED = {PERSISTENT, STORAGE, *_TENSORS, *_PARAMETERS, *_ARRAYS, _DTYPE, "torch.device"}
_NUMBERS = re.compile(r"b1|[iu][1248]|f[248]|c8|c16")  # of numpy's types those that hold numbers alone
_KEYS = (str, bytes, int, float, type(None))  # whose hash and comparison are quick and cannot fail


class UnreadableError(Exception):
    """A pickle that is damaged, or that asks for what is not done here; the text is the reason."""


@dataclass(frozen=True, eq=False)
class Name:
    """A class or function that a pickle names. It was not looked up."""

    text: str


@dataclass(eq=False, repr=False)
class Record:
    """What would have become an object: the class or the recorded function, and all that belongs to it, as found."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[Any, Any] = field(default_factory=dict)
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)  # of a kind of dict
    elements: list[Any] = field(default_factory=list)  # of a kind of list


def read_pickle(path: Path) -> Any:
    """What a pickle holds, as plain values and records.

    Raises:
        UnreadableError: no such file, a damaged one, or one that calls a function which is not accepted.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            return _Machine(size).run(_Limited(file, size))
    except OSError as error:
        raise UnreadableError(f"it cannot be opened: {error.strerror or error}") from error


# What a record means


Storages = dict[int, Tensor]  # those that were read, by the identity of the bytes they were read from


def tensor(value: Any, storages: Storages | None = None) -> Tensor:
    """A tensor or parameter on the CPU; what ``storages`` holds is not read again, and what is read is put there.

    Raises:
        UnreadableError: anything else, or a storage that holds more than numbers.
    """
    if isinstance(value, Record) and value.name in _PARAMETERS and value.args:
        value = value.args[0]
    if not isinstance(value, Record) or value.name not in _TENSORS or len(value.args) < 4:
        raise UnreadableError(f"it has {_what(value)} where a tensor should be")
    stored, offset, size, stride = value.args[:4]
    if not (_all_counts([offset]) and _all_counts(size) and _all_counts(stride) and len(size) == len(stride)):
        raise UnreadableError("it has a tensor whose shape cannot be")
    storage = _storage(stored, {} if storages is None else storages)
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if 0 in size and math.prod(side or 1 for side in size) < 2**48:
        return storage.new_empty(size)
    if last >= len(storage):
        raise UnreadableError(f"it has a tensor that reaches beyond its storage: {shown(tuple(size))}")
    return storage.as_strided(size, stride, offset)


def _storage(record: Any, storages: Storages) -> Tensor:
    """All numbers of a storage, in one dimension."""
    if not isinstance(record, Record) or record.name != STORAGE or not record.args:
        raise UnreadableError(f"it has {_what(record)} where a storage should be")
    content = record.args[0]
    if not isinstance(content, bytes) or content[:2] == b"PK":  # the newer files are zips, which can unpack to anything
        raise UnreadableError("it has a storage that is not written as storages in pickles are")
    if id(content) in storages:  # the same bytes may be those of many tensors
        return storages[id(content)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch finds odd in a damaged file is said below
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if isinstance(found, torch.storage.TypedStorage):
            return storages.setdefault(id(content), torch.empty(0, dtype=found.dtype).set_(found._untyped_storage))
    except Exception as error:  # torch reports refused and damaged content by many types
        raise UnreadableError("it has a storage that is damaged or holds more than numbers") from error
    raise UnreadableError("it has a storage that holds something else than numbers")


def array(value: Any) -> np.ndarray[Any, Any]:
    """A numpy array of numbers. Raises UnreadableError for anything else."""
    state = value.state if isinstance(value, Record) and value.name in _ARRAYS else None
    if not isinstance(state, tuple) or len(state) != 5:
        raise UnreadableError(f"it has {_what(value)} where an array should be")
    _, shape, kind, by_columns, content = state
    dtype = _dtype(kind)
    if not _all_counts(shape) or not isinstance(content, bytes):
        raise UnreadableError("it has an array that is not written as arrays in pickles are")
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise UnreadableError(f"it has an array of shape {tuple(shape)} with {len(content)} bytes")
    try:
        return np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C").copy()
    except (OverflowError, ValueError) as error:
        raise UnreadableError(f"it has an array of shape {tuple(shape)}") from error


def _dtype(record: Any) -> np.dtype[Any]:
    code = record.args[0] if isinstance(record, Record) and record.name == _DTYPE and record.args else None
    if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
        raise UnreadableError(f"it has an array of {shown(code)}, which are not numbers")
    order = record.state[1] if isinstance(record.state, tuple) and len(record.state) > 1 else "="
    return np.dtype((order if order in ("<", ">") else "=") + code)


def attributes(value: Any) -> dict[Any, Any]:
    """The attributes of an object of a persistent or any other class. Raises UnreadableError for what is none."""
    if isinstance(value, Record) and value.name == PERSISTENT:
        meta = as_dict(value.args[0] if value.args else None)
        if meta.get("type") != "class":
            raise UnreadableError(f"it has a persistent object of type {shown(meta.get('type'))}, not 'class'")
        return as_dict(meta.get("state"))
    return as_dict(value.state if isinstance(value, Record) else value)


def as_dict(value: Any) -> dict[Any, Any]:
    """A dict or an object of a class that is a kind of dict. Raises UnreadableError for anything else."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Record) and value.name not in _RECORDED and not value.args:
        return value.items
    raise UnreadableError(f"it has {_what(value)} where a dict should be")


def plain(value: Any) -> Any:
    """Settings as plain values: kinds of dict become dicts. Raises UnreadableError for what else is in them."""
    return _plain(value, 8, _Count(MOST_SETTINGS, "settings of more than {:,} values"))


def _plain(value: Any, depth: int, count: _Count) -> Any:
    if depth == 0:
        raise UnreadableError("it has settings that are nested too deeply")
    count.add()
    if isinstance(value, list | tuple):
        return [_plain(item, depth - 1, count) for item in value]
    if isinstance(value, dict | Record):
        return {key: _plain(item, depth - 1, count) for key, item in as_dict(value).items()}
    if isinstance(value, _KEYS) and not (isinstance(value, str | bytes) and len(value) > LONGEST_NAME):
        return value
    raise UnreadableError(f"it has {_what(value)} among its settings")


class _Count:
    """Counts what is made from a file: a list that is written once may be meant in a thousand places.

    Raises:
        UnreadableError: more than ``most``; ``words`` say of what.
    """

    def __init__(self, most: int, words: str) -> None:
        self.most, self.words, self.found = most, words, 0

    def add(self, number: int = 1) -> None:
        self.found += number
        if self.found > self.most:
            raise UnreadableError(f"it has {self.words.format(self.most)}")


def module_tensors(network: Any) -> dict[str, Tensor]:
    """The state dict of a torch module: parameters and the buffers that are kept, by name.

    Raises UnreadableError for what is no module.
    """
    found: dict[str, Tensor] = {}
    storages: Storages = {}
    todo = [("", network)]
    count = _Count(MOST_TENSORS, "a network of more than {:,} parts")
    while todo:
        prefix, module = todo.pop()
        state = attributes(module)
        if not {"_parameters", "_buffers", "_modules"} <= state.keys():
            raise UnreadableError(f"it has {_what(module)} where a network should be")
        passing = state.get("_non_persistent_buffers_set", set())
        if not isinstance(passing, set | frozenset):
            raise UnreadableError(f"it has {_what(passing)} where a set of names should be")
        for kind in ("_parameters", "_buffers", "_modules"):
            for name, value in as_dict(state[kind]).items():
                count.add()  # of all, also of what is left out: modules within each other double at every level
                path = _below(prefix, name)
                if value is None or (kind == "_buffers" and name in passing):
                    continue
                if kind == "_modules":
                    todo.append((f"{path}.", value))
                else:
                    found[path] = tensor(value, storages)
    return found


def _below(prefix: str, name: Any) -> str:
    """The name of a part of a module."""
    if not isinstance(name, str) or not name.isprintable() or len(prefix) + len(name) > LONGEST_NAME:
        raise UnreadableError(f"it has a part of a network that cannot be called {shown(name)}")
    return f"{prefix}{name}"


def _what(value: Any) -> str:
    """A value in a message."""
    known = {Record: "name", Name: "text"}.get(type(value))
    return shown(type(value).__name__ if known is None else getattr(value, known))


def _all_counts(values: Any) -> bool:
    """Whether it is a short list of whole numbers from 0 up to what torch and numpy can count."""
    few = isinstance(values, list | tuple) and len(values) <= MOST_SIDES
    return few and all(type(value) is int and 0 <= value < 2**48 for value in values)


# How a pickle is read


class _Limited:
    """A file that is never asked for more than it has left: a length that lies would be reserved in memory at once."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.left = file, size

    def read(self, count: int) -> bytes:
        if count > self.left:
            raise UnreadableError("it is cut short, or no pickle")
        content = self.file.read(count)
        self.left -= len(content)
        return content

    def readline(self) -> bytes:
        content = self.file.readline()
        self.left -= len(content)
        return content


class _Machine:
    """The stack, the marks in it and the memo of a pickle of so many bytes."""

    def __init__(self, size: int) -> None:
        # What calls make is made from what was written; only what is meant over and over comes to more.
        self.made = _Count(max(size, 2**16), "calls that make more than {:,} values")
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: Any) -> Any:
        """Follow the opcodes to the end and return what is left on the stack. Raises UnreadableError."""
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if count >= MOST_OPCODES:
                    raise UnreadableError(f"it has more than {MOST_OPCODES:,} opcodes: too many for a network")
                if opcode.name == "STOP":
                    return self.stack.pop()
                self._follow(opcode.name, argument)
        except (AssertionError, LookupError, MemoryError, OverflowError, TypeError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UnreadableError(f"it is damaged or no pickle ({reason[:200]})") from error
        raise UnreadableError("it is damaged or no pickle (it has no end)")

    def _follow(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name](argument))
        elif name in _COUNTS:
            values = [self._pop() for _ in range(_COUNTS[name])]
            self.stack.append(tuple(values[::-1]))
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name == "PROTO":
            if argument > NEWEST_PROTOCOL:
                raise UnreadableError(f"it is a pickle of protocol {argument}, which is not known here")
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise UnreadableError(f"it has the opcode {name}, which refers to something outside the file")

    def _pop(self) -> Any:
        return self.stack.pop()

    def _pop_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    # One method for each kind of opcode

    def pass_over(self, _: Any) -> None:
        """FRAME: only says how much to read at once."""

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def pop(self, _: Any) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self._pop()

    def pop_mark(self, _: Any) -> None:
        self._pop_mark()

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def make_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._pop_mark()))

    def make_list(self, _: Any) -> None:
        self.stack.append(self._pop_mark())

    def make_dict(self, _: Any) -> None:
        self.stack.append(dict(_pairs(self._pop_mark())))

    def make_frozenset(self, _: Any) -> None:
        self.stack.append(frozenset(map(_key, self._pop_mark())))

    def append(self, _: Any) -> None:
        value = self._pop()
        self._extend([value])

    def appends(self, _: Any) -> None:
        self._extend(self._pop_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list | Record):
            raise UnreadableError(f"it appends to {_what(target)}")
        (target if isinstance(target, list) else target.elements).extend(values)

    def set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._update([key, value])

    def set_items(self, _: Any) -> None:
        self._update(self._pop_mark())

    def _update(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict | Record):
            raise UnreadableError(f"it puts items into {_what(target)}")
        (target if isinstance(target, dict) else target.items).update(_pairs(values))

    def add_items(self, _: Any) -> None:
        values, target = self._pop_mark(), self.stack[-1]
        if not isinstance(target, set):
            raise UnreadableError(f"it adds to {_what(target)}")
        target.update(map(_key, values))

    def build(self, _: Any) -> None:
        """A state for the object before it. What a plain container has beside its items is left out."""
        state, target = self._pop(), self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, dict | list | set):
            raise UnreadableError(f"it gives a state to {_what(target)}")

    def name(self, argument: Any) -> None:
        self.stack.append(Name(".".join(argument.split(" ", 1))))

    def stack_name(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise UnreadableError("it names a class by something else than text")
        if len(name) + len(module) > LONGEST_NAME:
            raise UnreadableError(f"it names a class that cannot be: {shown(module)}")
        self.stack.append(Name(f"{module}.{name}"))

    def instance(self, argument: Any) -> None:
        self.stack.append(Record(".".join(argument.split(" ", 1)), tuple(self._pop_mark())))

    def object_of_class(self, _: Any) -> None:
        kind, *args = self._pop_mark()
        self._new(kind, tuple(args), {})

    def new_object(self, _: Any) -> None:
        args, kind = self._pop(), self._pop()
        self._new(kind, args, {})

    def new_object_with_names(self, _: Any) -> None:
        kwargs, args, kind = self._pop(), self._pop(), self._pop()
        self._new(kind, args, kwargs)

    def _new(self, kind: Any, args: Any, kwargs: Any) -> None:
        if not (isinstance(kind, Name) and isinstance(args, tuple) and isinstance(kwargs, dict)):
            raise UnreadableError(f"it makes an object of {_what(kind)}, which is no class")
        self.made.add(len(kwargs))
        self.stack.append(Record(kind.text, args, dict(kwargs)))

    def call(self, _: Any) -> None:
        """REDUCE, where Python would call a function: only those of the two short lists pass."""
        args, function = self._pop(), self._pop()
        if not isinstance(function, Name) or not isinstance(args, tuple):
            raise UnreadableError(f"it wants to call {_what(function)}, which is no name")
        if function.text in _MADE:
            self.made.add(sum(map(_length, args)))
            self.stack.append(_MADE[function.text](args))
        elif function.text in _RECORDED:
            self.stack.append(Record(function.text, args))
        else:
            raise UnreadableError(f"it wants to call {shown(function.text)}, which is refused")


def _length(value: Any) -> int:
    """How much a call makes of an argument, which it copies."""
    content = value.items if isinstance(value, Record) else value
    return len(content) if isinstance(content, Sized) else 0


def _key(value: Any) -> Any:
    if not isinstance(value, _KEYS) or (isinstance(value, int) and abs(value) >= 2**60):  # larger ones may hash alike
        raise UnreadableError(f"it has {_what(value)} as a key")
    return value


def _pairs(values: list[Any]) -> Iterator[tuple[Any, Any]]:
    if len(values) % 2:
        raise UnreadableError("it has a key without a value")
    return ((_key(key), value) for key, value in zip(values[::2], values[1::2], strict=True))


def _ordered(args: tuple[Any, ...]) -> dict[Any, Any]:
    return {_key(key): value for key, value in (args[0] if args else [])}


def _encoded(args: tuple[Any, ...]) -> bytes:
    """How protocols before 3 write bytes."""
    text, code = args
    if not isinstance(text, str) or code not in ("latin1", "latin-1"):
        raise UnreadableError("it has bytes that are not written as pickles write them")
    return text.encode("latin-1")


def _reconstructed(args: tuple[Any, ...]) -> Record:
    """How protocols before 2 write objects: class, the plain class below it, and what that one holds."""
    kind, base, content = args
    known = {"object", "dict", "list"}
    below = base.text.rpartition(".")[2] if isinstance(base, Name) else ""
    if not isinstance(kind, Name) or below not in known:
        raise UnreadableError(f"it makes an object of {_what(kind)} upon {_what(base)}")
    items = as_dict(content) if below == "dict" else {}
    elements = content if below == "list" and isinstance(content, list) else []
    return Record(kind.text, items=dict(items), elements=list(elements))


def _scalar(args: tuple[Any, ...]) -> Any:
    kind, content = args
    dtype = _dtype(kind)
    if not isinstance(content, bytes) or len(content) != dtype.itemsize:
        raise UnreadableError("it has a number that is not written as numpy writes them")
    return np.frombuffer(content, dtype)[0].item()


def _size(args: tuple[Any, ...]) -> tuple[int, ...]:
    if len(args) != 1 or not _all_counts(args[0]):
        raise UnreadableError("it has a shape that is no list of whole numbers")
    return tuple(args[0])


def _members(args: tuple[Any, ...]) -> set[Any]:
    return set(map(_key, args[0] if args else ()))


_MADE: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _ordered,
    "torch.Size": _size,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "_codecs.encode": _encoded,
    **{f"{module}._reconstructor": _reconstructed for module in ("copyreg", "copy_reg")},
    **{f"{module}.set": _members for module in ("builtins", "__builtin__")},
    **{f"{module}.frozenset": lambda args: frozenset(_members(args)) for module in ("builtins", "__builtin__")},
}
_AS_READ = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES "
    "SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8"
).split()
_CONSTANTS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(_AS_READ, lambda argument: argument),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_DICT": lambda _: {},
    "EMPTY_SET": lambda _: set(),
}
_COUNTS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "FRAME": _Machine.pass_over,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate,
    "MEMOIZE": _Machine.memoize,
    "TUPLE": _Machine.make_tuple,
    "LIST": _Machine.make_list,
    "DICT": _Machine.make_dict,
    "FROZENSET": _Machine.make_frozenset,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "ADDITEMS": _Machine.add_items,
    "BUILD": _Machine.build,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "INST": _Machine.instance,
    "OBJ": _Machine.object_of_class,
    "NEWOBJ": _Machine.new_object,
    "NEWOBJ_EX": _Machine.new_object_with_names,
    "REDUCE": _Machine.call,
}
