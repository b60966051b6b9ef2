"""Whether a Matroska or WebM file is whole: FFmpeg's reader takes the end of a file that was cut off for its end."""

from __future__ import annotations

import os

_HEADER, _SEGMENT = 0x1A45DFA3, 0x18538067
#: the header and what comes before the size of the segment take some fifty bytes
_ENOUGH = 4096


def is_cut_off(path: str | os.PathLike[str]) -> bool:
    """Whether the file is shorter than its segment says (RFC 9559, 5.1).

    False as well for files that are not Matroska, and where the length was not known when the file was begun.
    """
    with open(path, "rb") as file:
        start = file.read(_ENOUGH)
        end = file.seek(0, os.SEEK_END)
    try:
        element, size, content = _element(start, 0)
        if element != _HEADER or size is None:
            return False
        element, size, content = _element(start, content + size)
    except IndexError:
        return False
    return element == _SEGMENT and size is not None and content + size > end


def _element(data: bytes, position: int) -> tuple[int, int | None, int]:
    """Identifier, size (None: unknown) and position of the content of an EBML element (RFC 8794, 4 to 6)."""
    identifier, position = _number(data, position)
    size, content = _number(data, position)
    marker = 1 << 7 * (content - position)
    return identifier, None if size == 2 * marker - 1 else size - marker, content


def _number(data: bytes, position: int) -> tuple[int, int]:
    """A number whose leading zeros tell its length, marker bit included, and the position after it."""
    length = 9 - data[position].bit_length()
    return int.from_bytes(data[position : position + length], "big"), position + length
