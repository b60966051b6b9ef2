"""The folder that an export goes to: files appear whole, existing ones are kept, none lies outside."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from streamfeat.files import path_inside, write_whole


class Destination:
    """Writes files below ``root`` and counts them. An existing file is kept unless ``overwrite``."""

    def __init__(self, root: str | Path, overwrite: bool) -> None:
        self.root = Path(root)
        self._overwrite = overwrite
        self.written = 0
        self.kept = 0

    def write(self, name: str, chunks: Iterable[Any]) -> None:
        """Write the bytes-like ``chunks`` to ``root/name``; nothing is read of them when the file is kept."""
        path = path_inside(self.root, name)
        if self._overwrite or not path.exists():
            write_whole(path, chunks)
            self.written += 1
        else:
            self.kept += 1

    def write_npy(self, name: str, shape: tuple[int, ...], dtype: str, blocks: Iterable[np.ndarray]) -> None:
        """Write an array of ``shape`` that comes as ``blocks`` along its first dimension."""
        self.write(name, _npy_chunks(shape, dtype, blocks))

    def write_lines(self, name: str, lines: Iterable[str]) -> None:
        self.write(name, ["".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")])


def _npy_chunks(shape: tuple[int, ...], dtype: str, blocks: Iterable[np.ndarray]) -> Iterable[Any]:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    yield header.getvalue()
    for block in blocks:
        yield block.data if block.size else b""
