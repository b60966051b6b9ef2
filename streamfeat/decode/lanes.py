"""Decoders running in parallel: each lane takes the next video, picks a decoder, and falls back if it must."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from streamfeat.clips import Clip, ClipBuffers, ClipWindow
from streamfeat.decode.base import BegunWrong, DecodeError, Decoder, FallBack, FrameStream, StreamInfo, VideoPart
from streamfeat.decode.streams import own_stream

if TYPE_CHECKING:
    import torch

    from streamfeat.recipe import Recipe
    from streamfeat.videos import Video

log = logging.getLogger(__name__)

#: seconds; how often a blocked lane or reader looks whether the run has been stopped
_POLL = 0.1
#: samples (clips times crops) from the beginning of the first part of a video that is not done to the end of the last
#: that is open: features of the later ones wait in memory for those of the earlier; vit_g's of these take 264 MiB
_SAMPLES_APART = 16384


@dataclasses.dataclass(frozen=True)
class Started:
    """A video was opened. With ``attempt`` above 0 an earlier decoder gave up: its clips are void."""

    video: Video
    attempt: int
    source: tuple[int, int]  # bytes, modification time in ns
    info: StreamInfo
    #: why the decoder before this one gave up
    fallback: str | None = None


@dataclasses.dataclass(frozen=True)
class Decoded:
    """One more clip of a video. Its memory goes back to the lanes with ``Lanes.give_back``.

    Clips come in order, except where lanes share a video: then those of each part do.
    """

    video: Video
    attempt: int
    clip: Clip


@dataclasses.dataclass(frozen=True)
class Ended:
    """All frames of a video were decoded; ``info`` is final."""

    video: Video
    attempt: int
    info: StreamInfo


@dataclasses.dataclass(frozen=True)
class Failed:
    """A video could not be decoded; none of its clips count."""

    video: Video
    reason: str


Event = Started | Decoded | Ended | Failed


@dataclasses.dataclass
class _Task:
    """What is left to try of a video."""

    video: Video
    #: best first
    decoders: Sequence[Decoder]
    attempt: int = 0
    source: tuple[int, int] | None = None
    #: why the decoder before these gave up
    fallback: str | None = None
    #: nothing counts any more that these decoders give
    is_over: bool = False
    #: parts that are not decoded to their end yet, by index
    parts_left: set[int] = dataclasses.field(default_factory=set)
    #: of the video, up to the end of the last part that is decoded
    frames: int = 0


@dataclasses.dataclass(frozen=True)
class _OpenedPart:
    """A part of a video, often all of it, that waits for a device lane."""

    task: _Task
    index: int
    first_frame: int
    is_last: bool
    stream: FrameStream


class Lanes:
    """Decodes videos in threads and hands out what happens, in order per video or part of one.

    There are two kinds of lanes. Device lanes run the first of several decoders of a video: on a GPU, each keeps one
    NVDEC engine busy. They take videos that other threads have opened for whichever lane is free next, as many ahead as
    there are lanes: none waits for a file to be indexed, and none has claimed a video while others idle. A video that
    is longer than what is left for one lane is opened in parts, which go to several. All else, and every video that a
    device lane gives up, goes to the plain lanes, which work side by side with them.

    On CUDA each lane has a stream of its own, which does not wait for the model's.

    Args:
        videos: taken one by one, by whichever lane is free.
        decoders: for a video, the decoders to try, best first. The last one has the final word. With device lanes, the
            first of several is a ``PartsDecoder``.
        lanes: plain lanes.
        device_lanes: with none, plain lanes run all decoders.
        sizes: by name, the videos' bytes: about what they take. Videos without are not shared.
        depth: clips that may wait for the reader. With the one that each lane is at, and the frames that its
            next one needs, this bounds memory, beside what decoders hold for themselves.
        dtype: of the clips.
    """

    def __init__(
        self,
        videos: Iterable[Video],
        decoders: Callable[[Video], Sequence[Decoder]],
        recipe: Recipe,
        device: torch.device,
        *,
        dtype: torch.dtype,
        lanes: int,
        device_lanes: int = 0,
        sizes: Mapping[str, int] | None = None,
        depth: int,
    ) -> None:
        self._recipe = recipe
        self._device = device
        self._lanes, self._device_lanes = lanes, device_lanes
        everyone = lanes + device_lanes
        self._buffers = ClipBuffers(depth + everyone, dtype, device)
        # no more than these can be clips; the rest is room for beginnings and ends
        self._events: queue.Queue[Event | None] = queue.Queue(maxsize=depth + everyone + 64)
        self._stopped = threading.Event()
        self._skipped: set[str] = set()

        #: each None at the end of these ends a thread
        self._to_open: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._opened: queue.SimpleQueue[_OpenedPart | None] = queue.SimpleQueue()
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._room_ahead = threading.Semaphore(device_lanes)
        #: guards what follows, and what of a task changes
        self._changed = threading.Condition()
        self._sizes, self._bytes_to_open = sizes or {}, 0
        for video in videos:
            task = _Task(video, decoders(video))
            if device_lanes and len(task.decoders) > 1:
                self._to_open.put(task)
                self._bytes_to_open += self._sizes.get(video.name, 0)
            else:
                self._tasks.put(task)
        self._openers_left = self._device_lanes_left = device_lanes
        for _ in range(device_lanes):
            self._to_open.put(None)
        if not device_lanes:
            self._end_plain_lanes()

        def threads(name: str, work: Callable[[], None], count: int) -> list[threading.Thread]:
            return [
                threading.Thread(target=self._run, args=(work,), name=f"{name}-{index}", daemon=True)
                for index in range(count)
            ]

        self._threads = [
            *threads("decode-open", self._open_ahead, device_lanes),
            *threads("decode-device", self._device_lane, device_lanes),
            *threads("decode", self._plain_lane, lanes),
        ]

    def events(self, stop: threading.Event) -> Iterator[Event]:
        """Start the lanes and yield events until every video has ended, or until ``stop`` is set."""
        for thread in self._threads:
            thread.start()
        running = len(self._threads)
        while running and not stop.is_set():
            try:
                event = self._events.get(timeout=_POLL)
            except queue.Empty:
                continue
            if event is None:
                running -= 1
            else:
                yield event

    def give_back(self, clip: Clip) -> None:
        """The reader is done with ``clip``."""
        if clip.ready is not None:
            clip.ready.wait()  # also where nobody has read it
        self._buffers.give_back(clip.frames)

    def skip(self, video: Video) -> None:
        """Nobody wants the rest of this video: its lane goes on to the next."""
        self._skipped.add(video.name)

    def close(self, timeout: float = 10.0) -> None:
        """Stop the lanes and wait for them, about ``timeout`` seconds at most if some hang in a decoder."""
        self._stopped.set()
        ends = time.monotonic() + timeout
        _join([thread for thread in self._threads if thread.ident is not None], ends)
        closing = []
        with contextlib.suppress(queue.Empty):
            while True:
                if (waiting := self._opened.get_nowait()) is not None:
                    closing.append(threading.Thread(target=waiting.stream.close, name="decode-close", daemon=True))
                    closing[-1].start()
        _join(closing, max(ends, time.monotonic() + 1))

    # the threads

    def _run(self, work: Callable[[], None]) -> None:
        try:
            with own_stream(self._device):
                work()
        except _Stopped:
            pass
        finally:
            with contextlib.suppress(_Stopped):
                self._put(None)

    def _open_ahead(self) -> None:
        while (task := self._wait_to_get(self._to_open)) is not None:
            self._hand_on(self._attempt(task, lambda task=task: self._open_parts(task)))
        with self._changed:
            self._openers_left -= 1
            if not self._openers_left:
                for _ in range(self._device_lanes):
                    self._opened.put(None)

    def _device_lane(self) -> None:
        while (part := self._wait_to_get(self._opened)) is not None:
            self._room_ahead.release()
            self._hand_on(self._attempt(part.task, lambda part=part: self._decode_part(part)))
        with self._changed:
            self._device_lanes_left -= 1
            if not self._device_lanes_left:
                self._end_plain_lanes()

    def _plain_lane(self) -> None:
        task: _Task | None
        while (task := self._wait_to_get(self._tasks)) is not None:
            while task is not None:
                task = self._attempt(task, lambda task=task: self._decode(task))

    def _end_plain_lanes(self) -> None:
        for _ in range(self._lanes):
            self._tasks.put(None)

    def _hand_on(self, task: _Task | None) -> None:
        if task is not None:
            self._tasks.put(task)

    # one video

    def _attempt(self, task: _Task, work: Callable[[], None]) -> _Task | None:
        """Do ``work`` on a video: what is left to do if its decoder gives up. All else that fails ends the video."""
        video, rest = task.video, task.decoders[1:]
        try:
            work()
            return None
        except BegunWrong as error:
            is_final, reason, rest = False, str(error), task.decoders
        except FallBack as error:
            is_final, reason = False, str(error)
        except DecodeError as error:
            is_final, reason = True, str(error)
        except OSError as error:
            is_final, reason = True, error.strerror or str(error)
        except _Skipped:
            is_final, reason = True, ""
        except Exception as error:  # a defect or an exotic file ends this video at most, never the run
            log.debug("unexpected error in %s", video.path, exc_info=True)
            is_final, reason = False, f"{type(error).__name__}: {error}".splitlines()[0]
        with self._changed:
            if task.is_over:  # another lane was first to say why
                return None
            task.is_over = True
            self._changed.notify_all()
        if not is_final and video.name not in self._skipped:
            return self._next_decoder(task, rest, reason)
        if is_final and reason:
            self._put(Failed(video, reason))
        return None

    def _next_decoder(self, task: _Task, rest: Sequence[Decoder], reason: str) -> _Task | None:
        """The task for the ``rest`` of the decoders after one gave up, if there are some; else the video has failed."""
        if not rest:
            self._put(Failed(task.video, reason))
            return None
        fallback = f"{task.decoders[0].name}: {reason}"
        log.info("%s: %s", task.video.path, fallback)
        return _Task(task.video, rest, task.attempt + 1, task.source, fallback)

    def _open_parts(self, task: _Task) -> None:
        share = self._share(task.video)
        task.source = task.source or task.video.stat()
        parts = task.decoders[0].parts(task.video, self._recipe, self._device, share)
        task.parts_left = set(range(len(parts)))
        for index, part in enumerate(parts):
            self._wait_for_parts_before(task, parts, index)
            self._wait_for_room(task)
            stream = None
            try:
                stream = part.open()
                if index == 0:
                    self._put(self._started(task, stream))
                is_last = index == len(parts) - 1
                self._opened.put(_OpenedPart(task, index, part.first, is_last, stream))
            except BaseException:
                self._room_ahead.release()
                if stream is not None:
                    stream.close()
                raise

    def _share(self, video: Video) -> float:
        """Of a video that is opened now: what is left for each lane, as a share of it."""
        size = self._sizes.get(video.name, 0)
        with self._changed:
            left = self._bytes_to_open
            self._bytes_to_open -= size
        return left / self._device_lanes / size if size else 1.0

    def _decode_part(self, part: _OpenedPart) -> None:
        task = part.task
        try:
            frames = self._cut(task, part.stream, part.first_frame, part.is_last)
        finally:
            part.stream.close()
        with self._changed:
            task.parts_left.discard(part.index)
            task.frames = max(task.frames, frames)
            is_last = not task.parts_left
            self._changed.notify_all()
        if is_last:
            self._put(self._ended(task, part.stream, task.frames))

    def _decode(self, task: _Task) -> None:
        # what the file was before its first byte was read
        task.source = task.source or task.video.stat()
        stream = task.decoders[0].open(task.video, self._recipe, self._device)
        try:
            self._put(self._started(task, stream))
            frames = self._cut(task, stream)
            if frames == 0:
                raise DecodeError("not one frame could be decoded")
            self._put(self._ended(task, stream, frames))
        finally:
            stream.close()

    @staticmethod
    def _started(task: _Task, stream: FrameStream) -> Started:
        return Started(task.video, task.attempt, task.source, dataclasses.replace(stream.info), task.fallback)

    @staticmethod
    def _ended(task: _Task, stream: FrameStream, frames: int) -> Ended:
        return Ended(task.video, task.attempt, dataclasses.replace(stream.info, frames=frames))

    def _cut(self, task: _Task, stream: FrameStream, first_frame: int = 0, is_last: bool = True) -> int:
        """Hand out the clips of a stream of frames; the number of the video's frames up to its last one."""
        video = task.video
        if task.is_over:
            raise _Skipped
        window = ClipWindow(self._recipe, self._allocate, first_frame)
        for frames in stream:
            for clip in window.push(frames):
                if task.is_over or video.name in self._skipped:
                    self.give_back(clip)
                    raise _Skipped
                self._put(Decoded(video, task.attempt, clip))
        for clip in window.finish() if is_last else ():
            self._put(Decoded(video, task.attempt, clip))
        return window.frames

    def _allocate(self, shape: tuple[int, ...]) -> torch.Tensor:
        while not self._stopped.is_set():
            try:
                return self._buffers.take(shape, timeout=_POLL)
            except queue.Empty:
                continue
        raise _Stopped

    def _put(self, event: Event | None) -> None:
        while not self._stopped.is_set():
            try:
                self._events.put(event, timeout=_POLL)
                return
            except queue.Full:
                continue
        raise _Stopped

    def _wait_to_get(self, place: queue.SimpleQueue[Any]) -> Any:
        while not self._stopped.is_set():
            try:
                return place.get(timeout=_POLL)
            except queue.Empty:
                continue
        raise _Stopped

    def _wait_for_parts_before(self, task: _Task, parts: Sequence[VideoPart], index: int) -> None:
        """Until no part is left that is far behind part ``index``."""
        apart = _SAMPLES_APART * self._recipe.clip_stride // self._recipe.crops
        with self._changed:
            while not task.is_over:
                oldest = min(task.parts_left, default=index)
                if oldest == index or parts[index].end - parts[oldest].first <= apart:
                    return
                if self._stopped.is_set():
                    raise _Stopped
                self._changed.wait(_POLL)

    def _wait_for_room(self, task: _Task) -> None:
        """Until one more may be open."""
        while not self._stopped.is_set():
            if task.is_over or task.video.name in self._skipped:
                raise _Skipped
            if self._room_ahead.acquire(timeout=_POLL):
                return
        raise _Stopped


def _join(threads: Iterable[threading.Thread], ends: float) -> None:
    """Wait for threads until ``time.monotonic()`` is ``ends``."""
    for thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))


class _Stopped(BaseException):
    """The run is over; raised in a lane to leave it."""


class _Skipped(BaseException):
    """The rest of this video is not wanted; raised in a lane to leave the video."""
