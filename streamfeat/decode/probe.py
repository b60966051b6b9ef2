"""What a file's container, packets and first frames say, for decoders that must know before they start."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
from av.error import FFmpegError

from streamfeat.decode.base import FallBack
from streamfeat.decode.bitstream import is_seekable_test, one_frame_test
from streamfeat.decode.matroska import is_cut_off
from streamfeat.decode.pyav import ToBGR, is_turned, open_container, video_stream

if TYPE_CHECKING:
    import av
    from av.video.stream import VideoStream

#: of which PyAV's pictures are compared with another decoder's: B-frames that are out of order show in them
FIRST_FRAMES = 8


@dataclasses.dataclass(frozen=True)
class Probe:
    #: of the first frame as coded, in pixels
    width: int
    height: int
    #: 0.0 if unknown
    fps: float
    #: FFmpeg's names
    codec: str
    pixel_format: str
    #: whether it is displayed turned or mirrored
    turned: bool
    #: whether it is made of two fields
    interlaced: bool
    #: its timestamp as in packets, None if it has none
    time: int | None
    #: frames that the container promises, 0 if nothing
    frames_hint: int


def count_packets(path: str | os.PathLike[str]) -> int:
    """Packets of the video stream that hold something: reads the file, decodes nothing."""
    with open_container(path) as container:
        try:
            return sum(packet.size > 0 for packet in container.demux(video_stream(container)))
        except FFmpegError:
            return -1  # it breaks off: only decoding tells


@dataclasses.dataclass(frozen=True)
class Packets:
    """Those of a video stream, each of which is one frame, in the order in which these are displayed."""

    #: timestamps as in packets, int64 ``(frames,)``
    times: np.ndarray
    #: indices of key frames, int64 ``(keys,)``
    keys: np.ndarray
    #: whether decoding may begin there, bool ``(keys,)``: a seek finds it, and nothing after it needs what was before
    is_beginning: np.ndarray

    def without(self, keys: list[int]) -> Packets:
        """These, but decoding may not begin at ``keys``."""
        return dataclasses.replace(self, is_beginning=self.is_beginning & ~np.isin(self.keys, keys))


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What there is to know of a video before it is decoded."""

    probe: Probe
    packets: Packets
    #: its first FIRST_FRAMES as displayed, uint8 BGR ``(h, w, 3)``
    pictures: list[np.ndarray]


def inspect(path: str | os.PathLike[str], accept: Callable[[Probe], None] = lambda found: None) -> Inspection:
    """Read ``path`` once and decode its first frames, for a decoder that makes one frame of each packet.

    DALI does so on a GPU, and places it by its timestamp: it takes what NVDEC decodes in the order in which it was
    stored, and never asks what is to be displayed (``FramesDecoderGpu`` in its ``frames_decoder_gpu.cc``). Timestamps
    that do not tell the order, or packets that are not one frame each, give it other pictures under the right numbers.

    Args:
        accept: is told of the first frame before the rest is read, and may raise.

    Raises DecodeError if it cannot be opened, and FallBack, with the reason, where PyAV would give other frames.
    """
    with open_container(path) as container:
        stream = video_stream(container)
        if stream.codec_context.has_b_frames and container.format.name == "avi":
            raise FallBack("AVI does not say in which order its B-frames are displayed")
        scan, beginning = _Scan(stream), _Beginning(stream, accept)
        try:
            for packet in container.demux(stream):
                scan.add(packet)
                beginning.add(packet)
        except FFmpegError as error:
            raise FallBack(f"its packets break off ({error.strerror})") from error
        if "matroska" in container.format.name and is_cut_off(path):
            raise FallBack("it is cut off")
    if beginning.found is None:
        raise FallBack("it holds no frame")
    return Inspection(beginning.found, scan.packets(beginning.found.time), beginning.pictures)


