import dataclasses
import threading
import time

import pytest
import torch

from streamfeat.decode.base import DecodeError, FallBack, StreamInfo
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

    def open(self, video, recipe, device):
        self.opened.append(video.name)
        if self.refuses == video.name:
            raise FallBack("not this one")
        return _FakeStream(self, video)


class _FakeStream:
    def __init__(self, decoder, video):
        self.decoder, self.video = decoder, video
        self.info = StreamInfo(14, 14, 25.0, "fake", decoder.name)

    def __iter__(self):
        for index in range(self.video.frames):
            if index == self.decoder.fail_at:
                raise self.decoder.error
            time.sleep(self.decoder.delay)
            self.decoder.peak = max(self.decoder.peak, index)
            yield torch.full((1, 3, 14, 14), float(index))

    def close(self):
        self.decoder.closed.append(self.video.name)


def run(videos, decoders, lanes=2, depth=4, until=lambda event: False, device_lanes=0):
    stop = threading.Event()
    running = Lanes(
        videos, decoders, RECIPE, CPU, dtype=torch.float32, lanes=lanes, device_lanes=device_lanes, depth=depth
    )
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
