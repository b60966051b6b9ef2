"""Memory of the device, a minute of video against an hour."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from bench.gpu.child import run_child
from bench.gpu.runs import whole_run
from bench.gpu.stage import QUICK, TINY, Stage


def memory(stage: Stage) -> None:
    """Most memory of the device that a whole run takes, a minute of video against an hour: each in its own process."""
    for name in ("minute", "hour"):
        with stage.attempt(video=name):
            frames, taken = _apart(stage, f"memory-{name}")
            stage.row(video=name, frames=frames, GiB=taken / 2**30)


def memory_of(stage: Stage, name: str) -> None:
    """In a process of its own: the most memory that a run on one video takes beyond what was taken before."""
    used = _device_bytes(stage)
    before, most, over = used(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.02):
            most = max(most, used())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        taken, _ = whole_run(stage, [stage.folder / f"{name}.mp4"], stage.scale.models[1])
    finally:
        over.set()
        watcher.join()
    stage.row(frames=taken["frames"], bytes=max(most, used()) - before)


def _device_bytes(stage: Stage) -> Callable[[], int]:
    if not stage.on_gpu:
        return lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    import torch

    def used() -> int:
        free, total = torch.cuda.mem_get_info()
        return total - free

    return used


def _apart(stage: Stage, name: str) -> tuple[int, int]:
    if stage.scale is TINY:
        memory_of(Stage(name, stage.folder, stage.device, stage.scale, stage.left(), []), name)
    else:
        run_child(name, stage.folder, stage.device, stage.scale is QUICK, stage.left(), [])
    (row,) = stage.rows_of(name)
    return row["frames"], row["bytes"]
