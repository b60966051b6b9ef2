"""NVIDIA DALI: decode, resize and normalise in one graph; on the GPU, or on the CPU for the codecs it can do there.

One pipeline per video: a broken packet ends a whole pipeline, and must not take other videos along. DALI is not asked
which frames a video has. What it returns says video and frame by number, and that, the count of the container's
packets and a watchdog decide whether it is believed; where not, the video is done again by PyAV.
"""

from __future__ import annotations

import ctypes
import functools
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from streamfeat.decode import preprocess
from streamfeat.decode.base import MAX_CHUNK_BYTES, MAX_CHUNK_FRAMES, FallBack, StreamInfo, frames_per_chunk
from streamfeat.decode.probe import count_packets, probe
from streamfeat.decode.streams import own_stream

if TYPE_CHECKING:
    import torch

    from streamfeat.recipe import Recipe
    from streamfeat.videos import Video

#: DALI documents these for the CPU backend of its experimental reader; all others need NVDEC
CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})
GPU_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mjpeg", "mpeg4"})
#: what NVDEC decodes on every generation: 8 bits, 4:2:0
PIXEL_FORMATS = frozenset({"yuv420p", "yuvj420p", "nv12"})
#: Bytes of decoded RGB in one sequence, before resizing. A few are in flight in each pipeline (DALI reads one ahead and
#: prefetches two), and beside them NVDEC's surfaces, 20 frames or fewer of 1.5 bytes a pixel, and as many resized
#: sequences of base.MAX_CHUNK_BYTES. None of it depends on the length of the video.
MAX_SEQUENCE_BYTES = 128 * 2**20
#: seconds without a new sequence, after which a pipeline counts as hung; opening an hour-long file takes far less
WATCHDOG_SECONDS = 60.0
#: the label that every sequence of the one video must carry
_LABEL = 1


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
        self._codecs = GPU_CODECS if device.type == "cuda" else CPU_CODECS
        self._watchdog = watchdog

    def open(self, video: Video, recipe: Recipe | None, device: torch.device) -> DaliStream:
        """As ``Decoder.open``; without a recipe the frames come as they are, uint8."""
        found = probe(video.path)
        if found.codec not in self._codecs:
            raise FallBack(f"no {found.codec} on this device")
        if found.pixel_format not in PIXEL_FORMATS:
            raise FallBack(f"no {found.pixel_format} pixels")
        if found.turned:
            raise FallBack("it is displayed turned or mirrored")
        info = StreamInfo(found.width, found.height, found.fps, found.codec, self.name, frames_hint=found.frames_hint)
        return DaliStream(os.fspath(video.path), recipe, device, info, self._watchdog)


