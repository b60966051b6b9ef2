"""CUDA streams for threads that decode."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def own_stream(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """On CUDA a stream for this thread, ahead of the model's: what it asks for is little, and others wait for it."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    import torch

    return torch.cuda.stream(torch.cuda.Stream(device, priority=-1))
