"""One array of labels for a whole list of videos, as RTFM, UR-DMU, MGFN and XDVioDet evaluate against.

Such an array was made for somebody's features: a video of ``T`` clips has ``16 * T`` values in it, and how
many clips its frames gave differs from one to the other. RTFM's ``gt-ucf.npy`` (1,114,144 values) and
``gt-sh.npy`` (142,912) count a clip that is not full; others drop it (UCF-Crime: 1,109,824); XDVioDet's
``make_gt.py`` drops one frame first, for the optical flow. UR-DMU's own array (1,109,680) fits none of the
three, because nine of its videos lack one clip more. An array that fits none of them, but has one value for
every frame, is taken for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from streamfeat.labels.errors import LabelError
from streamfeat.labels.names import VideoNames
from streamfeat.labels.values import frame_labels
from streamfeat.text import counted

#: frames of a clip in every project that keeps its labels so
CLIP = 16

_CLIP_COUNTS: tuple[tuple[str, Callable[[int], int]], ...] = (
    ("the frames left over dropped", lambda frames: frames // CLIP),
    ("the frames left over made a clip", lambda frames: -(-frames // CLIP)),
    ("one frame less, the frames left over dropped", lambda frames: (frames - 1) // CLIP),
)


def read_list(path: str | Path) -> list[str]:
    """The names in a list of videos or feature files, one a line. Raises LabelError when there are none."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text in UTF-8"
        raise LabelError(f"{path}: cannot be read as a list of videos ({why})") from None
    names = [line.strip() for line in text.split("\n") if line.strip()]
    if not names:
        raise LabelError(f"{path}: an empty list")
    return names


def split_flat(source: Path, labels: np.ndarray, test_list: str | Path | None,
               videos: Mapping[str, int] | None) -> tuple[str, dict[str, np.ndarray]]:
    """``{name in the list: (16 T,) or (frames,)}`` from one array for the whole of ``test_list``, and which it was.

    Raises LabelError when a video of the list is not among ``videos`` ({name: frames}), or when their frames
    do not add up to the array, under any of the ways to count clips or one by one.
    """
    if test_list is None or videos is None:
        missing = ["--list with the list that it follows"] if test_list is None else []
        missing += ["--videos with the store that has their frames"] if videos is None else []
        raise LabelError(f"{source}: one array for many videos; give {' and '.join(missing)}")
    labels = frame_labels(str(source), labels)
    order: dict[str, str] = {}
    names = VideoNames(videos)
    missing = []
    for name in read_list(test_list):
        match = names.find(name)
        if match is None:
            missing.append(name)
        else:
            order.setdefault(match.video, name)  # ten crops of a video are ten lines in some lists
    if missing:
        absent = counted(len(missing), "of its videos is", "of its videos are")
        raise LabelError(f"{test_list}: {absent} not in the store, {missing[0]!r} first: without their frames the "
                         "array cannot be split")
    ways = [(f"{CLIP} labels a clip", how, [CLIP * count(videos[video]) for video in order])
            for how, count in _CLIP_COUNTS]
    ways.append(("one label a frame", "one label a frame", [videos[video] for video in order]))
    for form, _, lengths in ways:
        if sum(lengths) == labels.size:
            ends = np.cumsum(lengths)
            return form, {name: labels[end - length : end]
                          for name, length, end in zip(order.values(), lengths, ends, strict=True)}
    *by_clip, by_frame = [f"{sum(lengths)} ({how})" for _, how, lengths in ways]
    raise LabelError(f"{source}: {labels.size} values, but the {len(order)} videos of {test_list} give "
                     f"{', '.join(by_clip)} or {by_frame}; it was made for other features or other videos: use the "
                     "data set's annotation instead")
