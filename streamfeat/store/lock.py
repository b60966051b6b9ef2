"""One writer per store: a lock file that says who holds it."""

from __future__ import annotations

import contextlib
import os
import socket

from filelock import FileLock, Timeout

from .errors import StoreError, StoreLocked, reason


class WriterLock:
    """The right to write the store at ``path``, held until ``release`` or the end of the process.

    The lock is the operating system's, so it goes with a killed process; what is written in ``<path>.lock``
    (process id and host) only tells others whom to wait for. Raises StoreLocked if another writer holds it and
    StoreError if no lock can be made there.
    """

    def __init__(self, path: str) -> None:
        self._lock_path = path + ".lock"
        # Read first: before filelock 3.20 every contender emptied the holder's file.
        holder = _read_holder(self._lock_path)
        self._lock = FileLock(self._lock_path, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise _locked(path, holder or _read_holder(self._lock_path)) from None
        except (OSError, NotImplementedError) as error:
            why = reason(error) if isinstance(error, OSError) else str(error)
            raise StoreError(
                f"{path}: cannot be written ({why}: {self._lock_path}); choose a folder you may write to"
            ) from error
        # Windows lets nobody write to a locked range: there the holder stays unnamed.
        with contextlib.suppress(OSError), open(self._lock_path, "r+", encoding="utf-8") as lock_file:
            lock_file.truncate()
            lock_file.write(f"{os.getpid()} {socket.gethostname()}\n")

    def release(self) -> None:
        # Removed while still held, so that no one else's lock file can be hit. A contender that has already
        # opened the removed file is told so by filelock and starts over.
        with contextlib.suppress(OSError):
            os.unlink(self._lock_path)
        self._lock.release()


def _read_holder(lock_path: str) -> tuple[int, str] | None:
    try:
        with open(lock_path, encoding="utf-8") as lock_file:
            pid, host = lock_file.readline().split()
            return int(pid), host
    except (OSError, ValueError):
        return None


def _locked(path: str, holder: tuple[int, str] | None) -> StoreLocked:
    if holder is None:
        return StoreLocked(f"{path}: another process is writing it; wait for it to end")
    pid, host = holder
    where = "" if host == socket.gethostname() else f" on {host}"
    return StoreLocked(f"{path}: process {pid}{where} is writing it; wait for it or stop it", pid)
