"""CUDA streams for threads that decode."""

from __future__ import annotations

import contextlib
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: streams that no thread has at present, by device
_free: defaultdict[torch.device, deque[torch.cuda.Stream]] = defaultdict(deque)


@contextlib.contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """On CUDA a stream for this thread, ahead of the model's: what it asks for is little, and others wait for it.

    Another thread has it afterwards. Memory that torch has freed is kept for the stream that it was made on, so new
    streams for every video would each keep some.
    """
    if device.type != "cuda":
        yield
        return
    import torch

    try:
        stream = _free[device].pop()
    except IndexError:
        stream = torch.cuda.Stream(device, priority=-1)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        _free[device].append(stream)
