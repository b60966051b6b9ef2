"""Frames out of one of DALI's pipelines, none of which is believed before it is checked."""

from __future__ import annotations

import dataclasses
import logging
import os
import queue
import shutil
import tempfile
import threading
import weakref
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamfeat.decode.base import BegunWrong, FallBack, StreamInfo
from streamfeat.decode.dali_graph import graph
from streamfeat.decode.streams import own_stream

if TYPE_CHECKING:
    import torch

    from streamfeat.decode.agreement import FirstFrames
    from streamfeat.decode.parts import Part
    from streamfeat.recipe import Recipe

log = logging.getLogger(__name__)

#: the labels that every sequence of the one video must carry, and the one after the last
_LABEL, _LABEL_OF_END = 1, 2

#: After so many videos of a kind whose parts began with other pictures than PyAV's, and none with a part that began
#: right, no video of that kind is cut any more. A kind is a codec in files of one extension.
MOST_BEGUN_WRONG = 3
#: the name of threads that run a pipeline
_THREAD = "streamfeat-dali"

#: threads that were given up, and whose they were
_hung: list[tuple[FileList, threading.Thread]] = []
#: kinds of which a part, not the first of a video, has begun right; and of each kind the videos of which one has not
_begun_right: set[tuple[str, str]] = set()
_begun_wrong: defaultdict[tuple[str, str], set[str]] = defaultdict(set)


def hangs() -> bool:
    """Whether a thread is still inside DALI or the driver, whose own end waits for it. For when nothing decodes."""
    return any(thread.name == _THREAD for thread in threading.enumerate())


def count_hung() -> int:
    """Videos whose threads were given up and still are."""
    return len({id(files) for files, thread in _hung if thread.is_alive()})


def finds_key_frames(codec: str, path: str | os.PathLike[str]) -> bool:
    """Whether DALI begins with the right pictures amid videos of this kind, as far as is known."""
    kind = _kind(codec, path)
    return kind in _begun_right or len(_begun_wrong[kind]) < MOST_BEGUN_WRONG


def _kind(codec: str, path: str | os.PathLike[str]) -> tuple[str, str]:
    return codec, os.path.splitext(path)[1].lower()


