"""Windows over a stream of frames, their crops, and batches that clips of different videos share."""

from __future__ import annotations

import dataclasses
import math
import queue
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from streamfeat.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Clip:
    #: index of the clip's first frame in its video
    start_frame: int
    #: (3, frames, H, W): whole frames, of which ``crop`` cuts what the model sees
    frames: torch.Tensor
    #: on CUDA: the frames are there for a stream that waits for this
    ready: torch.cuda.Event | None = None


def mark(device: torch.device) -> torch.cuda.Event | None:
    """On CUDA an event after all that this thread's current stream was asked for; None on a CPU, where it is done."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


class ClipBuffers:
    """A fixed number of clips' memory that goes round between those who cut clips and those who use them.

    This bounds what clips in flight can take. On CUDA they may do so on streams of their own: whoever takes memory
    waits, on the device, for what was asked of it before it was given back. Memory that stays also keeps the process
    small: blocks of a clip's size that one thread allocates and another frees leave the C allocator's heaps in holes,
    which on a long video doubled the memory of the process.

    Args:
        count: clips in flight at most.
        dtype: of the clips.
        device: where they are.
    """

    def __init__(self, count: int, dtype: torch.dtype, device: torch.device) -> None:
        self._free: queue.SimpleQueue[tuple[torch.Tensor, torch.cuda.Event | None]] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put((torch.empty(0, dtype=dtype, device=device), None))

    def take(self, shape: tuple[int, ...], timeout: float | None = None) -> torch.Tensor:
        """Uninitialised memory of ``shape``. Raises ``queue.Empty`` if none was given back within ``timeout``."""
        (memory, used), wanted = self._free.get(timeout=timeout), math.prod(shape)
        if used is not None:
            used.wait()
        if memory.numel() < wanted:
            if used is not None:
                used.synchronize()  # torch hands freed memory on without asking streams that did not allocate it
            memory = torch.empty(wanted, dtype=memory.dtype, device=memory.device)
        return memory[:wanted].view(shape)

    def give_back(self, clip: torch.Tensor) -> None:
        """``clip``, which ``take`` returned, is not used any more."""
        whole = clip.new_empty(0).set_(clip.untyped_storage())
        self._free.put((whole, mark(clip.device)))


class ClipWindow:
    """Cuts one video's frames into clips, each frame taken in once however much clips overlap.

    Holds the frames that a clip still needs and no more.

    Args:
        recipe: decides length, stride and step of clips, and what happens to the tail.
        allocate: gives the memory for a clip of a shape; its dtype becomes the clip's.
        first_frame: of a part of a video: where its first clip begins.
    """

    def __init__(
        self, recipe: Recipe, allocate: Callable[[tuple[int, ...]], torch.Tensor], first_frame: int = 0
    ) -> None:
        self._recipe = recipe
        self._allocate = allocate
        #: chunks of frames, and the index of the first frame of each
        self._held: deque[tuple[int, torch.Tensor]] = deque()
        self._clips = first_frame // recipe.clip_stride
        #: of the video, up to the last one seen
        self.frames = first_frame

    def push(self, frames: torch.Tensor) -> Iterator[Clip]:
        """Take in the next frames, ``(n, 3, H, W)``; yields each clip that they complete."""
        self._held.append((self.frames, frames))
        self.frames += len(frames)
        while self.frames >= self._next_start + self._recipe.clip_span:
            yield self._cut()
        self._let_go()

    def finish(self) -> Iterator[Clip]:
        """The video has ended: yields the padded last clip where the recipe asks for one."""
        if self._clips < self._recipe.count_clips(self.frames):
            yield self._cut()
        self._held.clear()

    @property
    def _next_start(self) -> int:
        return self._clips * self._recipe.clip_stride

    def _cut(self) -> Clip:
        start, step, wanted = self._next_start, self._recipe.frame_step, self._recipe.clip_frames
        clip = self._allocate((self._held[0][1].shape[1], wanted, *self._held[0][1].shape[2:]))
        filled = 0
        # all frames that a chunk gives at once: on a GPU each copy costs a call, whatever its size
        for first, chunk in self._held:
            offset = start + filled * step - first
            count = min(wanted - filled, len(range(offset, len(chunk), step)))
            if count > 0:
                part = chunk[offset : offset + (count - 1) * step + 1 : step]
                clip[:, filled : filled + count].copy_(part.transpose(0, 1))
                filled += count
        if filled < wanted:
            clip[:, filled:].copy_(self._held[-1][1][-1][:, None])
        self._clips += 1
        self._let_go()
        return Clip(start, clip, mark(clip.device))

    def _let_go(self) -> None:
        """Of what no clip needs any more."""
        while self._held and self._held[0][0] + len(self._held[0][1]) <= self._next_start:
            self._held.popleft()


def crop(clip: torch.Tensor, size: int, crops: int) -> Iterator[torch.Tensor]:
    """The crops of a clip ``(3, T, H, W)``, each ``(3, T, size, size)``; views, where they are not mirrored.

    One crop is the centre. Five are top left, top right, bottom left, bottom right, centre; ten are those
    five and then the five of the mirrored clip: the order of torchvision's ``FiveCrop`` and ``TenCrop``.
    """
    height, width = clip.shape[-2:]
    # torchvision's center_crop rounds the offsets like this
    centre = round((height - size) / 2.0), round((width - size) / 2.0)
    places = [(0, 0), (0, width - size), (height - size, 0), (height - size, width - size), centre]
    for top, left in [centre] if crops == 1 else places:
        yield clip[..., top : top + size, left : left + size]
    if crops == 10:
        for top, left in places:
            right = width - left
            yield clip[..., top : top + size, right - size : right].flip(-1)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Samples that go through the model together, and whose they are."""

    #: (n, 3, T, H, W); the batcher's own memory, used again ``buffers`` batches later
    samples: torch.Tensor
    #: owner and first frame of each sample
    keys: tuple[tuple[Hashable, int], ...]


