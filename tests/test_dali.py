"""DALI's graph, on its CPU decoder: the same one runs on a GPU."""

import os
import subprocess
import sys
from dataclasses import replace

import av
import numpy as np
import pytest
import torch

import streamfeat
from streamfeat.decode import base, choose, dali, dali_graph, dali_stream, nvdec, probe
from streamfeat.decode.agreement import FirstFrames
from streamfeat.decode.base import FallBack, StreamInfo
from streamfeat.decode.choose import Decoders
from streamfeat.decode.dali import DaliDecoder
from streamfeat.decode.preprocess import Preprocessor
from streamfeat.decode.probe import Packets
from streamfeat.decode.pyav import PyAVDecoder
from streamfeat.recipe import Recipe
from streamfeat.videos import Video

from .media import break_packet, picture, read_index, rotate, truncate, write_video

CPU = torch.device("cpu")


def frames(decoder, path, recipe=Recipe()):  # noqa: B008
    stream = decoder.open(Video(path.stem, path), recipe, CPU)
    try:
        return torch.cat(list(stream)), stream.info
    finally:
        stream.close()


def first_frames(path, recipe):
    return FirstFrames(probe.inspect(path).pictures, recipe)


def dali_on_cpu(**options):
    assert dali.unavailable(CPU) is None
    return DaliDecoder(CPU, **options)


@pytest.mark.parametrize(("name", "codec"), [("a.webm", "vp9"), ("a.avi", "mjpeg")])
@pytest.mark.parametrize("count", [1, 16, 37, 48])
def test_every_frame_comes_once_in_order(tmp_path, name, codec, count):
    path = write_video(tmp_path / name, count, codec=codec)
    found, info = frames(dali_on_cpu(), path)
    assert [read_index(frame.permute(1, 2, 0).numpy()) for frame in found] == list(range(count))
    assert (info.frames, info.codec, info.decoder) == (count, codec, "dali-cpu")
    assert (info.width, info.height, info.fps) == (96, 64, 25.0)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(), Recipe(channel_order="bgr"), Recipe.named("thumos14"), Recipe.named("kinetics"),
        Recipe.named("wsvad-10crop"), Recipe(resize_short=300, upscale_below=None),
    ],
    ids=lambda recipe: f"{recipe.name}-{recipe.channel_order}-{recipe.resize_short}",
)  # fmt: skip
@pytest.mark.parametrize("size", [(96, 64), (320, 240), (301, 227)])
def test_the_graph_is_the_definition_within_the_colours_that_differ(tmp_path, recipe, size):
    path = write_video(tmp_path / "a.webm", 3, codec="vp9", size=size)
    ours, _ = frames(dali_on_cpu(), path, recipe)
    grey_level = torch.tensor(recipe.std).view(1, 3, 1, 1) * 255

    # the same bytes through the definition: nothing but the rounding of bytes, where they are scaled up first
    decoded = raw_frames(path)
    preprocessor = Preprocessor(recipe, *size, order="rgb")
    definition = torch.cat(list(preprocessor.chunks(iter(decoded), CPU)))
    assert ours.shape == definition.shape and ours.dtype == torch.float32
    assert ((ours - definition) * grey_level).abs().max() < (1.1 if min(size) < 226 and recipe.upscale_below else 0.01)

    # PyAV's bytes: another interpolation of chroma, other rounding
    reference, _ = frames(PyAVDecoder(), path, recipe)
    assert ((ours - reference) * grey_level).abs().mean() < 2.5


def raw_frames(path):
    """What DALI decodes, uint8 (n, h, w, 3), before anything is done to it."""
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def decode():
        return fn.experimental.readers.video(device="cpu", filenames=[str(path)], sequence_length=3)

    pipeline = decode()
    pipeline.build()
    return np.array(pipeline.run()[0].as_array())[0]


