"""Videos cut into parts: where they may be, and that nothing of them is lost or changed."""

import gc
import tempfile
import threading
import time
import weakref
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import streamfeat
from streamfeat.clips import ClipWindow
from streamfeat.decode import dali, dali_stream, parts, probe
from streamfeat.decode.base import BegunWrong, DecodeError, FallBack
from streamfeat.decode.dali import DaliDecoder
from streamfeat.decode.parts import cut
from streamfeat.decode.probe import Packets
from streamfeat.decode.pyav import Pictures
from streamfeat.recipe import Recipe
from streamfeat.videos import Video

from .media import break_packet, read_index, write_video

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_went_wrong_before(monkeypatch):
    monkeypatch.setattr(dali_stream, "_begun_right", set())
    monkeypatch.setattr(dali_stream, "_begun_wrong", defaultdict(set))
    monkeypatch.setattr(dali_stream, "_hung", [])


@pytest.fixture
def short_parts(monkeypatch):
    monkeypatch.setattr(parts, "FEWEST_FRAMES", 20)
    monkeypatch.setattr(parts, "MOST_FRAMES", 40)


def packets_of(frames, keys, good=None):
    return Packets(np.arange(frames), np.array(keys), np.array(good or [True] * len(keys)))


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 3000), st.integers(1, 300), st.integers(1, 40), st.sampled_from(range(2, 21, 2)), st.integers(1, 8),
    st.sampled_from(["drop", "pad"]), st.floats(0.01, 1.2), st.randoms(use_true_random=False),
)  # fmt: skip
def test_parts_have_every_clip_once(frames, gop, stride, clip_frames, step, tail, share, random):
    recipe = Recipe(clip_frames=clip_frames, clip_stride=stride, frame_step=step, tail=tail, image_size=14)
    keys = list(range(0, frames, gop))
    found = cut(recipe, packets_of(frames, keys, [random.random() < 0.8 for _ in keys]), share)
    starts = []
    for index, part in enumerate(found):
        assert part.first % stride == 0 and part.key <= part.first < part.end <= frames
        assert index == 0 or found[index - 1].first < part.first <= found[index - 1].end
        window = ClipWindow(recipe, lambda shape: torch.empty(shape), part.first)
        # a frame is a number; all at once, as a window cuts them whatever the chunks
        numbers = torch.arange(part.first, part.end, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
        clips = list(window.push(numbers))
        if index == len(found) - 1:
            clips += list(window.finish())
        for clip in clips:
            starts.append(clip.start_frame)
            wanted = [min(clip.start_frame + step * number, frames - 1) for number in range(clip_frames)]
            assert clip.frames[0, :, 0, 0].tolist() == wanted
    assert starts == [stride * index for index in range(recipe.count_clips(frames))]
    assert found[-1].end == frames and found[0].first == 0


def test_parts_are_as_long_as_asked_for_within_limits():
    recipe, packets = Recipe(), packets_of(100_000, list(range(0, 100_000, 50)))
    lengths = {
        share: [part.end - part.first for part in cut(recipe, packets, share)] for share in (0.001, 0.01, 0.2, 1.0)
    }
    assert set(lengths[0.001][:-1]) <= set(range(256, 256 + 50 + 16)) and len(lengths[0.001]) > 300
    assert set(lengths[0.01][:-1]) <= set(range(1000, 1000 + 50 + 16))
    # five parts for each of five lanes
    assert set(lengths[0.2][:-1]) <= set(range(4000, 4000 + 50 + 16)) and len(lengths[0.2]) == 25
    assert lengths[1.0] == [100_000]
    # many samples of few frames: features of later parts wait for those of earlier ones
    dense = cut(Recipe.named("wsvad-10crop").replace(clip_stride=2), packets, 0.2)
    assert {part.end - part.first for part in dense[:-1]} <= set(range(409, 409 + 50 + 16))
    # what two parts have in common is decoded twice
    wide = cut(Recipe(frame_step=100), packets, 0.01)
    assert {part.end - part.first for part in wide[:-1]} <= set(range(8 * 1485 + 1485, 8 * 1485 + 1485 + 50 + 16))
    # without a recipe clips do not matter
    assert cut(None, packets_of(600, [0, 299, 590]), 0.1) == [parts.Part(0, 299, 0), parts.Part(299, 600, 299)]


def test_what_cannot_be_begun_at_is_no_beginning():
    recipe = Recipe()
    assert len(cut(recipe, packets_of(5000, [0]), 0.1)) == 1
    assert len(cut(recipe, packets_of(5000, [0, 2000], [True, False]), 0.1)) == 1
    # the decoder would begin at 2005, the last key frame before the clip at 2016
    assert len(cut(recipe, packets_of(5000, [0, 2001, 2005], [True, True, False]), 0.1)) == 1
    assert cut(recipe, packets_of(5000, [0, 2001, 2005], [True, False, True]), 0.1)[1] == parts.Part(2016, 5000, 2005)
    # too little would be left
    assert len(cut(recipe, packets_of(500, [0, 250]), 0.1)) == 1


GOPS = {"gop": 24, "options": {"sc_threshold": "0"}}
X265 = "log-level=none:pools=1:keyint=24:min-keyint=24:scenecut=0:open-gop="


@pytest.mark.parametrize(
    ("name", "options", "keys", "good"),
    [
        ("a.mp4", {"b_frames": 3, **GOPS}, 5, 5),
        ("a.mkv", {"b_frames": 3, **GOPS}, 5, 5),
        ("a.webm", {"codec": "vp9", "gop": 24}, 5, 5),
        ("a.avi", {"codec": "mjpeg"}, 100, 100),
        ("a.mp4", {"codec": "mpeg4", "gop": 24}, 5, 5),
        ("a.webm", {"codec": "vp8", "gop": 24}, 5, 5),
        ("a.mp4", {"codec": "hevc", "b_frames": 3, "gop": 24, "options": {"x265-params": X265 + "0"}}, 5, 5),
        # what is displayed before a key frame and stored after it needs what was before
        ("a.mp4", {"codec": "hevc", "b_frames": 3, "gop": 24, "options": {"x265-params": X265 + "1"}}, 5, 1),
        # key frames that DALI does not take for some
        ("a.mp4", {"b_frames": 2, "options": {"x264-params": "open-gop=1:keyint=24:scenecut=0"}}, 5, 1),
        # start codes in place of lengths: DALI may find no key frame
        ("a.ts", GOPS, 5, 0),
    ],
    ids=[
        "H.264", "H.264 in Matroska", "VP9", "MJPEG", "MPEG-4", "VP8", "HEVC", "HEVC, open", "H.264, open",
        "H.264 in TS",
    ],
)
def test_where_decoding_may_begin(tmp_path, name, options, keys, good):
    path = write_video(tmp_path / name, 100, **options)
    found = probe.inspect(path).packets
    assert (len(found.times), len(found.keys), int(found.is_beginning.sum())) == (100, keys, good)
    assert (np.diff(found.times) > 0).all() and (np.diff(found.keys) > 0).all()
    times = [int(found.times[key]) for key in found.keys[found.is_beginning]]
    assert all(probe.lands(path, times))
    # what is decoded from there on is what decoding from the start gives
    pictures = list(Pictures(path, threads=1))
    for key in found.keys[found.is_beginning]:
        first = min(int(key) + 5, 99)
        part = list(Pictures(path, 1, (int(found.times[key]), int(found.times[first]))))
        assert len(part) == 100 - first
        np.testing.assert_array_equal(part, pictures[first:])


@pytest.mark.parametrize("codec", ["hevc", "mpeg4"])  # FFmpeg itself looks into H.264
def test_what_a_container_calls_a_key_frame_may_be_none(tmp_path, codec):
    path, wrong = write_video(tmp_path / "a.mp4", 100, codec=codec, **GOPS), tmp_path / "wrong.mp4"
    with av.open(str(path)) as source, av.open(str(wrong), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream, packet.is_keyframe = stream, True
                output.mux(packet)
    right, found = (probe.inspect(file).packets for file in (path, wrong))
    assert len(found.keys) == 100
    assert found.keys[found.is_beginning].tolist() == right.keys[right.is_beginning].tolist() != []


def test_a_seek_that_comes_elsewhere_is_seen(tmp_path):
    path = write_video(tmp_path / "a.mp4", 100, **GOPS)
    found = probe.inspect(path).packets
    asked = [int(found.times[index]) for index in (0, 24, 25, 48)]
    assert probe.lands(path, asked) == [True, True, False, True]


def opened_parts(path, recipe, share):
    assert dali.unavailable(CPU) is None
    return DaliDecoder(CPU).parts(Video(path.stem, path), recipe, CPU, share)


def frames_of(part):
    stream = part.open()
    try:
        return torch.cat(list(stream))
    finally:
        stream.close()


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize(
    ("name", "options"),
    [("a.webm", {"codec": "vp9", "gop": 15}), ("a.webm", {"codec": "vp8", "gop": 15}), ("a.avi", {"codec": "mjpeg"})],
)
def test_parts_are_frame_for_frame_the_whole(tmp_path, name, options):
    path = write_video(tmp_path / name, 200, **options)
    recipe = Recipe(image_size=64, upscale_below=None)
    (whole,) = opened_parts(path, recipe, 1.0)
    wanted = frames_of(whole)
    assert [read_index(frame.permute(1, 2, 0).numpy()) for frame in wanted] == list(range(200))
    found = opened_parts(path, recipe, 0.01)
    assert len(found) > 4
    for part in reversed(found[1:]):
        assert not part.video.index.has_ended
    for part in [found[0], *reversed(found[1:])]:
        np.testing.assert_array_equal(frames_of(part), wanted[part.first : part.part.end])


@pytest.mark.usefixtures("short_parts")
def test_later_parts_wait_for_the_index_or_fall_with_it(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.webm", 200, codec="vp9", gop=15)
    first, second, *_ = opened_parts(path, Recipe(), 0.01)
    stream = second.open()
    stream._thread.join(0.3)
    assert stream._thread.is_alive() and stream._sequences.empty()
    frames_of(first)
    assert len(torch.cat(list(stream))) == second.part.end - second.first
    stream.close()

    first, second, *_ = opened_parts(path, Recipe(), 0.01)
    monkeypatch.setattr(dali_stream.FileList, "write", lambda *_: 1 / 0)
    stream = second.open()
    for part in (first.open(), stream):
        with pytest.raises(FallBack, match="division"):
            list(part)
        part.close()
    assert not any(dali_stream._begun_wrong.values())  # it was not the part


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize("is_read", [True, False])
def test_later_parts_do_not_wait_for_a_first_one_that_hangs(tmp_path, monkeypatch, is_read):
    path = write_video(tmp_path / "a.webm", 200, codec="vp9", gop=15)
    release = threading.Event()
    monkeypatch.setattr(dali_stream.FileList, "write", lambda *_: release.wait())
    first, second, *_ = DaliDecoder(CPU, watchdog=0.2).parts(Video("a", path), Recipe(), CPU, 0.01)
    begun, waiting = first.open(), second.open()
    if is_read:
        with pytest.raises(FallBack, match="nothing came for 0 seconds"):
            list(begun)
    begun.close()  # as when another part has given up
    with pytest.raises(FallBack, match="nothing came for 0 seconds" if is_read else "it does not end"):
        list(waiting)
    waiting.close()
    assert [thread for _, thread in dali_stream._hung] == [begun._thread]
    release.set()
    begun._thread.join(10)


@pytest.mark.usefixtures("short_parts")
def test_nothing_is_cut_where_no_part_begins_right(tmp_path):
    videos = [write_video(tmp_path / f"{name}.webm", 100, codec="vp9", gop=15) for name in "abcd"]
    for index in (0, 0, 0, 1, 2):  # however often
        first, second, *_ = opened_parts(videos[index], Recipe(), 0.01)
        # as if a seek had come elsewhere
        stream = dali_stream.DaliStream(first.video, second.part, first.video.first_frames)
        frames_of(first)
        with pytest.raises(BegunWrong, match=rf"from frame {second.first} on: frame 0 .* PyAV's"):
            list(stream)
        stream.close()
    (whole,) = opened_parts(videos[3], Recipe(), 0.01)
    assert len(frames_of(whole)) == 100
    # but where one did, it was the videos
    dali_stream._begun_right.add(("vp9", ".webm"))
    first, second, *_ = opened_parts(videos[3], Recipe(), 0.01)
    frames_of(first)
    frames_of(second)


@pytest.mark.usefixtures("short_parts")
def test_a_damaged_video_does_not_end_all_cutting(tmp_path):
    good = write_video(tmp_path / "good.avi", 100, codec="mjpeg")
    first, second, *_ = opened_parts(good, Recipe(), 0.01)
    frames_of(first)
    frames_of(second)
    for number in range(5):
        path = break_packet(write_video(tmp_path / f"{number}.avi", 100, codec="mjpeg"), 45)
        first, second, *_ = opened_parts(path, Recipe(), 0.01)
        frames_of(first)
        with pytest.raises(FallBack):
            frames_of(second)
    assert len(opened_parts(good, Recipe(), 0.01)) == 3


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), DecodeError("FFmpeg cannot seek in it")])
def test_a_video_whose_parts_do_not_begin_is_decoded_whole(tmp_path, monkeypatch, error):
    path = write_video(tmp_path / "a.avi", 203, codec="mjpeg")

    def fail(self):
        raise error

    monkeypatch.setattr(dali.DaliPart, "_first_pictures", fail)
    summary = streamfeat.extract(
        path, tmp_path / "a.h5", decoder="dali", lanes=4, model="vit_tiny", weights="random",
        recipe=Recipe(clip_frames=4, clip_stride=4, image_size=32, upscale_below=None),
    )  # fmt: skip
    assert not summary.failures and summary.frames == 203 and f": {error}" in summary.fallbacks["a"]
    with streamfeat.open(tmp_path / "a.h5") as store:
        assert store["a"].attrs["decoder"] == "dali-cpu" and store["a"].attrs["fallback"] == summary.fallbacks["a"]


