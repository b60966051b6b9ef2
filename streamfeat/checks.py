"""What can be wrong with a stored video, told from the store alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from streamfeat.align import CLIP_LABELS, count_aligned_clips, label_clips
from streamfeat.recipe import Recipe
from streamfeat.store import FeatureStore, Labels, StoredVideo, StoreError

#: what stores of older versions lack, as ``verify`` says it
ATTRIBUTES_UNCHECKED = "their attributes (source, fps, ...) have no checksum"
LABELS_UNCHECKED = "their labels have no checksum: align them again to have one"
RULE_UNCHECKED = "their clip labels do not say by which rule they were made"
#: bytes of features in memory at a time
_BLOCK_BYTES = 16 << 20


class VideoChecks:
    """The checks of one video. ``problems`` runs them; the rest is known then."""

    def __init__(self, video: StoredVideo, store: FeatureStore, recipe: Recipe) -> None:
        self._video, self._store, self._recipe = video, store, recipe
        self.clips = 0
        #: what could not be checked
        self.unchecked: list[str] = []

    def problems(self) -> Iterator[str]:
        """What is wrong, one line each."""
        for check in (self._check_features, self._check_clips, self._check_attrs, self._check_labels):
            try:
                yield from check()
            except Exception as error:  # damaged data makes h5py and numpy raise whatever they stumble upon
                cause = error.__cause__ if isinstance(error, StoreError) else error
                yield f"cannot be read ({str(cause) or type(cause).__name__}): extract it again"

    def _check_features(self) -> Iterator[str]:
        features, header = self._video.feature_dataset, self._store.header
        self.clips = len(features)
        if features.shape[1:] != header.row_shape or features.dtype != self._store.dtype:
            yield (f"its features are {features.dtype} {features.shape}, "
                   f"not {self._store.dtype} (clips, {header.row_shape})")
        if not self._video.is_intact():
            yield "its features or start frames are not what was written (checksum): extract it again"
        if not all(np.isfinite(block).all() for block in blocks(self._video)):
            yield "its features are not all finite"

    def _check_clips(self) -> Iterator[str]:
        frames, starts = self._video.frames, self._video.start_frame
        if frames is None:
            yield "the number of its frames is missing"
        elif self.clips != self._recipe.count_clips(frames):
            yield f"it has {self.clips} clips, but its {frames} frames give {self._recipe.count_clips(frames)}"
        if len(starts) != self.clips or (starts != np.arange(len(starts)) * self._recipe.clip_stride).any():
            yield f"its clips do not start every {self._recipe.clip_stride} frames"

    def _check_attrs(self) -> Iterator[str]:
        intact = self._video.attrs_intact()
        if intact is None and self._store_has_checksums():
            yield "its attributes have no checksum, though the store has one for all: extract it again"
        elif intact is None:
            self.unchecked.append(ATTRIBUTES_UNCHECKED)
        elif not intact:
            yield ("its name or attributes (source, frames, fps, ...) are not what was written (checksum): extract it "
                   "again")

    def _check_labels(self) -> Iterator[str]:
        labels, kept = self._video.labels, self._video.aligned_clips
        if labels is None:
            if kept is not None:
                yield f"{kept} clips are aligned, but there are no labels"
            return
        intact = self._video.labels_intact()
        if intact is None and self._store_has_checksums():
            yield "its labels have no checksum, though the store has one for all: align it again"
        elif intact is None:
            self.unchecked.append(LABELS_UNCHECKED)
        elif not intact:
            yield "its labels are not what was written (checksum): align it again"
        problems = [*_check_values(labels), *_check_video_label(labels, kept)]
        yield from problems
        if not problems and kept is not None:
            yield from self._check_clip_labels(labels, kept)

    def _store_has_checksums(self) -> bool:
        """Whether it is of a version that gives every video, and labels too, a checksum of its own."""
        return self._store.attrs_intact() is not None

    def _check_clip_labels(self, labels: Labels, kept: int) -> Iterator[str]:
        starts, frames = self._video.start_frame, self._video.frames
        if frames is None:
            frames = int(starts[-1]) + self._recipe.clip_span if len(starts) else 0
        covered = count_aligned_clips(starts, frames, len(labels.frame), self._recipe)
        if not kept == covered == len(labels.clip):
            yield (f"{kept} clips are aligned, but its {len(labels.frame)} frame labels cover {covered} and "
                   f"{len(labels.clip)} have a label: align it again")
            return
        rule = labels.attrs.get("clip_label")
        if rule is None:
            self.unchecked.append(RULE_UNCHECKED)
        elif rule not in CLIP_LABELS:
            yield f"its clip labels were made by {rule!r}, which is no rule: align it again"
        else:
            expected = label_clips(labels.frame, starts[:kept], frames, self._recipe, rule)
            wrong = np.flatnonzero(expected != labels.clip)
            if len(wrong):
                yield (f"the labels of {len(wrong)} of its clips, that at frame {starts[wrong[0]]} first, do not "
                       f"follow from its frame labels by the rule {rule!r}: align it again")


def _check_values(labels: Labels) -> Iterator[str]:
    frame, clip = labels.frame, labels.clip
    if frame.dtype != np.uint8 or frame.ndim != 1 or clip.dtype not in (np.uint8, np.float32) or clip.ndim != 1:
        yield (f"its labels are {frame.dtype} {frame.shape} and {clip.dtype} {clip.shape}, "
               "not one number a frame and a clip: align it again")
        return
    if (frame > 1).any():
        yield f"{np.count_nonzero(frame > 1)} of its frame labels are neither 0 nor 1: align it again"
    # shares of frames are float32
    in_range = (clip >= 0) & (clip <= 1)
    if not in_range.all():
        yield f"{np.count_nonzero(~in_range)} of its clip labels are not from 0 to 1: align it again"


def _check_video_label(labels: Labels, kept: int | None) -> Iterator[str]:
    label: Any = labels.attrs.get("video")
    anomalous = int(np.count_nonzero(labels.frame))
    if label not in (0, 1):
        yield f"its video label is {label}, not 0 or 1: align it again"
    # not the other way round: a video can be known as anomalous by labels that do not say where
    elif label == 0 and anomalous:
        yield f"it is labelled normal as a video, but {anomalous} of its frames are not"
    if kept is None and (labels.frame.size or labels.clip.size):
        yield "it has frame labels, but no number of aligned clips: align it again"


def blocks(video: StoredVideo) -> Iterator[np.ndarray]:
    """The features of ``video``, some clips ``(n, *row_shape)`` at a time."""
    features = video.feature_dataset
    step = max(1, _BLOCK_BYTES // max(1, features.dtype.itemsize * int(np.prod(features.shape[1:]))))
    for start in range(0, len(features), step):
        # asked for anew: a writer at work may have committed twice since
        yield video.feature_dataset[start : start + step]
