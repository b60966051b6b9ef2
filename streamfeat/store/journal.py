"""Atomic commits below HDF5: a file object whose changes reach the disk all at once or not at all.

HDF5 writes its metadata piecemeal, so a process that dies leaves a file that may not open. h5py accepts Python
file objects; the one here tells committed bytes from new ones:

* bytes past the committed length go straight to the file. The committed metadata does not know them, and
  readers ignore what lies past the end that the superblock states;
* changes to committed bytes are held in memory, page by page, until ``commit``.

A commit syncs the new bytes, writes the changed pages, as they were and as they shall be, to ``<path>.journal``
(checksummed), syncs it, changes the pages in place and syncs. Until the journal is whole on the disk the old state
stands; from then on the new one does. Whoever opens the file after a kill finishes a whole journal and drops a torn
one; who may not write reads through it. The journal stays until the next commit or the end of the writer, because
finishing it twice changes nothing and readers still at the old state find their pages in it.

A file is created as ``<path>.partial`` and takes its place at its first commit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import os
import shutil
import struct
import time

from .errors import StoreError, reason

PAGE = 4096
_MAGIC = b"streamfeat\x00jrn\x00\x01"
_HEADER = struct.Struct("<16sQQQ32s")
_INDEX = struct.Struct("<Q")
_DIGEST_BYTES = 32
# Enough of the new bytes to know them again; hashing all of a long video's would take longer than the commit.
_TAIL_SAMPLE = 64 * 1024
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_NEW_FILE_MODE = 0o666
# A commit changes pages for milliseconds; whoever opens the file just then looks again a few times.
_LOOKS = 5
_LOOK_AGAIN_SECONDS = 0.004


def journal_path(path: str) -> str:
    return path + ".journal"


def partial_path(path: str) -> str:
    return path + ".partial"


# --- the disk ------------------------------------------------------------------------------------------------


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0), _NEW_FILE_MODE)


def _read_at(fd: int, view: memoryview, offset: int) -> int:
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


def _write_at(fd: int, data: memoryview | bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        if hasattr(os, "pwrite"):
            count = os.pwrite(fd, view, offset)
        else:
            os.lseek(fd, offset, os.SEEK_SET)
            count = os.write(fd, view)
        view = view[count:]
        offset += count


def _sync_folder(path: str) -> None:
    """Make a created, renamed or removed name durable. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- what is committed ---------------------------------------------------------------------------------------


def committed_length(fd: int) -> int:
    """Length in bytes that the HDF5 superblock in ``fd`` states: all that plain readers look at.

    The whole file for anything that is not HDF5 or has an unusual superblock (a user block, short offsets):
    then nothing is taken for left over.
    """
    size = os.fstat(fd).st_size
    head = bytearray(64)
    if _read_at(fd, memoryview(head), 0) < len(head) or not head.startswith(_HDF5_SIGNATURE):
        return size
    version = head[8]
    # HDF5 File Format Specification, "Disk Format: Level 0A": offsets of sizeof-offsets, base and end address.
    layout = {0: (13, 24, 40), 1: (13, 28, 44), 2: (9, 12, 28), 3: (9, 12, 28)}.get(version)
    if layout is None or head[layout[0]] != 8:
        return size
    (base,) = _INDEX.unpack_from(head, layout[1])
    (end,) = _INDEX.unpack_from(head, layout[2])
    return end if base == 0 and len(head) <= end <= size else size


def _tail_digest(fd: int, start: int, end: int) -> bytes:
    """Fingerprint of the bytes from ``start`` to ``end``: of both their ends, where there are many."""
    digest = hashlib.sha256()
    for first, last in ((start, min(start + _TAIL_SAMPLE, end)), (max(start, end - _TAIL_SAMPLE), end)):
        sample = bytearray(max(0, last - first))
        digest.update(memoryview(sample)[: _read_at(fd, memoryview(sample), first)])
    return digest.digest()


