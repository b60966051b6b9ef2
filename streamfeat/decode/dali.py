"""NVIDIA DALI: decode, resize and normalise in one graph; on the GPU, or on the CPU for the codecs it can do there.

One pipeline per video, or per part of a long one: a broken packet ends a whole pipeline, and must not take other videos
along. DALI is not asked which frames a video has. What it returns says video and frame by number, and that, the
container's packets, PyAV's first frames and a watchdog decide whether it is believed; where not, the video is done
again by PyAV. A video of which only a part begins wrong is first done again as a whole.

What DALI keeps for the life of the process, whatever is done here: 16 bytes for each frame that it has indexed, and on
a GPU up to a hundred NVDEC decoders that nobody uses, with the surfaces of each (``NVDECCache``).
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import os
from typing import TYPE_CHECKING

import numpy as np

from streamfeat.decode import dali_stream, nvdec
from streamfeat.decode.base import BegunWrong, DecodeError, FallBack, StreamInfo
from streamfeat.decode.dali_stream import DaliStream, DaliVideo, FileList, Index
from streamfeat.decode.parts import Part, cut
from streamfeat.decode.probe import FIRST_FRAMES, Packets, Probe, inspect, lands
from streamfeat.decode.pyav import Pictures

if TYPE_CHECKING:
    import torch

    from streamfeat.recipe import Recipe
    from streamfeat.videos import Video

#: DALI documents these for the CPU backend of its experimental reader; all others need NVDEC
CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})
#: NVDEC can do AV1, but most of its files show frames again that were decoded before, which DALI does not know of
GPU_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "mjpeg", "mpeg4"})
#: what NVDEC decodes on every generation: 8 bits, 4:2:0
PIXEL_FORMATS = frozenset({"yuv420p", "yuvj420p", "nv12"})
#: seconds without a new sequence, after which a pipeline counts as hung; opening an hour-long file takes far less
WATCHDOG_SECONDS = 60.0
#: videos whose pipelines may hang; they keep what they have of the device, and each next one costs WATCHDOG_SECONDS
MOST_HUNG = 2
#: codec, width and height as displayed, of what DALI was given to decode on a GPU
_displayed: set[tuple[str, int, int]] = set()


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
        if (hung := dali_stream.count_hung()) >= MOST_HUNG:
            raise FallBack(f"DALI is not asked any more, {hung} of its pipelines hang")
        from streamfeat.decode.agreement import FirstFrames

        inspection = inspect(video.path, self._accept)
        found, packets = inspection.probe, inspection.packets
        finds = dali_stream.finds_key_frames(found.codec, video.path)
        parts = _cut(video.path, recipe, packets, share if finds else 1.0)
        info = StreamInfo(found.width, found.height, found.fps, found.codec, self.name, frames_hint=found.frames_hint)
        opened = DaliVideo(
            video.path, recipe, device, info, packets.times, FirstFrames(inspection.pictures, recipe),
            FileList(video.path), self._watchdog, Index(),
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


def _cut(path: os.PathLike[str], recipe: Recipe | None, packets: Packets, share: float) -> list[Part]:
    """Parts that begin where FFmpeg's seeks come to."""
    for _ in range(3):
        parts = cut(recipe, packets, share)
        keys = [part.key for part in parts[1:]]
        try:
            landed = lands(path, [int(packets.times[key]) for key in keys]) if keys else []
        except (DecodeError, OSError):
            break
        if all(landed):
            return parts
        packets = packets.without([key for key, is_there in zip(keys, landed, strict=True) if not is_there])
    return cut(recipe, packets, 1.0)


@dataclasses.dataclass(frozen=True)
class DaliPart:
    """Frames of a video, all or some, that nobody has begun to decode."""

    video: DaliVideo
    part: Part

    @property
    def first(self) -> int:
        return self.part.first

    @property
    def end(self) -> int:
        return self.part.end

    def open(self) -> DaliStream:
        """As ``VideoPart.open``."""
        if not self.part.first:
            return DaliStream(self.video, self.part, self.video.first_frames)
        from streamfeat.decode.agreement import FirstFrames

        try:
            return DaliStream(self.video, self.part, FirstFrames(self._first_pictures(), self.video.recipe))
        except (DecodeError, OSError) as error:
            raise BegunWrong(f"from frame {self.first} on: {error}") from error

    def _first_pictures(self) -> list[np.ndarray]:
        start = (int(self.video.times[self.part.key]), int(self.video.times[self.first]))
        file = Pictures(self.video.path, threads=1, start=start)
        try:
            return list(itertools.islice(file, FIRST_FRAMES))
        finally:
            file.close()
