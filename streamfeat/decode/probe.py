"""What a file's container and first frame say, for decoders that must know before they start."""

from __future__ import annotations

import dataclasses
import os

from av.error import FFmpegError

from streamfeat.decode.base import FallBack
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
            getattr(context.codec, "canonical_name", context.name), frame.format.name, is_turned(frame), stream.frames,
        )  # fmt: skip


def count_packets(path: str | os.PathLike[str]) -> int:
    """Packets of the video stream that hold something: reads the file, decodes nothing."""
    with open_container(path) as container:
        try:
            return sum(packet.size > 0 for packet in container.demux(video_stream(container)))
        except FFmpegError:
            return -1  # it breaks off: only decoding tells
