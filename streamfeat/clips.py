"""Windows over a stream of frames, their crops, and batches that clips of different videos share."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from streamfeat.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Clip:
    #: index of the clip's first frame in its video
    start_frame: int
    #: (crops, 3, frames, image_size, image_size): views that share one storage where they can
    samples: tuple[torch.Tensor, ...]


class ClipWindow:
    """Cuts one video's frames into clips, each frame taken in once however much clips overlap.

    Holds the frames that a clip still needs and no more.

    Args:
        recipe: decides length, stride and step of clips, what happens to the tail, and the crops.
        dtype: what the clips are handed out in.
    """

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        self._recipe = recipe
        self._dtype = dtype
        self._held: deque[torch.Tensor] = deque()
        self._first_held = 0
        self._clips = 0
        #: frames seen so far
        self.frames = 0

    def push(self, frames: torch.Tensor) -> Iterator[Clip]:
        """Take in the next frames, ``(n, 3, H, W)``; yields each clip that they complete."""
        for frame in frames:
            if self.frames >= self._next_start:
                if not self._held:
                    self._first_held = self.frames
                self._held.append(frame)
            self.frames += 1
            if self.frames == self._next_start + self._recipe.clip_span:
                yield self._cut()

    def finish(self) -> Iterator[Clip]:
        """The video has ended: yields the padded last clip where the recipe asks for one."""
        if self._clips < self._recipe.count_clips(self.frames):
            yield self._cut()
        self._held.clear()

    @property
    def _next_start(self) -> int:
        return self._clips * self._recipe.clip_stride

    def _cut(self) -> Clip:
        start, recipe = self._next_start, self._recipe
        offset, last = start - self._first_held, len(self._held) - 1
        wanted = (offset + k * recipe.frame_step for k in range(recipe.clip_frames))
        stacked = torch.stack([self._held[min(index, last)] for index in wanted], dim=1)
        self._clips += 1
        while self._held and self._first_held < self._next_start:
            self._held.popleft()
            self._first_held += 1
        return Clip(start, crop(stacked.to(self._dtype), recipe.image_size, recipe.crops))


def crop(clip: torch.Tensor, size: int, crops: int) -> tuple[torch.Tensor, ...]:
    """The crops of a clip ``(3, T, H, W)``, each ``(3, T, size, size)``.

    One crop is the centre. Five are top left, top right, bottom left, bottom right, centre; ten are those
    five and then the five of the mirrored clip: the order of torchvision's ``FiveCrop`` and ``TenCrop``.
    """
    height, width = clip.shape[-2:]
    # torchvision's center_crop rounds the offsets like this
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    centre = (top, left)
    corners = [(0, 0), (0, width - size), (height - size, 0), (height - size, width - size)]
    corners = [centre] if crops == 1 else [*corners, centre]
    whole = (clip,) if crops != 10 else (clip, clip.flip(-1))
    return tuple(image[..., y : y + size, x : x + size] for image in whole for y, x in corners)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Samples that go through the model together, and whose they are."""

    samples: torch.Tensor  # (n, 3, T, H, W)
    #: owner and first frame of each sample
    keys: tuple[tuple[Hashable, int], ...]


class Batcher:
    """Collects samples of whatever video comes next into batches of one size.

    A key says which video a sample belongs to; ``forget`` drops what is pending of one.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._pending: list[tuple[Hashable, int, torch.Tensor]] = []

    def add(self, key: Hashable, clip: Clip) -> Iterator[Batch]:
        """Take in a clip; yields each batch that it fills."""
        for sample in clip.samples:
            self._pending.append((key, clip.start_frame, sample))
            if len(self._pending) == self._batch_size:
                yield self._take()

    def rest(self) -> Iterator[Batch]:
        """The last, smaller batch, if anything is pending."""
        if self._pending:
            yield self._take()

    def pending(self, key: Hashable) -> bool:
        return any(owner == key for owner, _, _ in self._pending)

    def forget(self, key: Hashable) -> None:
        self._pending = [entry for entry in self._pending if entry[0] != key]

    def _take(self) -> Batch:
        taken, self._pending = self._pending, []
        return Batch(
            torch.stack([sample for _, _, sample in taken]),
            tuple((key, start) for key, start, _ in taken),
        )
