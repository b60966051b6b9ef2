"""Reads pickles of plain data, and runs nothing that is in them.

A pickle is a program. ``pickle.Unpickler`` with a strict ``find_class`` keeps that program from calling what
it likes, but not from exhausting the machine: its C implementation allocates what a length field claims, and
before CPython 3.14 five bytes were enough to ask for a memo of gigabytes (python/cpython issue 115952). So
the opcodes (documented in ``pickletools``) are interpreted here: nothing is imported, nothing is called, and
every byte that is allocated is backed by a byte in the file or counted against a limit.

What comes out: ``dict``, ``list``, ``tuple``, ``str``, ``bytes`` (the text of Python 2), numbers, ``bool``,
``None`` and numpy arrays and scalars. Anything else is refused by name.
"""

from __future__ import annotations

import codecs
import math
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from streamfeat.labels.errors import LabelError, twice

#: bounds the time: all of XD-Violence as Python lists takes about 19 million operations, at half a microsecond
MAX_OPERATIONS = 40_000_000
#: bounds the memory that opcodes of one byte can ask for; (S, 1) labels as nested lists need one per frame
MAX_CONTAINERS = 4_000_000
#: bytes that calls may copy, beyond twice the length of the file
MAX_COPIED = 1 << 20
#: characters of a module, class or number in the text opcodes
MAX_LINE = 1000

_DTYPE = re.compile(r"[<>|=]?([biufSU]\d{1,4}|O\d?)")


class _Global:
    """A class or function that a pickle names. It stands for itself and cannot be called."""

    def __init__(self, module: str, name: str) -> None:
        self.path = f"{module}.{name}"


class _Dtype:
    """A numpy dtype on its way: its byte order arrives after it."""

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(code)


_MARK = object()

_NUMPY = ("numpy.core", "numpy._core")
_DATA_CLASSES = {
    *(f"{core}.multiarray.{name}" for core in _NUMPY for name in ("_reconstruct", "scalar")),
    *(f"{core}.numeric._frombuffer" for core in _NUMPY),
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",
    # never called here; the class that follows it is what a refusal should name
    "copy_reg._reconstructor",
    "collections.OrderedDict",
    "collections.defaultdict",
    *(f"{module}.{name}"
      for module in ("__builtin__", "builtins") for name in ("bytes", "list", "dict", "int", "float")),
}


def loads(data: bytes) -> Any:
    """The plain data in a pickle of protocol 0 to 5, written under Python 2 or 3 and numpy 1 or 2.

    Raises LabelError naming the first class that is not plain data, or saying how the file is broken or
    larger than any label file.
    """
    try:
        return _Reader(data).run()
    except LabelError:
        raise
    except (IndexError, TypeError, ValueError, OverflowError, struct.error):
        raise LabelError("the pickle is broken or cut off") from None


