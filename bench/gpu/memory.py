"""Memory of the device, videos of a minute against one of an hour.

As many minutes as keep all lanes at work, as the hour does, which they share: what is compared is length.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from bench.gpu.child import run_child
from bench.gpu.runs import whole_run
from bench.gpu.stage import QUICK, TINY, Row, Stage
from streamfeat.decode import nvdec

MINUTE = "memory-minute"


def memory(stage: Stage) -> None:
    """Most memory of the device that a whole run takes, by length of its videos: each in its own process."""
    for name in ("minute", "hour"):
        with stage.attempt(video=name):
            row = _apart(stage, f"memory-{name}")
            stage.row(video=name, videos=row["videos"], frames=row["frames"], GiB=row["bytes"] / 2**30)


def memory_of(stage: Stage, name: str) -> None:
    """In a process of its own: the most memory that a run takes beyond what was taken before."""
    used, videos = _device_bytes(stage), [stage.folder / f"{name}.mp4"]
    if name == MINUTE:
        engines = (nvdec.engines(0) if stage.on_gpu else None) or 1
        videos += [videos[0].with_stem(f"{name}-{number}") for number in range(1, 2 * engines)]
        for copy in videos[1:]:
            os.link(videos[0], copy)
    before, most, over = used(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.02):
            most = max(most, used())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        taken, _ = whole_run(stage, videos, stage.scale.models[1])
    finally:
        over.set()
        watcher.join()
    stage.row(videos=len(videos), frames=taken["frames"], bytes=max(most, used()) - before)


def _device_bytes(stage: Stage) -> Callable[[], int]:
    if not stage.on_gpu:
        return lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    import torch

    def used() -> int:
        free, total = torch.cuda.mem_get_info()
        return total - free

    return used


def _apart(stage: Stage, name: str) -> Row:
    if stage.scale is TINY:
        memory_of(Stage(name, stage.folder, stage.device, stage.scale, stage.left(), []), name)
    else:
        run_child(name, stage.folder, stage.device, stage.scale is QUICK, stage.left(), [])
    (row,) = stage.rows_of(name)
    return row
