"""What a store holds and where: names, attributes and their meaning.

    /                         attrs: format, format_version, recipe, model, dtype, row_shape, dims (JSON), created,
                              software, attrs_checksum, commits (their number so far)
    /videos/<name>            attrs: those of the video, checksum, attrs_checksum
    /videos/<name>/features   (clips, *row_shape), dimension labels "clip" and dims
    /videos/<name>/start_frame  int64 (clips,): index of each clip's first frame
    /videos/<name>/labels     frame and clip, uint8, once aligned; attrs: those of the labels, checksum;
                              attr aligned_clips on the video
    /failures/<name>          attrs: stage, error, when

Checksums are ``sha256:<hex>``. That of a video is over the bytes of ``features`` (C order, little endian, as
stored), then those of ``start_frame``. ``attrs_checksum`` is over ``[name, attributes]`` as JSON with sorted keys: the
name of the video, empty for the root, and the other attributes of its object but for those that change later,
``commits`` and ``aligned_clips``. That of the labels is over such JSON of the video's name and their attributes,
``aligned_clips`` among them, then the dtype and shape (as ``|u1 [64]``) and the bytes of ``frame``, then those of
``clip``. Older stores have the first of these checksums alone: no object in them has another.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import h5py
import numpy as np

from .errors import NotAStore, StoreError, StoreTooNew

FORMAT = "streamfeat"
FORMAT_VERSION = 1
VIDEOS = "videos"
FAILURES = "failures"
FEATURES = "features"
START_FRAME = "start_frame"
LABELS = "labels"
CHECKSUM = "checksum"
ATTRS_CHECKSUM = "attrs_checksum"
COMMITS = "commits"
ALIGNED_CLIPS = "aligned_clips"
#: what a video holds itself; no video below it can have such a name
RESERVED = (FEATURES, START_FRAME, LABELS)
DTYPES = ("float32", "float16")
#: groups looked at in one go
_PORTION = 16
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Header:
    """What a store is for, written once. Two headers are compatible if their features may share a store.

    ``recipe`` (with its ``name``) and ``model`` (``size``, ``source``, ``sha256``) are plain JSON values.
    ``row_shape`` is the shape of one clip's features, ``dims`` the names of those dimensions, such as
    ``(3, 1408)`` and ``("statistic", "channel")``.
    """

    recipe: Mapping[str, Any]
    model: Mapping[str, Any]
    row_shape: tuple[int, ...]
    dims: tuple[str, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for field in ("recipe", "model"):
            object.__setattr__(self, field, json.loads(json.dumps(getattr(self, field))))
        object.__setattr__(self, "row_shape", tuple(int(size) for size in self.row_shape))
        object.__setattr__(self, "dims", tuple(self.dims))
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be {' or '.join(DTYPES)}, not {self.dtype!r}")
        if len(self.dims) != len(self.row_shape):
            raise ValueError(f"dims {self.dims} do not name the dimensions of {self.row_shape}")

    @property
    def numpy_dtype(self) -> np.dtype:
        """As stored: little endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    def _identity(self) -> dict[str, Any]:
        fields = {f"recipe.{key}": value for key, value in self.recipe.items() if key != "name"}
        fields |= {f"model.{key}": self.model.get(key) for key in ("size", "sha256")}
        return fields | {"dtype": self.dtype, "row_shape": list(self.row_shape)}

    def differences(self, other: Header) -> dict[str, tuple[Any, Any]]:
        """Fields in which features of the two differ: ``{field: (here, in other)}``.

        Names decide nothing: neither the recipe's, nor where the weights came from.
        """
        here, there = self._identity(), other._identity()
        return {
            field: (here.get(field), there.get(field))
            for field in dict.fromkeys((*here, *there))
            if here.get(field) != there.get(field)
        }

    def write(self, root: h5py.Group, created: str, software: str) -> None:
        root.attrs[COMMITS] = np.int64(0)  # the first, and so surely in the first page
        root.attrs["format"] = FORMAT
        root.attrs["format_version"] = FORMAT_VERSION
        for field in ("recipe", "model", "row_shape", "dims"):
            root.attrs[field] = json.dumps(getattr(self, field))
        root.attrs["dtype"] = self.dtype
        root.attrs["created"] = created
        root.attrs["software"] = software
        root.attrs[ATTRS_CHECKSUM] = attrs_checksum("", root.attrs)

    @classmethod
    def read(cls, root: h5py.Group, path: str) -> Header:
        """The header of the store at ``path``. Raises NotAStore and StoreTooNew."""
        attrs = root.attrs
        if attrs.get("format") != FORMAT:
            raise NotAStore(f"{path}: is an HDF5 file, but not of streamfeat; choose another output")
        version = attrs.get("format_version")
        if not isinstance(version, (int, np.integer)) or version > FORMAT_VERSION:
            raise StoreTooNew(
                f"{path}: has format version {version}, this streamfeat knows {FORMAT_VERSION}; update streamfeat"
            )
        try:
            fields = {field: json.loads(attrs[field]) for field in ("recipe", "model", "row_shape", "dims")}
            return cls(**fields, dtype=attrs["dtype"])
        except (KeyError, ValueError, TypeError) as error:
            raise StoreError(f"{path}: its header is damaged ({error}); extract anew with --overwrite") from error


