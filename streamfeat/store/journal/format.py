"""A journal: one commit, which bytes of a file it changes, how it is written down, and how it is done."""

from __future__ import annotations

import dataclasses
import hashlib
import struct

from . import disk

#: bytes that are changed as one; the last page of a file may be shorter
PAGE = 4096
_MAGIC = b"streamfeat\x00jrn\x00\x01"
_HEADER = struct.Struct("<16sQQQ32s")
_INDEX = struct.Struct("<Q")
_DIGEST_BYTES = 32
# Enough of the new bytes to know them again; hashing all of a long video's would take longer than the commit.
_TAIL_SAMPLE = 64 * 1024


@dataclasses.dataclass(frozen=True)
class Journal:
    """One commit: pages that replace those of a file of ``old_length`` bytes and make it ``new_length`` bytes."""

    old_length: int
    new_length: int
    #: ``tail_digest`` of the bytes that were appended
    tail: bytes
    #: page number -> (bytes before, bytes after), equally many; the last page may be short
    pages: dict[int, tuple[bytes, bytes]]

    def encode(self) -> bytes:
        parts = [_HEADER.pack(_MAGIC, self.old_length, self.new_length, len(self.pages), self.tail)]
        for index, (old, new) in self.pages.items():
            parts += [_INDEX.pack(index), old.ljust(PAGE, b"\0"), new.ljust(PAGE, b"\0")]
        body = b"".join(parts)
        return body + hashlib.sha256(body).digest()

    @classmethod
    def decode(cls, data: bytes) -> Journal | None:
        """The journal in ``data``; None if it is torn."""
        body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if len(body) < _HEADER.size or not body.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
            return None
        _, old_length, new_length, count, tail = _HEADER.unpack_from(body)
        pages = {}
        position = _HEADER.size
        for _ in range(count):
            (index,) = _INDEX.unpack_from(body, position)
            position += _INDEX.size
            length = min(PAGE, min(old_length, new_length) - index * PAGE)
            pages[index] = (body[position : position + length], body[position + PAGE : position + PAGE + length])
            position += 2 * PAGE
        return cls(old_length, new_length, tail, pages)

    def belongs_to(self, fd: int) -> bool:
        """Whether the file is the one this commit was made for, before, amid or after its being applied.

        Every byte must be what it was before or what it shall be, and the appended bytes must be there: no other
        file passes, nor this one after somebody else changed it; a page that was torn by a failing disk does.
        """
        if disk.size(fd) < self.new_length:
            return False
        for index, (old, new) in self.pages.items():
            current = bytearray(len(new))
            disk.read_at(fd, memoryview(current), index * PAGE)
            if current not in (old, new) and any(
                byte not in either for byte, *either in zip(current, old, new, strict=True)
            ):
                return False
        return self.tail == tail_digest(fd, self.old_length, self.new_length)

    def apply(self, fd: int) -> None:
        """Change the file, durably. Done again it changes nothing."""
        for index, (_, page) in sorted(self.pages.items()):
            disk.write_at(fd, page, index * PAGE)
        if self.new_length < self.old_length:
            disk.truncate(fd, self.new_length)
        disk.sync(fd)


def tail_digest(fd: int, start: int, end: int) -> bytes:
    """Fingerprint of the bytes from ``start`` to ``end``: of both their ends, where there are many."""
    digest = hashlib.sha256()
    for first, last in ((start, min(start + _TAIL_SAMPLE, end)), (max(start, end - _TAIL_SAMPLE), end)):
        sample = bytearray(max(0, last - first))
        digest.update(memoryview(sample)[: disk.read_at(fd, memoryview(sample), first)])
    return digest.digest()
