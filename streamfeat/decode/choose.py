"""Which decoders a run uses, how many lanes, and why."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from streamfeat.decode.base import DecodeError, Decoder

if TYPE_CHECKING:
    import torch

    from streamfeat.videos import Video

_MAX_CPU_LANES = 4


class Decoders:
    """Picks the decoders for each video, best first.

    Args:
        choice: ``auto`` (DALI on a GPU, PyAV on a CPU), ``dali`` or ``pyav``.
        device: where the frames go.
        videos: how many there are; more lanes than videos would idle.
        lanes: videos decoded side by side; None: chosen here.

    Raises:
        DecodeError: ``dali`` was asked for and does not work here.
    """

    def __init__(self, choice: str, device: torch.device, videos: int, lanes: int | None = None) -> None:
        self._dali: Decoder | None = None
        if choice == "dali" or (choice == "auto" and device.type == "cuda"):
            from streamfeat.decode import dali

            reason = dali.unavailable(device)
            if reason is None:
                self._dali = dali.DaliDecoder(device)
            elif choice == "dali":
                raise DecodeError(f"--decoder dali cannot be used here: {reason}")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        #: videos decoded side by side
        self.lanes = lanes or max(1, min(_MAX_CPU_LANES, cores, videos))
        self._threads = max(1, cores // self.lanes)
        #: for people: what was chosen and why
        if self._dali is not None:
            self.label = "DALI, PyAV where it cannot"
        elif choice == "auto" and device.type == "cuda":
            self.label = f"PyAV ({reason})"
        else:
            self.label = "PyAV"

    def __call__(self, video: Video) -> list[Decoder]:
        if video.kind == "frames":
            from streamfeat.decode.images import ImageDecoder

            return [ImageDecoder()]
        from streamfeat.decode.pyav import PyAVDecoder

        last = PyAVDecoder(threads=self._threads)
        return [last] if self._dali is None else [self._dali, last]
