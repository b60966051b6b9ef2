"""Frames as JPEG files, one folder a video: what the published pipelines read.

``Rgb_Fig/<video>/img_00000.jpg`` and on. The published script (Fed_WSVAD, ``Backbone/video/RGB_extraction.py``)
numbers from 1, names a folder by the last part of the video's name, and has red and blue exchanged in the
files: it converts to RGB and hands that to ``cv2.imwrite``, which takes it for BGR.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from av.error import FFmpegError

from streamfeat.decode.base import DecodeError, FallBack
from streamfeat.decode.images import read_image
from streamfeat.decode.probe import count_packets
from streamfeat.decode.pyav import Pictures, open_container, read_header, video_stream
from streamfeat.files import check_name, path_inside
from streamfeat.frame_layout import FED_WSVAD, PLAIN, REMOVE, FrameLayout, FramesError, fault, jpeg
from streamfeat.store import StoreError, StoreLocked
from streamfeat.store.lock import WriterLock
from streamfeat.text import counted
from streamfeat.videos import Video, display, find_videos, list_frames

if TYPE_CHECKING:
    import torch

    from streamfeat.decode.jpeg import JpegFrames

__all__ = ["FED_WSVAD", "PLAIN", "Dumped", "Estimate", "FrameLayout", "FramesError", "dump_frames"]

#: videos decoded side by side: encoding a frame takes about 1.5 times as long as decoding it (1.3 to 4.0 ms after
#: 1.1 to 2.5 ms, for H.264 of 240 to 360 lines), so that of five cores two decode
_LANES = max(2, (os.cpu_count() or 1) * 2 // 5)
#: encoded frames that each may be ahead of the disk
_AHEAD = 8
#: videos of which a few frames are encoded for the estimate
_SAMPLED_VIDEOS = 12
_SAMPLED_FRAMES = 3
#: bytes that a file takes at least on common file systems
_BLOCK = 4096
#: share of the free disk that an estimate may fill: it is one
_FILLED = 0.95
#: bytes of a name on every common file system
_LONGEST_NAME = 255


class _Stopped(Exception):
    """Somebody asked for an early end."""


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
        return (f"about {counted(self.frames, 'frame')} of {counted(self.videos, 'video')}, "
                f"{self.bytes / 1e9:.3g} GB of JPEG; {self.free / 1e9:.3g} GB are free")


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
                layout: FrameLayout = PLAIN, root: str | os.PathLike[str] | None = None,
                on_estimate: Callable[[Estimate], None] | None = None,
                on_video: Callable[[str, int], None] | None = None, stop: threading.Event | None = None,
                device: torch.device | None = None) -> Dumped:
    """Write the frames of all videos in ``inputs`` below ``destination``, one folder a video.

    Frames are those that ``extract`` sees with PyAV. A folder appears when it is complete; one that is there is
    kept if it has as many frames as its video, so that the same call goes on where an earlier one ended.
    ``on_estimate`` is told what it will take before anything is written, ``on_video`` of each folder made and its
    frames. Setting ``stop`` from another thread ends it early, with whole folders only.

    With ``device``, videos that DALI can decode there are decoded and coded there, other than in the published
    script's layout, whose files are the same byte for byte everywhere. Such frames are DALI's, and keep all chroma.

    Raises InputError and FramesError before anything is written: nothing found, a destination that cannot be
    written or lies in an input, folders in it that are not complete, were made in another layout or of another
    video, videos with more frames than the digits can number, a disk that cannot hold it, or another dump at work.
    Raises UnsafeName for names that lead out of the destination, OSError when the disk fails it later.
    """
    inputs = [os.fspath(given) for given in inputs]
    videos = find_videos(inputs, root)
    folders = _folders(videos, layout.flat)
    destination = Path(destination)
    _check_destination(destination)
    _check_outside(destination, inputs, root, videos, folders)
    dumped = Dumped(str(destination))
    todo, there = [], []
    for video in videos:
        (there if os.path.lexists(destination / folders[video.name]) else todo).append(video)
    with ThreadPoolExecutor(os.cpu_count() or 1, "jpeg") as encoders:
        _check_kept({destination / folders[video.name]: video for video in there}, layout, encoders)
        dumped.kept = [video.name for video in there]
        if not todo:
            return dumped
        headers = dict(zip((video.name for video in todo), encoders.map(_probe, todo), strict=True))
        _check_digits(headers, layout)
        on_device = device is not None and not layout.swapped
        estimate = _estimate(todo, headers, layout, on_device, destination, encoders)
        if on_estimate is not None:
            on_estimate(estimate)
        if not estimate.fits:
            raise FramesError(f"the disk of {destination} cannot hold the frames: {estimate}")
        over = threading.Event()
        with _locked(destination), ThreadPoolExecutor(_LANES, "decode") as lanes:
            def dump(video: Video) -> tuple[int, int]:
                folder = path_inside(destination, folders[video.name])

                def is_over() -> bool | None:
                    return over.is_set() or (stop and stop.is_set())

                if on_device and video.kind == "file":
                    from streamfeat.decode.jpeg import JpegFrames

                    with suppress(FallBack):
                        return _dump(
                            folder, layout, encoders, is_over, lambda: JpegFrames(video, device, layout.quality)
                        )
                return _dump(folder, layout, encoders, is_over, lambda: _Source(video))

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


def _check_destination(destination: Path) -> None:
    """Raise FramesError where no folder can be made."""
    existing = _existing(destination)
    if not existing.is_dir():
        raise FramesError(f"{display(existing)} is no folder: choose another destination for the frames")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise FramesError(f"{display(existing)} may not be written: choose another destination for the frames")


def _existing(path: Path) -> Path:
    """The path, or the nearest one above it that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.lexists(folder))


