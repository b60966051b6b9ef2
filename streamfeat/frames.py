"""Frames as JPEG files, one folder a video: what the published pipelines read.

``Rgb_Fig/<video>/img_00000.jpg`` and on. The published script (Fed_WSVAD, ``Backbone/video/RGB_extraction.py``)
numbers from 1, names a folder by the last part of the video's name, and has red and blue exchanged in the
files: it converts to RGB and hands that to ``cv2.imwrite``, which takes it for BGR.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import filelock
import numpy as np
from PIL import Image

from streamfeat.decode.base import DecodeError
from streamfeat.decode.images import read_image
from streamfeat.decode.pyav import Pictures, read_header
from streamfeat.files import check_name, path_inside
from streamfeat.videos import Video, find_videos, list_frames

#: as cv2.imwrite by default, and what libjpeg does by default: one chroma value for four pixels
_SUBSAMPLING = "4:2:0"
#: videos decoded side by side, and encoded frames that each may be ahead of the disk
_LANES = 2
_AHEAD = 8
#: videos of which a few frames are encoded for the estimate
_SAMPLED_VIDEOS = 12
_SAMPLED_FRAMES = 3
#: bytes that a file takes at least on common file systems
_BLOCK = 4096
#: share of the free disk that an estimate may fill: it is one
_FILLED = 0.95
_LOCK = ".streamfeat.lock"


class FramesError(Exception):
    """The frames cannot be dumped as asked; nothing was written."""


class _Stopped(Exception):
    """Somebody asked for an early end."""


@dataclasses.dataclass(frozen=True)
class FrameLayout:
    """How frames are numbered and stored."""

    first_index: int = 0
    digits: int = 5
    #: of JPEG, 1 to 100
    quality: int = 95
    #: red and blue exchanged in the files
    swapped: bool = False
    #: folders named by the last part of the video's name
    flat: bool = False

    def __post_init__(self) -> None:
        if self.first_index not in (0, 1) or not 1 <= self.digits <= 12 or not 1 <= self.quality <= 100:
            raise FramesError("frames are numbered from 0 or 1, with 1 to 12 digits, in a quality from 1 to 100")

    def file_name(self, index: int) -> str:
        """Of the frame ``index``, counted from 0."""
        return f"img_{index + self.first_index:0{self.digits}d}.jpg"


#: what the published script writes; cv2.imwrite has quality 95 unless told otherwise
FED_WSVAD = FrameLayout(first_index=1, quality=95, swapped=True, flat=True)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a dump will take, guessed from headers and a few frames."""

    videos: int
    frames: int
    bytes: int
    #: bytes on the disk of the destination
    free: int

    @property
    def fits(self) -> bool:
        return self.bytes <= self.free * _FILLED

    def __str__(self) -> str:
        return (f"about {self.frames} frames of {self.videos} videos, {self.bytes / 1e9:.2f} GB of JPEG; "
                f"{self.free / 1e9:.2f} GB are free")


@dataclasses.dataclass
class Dumped:
    """What :func:`dump_frames` did."""

    destination: str
    #: {video: frames} of the folders made
    frames: dict[str, int] = dataclasses.field(default_factory=dict)
    #: videos whose folder was there already
    kept: list[str] = dataclasses.field(default_factory=list)
    #: {video: reason}
    failures: dict[str, str] = dataclasses.field(default_factory=dict)
    #: {video: packets that could not be decoded}
    damaged: dict[str, int] = dataclasses.field(default_factory=dict)
    #: ended early, on request
    stopped: bool = False

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def dump_frames(inputs: Sequence[str | os.PathLike[str]], destination: str | os.PathLike[str], *,
                layout: FrameLayout = FrameLayout(), root: str | os.PathLike[str] | None = None,
                on_estimate: Callable[[Estimate], None] | None = None,
                on_video: Callable[[str, int], None] | None = None, stop: threading.Event | None = None) -> Dumped:
    """Write the frames of all videos in ``inputs`` below ``destination``, one folder a video.

    Frames are those that ``extract`` sees with PyAV. A folder appears when it is complete; one that is there is
    kept, so that the same call goes on where an earlier one ended. ``on_estimate`` is told what it will take
    before anything is written, ``on_video`` of each folder made and its frames. Setting ``stop`` from another
    thread ends it early, with whole folders only.

    Raises InputError and FramesError before anything is written: nothing found, a disk that cannot hold it, or
    another dump at work in the folder. Raises UnsafeName for names that lead out of it, OSError for the disk.
    """
    videos = find_videos([os.fspath(given) for given in inputs], root)
    folders = _folders(videos, layout.flat)
    destination = Path(destination)
    dumped = Dumped(str(destination))
    todo = []
    for video in videos:
        if (destination / folders[video.name]).exists():
            dumped.kept.append(video.name)
        else:
            todo.append(video)
    if not todo:
        return dumped
    with ThreadPoolExecutor(os.cpu_count() or 1, "jpeg") as encoders:
        estimate = _estimate(todo, layout, destination, encoders)
        if on_estimate is not None:
            on_estimate(estimate)
        if not estimate.fits:
            raise FramesError(f"the disk of {destination} cannot hold the frames: {estimate}")
        over = threading.Event()
        with _locked(destination), ThreadPoolExecutor(_LANES, "decode") as lanes:
            def dump(video: Video) -> tuple[int, int]:
                folder = path_inside(destination, folders[video.name])
                return _dump(video, folder, layout, encoders, lambda: over.is_set() or (stop and stop.is_set()))

            running = {video.name: lanes.submit(dump, video) for video in todo}
            try:
                for name, future in running.items():
                    _collect(name, future, dumped, on_video)
            except _Stopped:
                dumped.stopped = True
            finally:
                over.set()  # an error here ends the lanes too
    return dumped