@dataclasses.dataclass(frozen=True)
class VideoRecord:
    """What a resuming run asks of a video: whether its source is still the one that was read. None: unknown."""

    source_bytes: int | None
    source_mtime_ns: int | None
    frames: int | None
    damaged_packets: int


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a video has no (new) features: the stage that failed, its one-line error, and when (ISO 8601, UTC)."""

    stage: str
    error: str
    when: str


def check_names(names: Iterable[str]) -> list[str]:
    """Reasons, one line each, why videos of these names cannot share a store; empty if they can."""
    names = list(dict.fromkeys(names))
    problems = [problem for name in names if (problem := name_problem(name)) is not None]
    known = set(names)
    for name in names:
        parts = name.split("/")
        problems += [
            f"{name}: lies below the video {video!r}, which has its own {parts[depth]!r} there; rename one of them"
            for depth in range(1, len(parts))
            if parts[depth] in RESERVED and (video := "/".join(parts[:depth])) in known
        ]
    return problems


def name_problem(name: str) -> str | None:
    """Why no store can hold a video of this name; None if one can."""
    if not all(part not in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        return f"{name!r}: cannot be a video's name (empty, '.' or '..' between slashes); rename the input"
    try:
        name.encode()
    except UnicodeEncodeError:
        return f"{name!r}: cannot be a video's name (its bytes are not UTF-8); rename the input"
    return None


def natural_key(name: str) -> list[list[tuple[int, int, str]]]:
    """Sort key that counts: ``v2`` before ``v10``, and a folder's videos together."""
    return [
        [(0, int(piece), piece) if piece.isdecimal() else (1, 0, piece) for piece in re.split(r"(\d+)", part)]
        for part in name.split("/")
    ]


def plain(value: Any) -> Any:
    """An attribute as a Python value: numpy scalars and arrays become numbers and lists."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def plain_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: plain(value) for key, value in attrs.items()}


def is_video_group(group: h5py.h5g.GroupID) -> bool:
    """Whether the group is a video's: a folder of videos may hold one named ``features``, but that is a group."""
    return FEATURES.encode() in group and h5py.h5o.get_info(group, FEATURES.encode()).type == h5py.h5o.TYPE_DATASET


def find_video(root: h5py.Group, name: str) -> h5py.Group | None:
    if name_problem(name) is not None:
        return None
    group = root.get(f"{VIDEOS}/{name}")
    return group if isinstance(group, h5py.Group) and is_video_group(group.id) else None


class Read(Protocol):
    """Gives what ``look`` sees in the root group, all of it in one committed state."""

    def __call__(self, look: Callable[[h5py.Group], _T], /) -> _T: ...


def walk_videos(read: Read) -> Iterator[str]:
    """The name of every video, in no order."""
    return (name for name, _ in _walk(read, VIDEOS, lambda group, is_video: is_video or None))


def walk_records(read: Read) -> Iterator[tuple[str, VideoRecord]]:
    """Every video with its record, in no order."""
    return _walk(read, VIDEOS, lambda group, is_video: read_record(group) if is_video else None)


def walk_failures(read: Read) -> Iterator[tuple[str, Failure]]:
    """Every failure, in no order."""
    return _walk(read, FAILURES, _failure)