class Index:
    """Whether DALI has indexed a file."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        #: why it never will, if it will not
        self.problem = ""

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def end(self, problem: str = "") -> None:
        """What ended it first, counts."""
        if not self.has_ended:
            self.problem = problem
            self._ended.set()


@dataclasses.dataclass(frozen=True)
class DaliVideo:
    """What the parts of a video have in common."""

    path: os.PathLike[str]
    recipe: Recipe | None
    device: torch.device
    info: StreamInfo
    #: timestamps of its frames, as in packets
    times: np.ndarray
    first_frames: FirstFrames
    file_list: FileList
    watchdog: float
    #: made for the first part; the others would all do that again
    index: Index


class DaliStream:
    """Frames of one video, from one pipeline that runs in a thread of its own.

    ``close`` waits for the thread, since a process that ends amid a pipeline's end is aborted. It is abandoned only
    when the pipeline hangs: nothing can interrupt that.
    """

    def __init__(self, video: DaliVideo, part: Part, first: FirstFrames) -> None:
        self.info = dataclasses.replace(video.info)
        self._video, self._part, self._first = video, part, first
        self._recipe, self._device = video.recipe, video.device
        self._closed = threading.Event()
        #: at the end of them None, or why there are no more
        self._sequences: queue.Queue[tuple[np.ndarray, torch.Tensor] | str | None] = queue.Queue(maxsize=1)
        # raises what the geometry forbids here, in the caller's thread
        self._graph = graph(video.recipe, video.device, video.info)
        self._hung = False
        self._thread = threading.Thread(target=self._produce, name=_THREAD, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[torch.Tensor]:
        first = self._part.first
        try:
            yield from self._frames()
        except FallBack as error:
            if not first:
                raise
            reason = f"from frame {first} on: {error}"
            if self.info.frames or self._hung or self._video.index.problem:
                raise FallBack(reason) from error
            _begun_wrong[_kind(self.info.codec, self._video.path)].add(os.fspath(self._video.path))
            raise BegunWrong(reason) from error

    def _frames(self) -> Iterator[torch.Tensor]:
        import torch

        while (found := self._next()) is not None:
            numbers, frames = found
            shown = numbers >= 0  # the last sequence is filled up with frames numbered -1
            count, next_one = int(shown.sum()), self._part.first + self.info.frames
            expected = np.arange(next_one, next_one + count)
            if not (shown[:count].all() and np.array_equal(numbers[:count], expected)):
                raise FallBack(f"frame {next_one} was expected, and {numbers[:3].tolist()}... came")
            if count:
                if not self.info.frames:
                    self._first.compare(frames[:count])
                    if self._part.first:
                        _begun_right.add(_kind(self.info.codec, self._video.path))
                self.info.frames += count
                if frames.is_cuda:
                    # they were made on another stream, whose next sequence must not take their memory too early
                    frames.record_stream(torch.cuda.current_stream(frames.device))
                yield frames[:count]
        if (packets := self._part.end - self._part.first) != self.info.frames:
            raise FallBack(f"{self.info.frames} frames came out of {packets} packets")

    def close(self) -> None:
        self._closed.set()
        if not self._hung:
            self._thread.join(self._video.watchdog)
            if self._thread.is_alive():
                self._give_up("it does not end")

    def _give_up(self, reason: str) -> None:
        """Of the thread, which nothing can interrupt."""
        self._hung = True
        _hung.append((self._video.file_list, self._thread))
        self._video.index.end(reason)

    def _next(self) -> tuple[np.ndarray, torch.Tensor] | None:
        while True:
            waited = self._waits_for_index  # which the first part's watchdog ends
            try:
                found = self._sequences.get(timeout=self._video.watchdog)
                break
            except queue.Empty:
                if waited:
                    continue
                reason = f"nothing came for {self._video.watchdog:.0f} seconds"
                self._give_up(reason)
                raise FallBack(reason) from None
        if isinstance(found, str):
            raise FallBack(found)
        return found

    @property
    def _waits_for_index(self) -> bool:
        return bool(self._part.first) and not self._video.index.has_ended

    # in the thread

    def _produce(self) -> None:
        while self._waits_for_index:
            if self._closed.wait(0.02):
                return
        if self._part.first and self._video.index.problem:
            self._put(self._video.index.problem)
            return
        try:
            with own_stream(self._device):
                self._run()
            return
        except BaseException as error:
            log.debug("%s", self._video.path, exc_info=True)
            problem = _first_line(error)
        # now that the error is gone, which kept the pipeline that it came from
        self._video.index.end(problem)
        self._put(problem)

    def _run(self) -> None:
        is_whole = self._part.first == 0 and self._part.end == len(self._video.times)
        pipeline = self._graph(self._video.file_list.write(None if is_whole else self._part))
        pipeline.build()
        sequences, done = 1, 0
        while done < sequences:
            frames, labels, numbers = pipeline.run()
            self._video.index.end()
            # without the one after the end; known since the first run
            sequences, done = next(iter(pipeline.epoch_size().values())) - 1, done + 1
            if _host(labels).ravel().tolist() != [_LABEL]:
                raise RuntimeError(f"a sequence is labelled {_host(labels).ravel().tolist()}")
            sequence = _host(numbers).ravel(), self._own(frames)
            del frames, labels, numbers  # they must not outlive their pipeline
            if not self._put(sequence):
                return
        self._put(None)

    def _own(self, frames: Any) -> torch.Tensor:
        """A sequence out of DALI's memory, which it will use again, as ``(n, 3, H, W)``."""
        import torch

        if self._device.type == "cuda":
            from nvidia.dali.plugin.pytorch import feed_ndarray

            tensor = frames.as_tensor()
            dtype = torch.uint8 if self._recipe is None else torch.float32
            copy = torch.empty(tensor.shape(), dtype=dtype, device=self._device)
            feed_ndarray(tensor, copy, cuda_stream=torch.cuda.current_stream(self._device))
        else:
            copy = torch.from_numpy(np.array(frames.as_array()))
        if self._recipe is None:
            copy = copy[0].permute(0, 3, 1, 2)
        else:
            copy = copy[0].transpose(0, 1)
            if self._recipe.channel_order == "bgr":
                copy = copy.flip(1)
        if self._device.type == "cuda":
            # before DALI has its memory back, and before another stream reads the copy
            torch.cuda.current_stream(self._device).synchronize()
        return copy

    def _put(self, item: tuple[np.ndarray, torch.Tensor] | str | None) -> bool:
        while not self._closed.is_set():
            try:
                self._sequences.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


class FileList:
    """Lists of files for DALI, which name one video by a name of their own folder.

    In a list names end at blanks, and DALI keeps what it knows of a file under its name for the life of the process:
    also when the file has changed, but so that only the first of several parts has the file indexed. The folder is
    deleted when nobody uses this any more.
    """

    def __init__(self, path: os.PathLike[str]) -> None:
        self._path = os.path.abspath(path)
        self._making = threading.Lock()
        self._link: Path | None = None

    def write(self, part: Part | None) -> Path:
        """A list that DALI reads as all of the video, or as a part, and then its first frame once more.

        Past the end of its list DALI begins anew, before anybody asks for it, and what it has begun it cannot be
        stopped from ending: the pipeline's end waits for that, and all of Python with it. So what comes last is short.
        """
        with self._making:
            if self._link is None:
                folder = tempfile.mkdtemp(prefix="streamfeat-")
                weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
                link = Path(folder) / f"video{''.join(Path(self._path).suffix.split())}"
                link.symlink_to(self._path)
                self._link = link
        frames = "" if part is None else f" {part.first} {part.end}"
        listed = self._link.with_name(f"list-{part.first if part else 0}")
        listed.write_text(f"{self._link} {_LABEL}{frames}\n{self._link} {_LABEL_OF_END} 0 1\n")
        return listed


def _host(outputs: Any) -> np.ndarray:
    return np.asarray((outputs.as_cpu() if hasattr(outputs, "as_cpu") else outputs).as_array())


def _first_line(error: BaseException) -> str:
    """What DALI says is wrong, without its stack traces."""
    text = str(error)
    if "number of input samples: 0" in text:
        return "DALI cannot read it; what it says about that is on standard error"
    lines = [line.strip() for line in text.rpartition("encountered:")[2].splitlines() if line.strip()]
    told = [line for line in lines if "Error" not in line and "File" not in line and not line.startswith("Critical")]
    return f"DALI: {(told or lines or [type(error).__name__])[0]}"
