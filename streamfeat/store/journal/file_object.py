"""What the file objects for h5py share."""

from __future__ import annotations

import io

from .format import PAGE


class FileObject(io.RawIOBase):
    """The part of a seekable binary file that reading and writing share."""

    def __init__(self) -> None:
        super().__init__()
        self._position = 0
        self._length = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if start + offset < 0:
            raise ValueError("seek before the start of the file")
        self._position = start + offset
        return self._position

    def readinto(self, buffer) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._length - self._position))
        self._fill(view[:count], self._position)
        # h5py takes its buffer for full whatever is returned, and HDF5 does read past the end.
        view[count:] = bytes(len(view) - count)
        self._position += count
        return count

    def _fill(self, view: memoryview, offset: int) -> None:
        raise NotImplementedError


def overlay(view: memoryview, offset: int, pages: dict[int, bytes | bytearray]) -> None:
    """Put the part of ``pages`` that lies in ``view``, which is at ``offset``, over it."""
    first, last = offset // PAGE, (offset + len(view) - 1) // PAGE
    touched = range(first, last + 1)
    for index in pages.keys() & touched if len(pages) < len(touched) else touched:
        page = pages.get(index)
        if page is None:
            continue
        start = index * PAGE
        begin, end = max(offset, start), min(offset + len(view), start + len(page))
        if begin < end:
            view[begin - offset : end - offset] = memoryview(page)[begin - start : end - start]
