"""JPEG files of frames on the device that decoded them: NVDEC through DALI, nvJPEG through torchvision.

nvJPEG as torchvision calls it keeps a chroma value for every pixel (4:4:4), where libjpeg keeps one for four.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from streamfeat.decode import dali
from streamfeat.decode.base import FallBack
from streamfeat.decode.streams import own_stream
from streamfeat.text import first_line

if TYPE_CHECKING:
    import torch

    from streamfeat.videos import Video


class JpegFrames:
    """The frames of a video as JPEG files, in order, to be iterated over once.

    Args:
        device: where they are decoded and coded.
        quality: 1 to 100.

    Raises:
        FallBack: they cannot be had like this, at the start or anywhere on the way.
    """

    #: DALI gives up a video with damaged packets
    damaged = 0

    def __init__(self, video: Video, device: torch.device, quality: int) -> None:
        if reason := dali.unavailable(device):
            raise FallBack(reason)
        self._device, self._quality = device, quality
        self._stream = dali.DaliDecoder(device).open(video, None, device)

    def __iter__(self) -> Iterator[bytes]:
        with own_stream(self._device):
            for frames in self._stream:
                yield from self._code(frames)

    def close(self) -> None:
        self._stream.close()

    def _code(self, frames: torch.Tensor) -> list[bytes]:
        """Of uint8 RGB ``(n, 3, h, w)``."""
        from torchvision.io import encode_jpeg

        pictures = [frame.contiguous() for frame in frames]
        # torchvision codes on a stream of its own that waits for none, and leaves the files on the default one
        self._wait()
        try:
            files = encode_jpeg(pictures, self._quality)
        except RuntimeError as error:
            raise FallBack(f"nvJPEG: {first_line(error)}") from error
        self._wait()
        return [file.cpu().numpy().tobytes() for file in files]

    def _wait(self) -> None:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
