"""Videos for the benchmarks: a made surveillance scene, or the pictures of a real video, in any codec and size."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np

from streamfeat.synthetic import FPS, Scene, pictures

_ENCODERS = {"h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9", "mpeg4": "mpeg4", "mjpeg": "mjpeg"}
_OPTIONS = {
    "libx264": {"preset": "veryfast", "crf": "22"},
    "libx265": {"preset": "ultrafast", "crf": "24", "x265-params": "log-level=none"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "30", "b": "0"},
    "mpeg4": {"qscale": "3"},
    "mjpeg": {"qscale": "3"},
}


def made_pictures(size: tuple[int, int], frames: int) -> list[np.ndarray]:
    """A surveillance-like scene of ``size`` (width, height): uint8 RGB ``(height, width, 3)`` each."""
    event = (frames // 2, frames // 2 + max(1, min(40, frames // 4)))
    return list(pictures(Scene("scene", "", "", *size, frames, seed=1, event=event)))


def real_pictures(video: Path, size: tuple[int, int], frames: int) -> list[np.ndarray]:
    """The first ``frames`` pictures of a video, brought to ``size`` (width, height)."""
    import av

    with av.open(str(video)) as source:
        found = itertools.islice(source.decode(video=0), frames)
        return [frame.to_ndarray(format="rgb24", width=size[0], height=size[1]) for frame in found]


def encode(shown: Iterable[np.ndarray], path: Path, codec: str, *, full_range: bool = False) -> Path:
    """Write pictures as a video; the extension of ``path`` is the container. ``full_range``: luma from 0 to 255."""
    import av

    encoder = _ENCODERS[codec]
    with av.open(str(path), "w") as output:
        stream = output.add_stream(encoder, rate=FPS, options=_OPTIONS[encoder])
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" or full_range else "yuv420p"
        for index, rgb in enumerate(shown):
            if index == 0:
                stream.height, stream.width = rgb.shape[:2]
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def repeat(video: Path, path: Path, times: int) -> Path:
    """Write ``video`` ``times`` times in a row, without coding it again."""
    import av

    with av.open(str(video)) as source, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.dts is not None]
        tick = source.streams.video[0].time_base
        length = int(len(packets) / FPS / tick)
        coded = [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe) for packet in packets]
        for turn in range(times):
            for content, shown, decoded, key in coded:
                packet = av.Packet(content)
                packet.stream, packet.time_base, packet.is_keyframe = stream, tick, key
                packet.pts, packet.dts = shown + turn * length, decoded + turn * length
                output.mux(packet)
    return path


def surveillance_video(path: Path, *, codec: str, size: tuple[int, int], frames: int) -> Path:
    """Write a surveillance-like scene of ``size`` (width, height) to ``path``, whose extension is the container."""
    return encode(made_pictures(size, frames), path, codec)
