"""Resizing and normalising on the CPU: the definition of what the model sees.

One thread and no OpenMP team: this runs beside an encoder that has all cores. Only the pixels that reach the
result are touched, four for each output pixel, so a frame costs about the same at any resolution. Of the two that
resize, ``NumpyResize`` is the definition, and ``CompiledResize`` what runs wherever it could be built.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np

from streamfeat.decode.base import frames_per_chunk
from streamfeat.decode.geometry import Taps, frame_size, resize_taps, upscale_factor, upscale_taps
from streamfeat.decode.resize import CompiledResize, is_available

if TYPE_CHECKING:
    import torch

    from streamfeat.recipe import Recipe

#: Output rows worked on together: their intermediate values fit the second-level cache, which halves the time.
_BLOCK = 32


class Preprocessor:
    """Brings decoded frames to what the recipe says the model sees.

    Every frame is preprocessed from its own size, and every result has the size of the first: a stream that
    changes its resolution stays a sequence of equal frames.

    Args:
        recipe: decides geometry, channel order and normalisation.
        width: of the first frame as displayed, in pixels.
        height: likewise.
        order: of the channels in the frames that come in.

    Raises:
        DecodeError: for an aspect ratio that would need more than MAX_PIXELS.
    """

    def __init__(self, recipe: Recipe, width: int, height: int, order: Literal["rgb", "bgr"] = "rgb") -> None:
        self._recipe = recipe
        #: height and width of what comes out
        self.size = frame_size(recipe, width, height)
        self._channels = np.asarray([order.index(channel) for channel in recipe.channel_order])
        self._plan = functools.lru_cache(maxsize=4)(self._make_plan)

    def write(self, frame: np.ndarray, out: np.ndarray) -> None:
        """Preprocesses ``frame``, uint8 ``(h, w, 3)``, into ``out``, contiguous float32 ``(3, H, W)``."""
        upscale, resize = self._plan(frame.shape[1], frame.shape[0])
        resize(frame if upscale is None else upscale_bytes(frame, upscale), out)

    def chunks(self, frames: Iterable[np.ndarray], device: torch.device) -> Iterator[torch.Tensor]:
        """The frames, uint8 ``(h, w, 3)`` each, as chunks ``(n, 3, H, W)``, float32, on ``device``."""
        import torch

        if device.type != "cpu":
            from streamfeat.decode.preprocess_cuda import DevicePreprocessor

            yield from DevicePreprocessor(self._recipe, self.size, self._channels, device).chunks(frames)
            return

        height, width = self.size
        most = frames_per_chunk(height, width)
        chunk, filled = None, 0
        for frame in frames:
            if chunk is None:
                chunk = torch.empty(most, 3, height, width)
            self.write(frame, chunk[filled].numpy())
            filled += 1
            if filled == most:
                yield chunk
                chunk, filled = None, 0
        if chunk is not None:
            yield chunk[:filled]

    def _make_plan(self, width: int, height: int) -> tuple[float | None, NumpyResize | CompiledResize]:
        """For frames of one size: what they are scaled up by on bytes first, and what does the rest."""
        taps = resize_taps(self._recipe, self.size, width, height)
        make = CompiledResize if is_available() else NumpyResize
        resize = make(*taps, self._channels, *normalisation(self._recipe))
        return upscale_factor(self._recipe, width, height), resize


class NumpyResize:
    """Resizes frames of one size, and normalises them.

    Args:
        rows: taps of the result's rows.
        columns: of its columns.
        channels: of a frame, in the order of the result.
        scale: what values are multiplied with, float32 ``(3,)``.
        shift: what is added to them then, likewise.
    """

    def __init__(self, rows: Taps, columns: Taps, channels: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> None:
        # A row of the working arrays holds one channel after the other: columns are ``channel * W + x``. For each of
        # them the byte of a row to its left and to its right.
        self._left = (columns.first[None, :] * 3 + channels[:, None]).ravel()
        self._right = (columns.second[None, :] * 3 + channels[:, None]).ravel()
        self._weights = np.tile(columns.weight, 3)
        self._scale, self._shift = np.repeat(scale, len(columns.weight)), shift[:, None, None]
        self._blocks = [
            _Block.of(start, *(part[start : start + _BLOCK] for part in rows))
            for start in range(0, len(rows.weight), _BLOCK)
        ]

    def __call__(self, frame: np.ndarray, out: np.ndarray) -> None:
        source = frame.reshape(frame.shape[0], -1)
        for block in self._blocks:
            # take(), not indexing: that gives columns memory of the other order, which slows down all that follows
            rows = source.take(block.rows, 0)
            left = rows.take(self._left, 1).astype(np.float32)
            right = rows.take(self._right, 1).astype(np.float32)
            across = _lerp(left, right, self._weights)
            both = _lerp(across.take(block.upper, 0), across.take(block.lower, 0), block.weights)
            both *= self._scale
            by_channel = both.reshape(len(both), 3, -1).transpose(1, 0, 2)
            np.add(by_channel, self._shift, out=out[:, block.start : block.stop])


@dataclasses.dataclass(frozen=True)
class _Block:
    """Output rows from ``start`` up to ``stop``: worked on together, so that they stay in the cache."""

    start: int
    stop: int
    #: rows of the frame that are needed, in order, each once
    rows: np.ndarray
    #: for each output row, the needed rows above and below it, and the weight of the lower one
    upper: np.ndarray
    lower: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, start: int, upper: np.ndarray, lower: np.ndarray, weights: np.ndarray) -> _Block:
        rows, where = np.unique(np.concatenate([upper, lower]), return_inverse=True)
        upper, lower = np.split(where.ravel(), 2)
        return cls(start, start + len(weights), rows, upper, lower, weights[:, None])


def normalisation(recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift by channel, float32 ``(3,)``: ``(value / 255 - mean) / std`` is ``value * scale + shift``."""
    std = np.asarray(recipe.std)
    return (1 / (255 * std)).astype(np.float32), (-np.asarray(recipe.mean) / std).astype(np.float32)


