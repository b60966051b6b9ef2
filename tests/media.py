"""Videos for tests: real codecs and containers, pictures that tell their own number, and ways to damage them."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from streamfeat.synthetic import priority_kept

#: SVT-AV1 prints its settings unless told to report errors only
os.environ.setdefault("SVT_LOG", "1")

#: A picture shows its number as COLUMNS x ROWS bright and dark cells, one a bit, from the top left.
COLUMNS, ROWS = 4, 3

#: codec -> container in which it is written by ``write_video``
CONTAINERS = {
    "h264": "mp4", "hevc": "mp4", "vp8": "webm", "vp9": "webm", "av1": "mkv", "mpeg4": "avi", "mjpeg": "avi",
}
_ENCODERS = {"h264": "libx264", "hevc": "libx265", "vp8": "libvpx", "vp9": "libvpx-vp9", "av1": "libsvtav1"}
_OPTIONS = {
    "libx264": {"preset": "veryfast", "crf": "18", "threads": "1"},
    "libx265": {"preset": "ultrafast", "crf": "20", "x265-params": "log-level=none:pools=1"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "2M"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"},
    "libsvtav1": {"preset": "12", "crf": "20", "svtav1-params": "lp=1"},
    "mpeg4": {"qscale": "2"},
    "mjpeg": {"qscale": "2"},
}


def picture(index: int, width: int = 96, height: int = 64) -> np.ndarray:
    """RGB uint8 ``(height, width, 3)`` that shows ``index`` in colourful cells; see ``read_index``."""
    y, x = np.mgrid[0:height, 0:width]
    cells = (y * ROWS // height) * COLUMNS + x * COLUMNS // width
    bright = np.asarray([index >> bit & 1 for bit in range(COLUMNS * ROWS)])[cells]
    waves = np.stack([np.sin(x / 7 + index), np.cos(y / 9 - index), np.sin((x + y) / 11)], axis=-1)
    return (np.where(bright, 190, 60)[..., None] + 35 * waves).astype(np.uint8)


def read_index(frame: np.ndarray) -> int:
    """The number a picture shows, after any lossy coding and resizing; ``(h, w, 3)``, any range of values."""
    height, width = frame.shape[:2]
    grey = frame.astype(np.float64).mean(axis=-1)
    # the mean of a cell's middle; half way between bright and dark is 125 of 255
    low, high = (0.0, 255.0) if frame.dtype == np.uint8 else (-1.0, 1.0)
    threshold = low + (high - low) * 125 / 255
    number = 0
    for bit in range(COLUMNS * ROWS):
        row, column = divmod(bit, COLUMNS)
        top, bottom = (int((row + part) * height / ROWS) for part in (0.3, 0.7))
        left, right = (int((column + part) * width / COLUMNS) for part in (0.3, 0.7))
        number |= int(grey[top : bottom + 1, left : right + 1].mean() > threshold) << bit
    return number


def write_video(
    path: str | Path,
    frames: int | Iterable[np.ndarray] = 20,
    *,
    codec: str = "h264",
    size: tuple[int, int] = (96, 64),
    fps: int = 25,
    pix_fmt: str = "yuv420p",
    timestamps: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    gop: int = 12,
    b_frames: int = 0,
    container: str | None = None,
) -> Path:
    """Writes a video, by default of numbered pictures.

    Args:
        path: the extension decides the container unless ``container`` does.
        frames: how many pictures, or the pictures, uint8 RGB.
        codec: FFmpeg's name of the codec.
        size: width and height of numbered pictures.
        timestamps: of the frames in units of 1 / fps, for variable frame rates and late starts.
    """
    path = Path(path)
    pictures = (picture(index, *size) for index in range(frames)) if isinstance(frames, int) else iter(frames)
    encoder = _ENCODERS.get(codec, codec)
    with priority_kept(), av.open(str(path), "w", format=container) as output:
        stream = None
        for index, rgb in enumerate(pictures):
            if stream is None:
                stream = output.add_stream(encoder, rate=fps, options=_OPTIONS.get(encoder, {}) | (options or {}))
                stream.height, stream.width = rgb.shape[:2]
                stream.pix_fmt = "yuvj420p" if (codec, pix_fmt) == ("mjpeg", "yuv420p") else pix_fmt
                stream.codec_context.gop_size = gop
                stream.codec_context.max_b_frames = b_frames
                stream.codec_context.time_base = Fraction(1, fps)
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts = timestamps[index] if timestamps is not None else index
            frame.time_base = Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def opencv_frames(path: str | Path) -> Iterator[np.ndarray]:
    """The frames that OpenCV gives, BGR uint8 ``(h, w, 3)``."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield frame


