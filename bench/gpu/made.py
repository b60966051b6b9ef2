"""What is measured on: made videos and random weights."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

from bench.gpu.stage import Stage


def media(stage: Stage) -> None:
    """The videos: H.264, a scene coded once and repeated. And the weights, random but spread."""
    from bench.media import encode, made_pictures, repeat
    from bench.published import write_checkpoint

    scale = stage.scale
    (stage.folder / "videos").mkdir(exist_ok=True)
    copies = max(count for count, _ in scale.runs)
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write_checkpoint, name, stage.weights(name)) for name in sorted(set(scale.models))]
        for kind, size in scale.sizes.items():
            started = time.perf_counter()
            base = encode(made_pictures(size, scale.base_frames), stage.folder / f"{kind}.mp4", "h264")
            for length, times in scale.lengths.items():
                first = repeat(base, stage.path(kind, length), times)
                for number in range(1, copies):
                    os.link(first, stage.path(kind, length, number))
            stage.row(made=kind, width=size[0], height=size[1], seconds=time.perf_counter() - started)
        shown = made_pictures(scale.sizes["480p"], scale.base_frames)
        for name, full_range in (("limited", False), ("full", True)):
            encode(shown, stage.folder / f"range-{name}.mp4", "h264", full_range=full_range)
        small = encode(made_pictures((320, 240), scale.base_frames), stage.folder / "small.mp4", "h264")
        for name, frames in (("minute", scale.minute), ("hour", scale.long)):
            repeat(small, stage.folder / f"memory-{name}.mp4", max(1, frames // scale.base_frames))
        for written in writing:
            written.result()