def test_the_exchange_of_channels_is_seen(tmp_path):
    path = write_video(tmp_path / "a.webm", 2, codec="vp9")
    rgb, _ = frames(dali_on_cpu(), path, Recipe())
    bgr, _ = frames(dali_on_cpu(), path, Recipe(channel_order="bgr"))
    assert torch.equal(rgb[:, [2, 1, 0]], bgr) and not torch.equal(rgb, bgr)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: write_video(path / "a.mkv", 4, codec="av1"), "no av1"),
        (lambda path: write_video(path / "a.mp4", 4, codec="h264", pix_fmt="yuv420p10le"), "yuv420p10le"),
        (lambda path: write_video(path / "a.webm", 4, codec="vp9", pix_fmt="yuv444p"), "yuv444p"),
        (lambda path: write_video(path / "a.avi", 4, codec="mjpeg", pix_fmt="yuvj422p"), "yuvj422p"),
        (lambda path: rotate(write_video(path / "a.mp4", 4, codec="mjpeg"), (0, 1, -1, 0)), "turned"),
    ],
    ids=["codec", "10 bit", "4:4:4", "4:2:2", "rotation"],
)
def test_what_it_cannot_do_falls_back_before_it_starts(tmp_path, monkeypatch, make, says):
    monkeypatch.setattr(dali, "CPU_CODECS", dali.CPU_CODECS | {"h264"})
    with pytest.raises(FallBack, match=says):
        frames(dali_on_cpu(), make(tmp_path))


# the first as well: the look at it before DALI starts must not fail a video that PyAV decodes but for one frame
@pytest.mark.parametrize("number", [0, 20, 39])
def test_a_broken_packet_falls_back(tmp_path, number):
    path = break_packet(write_video(tmp_path / "a.avi", 40, codec="mjpeg"), number)
    with pytest.raises(FallBack):
        frames(dali_on_cpu(), path)
    reference, _ = frames(PyAVDecoder(), path)
    assert len(reference) == 39


def test_a_codec_that_only_dali_refuses_falls_back(tmp_path, monkeypatch):
    # DALI leaves a file whose codec it lacks out of its list, and says so on standard error alone
    monkeypatch.setattr(dali, "CPU_CODECS", dali.CPU_CODECS | {"h264"})
    with pytest.raises(FallBack, match="DALI cannot read it"):
        frames(dali_on_cpu(), write_video(tmp_path / "a.mp4", 4))


def test_a_resolution_that_changes_midway_gives_pyavs_frames_or_falls_back(tmp_path):
    parts = [
        write_video(tmp_path / f"{size[0]}.mjpeg", 10, codec="mjpeg", size=size) for size in ((96, 64), (160, 120))
    ]
    whole = tmp_path / "whole.mjpeg"
    whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    try:
        ours, _ = frames(dali_on_cpu(), whole)
    except FallBack:
        return
    reference, _ = frames(PyAVDecoder(), whole)
    assert (ours - reference).abs().mean() < 2.5 / 127.5


def test_fewer_frames_than_packets_fall_back(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.webm", 20, codec="vp9")
    packets = Packets(np.arange(21), np.array([0]), np.array([True]))
    monkeypatch.setattr(dali, "inspect", lambda *arguments: replace(probe.inspect(*arguments), packets=packets))
    with pytest.raises(FallBack, match="20 frames came out of 21 packets"):
        frames(dali_on_cpu(), path)


def test_streams_are_used_again(monkeypatch):
    from contextlib import nullcontext

    from streamfeat.decode import streams

    made = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: made.append(priority) or len(made))
    current = []
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: current.append(stream) or nullcontext())
    monkeypatch.setattr(streams, "_free", type(streams._free)(streams._free.default_factory))
    device, other = torch.device("cuda", 0), torch.device("cuda", 1)
    with streams.own_stream(device), streams.own_stream(device), streams.own_stream(other):
        pass
    for _ in range(3):
        with pytest.raises(FallBack), streams.own_stream(device):
            raise FallBack
    assert made == [-1, -1, -1] and current == [1, 2, 3, 1, 1, 1]


def test_a_file_that_has_changed_is_read_anew(tmp_path):
    """DALI keeps what it knows of a file under its name for the life of the process."""
    for count in (20, 37):
        path = write_video(tmp_path / "a.webm", count, codec="vp9")
        assert len(frames(dali_on_cpu(), path)[0]) == count


