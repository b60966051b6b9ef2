"""The file object for writing: what is held back, and how it is committed."""

from __future__ import annotations

import contextlib
import errno
import shutil
from os import O_CREAT, O_RDWR, O_TRUNC, O_WRONLY

from ..errors import StoreError, reason
from . import disk
from .file_object import FileObject, overlay
from .format import PAGE, Journal, tail_digest
from .recovery import committed_length, journal_path, partial_path, recover, remove_journal


class JournaledFile(FileObject):
    """The file at ``path``, for reading and writing, with ``commit``. The caller holds the writer's lock.

    Opening an existing file recovers it first and forgets what a killed writer appended. ``create=True`` starts
    an empty file, which replaces whatever is at ``path`` at its first commit and not before.

    Writing never raises: inside HDF5 an exception would leave the library's own state torn. The first error is
    kept in ``failure``, everything further stays in memory, and ``commit`` raises it.
    """

    def __init__(self, path: str, *, create: bool = False) -> None:
        super().__init__()
        self._path = path
        self._fd = -1
        #: the first OSError that writing met; nothing more is committed after it
        self.failure: OSError | None = None
        # Made, but not yet at its path.
        self._unplaced = create
        # While a journal may be whole on the disk though its commit is not finished, closing must not tidy up.
        self._in_doubt = True
        recover(path)
        if create:
            self._fd = disk.open_file(partial_path(path), O_RDWR | O_CREAT | O_TRUNC)
            self._committed = 0
            if disk.exists(path):
                shutil.copymode(path, partial_path(path))
        else:
            self._fd = disk.open_file(path, O_RDWR)
            self._committed = committed_length(self._fd)
            disk.truncate(self._fd, self._committed)
        self._length = self._committed
        # Changes to bytes before this are held in memory.
        self._hold_below: float = self._committed
        # Of those bytes, the ones from here on were truncated away: they are zero, whatever the disk still says.
        self._intact: float = self._hold_below
        self._pages: dict[int, bytearray] = {}
        self._in_doubt = False

    def writable(self) -> bool:
        return True

    def _fill(self, view: memoryview, offset: int) -> None:
        got = disk.read_at(self._fd, view, offset)
        view[got:] = bytes(len(view) - got)
        begin, end = max(offset, self._intact), min(offset + len(view), self._hold_below)
        if begin < end:
            view[int(begin) - offset : int(end) - offset] = bytes(int(end) - int(begin))
        overlay(view, offset, self._pages)

    def write(self, data) -> int:
        view = memoryview(data).cast("B")
        start, end = self._position, self._position + len(view)
        held = int(max(0, min(end, self._hold_below) - start))
        if held < len(view):
            try:
                disk.write_at(self._fd, view[held:], start + held)
            except OSError as error:
                self._detach(error)
                held = len(view)
        self._hold(view[:held], start)
        self._position = end
        if view:
            self._length = max(self._length, end)
        return len(view)

    def _hold(self, view: memoryview, offset: int) -> None:
        while view:
            index, begin = divmod(offset, PAGE)
            page = self._pages.get(index)
            if page is None:
                page = self._pages[index] = self._load(index)
            part = view[: len(page) - begin]
            page[begin : begin + len(part)] = part
            view, offset = view[len(part) :], offset + len(part)

    def _load(self, index: int) -> bytearray:
        start = index * PAGE
        page = bytearray(int(min(PAGE, self._hold_below - start)))
        self._fill(memoryview(page), start)
        return page

    def truncate(self, size: int | None = None) -> int:
        size = self._position if size is None else size
        if self.failure is None:
            try:
                # Committed bytes stay where they are: until the commit, readers need them.
                disk.truncate(self._fd, max(size, self._committed))
            except OSError as error:
                self._detach(error)
        if size < self._length:
            self._forget(size)
        self._length = size
        return size

    def _forget(self, size: int) -> None:
        self._intact = min(self._intact, size)
        for index in [index for index in self._pages if (index + 1) * PAGE > size]:
            keep = size - index * PAGE
            if keep <= 0:
                del self._pages[index]
            else:
                page = self._pages[index]
                page[keep:] = bytes(len(page[keep:]))

    def flush(self) -> None:
        """Nothing: what HDF5 calls flushed is made durable by ``commit``."""

    def _detach(self, error: OSError) -> None:
        """Keep everything further in memory, for HDF5 to end its work on a file that it believes to be well."""
        if self.failure is not None:
            return
        self.failure = error
        self._hold_truncated()
        boundary = self._committed // PAGE
        partial = self._pages.pop(boundary, None) if self._committed % PAGE else None
        self._hold_below = self._intact = float("inf")
        if partial is not None:
            whole = self._load(boundary)
            whole[: len(partial)] = partial
            self._pages[boundary] = whole

    def abandon(self) -> None:
        """Commit nothing any more. What is still written goes to memory, and to nowhere at ``close``."""
        self._detach(OSError(errno.ECANCELED, "abandoned"))

    def check(self) -> None:
        """Raise StoreError if writing has failed."""
        if self.failure is not None:
            raise self._explain(self.failure)

    def _hold_truncated(self) -> None:
        """Hold the zeros that truncating left, to be committed like any other change."""
        if self._intact < self._committed:
            for index in range(int(self._intact) // PAGE, -(-self._committed // PAGE)):
                if index not in self._pages:
                    self._pages[index] = self._load(index)

    def commit(self) -> None:
        """Make everything written so far the committed state, durably. The caller has flushed h5py.

        Raises StoreError if that fails; the last committed state stands, and nothing more can be committed.
        """
        self.check()
        try:
            if self._unplaced:
                self._place()
            else:
                self._commit_changes()
        except OSError as error:
            self._detach(error)
            raise self._explain(error) from error

    def _explain(self, error: OSError) -> StoreError:
        return StoreError(
            f"{self._path}: cannot be written ({reason(error)}); what was committed before is safe: "
            "make room or choose another disk, then run the same command again"
        )

    def _place(self) -> None:
        disk.sync(self._fd)
        # Closed meanwhile because Windows renames no open file.
        disk.close(self._fd)
        self._fd = -1
        try:
            disk.replace(partial_path(self._path), self._path)
            self._unplaced = False
            self._settle()
        finally:
            self._fd = disk.open_file(partial_path(self._path) if self._unplaced else self._path, O_RDWR)
        disk.sync_folder(self._path)

    def _commit_changes(self) -> None:
        journal = self._prepare()
        if journal is None:
            return
        disk.sync(self._fd)
        try:
            self._write_journal(journal)
        except OSError:
            # Before the bytes that it speaks of may be dropped, the journal has to be gone for good.
            self._in_doubt = True
            remove_journal(self._path)
            disk.sync_folder(self._path)
            self._in_doubt = False
            raise
        self._in_doubt = True
        journal.apply(self._fd)
        self._in_doubt = False
        self._settle()

    def _prepare(self) -> Journal | None:
        """This commit as a journal; None if nothing changed."""
        self._hold_truncated()
        kept = min(self._committed, self._length)
        pages = {}
        for index, page in sorted(self._pages.items()):
            if index * PAGE >= kept:
                break
            new = bytes(page[: kept - index * PAGE])
            old = bytearray(len(new))
            disk.read_at(self._fd, memoryview(old), index * PAGE)
            if old != new:
                pages[index] = (bytes(old), new)
        if not pages and self._length == self._committed:
            self._settle()
            return None
        tail = tail_digest(self._fd, self._committed, self._length)
        return Journal(self._committed, self._length, tail, pages)

    def _write_journal(self, journal: Journal) -> None:
        fd = disk.open_file(journal_path(self._path), O_WRONLY | O_CREAT | O_TRUNC)
        try:
            disk.write_at(fd, journal.encode(), 0)
            disk.sync(fd)
        finally:
            disk.close(fd)
        disk.sync_folder(self._path)

    def _settle(self) -> None:
        self._committed = self._intact = self._hold_below = self._length
        self._pages.clear()

    def close(self) -> None:
        """Close the file in its committed state; what was not committed is gone."""
        if self.closed:
            return
        super().close()
        if self._fd < 0:
            return
        try:
            if not self._unplaced and not self._in_doubt:
                with contextlib.suppress(OSError):  # what is left over harms nobody; the next writer drops it
                    disk.truncate(self._fd, self._committed)
                    remove_journal(self._path)
        finally:
            disk.close(self._fd)
            if self._unplaced:
                with contextlib.suppress(OSError):
                    disk.remove(partial_path(self._path))