def _check_outside(destination: Path, inputs: Sequence[str], root: str | os.PathLike[str] | None,
                   videos: Sequence[Video], folders: Mapping[str, str]) -> None:
    """Raise FramesError where the frames would be found as videos when the same inputs are given again."""
    real = Path(os.path.realpath(destination))
    around = {real, *real.parents}
    for given in inputs:
        if given.startswith("@") and not Path(given).exists():
            searched = _searched_for(given, root, around)
        elif os.path.isdir(given):
            searched = given if any(folder in around for folder in _folders_in(given)) else None
        else:
            continue
        if searched is not None:
            raise FramesError(f"{display(destination)} lies in {display(Path(searched))}, which is searched for "
                              "videos: its frames would be taken for more of them; choose a folder outside")
    for video in videos:
        if video.kind == "file" and real / folders[video.name] == Path(os.path.realpath(video.path)).with_suffix(""):
            raise FramesError(f"the frames of {display(video.path)} would lie beside it under its own name, and either "
                              "be taken for the other; choose another destination")


def _folders_in(top: str) -> Iterator[Path]:
    """The real paths of all folders that a search from ``top`` comes through, links followed."""
    waiting, seen = [os.path.realpath(top)], set()
    while waiting:
        folder = waiting.pop()
        if folder in seen:
            continue
        seen.add(folder)
        yield Path(folder)
        with suppress(OSError), os.scandir(folder) as entries:
            waiting += [os.path.realpath(entry.path) for entry in entries
                        if not entry.name.startswith(".") and os.path.isdir(entry.path)]


def _searched_for(given: str, root: str | os.PathLike[str] | None, around: Set[Path]) -> str | None:
    """The folder among those ``around`` the destination that the entries of a list were searched for in.

    Entries that are paths are not searched for, and are found again whatever lies beside them.
    """
    for folder in [os.path.dirname(given[1:]) or ".", "."] if root is None else [os.fspath(root)]:
        real = Path(os.path.realpath(folder))
        if real not in around:
            continue
        for video in find_videos([given], root):
            path = Path(os.path.realpath(video.path.parent), video.path.name)
            if path.is_relative_to(real) and path.parent != Path(os.path.realpath((real / video.name).parent)):
                return folder
    return None


def _check_kept(kept: Mapping[Path, Video], layout: FrameLayout, pool: ThreadPoolExecutor) -> None:
    """Raise FramesError when one of the folders that are there does not hold its video's frames in ``layout``."""

    def check(folder: Path) -> str | None:
        return fault(folder, layout, _first_picture(kept[folder]))

    wrong = [(folder, reason) for folder, reason in zip(kept, pool.map(check, kept), strict=True) if reason]
    if wrong:
        folder, reason = wrong[0]
        others = f" (and {len(wrong) - 1} more like it)" if len(wrong) > 1 else ""
        raise FramesError(f"{display(folder)}{others} {reason}")
    for folder, complaint in zip(kept, pool.map(lambda folder: _other_count(folder, kept[folder]), kept), strict=True):
        # damaged packets and edit lists make fewer frames than either number says: only decoding tells those
        if complaint is not None and not _has_frames(kept[folder], len(list_frames(folder))):
            raise FramesError(f"{display(folder)} is not complete: {complaint}; {REMOVE}")


def _first_picture(video: Video) -> np.ndarray | None:
    try:
        with closing(_Source(video)) as source:
            return next(iter(source), None)
    except (DecodeError, OSError):
        return None


def _other_count(folder: Path, video: Video) -> str | None:
    """How the frames in ``folder`` are not as many as the video should have; None where a number for it is theirs.

    Nothing is decoded, so there are two: that of the header, which may lie, and that of the packets.
    """
    found, numbers = len(list_frames(folder)), set()
    try:
        for count in _likely_counts(video):
            if count == found:
                return None
            numbers.add(count)
    except (DecodeError, OSError):
        return None
    known = " or ".join(str(number) for number in sorted(numbers) if number > 0) or "another number"
    return f"it holds {counted(found, 'frame')}, its video {known}"