@pytest.mark.parametrize("name", ["with blanks 2 0 1.webm", "a:b.webm", "ä\tö.we bm"])
def test_names_may_hold_anything(tmp_path, name):
    path = write_video(tmp_path / name, 20, codec="vp9", container="webm")
    assert len(frames(dali_on_cpu(), path)[0]) == 20


def test_nothing_is_decoded_twice(tmp_path, monkeypatch):
    """Past its end DALI would begin anew, and the end of the pipeline would wait for a whole sequence."""
    from nvidia.dali import pipeline

    runs = []
    set_up = pipeline.Pipeline._iter_setup
    monkeypatch.setattr(pipeline.Pipeline, "_iter_setup", lambda self: runs.append(1) or set_up(self))
    path = write_video(tmp_path / "a.webm", 40, codec="vp9")
    frames(dali_on_cpu(), path)
    assert len(runs) == 3  # sequences of 16 frames
    # what the reader goes on to by itself is one frame
    files = dali.FileList(path)
    made = dali_graph.graph(Recipe(), CPU, StreamInfo(96, 64, 25.0, "vp9", "dali-cpu"))(files.write(None))
    made.build()
    outputs = [[output.as_array().ravel().tolist() for output in made.run()[1:]] for _ in range(4)]
    assert [labels for labels, _ in outputs] == [[1], [1], [1], [2]]
    assert outputs[3][1] == [0] + 15 * [-1]


HANG = """
import numpy, os, sys, torch
from streamfeat.decode.base import FallBack, StreamInfo
from streamfeat.decode.dali_stream import DaliStream, DaliVideo, FileList, Index
from streamfeat.decode.parts import Part
info = StreamInfo(96, 64, 25.0, "vp9", "dali-cpu")
files = FileList(sys.argv[1])
video = DaliVideo(sys.argv[1], None, torch.device("cpu"), info, numpy.arange(4), None, files, 1.0, Index())
stream = DaliStream(video, Part(0, 4, 0), None)
try:
    next(iter(stream))
except FallBack as error:
    print(error, flush=True)
os._exit(0)
"""


