"""What a writer leaves beside a file and past its end, and how it is finished or dropped."""

from __future__ import annotations

import struct
from os import O_RDWR

from . import disk
from .format import Journal

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HDF5_ADDRESS = struct.Struct("<Q")


def journal_path(path: str) -> str:
    return path + ".journal"


def partial_path(path: str) -> str:
    return path + ".partial"


def committed_length(fd: int) -> int:
    """Length in bytes that the HDF5 superblock in ``fd`` states: all that plain readers look at.

    The whole file for anything that is not HDF5 or has an unusual superblock (a user block, short offsets):
    then nothing is taken for left over.
    """
    size = disk.size(fd)
    head = bytearray(64)
    if disk.read_at(fd, memoryview(head), 0) < len(head) or not head.startswith(_HDF5_SIGNATURE):
        return size
    version = head[8]
    # HDF5 File Format Specification, "Disk Format: Level 0A": offsets of sizeof-offsets, base and end address.
    layout = {0: (13, 24, 40), 1: (13, 28, 44), 2: (9, 12, 28), 3: (9, 12, 28)}.get(version)
    if layout is None or head[layout[0]] != _HDF5_ADDRESS.size:
        return size
    (base,) = _HDF5_ADDRESS.unpack_from(head, layout[1])
    (end,) = _HDF5_ADDRESS.unpack_from(head, layout[2])
    return end if base == 0 and len(head) <= end <= size else size


def read_journal(path: str) -> Journal | None:
    """The commit beside ``path``, of whichever file; None if there is none or it is torn."""
    try:
        with open(journal_path(path), "rb") as file:
            return Journal.decode(file.read())
    except FileNotFoundError:
        return None


def waiting_journal(path: str, fd: int) -> Journal | None:
    """The commit waiting beside ``path`` if there is one, it is whole and it belongs to the file ``fd``."""
    journal = read_journal(path)
    return journal if journal is not None and journal.belongs_to(fd) else None


def remove_journal(path: str) -> None:
    disk.remove(journal_path(path))


def needs_recovery(path: str) -> bool:
    """Whether a writer died while committing to ``path`` (or is committing now)."""
    return disk.exists(journal_path(path))


def recover(path: str) -> None:
    """Finish or drop what an interrupted writer left. The caller holds the writer's lock.

    Afterwards plain h5py reads the file, which holds the last committed state. Raises OSError.
    """
    disk.remove(partial_path(path))
    if not needs_recovery(path):
        return
    try:
        fd = disk.open_file(path, O_RDWR)
    except FileNotFoundError:
        remove_journal(path)
        return
    try:
        journal = waiting_journal(path, fd)
        if journal is not None:
            journal.apply(fd)
        remove_journal(path)
    finally:
        disk.close(fd)
