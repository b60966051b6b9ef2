"""NVIDIA DALI: decode, resize and normalise in one graph; on the GPU, or on the CPU for the codecs it can do there.

One pipeline per video, or per part of a long one: a broken packet ends a whole pipeline, and must not take other videos
along. DALI is not asked which frames a video has. What it returns says video and frame by number, and that, the
container's packets, PyAV's first frames and a watchdog decide whether it is believed; where not, the video is done
again by PyAV.

What DALI keeps for the life of the process, whatever is done here: 16 bytes for each frame that it has indexed, and on
a GPU up to a hundred NVDEC decoders that nobody uses, with the surfaces of each (``NVDECCache``).
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import itertools
import os
import queue
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamfeat.decode import geometry, nvdec
from streamfeat.decode.base import MAX_CHUNK_BYTES, MAX_CHUNK_FRAMES, FallBack, StreamInfo, frames_per_chunk
from streamfeat.decode.parts import Part, cut
from streamfeat.decode.probe import FIRST_FRAMES, Probe, inspect, lands
from streamfeat.decode.pyav import Pictures
from streamfeat.decode.streams import own_stream

if TYPE_CHECKING:
    import torch

    from streamfeat.decode.agreement import FirstFrames
    from streamfeat.recipe import Recipe
    from streamfeat.videos import Video

#: DALI documents these for the CPU backend of its experimental reader; all others need NVDEC
CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})
#: NVDEC can do AV1, but most of its files show frames again that were decoded before, which DALI does not know of
GPU_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "mjpeg", "mpeg4"})
#: what NVDEC decodes on every generation: 8 bits, 4:2:0
PIXEL_FORMATS = frozenset({"yuv420p", "yuvj420p", "nv12"})
#: Bytes of decoded RGB in one sequence, before resizing. A few are in flight in each pipeline (DALI reads one ahead),
#: and beside them NVDEC's surfaces, 20 frames or fewer of 1.5 bytes a pixel, and as many resized sequences of
#: base.MAX_CHUNK_BYTES. None of it depends on the length of the video.
MAX_SEQUENCE_BYTES = 128 * 2**20
#: seconds without a new sequence, after which a pipeline counts as hung; opening an hour-long file takes far less
WATCHDOG_SECONDS = 60.0
#: pipelines that may hang; each keeps what it has of the device, and each next one costs another WATCHDOG_SECONDS
MOST_HUNG = 2
#: the labels that every sequence of the one video must carry, and the one after the last
_LABEL, _LABEL_OF_END = 1, 2


#: codec, width and height as displayed, of what DALI was given to decode on a GPU
_displayed: set[tuple[str, int, int]] = set()
#: threads that were given up
_hung: list[threading.Thread] = []
#: why no video is cut into parts any more: what went wrong at the beginning of one
_not_in_parts: list[str] = []


def hangs() -> bool:
    """Whether a thread that was given up is still inside DALI or the driver, whose own end waits for it."""
    return _count_hung() > 0


def _count_hung() -> int:
    return sum(thread.is_alive() for thread in _hung)


@functools.lru_cache(maxsize=8)
def unavailable(device: torch.device) -> str | None:
    """Why DALI cannot decode to ``device`` on this machine, in one line; None if it can."""
    import torch

    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        wheel = "nvidia-dali-cuda130" if (torch.version.cuda or "").startswith("13") else "nvidia-dali-cuda120"
        return f"DALI does not import ({error}); pip install {wheel} (Linux on x86-64)"
    if device.type == "cuda":
        try:
            ctypes.CDLL("libnvcuvid.so.1")
        except OSError:
            return (
                "the driver has no libnvcuvid.so.1, so no NVDEC "
                "(a container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility,video)"
            )
    return None


class DaliDecoder:
    """Decodes with DALI on ``device``; raises FallBack for what it cannot do or cannot be believed about.

    Args:
        device: where frames are decoded and stay.
        watchdog: seconds without a new sequence after which the pipeline is given up.
    """

    def __init__(self, device: torch.device, watchdog: float = WATCHDOG_SECONDS) -> None:
        self.name = "dali-gpu" if device.type == "cuda" else "dali-cpu"
        self._on_gpu = device.type == "cuda"
        self._codecs = GPU_CODECS if self._on_gpu else CPU_CODECS
        self._able = nvdec.capabilities(device.index or 0) if self._on_gpu else {}
        self._watchdog = watchdog

    def open(self, video: Video, recipe: Recipe | None, device: torch.device) -> DaliStream:
        """As ``Decoder.open``; without a recipe the frames come as they are, uint8."""
        (whole,) = self.parts(video, recipe, device, share=1.0)
        return whole.open()

    def parts(self, video: Video, recipe: Recipe | None, device: torch.device, share: float) -> list[DaliPart]:
        """As ``PartsDecoder.parts``."""
        if (hung := _count_hung()) >= MOST_HUNG:
            raise FallBack(f"DALI is not asked any more, {hung} of its pipelines hang")
        from streamfeat.decode.agreement import FirstFrames

        inspection = inspect(video.path, self._accept)
        found, packets = inspection.probe, inspection.packets
        parts = cut(recipe, packets, 1.0 if _not_in_parts else share)
        if len(parts) > 1 and not all(lands(video.path, [int(packets.times[part.key]) for part in parts[1:]])):
            parts = cut(recipe, packets, 1.0)
        info = StreamInfo(found.width, found.height, found.fps, found.codec, self.name, frames_hint=found.frames_hint)
        opened = DaliVideo(
            video.path, recipe, device, info, packets.times, FirstFrames(inspection.pictures, recipe),
            FileList(video.path), self._watchdog,
        )  # fmt: skip
        return [DaliPart(opened, part) for part in parts]

    def _accept(self, found: Probe) -> None:
        if found.codec not in self._codecs:
            raise FallBack(f"no {found.codec} on this device")
        if found.pixel_format not in PIXEL_FORMATS:
            raise FallBack(f"no {found.pixel_format} pixels")
        if found.turned:
            raise FallBack("it is displayed turned or mirrored")
        if self._on_gpu:
            if reason := self._beyond_nvdec(found):
                raise FallBack(reason)
            _displayed.add((found.codec, found.width, found.height))

    def _beyond_nvdec(self, found: Probe) -> str | None:
        """Why NVDEC, or DALI with it, cannot do this video. DALI itself finds out in callbacks of the driver."""
        size = f"{found.width} x {found.height}"
        if self._able:
            able = self._able.get(found.codec)
            if able is None:
                return f"no {found.codec} on this GPU"
            if not (able.min_width <= found.width <= able.max_width):
                return f"{size}: NVDEC's {found.codec} is {able.min_width} to {able.max_width} pixels wide"
            if not (able.min_height <= found.height <= able.max_height):
                return f"{size}: NVDEC's {found.codec} is {able.min_height} to {able.max_height} pixels high"
        if found.width % 2 or found.height % 2:
            # its kernel writes two by two pixels (color_space.cu)
            return f"{size}: DALI converts an even number of pixels"
        if found.interlaced:
            # a field is a picture of its own to NVDEC's parser
            return "it is interlaced"
        for block in (8, 16):  # pixels, to whose multiples codecs fill up
            coded = tuple(-(-pixels // block) * block for pixels in (found.width, found.height))
            if coded != (found.width, found.height) and (found.codec, *coded) in _displayed:
                # NVDECCache keeps decoders by displayed size and looks for coded size; chroma would be taken amiss
                return f"{size}: DALI would use its decoder for {coded[0]} x {coded[1]}"
        return None


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
    #: done when DALI has indexed the file for its first part; the others would all do that again
    indexed: Future[None] = dataclasses.field(default_factory=Future)


@dataclasses.dataclass(frozen=True)
class DaliPart:
    """Frames of a video, all or some, that nobody has begun to decode."""

    video: DaliVideo
    part: Part

    @property
    def first(self) -> int:
        return self.part.first

    def open(self) -> DaliStream:
        """As ``OpenPart.open``."""
        if not self.part.first:
            return DaliStream(self.video, self.part, self.video.first_frames)
        from streamfeat.decode.agreement import FirstFrames

        start = (int(self.video.times[self.part.key]), int(self.video.times[self.part.first]))
        file = Pictures(self.video.path, threads=1, start=start)
        try:
            pictures = list(itertools.islice(file, FIRST_FRAMES))
        finally:
            file.close()
        return DaliStream(self.video, self.part, FirstFrames(pictures, self.video.recipe))


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
        self._sequences: queue.Queue[tuple[np.ndarray, torch.Tensor] | BaseException | None] = queue.Queue(maxsize=1)
        # raises what the geometry forbids here, in the caller's thread
        self._graph = _graph(video.recipe, video.device, video.info)
        self._hung = False
        self._thread = threading.Thread(target=self._produce, name="dali", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[torch.Tensor]:
        try:
            yield from self._frames()
        except FallBack as error:
            indexed = self._video.indexed
            if self._part.first and not self.info.frames and indexed.done() and indexed.exception() is None:
                _not_in_parts.append(str(error))
            raise

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
        _hung.append(self._thread)
        self._index_ends(reason)

    def _next(self) -> tuple[np.ndarray, torch.Tensor] | None:
        while True:
            try:
                found = self._sequences.get(timeout=self._video.watchdog)
                break
            except queue.Empty:
                if self._waits_for_index:  # whose own watchdog ends that
                    continue
                reason = f"nothing came for {self._video.watchdog:.0f} seconds"
                self._give_up(reason)
                raise FallBack(reason) from None
        if isinstance(found, FallBack):
            raise found
        if isinstance(found, BaseException):
            raise FallBack(_first_line(found)) from found
        return found

    def _index_ends(self, reason: str | None = None) -> None:
        """The file is indexed, or will not be for this reason."""
        with contextlib.suppress(InvalidStateError):
            if reason is None:
                self._video.indexed.set_result(None)
            else:  # an error of its own: one that was raised keeps the pipeline that it came from
                self._video.indexed.set_exception(FallBack(reason))

    @property
    def _waits_for_index(self) -> bool:
        return bool(self._part.first) and not self._video.indexed.done()

    # in the thread

    def _produce(self) -> None:
        try:
            while self._waits_for_index:
                if self._closed.wait(0.02):
                    return
            if self._part.first:
                self._video.indexed.result()
            with own_stream(self._device):
                self._run()
            self._put(None)
        except BaseException as error:
            self._index_ends(_first_line(error))
            self._put(error)

    def _run(self) -> None:
        is_whole = self._part.first == 0 and self._part.end == len(self._video.times)
        pipeline = self._graph(self._video.file_list.write(None if is_whole else self._part))
        pipeline.build()
        sequences, done = 1, 0
        while done < sequences:
            frames, labels, numbers = pipeline.run()
            self._index_ends()
            # without the one after the end; known since the first run
            sequences, done = next(iter(pipeline.epoch_size().values())) - 1, done + 1
            if _host(labels).ravel().tolist() != [_LABEL]:
                raise RuntimeError(f"a sequence is labelled {_host(labels).ravel().tolist()}")
            sequence = _host(numbers).ravel(), self._own(frames)
            del frames, labels, numbers  # they must not outlive their pipeline
            if not self._put(sequence):
                return

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

    def _put(self, item: tuple[np.ndarray, torch.Tensor] | BaseException | None) -> bool:
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


def _graph(recipe: Recipe | None, device: torch.device, info: StreamInfo) -> Callable[[Path], Any]:
    """Makes the pipeline for one video of this size, not built yet: its outputs are frames, label, frame numbers.

    Frames are float32 ``(1, 3, n, H, W)``, without a recipe uint8 ``(1, n, h, w, 3)``.
    """
    most = max(1, MAX_SEQUENCE_BYTES // (3 * info.width * info.height))
    if recipe is None:
        return _pipeline(device, min(MAX_CHUNK_FRAMES, most), lambda frames: frames)
    height, width = geometry.frame_size(recipe, info.width, info.height)
    upscaled = geometry.upscaled_size(recipe, info.width, info.height)
    resized = geometry.resized_size(recipe, *upscaled)
    length = min(_chunk_frames(device, height, width), most)
    # DALI normalises red, green, blue; the exchange comes after
    order = slice(None) if recipe.channel_order == "rgb" else slice(None, None, -1)
    mean, std = ([255 * value for value in values][order] for values in (recipe.mean, recipe.std))

    def preprocess_frames(frames: Any) -> Any:
        from nvidia.dali import fn, types

        if upscaled != (info.width, info.height):
            # on bytes, as the published pipeline does
            frames = fn.resize(
                frames, size=upscaled[::-1], antialias=False, interp_type=types.INTERP_LINEAR, dtype=types.UINT8
            )
        frames = fn.resize(frames, size=resized, antialias=False, interp_type=types.INTERP_LINEAR, dtype=types.FLOAT)
        offsets = [
            round((full - kept) / 2) / (full - kept) if full > kept else 0.0
            for full, kept in zip(resized, (height, width), strict=True)
        ]
        return fn.crop_mirror_normalize(
            frames, crop=(height, width), crop_pos_y=offsets[0], crop_pos_x=offsets[1], mean=mean, std=std,
            dtype=types.FLOAT, output_layout="CFHW",
        )  # fmt: skip

    return _pipeline(device, length, preprocess_frames)


def _chunk_frames(device: torch.device, height: int, width: int) -> int:
    """On a GPU as many as a chunk's bytes hold: each sequence costs the processor some calls, whatever its length."""
    if device.type == "cuda":
        return max(1, MAX_CHUNK_BYTES // (3 * 4 * height * width))
    return frames_per_chunk(height, width)


def _pipeline(device: torch.device, length: int, process: Callable[[Any], Any]) -> Callable[[Path], Any]:
    """Makes the pipeline that reads sequences of ``length`` frames of a list and does ``process`` to them."""

    def make(listed: Path) -> Any:
        from nvidia.dali import fn, pipeline_def

        # The reader decodes the next sequence while this one is resized; to run more than one ahead would only take
        # memory. A file is indexed in the first run (lazy_init): what is done while building has all of Python wait.
        @pipeline_def(
            batch_size=1, num_threads=1, prefetch_queue_depth=1,
            device_id=(device.index or 0) if device.type == "cuda" else None,
        )  # fmt: skip
        def graph() -> Any:
            frames, label, numbers = fn.experimental.readers.video(
                device="gpu" if device.type == "cuda" else "cpu", file_list=os.fspath(listed),
                file_list_format="frames", file_list_include_end=False, lazy_init=True,
                sequence_length=length, enable_frame_num="sequence", pad_mode="constant", name="reader",
            )  # fmt: skip
            return process(frames), label, numbers

        return graph()

    return make


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
