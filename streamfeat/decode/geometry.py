"""The geometry of a recipe: the sizes that frames go through, and the pixels that each pixel of the result is made of.

Taps are of one axis of one channel. Whoever applies them (``preprocess`` to rows of interleaved bytes on the CPU,
``preprocess_cuda`` to planes on a device) puts them into its own order of memory and nothing else, so that all of them
give the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from streamfeat.decode.base import DecodeError

if TYPE_CHECKING:
    from streamfeat.recipe import Recipe

#: Pixels of a frame after scaling up or bringing its short side to a length: room for 8K, none for a strip
#: of pixels that the upscaling rule would blow up to gigabytes.
MAX_PIXELS = 2**25

#: OpenCV's INTER_RESIZE_COEF_BITS: fractional bits of the weights of its uint8 bilinear resize.
_COEFFICIENT = 1 << 11


# sizes --------------------------------------------------------------------------------------------------------------


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


# resizing -----------------------------------------------------------------------------------------------------------


class Taps(NamedTuple):
    """Of each output pixel along an axis: ``first + weight * (second - first)``.

    ``first`` and ``second`` are indices of pixels, intp; ``weight`` is float32. All ``(length,)``.
    """

    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray


def resize_taps(recipe: Recipe, size: tuple[int, int], width: int, height: int) -> tuple[Taps, Taps]:
    """Taps of the rows and of the columns of a result of ``size`` (height, width).

    They are of frames of ``width`` x ``height`` pixels after their scaling up, if any. A recipe with several crops
    brings every frame to ``size``, others cut it from the middle. Raises DecodeError as ``frame_size`` does.
    """
    width, height = upscaled_size(recipe, width, height)
    resized = resized_size(recipe, width, height)
    if recipe.crops > 1:
        resized = size
    rows, columns = (
        _bilinear_taps(source, full, round((full - kept) / 2), kept)
        for source, full, kept in zip((height, width), resized, size, strict=True)
    )
    return rows, columns


def _bilinear_taps(source: int, resized: int, start: int, length: int) -> Taps:
    """Of output pixels ``start`` to ``start + length`` of an axis resized from ``source`` pixels.

    Pixel centres are at halves (``align_corners=False``), and there is no antialiasing.
    """
    centres = (np.arange(start, start + length) + 0.5) * (source / resized) - 0.5
    centres = centres.clip(0, source - 1)
    first = centres.astype(np.intp)
    return Taps(first, np.minimum(first + 1, source - 1), (centres - first).astype(np.float32))


# scaling up on bytes ------------------------------------------------------------------------------------------------


class FixedPointTaps(NamedTuple):
    """As ``Taps``, with OpenCV's integer weights of both pixels, int32."""

    first: np.ndarray
    second: np.ndarray
    first_weight: np.ndarray
    second_weight: np.ndarray


def upscale_taps(width: int, height: int, factor: float) -> tuple[FixedPointTaps, FixedPointTaps]:
    """Taps of the rows and of the columns of ``cv2.resize(frame, (0, 0), fx=factor, fy=factor)`` on bytes."""
    x, x_fraction = _opencv_coordinates(width, factor)
    # columns left of the first pixel and right of the last take that pixel whole ...
    outside = (x < 0) | (x >= width - 1)
    x = x.clip(0, width - 1)
    x_fraction[outside] = 0
    columns = FixedPointTaps(x, np.minimum(x + 1, width - 1), *_fixed_point(x_fraction))
    # ... whereas rows keep their fraction, and both halves of the sum, cut to integers, take the same row
    y, y_fraction = _opencv_coordinates(height, factor)
    rows = FixedPointTaps(y.clip(0, height - 1), (y + 1).clip(0, height - 1), *_fixed_point(y_fraction))
    return rows, columns


def _opencv_coordinates(length: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixel to the left of each output pixel and the float32 fraction of the way to the next one."""
    centres = ((np.arange(round(length * factor)) + 0.5) * (1 / factor) - 0.5).astype(np.float32)
    pixels = np.floor(centres)
    return pixels.astype(np.intp), centres - pixels


def _fixed_point(fraction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the left and the right pixel as OpenCV's integers."""
    left, right = (np.rint(weight * np.float32(_COEFFICIENT)) for weight in (np.float32(1) - fraction, fraction))
    return left.astype(np.int32), right.astype(np.int32)
