"""Which decoders a run uses, how many lanes, and why."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from streamfeat.decode.base import DecodeError, Decoder

if TYPE_CHECKING:
    import torch

    from streamfeat.videos import Video

#: beside a model on the same cores, and beside one on a GPU
_MAX_CPU_LANES = 4
_MAX_CPU_LANES_BESIDE_GPU = 16
#: lanes on a GPU whose driver does not say how many NVDEC engines it has; most data centre GPUs have more
_UNKNOWN_ENGINES = 2


class Decoders:
    """Picks the decoders for each video, best first, and how many videos are decoded side by side.

    Args:
        choice: ``auto`` (DALI on a GPU, PyAV on a CPU), ``dali`` or ``pyav``.
        device: where the frames go.
        videos: how many there are; more lanes than videos would idle, except DALI's.
        lanes: videos decoded side by side by the first of the decoders; None: on a GPU as many as it has NVDEC
            engines, on a CPU as many as cores, up to a few.

    Attributes:
        lanes: for PyAV and frame folders: all videos, or, beside DALI, those that it cannot do.
        device_lanes: for DALI; 0 without it.

    Raises:
        DecodeError: ``dali`` was asked for and does not work here.
    """

    def __init__(self, choice: str, device: torch.device, videos: int, lanes: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._dali: Decoder | None = None
        not_dali = ""
        if choice == "dali" or (choice == "auto" and device.type == "cuda"):
            from streamfeat.decode import dali

            reason = dali.unavailable(device)
            if reason is None:
                self._dali = dali.DaliDecoder(device)
            elif choice == "dali":
                raise DecodeError(f"--decoder dali cannot be used here: {reason}")
            else:
                not_dali = f" (no DALI: {reason})"
        on_cpu = min(cores, _MAX_CPU_LANES_BESIDE_GPU if device.type == "cuda" else _MAX_CPU_LANES)
        most, why = on_cpu, f"for {cores} core{'s' * (cores != 1)}"
        if self._dali is not None and device.type == "cuda":
            most, why = _engines(device)
        if lanes:
            chosen, why = lanes, "asked for"
        elif videos < most and self._dali is None:  # DALI's lanes share a video
            chosen, why = max(1, videos), "as many as videos"
        else:
            chosen = most
        if self._dali is None:
            self.lanes, self.device_lanes = chosen, 0
            #: for people: what decodes, in how many lanes, and why
            self.label = f"PyAV{not_dali} in {_lanes(chosen)} ({why})"
        else:
            self.lanes, self.device_lanes = max(1, min(on_cpu, videos)), chosen
            where = "NVDEC" if device.type == "cuda" else "on the CPU"
            self.label = f"DALI ({where}) in {_lanes(chosen)} ({why}), what it cannot by PyAV in {_lanes(self.lanes)}"
        self._threads = max(1, cores // self.lanes)

    def __call__(self, video: Video) -> list[Decoder]:
        if video.kind == "frames":
            from streamfeat.decode.images import ImageDecoder

            return [ImageDecoder()]
        from streamfeat.decode.pyav import PyAVDecoder

        last = PyAVDecoder(threads=self._threads)
        return [last] if self._dali is None else [self._dali, last]


def _engines(device: torch.device) -> tuple[int, str]:
    """Lanes that keep all NVDEC engines of a GPU busy, and why so many."""
    from streamfeat.decode import nvdec

    engines = nvdec.engines(device.index or 0)
    return (engines, "one for each NVDEC engine") if engines else (_UNKNOWN_ENGINES, "NVDEC engines unknown")


def _lanes(count: int) -> str:
    return f"{count} lane{'s' * (count != 1)}"
