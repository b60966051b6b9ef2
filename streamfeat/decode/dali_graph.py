"""DALI's graph: decodes, resizes and normalises what a list of files says."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamfeat.decode import geometry
from streamfeat.decode.base import MAX_CHUNK_BYTES, MAX_CHUNK_FRAMES, StreamInfo, frames_per_chunk

if TYPE_CHECKING:
    import torch

    from streamfeat.recipe import Recipe

#: Bytes of decoded RGB in one sequence, before resizing. A few are in flight in each pipeline (DALI reads one ahead),
#: and beside them NVDEC's surfaces, 20 frames or fewer of 1.5 bytes a pixel, and as many resized sequences of
#: base.MAX_CHUNK_BYTES. None of it depends on the length of the video.
MAX_SEQUENCE_BYTES = 128 * 2**20


def graph(recipe: Recipe | None, device: torch.device, info: StreamInfo) -> Callable[[Path], Any]:
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
