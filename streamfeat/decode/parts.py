"""Where a long video can be cut, so that several decoders share it and its clips stay what they are."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from streamfeat.decode.probe import Packets
    from streamfeat.recipe import Recipe

#: Frames of a part, if key frames are near enough. Fewer do not pay for the opening of a decoder and for what is
#: decoded to check its beginning; many leave lanes idle at the end.
FEWEST_FRAMES, MOST_FRAMES = 256, 2048
#: samples (clips times crops), if that many come of FEWEST_FRAMES: features wait in memory for those of earlier parts
MOST_SAMPLES = 2048


@dataclasses.dataclass(frozen=True)
class Part:
    """Frames of a video that are decoded by themselves."""

    #: where a clip begins
    first: int
    #: the frame after the last; other parts may have the last ones too, where clips overlap
    end: int
    #: key frame at which decoding begins, ``first`` or before it
    key: int


def cut(recipe: Recipe | None, packets: Packets, share: float) -> list[Part]:
    """Parts of a video that together have each of its clips once, in order; one, where nothing is gained by more.

    Args:
        recipe: says where clips begin; None: everywhere.
        share: of the video's frames, about how many a part shall have.
    """
    frames = len(packets.times)
    stride, span, crops = (1, 1, 1) if recipe is None else (recipe.clip_stride, recipe.clip_span, recipe.crops)
    most = min(MOST_FRAMES, MOST_SAMPLES * stride // crops)
    wanted = max(FEWEST_FRAMES, min(most, math.ceil(share * frames)))
    begins = [(0, 0)]
    for key in packets.keys[packets.is_beginning] if share < 1 else ():
        first = stride * math.ceil(key / stride)
        # a decoder begins at the last key frame before what it is asked for, whether that one is good or not
        last_key = int(np.searchsorted(packets.keys, first, side="right")) - 1
        if (
            packets.is_beginning[last_key]
            and first - begins[-1][0] >= wanted
            and frames - first >= FEWEST_FRAMES
            and first - stride + span <= frames
        ):
            begins.append((first, int(packets.keys[last_key])))
    ends = [first + max(0, span - stride) for first, _ in begins[1:]] + [frames]
    return [Part(first, end, key) for (first, key), end in zip(begins, ends, strict=True)]