@pytest.mark.usefixtures("short_parts")
def test_a_part_that_waited_for_the_index_has_all_its_time(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.webm", 100, codec="vp9", gop=15)
    write, run = dali_stream.FileList.write, dali_stream.DaliStream._run
    monkeypatch.setattr(dali_stream.FileList, "write", lambda *args: time.sleep(0.8) or write(*args))
    monkeypatch.setattr(dali_stream.DaliStream, "_run", lambda self: time.sleep(0.4) or run(self))
    first, second, *_ = DaliDecoder(CPU, watchdog=1.5).parts(Video("a", path), Recipe(), CPU, 0.01)
    streams = first.open(), second.open()
    with ThreadPoolExecutor() as pool:
        counts = list(pool.map(lambda stream: len(torch.cat(list(stream))), streams))
    assert counts == [first.end - first.first, second.end - second.first]
    for stream in streams:
        stream.close()


@pytest.mark.usefixtures("short_parts")
def test_a_video_that_hangs_in_many_parts_is_one(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.webm", 200, codec="vp9", gop=15)
    release = threading.Event()
    run = dali_stream.DaliStream._run
    monkeypatch.setattr(dali_stream.DaliStream, "_run", lambda self: (self._part.first and release.wait()) or run(self))
    first, *others = DaliDecoder(CPU, watchdog=0.3).parts(Video("a", path), Recipe(), CPU, 0.01)
    frames_of(first)
    streams = [part.open() for part in others[:4]]
    for stream in streams:
        with pytest.raises(FallBack, match="nothing came"):
            list(stream)
    assert dali_stream.count_hung() == 1 and dali_stream.hangs()
    release.set()
    for stream in streams:
        stream._thread.join(10)


@pytest.mark.usefixtures("short_parts")
def test_nothing_is_left_of_parts_that_fail(tmp_path, monkeypatch):
    """Folders, and on a GPU pipelines with all their memory, would stay until Python looks for cycles."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(4):
        break_packet(write_video(folder / f"{number}.avi", 300, codec="mjpeg"), 70 * number + 50)
    alive = []
    real = dali_stream.DaliStream._run
    monkeypatch.setattr(dali_stream.DaliStream, "_run", lambda self: alive.append(weakref.ref(self)) or real(self))
    gc.collect()
    gc.disable()
    try:
        summary = streamfeat.extract(
            folder, tmp_path / "a.h5", decoder="dali", lanes=4, model="vit_tiny", weights="random",
            recipe=Recipe(clip_frames=4, clip_stride=4, image_size=32, upscale_below=None),
        )  # fmt: skip
        assert len(summary.fallbacks) == 4 and len(alive) > 8
        assert not [stream for stream in alive if stream() is not None]
        assert not list((tmp_path / "temporary").glob("streamfeat-*"))
    finally:
        gc.enable()


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("recipe", ["plain", "overlapping", "5 crops"])
def test_features_do_not_depend_on_who_shares_a_video(tmp_path, monkeypatch, recipe, broken):
    changes = {
        "plain": {}, "overlapping": {"clip_stride": 3, "frame_step": 2, "tail": "pad"},
        "5 crops": {"resize_short": 40, "crops": 5},
    }[recipe]  # fmt: skip
    recipe = Recipe(**{"clip_frames": 4, "clip_stride": 4, "image_size": 32, "upscale_below": None, **changes})
    folder = tmp_path / "videos"
    folder.mkdir()
    path = write_video(folder / "long.avi", 203, codec="mjpeg")
    if broken:
        break_packet(path, 150)
    write_video(folder / "short.webm", 11, codec="vp9")
    opened = []
    real_open = dali.DaliPart.open
    monkeypatch.setattr(dali.DaliPart, "open", lambda self: opened.append(self.part) or real_open(self))
    stores = {}
    for lanes in (1, 4):
        summary = streamfeat.extract(
            folder, tmp_path / f"{lanes}.h5", decoder="dali", lanes=lanes, model="vit_tiny", weights="random",
            recipe=recipe, batch_size=3, precision="fp32",
        )  # fmt: skip
        assert not summary.failures and ("long" in summary.fallbacks) == broken
        with streamfeat.open(tmp_path / f"{lanes}.h5") as store:
            stores[lanes] = {name: (video.features, video.start_frame, video.frames) for name, video in store.items()}
    assert len(opened) > 6 if not broken else opened
    for name, (features, start_frame, frames) in stores[1].items():
        assert frames == {"long": 202 if broken else 203, "short": 11}[name]
        np.testing.assert_array_equal(stores[4][name][1], start_frame)
        # the last bits depend on the company in a batch
        np.testing.assert_allclose(stores[4][name][0], features, atol=2e-5)