def write_sound(path: str | Path, seconds: float = 0.5, cover: bool = False) -> Path:
    """Writes a file with sound only; with ``cover`` it has a picture attached, as music files do."""
    path = Path(path)
    with av.open(str(path), "w") as output:
        sound = output.add_stream("aac", rate=16000, layout="mono")
        if cover:
            art = output.add_stream("mjpeg", rate=1)
            art.width = art.height = 32
            art.pix_fmt = "yuvj420p"
            art.disposition = av.stream.Disposition.attached_pic
            still = av.VideoFrame.from_ndarray(picture(0, 32, 32), format="rgb24").reformat(format="yuvj420p")
            still.pts, still.time_base = 0, Fraction(1, 1)
            output.mux(art.encode(still))
            output.mux(art.encode(None))
        samples = np.sin(np.arange(int(16000 * seconds)) / 20).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    return path


def write_packed_b_frames(path: str | Path, frames: int = 11) -> Path:
    """Writes MPEG-4 in AVI as DivX 5 did: a B-frame shares the packet of the frame before it in coding order.

    A placeholder that codes nothing follows, so that there are as many packets as frames.
    """
    path = Path(path)
    plain = write_video(path.with_suffix(".plain.avi"), frames, codec="mpeg4", b_frames=1, gop=frames)
    not_coded = b"\0\0\1\xb6\x50\x4f"
    chunks: list[bytes] = []
    with av.open(str(plain)) as source, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            coded = bytes(packet)
            if not coded:
                continue
            is_b_frame = coded[coded.index(b"\0\0\1\xb6") + 4] >> 6 == 2
            if is_b_frame:
                chunks[-1] += coded
                chunks.append(not_coded)
            else:
                chunks.append(coded)
        # decoders take packets for packed when the user data is that of DivX, with a "p" at its end
        chunks[0] = re.sub(rb"\x00\x00\x01\xb2[^\x00]*", b"\0\0\1\xb2DivX503b1393p", chunks[0])
        for index, chunk in enumerate(chunks):
            packet = av.Packet(chunk)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 25), index == 0
            packet.pts = packet.dts = index
            output.mux(packet)
    plain.unlink()
    return path


def packets(path: str | Path) -> list[tuple[int, int]]:
    """Position in the file and size of what each packet of the video stream holds, empty ones included."""
    content = Path(path).read_bytes()
    with av.open(str(path)) as source:
        # the position that FFmpeg gives is, depending on the container, that of a header before the content
        return [
            (content.index(bytes(packet), packet.pos), packet.size)
            for packet in source.demux(source.streams.video[0])
            if packet.dts is not None
        ]


def break_packet(path: Path, number: int) -> Path:
    """Overwrites a packet with noise, so that its decoder refuses it."""
    position, size = packets(path)[number]
    with open(path, "r+b") as file:
        file.seek(position)
        file.write(np.random.default_rng(number).bytes(size))
    return path


def truncate(path: Path, keep: float) -> Path:
    """Cuts a file off after the share ``keep`` of its bytes."""
    with open(path, "r+b") as file:
        file.truncate(int(path.stat().st_size * keep))
    return path


#: (a, b, c, d) of a display matrix: a point (x, y) is shown at (a x + c y, b x + d y)
ROTATIONS = {
    "90 clockwise": (0, 1, -1, 0),
    "180": (-1, 0, 0, -1),
    "90 counterclockwise": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "mirrored, 90 clockwise": (0, 1, 1, 0),
}


def rotate(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Writes a display matrix into the only track of an MP4 file."""
    a, b, c, d = (value << 16 for value in matrix)
    content = bytearray(path.read_bytes())
    header = content.index(b"tkhd") + 4
    # the matrix comes after 40 bytes of version 0 of the track header, or 52 of version 1
    start = header + (52 if content[header] == 1 else 40)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path