def upscale_bytes(frame: np.ndarray, factor: float) -> np.ndarray:
    """``cv2.resize(frame, (0, 0), fx=factor, fy=factor)`` bit for bit: bilinear, fixed-point, on bytes.

    OpenCV rounds the weights to 11 bits, keeps 15 of the 19 bits of a row's sums, and rounds the sum over
    rows, of which each product is cut to an integer first (imgproc, resize.cpp).

    Args:
        frame: uint8 ``(h, w, 3)``.
        factor: above 1.

    Returns:
        uint8, both sides multiplied by ``factor`` and rounded to the nearest, ties to even.
    """
    plan = _upscale_plan(frame.shape[1], frame.shape[0], factor)
    source = frame.reshape(frame.shape[0], -1)
    result = np.empty((len(plan.upper), len(plan.left)), np.uint8)
    for start in range(0, len(result), _BLOCK):
        block = slice(start, start + _BLOCK)
        upper, lower = plan.upper[block], plan.lower[block]
        first = upper[0]
        rows = source[first : lower[-1] + 1].astype(np.int32)
        across = rows.take(plan.left, 1)
        across *= plan.left_weights
        across += rows.take(plan.right, 1) * plan.right_weights
        across >>= 4
        above, below = across.take(upper - first, 0), across.take(lower - first, 0)
        above *= plan.upper_weights[block]
        above >>= 16
        below *= plan.lower_weights[block]
        below >>= 16
        above += below
        above += 2
        above >>= 2
        result[block] = above
    return result.reshape(len(result), -1, 3)


@dataclasses.dataclass(frozen=True)
class _UpscalePlan:
    """Rows as they are taken; of columns, the bytes of a row, whose channels are interleaved."""

    left: np.ndarray
    right: np.ndarray
    left_weights: np.ndarray
    right_weights: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    upper_weights: np.ndarray
    lower_weights: np.ndarray


@functools.lru_cache(maxsize=8)
def _upscale_plan(width: int, height: int, factor: float) -> _UpscalePlan:
    rows, columns = upscale_taps(width, height, factor)
    channels = np.arange(3)
    return _UpscalePlan(
        left=(columns.first[:, None] * 3 + channels).ravel(),
        right=(columns.second[:, None] * 3 + channels).ravel(),
        left_weights=np.repeat(columns.first_weight, 3),
        right_weights=np.repeat(columns.second_weight, 3),
        upper=rows.first,
        lower=rows.second,
        upper_weights=rows.first_weight[:, None],
        lower_weights=rows.second_weight[:, None],
    )


def _lerp(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """``first + weight * (second - first)``; overwrites both."""
    second -= first
    second *= weight
    first += second
    return first