def _walk(read: Read, top: str, describe: Callable[[h5py.h5g.GroupID, bool], _T | None]) -> Iterator[tuple[str, _T]]:
    """The groups below ``top`` that ``describe(group, is_video)`` knows, by their paths there.

    In portions, because a store of thousands of videos may be written faster than it can be read at once; and
    low level, because h5py's comfort costs seconds then. A link to a folder that was listed already, which may be
    one that it lies in, is not followed.
    """
    folders = [""]
    listed: dict[int, str] = {}
    while folders:
        folder = folders.pop()
        names = read(functools.partial(_list_folder, path=f"{top}/{folder}", listed=listed))
        for start in range(0, len(names), _PORTION):
            look = functools.partial(
                _describe, path=f"{top}/{folder}", names=names[start : start + _PORTION], describe=describe
            )
            for name, described, is_folder in read(look):
                if described is not None:
                    yield folder + name, described
                if is_folder:
                    folders.append(f"{folder}{name}/")


def _list_folder(root: h5py.Group, path: str, listed: dict[int, str]) -> list[str]:
    """What the folder holds; nothing if it is one of those ``listed``, by their addresses, to which it is added."""
    if path not in root:
        return []
    group = root[path].id
    where = object_address(group)
    earlier = listed.setdefault(where[1], path)
    # asked anew: a writer at work may meanwhile have put another folder in the place of the one listed
    if earlier != path and earlier in root and object_address(root[earlier].id) == where:
        return []
    return _inner_names(group, is_video_group(group))


def object_address(opened: h5py.h5g.GroupID) -> tuple[int, int]:
    """The file that an open object is in and its place there: links to one object have it in common."""
    found = h5py.h5o.get_info(opened)
    return found.fileno, found.addr


def _inner_names(group: h5py.h5g.GroupID, is_video: bool) -> list[str]:
    """What a folder holds; of a video, what lies below it and is not its own."""
    names = [name.decode() for name in group]
    return [name for name in names if name not in RESERVED] if is_video else names


def _describe(
    root: h5py.Group, path: str, names: list[str], describe: Callable[[h5py.h5g.GroupID, bool], _T | None]
) -> list[tuple[str, _T | None, bool]]:
    folder = root[path].id
    seen = []
    for name in names:
        group = h5py.h5o.open(folder, name.encode())
        if isinstance(group, h5py.h5g.GroupID):
            is_video = is_video_group(group)
            seen.append((name, describe(group, is_video), bool(_inner_names(group, is_video))))
    return seen


def _failure(group: h5py.h5g.GroupID, is_video: bool) -> Failure | None:
    attrs = h5py.AttributeManager(h5py.Group(group))
    if "stage" not in attrs:
        return None
    return Failure(*(str(plain(attrs.get(field.name, ""))) for field in dataclasses.fields(Failure)))


def read_record(group: h5py.h5g.GroupID) -> VideoRecord:
    """The record of a video, read at low level: h5py's attributes would take a second for some thousands."""
    return VideoRecord(
        source_bytes=_integer(group, b"source_bytes"),
        source_mtime_ns=_integer(group, b"source_mtime_ns"),
        frames=_integer(group, b"frames"),
        damaged_packets=_integer(group, b"damaged_packets") or 0,
    )


def _integer(group: h5py.h5g.GroupID, name: bytes) -> int | None:
    if not h5py.h5a.exists(group, name):
        return None
    value = np.empty((), np.int64)
    h5py.h5a.open(group, name).read(value)
    return int(value)


def checksum(digest: Any) -> str:
    """The value of the attribute ``checksum`` for a SHA-256 ``digest``."""
    return f"sha256:{digest.hexdigest()}"


def attrs_checksum(name: str, attrs: Mapping[str, Any]) -> str:
    """The value of ``attrs_checksum`` for the video ``name``, or the root (empty), with these attributes."""
    later = (ATTRS_CHECKSUM, COMMITS, ALIGNED_CLIPS)
    return checksum(_digest(name, {key: value for key, value in plain_attrs(attrs).items() if key not in later}))


def labels_checksum(name: str, frame: np.ndarray, clip: np.ndarray, attrs: Mapping[str, Any],
                    aligned_clips: int | None) -> str:
    """The value of the ``checksum`` of the labels of the video ``name``; ``attrs`` without it."""
    digest = _digest(name, plain_attrs(attrs) | {ALIGNED_CLIPS: plain(aligned_clips)})
    for values in (frame, clip):
        digest.update(f"{values.dtype.newbyteorder('<').str} {list(values.shape)}".encode())
        digest.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)
    return checksum(digest)


def _digest(name: str, attrs: Mapping[str, Any]) -> Any:
    return hashlib.sha256(json.dumps([name, attrs], sort_keys=True).encode())
