import dataclasses
import threading
import time

import pytest
import torch

from streamfeat.decode import lanes
from streamfeat.decode.base import BegunWrong, DecodeError, FallBack, StreamInfo
from streamfeat.decode.lanes import Decoded, Ended, Failed, Lanes, Started
from streamfeat.recipe import Recipe

RECIPE = Recipe(clip_frames=4, clip_stride=4, image_size=14)
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class FakeVideo:
    name: str
    frames: int = 8

    @property
    def path(self):
        return self.name

    def stat(self):
        if self.name == "vanished":
            raise FileNotFoundError(2, "No such file or directory")
        return (1, 2)


class FakeDecoder:
    """Yields frames that hold their index; fails where it is told to."""

    def __init__(self, name="fake", fail_at=None, error=None, delay=0.0):
        self.name, self.fail_at, self.error, self.delay = name, fail_at, error, delay
        self.refuses = None
        self.opened, self.closed = [], []
        self.peak = 0
        #: the frame that nothing gets past while this is not set
        self.blocked_at, self.unblock = None, threading.Event()
        #: by video, which threads have decoded
        self.threads = {}

    def open(self, video, recipe, device):
        (whole,) = self.parts(video, recipe, device, 1.0)
        return whole.open()

    def parts(self, video, recipe, device, share):
        if self.refuses == video.name:
            raise FallBack("not this one")
        stride = recipe.clip_stride
        step = max(stride, int(share * video.frames) // stride * stride)
        firsts = range(0, video.frames, step) if share < 1 else ()
        ends = [first + max(0, recipe.clip_span - stride) for first in firsts[1:]] + [video.frames]
        return [_FakePart(self, video, first, end) for first, end in zip(firsts or [0], ends, strict=True)]


@dataclasses.dataclass
class _FakePart:
    decoder: FakeDecoder
    video: FakeVideo
    first: int
    end: int

    def open(self):
        self.decoder.opened.append(self.video.name)
        return _FakeStream(self.decoder, self.video, self.first, self.end)


class _FakeStream:
    def __init__(self, decoder, video, first, end):
        self.decoder, self.video, self.first, self.end = decoder, video, first, end
        self.info = StreamInfo(14, 14, 25.0, "fake", decoder.name)

    def __iter__(self):
        decoder = self.decoder
        decoder.threads.setdefault(self.video.name, set()).add(threading.current_thread().name)
        for index in range(self.first, self.end):
            if index == decoder.fail_at:
                raise decoder.error
            if index == decoder.blocked_at:
                decoder.unblock.wait(10)
            time.sleep(decoder.delay)
            decoder.peak = max(decoder.peak, index)
            yield torch.full((1, 3, 14, 14), float(index))

    def close(self):
        self.decoder.closed.append(self.video.name)


def run(videos, decoders, lanes=2, depth=4, until=lambda event: False, **options):
    stop = threading.Event()
    running = Lanes(videos, decoders, RECIPE, CPU, dtype=torch.float32, lanes=lanes, depth=depth, **options)
    events = []
    for event in running.events(stop):
        events.append(event)
        if isinstance(event, Decoded):
            running.give_back(event.clip)
        if until(event):
            stop.set()
    running.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("decode-")]
    return events


def of(events, name):
    return [event for event in events if event.video.name == name]


def test_every_video_is_decoded_once_and_in_order():
    videos = [FakeVideo(f"v{index}", frames=index) for index in range(20)]
    decoder = FakeDecoder()
    events = run(videos, lambda video: [decoder], lanes=3)
    for video in videos[1:]:
        started, *clips, ended = of(events, video.name)
        assert isinstance(started, Started) and started.source == (1, 2) and started.fallback is None
        assert [clip.clip.start_frame for clip in clips] == list(range(0, video.frames - 3, 4))
        assert isinstance(ended, Ended) and ended.info.frames == video.frames
    assert of(events, "v0")[-1].reason == "not one frame could be decoded"
    assert sorted(decoder.closed) == sorted(video.name for video in videos)


def test_one_broken_video_ends_only_itself():
    good, bad = FakeDecoder(), FakeDecoder(fail_at=5, error=DecodeError("moov atom not found"))
    odd = FakeDecoder(fail_at=2, error=ZeroDivisionError("division by zero"))
    pick = {"bad": bad, "odd": odd}
    videos = [FakeVideo(name) for name in ("a", "bad", "vanished", "odd", "b")]
    events = run(videos, lambda video: [pick.get(video.name, good)])
    assert of(events, "bad")[-1] == Failed(videos[1], "moov atom not found")
    assert of(events, "vanished") == [Failed(videos[2], "No such file or directory")]
    assert of(events, "odd")[-1] == Failed(videos[3], "ZeroDivisionError: division by zero")
    for name in "ab":
        assert isinstance(of(events, name)[-1], Ended)
    assert bad.closed == ["bad"]


