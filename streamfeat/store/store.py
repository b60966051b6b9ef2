"""Reading a store: a mapping from video name to features, labels and attributes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from . import schema
from .errors import NotAStore, StoreError, reason
from .journal import CommittedFile, needs_recovery, recover
from .lock import WriterLock
from .schema import Failure, Header

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: bytes read at a time when a whole video is gone through
_BLOCK = 8 * 1024 * 1024


class FeatureStore(Mapping[str, "StoredVideo"]):
    """The store at ``path``, for reading, as a mapping from video name to :class:`StoredVideo`.

    Holds the state of the last commit when it was opened, also while a writer is at work, or after one was killed.
    Iterates in natural order of the names (``v2`` before ``v10``). Close it, or use it in a ``with``.

    Raises StoreError if there is no such file or it is damaged, NotAStore if streamfeat did not make it and
    StoreTooNew if a newer one did.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.realpath(path)
        _finish_interrupted_commit(self.path)
        self._file, self._h5 = open_committed(self.path)
        try:
            self.header = Header.read(self._h5, self.path)
            #: when it was made, ISO 8601, UTC, and by which version of streamfeat
            self.created = str(self._h5.attrs.get("created", ""))
            self.software = str(self._h5.attrs.get("software", ""))
        except BaseException:
            self.close()
            raise

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
        return sorted((name for name, _ in schema.walk_videos(self._h5)), key=schema.natural_key)

    @functools.cached_property
    def failures(self) -> dict[str, Failure]:
        """Videos whose last extraction failed. One may still be in the store as it was before it failed."""
        return dict(sorted(schema.walk_failures(self._h5), key=lambda item: schema.natural_key(item[0])))

    def __getitem__(self, name: str) -> StoredVideo:
        group = schema.find_video(self._h5, name)
        if group is None:
            raise KeyError(name)
        return StoredVideo(name, group)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and schema.find_video(self._h5, name) is not None

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

    def close(self) -> None:
        self._h5.close()
        self._file.close()


@dataclasses.dataclass(frozen=True)
class Labels:
    """Ground truth of a video: ``frame`` uint8 ``(frames,)`` and ``clip`` uint8 ``(clips,)``, 1 for abnormal."""

    frame: np.ndarray
    clip: np.ndarray
    #: where they came from
    attrs: dict[str, Any]


class StoredVideo:
    """One video of an open store. Nothing is read before it is asked for; nothing is kept in memory."""

    def __init__(self, name: str, group: h5py.Group) -> None:
        self.name = name
        self._group = group

    def __repr__(self) -> str:
        return f"<video {self.name!r}: features {self.feature_dataset.shape}>"

    @property
    def feature_dataset(self) -> h5py.Dataset:
        """``(clips, *row_shape)``; slicing it reads no more than the slice."""
        return self._group[schema.FEATURES]

    @property
    def features(self) -> np.ndarray:
        """All features, ``(clips, *row_shape)``, float32 or float16 as stored."""
        return self.feature_dataset[()]

    @property
    def start_frame(self) -> np.ndarray:
        """Index of the first frame of each clip, int64 ``(clips,)``."""
        return self._group[schema.START_FRAME][()]

    @property
    def clips(self) -> int:
        return self.feature_dataset.shape[0]

    @property
    def attrs(self) -> dict[str, Any]:
        """All that was noted of the video (source, frames, fps, codec, decoder, ...), as plain Python values."""
        return schema.plain_attrs(self._group.attrs)

    def _attr(self, key: str) -> Any:
        return schema.plain(self._group.attrs.get(key))

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

    @property
    def labels(self) -> Labels | None:
        """The ground truth, None before alignment."""
        group = self._group.get(schema.LABELS)
        if not isinstance(group, h5py.Group) or not {"frame", "clip"} <= group.keys():
            return None
        return Labels(group["frame"][()], group["clip"][()], schema.plain_attrs(group.attrs))

    def is_intact(self) -> bool:
        """Whether features and start frames still are what was written, by their checksum."""
        digest = hashlib.sha256()
        for key in (schema.FEATURES, schema.START_FRAME):
            dataset = self._group[key]
            row_bytes = max(1, dataset.dtype.itemsize * int(np.prod(dataset.shape[1:])))
            step = max(1, _BLOCK // row_bytes)
            for start in range(0, dataset.shape[0], step):
                digest.update(np.ascontiguousarray(dataset[start : start + step]).data)
        return self._attr(schema.CHECKSUM) == schema.checksum(digest)


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
    try:
        file = CommittedFile(path)
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file; check the path, or make it with 'streamfeat extract'") from None
    except IsADirectoryError:
        raise NotAStore(f"{path}: is a folder; give the path of a file") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({reason(error)}); check its permissions") from error
    try:
        head = file.read(len(_HDF5_SIGNATURE))
        if head != _HDF5_SIGNATURE:
            raise NotAStore(f"{path}: is no streamfeat store (not an HDF5 file); choose another path")
        try:
            return file, h5py.File(file, "r")
        except OSError as error:
            raise StoreError(f"{path}: is damaged ({error}); restore it or remove it") from error
    except BaseException:
        file.close()
        raise
