"""The file object for reading: what is committed, and nothing else."""

from __future__ import annotations

import time
from os import O_RDONLY

from . import disk
from .file_object import FileObject, overlay
from .format import PAGE, Journal
from .recovery import journal_path, read_journal, waiting_journal

# A commit changes pages for milliseconds; whoever opens the file just then looks again a few times.
_LOOKS = 5
_LOOK_AGAIN_SECONDS = 0.004


class CommittedFile(FileObject):
    """The committed state of the file at ``path``, for reading; nothing is ever written. Raises OSError.

    A writer may be at work meanwhile. All that is read is of the one state at the time of opening: what the next
    commit changes is then read from its journal. Once a second commit has gone by, what the first one changed is
    lost and reading raises OSError, so ask ``is_current`` before every piece of work and open the file again if
    it is not. (Pages of two states make HDF5 crash or loop, errors amid its work some versions of it.) That rests
    on every commit changing the first page, and on that page being changed first.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._fd = disk.open_file(path, O_RDONLY)
        journal = self._settled_journal()
        self._pages = {} if journal is None else {index: new for index, (_, new) in journal.pages.items()}
        self._length = disk.size(self._fd) if journal is None else journal.new_length
        self._current_pages.append(self._pages.get(0, self._current_pages[0]))
        self._expected_pages = list(self._current_pages)

    def _settled_journal(self) -> Journal | None:
        """The journal to read through, if one is waiting; notes the first page that goes with it."""
        for _ in range(_LOOKS):
            before = disk.identity(journal_path(self._path))
            journal = waiting_journal(self._path, self._fd)
            self._current_pages = [self._first_page()]
            # Had the journal come or gone in between, pages might be from before it and others from after.
            if disk.identity(journal_path(self._path)) == before and (before is None or journal is not None):
                return journal
            time.sleep(_LOOK_AGAIN_SECONDS)
        return journal  # beside the file lies a torn journal, or that of another file

    def _first_page(self) -> bytes:
        page = bytearray(PAGE)
        return bytes(page[: disk.read_at(self._fd, memoryview(page), 0)])

    def is_current(self) -> bool:
        """Whether no commit began to change the file since it was opened."""
        return self._first_page() in self._current_pages

    def _keeps_up(self) -> bool:
        """Whether all changes on the disk are known, and what they changed is held; catches up by one commit."""
        if self._first_page() in self._expected_pages:
            return True
        journal = read_journal(self._path)
        if journal is not None and 0 in journal.pages and journal.pages[0][0] == self._current_pages[-1]:
            for index, (old, _) in journal.pages.items():
                self._pages.setdefault(index, old)
            self._expected_pages.append(journal.pages[0][1])
        return self._first_page() in self._expected_pages

    def _fill(self, view: memoryview, offset: int) -> None:
        if disk.read_at(self._fd, view, offset) < len(view):
            raise OSError(f"the file became shorter than {offset + len(view)} bytes while it was read")
        if not self._keeps_up():
            raise OSError("the file was changed by another process while it was read; open it again")
        overlay(view, offset, self._pages)

    def close(self) -> None:
        if not self.closed:
            disk.close(self._fd)
        super().close()
