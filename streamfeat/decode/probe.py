"""What a file's container, packets and first frame say, for decoders that must know before they start."""

from __future__ import annotations

import dataclasses
import os

from av.error import FFmpegError

from streamfeat.decode.base import FallBack
from streamfeat.decode.bitstream import one_frame_test
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


def count_placed_packets(path: str | os.PathLike[str], first: int | None) -> int:
    """Packets of the video stream, for a decoder that makes one frame of each and places it by its timestamp.

    DALI does so on a GPU: it takes what NVDEC decodes in the order in which it was stored, and never asks what is to be
    displayed (``FramesDecoderGpu`` in its ``frames_decoder_gpu.cc``). Timestamps that do not tell the order, or packets
    that are not one frame each, give it other pictures under the right numbers. Reads the file, decodes nothing.

    Args:
        first: timestamp of the first frame that FFmpeg displays.

    Raises FallBack where that would happen, with the reason.
    """
    times: list[int | None] = []
    empty = 0
    with open_container(path) as container:
        stream = video_stream(container)
        context = stream.codec_context
        codec = getattr(context.codec, "canonical_name", context.name)
        is_one_frame = one_frame_test(codec, context.extradata)
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
                times.append(packet.pts)
        except FFmpegError as error:
            raise FallBack(f"its packets break off ({error.strerror})") from error
        if "matroska" in container.format.name and is_cut_off(path):
            raise FallBack("it is cut off")
    if empty > 1:  # the last one only says that there are no more
        raise FallBack("it has empty packets")
    if None in times:
        raise FallBack("it has frames without timestamps")
    if len(set(times)) < len(times):
        raise FallBack("it has frames with the same timestamp")
    if times and (min(times) < 0 or max(times) > _LARGEST_TIME):
        raise FallBack("its timestamps are too large or negative")
    if times and min(times) != first:  # those of HEVC that refer to what was cut off before them, say
        raise FallBack("it has packets before the first frame that can be displayed")
    return len(times)


#: DALI keeps those of frames that wait for their turn in 32 bits, and -1 means none
_LARGEST_TIME = 2**31 - 1
