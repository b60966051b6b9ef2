"""The operating system's files: read and written at a place, whole, and made durable.

All else in this package goes through here. Everything raises OSError.
"""

from __future__ import annotations

import contextlib
import os

_NEW_FILE_MODE = 0o666


def open_file(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0), _NEW_FILE_MODE)


def close(fd: int) -> None:
    os.close(fd)


def size(fd: int) -> int:
    return os.fstat(fd).st_size


def read_at(fd: int, view: memoryview, offset: int) -> int:
    """Fill ``view`` from ``offset``; returns how much of it the file had."""
    done = 0
    while done < len(view):
        if hasattr(os, "preadv"):  # does not move the file's position, which forked readers share
            count = os.preadv(fd, [view[done:]], offset + done)
        else:
            os.lseek(fd, offset + done, os.SEEK_SET)
            chunk = os.read(fd, len(view) - done)
            count = len(chunk)
            view[done : done + count] = chunk
        if not count:
            break
        done += count
    return done


def write_at(fd: int, data: memoryview | bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        if hasattr(os, "pwrite"):
            count = os.pwrite(fd, view, offset)
        else:
            os.lseek(fd, offset, os.SEEK_SET)
            count = os.write(fd, view)
        view = view[count:]
        offset += count


def truncate(fd: int, length: int) -> None:
    os.ftruncate(fd, length)


def sync(fd: int) -> None:
    os.fsync(fd)


def sync_folder(path: str) -> None:
    """Make a created, renamed or removed name durable. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def exists(path: str) -> bool:
    return os.path.exists(path)


def replace(old: str, new: str) -> None:
    os.replace(old, new)


def remove(path: str) -> None:
    """Remove the file at ``path`` if there is one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def identity(path: str) -> tuple[int, int, int] | None:
    """Tells a file at ``path`` from any other that was or will be there; None if there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