class Batcher:
    """Copies samples of whatever video comes next into batches of one size.

    A key says which video a sample belongs to; ``forget`` drops what is pending of one.

    Args:
        batch_size: samples in a batch.
        image_size: pixels, height and width of a sample.
        crops: samples that a clip gives.
        buffers: batches that have memory of their own: with one, a batch must be used before anything more is added.
    """

    def __init__(self, batch_size: int, image_size: int, crops: int, buffers: int = 1) -> None:
        self._batch_size, self._image_size, self._crops = batch_size, image_size, crops
        self._memory: deque[torch.Tensor | None] = deque([None] * buffers)
        self._keys: list[tuple[Hashable, int]] = []

    def add(self, key: Hashable, clip: Clip) -> Iterator[Batch]:
        """Take in a clip, whose memory is free again when this ends; yields each batch that it fills.

        Raises MemoryError where a batch does not fit.
        """
        if clip.ready is not None:
            clip.ready.wait()
        for sample in crop(clip.frames, self._image_size, self._crops):
            if self._memory[0] is None:
                self._memory[0] = self._empty(sample)
            self._memory[0][len(self._keys)].copy_(sample)
            self._keys.append((key, clip.start_frame))
            if len(self._keys) == self._batch_size:
                yield self._take()

    def _empty(self, sample: torch.Tensor) -> torch.Tensor:
        """Memory for a batch of samples like this one."""
        try:
            return sample.new_empty(self._batch_size, *sample.shape)
        except RuntimeError as error:  # torch's way of saying so
            raise MemoryError(f"there is none for a batch of {self._batch_size}") from error

    def rest(self) -> Iterator[Batch]:
        """The last, smaller batch, if anything is pending."""
        if self._keys:
            yield self._take()

    def pending(self, key: Hashable) -> bool:
        return any(owner == key for owner, _ in self._keys)

    def forget(self, key: Hashable) -> None:
        kept = [index for index, (owner, _) in enumerate(self._keys) if owner != key]
        for place, index in enumerate(kept):
            if place != index:
                self._memory[0][place].copy_(self._memory[0][index])
        self._keys = [self._keys[index] for index in kept]

    def _take(self) -> Batch:
        keys, self._keys = tuple(self._keys), []
        samples = self._memory[0][: len(keys)]
        self._memory.rotate(-1)
        return Batch(samples, keys)
