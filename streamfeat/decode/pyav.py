"""FFmpeg on the CPU, through PyAV: the reference for which frames a video has, and the last decoder to ask."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
from av.error import EOFError as EndOfStream
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from streamfeat.decode.base import DecodeError, StreamInfo
from streamfeat.decode.matroska import is_cut_off
from streamfeat.decode.preprocess import Preprocessor

if TYPE_CHECKING:
    import torch
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from streamfeat.recipe import Recipe
    from streamfeat.videos import Video

#: A video is this file and nothing else: a playlist that is called .mp4 must not open addresses.
_OPTIONS = {"protocol_whitelist": "file"}

class PyAVDecoder:
    """Decodes whatever FFmpeg decodes, and gives the frames that FFmpeg itself would give.

    Packets that are damaged are stepped over and counted, frames that FFmpeg could repair are kept, rotation
    and mirroring by metadata are applied. Pixels equal those of OpenCV's ``VideoCapture`` bit for bit: the
    same conversion (to BGR, bicubic chroma, matrix of BT.601 unless the conversion knows better) of libswscale.

    Args:
        threads: for one video. The encoder has the same cores, so few are better than many.
    """

    name = "pyav"

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads

    def open(self, video: Video, recipe: Recipe, device: torch.device) -> PyAVStream:
        return PyAVStream(video, recipe, device, self._threads)


class PyAVStream:
    """The frames of one video file. Holds a few frames at a time, however long the video is."""

    def __init__(self, video: Video, recipe: Recipe, device: torch.device, threads: int) -> None:
        self._device = device
        self._file = Pictures(video.path, threads)
        try:
            self._pictures = iter(self._file)
            first = next(self._pictures, None)
            if first is None:
                raise DecodeError(self._nothing())
            height, width = first.shape[:2]
            self._preprocessor = Preprocessor(recipe, width, height, order="bgr")
        except BaseException:
            self.close()
            raise
        self._pictures = itertools.chain([first], self._pictures)
        self.info = StreamInfo(
            width, height, self._file.fps, self._file.codec, PyAVDecoder.name, self._file.frames_hint
        )

    def __iter__(self) -> Iterator[torch.Tensor]:
        for chunk in self._preprocessor.chunks(self._pictures, self._device):
            self.info.frames += len(chunk)
            self.info.damaged_packets = self._file.damaged
            yield chunk
        self.info.damaged_packets = self._file.damaged

    def close(self) -> None:
        self._file.close()

    def _nothing(self) -> str:
        if self._file.damaged:
            return f"no frame could be decoded, all {self._file.damaged} packets are damaged"
        return "it holds no frame"


def read_header(path: os.PathLike[str]) -> tuple[int, int, int]:
    """Number of frames, width and height as the container has them: a hint, only decoding counts. 0: unknown.

    Raises DecodeError.
    """
    container = open_container(path)
    try:
        stream = video_stream(container)
        return _promised_frames(container, stream), stream.width or 0, stream.height or 0
    finally:
        container.close()


class Pictures:
    """The frames of a video file as displayed, in order, to be iterated over once: uint8 BGR ``(h, w, 3)``.

    Args:
        start: timestamps, as in packets, of a key frame to seek to, and of the first frame that is wanted.

    Raises DecodeError, at once when the file cannot be opened.
    """

    def __init__(self, path: os.PathLike[str], threads: int, start: tuple[int, int] | None = None) -> None:
        self._path, self._threads, self._start = path, threads, start
        self._file = _File(path, threads, start)

    @property
    def fps(self) -> float:
        """Frames per second, 0.0 if unknown."""
        return self._file.fps

    @property
    def codec(self) -> str:
        return self._file.codec

    @property
    def frames_hint(self) -> int:
        """Number of frames as the container has it, 0 if unknown; only decoding counts."""
        return self._file.frames_hint

    @property
    def damaged(self) -> int:
        """Packets so far that the decoder refused or had to repair."""
        return self._file.damaged

    def close(self) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        given = 0
        for picture in self._file.pictures():
            if self._threads > 1 and self._file.decode_errors:
                break
            given += 1
            yield picture
        # Several threads hand an error on to other frames than one thread does, and an error while they hand
        # over their last frames takes the frames behind it along; that there are too few may be all that shows.
        file = self._file
        if self._threads > 1 and (file.decode_errors or given < file.shown_packets):
            file.close()
            self._file = _File(self._path, 1, self._start)
            yield from itertools.islice(self._file.pictures(), given, None)


class _File:
    """An open file with a video stream in it, to be decoded once."""

    def __init__(self, path: os.PathLike[str], threads: int, start: tuple[int, int] | None = None) -> None:
        self._path = path
        self._container = open_container(path)
        try:
            self._stream = video_stream(self._container)
            context = self._stream.codec_context
            context.thread_count = threads
            context.thread_type = "AUTO" if threads > 1 else "SLICE"
            # the codec's name ("av1"), not that of the library which decodes it
            self.codec: str = getattr(context.codec, "canonical_name", context.name)
            self.fps = float(_rate(self._stream))
            self.frames_hint = _promised_frames(self._container, self._stream)
            self._key_time = self._first_time = None
            if start is not None:
                self._key_time, self._first_time = start
                self._container.seek(self._key_time, stream=self._stream)
        except FFmpegError as error:
            self._container.close()
            raise DecodeError(f"FFmpeg cannot seek in it ({error.strerror})") from error
        except BaseException:
            self._container.close()
            raise
        #: packets that hold a frame to show; those that the decoder refused or had to repair
        self.shown_packets = self.decode_errors = 0
        self._breaks_off = False

    @property
    def damaged(self) -> int:
        return self.decode_errors + self._breaks_off

    def close(self) -> None:
        _log_nothing()
        self._container.close()

    def pictures(self) -> Iterator[np.ndarray]:
        """The frames as displayed, in order: uint8 BGR ``(h, w, 3)``."""
        to_bgr = ToBGR()
        for frame in self._frames():
            if self._first_time is None or (frame.pts is not None and frame.pts >= self._first_time):
                yield to_bgr(frame)

    def _frames(self) -> Iterator[av.VideoFrame]:
        for packet in self._packets():
            self.shown_packets += packet is not None and self._shows(packet)
            try:
                frames = self._stream.codec_context.decode(packet)
            except EndOfStream:
                return
            except FFmpegError:
                self.decode_errors += 1
                continue
            for frame in frames:
                self.decode_errors += frame.is_corrupt
                yield frame

    def _shows(self, packet: av.Packet) -> bool:
        """Whether a packet holds a frame to show: VP8 has frames that others only refer to (RFC 6386, 9.1)."""
        return self.codec != "vp8" or bool(memoryview(packet)[0] & 0x10)

    def _packets(self) -> Iterator[av.Packet | None]:
        """Packets that hold something, then None, which makes the decoder give its last frames."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except FFmpegError:  # the file breaks off; FFmpeg takes that for its end
                self._breaks_off = True
                break
            if packet is None:
                self._breaks_off = "matroska" in self._container.format.name and is_cut_off(self._path)
                break
            if packet.size:
                if self._key_time not in (None, packet.pts):
                    raise DecodeError(f"FFmpeg seeks to {packet.pts} in place of {self._key_time}")
                self._key_time = None
                yield packet
        yield None


