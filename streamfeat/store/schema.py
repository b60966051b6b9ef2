"""What a store holds and where: names, attributes and their meaning.

    /                         attrs: format, format_version, recipe, model, dtype, row_shape, dims (JSON), created,
                              software, commits (their number so far)
    /videos/<name>            attrs: those of the video, and checksum
    /videos/<name>/features   (clips, *row_shape), dimension labels "clip" and dims
    /videos/<name>/start_frame  int64 (clips,): index of each clip's first frame
    /videos/<name>/labels     frame and clip, uint8, once aligned; attr aligned_clips on the video
    /failures/<name>          attrs: stage, error, when

``checksum`` is ``sha256:<hex>`` over the bytes of ``features`` (C order, little endian, as stored), then those of
``start_frame``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

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
COMMITS = "commits"
ALIGNED_CLIPS = "aligned_clips"
#: what a video holds itself; no video below it can have such a name
RESERVED = (FEATURES, START_FRAME, LABELS)
DTYPES = ("float32", "float16")


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


def _walk(
    group: h5py.h5g.GroupID, prefix: str = "", below_video: bool = False
) -> Iterable[tuple[str, h5py.h5g.GroupID, bool]]:
    """Every group below ``group``, but for what videos hold: its path, itself, and whether it is a video's."""
    for raw in group:
        name = raw.decode("utf-8", "surrogateescape")
        if below_video and name in RESERVED:
            continue
        try:
            child = h5py.h5o.open(group, raw)
        except (KeyError, RuntimeError, OSError):
            continue  # a link into another file, which is gone
        if isinstance(child, h5py.h5g.GroupID):
            is_video = is_video_group(child)
            yield prefix + name, child, is_video
            yield from _walk(child, f"{prefix}{name}/", is_video)


def is_video_group(group: h5py.h5g.GroupID) -> bool:
    """Whether the group is a video's: a folder of videos may hold one named ``features``, but that is a group."""
    raw = FEATURES.encode()
    return raw in group and h5py.h5o.get_info(group, raw).type == h5py.h5o.TYPE_DATASET


def walk_group(group: h5py.Group) -> Iterable[tuple[str, h5py.h5g.GroupID]]:
    """Every video below ``group``: its name there and its group. Low level, because stores hold thousands."""
    for name, child, is_video in _walk(group.id):
        if is_video:
            yield name, child


def walk_videos(root: h5py.Group) -> Iterable[tuple[str, h5py.h5g.GroupID]]:
    return walk_group(root[VIDEOS]) if VIDEOS in root else ()


def walk_failures(root: h5py.Group) -> Iterable[tuple[str, Failure]]:
    if FAILURES not in root:
        return
    for name, group, _ in _walk(root[FAILURES].id):
        attrs = h5py.Group(group).attrs
        if "stage" in attrs:
            yield name, Failure(*(str(plain(attrs.get(field.name, ""))) for field in dataclasses.fields(Failure)))


def find_video(root: h5py.Group, name: str) -> h5py.Group | None:
    if name_problem(name) is not None:
        return None
    group = root.get(f"{VIDEOS}/{name}")
    return group if isinstance(group, h5py.Group) and is_video_group(group.id) else None


def read_record(group: h5py.h5g.GroupID) -> VideoRecord:
    attrs = h5py.Group(group).attrs
    source_bytes, source_mtime_ns, frames, damaged_packets = (
        plain(attrs.get(field.name)) for field in dataclasses.fields(VideoRecord)
    )
    return VideoRecord(source_bytes, source_mtime_ns, frames, damaged_packets or 0)


def checksum(digest: Any) -> str:
    """The value of the attribute ``checksum`` for a SHA-256 ``digest``."""
    return f"sha256:{digest.hexdigest()}"
