"""Writing a store: videos come in clip by clip, and become part of it in commits."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import h5py
import numpy as np

from .. import __version__
from . import schema
from .errors import BadFeatures, NotAStore, StoreError, StoreMismatch, StoreTooNew, reason
from .journal import JournaledFile
from .lock import WriterLock
from .schema import Failure, Header, VideoRecord
from .store import open_committed

# HDF5 1.10 and later read what these make, and its groups of thousands are quicker than the oldest format's.
_LIBVER = ("v108", "v110")
# Freed space is not used again: new data always lies past the committed end, where writing it needs no memory.
_FILE_SPACE = "none"
# Attributes stay in the object's header up to this many; HDF5 would start an index of 4 KiB at the ninth.
_COMPACT_ATTRIBUTES = 64
#: bytes of features that a video keeps in memory before it goes to the disk
SPILL_BYTES = 4 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
_T = TypeVar("_T")


class StoreWriter:
    """Appends to the store at ``path``. Only ``commit`` (and ``close``) change what readers see, all at once.

    One process may write at a time. In a ``with``, an exception drops what was not committed.
    """

    def __init__(self, path: str, lock: WriterLock, file: JournaledFile, h5: h5py.File, header: Header) -> None:
        self.path = path
        self.header = header
        self._lock = lock
        self._file = file
        self._h5 = h5
        self._dirty = False
        self._closed = False
        self._broken = False
        self._appenders: set[VideoAppender] = set()
        self._videos: dict[str, VideoRecord] | None = None
        self._failures: dict[str, Failure] | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], header: Header, overwrite: bool = False) -> StoreWriter:
        """Create the store at ``path`` or continue it.

        With ``overwrite`` a new store is begun; it replaces the old one at its first commit.

        Raises StoreMismatch if the store has another recipe or model, StoreLocked if it is being written,
        NotAStore and StoreTooNew for what must not be touched (an overwritten store may be newer), StoreError if
        it cannot be written.
        """
        path = os.path.realpath(path)
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            raise StoreError(f"{path}: there is no folder {folder}; make it first")
        if os.path.isdir(path):
            raise NotAStore(f"{path}: is a folder; give the path of a file")
        with _holding_lock(path) as lock:
            exists = os.path.exists(path)
            if exists:
                try:
                    old = _read_header(path)
                except StoreTooNew:
                    if not overwrite:
                        raise
                if not overwrite:
                    _refuse_differences(path, old, header)
                    return cls(path, lock, *_open_for_writing(path), old)
                if not os.access(path, os.W_OK):
                    raise StoreError(f"{path}: may not be written; choose another output")
            with _explained(path):
                file = JournaledFile(path, create=True)
            h5 = h5py.File(file, "w", libver=_LIBVER, fs_strategy=_FILE_SPACE)
            writer = cls(path, lock, file, h5, header)
            header.write(h5, created=_now(), software=f"streamfeat {__version__}")
            h5.create_group(schema.VIDEOS)
            h5.create_group(schema.FAILURES)
            # An old store stays until there is something to put in its place.
            writer._dirty = not exists
            return writer

    @classmethod
    def open_existing(cls, path: str | os.PathLike[str]) -> StoreWriter:
        """Open the store at ``path`` whatever its recipe, to add labels. Raises as ``open`` does."""
        path = os.path.realpath(path)
        if not os.path.isfile(path):
            open_committed(path)  # says what is there instead
        with _holding_lock(path) as lock:
            header = _read_header(path)
            return cls(path, lock, *_open_for_writing(path), header)

    # --- what is there -------------------------------------------------------------------------------------

    @property
    def videos(self) -> Mapping[str, VideoRecord]:
        """Every video in the store, with what tells whether its source has changed since."""
        if self._videos is None:
            self._videos = dict(schema.walk_records(self._read))
        return self._videos

    @property
    def failures(self) -> Mapping[str, Failure]:
        """Videos whose last extraction failed."""
        if self._failures is None:
            self._failures = dict(schema.walk_failures(self._read))
        return self._failures

    # --- changes -------------------------------------------------------------------------------------------

    def begin(self, name: str) -> VideoAppender:
        """Start a video. It becomes part of the store when it is finished; several may be open at once.

        Raises StoreError if the store cannot hold a video of that name (see ``check_names``).
        """
        self._check()
        self._check_place(name)
        return VideoAppender(self, name)

    def fail(self, name: str, stage: str, error: str) -> None:
        """Note that ``name`` failed at ``stage`` because of ``error``.

        Features that the video has from before stay: they are right for the source they were made from, which
        their attributes tell. The record goes when the video succeeds.
        """
        self._check()
        if (problem := schema.name_problem(name)) is not None:
            raise StoreError(f"{self.path}: {problem}")
        failure = Failure(_text(stage), _text(error), _now())
        with self._changing():
            group = self._h5.require_group(f"{schema.FAILURES}/{name}")
            for key, value in dataclasses.asdict(failure).items():
                group.attrs[key] = value
        if self._failures is not None:
            self._failures[name] = failure

    def set_labels(
        self, name: str, frame: np.ndarray, clip: np.ndarray, attrs: Mapping[str, Any] | None = None
    ) -> None:
        """Give a video its ground truth, in place of any it has: ``frame`` ``(frames,)``, ``clip`` ``(clips,)``.

        Both become uint8, but for a float32 ``clip``: its labels are shares of frames. ``aligned_clips`` among
        ``attrs`` is noted with the video, the rest with the labels. Raises KeyError if there is no such video.
        """
        self._check()
        video = schema.find_video(self._h5, name)
        if video is None:
            raise KeyError(name)
        attrs = dict(attrs or {})
        aligned_clips = attrs.pop(schema.ALIGNED_CLIPS, None)
        with self._changing():
            labels = self._new_group()
            clip_dtype = np.float32 if np.asarray(clip).dtype == np.float32 else np.uint8
            for key, values, dtype in (("frame", frame, np.uint8), ("clip", clip, clip_dtype)):
                labels.create_dataset(key, data=np.ascontiguousarray(values, dtype=dtype))
            _set_attrs(labels, attrs)
            labels.attrs[schema.CHECKSUM] = schema.labels_checksum(
                name, labels["frame"][()], labels["clip"][()], labels.attrs, aligned_clips
            )
            self._clear_labels(video)
            video[schema.LABELS] = labels
            if aligned_clips is not None:
                video.attrs[schema.ALIGNED_CLIPS] = aligned_clips

    def clear_labels(self) -> None:
        """Take the ground truth from every video."""
        self._check()
        with self._changing():
            for name in self.videos:
                self._clear_labels(self._h5[f"{schema.VIDEOS}/{name}"])

    @staticmethod
    def _clear_labels(video: h5py.Group) -> None:
        if schema.LABELS in video:
            del video[schema.LABELS]
        if schema.ALIGNED_CLIPS in video.attrs:
            del video.attrs[schema.ALIGNED_CLIPS]

    # --- commits -------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Make every finished video and noted failure durable and visible to readers, all or none.

        Raises StoreError if the disk does not take it; the store is then as of the last commit, and this writer
        can only be closed.
        """
        self._check()
        if not self._dirty:
            return
        try:
            with self._changing():
                self._count_commit()
                self._h5.flush()
            self._file.commit()
        except StoreError:
            self._broken = True
            raise
        self._dirty = False

    def _count_commit(self) -> None:
        # In the root's header, which is in the first page: by it readers see that there was a commit.
        self._h5.attrs.modify(schema.COMMITS, self._h5.attrs.get(schema.COMMITS, np.int64(0)) + 1)

    def close(self) -> None:
        """Commit what is finished, drop what is not, and let the next writer in. Raises as ``commit`` does."""
        if self._closed:
            return
        for appender in list(self._appenders):
            appender.abandon()
        wanted = self._dirty and not self._broken and self._file.failure is None
        if not wanted:
            self._file.abandon()
        self._closed = True
        try:
            # HDF5 gives back the space of abandoned videos when it closes: commit after that.
            with _explained(self.path):
                if wanted:
                    self._count_commit()
                self._h5.close()
            if wanted:
                self._file.commit()
        finally:
            self._file.close()
            self._lock.release()

    def abort(self) -> None:
        """Close without committing."""
        self._dirty = False
        self.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, exception_type: object, *exception: object) -> None:
        if exception_type is None:
            self.close()
        else:
            self.abort()

    # --- for VideoAppender ---------------------------------------------------------------------------------

    def _read(self, look: Callable[[h5py.Group], _T]) -> _T:
        return look(self._h5)  # nobody else changes the file: no need of FeatureStore's care

    def _check(self) -> None:
        if self._closed:
            raise StoreError(f"{self.path}: was closed; open it again to write")
        if self._broken:
            raise StoreError(f"{self.path}: a commit failed; close it and run the same command again")
        self._file.check()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with _explained(self.path):
            yield
        self._dirty = True
        self._file.check()

    def _check_place(self, name: str) -> None:
        if (problem := schema.name_problem(name)) is not None:
            raise StoreError(f"{self.path}: {problem}")
        parts = name.split("/")
        above = ["/".join(parts[:depth]) for depth in range(1, len(parts)) if parts[depth] in schema.RESERVED]
        names = [name, *(video for video in above if schema.find_video(self._h5, video) is not None)]
        if schema.find_video(self._h5, name) is None:
            names += [video for video in self.videos if video.startswith(f"{name}/")]
        problems = schema.check_names(names)
        if problems:
            raise StoreError(f"{self.path}: {problems[0]}")

    def _new_group(self) -> h5py.Group:
        """A group without a name: it is nobody's until it is linked, all of it at once."""
        plist = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        plist.set_attr_phase_change(_COMPACT_ATTRIBUTES, 0)
        return h5py.Group(h5py.h5g.create(self._h5.id, None, gcpl=plist))

    def _add(self, name: str, features: h5py.Dataset | np.ndarray, start_frame: h5py.Dataset | np.ndarray,
             attrs: Mapping[str, Any]) -> None:
        self._check_place(name)
        with self._changing():
            group = self._new_group()
            for key, data in ((schema.FEATURES, features), (schema.START_FRAME, start_frame)):
                group[key] = data
            for axis, label in enumerate(("clip", *self.header.dims)):
                group[schema.FEATURES].dims[axis].label = label
            _set_attrs(group, attrs)
            group.attrs[schema.ATTRS_CHECKSUM] = schema.attrs_checksum(name, group.attrs)
            videos = self._h5[schema.VIDEOS]
            if name in videos:
                old = videos[name]
                own = schema.RESERVED if schema.is_video_group(old.id) else ()
                for child in old:
                    if child not in own:
                        group[child] = old[child]
                del old, videos[name]
            videos[name] = group
            failure = f"{schema.FAILURES}/{name}"
            if failure in self._h5:
                _remove_failure(self._h5[failure])
        if self._videos is not None:
            self._videos[name] = schema.read_record(group.id)
        if self._failures is not None:
            self._failures.pop(name, None)


