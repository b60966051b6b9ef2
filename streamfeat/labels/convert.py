"""Ground truth of any form into the published pickles."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
    #: {video: its frames} of those with labels beyond their end, as annotations of another cut of a video have them
    beyond: Mapping[str, int] = dataclasses.field(default_factory=dict)


def convert_labels(source: str | os.PathLike[str], output: str | os.PathLike[str], *,
                   store: str | os.PathLike[str] | None = None, test_list: str | os.PathLike[str] | None = None,
                   video_output: str | os.PathLike[str] | None = None) -> Converted:
    """Read ``source`` and write ``output`` as the published ``frame_label.pickle``: 0 or 1 (above 0) a frame.

    With ``store`` the labels go by the names of its videos, and videos that are not in it are left out; without,
    by the names in the source. ``video_output`` is written as the published ``video_label.pickle``.

    Raises LabelError for labels that cannot be read or matched and for outputs that cannot be written, StoreError
    for the store.
    """
    _check_outputs([output] if video_output is None else [output, video_output], [source, store, test_list])
    if store is None:
        labels = read_labels(source, None, test_list)
        names = {name: name for name in labels.frame}
        variants, without_video, frames = (), (), {}
    else:
        with FeatureStore(store) as reader:
            frames = frames_of(reader)
            labels = read_labels(source, frames, test_list)
            matches, unmatched = VideoNames(reader).match(labels.frame)
        names = {video: match.name for video, match in matches.items()}
        variants = tuple(match for match in matches.values() if match.variant)
        without_video = tuple(unmatched)
        if not names:
            raise LabelError(f"{source}: has no label for any video of {store}; nothing was written")
    frame = {video: (labels.frame[name] > 0).astype(np.uint8) for video, name in names.items()}
    video = {**labels.video, **{name: int(values.any()) for name, values in frame.items()}}
    _write(output, write_frame_labels, frame)
    if video_output is not None:
        _write(video_output, write_video_labels, video)
    beyond = {name: frames[name] for name, values in frame.items() if name in frames and len(values) > frames[name]}
    return Converted(labels.form, frame, video, variants, without_video, beyond)


def _write(output: str | os.PathLike[str], write: Callable[[str | os.PathLike[str], Any], None], labels: Any) -> None:
    try:
        write(output, labels)
    except OSError as error:
        raise LabelError(f"{output}: cannot be written ({error.strerror or error}); choose another output") from error


def _check_outputs(outputs: Sequence[str | os.PathLike[str]], inputs: Sequence[str | os.PathLike[str] | None]) -> None:
    """Raise LabelError where nothing can be written, or would destroy something that is not an older pickle."""
    taken = {os.path.realpath(path) for path in inputs if path is not None}
    for output in outputs:
        path = os.path.realpath(output)
        if path in taken:
            raise LabelError(f"{output}: is read or written already; choose another output")
        taken.add(path)
        folder = os.path.dirname(os.path.abspath(output))
        if os.path.lexists(path) and not os.path.isfile(path):
            raise LabelError(f"{output}: is no file (a folder or a device); give the path of a file")
        if not os.path.isdir(folder):
            raise LabelError(f"{output}: there is no folder {folder}; make it first")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise LabelError(f"{output}: {folder} may not be written; choose another output")
        if os.path.isfile(path) and not _is_pickle(path):
            raise LabelError(f"{output}: exists and is not a pickle; choose another output")


def _is_pickle(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(1) == _PICKLE_START
    except OSError:
        return False
