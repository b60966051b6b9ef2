"""What a store says, in the words of recipes and labels: the store itself knows neither."""

from __future__ import annotations

import numpy as np

from streamfeat.recipe import Recipe
from streamfeat.store import FeatureStore, StoredVideo, StoreError


def recipe_of(store: FeatureStore) -> Recipe:
    """The recipe that the features of ``store`` were made with."""
    return Recipe.from_dict(store.recipe)


def frames_of(store: FeatureStore) -> dict[str, int]:
    """``{video: decoded frames}``; up to the end of its last clip, where the store does not say."""
    span = recipe_of(store).clip_span
    return {name: _frames(store[name], span) for name in store}


def _frames(video: StoredVideo, span: int) -> int:
    if video.frames is not None:
        return video.frames
    return int(video.start_frame[-1]) + span if video.clips else 0


def aligned_clips(video: StoredVideo) -> int:
    """How many of the video's clips are for training: those with labels, or all where there are none."""
    return video.clips if video.aligned_clips is None else min(video.aligned_clips, video.clips)


def frame_labels(video: StoredVideo) -> np.ndarray | None:
    """The labels of the video's frames, uint8 (S,), or None where they are not known."""
    labels = video.labels
    return None if labels is None or video.aligned_clips is None else labels.frame


def video_label(video: StoredVideo) -> int | None:
    """1 for an anomalous video, 0 for a normal one, None where it is not known."""
    labels = video.labels
    return None if labels is None else labels.attrs.get("video")


def is_intact(video: StoredVideo) -> bool:
    """Whether features, start frames, attributes and labels still are what was written, by their checksums."""
    try:
        # None: of a store from before these had a checksum
        return video.is_intact() and False not in (video.attrs_intact(), video.labels_intact())
    except StoreError:
        return False
