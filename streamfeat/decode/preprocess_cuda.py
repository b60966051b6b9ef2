"""The geometry of ``preprocess`` on the device that the model is on, for frames that a CPU decoded.

Bytes are a quarter of floats to upload where frames are about as large as clips, and resizing costs a CPU as much as
decoding small videos does. The operations are those of ``preprocess`` in the same order, one rounding each, so the
results are the same to the last bit; that is tested on torch's CPU device.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from streamfeat.decode.base import MAX_CHUNK_BYTES, MAX_CHUNK_FRAMES
from streamfeat.decode.geometry import resize_taps, upscale_factor, upscale_taps
from streamfeat.decode.preprocess import normalisation

if TYPE_CHECKING:
    from streamfeat.recipe import Recipe


class DevicePreprocessor:
    """Uploads frames as they are, several in one asynchronous copy, and preprocesses them there.

    Args:
        recipe: decides geometry, channel order and normalisation.
        size: height and width of what comes out.
        channels: for each channel of the result, which one of a frame it is.
        device: where the frames go.
    """

    def __init__(self, recipe: Recipe, size: tuple[int, int], channels: np.ndarray, device: torch.device) -> None:
        self._recipe, self._size, self._device = recipe, size, device
        self._channels = self._on_device(channels)
        self._scale, self._shift = (self._on_device(part)[:, None, None] for part in normalisation(recipe))
        self._resize_taps = functools.lru_cache(maxsize=4)(self._make_resize_taps)
        self._upscale_taps = functools.lru_cache(maxsize=4)(self._make_upscale_taps)

    def chunks(self, frames: Iterable[np.ndarray]) -> Iterator[torch.Tensor]:
        """The frames, uint8 ``(h, w, 3)`` each, as chunks ``(n, 3, H, W)``, float32."""
        chunk, filled = None, 0
        for frame in frames:
            if chunk is not None and chunk.shape[1:] != frame.shape:
                yield self._process(chunk[:filled])
                chunk = None
            if chunk is None:
                largest = max(frame.nbytes, 4 * 3 * self._size[0] * self._size[1])
                most = max(1, min(MAX_CHUNK_FRAMES, MAX_CHUNK_BYTES // largest))
                chunk = torch.empty(most, *frame.shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
                filled = 0
            chunk[filled].numpy()[:] = frame
            filled += 1
            if filled == len(chunk):
                yield self._process(chunk)
                chunk = None
        if chunk is not None:
            yield self._process(chunk[:filled])

    def _process(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 ``(n, h, w, 3)`` on the host to float32 ``(n, 3, H, W)`` on the device."""
        height, width = frames.shape[1:3]
        frames = frames.to(self._device, non_blocking=True).index_select(3, self._channels).permute(0, 3, 1, 2)
        factor = upscale_factor(self._recipe, width, height)
        if factor is not None:
            frames = self._upscale(frames, factor)
        (upper, lower, y_weights), (left, right, x_weights) = self._resize_taps(width, height)
        across = [
            _lerp(rows.index_select(3, left).float(), rows.index_select(3, right).float(), x_weights)
            for rows in (frames.index_select(2, upper), frames.index_select(2, lower))
        ]
        return _lerp(*across, y_weights[:, None]).mul_(self._scale).add_(self._shift)

    def _upscale(self, frames: torch.Tensor, factor: float) -> torch.Tensor:
        """``upscale_bytes`` on uint8 ``(n, 3, h, w)``."""
        (upper, lower, upper_weights, lower_weights), (left, right, left_weights, right_weights) = self._upscale_taps(
            frames.shape[3], frames.shape[2], factor
        )
        across = frames.index_select(3, left).int() * left_weights
        across += frames.index_select(3, right).int() * right_weights
        across >>= 4
        above = (across.index_select(2, upper) * upper_weights[:, None]) >> 16
        below = (across.index_select(2, lower) * lower_weights[:, None]) >> 16
        return ((above + below + 2) >> 2).to(torch.uint8)

    def _make_resize_taps(self, width: int, height: int) -> list[tuple[torch.Tensor, ...]]:
        return [tuple(map(self._on_device, taps)) for taps in resize_taps(self._recipe, self._size, width, height)]

    def _make_upscale_taps(self, width: int, height: int, factor: float) -> list[tuple[torch.Tensor, ...]]:
        return [tuple(map(self._on_device, taps)) for taps in upscale_taps(width, height, factor)]

    def _on_device(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device)


def _lerp(first: torch.Tensor, second: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``first + weight * (second - first)``, each step rounded; overwrites both."""
    return first.add_(second.sub_(first).mul_(weight))
