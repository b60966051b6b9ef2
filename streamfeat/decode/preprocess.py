"""Resizing and normalising: the definition of a recipe's geometry, on the CPU.

One thread and no OpenMP team: this runs beside an encoder that has all cores. Only the pixels that reach the
result are touched, four for each output pixel, so a frame costs about the same at any resolution.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np

from streamfeat.decode.base import DecodeError, frames_per_chunk

if TYPE_CHECKING:
    import torch

    from streamfeat.recipe import Recipe

#: Pixels of a frame after scaling up or bringing its short side to a length: room for 8K, none for a strip
#: of pixels that the upscaling rule would blow up to gigabytes.
MAX_PIXELS = 2**25

#: OpenCV's INTER_RESIZE_COEF_BITS: fractional bits of the weights of its uint8 bilinear resize.
_COEFFICIENT = 1 << 11

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
        # (value / 255 - mean) / std as value * scale + shift; column per channel and pixel of a row
        std = np.asarray(recipe.std)
        self._scale = np.repeat(1 / (255 * std), self.size[1]).astype(np.float32)
        self._shift = np.repeat(-np.asarray(recipe.mean) / std, self.size[1]).astype(np.float32)
        self._plan = functools.lru_cache(maxsize=4)(self._make_plan)

    def write(self, frame: np.ndarray, out: np.ndarray) -> None:
        """Preprocesses ``frame``, uint8 ``(h, w, 3)``, into ``out``, float32 ``(3, H, W)``."""
        plan = self._plan(frame.shape[1], frame.shape[0])
        if plan.upscale is not None:
            frame = upscale_bytes(frame, plan.upscale)
        source = frame.reshape(frame.shape[0], -1)
        width = self.size[1]
        for block in plan.blocks:
            # take(), not indexing: that gives columns memory of the other order, which slows down all that follows
            rows = source.take(block.rows, 0)
            left = rows.take(plan.left, 1).astype(np.float32)
            right = rows.take(plan.right, 1).astype(np.float32)
            across = _lerp(left, right, plan.x_weights)
            both = _lerp(across.take(block.upper, 0), across.take(block.lower, 0), block.weights)
            both *= self._scale
            by_channel = both.reshape(-1, 3, width).transpose(1, 0, 2)
            np.add(by_channel, self._shift.reshape(3, 1, width), out=out[:, block.start : block.stop])

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

    def _make_plan(self, width: int, height: int) -> _Plan:
        upscale = upscale_factor(self._recipe, width, height)
        width, height = upscaled_size(self._recipe, width, height)
        resized = resized_size(self._recipe, width, height)
        if self._recipe.crops > 1:
            resized = self.size
        top, left = (round((full - kept) / 2) for full, kept in zip(resized, self.size, strict=True))
        y0, y1, y_weights = bilinear_taps(height, resized[0], top, self.size[0])
        x0, x1, x_weights = bilinear_taps(width, resized[1], left, self.size[1])
        return _Plan(
            upscale=upscale,
            left=(x0[None, :] * 3 + self._channels[:, None]).ravel(),
            right=(x1[None, :] * 3 + self._channels[:, None]).ravel(),
            x_weights=np.tile(x_weights, 3),
            blocks=tuple(
                _Block.of(start, *(part[start : start + _BLOCK] for part in (y0, y1, y_weights)))
                for start in range(0, self.size[0], _BLOCK)
            ),
        )


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Which bytes of a frame of one size are needed, and how they are weighted.

    A row of the working arrays holds one channel after the other, in the recipe's order: columns are
    ``channel * W + x``.
    """

    upscale: float | None
    #: for each column, the byte of a row to its left and to its right, and the weight of the right one
    left: np.ndarray
    right: np.ndarray
    x_weights: np.ndarray
    blocks: tuple[_Block, ...]


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


def frame_size(recipe: Recipe, width: int, height: int) -> tuple[int, int]:
    """(height, width) of the frames that ``recipe`` makes of frames of ``width`` x ``height`` pixels.

    The crops of a recipe with more than one are cut from these frames. Raises DecodeError for an aspect
    ratio that would need more than MAX_PIXELS.
    """
    resized = resized_size(recipe, *upscaled_size(recipe, width, height))
    return resized if recipe.crops > 1 else (recipe.image_size, recipe.image_size)


