"""Labels from a file or folder, whichever form it has."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamfeat.labels import annotations, unpickle
from streamfeat.labels.errors import LabelError, twice
from streamfeat.labels.flat import split_flat
from streamfeat.labels.values import MAX_LABELS, frame_labels, video_label
from streamfeat.text import first_line

#: bytes of a label file; XD-Violence as float64 takes 150 MB
MAX_BYTES = 1 << 30

FORMS = (".pickle or .pkl, .npz, .json, a folder of .npy (one a video), one .npy with a list of videos, "
         "UCF-Crime's or XD-Violence's annotation .txt, a folder of UBnormal's _tracks.txt")
VIDEO_FORMS = ".pickle or .pkl, .npz, .json, a .npy of a pickled dict"


@dataclasses.dataclass(frozen=True)
class Labels:
    """What a source says.

    ``frame``: {name in the source: array (S,)}, uint8 where all are 0 or 1. ``video``: {video: 1} for those it
    tells to be anomalous without saying in which frames. ``form``: what the source was taken for.
    """

    form: str
    frame: Mapping[str, np.ndarray]
    video: Mapping[str, int] = dataclasses.field(default_factory=dict)


def read_labels(source: str | Path, videos: Mapping[str, int] | None = None,
                test_list: str | Path | None = None) -> Labels:
    """Frame labels in any of the forms of ``FORMS``.

    ``videos`` is ``{name: frames}`` and needed by annotations and flat arrays; ``test_list`` is the list of
    videos that a flat array follows, and wrong for anything else. Nothing in the source is run. Raises LabelError.
    """
    source = Path(source)
    if source.is_dir() or (source.is_file() and source.suffix.lower() == ".txt"):
        _refuse_list(source, test_list)
        return _read_folder(source, videos) if source.is_dir() else _read_annotation(source, videos)
    if not source.is_file():
        raise LabelError(f"{source}: there is no such file or folder")
    form, content = _read_file(source, "labels", FORMS)
    if isinstance(content, np.ndarray) and source.suffix.lower() == ".npy":
        how, labels = split_flat(source, content, test_list, videos)
        return Labels(f"one array for a list of videos, {how}", labels)
    _refuse_list(source, test_list)
    return Labels(form, _by_video(source, content))


def read_video_labels(source: str | Path) -> dict[str, int]:
    """``{name: 0 or 1}`` from a file of video-level labels, as ``GT/video_label.pickle``, in any of ``VIDEO_FORMS``.

    Raises LabelError.
    """
    source = Path(source)
    if source.is_dir():
        raise LabelError(f"{source}: a folder, not a file of video labels")
    if not source.is_file():
        raise LabelError(f"{source}: there is no such file")
    _, content = _read_file(source, "video labels", VIDEO_FORMS)
    named = _names(source, content)
    try:
        return {name: video_label(name, value) for name, value in named.items()}
    except LabelError as error:
        raise LabelError(f"{source}: {error}") from None


def _refuse_list(source: Path, test_list: str | Path | None) -> None:
    if test_list is not None:
        raise LabelError(f"{source}: names its videos itself: leave out --list, which is for one flat array")


def _read_file(source: Path, what: str, forms: str) -> tuple[str, Any]:
    """What ``source`` was taken for by its ending, and what it holds."""
    suffix = source.suffix.lower()
    if suffix == ".npy":
        return "pickled array", _read_npy(source.name, _bytes_of(source))
    if suffix in (".pickle", ".pkl", ".p"):
        return "pickle", _read_pickle(source)
    if suffix == ".json":
        return "JSON", _read_json(source)
    if suffix == ".npz":
        return "npz", _read_npz(source)
    raise LabelError(f"{source}: not a form that {what} are read from; these are: {forms}")


def _by_video(source: Path, content: Any) -> dict[str, np.ndarray]:
    named = _names(source, content)
    # before anything is converted: one long list can stand for many videos
    if sum(map(_length, named.values())) > MAX_LABELS:
        raise LabelError(f"{source}: more than {MAX_LABELS:,} labels: more than any data set has")
    try:
        labels = {name: frame_labels(name, value) for name, value in named.items()}
    except LabelError as error:
        raise LabelError(f"{source}: {error}") from None
    if labels and all(len(value) == 1 for value in labels.values()):
        raise LabelError(f"{source}: one label a video: these are video labels, not frame labels")
    return labels


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list | tuple) else np.size(value) if isinstance(value, np.ndarray) else 1


def _names(source: Path, content: Any) -> dict[str, Any]:
    if isinstance(content, np.ndarray) and content.shape == ():
        content = content.item()
    if not isinstance(content, Mapping):
        raise LabelError(f"{source}: holds a {type(content).__name__}, not labels by video name")
    named = {}
    for name, value in content.items():
        if isinstance(name, bytes):
            name = name.decode("utf-8", "replace")
        if name in named:
            raise LabelError(f"{source}: {twice(name)}")
        named[name] = value
    return named


def _read_folder(source: Path, videos: Mapping[str, int] | None) -> Labels:
    arrays = sorted(path for path in source.rglob("*.npy") if path.is_file())
    if not arrays:
        if next(source.rglob("*_tracks.txt"), None) is None:
            raise LabelError(f"{source}: no .npy and no _tracks.txt in this folder")
        return _read_annotation(source, videos)
    content = {}
    for path in arrays:
        content[path.relative_to(source).with_suffix("").as_posix()] = _read_npy(str(path), _bytes_of(path))
    labels = _by_video(source, content)
    # ShanghaiTech has masks for the test half alone: nothing happens in the other
    normal, _ = annotations.told_by_name(annotations.SHANGHAITECH, (videos or {}).keys() - labels.keys())
    return Labels("folder of arrays", labels | {video: np.zeros(videos[video], np.uint8) for video in normal})


def _read_annotation(source: Path, videos: Mapping[str, int] | None) -> Labels:
    if videos is None:
        raise LabelError(f"{source}: an annotation names intervals; give --videos with the store that has their frames")
    annotation = annotations.read_annotation(source)
    frame, video = annotations.label_videos(annotation, videos)
    return Labels(f"{annotation.dataset.name} annotation", frame, video)


def _bytes_of(source: Path) -> bytes:
    if source.stat().st_size > MAX_BYTES:
        raise LabelError(f"{source}: larger than {MAX_BYTES >> 20} MiB: no label file is")
    return source.read_bytes()


def _read_pickle(source: Path) -> Any:
    try:
        return unpickle.loads(_bytes_of(source))
    except LabelError as error:
        raise LabelError(f"{source}: {error}") from None


def _read_json(source: Path) -> Any:
    try:
        return json.loads(_bytes_of(source), object_pairs_hook=_unique)
    except LabelError as error:
        raise LabelError(f"{source}: {error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LabelError(f"{source}: not JSON ({error})") from None
    except ValueError:  # Python's guard against integers that take long to read
        raise LabelError(f"{source}: holds a number of thousands of digits: no label is that large") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        seen: set[str] = set()
        raise LabelError(twice(next(name for name, _ in pairs if name in seen or seen.add(name))))
    return named


def _read_npz(source: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(source) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                raise LabelError(f"{source}: larger than {MAX_BYTES >> 20} MiB when unpacked: no label file is")
            content: dict[str, Any] = {}
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name in content:
                    raise LabelError(f"{source}: {twice(name)}")
                content[name] = _read_npy(f"{source}, {member.filename}", archive.read(member))
            return content
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise LabelError(f"{source}: not an .npz ({error})") from None


def _read_npy(name: str, data: bytes) -> Any:
    """An array, or what a pickled object array holds; allocates no more than ``data`` is long."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
    except (ValueError, EOFError, RecursionError) as error:
        raise LabelError(f"{name}: not a .npy ({first_line(error)})") from None
    if dtype.hasobject:
        try:
            content = unpickle.loads(data[file.tell() :])
        except LabelError as error:
            raise LabelError(f"{name}: {error}") from None
        return content.item() if isinstance(content, np.ndarray) and content.shape == () else content
    elements = math.prod(shape)
    if elements * dtype.itemsize != len(data) - file.tell():
        raise LabelError(f"{name}: cut off: {shape} values of {dtype} do not fit")
    if not elements:
        return np.zeros(0, np.uint8)
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")
