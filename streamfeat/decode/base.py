"""What every decoder is: a video in, normalised frames out, in order, each decoded once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from streamfeat.recipe import Recipe
    from streamfeat.videos import Video

#: Frames in one chunk at most, but on a GPU; a chunk also stays below MAX_CHUNK_BYTES unless a single frame is larger.
MAX_CHUNK_FRAMES = 16
MAX_CHUNK_BYTES = 32 * 2**20


class DecodeError(Exception):
    """This video cannot be decoded. The text is the reason, one line, without the path."""


class FallBack(DecodeError):
    """This decoder cannot decode the video, or did it wrong: decode the whole video again with the next one, PyAV."""


class BegunWrong(FallBack):
    """A part of a video did not begin as it should: the same decoder may do the whole video."""


@dataclasses.dataclass
class StreamInfo:
    """What is known of a stream. All but the last two fields are known once the stream is open."""

    #: pixels, as displayed: rotation applied
    width: int
    height: int
    #: frames per second, 0.0 if unknown
    fps: float
    #: FFmpeg's name of the codec; for a frame folder that of the image format
    codec: str
    #: pyav, dali-cpu, dali-gpu or images
    decoder: str
    #: frames that the container promises, 0 if nothing: good for progress, never for counting
    frames_hint: int = 0
    #: frames delivered so far; their number, once the iteration has ended
    frames: int = 0
    #: packets that could not be decoded and were stepped over
    damaged_packets: int = 0


class FrameStream(Protocol):
    """The frames of one video, to be iterated over once."""

    info: StreamInfo

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Chunks of frames in presentation order: float32, ``(n, 3, H, W)``, normalised, on the device.

        ``n`` is from 1 to MAX_CHUNK_FRAMES, or on a GPU what MAX_CHUNK_BYTES hold; ``H`` and ``W`` are
        what ``geometry.frame_size`` says and the same in every chunk. Raises DecodeError.
        """
        ...

    def close(self) -> None:
        """Releases file and codec. May be called at any time, and more than once."""
        ...


class Decoder(Protocol):
    name: str

    def open(self, video: Video, recipe: Recipe, device: torch.device) -> FrameStream:
        """Starts decoding ``video``. Raises DecodeError, or FallBack where PyAV should try instead."""
        ...


class VideoPart(Protocol):
    """Frames of a video that can be decoded beside its other parts; nobody has begun."""

    #: indices of the first of them, where a clip begins, and of the one after the last
    first: int
    end: int

    def open(self) -> FrameStream:
        """Starts decoding. The stream's ``info.frames`` count from ``first``. Raises as ``Decoder.open``."""
        ...


class PartsDecoder(Decoder, Protocol):
    """A decoder that can share a video with others of its kind."""

    def parts(self, video: Video, recipe: Recipe, device: torch.device, share: float) -> Sequence[VideoPart]:
        """Parts that together have each clip of ``video`` once, in order; often one, the whole.

        Args:
            share: of the video's frames, as many as one of the decoders shall do.

        Raises as ``open``.
        """
        ...


def frames_per_chunk(height: int, width: int) -> int:
    """How many float32 frames ``(3, height, width)`` go into one chunk."""
    return max(1, min(MAX_CHUNK_FRAMES, MAX_CHUNK_BYTES // (3 * 4 * height * width)))