@dataclasses.dataclass(frozen=True)
class _Journal:
    """One commit: pages that replace those of a file of ``old_length`` bytes and make it ``new_length`` bytes."""

    old_length: int
    new_length: int
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
    def decode(cls, data: bytes) -> _Journal | None:
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
        size = os.fstat(fd).st_size
        if size < self.new_length:
            return False
        for index, (old, new) in self.pages.items():
            current = bytearray(len(new))
            _read_at(fd, memoryview(current), index * PAGE)
            if current not in (old, new) and any(
                byte not in either for byte, *either in zip(current, old, new, strict=True)
            ):
                return False
        return self.tail == _tail_digest(fd, self.old_length, self.new_length)

    def apply(self, fd: int) -> None:
        for index, (_, page) in sorted(self.pages.items()):
            _write_at(fd, page, index * PAGE)
        if self.new_length < self.old_length:
            os.ftruncate(fd, self.new_length)
        os.fsync(fd)


def _read_journal(path: str, fd: int) -> _Journal | None:
    """The commit waiting beside ``path`` if there is one, it is whole and it belongs to the file ``fd``."""
    try:
        with open(journal_path(path), "rb") as journal_file:
            journal = _Journal.decode(journal_file.read())
    except FileNotFoundError:
        return None
    return journal if journal is not None and journal.belongs_to(fd) else None


def _identity(path: str) -> tuple[int, int, int] | None:
    """Tells a file at ``path`` from any other that was or will be there; None if there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _remove_journal(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(journal_path(path))


def needs_recovery(path: str) -> bool:
    """Whether a writer died while committing to ``path`` (or is committing now)."""
    return os.path.exists(journal_path(path))


def recover(path: str) -> None:
    """Finish or drop what an interrupted writer left. The caller holds the writer's lock.

    Afterwards plain h5py reads the file, which holds the last committed state. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(partial_path(path))
    if not needs_recovery(path):
        return
    try:
        fd = _open(path, os.O_RDWR)
    except FileNotFoundError:
        _remove_journal(path)
        return
    try:
        journal = _read_journal(path, fd)
        if journal is not None:
            journal.apply(fd)
        _remove_journal(path)
    finally:
        os.close(fd)


# --- file objects for h5py -----------------------------------------------------------------------------------


class _FileObject(io.RawIOBase):
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

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
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


def _overlay(view: memoryview, offset: int, pages: dict[int, bytes | bytearray]) -> None:
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


class CommittedFile(_FileObject):
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
        self._fd = _open(path, os.O_RDONLY)
        journal = self._settled_journal()
        self._pages = {} if journal is None else {index: new for index, (_, new) in journal.pages.items()}
        self._length = os.fstat(self._fd).st_size if journal is None else journal.new_length
        self._current_pages.append(self._pages.get(0, self._current_pages[0]))
        self._expected_pages = list(self._current_pages)

    def _settled_journal(self) -> _Journal | None:
        """The journal to read through, if one is waiting; notes the first page that goes with it."""
        for _ in range(_LOOKS):
            before = _identity(journal_path(self._path))
            journal = _read_journal(self._path, self._fd)
            self._current_pages = [self._first_page()]
            # Had the journal come or gone in between, pages might be from before it and others from after.
            if _identity(journal_path(self._path)) == before and (before is None or journal is not None):
                return journal
            time.sleep(_LOOK_AGAIN_SECONDS)
        return journal  # beside the file lies a torn journal, or that of another file

    def _first_page(self) -> bytes:
        page = bytearray(PAGE)
        return bytes(page[: _read_at(self._fd, memoryview(page), 0)])

    def is_current(self) -> bool:
        """Whether no commit began to change the file since it was opened."""
        return self._first_page() in self._current_pages

    def _keeps_up(self) -> bool:
        """Whether all changes on the disk are known, and what they changed is held; catches up by one commit."""
        if self._first_page() in self._expected_pages:
            return True
        with contextlib.suppress(FileNotFoundError), open(journal_path(self._path), "rb") as journal_file:
            journal = _Journal.decode(journal_file.read())
            if journal is not None and 0 in journal.pages and journal.pages[0][0] == self._current_pages[-1]:
                for index, (old, _) in journal.pages.items():
                    self._pages.setdefault(index, old)
                self._expected_pages.append(journal.pages[0][1])
        return self._first_page() in self._expected_pages

    def _fill(self, view: memoryview, offset: int) -> None:
        if _read_at(self._fd, view, offset) < len(view):
            raise OSError(f"the file became shorter than {offset + len(view)} bytes while it was read")
        if not self._keeps_up():
            raise OSError("the file was changed by another process while it was read; open it again")
        _overlay(view, offset, self._pages)

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