class VideoAppender:
    """One video on its way into the store. Small ones wait in memory, long ones on the disk, seen by nobody."""

    def __init__(self, store: StoreWriter, name: str) -> None:
        self.name = name
        self._store = store
        self._checksum = hashlib.sha256()
        header = store.header
        self._row_shape = header.row_shape
        self._features = _Column(store, header.row_shape, header.numpy_dtype)
        self._start_frame = _Column(store, (), np.dtype("<i8"))
        self._open = True
        store._appenders.add(self)

    def append(self, features: np.ndarray, start_frame: np.ndarray) -> None:
        """Add ``n`` clips: ``features`` ``(n, *row_shape)``, ``start_frame`` ``(n,)``, both copied.

        Raises BadFeatures for a wrong shape and for values that are not finite in the store's dtype; nothing of
        the call is added then. Raises StoreError if the disk does not take them.
        """
        self._check()
        features = np.asarray(features)
        start_frame = np.asarray(start_frame, dtype="<i8")
        if features.shape[1:] != self._row_shape or start_frame.shape != features.shape[:1]:
            raise BadFeatures(
                f"{self.name}: features of shape {features.shape} with start frames of {start_frame.shape} do not "
                f"fit the store's (clips, {', '.join(map(str, self._row_shape))}); this is a bug, please report it"
            )
        with np.errstate(over="ignore"):
            stored = features.astype(self._features.dtype)  # always a copy
        if not np.isfinite(stored).all():
            if np.isfinite(features).all():
                raise BadFeatures(f"{self.name}: has features too large for {stored.dtype}; use --dtype float32")
            raise BadFeatures(f"{self.name}: has features that are not finite")
        self._checksum.update(np.ascontiguousarray(stored).data)
        self._features.append(stored)
        self._start_frame.append(start_frame.copy())
        if self._features.waiting_bytes >= SPILL_BYTES:
            with self._store._changing():
                self._features.spill()
                self._start_frame.spill()

    def finish(self, attrs: Mapping[str, Any]) -> None:
        """Make the video part of the next commit, in place of an older one and of its failure record.

        ``attrs`` are strings, numbers or booleans; None means unknown and is left out.
        """
        self._check()
        with self._store._changing():
            features, start_frame = self._features.whole(), self._start_frame.whole()
            for start in range(0, len(start_frame), SPILL_BYTES // 8):
                self._checksum.update(np.ascontiguousarray(start_frame[start : start + SPILL_BYTES // 8]).data)
        self._store._add(
            self.name, features, start_frame, {**attrs, schema.CHECKSUM: schema.checksum(self._checksum)}
        )
        self._end()

    def abandon(self) -> None:
        """Forget the video; one of that name from before stays."""
        if self._open:
            self._end()

    def _end(self) -> None:
        self._open = False
        del self._features, self._start_frame  # HDF5 frees what nobody links
        self._store._appenders.discard(self)

    def _check(self) -> None:
        if not self._open:
            raise StoreError(f"{self._store.path}: {self.name} was finished or abandoned; begin it again")
        self._store._check()


class _Column:
    """Rows of one kind: in memory, until ``spill`` moves them to a dataset without a name."""

    def __init__(self, store: StoreWriter, row_shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._store = store
        self._row_shape = row_shape
        self.dtype = dtype
        row_bytes = max(1, int(np.prod(row_shape, dtype=np.int64)) * dtype.itemsize)
        self._chunk_rows = max(1, _CHUNK_BYTES // row_bytes)
        self._waiting: list[np.ndarray] = []
        self._dataset: h5py.Dataset | None = None

    @property
    def waiting_bytes(self) -> int:
        return sum(rows.nbytes for rows in self._waiting)

    def append(self, rows: np.ndarray) -> None:
        if len(rows):
            self._waiting.append(rows)

    def _rows(self) -> np.ndarray:
        return np.concatenate([np.empty((0, *self._row_shape), self.dtype), *self._waiting])

    def spill(self) -> None:
        """Write whole chunks; the rest waits."""
        rows = self._rows()
        whole = len(rows) // self._chunk_rows * self._chunk_rows
        self._write(rows[:whole])
        self._waiting = [rows[whole:].copy()] if whole < len(rows) else []

    def _write(self, rows: np.ndarray) -> None:
        if not len(rows):
            return
        if self._dataset is None:
            self._dataset = self._store._h5.create_dataset(
                None, (0, *self._row_shape), self.dtype,
                chunks=(self._chunk_rows, *self._row_shape), maxshape=(None, *self._row_shape),
            )
        start = len(self._dataset)
        self._dataset.resize(start + len(rows), axis=0)
        self._dataset[start:] = rows

    def whole(self) -> h5py.Dataset | np.ndarray:
        """All rows: an array while none was spilled, else the dataset."""
        if self._dataset is None:
            return self._rows()
        self._write(self._rows())
        self._waiting = []
        return self._dataset


def _remove_failure(group: h5py.Group) -> None:
    """Remove a failure's record, and its group unless it holds the failures of videos below it."""
    if len(group):
        for field in dataclasses.fields(Failure):
            if field.name in group.attrs:
                del group.attrs[field.name]
    else:
        del group.file[group.name]


def _set_attrs(group: h5py.Group, attrs: Mapping[str, Any]) -> None:
    for key, value in attrs.items():
        if value is not None:
            group.attrs[key] = _text(value) if isinstance(value, str) else value


def _text(value: str) -> str:
    """``value`` as HDF5 can hold it: without NUL, and with U+FFFD for file names' bytes that are not UTF-8."""
    return value.replace("\0", "\ufffd").encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn the errors of the operating system and of HDF5 into one line about ``path``."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({reason(error)}); choose another output") from error
    except RuntimeError as error:
        raise StoreError(f"{path}: HDF5 could not write it ({error}); run the same command again") from error


@contextlib.contextmanager
def _holding_lock(path: str) -> Iterator[WriterLock]:
    """The writer's lock, which a store that opens keeps and an error gives back."""
    lock = WriterLock(path)
    try:
        yield lock
    except BaseException:
        lock.release()
        raise


def _read_header(path: str) -> Header:
    file, h5 = open_committed(path)
    with file, h5:
        return Header.read(h5, path)


def _refuse_differences(path: str, old: Header, new: Header) -> None:
    differences = old.differences(new)
    if differences:
        shown = "; ".join(f"{field} is {there}, not {asked}" for field, (there, asked) in differences.items())
        raise StoreMismatch(
            f"{path}: was made differently ({shown}); choose another output, or --overwrite to start anew",
            differences,
        )


def _open_for_writing(path: str) -> tuple[JournaledFile, h5py.File]:
    with _explained(path):
        file = JournaledFile(path)
        try:
            return file, h5py.File(file, "r+", libver=_LIBVER)
        except BaseException:
            file.abandon()
            file.close()
            raise