def _likely_counts(video: Video) -> Iterator[int]:
    """Cheapest first. Raises DecodeError and OSError."""
    if video.kind == "frames":
        yield len(list_frames(video.path))
    else:
        yield read_header(video.path)[0]
        yield count_packets(video.path)


def _has_frames(video: Video, number: int) -> bool:
    """Whether ``number`` frames are decoded from the video; so many where it cannot be read."""
    try:
        with closing(_Source(video)) as source:
            return sum(1 for _ in itertools.islice(source, number + 1)) == number
    except (DecodeError, OSError):
        return True


def _check_digits(headers: Mapping[str, tuple[int, int]], layout: FrameLayout) -> None:
    """Raise FramesError where sorted names would not be in the order of the frames."""
    name, (frames, _) = max(headers.items(), key=lambda item: item[1][0])
    if frames > layout.most_frames:
        raise FramesError(f"{name} has about {frames} frames, more than {layout.digits} digits can number: "
                          f"give --digits {layout.digits_for(frames)}")


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
    try:
        destination.mkdir(parents=True, exist_ok=True)
        lock = WriterLock(str(destination / ".streamfeat"))
    except StoreLocked as error:
        whose = "" if error.pid is None else f" (process {error.pid})"
        raise FramesError(f"another dump is writing to {display(destination)}{whose}: wait for it, or choose another "
                          "folder") from None
    except (StoreError, OSError) as error:
        raise FramesError(f"{display(destination)} cannot be written ({error}): choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def _dump(folder: Path, layout: FrameLayout, encoders: ThreadPoolExecutor, is_over: Callable[[], bool | None],
          open_source: Callable[[], _Source | JpegFrames]) -> tuple[int, int]:
    """Write a folder; returns its frames and the packets that could not be decoded."""
    if is_over():
        raise _Stopped
    part = _part(folder)
    if part.exists():
        shutil.rmtree(part)
    part.mkdir()
    waiting: deque[Future[None]] = deque()
    frames = 0
    try:
        with closing(open_source()) as source:
            for frames, picture in enumerate(source, 1):
                if frames > layout.most_frames:
                    raise DecodeError(f"it has more frames than {layout.digits} digits can number, though its header "
                                      f"says otherwise: give more --digits")
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


def _part(folder: Path) -> Path:
    """The hidden folder that becomes ``folder``."""
    name = f".{folder.name}.part"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(folder.name)).hexdigest()}.part"
    return folder.with_name(name)


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


def _write(path: Path, picture: np.ndarray | bytes, layout: FrameLayout) -> None:
    path.write_bytes(picture if isinstance(picture, bytes) else jpeg(picture, layout))


def _estimate(videos: Sequence[Video], headers: Mapping[str, tuple[int, int]], layout: FrameLayout, all_chroma: bool,
              destination: Path, pool: ThreadPoolExecutor) -> Estimate:
    step = max(1, len(videos) // _SAMPLED_VIDEOS)
    looked_at = videos[::step]
    samples = [sample for sample in pool.map(lambda video: _sample(video, layout, all_chroma), looked_at) if sample]
    # of a file: what grows with the picture, and the rest of its last block on the disk
    per_pixel = sum(size for size, _ in samples) / max(1, sum(pixels for _, pixels in samples))
    frames = sum(count for count, _ in headers.values())
    total = sum(count * (pixels * per_pixel + _BLOCK / 2) for count, pixels in headers.values())
    return Estimate(len(videos), frames, int(total), shutil.disk_usage(_existing(destination)).free)


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


def _sample(video: Video, layout: FrameLayout, all_chroma: bool) -> tuple[int, int] | None:
    """Bytes and pixels of a few frames."""
    try:
        pictures = list(_spread(video))
    except (DecodeError, FFmpegError, OSError, ValueError):  # which pictures of odd formats raise
        return None
    return (sum(len(jpeg(picture, layout, all_chroma=all_chroma)) for picture in pictures),
            sum(picture.shape[0] * picture.shape[1] for picture in pictures))


def _spread(video: Video) -> Iterator[np.ndarray]:
    """Frames from all over the video, as many begin in black: uint8 BGR ``(h, w, 3)``, not turned for display."""
    if video.kind == "frames":
        paths = list_frames(video.path)
        for path in paths[:: max(1, len(paths) // _SAMPLED_FRAMES)]:
            yield read_image(path)[..., ::-1]
        return
    with closing(open_container(video.path)) as container:
        stream, length = video_stream(container), container.duration or 0
        for part in range(_SAMPLED_FRAMES):
            with suppress(FFmpegError):  # where it cannot seek, it goes on from where it is
                container.seek(length * (2 * part + 1) // (2 * _SAMPLED_FRAMES))
            frame = next(container.decode(stream), None)
            if frame is not None:
                yield frame.to_ndarray(format="bgr24")
