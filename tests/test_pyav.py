"""PyAV defines which frames a video has: held to OpenCV's pixels and to FFmpeg's own count."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from streamfeat.decode.base import DecodeError
from streamfeat.decode.pyav import Pictures, PyAVDecoder, read_header
from streamfeat.recipe import Recipe
from streamfeat.videos import Video

from .media import (
    CONTAINERS,
    ROTATIONS,
    break_packet,
    opencv_frames,
    packets,
    picture,
    read_index,
    rotate,
    truncate,
    write_packed_b_frames,
    write_sound,
    write_video,
)

CPU = torch.device("cpu")


def unchanged(size):
    """A recipe that leaves square frames of ``size`` pixels as they are, but for the scale 0..1."""
    return Recipe(image_size=size, upscale_below=None, mean=(0, 0, 0), std=(1, 1, 1))


def decode(path, threads=1):
    """The frames, uint8 BGR, and how many packets were damaged."""
    pictures = Pictures(path, threads)
    frames = list(pictures)
    pictures.close()
    return frames, pictures.damaged


def open_stream(path, recipe=None, threads=1):
    return PyAVDecoder(threads).open(Video("name", path), recipe or unchanged(32), CPU)


def indices(frames):
    return [read_index(frame) for frame in frames]


def assert_same(frames, others):
    assert len(frames) == len(others)
    for index, (one, other) in enumerate(zip(frames, others, strict=True)):
        assert np.array_equal(one, other), f"frame {index} differs"


def assert_as_opencv(path, count):
    """``count`` frames, bit for bit those of OpenCV, with one thread and with several."""
    expected = list(opencv_frames(path))
    assert len(expected) == count
    for threads in (1, 2):
        frames, damaged = decode(path, threads)
        assert_same(frames, expected)
        assert damaged == 0
    return frames


# pixels and frame counts -------------------------------------------------------------------------------------------

#: codecs that OpenCV decodes without a GPU
OPENCV_CODECS = [codec for codec in CONTAINERS if codec != "av1"]


@pytest.mark.parametrize("codec", OPENCV_CODECS)
def test_pixels_are_those_of_opencv(codec, tmp_path):
    path = write_video(tmp_path / f"video.{CONTAINERS[codec]}", 26, codec=codec)
    assert indices(assert_as_opencv(path, 26)) == list(range(26))


@pytest.mark.parametrize("codec", OPENCV_CODECS)
def test_what_the_stream_gives_is_those_pixels(codec, tmp_path):
    path = write_video(tmp_path / f"video.{CONTAINERS[codec]}", 20, codec=codec, size=(64, 64))
    stream = open_stream(path, unchanged(64))
    chunks = list(stream)
    stream.close()
    assert [chunk.shape for chunk in chunks] == [(16, 3, 64, 64), (4, 3, 64, 64)]
    assert all(chunk.dtype == torch.float32 for chunk in chunks)
    frames = (torch.cat(chunks) * 255).numpy()
    expected = np.stack([frame[..., ::-1].transpose(2, 0, 1) for frame in opencv_frames(path)])
    np.testing.assert_allclose(frames, expected, atol=1e-4)
    info = stream.info
    assert (info.width, info.height, info.fps, info.codec, info.decoder) == (64, 64, 25.0, codec, "pyav")
    assert (info.frames, info.damaged_packets) == (20, 0)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
def test_av1(pix_fmt, tmp_path):
    path = write_video(tmp_path / "video.mkv", 26, codec="av1", pix_fmt=pix_fmt)
    for threads in (1, 2):
        frames, damaged = decode(path, threads)
        assert indices(frames) == list(range(26)) and damaged == 0
    for index, frame in enumerate(frames):
        assert np.abs(frame[..., ::-1].astype(int) - picture(index)).mean() < 6
    stream = open_stream(path)
    assert stream.info.codec == "av1"
    stream.close()


@pytest.mark.parametrize(("codec", "container"), [("h264", "mp4"), ("h264", "mkv"), ("hevc", "mp4"), ("mpeg4", "avi")])
def test_b_frames(codec, container, tmp_path):
    path = write_video(tmp_path / f"video.{container}", 26, codec=codec, b_frames=2)
    with av.open(str(path)) as source:
        kinds = {frame.pict_type for frame in source.decode(video=0)}
    assert av.video.frame.PictureType.B in kinds
    assert indices(assert_as_opencv(path, 26)) == list(range(26))


@pytest.mark.parametrize("frames", [11, 12])
def test_packed_b_frames(frames, tmp_path):
    path = write_packed_b_frames(tmp_path / "packed.avi", frames)
    assert len(packets(path)) == frames
    assert indices(assert_as_opencv(path, frames)) == list(range(frames))


@pytest.mark.parametrize(("codec", "container"), [("h264", "mp4"), ("h264", "mkv"), ("vp9", "webm")])
def test_variable_frame_rate(codec, container, tmp_path):
    """Frames are counted, not timed: none is repeated or dropped to make the rate even."""
    path = write_video(tmp_path / f"video.{container}", 15, codec=codec, timestamps=[n * n for n in range(15)])
    assert indices(assert_as_opencv(path, 15)) == list(range(15))


@pytest.mark.parametrize(
    ("codec", "container", "b_frames"),
    [("h264", "mp4", 0), ("h264", "mp4", 2), ("hevc", "mov", 2), ("h264", "mkv", 0), ("h264", "ts", 2),
     ("vp8", "webm", 0)],
)  # fmt: skip
def test_non_zero_first_timestamp(codec, container, b_frames, tmp_path):
    late = range(100, 120)
    path = write_video(tmp_path / f"video.{container}", 20, codec=codec, timestamps=late, b_frames=b_frames)
    with av.open(str(path)) as source:
        assert source.streams.video[0].start_time > 0
    assert indices(assert_as_opencv(path, 20)) == list(range(20))


def test_empty_packets_are_no_frames(tmp_path):
    """AVI has no timestamps: a pause is a run of empty packets, which its header counts as frames."""
    path = write_video(tmp_path / "video.avi", 8, codec="mpeg4", timestamps=[0, 1, 2, 5, 6, 7, 8, 12])
    assert read_header(path)[0] == 13
    assert indices(assert_as_opencv(path, 8)) == list(range(8))


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_rotation(rotation, tmp_path):
    """Shown as the display matrix says; OpenCV does quarter turns only."""
    turn = {
        "90 clockwise": lambda frame: np.rot90(frame, -1),
        "180": lambda frame: np.rot90(frame, 2),
        "90 counterclockwise": np.rot90,
        "mirrored": lambda frame: frame[:, ::-1],
        "upside down": lambda frame: frame[::-1],
        # the picture mirrored, then turned
        "mirrored, 90 clockwise": lambda frame: np.rot90(frame[:, ::-1], 1),
    }[rotation]
    path = write_video(tmp_path / "video.mp4", 4)
    upright, _ = decode(path)
    rotate(path, ROTATIONS[rotation])
    frames, _ = decode(path)
    assert_same(frames, [turn(frame) for frame in upright])
    if "mirrored" not in rotation and rotation != "upside down":
        assert_as_opencv(path, 4)
    stream = open_stream(path)
    assert (stream.info.height, stream.info.width) == frames[0].shape[:2]
    stream.close()


@pytest.mark.parametrize(
    ("codec", "container"),
    [("h264", "h264"), ("hevc", "hevc"), ("h264", "mpegts"), ("mjpeg", "mjpeg"), ("mpeg4", "m4v")],
)
def test_changing_resolution_within_a_stream(codec, container, tmp_path):
    sizes = [(96, 64), (64, 48), (128, 128)]
    parts = [
        write_video(tmp_path / f"part{number}", 10, codec=codec, size=size, container=container)
        for number, size in enumerate(sizes)
    ]
    path = tmp_path / "changing"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    # each part alone, as OpenCV decodes it; of the whole it resizes what comes later to the first size
    expected = [frame for part in parts for frame in opencv_frames(part)]
    assert len(expected) == 30
    for threads in (1, 2):
        frames, damaged = decode(path, threads)
        assert [frame.shape for frame in frames] == [(h, w, 3) for w, h in sizes for _ in range(10)]
        assert_same(frames, expected)
        assert damaged == 0

    stream = open_stream(path)
    chunks = torch.cat(list(stream))
    assert chunks.shape == (30, 3, 32, 32) and (stream.info.width, stream.info.height) == (96, 64)
    assert indices((chunks * 255).byte().permute(0, 2, 3, 1).numpy()) == list(range(10)) * 3
    stream.close()


# x265 itself corrupts its memory while it encodes odd sizes of less than 64 pixels
@pytest.mark.parametrize("size", [(97, 65), (131, 67)])
@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [("h264", "yuv444p"), ("hevc", "yuv444p"), ("vp8", "yuv420p"), ("vp9", "yuv420p"), ("mpeg4", "yuv420p"),
     ("mjpeg", "yuv420p")],
)  # fmt: skip
def test_odd_sizes(codec, pix_fmt, size, tmp_path):
    path = write_video(tmp_path / f"video.{CONTAINERS[codec]}", 5, codec=codec, size=size, pix_fmt=pix_fmt)
    frames = assert_as_opencv(path, 5)
    assert frames[0].shape == (*size[::-1], 3)


@pytest.mark.parametrize("codec", ["mjpeg", "vp8", "vp9"])
def test_1x1(codec, tmp_path):
    grey = [np.full((1, 1, 3), 40 * n, np.uint8) for n in range(1, 6)]
    path = write_video(tmp_path / f"video.{CONTAINERS[codec]}", grey, codec=codec)
    frames = assert_as_opencv(path, 5)
    assert [abs(int(frame.mean()) - 40 * n) <= 4 for n, frame in enumerate(frames, 1)] == [True] * 5
    stream = open_stream(path, Recipe())
    chunk = torch.cat(list(stream))
    assert chunk.shape == (5, 3, 224, 224) and (stream.info.width, stream.info.height) == (1, 1)
    np.testing.assert_allclose(chunk[2].numpy(), frames[2].mean() / 255 * 2 - 1, atol=0.02)
    stream.close()


def test_8k(tmp_path):
    frame = np.kron(picture(5, 96, 54), np.ones((80, 80, 1), np.uint8))
    path = write_video(tmp_path / "video.avi", [frame, frame], codec="mjpeg")
    stream = open_stream(path, Recipe())
    frames = torch.cat(list(stream))
    assert (stream.info.width, stream.info.height, stream.info.frames) == (7680, 4320, 2)
    assert frames.shape == (2, 3, 224, 224) and torch.equal(frames[0], frames[1])
    assert read_index(frames[0].permute(1, 2, 0).numpy()) == 5
    stream.close()

    first = next(iter(Pictures(path, 1)))
    there, expected = cv2.VideoCapture(str(path)).read()
    assert there and np.array_equal(first, expected)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_10_bit(codec, tmp_path):
    path = write_video(tmp_path / "video.mp4", 8, codec=codec, pix_fmt="yuv420p10le")
    with av.open(str(path)) as source:
        assert source.streams.video[0].format.name == "yuv420p10le"
    assert indices(assert_as_opencv(path, 8)) == list(range(8))


def test_frames_that_are_never_shown_are_no_frames(tmp_path):
    """VP8 may have frames that only others refer to: here the first one, once more."""
    plain = write_video(tmp_path / "plain.webm", 20, codec="vp8")
    path = tmp_path / "video.webm"
    with av.open(str(plain)) as source, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if not packet.size:
                continue
            coded = bytes(packet)
            copies = [coded] if packet.pts else [coded, bytes([coded[0] & ~0x10]) + coded[1:]]
            for offset, copy in enumerate(copies):
                written = av.Packet(copy)
                written.stream, written.time_base, written.is_keyframe = stream, packet.time_base, packet.is_keyframe
                written.pts = written.dts = packet.pts + offset
                output.mux(written)
    assert len(packets(path)) == 21
    assert_same(assert_as_opencv(path, 20), decode(plain)[0])


def test_one_frame(tmp_path):
    path = write_video(tmp_path / "video.mp4", 1)
    assert indices(assert_as_opencv(path, 1)) == [0]


def test_names_that_ffmpeg_would_take_for_something_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a:b.mp4", "pipe:0.mp4", "100%03d.mp4", "with 'quotes' and spaces.mp4", "ünïcode-視頻.mp4"):
        shutil.move(write_video(tmp_path / "plain.mp4", 3), tmp_path / name)
        assert indices(decode(Path(name))[0]) == [0, 1, 2], name
    undecodable = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4"))
    shutil.move(write_video(tmp_path / "plain.mp4", 3), undecodable)
    assert indices(decode(undecodable)[0]) == [0, 1, 2]


# hints --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "container", "hint"),
    [("h264", "mp4", 20), ("mpeg4", "avi", 20), ("vp9", "webm", 20), ("h264", "h264", 0)],
)
def test_frames_hint_is_what_the_container_promises(codec, container, hint, tmp_path):
    """Written in MP4 and AVI; length times rate in WebM; a bare stream promises nothing."""
    path = write_video(tmp_path / f"video.{container}", 20, codec=codec)
    stream = open_stream(path)
    assert stream.info.frames_hint == hint
    assert stream.info.frames == 0
    assert sum(len(chunk) for chunk in stream) == stream.info.frames == 20
    stream.close()
    assert read_header(path) == (hint, 96, 64)


# damage -------------------------------------------------------------------------------------------------------------


def ffmpeg_count(path):
    """Frames that the command gives, with as little threading as it can; None where there is no command."""
    if not shutil.which("ffmpeg"):
        return None
    command = ["ffmpeg", "-v", "quiet", "-threads", "1", "-i", path, "-vsync", "passthrough", "-f", "framecrc", "-"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return sum(not line.startswith("#") for line in lines)


#: codec, B-frames, which of 20 packets is broken, frames that are left (None: differs between versions of FFmpeg)
BROKEN = [
    # a broken frame is left out, and what refers to it is shown with smears
    ("h264", 0, 5, 19), ("h264", 0, 18, 19), ("h264", 2, 5, 19), ("h264", 2, 18, 19),
    ("mpeg4", 0, 5, 19), ("mpeg4", 0, 18, 19), ("mpeg4", 2, 5, 19),
    ("mjpeg", 0, 0, 19), ("mjpeg", 0, 5, 19), ("mjpeg", 0, 19, 19),
    ("vp8", 0, 1, 19), ("vp8", 0, 5, 19), ("vp8", 0, 18, 19), ("vp8", 0, 19, 19), ("vp9", 0, 1, 19), ("vp9", 0, 18, 19),
    # without its first key frame, nothing is shown until the second, the 13th frame
    ("vp8", 0, 0, 8), ("vp9", 0, 0, 8),
    # since FFmpeg 7.1, HEVC that refers to a broken frame is left out, too
    ("hevc", 0, 5, None), ("hevc", 2, 5, None), ("hevc", 0, 0, None), ("av1", 0, 5, None), ("h264", 0, 0, None),
]  # fmt: skip


@pytest.mark.parametrize(("codec", "b_frames", "number", "left"), BROKEN)
def test_damaged_packet(codec, b_frames, number, left, tmp_path):
    path = write_video(tmp_path / f"video.{CONTAINERS[codec]}", 20, codec=codec, b_frames=b_frames)
    whole, _ = decode(path)
    break_packet(path, number)
    frames, damaged = decode(path)
    if left is None:
        assert 8 <= len(frames) <= 19 and damaged >= 1
    else:
        assert len(frames) == left
        assert damaged == 20 - left
        assert ffmpeg_count(path) in (None, left)
    if b_frames == 0:
        assert_same(frames[:number], whole[:number])
    # from the next key frame on all is well again
    if number < 12:
        assert_same(frames[-7:], whole[-7:])

    for threads in (2, 3, 4):
        threaded, count = decode(path, threads)
        assert_same(threaded, frames)
        assert count == damaged

    stream = open_stream(path)
    assert sum(len(chunk) for chunk in stream) == stream.info.frames == len(frames)
    assert stream.info.damaged_packets == damaged
    stream.close()


def test_several_damaged_packets(tmp_path):
    path = write_video(tmp_path / "video.avi", 40, codec="mjpeg")
    for number in (3, 4, 20, 39):
        break_packet(path, number)
    frames, damaged = decode(path)
    assert indices(frames) == [n for n in range(40) if n not in (3, 4, 20, 39)] and damaged == 4
    assert_same(decode(path, 2)[0], frames)


def test_nothing_but_damage(tmp_path):
    path = write_video(tmp_path / "video.avi", 5, codec="mjpeg")
    for number in range(5):
        break_packet(path, number)
    with pytest.raises(DecodeError, match="all 5 packets are damaged"):
        open_stream(path)


def faststart(path, target, **options):
    """The same packets in a file whose index comes first, or in another container."""
    with av.open(str(path)) as source, av.open(str(target), "w", options=options) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    return target


@pytest.mark.parametrize("keep", [0.5, 0.75])
@pytest.mark.parametrize(
    ("codec", "container"),
    [("h264", "mp4"), ("h264", "mkv"), ("h264", "flv"), ("h264", "h264"), ("hevc", "mp4"), ("mpeg4", "avi"),
     ("mjpeg", "avi"), ("vp8", "webm"), ("vp9", "webm"), ("av1", "mkv"), ("mpeg2video", "mpg")],
)  # fmt: skip
def test_truncated(codec, container, keep, tmp_path):
    """The frames up to the end that is there, and a mark: no container's reader may take the cut for the end."""
    path = write_video(tmp_path / f"whole.{container}", 60, codec=codec)
    whole, _ = decode(path)
    if container == "mp4":
        path = faststart(path, tmp_path / "video.mp4", movflags="faststart")
    truncate(path, keep)
    frames, damaged = decode(path)
    assert 5 < len(frames) < 50 and damaged == 1
    assert ffmpeg_count(path) in (None, len(frames))
    # the last frame may be half there
    assert_same(frames[:-2], whole[: len(frames) - 2])
    for threads in (2, 3):
        threaded, count = decode(path, threads)
        assert_same(threaded, frames)
        assert count == 1


