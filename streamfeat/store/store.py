"""Reading a store: a mapping from video name to features, labels and attributes."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import h5py
import numpy as np

from . import schema
from .errors import NotAStore, StoreError, reason
from .journal import CommittedFile, needs_recovery, recover
from .lock import WriterLock
from .schema import Failure, Header
from .survey import Survey, survey

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: bytes read at a time when a whole video is gone through
_BLOCK = 8 * 1024 * 1024
# What is read while a commit falls into it is read again. A commit takes milliseconds and follows work on a video.
_PATIENCE_SECONDS = 10.0
_T = TypeVar("_T")


@atexit.register
def _close_open_files() -> None:
    """HDF5 closes what is still open after Python is gone, whose file objects it then calls: a segmentation fault."""
    for file_id in h5py.h5f.get_obj_ids(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE):
        if file_id.get_access_plist().get_driver() == h5py.h5fd.fileobj_driver:
            h5py.File(file_id).close()


class FeatureStore(Mapping[str, "StoredVideo"]):
    """The store at ``path``, for reading, as a mapping from video name to :class:`StoredVideo`.

    Shows what is committed, also while a writer is at work (a video reads as it is now; the names are those of
    the first time they were asked for) and after one was killed. Iterates in natural order of the names (``v2``
    before ``v10``). Close it, or use it in a ``with``; then its videos can no longer be read.

    Raises StoreError if there is no such file or it is damaged, NotAStore if streamfeat did not make it and
    StoreTooNew if a newer one did.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.realpath(path)
        _finish_interrupted_commit(self.path)
        self._file, self._h5 = open_committed(self.path)
        try:
            self.header = self._read(lambda root: Header.read(root, self.path))
            #: when it was made, ISO 8601, UTC, and by which version of streamfeat
            self.created = self._read(lambda root: str(root.attrs.get("created", "")))
            self.software = self._read(lambda root: str(root.attrs.get("software", "")))
        except BaseException:
            self.close()
            raise

    def _read(self, look: Callable[[h5py.Group], _T]) -> _T:
        """What ``look`` sees, all of it in one committed state."""
        if not self._h5:  # as h5py has it for files that were closed
            raise StoreError(f"{self.path}: the store is closed; read from it before, or open it again")
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if not self._file.is_current():
                # The old file is not closed: somebody may still read a dataset of it.
                self._file, self._h5 = open_committed(self.path)
            try:
                return look(self._h5)
            except StoreError:
                if self._file.is_current():
                    raise
            except (OSError, RuntimeError, KeyError, MemoryError) as error:
                if self._file.is_current():
                    raise StoreError(
                        f"{self.path}: is damaged ({_words(error)}); 'streamfeat verify' may tell where"
                    ) from error
        raise StoreError(f"{self.path}: is written faster than it can be read; try again when the writer is done")

    @property
    def recipe(self) -> dict[str, Any]:
        return dict(self.header.recipe)

    @property
    def model(self) -> dict[str, Any]:
        """``size``, ``source`` and ``sha256`` of the weights."""
        return dict(self.header.model)

    @property
    def dtype(self) -> np.dtype:
        return self.header.numpy_dtype

    @functools.cached_property
    def _names(self) -> list[str]:
        return sorted(schema.walk_videos(self._read), key=schema.natural_key)

    @functools.cached_property
    def failures(self) -> dict[str, Failure]:
        """Videos whose last extraction failed. One may still be in the store as it was before it failed."""
        return dict(sorted(schema.walk_failures(self._read), key=lambda item: schema.natural_key(item[0])))

    def __getitem__(self, name: str) -> StoredVideo:
        if name not in self:
            raise KeyError(name)
        return StoredVideo(self, name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._read(lambda root: schema.find_video(root, name)) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"FeatureStore({self.path!r})"

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def survey(self) -> Survey:
        """Every object in the file, those too that belong to no video."""

        def look(root: h5py.Group) -> Survey:
            found = survey(root)
            if found.strays and not self._file.is_current():
                raise StoreError(f"{self.path}: was written meanwhile; try again")  # and _read does
            return found

        return self._read(look)

    def attrs_intact(self) -> bool | None:
        """Whether recipe, model and the like still are what was written; None where no checksum tells."""
        return self._read(functools.partial(_attrs_hold, name=""))

    def close(self) -> None:
        self._h5.close()
        self._file.close()


@dataclasses.dataclass(frozen=True)
class Labels:
    """Ground truth of a video: ``frame`` uint8 ``(frames,)`` and ``clip`` uint8 ``(clips,)``, 1 for abnormal.

    ``clip`` is float32 where it is the share of abnormal frames.
    """

    frame: np.ndarray
    clip: np.ndarray
    #: where they came from
    attrs: dict[str, Any]


class StoredVideo:
    """One video of an open store. Nothing is read before it is asked for; nothing is kept in memory."""

    def __init__(self, store: FeatureStore, name: str) -> None:
        self.name = name
        self._store = store

    def __repr__(self) -> str:
        return f"<video {self.name!r}: features {self.feature_dataset.shape}>"

    def _read(self, look: Callable[[h5py.Group], _T]) -> _T:
        return self._store._read(lambda root: look(root[f"{schema.VIDEOS}/{self.name}"]))

    @property
    def feature_dataset(self) -> h5py.Dataset:
        """``(clips, *row_shape)``; slicing it reads no more than the slice.

        While a writer is at work ask for it anew each time: it can be read until the second commit from now.
        """
        return self._read(lambda video: video[schema.FEATURES])

    @property
    def features(self) -> np.ndarray:
        """All features, ``(clips, *row_shape)``, float32 or float16 as stored."""
        return self._read(lambda video: video[schema.FEATURES][()])

    @property
    def start_frame(self) -> np.ndarray:
        """Index of the first frame of each clip, int64 ``(clips,)``."""
        return self._read(lambda video: video[schema.START_FRAME][()])

    @property
    def clips(self) -> int:
        return self.feature_dataset.shape[0]

    @property
    def attrs(self) -> dict[str, Any]:
        """All that was noted of the video (source, frames, fps, codec, decoder, ...), as plain Python values."""
        return self._read(lambda video: schema.plain_attrs(video.attrs))

    @property
    def frames(self) -> int | None:
        """Decoded frames, including those after the last clip."""
        return self._attr("frames")

    @property
    def fps(self) -> float | None:
        """Frames per second."""
        return self._attr("fps")

    @property
    def aligned_clips(self) -> int | None:
        """Clips that have labels, None before alignment."""
        return self._attr(schema.ALIGNED_CLIPS)

    def _attr(self, key: str) -> Any:
        return self._read(lambda video: schema.plain(video.attrs.get(key)))

    @property
    def labels(self) -> Labels | None:
        """The ground truth, None before alignment."""
        return self._read(_read_labels)

    def is_intact(self) -> bool:
        """Whether features and start frames still are what was written, by their checksum."""
        return self._read(_checksum_holds)

    def attrs_intact(self) -> bool | None:
        """Whether attributes and name still are what was written; None where no checksum tells."""
        return self._read(functools.partial(_attrs_hold, name=self.name))

    def labels_intact(self) -> bool | None:
        """Whether labels and aligned clips still are what was written for this video; None where no checksum tells."""
        return self._read(functools.partial(_labels_hold, name=self.name))


def _read_labels(video: h5py.Group) -> Labels | None:
    if schema.LABELS not in video:
        return None
    group = video[schema.LABELS]
    attrs = schema.plain_attrs(group.attrs)
    attrs.pop(schema.CHECKSUM, None)
    return Labels(_written(group["frame"]), _written(group["clip"]), attrs)


def _written(dataset: h5py.Dataset) -> np.ndarray:
    """All of it. Raises OSError where nothing was written: such a dataset can claim any size and takes no space."""
    if dataset.size and not dataset.id.get_storage_size():
        raise OSError(f"{dataset.name} is said to hold {dataset.size} values, and none of them was written")
    return dataset[()]


def _labels_hold(video: h5py.Group, name: str) -> bool | None:
    labels = _read_labels(video)
    if labels is None or schema.CHECKSUM not in video[schema.LABELS].attrs:
        return None
    written = schema.plain(video[schema.LABELS].attrs[schema.CHECKSUM])
    return written == schema.labels_checksum(
        name, labels.frame, labels.clip, labels.attrs, video.attrs.get(schema.ALIGNED_CLIPS)
    )


def _attrs_hold(group: h5py.Group, name: str) -> bool | None:
    if schema.ATTRS_CHECKSUM not in group.attrs:
        return None
    return schema.plain(group.attrs[schema.ATTRS_CHECKSUM]) == schema.attrs_checksum(name, group.attrs)


def _checksum_holds(video: h5py.Group) -> bool:
    digest = hashlib.sha256()
    for dataset in (video[schema.FEATURES], video[schema.START_FRAME]):
        row_bytes = max(1, dataset.dtype.itemsize * int(np.prod(dataset.shape[1:])))
        step = max(1, _BLOCK // row_bytes)
        for start in range(0, dataset.shape[0], step):
            digest.update(np.ascontiguousarray(dataset[start : start + step]).data)
    return schema.plain(video.attrs.get(schema.CHECKSUM)) == schema.checksum(digest)


def _finish_interrupted_commit(path: str) -> None:
    """Finish what a killed writer began, for plain h5py too. Without the right to write, reading goes around it."""
    if not needs_recovery(path) or not os.access(path, os.W_OK):
        return
    try:
        lock = WriterLock(path)
    except StoreError:
        return
    try:
        with contextlib.suppress(OSError):
            recover(path)
    finally:
        lock.release()


def open_committed(path: str) -> tuple[CommittedFile, h5py.File]:
    """The committed state of ``path``, read only. Raises StoreError, NotAStore if it is not HDF5."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        file = _open_file(path)
        try:
            if file.read(len(_HDF5_SIGNATURE)) != _HDF5_SIGNATURE:
                raise NotAStore(f"{path}: is no streamfeat store (not an HDF5 file); choose another path")
            return file, h5py.File(file, "r")
        except OSError as error:
            settled = file.is_current()
            file.close()
            if settled or time.monotonic() > deadline:
                raise StoreError(f"{path}: is damaged ({error}); restore it or remove it") from error
        except BaseException:
            file.close()
            raise


def _words(error: Exception) -> str:
    """Of h5py's error, whose KeyErrors come in quotes."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def _open_file(path: str) -> CommittedFile:
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise NotAStore(f"{path}: is a pipe or a device; give the path of a file")  # opening it might never return
    try:
        return CommittedFile(path)
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file; check the path, or make it with 'streamfeat extract'") from None
    except IsADirectoryError:
        raise NotAStore(f"{path}: is a folder; give the path of a file") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({reason(error)}); check its permissions") from error
