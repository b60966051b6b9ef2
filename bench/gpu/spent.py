"""Where the time of a whole run goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

from bench.gpu.runs import whole_run
from bench.gpu.stage import Stage

#: names of kernels -> what they do; the first that fits counts
KERNELS = (
    ("attention", ("flash", "fmha", "sdpa", "attention", "sdp")),
    ("matrix products", ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitk", "s16816", "wgmma")),
    ("decode: colours", ("yuv", "nv12", "convert_frame", "convertframe", "color")),
    ("resize", ("resampl", "resize")),
    ("normalise", ("slice", "crop", "normalize_permute", "sliceflip", "hwc")),
    ("copy back", ("memcpy dtoh", "device -> pageable", "device -> pinned", "dtoh")),
    ("upload", ("memcpy htod", "htod")),
    ("copies on the device", ("memcpy dtod", "dtod", "copy", "memset", "cat")),
    ("norm", ("layer_norm", "layernorm")),
    ("element by element", ("elementwise", "gelu", "triton", "vectorized", "reduce")),
)


def stages(stage: Stage) -> None:
    """Where the time of a whole run goes: kernels by what they do, and what the threads wait for."""
    from torch.profiler import ProfilerActivity, profile

    from streamfeat.decode.lanes import Lanes
    from streamfeat.model.encoder import Pending
    from streamfeat.store import StoreWriter

    for model in dict.fromkeys(stage.scale.models[::-1]):
        if stage.left() < 10 and stage.on_gpu:
            stage.row(model=model, error="no time left")
            continue
        with stage.attempt(model=model):
            waited: dict[str, float] = {"wait for clips": 0.0, "wait for features": 0.0, "write": 0.0}
            with (
                _timed_iterator(Lanes, "events", waited, "wait for clips"),
                _timed(Pending, "result", waited, "wait for features"),
                _timed(StoreWriter, "commit", waited, "write"),
            ):
                activities = [ProfilerActivity.CUDA] if stage.on_gpu else [ProfilerActivity.CPU]
                with profile(activities=activities) as watched:
                    taken, _ = whole_run(stage, [stage.path("480p", "short", n) for n in (0, 1)], model)
            seconds = taken["seconds"]
            spent: dict[str, float] = {}
            for event in watched.key_averages():
                took = getattr(event, "self_device_time_total" if stage.on_gpu else "self_cpu_time_total", 0) / 1e6
                name = event.key.lower()
                kind = next((kind for kind, parts in KERNELS if any(part in name for part in parts)), "other")
                spent[kind] = spent.get(kind, 0.0) + took
            for kind, took in sorted(spent.items(), key=lambda item: -item[1]):
                stage.row(model=model, stage=kind, where="device", seconds=took, share=took / seconds)
            for kind, took in waited.items():
                stage.row(model=model, stage=kind, where="host", seconds=took, share=took / seconds)
            stage.row(model=model, stage="whole run", where="", seconds=seconds, share=1.0)


@contextlib.contextmanager
def _timed(owner: type, name: str, waited: dict[str, float], key: str) -> Iterator[None]:
    """Add what calls of a method take to ``waited``."""
    method = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return method(*arguments, **options)
        finally:
            waited[key] += time.perf_counter() - started

    with mock.patch.object(owner, name, timed):
        yield


@contextlib.contextmanager
def _timed_iterator(owner: type, name: str, waited: dict[str, float], key: str) -> Iterator[None]:
    """Add what waiting for each thing that a method yields takes to ``waited``."""
    method = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Iterator[Any]:
        found = method(*arguments, **options)
        while True:
            started = time.perf_counter()
            thing = next(found, None)
            waited[key] += time.perf_counter() - started
            if thing is None:
                return
            yield thing

    with mock.patch.object(owner, name, timed):
        yield
