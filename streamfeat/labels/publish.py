"""The published pickles, as the Fed_WSVAD and AR-Net code loads them.

``frame_label.pickle`` is ``{name: array (S,)}`` and ``video_label.pickle`` is ``{name: [1.0] or [0.0]}``.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from streamfeat.files import write_whole


def write_frame_labels(path: str | Path, labels: Mapping[str, np.ndarray]) -> None:
    """Write ``{name: uint8 (S,)}`` so that every numpy loads it. Raises OSError."""
    write_whole(path, frame_label_chunks(labels))


def write_video_labels(path: str | Path, labels: Mapping[str, int]) -> None:
    """Write ``{name: [1.0]}`` for 1 and ``{name: [0.0]}`` for 0. Raises OSError."""
    write_whole(path, video_label_chunks(labels))


def video_label_chunks(labels: Mapping[str, int]) -> Iterator[bytes]:
    """The bytes of a ``video_label.pickle``."""
    yield pickle.dumps({name: [float(label)] for name, label in labels.items()}, protocol=3)


def frame_label_chunks(labels: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """The bytes of a ``frame_label.pickle``.

    numpy 2 pickles its arrays under a module name that numpy 1 lacks, while both still know the old one:
    these are the opcodes that numpy 1 wrote.
    """
    yield b"\x80\x03}"
    for name, values in labels.items():
        values = np.ascontiguousarray(values, np.uint8)
        text, data = name.encode("utf-8", "surrogatepass"), values.tobytes()
        yield b"X" + struct.pack("<I", len(text)) + text
        # _reconstruct(ndarray, (0,), b"b"), then its state (1, shape, dtype("u1"), False, data)
        yield b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
        yield b"(K\x01" + b"J" + struct.pack("<i", len(values)) + b"\x85"
        yield b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x89\x88\x87R"
        yield b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        yield b"\x89B" + struct.pack("<I", len(data)) + data + b"tbs"
    yield b"."