def test_matroska_whose_length_was_not_known(tmp_path):
    """As recorders write it that cannot go back: nothing tells that it is cut off, or that it is not."""
    path = write_video(tmp_path / "video.mkv", 20)
    content = bytearray(path.read_bytes())
    size = content.index(bytes.fromhex("18538067")) + 4
    assert content[size] == 1
    content[size : size + 8] = bytes.fromhex("01ffffffffffffff")
    path.write_bytes(content)
    frames, damaged = decode(path)
    assert indices(frames) == list(range(20)) and damaged == 0


def test_truncated_before_the_index(tmp_path):
    """MP4 has its index at the end unless asked otherwise: nothing can be read without it."""
    path = truncate(write_video(tmp_path / "video.mp4", 60), 0.5)
    assert reason(path).startswith("FFmpeg cannot read it (")


# what is no video ---------------------------------------------------------------------------------------------------


def reason(path):
    with pytest.raises(DecodeError) as caught:
        open_stream(path)
    text = str(caught.value)
    assert text and "\n" not in text and str(path) not in text and Path(path).name not in text
    return text


def test_empty_file(tmp_path):
    path = tmp_path / "video.mp4"
    path.touch()
    assert reason(path) == "the file is empty"


def test_text_called_mp4(tmp_path):
    path = tmp_path / "video.mp4"
    path.write_text("Download failed, please log in.\n" * 20)
    assert re.fullmatch(r"FFmpeg cannot read it \(.+\): not a video, or damaged at its start", reason(path))


