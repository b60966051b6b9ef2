"""Pickles are data: what may be in them is read, under every protocol, and nothing else happens."""

import collections
import copyreg
import json
import os
import pickle
import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from streamfeat.labels import LabelError
from streamfeat.labels.unpickle import loads

PLAIN = {
    "int64": np.arange(5),
    "bool row": np.array([[True, False, True]]),
    "float column": np.ones((4, 1), np.float32),
    "uint8": np.array([0, 1, 1], np.uint8),
    "big endian": np.arange(3, dtype=">i4"),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "objects": np.array([1, 0.5, None], object),
    "text array": np.array(["a", "bb"]),
    "scalar": np.float64(0.25),
    "numpy bool": np.bool_(True),
    "list": [0, 1, 70000, -5, 10**20],
    "column list": [[0], [1]],
    "nested": {"x": (1, 2.5, "text", b"bytes", None, True)},
    "ordered": collections.OrderedDict(x=[1]),
    "default": collections.defaultdict(list, q=[2.5]),
}


def same(read, written):
    if isinstance(written, np.ndarray):
        return read.shape == written.shape and read.dtype.kind == written.dtype.kind and (read == written).all()
    return read == written


@pytest.mark.parametrize("dump", [pickle.dumps, pickle._dumps], ids=["c", "python"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol(protocol, dump):
    read = loads(dump(PLAIN, protocol=protocol))
    assert list(read) == list(PLAIN)
    for name, written in PLAIN.items():
        assert same(read[name], written), name


def test_an_array_shared_by_two_videos_stays_one():
    array = np.ones(3)
    read = loads(pickle.dumps({"a": array, "b": array}))
    assert read["a"] is read["b"] and read["b"].tolist() == [1, 1, 1]


def python2(body):
    """A pickle as cPickle of Python 2 with numpy 1 wrote it: byte strings, protocol 2."""
    return b"\x80\x02}q\x01(" + body + b"u."


def test_python_2_and_numpy_1():
    array = (b"U\x0701_0014q\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04"
             b"K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02K\x01\x86cnumpy\ndtype\nq\x06U\x02i8K\x00K\x01\x87Rq\x07(K\x03U\x01<NNNJ\xff\xff\xff\xff"
             b"J\xff\xff\xff\xffK\x00tb\x89U\x10" + struct.pack("<qq", 0, 1) + b"tb")
    scalar = b"U\x01scnumpy.core.multiarray\nscalar\nh\x07U\x08" + struct.pack("<q", 7) + b"\x86R"
    read = loads(python2(array + scalar))
    assert read[b"01_0014"].tolist() == [[0], [1]] and read[b"s"] == 7


def test_python_2_text_protocol():
    """Protocol 0: an array's bytes are a quoted Python literal."""
    data = (b"(dp1\nS'a'\np2\ncnumpy.core.multiarray\n_reconstruct\np3\n(cnumpy\nndarray\np4\n"
            b"(I0\ntp5\nS'b'\np6\ntp7\nRp8\n(I1\n(I3\ntp9\ncnumpy\ndtype\np10\n(S'u1'\np11\nI0\nI1\ntp12\nRp13\n(I3\nS'|'\np14\nNNNI-1\nI-1\nI0\ntp15\nb"
            b"I00\nS'\\x00\\x01\\n'\np16\ntp17\nbs.")
    assert loads(data)[b"a"].tolist() == [0, 1, 10]


class Reduce:
    """Pickles as a call of anything with anything."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


class Custom:
    pass


@pytest.mark.parametrize(("value", "named"), [
    (Reduce(os.system, ("touch pwned",)), "system"),
    (Reduce(eval, ("1",)), "builtin.*eval"),
    (Reduce(getattr, ("x", "upper")), "builtin.*getattr"),
    (Custom(), "Custom"),
    ({1, 2}, "set"),
    (1 + 2j, "complex"),
    (np.ma.masked_array([1]), "numpy.ma"),
    (np.array([1], "datetime64[s]"), "M8"),
    (np.zeros(2, [("a", "i4")]), "V4"),
    ([].append, "getattr"),
])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_anything_else_is_refused_by_name(value, named, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LabelError, match=named):
        loads(pickle.dumps({"a": value}, protocol=protocol))
    assert not list(tmp_path.iterdir())


def test_the_class_is_named_before_it_is_imported(tmp_path):
    with pytest.raises(LabelError, match=r"streamfeat_surprise\.Class"):
        loads(b"cstreamfeat_surprise\nClass\n)R.")


def test_opcodes_that_make_objects_are_refused():
    copyreg.add_extension("os", "system", 250)
    try:
        extension = pickle.dumps(os.system, 2) if os.system.__module__ == "os" else b"\x82\xfa."
    finally:
        copyreg.remove_extension("os", "system", 250)
    for data, named in [
        (extension, "extension"),
        (b"\x82\xfa.", "extension"),
        (b"P1\n.", "persistent id"),
        (b"K\x01Q.", "persistent id"),
        (b"(ios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\no.", "os.system"),
        (b"cnumpy\nndarray\n)\x81.", "numpy.ndarray"),
        (b"cnumpy\nndarray\n)}\x92.", "numpy.ndarray"),
        (b"cnumpy\nndarray\n)R.", "numpy.ndarray"),
        (b"\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x8c\x05numpy\x8c\x0fcore.os.system_\x93.", "core.os.system_"),
        (b"K\x01K\x02\x93.", "not text"),
        (b"}cbuiltins\nlist\nb.", "state"),
        (b"}}b.", "state"),
        (b"cnumpy\ndtype\n\x8c\x02u1\x85R(K\x03cnumpy.core.multiarray\n_reconstruct\n)RNNNtb.", "unknown byte order"),
        (b"\x97.", "buffer"),
        (b"\x8f.", "set"),
        (b"}K\x01K\x01s.", "keys are names"),
        (b"cnumpy\ndtype\n\x8c\x02O8\x85R\x8c\x01a\x85R.", "no function"),
    ]:
        with pytest.raises(LabelError, match=named):
            loads(data)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_cut_and_every_changed_byte_is_an_error_or_data(protocol):
    """No other exception comes out, whatever the file is."""
    data = pickle.dumps({"a": np.arange(4), "b": [0, 1.5, True], "c": "x"}, protocol=protocol)
    for index in range(len(data)):
        for broken in (data[:index], data[:index] + bytes([data[index] ^ 0x41]) + data[index + 1 :]):
            try:
                loads(broken)
            except LabelError:
                pass


def size4(length):
    return struct.pack("<I", length)


def size8(length):
    return struct.pack("<Q", length)


INT64 = b"\x8a\x08"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
EMPTY_ARRAY = RECONSTRUCT + b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R"


def array(shape, code, raw):
    """An array with this state, whether it makes sense or not."""
    dtype = b"cnumpy\ndtype\n\x8c" + bytes([len(code)]) + code.encode() + b"\x89\x88\x87R"
    lengths = b"".join(INT64 + struct.pack("<q", length) for length in shape)
    return EMPTY_ARRAY + b"(K\x01(" + lengths + b"t" + dtype + b"\x89" + raw + b"tb"


def named(value):
    """A dict of one video whose labels are ``value``."""
    return b"}\x8c\x01v" + value + b"s."


MEGABYTE = b"B" + size4(1 << 20) + bytes(1 << 20)
GLOBALS_IN_MEMO = RECONSTRUCT + b"\x940cnumpy\nndarray\n\x940cnumpy\ndtype\n\x8c\x02O8\x85R\x940"
LEVELS = 30
LAUGHS = b"(K\x00K\x01l\x940" + b"".join(
    b"(" + (b"h" + bytes([level])) * 10 + b"l\x940" for level in range(LEVELS)) + b"h" + bytes([LEVELS])

HOSTILE = {
    # a few bytes with which the C unpickler allocates gigabytes
    "memo index": b"Nr\xff\xff\xff\x7f.",
    "memo index in text": b"Np99999999999\n.",
    "length of bytes": b"\x8e" + size8(1 << 40) + b".",
    "length of a bytearray": b"\x96" + size8(1 << 40) + b".",
    "length of text": b"\x8d" + size8(1 << 40) + b".",
    "negative length": b"T" + struct.pack("<i", -5) + b".",
    "length of a frame": b"\x80\x04\x95" + size8(1 << 60),
    "number of a gigabyte": b"\x8b" + struct.pack("<i", 1 << 30) + b".",
    "number of many digits": b"I" + b"9" * 500_000 + b"\n.",
    # arrays that claim more than they hold
    "shape without data": array((1 << 40,), "u1", b"C\x01x") + b".",
    "shape whose product overflows": array((1 << 62, 1 << 62), "u1", b"C\x01x") + b".",
    "negative shape": array((-1,), "u1", b"C\x01x") + b".",
    "no elements of a gigabyte": array((0,), "U268435456", b"C\x00") + b".",
    "an element of a gigabyte": array((1,), "S1073741824", b"C\x01x") + b".",
    "objects without data": array((1 << 40,), "O8", b"]") + b".",
    "a shape to reconstruct": RECONSTRUCT + b"cnumpy\nndarray\n" + INT64 + size8(1 << 40) + b"\x85C\x01b\x87R.",
    "an array called with a shape": b"cnumpy\nndarray\n" + INT64 + size8(1 << 40) + b"\x85R.",
    "bytes called with a number": b"cbuiltins\nbytes\n" + INT64 + size8(1 << 40) + b"\x85R.",
    "a second state": array((1,), "u1", b"C\x01x") + b"(K\x01K\x01\x85NNNtb.",
    # allowed calls, again and again
    "a megabyte encoded 20,000 times": b"c_codecs\nencode\n\x940X" + size4(1 << 20) + b"a" * (1 << 20) + b"\x940("
    + b"h\x00h\x01\x8c\x06latin1\x86R" * 20_000 + b"l.",
    "a megabyte made an array 20,000 times": b"cnumpy.core.numeric\n_frombuffer\n\x940" + MEGABYTE + b"\x940"
    b"cnumpy\ndtype\n\x8c\x02u1\x85R\x940(" + b"h\x00(h\x01h\x02J\x00\x00\x10\x00\x85\x8c\x01CtR" * 20_000 + b"l.",
    "a list made a dict 100,000 times": b"(" + b"\x8c\x01aK\x01\x86" * 100_000 + b"l\x940"
    b"ccollections\nOrderedDict\n\x940(" + b"h\x01h\x00\x85R" * 100_000 + b"l.",
    # sheer number and depth
    "six million lists": b"(" + b"]" * 6_000_000 + b"l.",
    "nested lists": b"]" * 1_000_000 + b"a" * 999_999 + b".",
    "nested tuples": b")" + b"\x85" * 1_000_000 + b".",
    "nested dicts": b"}" + b"\x8c\x01a}" * 1_000_000 + b"s" * 1_000_000 + b".",
    "a nested tuple as a key": b"})" + b"\x85" * 1_000_000 + b"Ns.",
    "nested arrays": GLOBALS_IN_MEMO + b"h\x00h\x01K\x00\x85C\x01b\x87R(K\x01K\x01\x85h\x02\x89]" * 100_000 + b"N"
    + b"atb" * 100_000 + b".",
    "marks": b"(" * 2_000_000 + b".",
    "no end": b"N0" * 2_000_000,
    # what is cheap to hold and expensive to convert
    "a list that holds itself": named(b"]\x94h\x00ah\x00a"),
    "ten lists of ten lists of ...": named(LAUGHS),
    "one long list for many videos": b"(" + b"K\x00" * 1_000_000 + b"l\x940}(" + b"".join(
        b"\x8c\x04%04dh\x00" % video for video in range(5_000)) + b"u.",
    "text for labels": named(b"\x8c\x03011"),
    "a global for labels": named(b"cnumpy\nndarray\n"),
    "a number that no integer type holds": named(b"(" + INT64[:1] + b"\x10" + b"\x7f" * 16 + b"l"),
    "not a number": named(b"(G\x7f\xf8\x00\x00\x00\x00\x00\x00K\x01l"),
}

CHILD = """
    import json, resource, sys, time
    from pathlib import Path
    from streamfeat.labels import LabelError, read_labels

    # what the process has now, and 512 MiB: six million lists, which are refused on the way, need most of it
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (512 << 20), resource.RLIM_INFINITY))
    for path in sorted(Path(sys.argv[1]).iterdir()):
        start = time.process_time()
        try:
            read_labels(path)
            outcome = "read"
        except LabelError as error:
            outcome = f"refused: {error}"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        print(json.dumps([path.stem, outcome, time.process_time() - start]), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="address space limits are those of Linux")
def test_hostile_pickles_are_refused_in_bounded_time_and_memory(tmp_path):
    for name, data in HOSTILE.items():
        (tmp_path / f"{name.replace(' ', '_')}.pickle").write_bytes(data)
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path)], timeout=120, text=True,
                           capture_output=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    outcomes = {name: (outcome, seconds) for name, outcome, seconds in map(json.loads, child.stdout.splitlines())}
    assert child.returncode == 0 and len(outcomes) == len(HOSTILE), (child.stderr, list(outcomes)[-1:])
    for name, (outcome, seconds) in outcomes.items():
        assert outcome.startswith("refused: "), (name, outcome[:200])
        assert len(outcome) < 500, name
        assert seconds < 10, (name, seconds)