@pytest.mark.parametrize(
    ("error", "says"),
    [(FallBack("hung"), "gpu: hung"), (RuntimeError("CUDA error\nCompile with"), "gpu: RuntimeError: CUDA error")],
)
def test_a_decoder_that_gives_up_is_followed_by_the_next_from_the_first_frame(error, says):
    first, second = FakeDecoder("gpu", fail_at=6, error=error), FakeDecoder("cpu")
    events = run([FakeVideo("a")], lambda video: [first, second])
    assert [(type(e), getattr(e, "attempt", None)) for e in events] == [
        (Started, 0), (Decoded, 0), (Started, 1), (Decoded, 1), (Decoded, 1), (Ended, 1),
    ]  # fmt: skip
    assert events[2].fallback == says and events[-1].info.decoder == "cpu"


def test_the_last_decoder_has_the_final_word():
    (failed,) = [
        event
        for event in run([FakeVideo("a")], lambda video: [FakeDecoder(fail_at=0, error=FallBack("no"))])
        if not isinstance(event, Started)
    ]
    assert failed == Failed(FakeVideo("a"), "no")


def test_stopping_midway_leaves_no_thread_however_full_the_queue():
    decoder = FakeDecoder()
    videos = [FakeVideo(f"v{index}", frames=10_000) for index in range(3)]
    started = time.monotonic()
    run(videos, lambda video: [decoder], lanes=3, depth=2, until=lambda event: isinstance(event, Decoded))
    assert time.monotonic() - started < 5
    assert decoder.peak < 100  # nobody decoded far ahead of the reader


def test_a_lane_leaves_a_video_that_nobody_wants():
    decoder = FakeDecoder()
    long, after = FakeVideo("long", frames=100_000), FakeVideo("after")
    stop = threading.Event()
    running = Lanes([long, after], lambda video: [decoder], RECIPE, CPU, dtype=torch.float32, lanes=1, depth=2)
    names = []
    for event in running.events(stop):
        names.append(event.video.name)
        running.skip(long)
        if isinstance(event, Decoded):
            running.give_back(event.clip)
    running.close()
    assert names.count("long") < 20 and "after" in names


@pytest.mark.parametrize("depth", [1, 5])
def test_the_queue_bounds_what_is_decoded_ahead(depth):
    decoder = FakeDecoder()
    stop = threading.Event()
    running = Lanes(
        [FakeVideo("a", 1000)], lambda video: [decoder], RECIPE, CPU, dtype=torch.float32, lanes=1, depth=depth
    )
    events = running.events(stop)
    next(events)
    time.sleep(0.3)
    assert decoder.peak <= 4 * (depth + 2)
    stop.set()
    assert list(events) == []
    running.close()


def names_of_ended(events):
    return [event.video.name for event in events if isinstance(event, Ended)]


def test_a_video_that_falls_back_leaves_its_device_lane_to_the_next():
    device = FakeDecoder("gpu")
    slow = FakeDecoder("cpu", delay=0.03)
    falls = FakeDecoder("gpu", fail_at=5, error=FallBack("a broken packet"))
    videos = [FakeVideo("bad"), *(FakeVideo(f"v{index}") for index in range(4))]
    events = run(
        videos, lambda video: [falls if video.name == "bad" else device, slow], lanes=1, device_lanes=1
    )
    assert names_of_ended(events) == ["v0", "v1", "v2", "v3", "bad"]
    kinds = [(type(event), getattr(event, "attempt", None)) for event in of(events, "bad")]
    assert kinds == [(Started, 0), (Decoded, 0), (Started, 1), (Decoded, 1), (Decoded, 1), (Ended, 1)]
    assert of(events, "bad")[2].fallback == "gpu: a broken packet" and of(events, "bad")[-1].info.decoder == "cpu"
    assert all(of(events, video.name)[-1].info.decoder == "gpu" for video in videos[1:])
    assert slow.opened == ["bad"]