def test_others_run_while_dali_reads_a_file(tmp_path):
    """DALI's build holds Python's lock: were the file read there, one that never answers would hang everything."""
    os.mkfifo(tmp_path / "a.webm")
    done = subprocess.run(
        [sys.executable, "-c", HANG, str(tmp_path / "a.webm")], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "nothing came for 1 seconds\n"


HUNG = """
import atexit, sys, threading, time
from streamfeat.cli import main
from streamfeat.decode import dali_stream
threading.Thread(target=time.sleep, args=(600,), name=dali_stream._THREAD, daemon=True).start()
atexit.register(time.sleep, 600)
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("arguments", "code"), [(["recipes"], 0), (["info", "not-there.h5"], 2)])
def test_a_command_ends_although_dali_hangs(arguments, code):
    done = subprocess.run([sys.executable, "-c", HUNG, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == code and (done.stdout or done.stderr)


def shift_edit_list(path, frames):
    """Has the edit list of an MP4 of 25 frames/s begin ``frames`` later."""
    content = bytearray(path.read_bytes())
    at = content.index(b"elst") + 4 + 4 + 4 + 4  # version and flags, entries, duration
    begin = int.from_bytes(content[at : at + 4], "big")
    scale_at = content.index(b"mdhd") + 4 + 4 + 8
    scale = int.from_bytes(content[scale_at : scale_at + 4], "big")
    content[at : at + 4] = (begin + frames * scale // 25).to_bytes(4, "big")
    path.write_bytes(content)
    return path


OPEN_GOPS = {"b_frames": 3, "gop": 8, "options": {"x265-params": "log-level=none:pools=1:open-gop=1:keyint=8"}}


def begin_late(path, out):
    """Copies a video from its second key frame on, as a cut without coding anew does."""
    with av.open(str(path)) as source, av.open(str(out), "w") as output:
        stream = source.streams.video[0]
        copy = output.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        begin = [index for index, packet in enumerate(packets) if packet.is_keyframe][1]
        for packet in packets[begin:]:
            packet.stream = copy
            output.mux(packet)
    return out


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: write_video(path / "a.avi", 20, b_frames=2), "AVI does not say"),
        (lambda path: write_video(path / "a.avi", 20, codec="mpeg4", b_frames=2), "AVI does not say"),
        (lambda path: shift_edit_list(write_video(path / "a.mp4", 20, b_frames=2), 5), "edit list"),
        (lambda path: write_video(path / "a.h264", 20), "without timestamps"),
        (lambda path: begin_late(write_video(path / "a.mp4", 24, codec="hevc", **OPEN_GOPS), path / "b.mkv"), "before"),
        (lambda path: truncate(write_video(path / "a.mkv", 20), 0.7), "cut off"),
        (lambda path: break_packet(write_video(path / "a.mp4", 20), 7), "packet 7 is not one h264 frame"),
        (lambda path: write_video(path / "a.mkv", 3, timestamps=[2**31 // 40 + i for i in range(3)]), "too large"),
    ],
    ids=["H.264 in AVI", "MPEG-4 in AVI", "edit list", "no timestamps", "leading frames", "cut off", "broken",
         "large timestamps"],
)
def test_packets_that_timestamps_do_not_place_fall_back(tmp_path, make, says):
    path = make(tmp_path)
    with pytest.raises(FallBack, match=says):
        probe.inspect(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_b_frames_with_timestamps_are_placed(tmp_path, name):
    path = write_video(tmp_path / name, 20, b_frames=2)
    assert len(probe.inspect(path).packets.times) == 20


def test_first_frames_must_be_the_same_pictures(tmp_path):
    path = write_video(tmp_path / "a.mp4", 30, size=(320, 240))
    recipe = Recipe()
    right, _ = frames(PyAVDecoder(), path, recipe)
    first = first_frames(path, recipe)
    first.compare(right)
    first.compare(right[:3])
    first.compare(right + 3 / 127.5)  # another rounding, another matrix
    with pytest.raises(FallBack, match=r"frame 1 is \d+\.\d grey levels"):
        first.compare(right[[0, 2, 1, 3, 4, 5, 6, 7]])
    for wrong in (torch.zeros_like(right), right * 1.2 + 0.3, torch.full_like(right, torch.nan)):
        with pytest.raises(FallBack, match="frame 0 is "):
            first.compare(wrong)
    with pytest.raises(FallBack, match="its frames are"):
        first.compare(right[..., :100])
    # frames as they are
    raw = torch.from_numpy(np.stack([picture(index, 320, 240) for index in range(30)])).permute(0, 3, 1, 2)
    first_frames(path, None).compare(raw)
    with pytest.raises(FallBack):
        first_frames(path, None).compare(raw[1:])


def test_slow_motion_out_of_order_is_seen(tmp_path):
    slow = [np.roll(picture(5, 320, 240), 2 * index, axis=1) for index in range(8)]
    path = write_video(tmp_path / "a.mp4", slow)
    right, _ = frames(PyAVDecoder(), path)
    first = first_frames(path, Recipe())
    first.compare(right)
    with pytest.raises(FallBack, match=r"frame 2 looks like PyAV's frame 4|grey levels"):
        first.compare(right[[0, 1, 4, 2, 3, 5, 6, 7]])


def test_a_first_sequence_that_is_not_the_video_s_falls_back(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.webm", 20, codec="vp9")
    own = dali.DaliStream._own
    monkeypatch.setattr(dali.DaliStream, "_own", lambda self, outputs: own(self, outputs).flip(0))
    with pytest.raises(FallBack, match="PyAV's"):
        frames(dali_on_cpu(), path)


NVDEC = {codec: nvdec.Capability(1, 48, 50, 4096, 4080) for codec in ("h264", "vp9")}


@pytest.mark.parametrize(
    ("codec", "size", "able", "says"),
    [
        ("mpeg4", (96, 64), NVDEC, "no mpeg4 on this GPU"),
        ("h264", (32, 64), NVDEC, "32 x 64: NVDEC's h264 is 48 to 4096 pixels wide"),
        ("h264", (96, 48), NVDEC, "96 x 48: NVDEC's h264 is 50 to 4080 pixels high"),
        ("vp9", (97, 64), NVDEC, "97 x 64: DALI converts an even number of pixels"),
        ("vp9", (96, 65), {}, "96 x 65: DALI converts an even number of pixels"),
    ],
)
def test_what_nvdec_cannot_do_never_reaches_it(tmp_path, monkeypatch, codec, size, able, says):
    monkeypatch.setattr(nvdec, "capabilities", lambda index: able)
    monkeypatch.setattr(dali, "DaliStream", lambda *arguments: pytest.fail("DALI was asked"))
    path = write_video(tmp_path / f"a.{'webm' if codec == 'vp9' else 'mp4'}", 3, codec=codec, size=size)
    with pytest.raises(FallBack, match=says):
        DaliDecoder(torch.device("cuda", 0)).open(Video("a", path), Recipe(), CPU)


def test_no_decoder_is_used_for_another_size(tmp_path, monkeypatch):
    monkeypatch.setattr(nvdec, "capabilities", lambda index: {})
    monkeypatch.setattr(dali, "_displayed", set())
    monkeypatch.setattr(dali, "DaliStream", lambda video, *arguments: video)
    sizes = {name: size for name, size in zip("abcd", [(96, 72), (96, 80), (96, 72), (96, 80)], strict=True)}
    for name, size in sizes.items():
        write_video(tmp_path / f"{name}.mp4", 3, size=size)
    decoder = DaliDecoder(torch.device("cuda", 0))
    for name in "abd":
        assert decoder.open(Video(name, tmp_path / f"{name}.mp4"), Recipe(), CPU)
    # it is coded in 80 lines
    with pytest.raises(FallBack, match="96 x 72: DALI would use its decoder for 96 x 80"):
        decoder.open(Video("c", tmp_path / "c.mp4"), Recipe(), CPU)


def test_interlaced_video_never_reaches_nvdec(tmp_path, monkeypatch):
    monkeypatch.setattr(nvdec, "capabilities", lambda index: {})
    options = {"flags": "+ildct+ilme", "x264-params": "tff=1"}
    path = write_video(tmp_path / "a.mp4", 3, options=options)
    with pytest.raises(FallBack, match="interlaced"):
        DaliDecoder(torch.device("cuda", 0)).open(Video("a", path), Recipe(), CPU)


def test_a_hanging_pipeline_is_given_up(tmp_path, monkeypatch):
    import threading

    path = write_video(tmp_path / "a.webm", 20, codec="vp9")
    release = threading.Event()
    monkeypatch.setattr(dali_stream, "graph", lambda *arguments: lambda listed: release.wait())
    with pytest.raises(FallBack, match="nothing came"):
        frames(dali_on_cpu(watchdog=0.2), path)
    assert dali_stream.hangs()
    with pytest.raises(FallBack, match="nothing came"):
        frames(dali_on_cpu(watchdog=0.2), path)
    with pytest.raises(FallBack, match="not asked any more, 2 of its pipelines hang"):
        frames(dali_on_cpu(), path)
    release.set()
    for _, thread in dali_stream._hung:
        thread.join(10)
    assert not dali_stream.hangs()


def test_frames_that_are_not_the_next_fall_back(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.webm", 20, codec="vp9")
    stream = dali_on_cpu().open(Video("a", path), Recipe(), CPU)
    numbers, chunk = stream._next()
    stream._sequences.get()
    stream._sequences.put((numbers + 1, chunk))
    with pytest.raises(FallBack, match="frame 0 was expected"):
        next(iter(stream))
    stream.close()


def test_closing_midway_ends_the_thread(tmp_path):
    import threading

    path = write_video(tmp_path / "a.webm", 200, codec="vp9")
    stream = dali_on_cpu().open(Video("a", path), Recipe(), CPU)
    next(iter(stream))
    stream.close()
    stream.close()
    assert not any(thread.name == dali_stream._THREAD for thread in threading.enumerate())


def test_a_run_falls_back_for_just_the_videos_that_need_it(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "vp9.webm", 20, codec="vp9")
    write_video(folder / "h264.mp4", 20)
    break_packet(write_video(folder / "broken.mp4", 40, codec="vp9"), 20)
    truncate(write_video(folder / "short.avi", 40, codec="mjpeg"), 0.5)
    summary = streamfeat.extract(
        folder, tmp_path / "out.h5", decoder="dali", model="vit_tiny", weights="random",
        recipe=Recipe(clip_frames=4, clip_stride=4, image_size=32, upscale_below=None),
    )  # fmt: skip
    assert not summary.failures and summary.done == 4
    reference = streamfeat.extract(
        folder, tmp_path / "pyav.h5", decoder="pyav", model="vit_tiny", weights="random",
        recipe=Recipe(clip_frames=4, clip_stride=4, image_size=32, upscale_below=None),
    )  # fmt: skip
    assert summary.frames == reference.frames and summary.clips == reference.clips
    with streamfeat.open(tmp_path / "out.h5") as store:
        made_by = {name: video.attrs["decoder"] for name, video in store.items()}
        assert made_by["vp9"] == "dali-cpu" and made_by["h264"] == made_by["broken"] == "pyav"
        assert "no h264" in store["h264"].attrs["fallback"]
        assert store["vp9"].frames == 20 and len(store["vp9"].features) == 5
        for name, video in store.items():
            assert np.isfinite(video.features).all(), name


def test_auto_takes_pyav_on_a_cpu_and_dali_where_asked(tmp_path):
    video = Video("a", tmp_path / "a.mp4")
    assert [decoder.name for decoder in Decoders("auto", CPU, 3)(video)] == ["pyav"]
    assert [decoder.name for decoder in Decoders("dali", CPU, 3)(video)] == ["dali-cpu", "pyav"]
    folder = Video("b", tmp_path, "frames")
    assert [decoder.name for decoder in Decoders("dali", CPU, 3)(folder)] == ["images"]


@pytest.mark.parametrize(
    ("engines", "videos", "lanes", "wanted", "why"),
    [
        (7, 100, None, 7, "one for each NVDEC engine"), (7, 1, None, 7, "one for each NVDEC engine"),
        (None, 100, None, 2, "NVDEC engines unknown"), (7, 100, 5, 5, "asked for"),
    ],
)  # fmt: skip
def test_a_gpu_has_a_lane_for_each_of_its_engines(monkeypatch, engines, videos, lanes, wanted, why):
    asked = []
    monkeypatch.setattr(dali, "unavailable", lambda device: None)
    monkeypatch.setattr(nvdec, "engines", lambda index: asked.append(index) or engines)
    monkeypatch.setattr(choose.os, "sched_getaffinity", lambda process: range(16), raising=False)
    decoders = Decoders("auto", torch.device("cuda", 1), videos, lanes)
    assert (decoders.device_lanes, asked) == (wanted, [1])
    # beside them the cores, for what falls back and for folders of frames
    assert decoders.lanes == min(16, videos)
    assert decoders.label.startswith(f"DALI (NVDEC) in {wanted} lanes ({why}), what it cannot by PyAV in ")


def test_a_gpu_without_nvdec_has_the_cores_decode(monkeypatch):
    monkeypatch.setattr(dali, "unavailable", lambda device: "the driver has no libnvcuvid.so.1")
    monkeypatch.setattr(choose.os, "sched_getaffinity", lambda process: range(16), raising=False)
    decoders = Decoders("auto", torch.device("cuda", 0), 100)
    assert (decoders.lanes, decoders.device_lanes) == (16, 0)
    assert decoders.label == "PyAV (no DALI: the driver has no libnvcuvid.so.1) in 16 lanes (for 16 cores)"


def test_on_a_gpu_a_sequence_is_as_long_as_a_chunk_s_bytes(monkeypatch):
    lengths = []
    monkeypatch.setattr(dali_graph, "_pipeline", lambda device, length, process: lengths.append(length))
    for width, height in ((856, 480), (1920, 1080), (7680, 4320)):
        info = StreamInfo(width, height, 25.0, "h264", "dali-gpu")
        for device in ("cpu", "cuda"):
            dali_graph.graph(Recipe(), torch.device(device), info)
    assert lengths == [16, 55, 16, 21, 1, 1]
    # float32 frames of 224 x 224, and decoded bytes
    assert base.MAX_CHUNK_BYTES // (3 * 4 * 224 * 224) == 55
    assert dali_graph.MAX_SEQUENCE_BYTES // (3 * 1920 * 1080) == 21
