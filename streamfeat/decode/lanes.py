"""Decoders running in parallel: each lane takes the next video, picks a decoder, and falls back if it must."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from streamfeat.clips import Clip, ClipBuffers, ClipWindow
from streamfeat.decode.base import DecodeError, Decoder, FallBack, FrameStream, StreamInfo

if TYPE_CHECKING:
    import torch

    from streamfeat.recipe import Recipe
    from streamfeat.videos import Video

log = logging.getLogger(__name__)

#: seconds; how often a blocked lane or reader looks whether the run has been stopped
_POLL = 0.1


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
    """One more clip of a video, in order. Its memory goes back to the lanes with ``Lanes.give_back``."""

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


class Lanes:
    """Decodes videos in ``lanes`` threads and hands out what happens, in order per video.

    Args:
        videos: taken one by one, by whichever lane is free.
        decoders: for a video, the decoders to try, best first. The last one has the final word.
        depth: clips that may wait for the reader. With the one that each lane is at, and the frames that its
            next one needs, this bounds memory.
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
        depth: int,
    ) -> None:
        self._videos = iter(videos)
        self._next = threading.Lock()
        self._decoders = decoders
        self._recipe = recipe
        self._device = device
        self._buffers = ClipBuffers(depth + lanes, dtype, device)
        # no more than these can be clips; the rest is room for beginnings and ends
        self._events: queue.Queue[Event | None] = queue.Queue(maxsize=depth + lanes + 64)
        self._stopped = threading.Event()
        self._skipped: set[str] = set()
        self._threads = [
            threading.Thread(target=self._lane, name=f"decode-{index}", daemon=True) for index in range(lanes)
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
        self._buffers.give_back(clip.frames)

    def skip(self, video: Video) -> None:
        """Nobody wants the rest of this video: its lane goes on to the next."""
        self._skipped.add(video.name)

    def close(self, timeout: float = 10.0) -> None:
        """Stop the lanes and wait for them, ``timeout`` seconds at most for one that hangs in a decoder."""
        self._stopped.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout)

    def _lane(self) -> None:
        try:
            while not self._stopped.is_set():
                with self._next:
                    video = next(self._videos, None)
                if video is None:
                    break
                self._decode(video)
        except _Stopped:
            pass
        finally:
            with contextlib.suppress(_Stopped):
                self._put(None)

    def _decode(self, video: Video) -> None:
        try:
            source = video.stat()
            fallback = None
            decoders = self._decoders(video)
            for attempt, decoder in enumerate(decoders):
                try:
                    self._run(video, attempt, source, decoder, fallback)
                    return
                except FallBack as error:
                    if attempt == len(decoders) - 1:
                        raise
                    fallback = f"{decoder.name}: {error}"
                    log.info("%s: %s", video.path, fallback)
        except DecodeError as error:
            self._put(Failed(video, str(error)))
        except OSError as error:
            self._put(Failed(video, error.strerror or str(error)))
        except _Skipped:
            pass
        except Exception as error:  # a defect or an exotic file ends this video, never the run
            log.debug("unexpected error in %s", video.path, exc_info=True)
            self._put(Failed(video, f"{type(error).__name__}: {error}".splitlines()[0]))

    def _run(
        self, video: Video, attempt: int, source: tuple[int, int], decoder: Decoder, fallback: str | None
    ) -> None:
        stream: FrameStream = decoder.open(video, self._recipe, self._device)
        try:
            self._put(Started(video, attempt, source, stream.info, fallback))
            window = ClipWindow(self._recipe, self._allocate)
            for frames in stream:
                for clip in window.push(frames):
                    if video.name in self._skipped:
                        self.give_back(clip)
                        raise _Skipped
                    self._put(Decoded(video, attempt, clip))
            if window.frames == 0:
                raise DecodeError("not one frame could be decoded")
            for clip in window.finish():
                self._put(Decoded(video, attempt, clip))
            stream.info.frames = window.frames
            self._put(Ended(video, attempt, dataclasses.replace(stream.info)))
        finally:
            stream.close()

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


class _Stopped(BaseException):
    """The run is over; raised in a lane to leave it."""


class _Skipped(BaseException):
    """The rest of this video is not wanted; raised in a lane to leave the video."""