def _refuse(what: str) -> LabelError:
    return LabelError(f"the pickle holds {what}; only arrays, numbers, strings, lists and dicts are read")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.unbuilt: dict[int, np.ndarray] = {}
        self.containers = MAX_CONTAINERS
        self.copied = 2 * len(data) + MAX_COPIED

    def run(self) -> Any:
        data, opcodes = self.data, _OPCODES
        for _ in range(MAX_OPERATIONS):
            opcode = data[self.position]
            self.position += 1
            if opcode == 0x2E:  # STOP
                return self.pop()
            operation = opcodes.get(opcode)
            if operation is None:
                raise LabelError("this is not a pickle, or a broken one")
            operation(self)
        raise LabelError(f"the pickle takes more than {MAX_OPERATIONS:,} steps: more than any label file needs")

    # what the file holds

    def take(self, count: int) -> bytes:
        end = self.position + count
        if count < 0 or end > len(self.data):
            raise LabelError("the pickle is broken or cut off")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self, longest: int = MAX_LINE) -> bytes:
        end = self.data.find(b"\n", self.position, self.position + longest + 1)
        if end < 0:
            raise LabelError("the pickle is broken or cut off")
        taken = self.data[self.position : end]
        self.position = end + 1
        return taken

    # the stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_container(self, value: Any) -> None:
        self.count_container()
        self.stack.append(value)

    def count_container(self) -> None:
        self.containers -= 1
        if self.containers < 0:
            raise LabelError(f"the pickle holds more than {MAX_CONTAINERS:,} containers: more than any label file")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise LabelError("the pickle is broken or cut off")
        return value

    def pop_to_mark(self) -> list[Any]:
        stack = self.stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index] is _MARK:
                values = stack[index + 1 :]
                del stack[index:]
                return values
        raise LabelError("the pickle is broken or cut off")

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise LabelError("the pickle is broken or cut off")
        return self.stack[-1]

    def remember(self, index: int) -> None:
        self.count_container()
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise LabelError("the pickle is broken or cut off")
        self.push(self.memo[index])

    # scalars

    def push_bytes(self, form: str) -> None:
        self.push(self.take(self.number(form)))

    def push_text(self, form: str) -> None:
        self.push(_decode(self.take(self.number(form)), "utf-8", "surrogatepass"))

    def push_integer_line(self) -> None:
        line = self.line()
        if line in (b"00", b"01"):
            self.push(line == b"01")
        else:
            self.push(_integer(line.rstrip(b"L")))

    def push_float_line(self) -> None:
        try:
            self.push(float(self.line()))
        except ValueError:
            raise LabelError("the pickle is broken or cut off") from None

    def push_long(self, form: str) -> None:
        size = self.number(form)
        if size > 16:
            raise LabelError(f"the pickle holds a number of {size:,} bytes: no label is that large")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def push_quoted(self) -> None:
        quoted = self.line(len(self.data))
        if len(quoted) < 2 or quoted[:1] not in b"'\"" or quoted[:1] != quoted[-1:]:
            raise LabelError("the pickle is broken or cut off")
        try:
            self.push(codecs.escape_decode(quoted[1:-1])[0])
        except ValueError:
            raise LabelError("the pickle is broken or cut off") from None

    # containers

    def dict_from_mark(self) -> None:
        values = self.pop_to_mark()
        self.push_container({})
        self.fill(values)

    def fill(self, values: list[Any]) -> None:
        target = self.top(dict)
        if len(values) % 2:
            raise LabelError("the pickle is broken or cut off")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # numbers as keys can be chosen to collide, and nested tuples to overflow the stack when hashed
            if isinstance(key, np.str_ | np.bytes_):
                key = key.item()
            if not isinstance(key, str | bytes):
                raise LabelError(f"the pickle has a dict whose key is of type {type(key).__name__}; keys are names")
            if key in target:
                raise LabelError(twice(key))
            target[key] = value

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.fill([key, value])

    def fill_from_mark(self) -> None:
        self.fill(self.pop_to_mark())

    def append_one(self) -> None:
        value = self.pop()
        self.top(list).append(value)

    def append_from_mark(self) -> None:
        values = self.pop_to_mark()
        self.top(list).extend(values)

    def tuple_of(self, count: int) -> None:
        self.push_container(tuple([self.pop() for _ in range(count)][::-1]))

    # classes and functions: named, never imported

    def push_global(self, module: str, name: str) -> None:
        known = _Global(module, name)
        if known.path not in _DATA_CLASSES:
            raise _refuse(f"a {known.path}")
        self.push(known)

    def global_from_lines(self) -> None:
        module, name = (_decode(self.line(), "utf-8") for _ in range(2))
        self.push_global(module, name)

    def global_from_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str) and len(name) + len(module) <= MAX_LINE):
            raise _refuse("a class whose name is not text")
        self.push_global(module, name)

    def refuse_object(self) -> None:
        named = next((value for value in reversed(self.stack) if isinstance(value, _Global)), None)
        raise _refuse(f"an object of {named.path}" if named else "an object")

    def refuse_instance(self) -> None:
        module, name = (_decode(self.line(), "utf-8") for _ in range(2))
        raise _refuse(f"a {module}.{name}")

    def reduce(self) -> None:
        arguments, called = self.pop(), self.pop()
        if not isinstance(called, _Global) or not isinstance(arguments, tuple):
            raise _refuse("a call of something that is no function")
        rebuild = _REBUILD.get(called.path.rpartition(".")[2])
        if rebuild is None:
            raise _refuse(f"a call of {called.path}")
        try:
            self.push_container(rebuild(self, *arguments))
        except (TypeError, ValueError, OverflowError) as error:
            if isinstance(error, LabelError):
                raise
            raise _refuse(f"a call of {called.path} with unexpected arguments") from None

    def spend(self, size: int) -> None:
        self.copied -= size
        if self.copied < 0:
            raise LabelError("the pickle copies the same data again and again: no label file does")

    def rebuild_empty_array(self, *_: Any) -> np.ndarray:
        # its arguments are a class, a shape and a type, which the state will replace
        array = np.zeros(0, np.int8)
        self.unbuilt[id(array)] = array
        return array

    def rebuild_dtype(self, code: Any, *_: Any) -> _Dtype:
        if isinstance(code, bytes):
            code = code.decode("ascii")
        if not isinstance(code, str) or len(code) > 20 or not _DTYPE.fullmatch(code):
            raise _refuse(f"an array of type {code!r:.40}")
        return _Dtype(code)

    def rebuild_scalar(self, dtype: _Dtype, data: Any = b"") -> Any:
        return self.array_of(dtype, (), False, data)[()]

    def rebuild_from_buffer(self, data: Any, dtype: _Dtype, shape: Any, order: str) -> np.ndarray:
        return self.array_of(dtype, shape, order == "F", data)

    def rebuild_bytes(self, text: Any = "", encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise _refuse("a call of _codecs.encode with unexpected arguments")
        self.spend(len(text))
        return text.encode("latin1")

    def rebuild_dict(self, items: Any = ()) -> dict:
        if not isinstance(items, list | tuple):
            return {}  # of a defaultdict: the factory of missing values
        self.push({})
        for pair in items:
            key, value = pair
            self.spend(16)
            self.fill([key, value])
        return self.pop()

    def array_of(self, dtype: Any, shape: Any, fortran: bool, data: Any) -> np.ndarray:
        """Elements of ``data`` as an array; raises LabelError unless ``data`` holds exactly ``shape`` of them."""
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) or len(shape) > 32:
            raise _refuse("an array with a strange shape")
        if not all(isinstance(length, int) and length >= 0 for length in shape):
            raise _refuse("an array with a strange shape")
        elements = math.prod(shape)
        if elements == 0:
            return np.zeros(0, np.int8)
        if dtype.dtype.hasobject:
            if not isinstance(data, list) or len(data) != elements:
                raise _refuse("an array whose shape and data disagree")
            if any(isinstance(value, np.ndarray) for value in data):
                # numpy frees nested arrays recursively, however deep they are
                raise _refuse("an array of arrays")
            self.spend(8 * elements)
            array = np.empty(elements, object)
            for index, value in enumerate(data):
                array[index] = value
        else:
            if isinstance(data, str):
                data = data.encode("latin1")
            if not isinstance(data, bytes | bytearray) or len(data) != elements * dtype.dtype.itemsize:
                raise _refuse("an array whose shape and data disagree")
            self.spend(len(data))
            array = np.frombuffer(data, dtype.dtype)
        return array.reshape(shape, order="F" if fortran else "C")

    def build(self) -> None:
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, _Dtype):
            self.build_dtype(target, state)
        elif self.unbuilt.pop(id(target), None) is not None:
            self.build_array(target, state)
        else:
            raise _refuse(f"a state for a {getattr(target, 'path', type(target).__name__)}")

    def build_dtype(self, target: _Dtype, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise _refuse("an array with named fields")
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if not isinstance(order, str) or order not in ("<", ">", "|", "="):
            raise _refuse("an array of unknown byte order")
        target.dtype = target.dtype.newbyteorder(order)

    def build_array(self, target: np.ndarray, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _refuse("an array in an unknown form")
        _, shape, dtype, fortran, data = state
        built = self.array_of(dtype, shape, bool(fortran), data)
        # in place, because the memo may hold the array already
        raw = built.ravel("A").tolist() if built.dtype.hasobject else built.tobytes("A")
        target.__setstate__((1, built.shape, built.dtype, bool(fortran), raw))

    def refuse_kind(self, what: str) -> None:
        raise _refuse(what)


def _decode(data: bytes, encoding: str, errors: str = "strict") -> str:
    try:
        return data.decode(encoding, errors)
    except UnicodeDecodeError:
        raise LabelError("the pickle is broken or cut off") from None


def _integer(line: bytes) -> int:
    if not re.fullmatch(rb"[+-]?\d{1,40}", line):
        raise LabelError("the pickle is broken or cut off")
    return int(line)


_REBUILD: dict[str, Callable[..., Any]] = {
    "_reconstruct": _Reader.rebuild_empty_array,
    "dtype": _Reader.rebuild_dtype,
    "scalar": _Reader.rebuild_scalar,
    "_frombuffer": _Reader.rebuild_from_buffer,
    "encode": _Reader.rebuild_bytes,
    "bytes": _Reader.rebuild_bytes,
    "OrderedDict": _Reader.rebuild_dict,
    "defaultdict": _Reader.rebuild_dict,
}

_OPCODES: dict[int, Callable[[_Reader], Any]] = {
    ord(code): operation
    for code, operation in {
        "\x80": lambda reader: reader.take(1),  # PROTO
        "\x95": lambda reader: reader.take(8),  # FRAME
        "(": lambda reader: reader.push(_MARK),
        "0": lambda reader: reader.stack.pop(),
        "1": lambda reader: reader.pop_to_mark(),
        "2": lambda reader: reader.push(reader.stack[-1]),
        "p": lambda reader: reader.remember(_integer(reader.line())),
        "q": lambda reader: reader.remember(reader.number("<B")),
        "r": lambda reader: reader.remember(reader.number("<I")),
        "\x94": lambda reader: reader.remember(len(reader.memo)),
        "g": lambda reader: reader.recall(_integer(reader.line())),
        "h": lambda reader: reader.recall(reader.number("<B")),
        "j": lambda reader: reader.recall(reader.number("<I")),
        "N": lambda reader: reader.push(None),
        "\x88": lambda reader: reader.push(True),
        "\x89": lambda reader: reader.push(False),
        "I": _Reader.push_integer_line,
        "L": _Reader.push_integer_line,
        "F": _Reader.push_float_line,
        "J": lambda reader: reader.push(reader.number("<i")),
        "K": lambda reader: reader.push(reader.number("<B")),
        "M": lambda reader: reader.push(reader.number("<H")),
        "\x8a": lambda reader: reader.push_long("<B"),
        "\x8b": lambda reader: reader.push_long("<I"),
        "G": lambda reader: reader.push(reader.number(">d")),
        "S": _Reader.push_quoted,
        "T": lambda reader: reader.push_bytes("<i"),
        "U": lambda reader: reader.push_bytes("<B"),
        "B": lambda reader: reader.push_bytes("<I"),
        "C": lambda reader: reader.push_bytes("<B"),
        "\x8e": lambda reader: reader.push_bytes("<Q"),
        "\x96": lambda reader: reader.push_bytes("<Q"),
        "V": lambda reader: reader.push(_decode(reader.line(len(reader.data)), "raw-unicode-escape")),
        "X": lambda reader: reader.push_text("<I"),
        "\x8c": lambda reader: reader.push_text("<B"),
        "\x8d": lambda reader: reader.push_text("<Q"),
        "]": lambda reader: reader.push_container([]),
        "}": lambda reader: reader.push_container({}),
        ")": lambda reader: reader.push(()),
        "l": lambda reader: reader.push_container(reader.pop_to_mark()),
        "d": _Reader.dict_from_mark,
        "t": lambda reader: reader.push_container(tuple(reader.pop_to_mark())),
        "\x85": lambda reader: reader.tuple_of(1),
        "\x86": lambda reader: reader.tuple_of(2),
        "\x87": lambda reader: reader.tuple_of(3),
        "a": _Reader.append_one,
        "e": _Reader.append_from_mark,
        "s": _Reader.set_item,
        "u": _Reader.fill_from_mark,
        "c": _Reader.global_from_lines,
        "\x93": _Reader.global_from_stack,
        "R": _Reader.reduce,
        "b": _Reader.build,
        "i": _Reader.refuse_instance,
        "o": _Reader.refuse_object,
        "\x81": _Reader.refuse_object,
        "\x92": _Reader.refuse_object,
        "\x82": lambda reader: reader.refuse_kind("an object of the extension registry"),
        "\x83": lambda reader: reader.refuse_kind("an object of the extension registry"),
        "\x84": lambda reader: reader.refuse_kind("an object of the extension registry"),
        "P": lambda reader: reader.refuse_kind("a persistent id"),
        "Q": lambda reader: reader.refuse_kind("a persistent id"),
        "\x8f": lambda reader: reader.refuse_kind("a set"),
        "\x91": lambda reader: reader.refuse_kind("a frozenset"),
        "\x97": lambda reader: reader.refuse_kind("an out-of-band buffer"),
        "\x98": lambda reader: reader.refuse_kind("an out-of-band buffer"),
    }.items()
}