def test_what_a_device_refuses_at_once_and_what_has_one_decoder_goes_to_plain_lanes():
    device, plain = FakeDecoder("gpu"), FakeDecoder("cpu")
    device.refuses = "hevc"
    videos = [FakeVideo(name) for name in ("folder", "hevc", "h264", "vanished")]
    events = run(videos, lambda video: [plain] if video.name == "folder" else [device, plain], device_lanes=2)
    assert sorted(names_of_ended(events)) == ["folder", "h264", "hevc"]
    assert [of(events, name)[-1].info.decoder for name in ("folder", "h264", "hevc")] == ["cpu", "gpu", "cpu"]
    assert [event.attempt for event in of(events, "hevc")] == [1] * 4
    assert of(events, "hevc")[0].fallback == "gpu: not this one"
    assert of(events, "vanished") == [Failed(videos[3], "No such file or directory")]


def test_all_may_fall_back():
    device, plain = FakeDecoder("gpu", fail_at=0, error=FallBack("no NVDEC")), FakeDecoder("cpu")
    videos = [FakeVideo(f"v{index}") for index in range(9)]
    events = run(videos, lambda video: [device, plain], lanes=3, device_lanes=2)
    assert sorted(names_of_ended(events)) == sorted(video.name for video in videos)


def test_one_long_video_leaves_no_other_lane_idle():
    device = FakeDecoder("gpu", delay=0.002)
    videos = [FakeVideo("long", 400), *(FakeVideo(f"v{index}", 4) for index in range(12))]
    events = run(videos, lambda video: [device, device], lanes=1, device_lanes=2)
    # nobody has claimed a short one and then waited for the long one
    assert names_of_ended(events)[-1] == "long"


def test_videos_are_opened_ahead_and_no_further():
    device = FakeDecoder("gpu")
    videos = [FakeVideo(f"v{index}", 10_000) for index in range(10)]
    running = Lanes(
        videos, lambda video: [device, device], RECIPE, CPU, dtype=torch.float32, lanes=1, device_lanes=2, depth=2
    )
    stop = threading.Event()
    events = running.events(stop)
    next(events)
    time.sleep(0.3)
    assert len(device.opened) == 4  # two at work, two to come
    stop.set()
    assert list(events) == []
    running.close()
    assert sorted(device.closed) == sorted(device.opened)  # also those that no lane has taken
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode-")]


def sizes_of(*videos):
    return {video.name: video.frames for video in videos}


@pytest.mark.parametrize("recipe", [RECIPE, RECIPE.replace(clip_stride=3), RECIPE.replace(clip_stride=7, tail="pad")])
@pytest.mark.parametrize("frames", [399, 400, 401])
def test_a_video_longer_than_what_is_left_for_a_lane_is_shared(recipe, frames):
    device, long = FakeDecoder("gpu", delay=0.001), FakeVideo("long", frames)
    stop = threading.Event()
    running = Lanes(
        [long], lambda video: [device, FakeDecoder()], recipe, CPU, dtype=torch.float32, lanes=1, device_lanes=4,
        sizes=sizes_of(long), depth=4,
    )  # fmt: skip
    events, seen = [], []
    for event in running.events(stop):
        events.append(event)
        if isinstance(event, Decoded):
            seen.append((event.clip.start_frame, event.clip.frames[0, :, 0, 0].tolist()))
            running.give_back(event.clip)
    running.close()
    assert len(device.threads["long"]) == 4 and device.closed == ["long"] * len(device.opened)
    assert isinstance(events[0], Started) and events[0].attempt == 0
    assert isinstance(events[-1], Ended) and events[-1].info.frames == frames
    wanted = [recipe.clip_stride * index for index in range(recipe.count_clips(frames))]
    assert sorted(start for start, _ in seen) == wanted
    for start, numbers in seen:
        assert numbers == [min(start + offset, frames - 1) for offset in range(4)]


def test_short_videos_are_not_shared_while_there_are_many():
    device = FakeDecoder("gpu")
    videos = [FakeVideo(f"v{index}", 40) for index in range(20)]
    run(videos, lambda video: [device, FakeDecoder()], device_lanes=2, sizes=sizes_of(*videos))
    assert [device.opened.count(video.name) for video in videos[:18]] == [1] * 18
    assert device.opened.count("v19") == 2  # it would be the last, with one lane


