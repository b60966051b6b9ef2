"""Ground truth of any form into the published pickles."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np

from streamfeat.labels.errors import LabelError
from streamfeat.labels.names import Match, VideoNames
from streamfeat.labels.publish import write_frame_labels, write_video_labels
from streamfeat.labels.read import read_labels
from streamfeat.store import FeatureStore
from streamfeat.stored import frames_of

#: first byte of every pickle of protocol 2 and later, which is what is written here
_PICKLE_START = b"\x80"


@dataclasses.dataclass(frozen=True)
class Converted:
    """What :func:`convert_labels` wrote, and how it came by it."""

    form: str
    #: {video: uint8 (S,)}
    frame: Mapping[str, np.ndarray]
    #: {video: 0 or 1}
    video: Mapping[str, int]
    #: names that had to be read as a variant of a video's name
    variants: tuple[Match, ...] = ()
    #: names that mean no video of the store; their labels were left out
    without_video: tuple[str, ...] = ()


def convert_labels(source: str | os.PathLike[str], output: str | os.PathLike[str], *,
                   store: str | os.PathLike[str] | None = None, test_list: str | os.PathLike[str] | None = None,
                   video_output: str | os.PathLike[str] | None = None) -> Converted:
    """Read ``source`` and write ``output`` as the published ``frame_label.pickle``: 0 or 1 (above 0) a frame.

    With ``store`` the labels go by the names of its videos, and videos that are not in it are left out; without,
    by the names in the source. ``video_output`` is written as the published ``video_label.pickle``.

    Raises LabelError for labels that cannot be read or matched, StoreError for the store, OSError for the output.
    """
    _check_outputs([output] if video_output is None else [output, video_output], [source, store, test_list])
    if store is None:
        labels = read_labels(source, None, test_list)
        names = {name: name for name in labels.frame}
        variants, without_video = (), ()
    else:
        with FeatureStore(store) as reader:
            labels = read_labels(source, frames_of(reader), test_list)
            matches, unmatched = VideoNames(reader).match(labels.frame)
        names = {video: match.name for video, match in matches.items()}
        variants = tuple(match for match in matches.values() if match.variant)
        without_video = tuple(unmatched)
        if not names:
            raise LabelError(f"{source}: has no label for any video of {store}; nothing was written")
    frame = {video: (labels.frame[name] > 0).astype(np.uint8) for video, name in names.items()}
    video = {**labels.video, **{name: int(values.any()) for name, values in frame.items()}}
    write_frame_labels(output, frame)
    if video_output is not None:
        write_video_labels(video_output, video)
    return Converted(labels.form, frame, video, variants, without_video)


def _check_outputs(outputs: Sequence[str | os.PathLike[str]], inputs: Sequence[str | os.PathLike[str] | None]) -> None:
    """Raise LabelError where writing would destroy something that is not an older pickle."""
    taken = {os.path.realpath(path) for path in inputs if path is not None}
    for output in outputs:
        path = os.path.realpath(output)
        if path in taken:
            raise LabelError(f"{output}: is read or written already; choose another output")
        taken.add(path)
        if os.path.isfile(path):
            with open(path, "rb") as file:
                if file.read(1) != _PICKLE_START:
                    raise LabelError(f"{output}: exists and is not a pickle; choose another output")
