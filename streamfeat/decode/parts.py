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
FEWEST_FRAMES, MOST_FRAMES = 256, 4096
#: Samples (clips times crops) of a part, unless FEWEST_FRAMES give more: features wait in memory for those of earlier
#: parts.
MOST_SAMPLES = 2048
#: times the frames that a part has in common with the next one, where clips overlap: those are decoded twice
_FEWEST_OVERLAPS = 8


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
        share: of the video's frames, as many as one lane shall decode, in one part or several.
    """
    frames = len(packets.times)
    stride, span, crops = (1, 1, 1) if recipe is None else (recipe.clip_stride, recipe.clip_span, recipe.crops)
    most = min(MOST_FRAMES, MOST_SAMPLES * stride // crops)
    # as many parts for each lane, so that the lanes end together
    wanted = share * frames / max(1, math.ceil(share * frames / most))
    overlap = max(0, span - stride)
    wanted = max(FEWEST_FRAMES, _FEWEST_OVERLAPS * overlap, math.ceil(wanted))
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
    ends = [first + overlap for first, _ in begins[1:]] + [frames]
    return [Part(first, end, key) for (first, key), end in zip(begins, ends, strict=True)]