def upscale_factor(recipe: Recipe, width: int, height: int) -> float | None:
    """What bytes are scaled up by first, None if they are not."""
    if recipe.upscale_below is None or min(width, height) >= recipe.upscale_below:
        return None
    return recipe.upscale_below / min(width, height)


def upscaled_size(recipe: Recipe, width: int, height: int) -> tuple[int, int]:
    """(width, height) after the scaling up on bytes, rounded as ``cv2.resize`` does."""
    factor = upscale_factor(recipe, width, height) or 1.0
    return _checked(round(width * factor), round(height * factor), width, height)


def resized_size(recipe: Recipe, width: int, height: int) -> tuple[int, int]:
    """(height, width) after resizing, before any crop.

    The long side is rounded down, as torchvision's ``Resize`` does.
    """
    if recipe.resize_short is None and recipe.resize == "stretch":
        return recipe.image_size, recipe.image_size
    short = recipe.resize_short or recipe.image_size
    long = int(short * max(width, height) / min(width, height))
    resized = (short, long) if width >= height else (long, short)
    _checked(resized[1], resized[0], width, height)
    return resized


def _checked(width: int, height: int, original_width: int, original_height: int) -> tuple[int, int]:
    # a frame that came that large is memory already spent; one that would grow to it is refused
    if width * height > max(MAX_PIXELS, original_width * original_height):
        raise DecodeError(
            f"frames of {original_width} x {original_height} pixels would become {width} x {height} with this "
            "recipe's geometry, which is too much"
        )
    return width, height


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
    plan = upscale_plan(frame.shape[1], frame.shape[0], factor)
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
class UpscalePlan:
    left: np.ndarray
    right: np.ndarray
    left_weights: np.ndarray
    right_weights: np.ndarray
    upper: np.ndarray
    lower: np.ndarray
    upper_weights: np.ndarray
    lower_weights: np.ndarray


@functools.lru_cache(maxsize=8)
def upscale_plan(width: int, height: int, factor: float) -> UpscalePlan:
    x, x_fraction = _opencv_coordinates(width, factor)
    # columns left of the first pixel and right of the last take that pixel whole ...
    outside = (x < 0) | (x >= width - 1)
    x = x.clip(0, width - 1)
    x_fraction[outside] = 0
    channels = np.arange(3)
    left = (x[:, None] * 3 + channels).ravel()
    right = (np.minimum(x + 1, width - 1)[:, None] * 3 + channels).ravel()
    # ... whereas rows keep their fraction, and both halves of the sum, cut to integers, take the same row
    y, y_fraction = _opencv_coordinates(height, factor)
    left_weights, right_weights = (np.repeat(weights, 3) for weights in _fixed_point(x_fraction))
    upper_weights, lower_weights = (weights[:, None] for weights in _fixed_point(y_fraction))
    return UpscalePlan(
        left, right, left_weights, right_weights,
        y.clip(0, height - 1), (y + 1).clip(0, height - 1), upper_weights, lower_weights,
    )


def _opencv_coordinates(length: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixel to the left of each output pixel and the float32 fraction of the way to the next one."""
    centres = ((np.arange(round(length * factor)) + 0.5) * (1 / factor) - 0.5).astype(np.float32)
    pixels = np.floor(centres)
    return pixels.astype(np.intp), centres - pixels


def _fixed_point(fraction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the left and the right pixel as OpenCV's integers."""
    left, right = (np.rint(weight * np.float32(_COEFFICIENT)) for weight in (np.float32(1) - fraction, fraction))
    return left.astype(np.int32), right.astype(np.int32)


def bilinear_taps(source: int, resized: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Taps of output pixels ``start`` to ``start + length`` of an axis resized from ``source`` pixels.

    Returns the pixel on either side and the weight of the second, with pixel centres at halves
    (``align_corners=False``) and no antialiasing.
    """
    centres = (np.arange(start, start + length) + 0.5) * (source / resized) - 0.5
    centres = centres.clip(0, source - 1)
    first = centres.astype(np.intp)
    return first, np.minimum(first + 1, source - 1), (centres - first).astype(np.float32)


def _lerp(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """``first + weight * (second - first)``; overwrites both."""
    second -= first
    second *= weight
    first += second
    return first
