"""Whether another decoder's pictures are PyAV's: a look at the first frames, before all of them are believed.

Frame numbers do not show that frames are out of order, that they hold whatever was in memory, or that a range of
colours was taken for another. Pictures do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from streamfeat.decode.base import FallBack
from streamfeat.decode.preprocess import Preprocessor

if TYPE_CHECKING:
    from streamfeat.recipe import Recipe

#: pixels, height and width that pictures are averaged down to: neither noise nor other interpolation is left
_SIDE = 32
#: of the pixels that make one, taken at equal distances, in each direction: of a large picture not all are needed
_SAMPLES = 8
#: Mean distance in grey levels of the same frame by both. Other rounding and chroma make 1 at most, a limited range of
#: colours that is taken for a full one makes about 9 where all levels occur alike.
_FARTHEST = 6.0
#: how much nearer another frame may be than the same: that many times, and that many grey levels
_NEARER, _SLACK = 2.0, 1.0


class FirstFrames:
    """The first frames of a video, or of a part of it, as PyAV has them.

    Args:
        pictures: as displayed, uint8 BGR ``(h, w, 3)``.
        recipe: as for the decoder to compare with; None: frames as they are, uint8 RGB.
    """

    def __init__(self, pictures: list[np.ndarray], recipe: Recipe | None) -> None:
        if not pictures:
            raise FallBack("PyAV finds no frame in it")
        if recipe is None:
            self._grey_level = torch.ones(3, 1, 1)
            frames = torch.from_numpy(np.stack(pictures)[..., ::-1].copy()).permute(0, 3, 1, 2)
        else:
            self._grey_level = 255 * torch.tensor(recipe.std).view(3, 1, 1)
            height, width = pictures[0].shape[:2]
            chunks = Preprocessor(recipe, width, height, order="bgr").chunks(pictures, torch.device("cpu"))
            frames = torch.cat(list(chunks))
        self._shape = frames.shape[1:]
        self._small = self._reduce(frames)

    def compare(self, frames: torch.Tensor) -> None:
        """Raise FallBack where ``frames``, ``(n, 3, H, W)`` and the first ones, are not the same pictures."""
        if frames.shape[1:] != self._shape:
            raise FallBack(f"its frames are {tuple(frames.shape[1:])}, and PyAV's {tuple(self._shape)}")
        count = min(len(frames), len(self._small))
        ours = self._reduce(frames[:count])
        distances = torch.cdist(ours, self._small, p=1) / ours.shape[1]
        same, nearest = distances.diagonal(), distances.min(1).values
        # written so that what is not a number is caught too
        if not bool((same <= _FARTHEST).all()):
            index = int((~(same <= _FARTHEST)).nonzero()[0])
            raise FallBack(f"frame {index} is {same[index]:.1f} grey levels from PyAV's")
        if (same > _NEARER * nearest + _SLACK).any():
            index = int((same > _NEARER * nearest + _SLACK).nonzero()[0])
            raise FallBack(f"frame {index} looks like PyAV's frame {int(distances[index].argmin())}")

    def _reduce(self, frames: torch.Tensor) -> torch.Tensor:
        height, width = frames.shape[-2:]
        some = frames[..., :: max(1, height // (_SAMPLES * _SIDE)), :: max(1, width // (_SAMPLES * _SIDE))]
        means = F.adaptive_avg_pool2d(some.float(), (min(_SIDE, height), min(_SIDE, width)))
        return (means.cpu() * self._grey_level).flatten(1)