def test_a_part_that_falls_back_takes_the_whole_video_along_once():
    device = FakeDecoder("gpu", fail_at=250, error=FallBack("a broken packet"), delay=0.001)
    long, after = FakeVideo("long", 400), FakeVideo("after", 8)
    plain = FakeDecoder("cpu")
    events = run([long, after], lambda video: [device, plain], device_lanes=4, sizes=sizes_of(long, after))
    mine = of(events, "long")
    assert [event.attempt for event in mine if isinstance(event, Started)] == [0, 1]
    (ended,) = [event for event in mine if isinstance(event, Ended)]
    assert (ended.attempt, ended.info.frames, ended.info.decoder) == (1, 400, "cpu")
    again = [event.clip.start_frame for event in mine if isinstance(event, Decoded) and event.attempt == 1]
    assert again == list(range(0, 397, 4)) and plain.opened == ["long"]
    assert of(events, "after")[-1].info.decoder == "gpu"
    assert sorted(device.closed) == sorted(device.opened)


def test_a_video_of_which_a_part_began_wrong_is_done_whole_by_the_same_decoder():
    device, plain = FakeDecoder("gpu", fail_at=250, error=BegunWrong("a seek")), FakeDecoder()
    long = FakeVideo("a", 400)
    real = device.open

    def open_whole(video, recipe, where):
        device.fail_at = None
        return real(video, recipe, where)

    device.open = open_whole
    events = run([long], lambda video: [device, plain], device_lanes=4, sizes=sizes_of(long))
    assert [event.fallback for event in events if isinstance(event, Started)] == [None, "gpu: a seek"]
    assert (events[-1].attempt, events[-1].info.decoder, events[-1].info.frames) == (1, "gpu", 400)
    assert not plain.opened


def test_a_part_that_cannot_be_decoded_fails_the_video_once():
    device, long = FakeDecoder("gpu", fail_at=250, error=DecodeError("gone")), FakeVideo("long", 400)
    events = run([long], lambda video: [device, FakeDecoder()], device_lanes=4, sizes=sizes_of(long))
    assert [event for event in events if not isinstance(event, (Started, Decoded))] == [Failed(long, "gone")]
    assert sorted(device.closed) == sorted(device.opened)


def test_all_parts_of_a_video_that_nobody_wants_are_left():
    device, long, after = FakeDecoder("gpu"), FakeVideo("long", 100_000), FakeVideo("after")
    stop = threading.Event()
    running = Lanes(
        [long, after], lambda video: [device, FakeDecoder()], RECIPE, CPU, dtype=torch.float32, lanes=1, device_lanes=4,
        sizes=sizes_of(long, after), depth=2,
    )  # fmt: skip
    events = []
    for event in running.events(stop):
        events.append(event)
        running.skip(long)
        if isinstance(event, Decoded):
            running.give_back(event.clip)
    running.close()
    assert len(of(events, "long")) < 40 and isinstance(of(events, "after")[-1], Ended)
    assert not [event for event in of(events, "long") if isinstance(event, Ended)]


def test_parts_wait_for_one_that_is_far_behind(monkeypatch):
    """Features of later parts wait in memory for those of earlier ones."""
    monkeypatch.setattr(lanes, "_SAMPLES_APART", 4)  # a part is one clip
    device, long = FakeDecoder("gpu"), FakeVideo("long", 400)
    device.parts = lambda video, *_: [_FakePart(device, video, first, first + 4) for first in range(0, 400, 4)]
    device.blocked_at = 2
    stop = threading.Event()
    running = Lanes(
        [long], lambda video: [device, FakeDecoder()], RECIPE, CPU, dtype=torch.float32, lanes=1, device_lanes=2,
        sizes=sizes_of(long), depth=2,
    )  # fmt: skip
    found, opened = [], None
    for event in running.events(stop):
        found.append(event)
        if isinstance(event, Decoded):
            running.give_back(event.clip)
        if len(found) == 4:  # Started, and three parts that the other lane did
            time.sleep(0.3)
            opened = len(device.opened)
            device.unblock.set()
    running.close()
    assert opened == 4  # two lanes, twice as many parts
    assert found[-1].info.frames == 400 and len(device.opened) == 100


def test_the_end_waits_once_however_many_streams_hang(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(_FakeStream, "__iter__", lambda self: iter([]) if release.wait(20) else None)
    monkeypatch.setattr(_FakeStream, "close", lambda self: release.wait(20))
    device = FakeDecoder("gpu")
    videos = [FakeVideo(f"v{index}") for index in range(20)]
    running = Lanes(
        videos, lambda video: [device, FakeDecoder()], RECIPE, CPU, dtype=torch.float32, lanes=1, device_lanes=4,
        depth=2,
    )  # fmt: skip
    events = running.events(threading.Event())
    for _ in range(8):  # four at work, four to come
        assert isinstance(next(events), Started)
    started = time.monotonic()
    running.close(timeout=0.5)
    assert time.monotonic() - started < 3
    release.set()