def _log_nothing() -> None:
    """Have PyAV drop what FFmpeg logs, as it does unless it is told otherwise; torchvision tells it so when imported.

    FFmpeg's threads would wait for Python's lock to log an error, and PyAV, when a codec is freed, holds that lock and
    waits for these threads (PyAV issue 751): a damaged video would hang the process.
    """
    av.logging.set_level(None)


class ToBGR:
    """Frames to what is displayed, uint8 ``(h, w, 3)``. Raises DecodeError for formats that cannot be converted."""

    def __init__(self) -> None:
        # one conversion context for the whole video, on the thread that uses it
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        try:
            bgr = _bytes(self._reformatter.reformat(frame, format="bgr24", interpolation="BICUBIC", threads=1))
        except (FFmpegError, ValueError) as error:
            raise DecodeError(f"cannot convert frames of format {frame.format.name} to RGB: {error}") from error
        return _as_displayed(bgr, frame)


def open_container(path: os.PathLike[str]) -> InputContainer:
    _log_nothing()
    try:
        if os.stat(path).st_size == 0:
            raise DecodeError("the file is empty")
        # "file:" so that no part of a name is taken for a protocol
        return av.open(f"file:{os.fspath(path)}", options=_OPTIONS, **_METADATA)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DecodeError(error.strerror) from error
    except FFmpegError as error:
        raise DecodeError(f"FFmpeg cannot read it ({error.strerror}): not a video, or damaged at its start") from error
    except OSError as error:
        raise DecodeError(error.strerror or str(error)) from error


# PyAV before 19 insists on UTF-8 in metadata unless told otherwise, and from 19 on cannot be told
_METADATA = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def video_stream(container: InputContainer) -> VideoStream:
    """The first stream with moving pictures: covers of music files do not count."""
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        others = ", ".join(sorted({s.type for s in container.streams if s.type != "video"}))
        raise DecodeError("no video stream" + (f", only {others}" if others else ""))
    for stream in streams:
        if stream.codec_context is not None:
            return stream
    raise DecodeError("this FFmpeg has no decoder for its codec")


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int] | None:
    """(a, b, c, d) of the matrix that takes the point ``(x, y)`` to ``(a x + c y, b x + d y)`` for display."""
    try:
        matrix = frame.side_data["DISPLAYMATRIX"]
    except KeyError:
        return None
    a, b, _, c, d, *_ = (int(value) for value in np.frombuffer(matrix, np.int32))
    return a, b, c, d


def is_turned(frame: av.VideoFrame) -> bool:
    """Whether ``frame`` is displayed turned or mirrored."""
    matrix = _display_matrix(frame)
    return matrix is not None and not (matrix[0] > 0 and matrix[3] > 0 and abs(matrix[0]) >= abs(matrix[1]))


def _rate(stream: VideoStream) -> Fraction | int:
    """Frames per second, 0 if unknown."""
    return stream.average_rate or stream.guessed_rate or 0


def _promised_frames(container: InputContainer, stream: VideoStream) -> int:
    """Number of frames as the container has it or as its length implies, 0 if unknown."""
    if stream.duration is not None and stream.time_base is not None:
        seconds = stream.duration * stream.time_base
    else:
        seconds = Fraction(container.duration or 0, av.time_base)
    return max(0, stream.frames or round(seconds * _rate(stream)))


def _bytes(frame: av.VideoFrame) -> np.ndarray:
    """Those of a frame in bgr24, uint8 ``(h, w, 3)``, where they are: ``to_ndarray`` copies rows that are padded."""
    (plane,) = frame.planes
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height]
    return rows[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)


def _as_displayed(picture: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Applies the display matrix as FFmpeg does: quarter turns and mirroring. Only signs matter here."""
    matrix = _display_matrix(frame)
    if matrix is None:
        return picture
    a, b, c, d = matrix
    if abs(a) >= abs(b):
        across, down = a, d
    else:
        picture, across, down = picture.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])