class DaliStream:
    """The frames of one video, from one pipeline that runs in a thread of its own.

    ``close`` waits for the thread, since a process that ends amid a pipeline's end is aborted. It is abandoned only
    when the pipeline hangs: nothing can interrupt that.
    """

    def __init__(
        self, path: str, recipe: Recipe | None, device: torch.device, info: StreamInfo, watchdog: float
    ) -> None:
        self.info = info
        self._path, self._recipe, self._device, self._watchdog = path, recipe, device, watchdog
        self._closed = threading.Event()
        self._sequences: queue.Queue[tuple[np.ndarray, torch.Tensor] | BaseException | None] = queue.Queue(maxsize=1)
        # raises what the geometry forbids here, in the caller's thread
        self._graph = _graph(path, recipe, device, info)
        self._hung = False
        self._thread = threading.Thread(target=self._produce, name="dali", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[torch.Tensor]:
        import torch

        while (found := self._next()) is not None:
            numbers, frames = found
            shown = numbers >= 0  # the last sequence is filled up with frames numbered -1
            count = int(shown.sum())
            expected = np.arange(self.info.frames, self.info.frames + count)
            if not (shown[:count].all() and np.array_equal(numbers[:count], expected)):
                raise FallBack(f"frame {self.info.frames} was expected, and {numbers[:3].tolist()}... came")
            self.info.frames += count
            if count:
                if frames.is_cuda:
                    # they were made on another stream, whose next sequence must not take their memory too early
                    frames.record_stream(torch.cuda.current_stream(frames.device))
                yield frames[:count]
        packets = count_packets(self._path)
        if self.info.frames != packets:
            raise FallBack(f"{self.info.frames} frames came out of {packets} packets")

    def close(self) -> None:
        self._closed.set()
        if not self._hung:
            self._thread.join(self._watchdog)

    def _next(self) -> tuple[np.ndarray, torch.Tensor] | None:
        try:
            found = self._sequences.get(timeout=self._watchdog)
        except queue.Empty:
            self._hung = True
            raise FallBack(f"nothing came for {self._watchdog:.0f} seconds") from None
        if isinstance(found, BaseException):
            raise FallBack(_first_line(found)) from found
        return found

    # in the thread

    def _produce(self) -> None:
        try:
            with own_stream(self._device):
                pipeline = self._graph()
                pipeline.build()
                # past the last sequence the reader begins anew
                for _ in range(next(iter(pipeline.epoch_size().values()))):
                    frames, labels, numbers = pipeline.run()
                    if _host(labels).ravel().tolist() != [_LABEL]:
                        raise RuntimeError(f"a sequence is labelled {_host(labels).ravel().tolist()}")
                    if not self._put((_host(numbers).ravel(), self._own(frames))):
                        return
            self._put(None)
        except BaseException as error:
            self._put(error)

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


def _graph(path: str, recipe: Recipe | None, device: torch.device, info: StreamInfo) -> Callable[[], Any]:
    """The pipeline for one video of this size, not built yet: its outputs are frames, label, frame numbers.

    Frames are float32 ``(1, 3, n, H, W)``, without a recipe uint8 ``(1, n, h, w, 3)``.
    """
    most = max(1, MAX_SEQUENCE_BYTES // (3 * info.width * info.height))
    if recipe is None:
        return _pipeline(path, device, min(MAX_CHUNK_FRAMES, most), lambda frames: frames)
    height, width = preprocess.frame_size(recipe, info.width, info.height)
    upscaled = preprocess.upscaled_size(recipe, info.width, info.height)
    resized = preprocess.resized_size(recipe, *upscaled)
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

    return _pipeline(path, device, length, preprocess_frames)


def _chunk_frames(device: torch.device, height: int, width: int) -> int:
    """On a GPU as many as a chunk's bytes hold: each sequence costs the processor some calls, whatever its length."""
    if device.type == "cuda":
        return max(1, MAX_CHUNK_BYTES // (3 * 4 * height * width))
    return frames_per_chunk(height, width)


def _pipeline(path: str, device: torch.device, length: int, process: Callable[[Any], Any]) -> Callable[[], Any]:
    """The pipeline that reads sequences of ``length`` frames and does ``process`` to them, not built yet."""

    def make() -> Any:
        from nvidia.dali import fn, pipeline_def

        @pipeline_def(
            batch_size=1, num_threads=1, prefetch_queue_depth=2,
            device_id=(device.index or 0) if device.type == "cuda" else None,
        )  # fmt: skip
        def graph() -> Any:
            frames, label, numbers = fn.experimental.readers.video(
                device="gpu" if device.type == "cuda" else "cpu", filenames=[path], labels=[_LABEL],
                sequence_length=length, enable_frame_num="sequence", pad_mode="constant", name="reader",
            )  # fmt: skip
            return process(frames), label, numbers

        return graph()

    return make


def _host(outputs: Any) -> np.ndarray:
    return np.asarray((outputs.as_cpu() if hasattr(outputs, "as_cpu") else outputs).as_array())


def _first_line(error: BaseException) -> str:
    """What DALI says is wrong, without its stack traces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "Error" not in line and "File" not in line and "encountered" not in line]
    return f"DALI: {(told or lines or [type(error).__name__])[0]}"
