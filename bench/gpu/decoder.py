"""Decoding alone, beside the peers."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.gpu.stage import CLIP_FRAMES, IMAGE_SIZE, Stage

_OURS = "streamfeat DALI"
_SHARED = "one video, lanes share it"


def decode(stage: Stage) -> None:
    """Decode, resize to 224 x 224 and normalise to float32 on the device, by number of parallel decoders."""
    from streamfeat.decode import dali, nvdec

    device = stage.torch_device()
    engines = (nvdec.engines(0) if stage.on_gpu else None) or 1
    copies = max(count for count, _ in stage.scale.runs)
    without = dali.unavailable(device)
    if without:
        stage.row(side=_OURS, error=without)
    for kind in stage.scale.sizes:
        for lanes in sorted({1, 2, engines, 2 * engines}) if stage.on_gpu else (1, 2):
            sides, length = _decoders(stage, lanes), "long" if lanes == engines else "short"
            if lanes > max(2, engines):  # whether an engine waits while its one pipeline converts colours
                sides, length = {f"{_OURS}, two an engine": sides[_OURS]}, "long"
            for side, make in sides.items():
                if stage.left() < 5:
                    stage.row(video=kind, lanes=lanes, side=side, error="no time left")
                    continue
                with stage.attempt(video=kind, lanes=lanes, side=side):
                    read = make()
                    paths = [stage.path(kind, length, number % copies) for number in range(lanes)]
                    frames, seconds = _read_all(stage, read, paths)
                    stage.row(video=kind, lanes=lanes, side=side, frames=frames, **{"frames/s": frames / seconds})
    for lanes in (1, max(2, engines)):
        with stage.attempt(video="480p", lanes=lanes, side=_SHARED):
            _one_video(stage, stage.path("480p", "short"), lanes)
            frames, seconds = _one_video(stage, stage.path("480p", "long"), lanes)
            stage.row(video="480p", lanes=lanes, side=_SHARED, frames=frames, **{"frames/s": frames / seconds})


def _one_video(stage: Stage, path: Path, lanes: int) -> tuple[int, float]:
    """Frames and seconds of one video that all lanes share, from its opening to its last clip."""
    import threading

    import torch

    from streamfeat.decode.choose import Decoders
    from streamfeat.decode.lanes import Decoded, Ended, Failed, Lanes, Started
    from streamfeat.recipe import Recipe
    from streamfeat.videos import Video

    device, video = stage.torch_device(), Video(path.stem, path)
    decoders = Decoders("dali" if stage.on_gpu else "auto", device, 1, lanes)
    running = Lanes(
        [video], decoders, Recipe(upscale_below=None), device, dtype=torch.float32, lanes=decoders.lanes,
        device_lanes=decoders.device_lanes, sizes={video.name: path.stat().st_size}, depth=4 * lanes,
    )  # fmt: skip
    started, frames = time.perf_counter(), 0
    try:
        for event in running.events(threading.Event()):
            match event:
                case Decoded(clip=clip):
                    running.give_back(clip)
                case Ended(info=info):
                    frames = info.frames
                case Failed(reason=reason) | Started(fallback=str(reason)):
                    raise RuntimeError(reason)
    finally:
        running.close()
    stage.synchronise()
    return frames, time.perf_counter() - started


def _read_all(stage: Stage, read: Callable[[Path], int], paths: Sequence[Path]) -> tuple[int, float]:
    """Frames and seconds of reading all files side by side, after a first one that is not counted."""
    read(stage.path("480p", "short", 0))
    with ThreadPoolExecutor(len(paths)) as pool:
        started = time.perf_counter()
        frames = sum(pool.map(read, paths))
        stage.synchronise()
        return frames, time.perf_counter() - started


def _decoders(stage: Stage, lanes: int) -> dict[str, Callable[[], Callable[[Path], int]]]:
    """Sides that decode this number of files side by side; making one raises where it does not work here."""

    def streamfeat(decoder: Any) -> Callable[[Path], int]:
        from streamfeat.decode.streams import own_stream
        from streamfeat.recipe import Recipe
        from streamfeat.videos import Video

        device, recipe = stage.torch_device(), Recipe(upscale_below=None)

        def read(path: Path) -> int:
            with own_stream(device):
                stream = decoder.open(Video(path.stem, path), recipe, device)
                try:
                    return sum(len(frames) for frames in stream)
                finally:
                    stream.close()

        return read

    def dali() -> Callable[[Path], int]:
        from streamfeat.decode import dali

        if reason := dali.unavailable(stage.torch_device()):
            raise RuntimeError(reason)
        return streamfeat(dali.DaliDecoder(stage.torch_device()))

    def pyav() -> Callable[[Path], int]:
        from streamfeat.decode.pyav import PyAVDecoder

        return streamfeat(PyAVDecoder(threads=max(1, (os.cpu_count() or 1) // lanes)))

    def normalised(frames: Any) -> int:
        """The peers' frames, uint8 ``(n, 3, h, w)``, to what streamfeat gives."""
        from torch.nn.functional import interpolate

        return len(interpolate(frames.float(), size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear").div_(127.5).sub_(1))

    def torchcodec(backend: str | None) -> Callable[[Path], int]:
        from torchcodec import decoders

        def read(path: Path) -> int:
            chosen = decoders.set_cuda_backend(backend) if backend else contextlib.nullcontext()
            with chosen:
                decoder = decoders.VideoDecoder(
                    str(path), device="cuda" if stage.on_gpu else "cpu", seek_mode="approximate"
                )
            total = 0
            for start in range(0, len(decoder), CLIP_FRAMES):
                stop = min(start + CLIP_FRAMES, len(decoder))
                total += normalised(decoder.get_frames_in_range(start, stop).data)
            return total

        return read

    def pynvvideocodec() -> Callable[[Path], int]:
        import PyNvVideoCodec as nvc
        import torch

        def read(path: Path) -> int:
            decoder = nvc.SimpleDecoder(
                str(path), gpu_id=0, use_device_memory=True, output_color_type=nvc.OutputColorType.RGB
            )
            total = 0
            while total < len(decoder):
                batch = decoder.get_batch_frames(min(CLIP_FRAMES, len(decoder) - total))
                if not batch:
                    break
                total += normalised(torch.stack([torch.from_dlpack(frame) for frame in batch]).permute(0, 3, 1, 2))
            return total

        return read

    sides: dict[str, Callable[[], Callable[[Path], int]]] = {"streamfeat PyAV": pyav}
    if stage.on_gpu:
        sides = {
            _OURS: dali, "PyNvVideoCodec": pynvvideocodec, "torchcodec": lambda: torchcodec(None),
            "torchcodec beta": lambda: torchcodec("beta"), "streamfeat PyAV": pyav,
        }  # fmt: skip
    return sides
