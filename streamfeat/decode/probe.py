"""What a file's container, packets and first frame say, for decoders that must know before they start."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable

import numpy as np
from av.error import FFmpegError

from streamfeat.decode.base import FallBack
from streamfeat.decode.bitstream import is_seekable_test, one_frame_test
from streamfeat.decode.matroska import is_cut_off
from streamfeat.decode.pyav import is_turned, open_container, video_stream


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


def probe(path: str | os.PathLike[str]) -> Probe:
    """Open ``path`` and decode its first frame.

    Raises DecodeError if it cannot be opened, and FallBack if its first frame is damaged: PyAV steps over that.
    """
    with open_container(path) as container:
        stream = video_stream(container)
        context = stream.codec_context
        try:
            frame = next(iter(container.decode(stream)), None)
        except FFmpegError as error:
            raise FallBack(f"its first frame cannot be decoded ({error.strerror})") from error
        if frame is None:
            raise FallBack("it holds no frame")
        return Probe(
            frame.width, frame.height, float(stream.average_rate or stream.guessed_rate or 0),
            getattr(context.codec, "canonical_name", context.name), frame.format.name, is_turned(frame),
            frame.interlaced_frame, frame.pts, stream.frames,
        )  # fmt: skip


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


def placed_packets(path: str | os.PathLike[str], first: int | None) -> Packets:
    """Packets of the video stream, for a decoder that makes one frame of each and places it by its timestamp.

    DALI does so on a GPU: it takes what NVDEC decodes in the order in which it was stored, and never asks what is to be
    displayed (``FramesDecoderGpu`` in its ``frames_decoder_gpu.cc``). Timestamps that do not tell the order, or packets
    that are not one frame each, give it other pictures under the right numbers. Reads the file, decodes nothing.

    Args:
        first: timestamp of the first frame that FFmpeg displays.

    Raises FallBack where that would happen, with the reason.
    """
    times: list[int | None] = []
    keys: list[_Key] = []
    empty = 0
    with open_container(path) as container:
        stream = video_stream(container)
        context = stream.codec_context
        codec = getattr(context.codec, "canonical_name", context.name)
        is_one_frame = one_frame_test(codec, context.extradata)
        is_seekable = is_seekable_test(codec, context.extradata)
        if context.has_b_frames and container.format.name == "avi":
            raise FallBack("AVI does not say in which order its B-frames are displayed")
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    empty += 1
                    continue
                if not times and not packet.is_keyframe:
                    raise FallBack("it does not begin with a key frame")
                if packet.is_discard:
                    raise FallBack("an edit list cuts frames away")
                if packet.is_corrupt or not is_one_frame(memoryview(packet)):
                    raise FallBack(f"packet {len(times)} is not one {codec} frame to display, or damaged")
                if packet.is_keyframe:
                    keys.append(_Key(len(times), packet.dts, is_seekable(memoryview(packet))))
                times.append(packet.pts)
        except FFmpegError as error:
            raise FallBack(f"its packets break off ({error.strerror})") from error
        if "matroska" in container.format.name and is_cut_off(path):
            raise FallBack("it is cut off")
    if empty > 1:  # the last one only says that there are no more
        raise FallBack("it has empty packets")
    if not times:
        raise FallBack("it holds no frame")
    if None in times:
        raise FallBack("it has frames without timestamps")
    if len(set(times)) < len(times):
        raise FallBack("it has frames with the same timestamp")
    if min(times) < 0 or max(times) > _LARGEST_TIME:
        raise FallBack("its timestamps are too large or negative")
    if min(times) != first:  # those of HEVC that refer to what was cut off before them, say
        raise FallBack("it has packets before the first frame that can be displayed")
    return _in_order(np.array(times, np.int64), keys)


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