class _Beginning:
    """Decodes the first frames of a stream, which is given packet by packet."""

    def __init__(self, stream: VideoStream, accept: Callable[[Probe], None]) -> None:
        self._stream, self._accept = stream, accept
        self._context = stream.codec_context
        self._context.thread_count = 1
        self._to_bgr = ToBGR()
        self.found: Probe | None = None
        self.pictures: list[np.ndarray] = []

    def add(self, packet: av.Packet) -> None:
        if len(self.pictures) >= FIRST_FRAMES:
            return
        try:
            frames = self._context.decode(packet)
        except FFmpegError as error:
            raise FallBack(f"its first frames cannot be decoded ({error.strerror})") from error
        for frame in frames[: FIRST_FRAMES - len(self.pictures)]:
            if self.found is None:
                self.found = self._probe(frame)
                self._accept(self.found)
            self.pictures.append(self._to_bgr(frame))

    def _probe(self, frame: av.VideoFrame) -> Probe:
        stream, context = self._stream, self._context
        return Probe(
            frame.width, frame.height, float(stream.average_rate or stream.guessed_rate or 0),
            getattr(context.codec, "canonical_name", context.name), frame.format.name, is_turned(frame),
            frame.interlaced_frame, frame.pts, stream.frames,
        )  # fmt: skip


class _Scan:
    """Looks at the packets of a stream, one after the other."""

    def __init__(self, stream: VideoStream) -> None:
        context = stream.codec_context
        self._codec = getattr(context.codec, "canonical_name", context.name)
        self._is_one_frame = one_frame_test(self._codec, context.extradata)
        self._is_seekable = is_seekable_test(self._codec, context.extradata)
        self._times: list[int | None] = []
        self._keys: list[_Key] = []
        self._empty = 0

    def add(self, packet: av.Packet) -> None:
        if not packet.size:
            self._empty += 1
            return
        number = len(self._times)
        if not number and not packet.is_keyframe:
            raise FallBack("it does not begin with a key frame")
        if packet.is_discard:
            raise FallBack("an edit list cuts frames away")
        data = memoryview(packet)
        if packet.is_corrupt or not self._is_one_frame(data):
            raise FallBack(f"packet {number} is not one {self._codec} frame to display, or damaged")
        if packet.is_keyframe:
            self._keys.append(_Key(number, packet.dts, self._is_seekable(data)))
        self._times.append(packet.pts)

    def packets(self, first: int | None) -> Packets:
        """All of them; ``first`` is the timestamp of the first frame that FFmpeg displays."""
        times = self._times
        if self._empty > 1:  # the last one only says that there are no more
            raise FallBack("it has empty packets")
        if None in times:
            raise FallBack("it has frames without timestamps")
        if len(set(times)) < len(times):
            raise FallBack("it has frames with the same timestamp")
        if min(times) < 0 or max(times) > _LARGEST_TIME:
            raise FallBack("its timestamps are too large or negative")
        if min(times) != first:  # those of HEVC that refer to what was cut off before them, say
            raise FallBack("it has packets before the first frame that can be displayed")
        return _in_order(np.array(times, np.int64), self._keys)


#: DALI keeps those of frames that wait for their turn in 32 bits, and -1 means none
_LARGEST_TIME = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class _Key:
    #: of its packet, as stored
    index: int
    #: when it is decoded
    time: int | None
    #: whether DALI finds it
    seekable: bool


def _in_order(stored: np.ndarray, keys: list[_Key]) -> Packets:
    """``stored`` are the timestamps in the order in which packets are stored."""
    order = np.argsort(stored)
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    latest, earliest = np.maximum.accumulate(stored), np.minimum.accumulate(stored[::-1])[::-1]

    def is_beginning(key: _Key, following: _Key | None) -> bool:
        at, time = key.index, stored[key.index]
        all_before_and_after = latest[at] == time == earliest[at]
        # FFmpeg seeks in MP4 by the time of decoding: the next key frame must not be taken for this one
        found = following is None or (following.time is not None and following.time > time)
        return bool(key.seekable and all_before_and_after and found)

    good = [is_beginning(*pair) for pair in zip(keys, [*keys[1:], None], strict=True)]
    indices = np.array([places[key.index] for key in keys], np.int64)
    by_place = np.argsort(indices)
    return Packets(stored[order], indices[by_place], np.array(good, bool)[by_place])


def lands(path: str | os.PathLike[str], times: Iterable[int]) -> list[bool]:
    """Whether a seek to each of these timestamps of key frames comes to just that packet."""
    found = []
    with open_container(path) as container:
        stream = video_stream(container)
        for time in times:
            try:
                container.seek(time, stream=stream)
                packet = next((packet for packet in container.demux(stream) if packet.size), None)
            except FFmpegError:
                packet = None
            found.append(packet is not None and packet.pts == time)
    return found