def _folders(videos: Sequence[Video], flat: bool) -> dict[str, str]:
    folders = {video.name: video.name.rpartition("/")[2] if flat else video.name for video in videos}
    taken: dict[str, str] = {}
    for name, folder in folders.items():
        check_name(folder)
        if folder in taken:
            raise FramesError(f"{taken[folder]} and {name} would both be {folder}: this layout has no folders between")
        taken[folder] = name
    for folder, name in taken.items():
        above = next((above for above in map(str, PurePosixPath(folder).parents) if above in taken), None)
        if above is not None:
            raise FramesError(f"the frames of {name} would lie among those of {taken[above]}: rename one of them")
    return folders


def _collect(name: str, future: Future[tuple[int, int]], dumped: Dumped,
             on_video: Callable[[str, int], None] | None) -> None:
    try:
        frames, damaged = future.result()
    except DecodeError as error:
        dumped.failures[name] = str(error)
        return
    dumped.frames[name] = frames
    if damaged:
        dumped.damaged[name] = damaged
    if on_video is not None:
        on_video(name, frames)


@contextmanager
def _locked(destination: Path) -> Iterator[None]:
    destination.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(destination / _LOCK, timeout=0)
    try:
        with lock:
            yield
    except filelock.Timeout:
        raise FramesError(f"another dump is writing to {destination}: wait for it, or choose another folder") from None


def _dump(video: Video, folder: Path, layout: FrameLayout, encoders: ThreadPoolExecutor,
          is_over: Callable[[], bool | None]) -> tuple[int, int]:
    """Write a folder; returns its frames and the packets that could not be decoded."""
    if is_over():
        raise _Stopped
    part = folder.with_name(f".{folder.name}.part")
    if part.exists():
        shutil.rmtree(part)
    part.mkdir()
    waiting: deque[Future[None]] = deque()
    frames = 0
    try:
        with closing(_Source(video)) as source:
            for frames, picture in enumerate(source, 1):
                waiting.append(encoders.submit(_write, part / layout.file_name(frames - 1), picture, layout))
                if len(waiting) > _AHEAD:
                    waiting.popleft().result()
                if is_over():
                    raise _Stopped
            while waiting:
                waiting.popleft().result()
            damaged = source.damaged
        if not frames:
            raise DecodeError("it holds no frame")
        os.replace(part, folder)
    except BaseException:
        for future in waiting:
            future.cancel()
        for future in waiting:
            if not future.cancelled():
                future.exception()
        shutil.rmtree(part, ignore_errors=True)
        raise
    return frames, damaged


class _Source:
    """The pictures of a video file or a folder of frames: uint8 BGR ``(h, w, 3)``."""

    def __init__(self, video: Video) -> None:
        self._pictures = Pictures(video.path, threads=1) if video.kind == "file" else None
        self._folder = video.path

    @property
    def damaged(self) -> int:
        return self._pictures.damaged if self._pictures is not None else 0

    def __iter__(self) -> Iterator[np.ndarray]:
        if self._pictures is not None:
            yield from self._pictures
            return
        for path in list_frames(self._folder):
            yield read_image(path)[..., ::-1]

    def close(self) -> None:
        if self._pictures is not None:
            self._pictures.close()


def _write(path: Path, picture: np.ndarray, layout: FrameLayout) -> None:
    path.write_bytes(_jpeg(picture, layout))


def _jpeg(picture: np.ndarray, layout: FrameLayout) -> bytes:
    """The file of a BGR ``picture``."""
    # Pillow takes it for RGB, and so will whoever reads the file
    stored = picture if layout.swapped else picture[..., ::-1]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stored)).save(buffer, "JPEG", quality=layout.quality, subsampling=_SUBSAMPLING)
    return buffer.getvalue()


def _estimate(videos: Sequence[Video], layout: FrameLayout, destination: Path, pool: ThreadPoolExecutor) -> Estimate:
    sizes = list(pool.map(_probe, videos))
    step = max(1, len(videos) // _SAMPLED_VIDEOS)
    samples = [sample for sample in pool.map(lambda video: _sample(video, layout), videos[::step]) if sample]
    # of a file: what grows with the picture, and the rest of its last block on the disk
    per_pixel = sum(size for size, _ in samples) / max(1, sum(pixels for _, pixels in samples))
    frames = sum(count for count, _ in sizes)
    total = sum(count * (pixels * per_pixel + _BLOCK / 2) for count, pixels in sizes)
    existing = next(folder for folder in (destination.absolute(), *destination.absolute().parents) if folder.exists())
    return Estimate(len(videos), frames, int(total), shutil.disk_usage(existing).free)


def _probe(video: Video) -> tuple[int, int]:
    """Frames and pixels a frame, as the headers have it; (0, 0) for what cannot be opened."""
    try:
        if video.kind == "file":
            frames, width, height = read_header(video.path)
            return frames, width * height
        paths = list_frames(video.path)
        height, width, _ = read_image(paths[0]).shape
        return len(paths), width * height
    except (DecodeError, OSError, IndexError):
        return 0, 0


def _sample(video: Video, layout: FrameLayout) -> tuple[int, int] | None:
    """Bytes and pixels of the first few frames."""
    try:
        with closing(_Source(video)) as source:
            pictures = list(itertools.islice(source, _SAMPLED_FRAMES))
    except (DecodeError, OSError):
        return None
    return (sum(len(_jpeg(picture, layout)) for picture in pictures),
            sum(picture.shape[0] * picture.shape[1] for picture in pictures))