class JournaledFile(_FileObject):
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
            self._fd = _open(partial_path(path), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            self._committed = 0
            if os.path.exists(path):
                shutil.copymode(path, partial_path(path))
        else:
            self._fd = _open(path, os.O_RDWR)
            self._committed = committed_length(self._fd)
            os.ftruncate(self._fd, self._committed)
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
        got = _read_at(self._fd, view, offset)
        view[got:] = bytes(len(view) - got)
        begin, end = max(offset, self._intact), min(offset + len(view), self._hold_below)
        if begin < end:
            view[int(begin) - offset : int(end) - offset] = bytes(int(end) - int(begin))
        _overlay(view, offset, self._pages)

    def write(self, data) -> int:
        view = memoryview(data).cast("B")
        start, end = self._position, self._position + len(view)
        held = int(max(0, min(end, self._hold_below) - start))
        if held < len(view):
            try:
                _write_at(self._fd, view[held:], start + held)
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
                os.ftruncate(self._fd, max(size, self._committed))
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
        os.fsync(self._fd)
        # Closed meanwhile because Windows renames no open file.
        os.close(self._fd)
        self._fd = -1
        try:
            os.replace(partial_path(self._path), self._path)
            self._unplaced = False
            self._settle()
        finally:
            self._fd = _open(partial_path(self._path) if self._unplaced else self._path, os.O_RDWR)
        _sync_folder(self._path)

    def _commit_changes(self) -> None:
        journal = self._prepare()
        if journal is None:
            return
        os.fsync(self._fd)
        try:
            self._write_journal(journal)
        except OSError:
            # Before the bytes that it speaks of may be dropped, the journal has to be gone for good.
            self._in_doubt = True
            _remove_journal(self._path)
            _sync_folder(self._path)
            self._in_doubt = False
            raise
        self._in_doubt = True
        journal.apply(self._fd)
        self._in_doubt = False
        self._settle()

    def _prepare(self) -> _Journal | None:
        """This commit as a journal; None if nothing changed."""
        self._hold_truncated()
        kept = min(self._committed, self._length)
        pages = {}
        for index, page in sorted(self._pages.items()):
            if index * PAGE >= kept:
                break
            new = bytes(page[: kept - index * PAGE])
            old = bytearray(len(new))
            _read_at(self._fd, memoryview(old), index * PAGE)
            if old != new:
                pages[index] = (bytes(old), new)
        if not pages and self._length == self._committed:
            self._settle()
            return None
        tail = _tail_digest(self._fd, self._committed, self._length)
        return _Journal(self._committed, self._length, tail, pages)

    def _write_journal(self, journal: _Journal) -> None:
        fd = _open(journal_path(self._path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            _write_at(fd, journal.encode(), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        _sync_folder(self._path)

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
                    os.ftruncate(self._fd, self._committed)
                    _remove_journal(self._path)
        finally:
            os.close(self._fd)
            if self._unplaced:
                with contextlib.suppress(OSError):
                    os.unlink(partial_path(self._path))