def test_a_playlist_opens_nothing_else(tmp_path):
    write_video(tmp_path / "other.ts", 5)
    path = tmp_path / "video.mp4"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/other.ts\n#EXT-X-ENDLIST\n")
    reason(path)


def test_audio_only(tmp_path):
    assert reason(write_sound(tmp_path / "sound.mp4")) == "no video stream, only audio"


def test_audio_with_cover_art(tmp_path):
    path = write_sound(tmp_path / "sound.mp4", cover=True)
    with av.open(str(path)) as source:
        assert len(source.streams.video) == 1
    assert reason(path) == "no video stream, only audio"


def test_directory(tmp_path):
    assert reason(tmp_path) == "Is a directory"


def test_vanished(tmp_path):
    assert reason(tmp_path / "video.mp4") == "No such file or directory"


def test_unreadable():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = write_video(Path(folder, "video.mp4"), 3)
        os.chmod(path, 0)
        with as_somebody():
            assert reason(path) == "Permission denied"


@contextlib.contextmanager
def as_somebody():
    """Root may read everything: be nobody in particular for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_an_absurd_shape_is_refused_when_opened(tmp_path):
    strip = [np.zeros((1, 4000, 3), np.uint8)]
    path = write_video(tmp_path / "video.avi", strip, codec="mjpeg")
    assert "4000 x 1 pixels would become" in reason_with(path, Recipe())


def reason_with(path, recipe):
    with pytest.raises(DecodeError) as caught:
        open_stream(path, recipe)
    return str(caught.value)


# resources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_close_midway_and_twice(threads, tmp_path):
    path = write_video(tmp_path / "video.mp4", 60, b_frames=2)
    before = open_files()
    stream = open_stream(path, threads=threads)
    assert open_files() == before + 1
    assert len(next(iter(stream))) == 16
    assert stream.info.frames == 16
    stream.close()
    stream.close()
    assert open_files() == before


def test_a_refused_video_leaves_no_file_open(tmp_path):
    before = open_files()
    reason(write_sound(tmp_path / "sound.mp4"))
    test_an_absurd_shape_is_refused_when_opened(tmp_path)
    assert open_files() == before


def open_files():
    return len(os.listdir("/dev/fd"))


_PEAK = """
import resource, sys, torch
from pathlib import Path
from streamfeat.decode.pyav import PyAVDecoder
from streamfeat.recipe import Recipe
from streamfeat.videos import Video
stream = PyAVDecoder(2).open(Video("name", Path(sys.argv[1])), Recipe(upscale_below=None), torch.device("cpu"))
frames = sum(len(chunk) for chunk in stream)
print(frames, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_length(tmp_path):
    peaks = []
    for frames in (60, 600):
        path = write_video(tmp_path / f"{frames}.mp4", [picture(0, 192, 144)] * frames, options={"preset": "ultrafast"})
        output = subprocess.run(
            [sys.executable, "-c", _PEAK, str(path)], check=True, capture_output=True, text=True
        ).stdout.split()
        assert int(output[0]) == frames
        peaks.append(int(output[1]))
    assert peaks[1] < 1.05 * peaks[0]


LOGGING = """
import sys, av
from streamfeat.decode.pyav import Pictures
av.logging.set_level(av.logging.ERROR)  # as torchvision does when it is imported
for _ in range(100):
    for threads in (2, 3, 4):
        pictures = Pictures(sys.argv[1], threads)
        frames = list(pictures)
        pictures.close()
        del pictures
print(len(frames))
"""


def test_what_ffmpeg_logs_hangs_nothing(tmp_path):
    """A thread of FFmpeg that logs for PyAV waits for Python's lock, which whoever ends that thread may hold."""
    path = break_packet(write_video(tmp_path / "a.mp4", 20, codec="hevc"), 0)
    done = subprocess.run([sys.executable, "-c", LOGGING, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and 8 <= int(done.stdout) <= 19
