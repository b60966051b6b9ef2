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

``format`` says what a journal is and what it does to a file, ``recovery`` settles what lies beside one, ``reading``
and ``writing`` are the file objects. All that is written goes through ``disk``, where tests put one that fails.
"""

from .reading import CommittedFile
from .recovery import committed_length, journal_path, needs_recovery, partial_path, recover
from .writing import JournaledFile

__all__ = [
    "CommittedFile",
    "JournaledFile",
    "committed_length",
    "journal_path",
    "needs_recovery",
    "partial_path",
    "recover",
]
