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
        self._lock = FileLock(self._lock_path, timeout=0, thread_local=False)
        # Read first: filelock before 4 empties the holder's file when it looks whether it is held.
        holder = _read_holder(self._lock_path)
        while True:
            try:
                self._lock.acquire()
            except Timeout:
                if not os.path.exists(self._lock_path):
                    raise StoreError(f"{path}: cannot be written there; choose a folder you may write to") from None
                if holder is not None:
                    with contextlib.suppress(FileNotFoundError):
                        _write_holder(self._lock_path, *holder)
                raise _locked(path, _read_holder(self._lock_path)) from None
            except (OSError, NotImplementedError) as error:
                why = reason(error) if isinstance(error, OSError) else str(error)
                raise StoreError(
                    f"{path}: cannot be written ({why}: {self._lock_path}); choose a folder you may write to"
                ) from error
            try:
                _write_holder(self._lock_path, os.getpid(), socket.gethostname())
                return
            except FileNotFoundError:
                self._lock.release()  # what was locked is the file that the last writer removed

    def release(self) -> None:
        # Removed while still held, so that no one else's lock file can be hit.
        with contextlib.suppress(OSError):
            os.unlink(self._lock_path)
        self._lock.release()


def _write_holder(lock_path: str, pid: int, host: str) -> None:
    # Windows lets nobody write to a locked range: there the holder stays unnamed.
    with contextlib.suppress(PermissionError), open(lock_path, "r+", encoding="utf-8") as lock_file:
        lock_file.truncate()
        lock_file.write(f"{pid} {host}\n")


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
