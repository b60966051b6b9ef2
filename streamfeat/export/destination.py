"""The folder that an export goes to: first all files are planned, then those that are missing appear, each whole.

So an export that cannot be made writes nothing, one that was interrupted goes on, and one that differs from what
is there is refused before it mixes with it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from streamfeat.export.errors import ExportError, ExportRefused
from streamfeat.files import locate_inside, path_inside, remove_abandoned, write_whole
from streamfeat.text import counted


class Destination:
    """Files below ``root``. One that is there must be what would be written, unless ``overwrite`` replaces it."""

    def __init__(self, root: str | Path, overwrite: bool) -> None:
        self.root = Path(root)
        self._overwrite = overwrite
        self._planned: dict[str, Callable[[], Iterable[Any]]] = {}
        self._patterns: list[str] = []
        self.written = 0
        #: files that were there, equal to what would have been written
        self.kept = 0

    def add(self, name: str, chunks: Callable[[], Iterable[Any]]) -> None:
        """Plan the file ``root/name`` of the bytes-like ``chunks()``, asked for once to compare and once to write."""
        self._planned[name] = chunks

    def add_npy(self, name: str, shape: tuple[int, ...], dtype: str,
                blocks: Callable[[], Iterable[np.ndarray]]) -> None:
        """Plan an array of ``shape`` that comes as ``blocks()`` along its first dimension."""
        self.add(name, lambda: _npy_chunks(shape, dtype, blocks()))

    def add_lines(self, name: str, lines: Iterable[str]) -> None:
        text = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        self.add(name, lambda: [text])

    def claim(self, *patterns: str) -> None:
        """Say by globs below ``root`` which files are of this layout, so that those of no plan can be told."""
        self._patterns += patterns

    def write(self) -> None:
        """Write what is planned and missing, in the order of the plan.

        Raises ExportError for places that no file can be written to, ExportRefused where files differ from the
        plan, UnsafeName for names that lead out of ``root``; nothing is written then. Raises OSError.
        """
        self._check_places()
        if not self._overwrite:
            self._check_contents()
        # what a killed export leaves may be as large as a shard
        for folder in {locate_inside(self.root, name).parent for name in self._planned}:
            remove_abandoned(folder)
        for name, chunks in self._planned.items():
            if self._overwrite or not locate_inside(self.root, name).exists():
                self._write(name, chunks())
                self.written += 1
            else:
                self.kept += 1

    def _write(self, name: str, chunks: Iterable[Any]) -> None:
        try:
            write_whole(path_inside(self.root, name), chunks)
        except OSError as error:
            raise OSError(f"{self.root}: {name} cannot be written ({error.strerror or error}); the same command goes "
                          "on where this one ended") from error

    def stale(self) -> tuple[str, ...]:
        """Files of this layout that are no part of the plan, by their names below ``root``."""
        found = {path.relative_to(self.root).as_posix() for pattern in self._patterns
                 for path in self.root.glob(pattern) if path.is_file()}
        return tuple(sorted(found - self._planned.keys()))

    def _check_places(self) -> None:
        folders = set()
        for name in self._planned:
            path = locate_inside(self.root, name)
            if path.is_dir():
                raise ExportError(f"{path}: is a folder, where a file would be written; choose another destination")
            folders.add(path.parent)
            parts = name.split("/")
            for depth in range(1, len(parts)):
                if (folder := "/".join(parts[:depth])) in self._planned:
                    raise ExportError(f"{folder} would be both a file and the folder of {name}: rename a video")
        for folder in {_nearest_existing(folder) for folder in folders}:
            if not folder.is_dir():
                raise ExportError(f"{folder}: is no folder; choose another destination")
            if not os.access(folder, os.W_OK | os.X_OK):
                raise ExportError(f"{folder}: cannot be written to; choose a folder that you may write to")

    def _check_contents(self) -> None:
        differing = [name for name, chunks in self._planned.items() if self._differs(name, chunks)]
        if differing:
            them = counted(len(differing), "file there is", "files there are")
            raise ExportRefused(f"{self.root}: {them} not what this export would write, {differing[0]} first: replace "
                                "with --overwrite, or choose another destination")

    def _differs(self, name: str, chunks: Callable[[], Iterable[Any]]) -> bool:
        path = locate_inside(self.root, name)
        if not os.path.lexists(path):
            return False
        if not path.is_file():
            return True
        with open(path, "rb") as file:
            for chunk in chunks():
                expected = np.frombuffer(chunk, np.uint8)
                if not np.array_equal(np.frombuffer(file.read(expected.size), np.uint8), expected):
                    return True
            return bool(file.read(1))


def _nearest_existing(folder: Path) -> Path:
    while not os.path.lexists(folder):
        folder = folder.parent
    return folder


def _npy_chunks(shape: tuple[int, ...], dtype: str, blocks: Iterable[np.ndarray]) -> Iterable[Any]:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    yield header.getvalue()
    for block in blocks:
        yield block.data if block.size else b""
